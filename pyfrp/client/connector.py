"""Ways from this client to its server: one link with a mux on it, or a connection each time.

Source: frp `client/connector.go`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeAlias

from pyfrp.client.route import Route
from pyfrp.errors import DialError, LinkError, MuxError, PeerClosed
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.mux import MuxTransport

OnError: TypeAlias = Callable[[BaseException, str], None]
Dial: TypeAlias = Callable[[Route], Awaitable[tuple[Endpoint, bytes]]]
"""Makes a connection to the server: an endpoint, paused, and bytes read ahead. Raises LinkError."""


class Connector(Protocol):
    """Opens connections to the server, as many as asked for."""

    async def open(self) -> tuple[Endpoint, bytes]:
        """A connection, paused, and bytes read ahead. Raises LinkError."""
        ...

    def heard(self) -> float:
        """When anything last came over the link, in the loop's time; 0 if that is not known."""
        ...

    async def settle(self) -> None:
        """At the end, wait a moment for what was written to arrive, where closing would lose it."""
        ...

    async def close(self) -> None:
        """Drop the link, with every connection on it."""
        ...


Connect: TypeAlias = Callable[[Route, OnError], Awaitable[Connector]]
"""Makes the link that a route names, if there is one to make. Raises LinkError."""


class DirectConnector:
    """`tcpMux = false`: every connection is dialled."""

    def __init__(self, route: Route, dial: Dial) -> None:
        self._route = route
        self._dial = dial

    async def open(self) -> tuple[Endpoint, bytes]:
        route = self._route
        try:
            opened = await self._dial(route)
        except PeerClosed as exc:
            # For whoever opens one, that is the end of the link that carries all of them.
            raise DialError(f"{route.host}:{route.port}: {exc}") from exc
        if route.later_timeout_s > 0:
            # A look at a way is impatient; who goes by it is not.
            self._route = replace(route, dial_timeout_s=route.later_timeout_s, later_timeout_s=0.0)
        return opened

    def heard(self) -> float:
        return 0.0

    async def settle(self) -> None:
        pass

    async def close(self) -> None:
        pass  # Every connection belongs to whoever opened it.


class MuxConnector:
    """`tcpMux = true`: every connection is a stream of one link."""

    def __init__(self, mux: MuxTransport, lost: asyncio.Future[LinkError | MuxError]) -> None:
        self._mux = mux
        self._lost = lost

    async def open(self) -> tuple[Endpoint, bytes]:
        if self._mux.lost:
            raise PeerClosed(str(self._lost.result()) if self._lost.done() else "the link is lost")
        stream = self._mux.open()
        stream.hold()
        return stream, b""

    def heard(self) -> float:
        return self._mux.heard()

    async def settle(self) -> None:
        pass

    async def close(self) -> None:
        self._mux.close(PeerClosed("the session ended"))


def over(dial: Dial) -> Connect:
    """What connects by a transport that carries a stream of bytes, with `tcpMux` or without."""

    async def connect(route: Route, on_error: OnError) -> Connector:
        if not route.tcp_mux:
            return DirectConnector(route, dial)
        endpoint, early = await dial(route)
        lost: asyncio.Future[LinkError | MuxError] = asyncio.get_running_loop().create_future()
        mux = MuxTransport(
            endpoint,
            client=True,
            on_stream=None,
            on_lost=lost.set_result,
            keepalive_s=route.mux_keepalive_s,
            on_error=on_error,
        )
        if early:
            mux.data_received(early)
        if endpoint.is_closing():
            raise PeerClosed(f"{route.host}:{route.port} closed the connection")
        endpoint.resume_reading()
        return MuxConnector(mux, lost)

    return connect
