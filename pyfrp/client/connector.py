"""Ways from this client to its server: one link with a mux on it, or a connection each time.

Source: frp `client/connector.go`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pyfrp.errors import DialError, HandshakeError, LinkError, MuxError, PeerClosed
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.mux import MuxTransport
from pyfrp.net.tls import upgrade
from pyfrp.wire.sniff import FRP_TLS_BYTE


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach the server. Times are in seconds; `tls` None means in the clear."""

    host: str
    port: int
    local_ip: str
    dial_timeout_s: float
    keepalive_s: float
    tls: ssl.SSLContext | None
    tls_server_name: str
    tls_first_byte: bool
    tcp_mux: bool
    mux_keepalive_s: float


class Connector(Protocol):
    """Opens connections to the server, as many as asked for."""

    async def open(self) -> tuple[Endpoint, bytes]:
        """A connection, paused, and bytes read ahead. Raises LinkError."""
        ...

    def heard(self) -> float:
        """When anything last came over the link, in the loop's time; 0 if that is not known."""
        ...

    async def close(self) -> None:
        """Drop the link, with every connection on it."""
        ...


async def dial(route: Route) -> tuple[Endpoint, bytes]:
    """Connect to the server, and speak TLS if the route says so.

    Raises:
        DialError, HandshakeError: with the reason in words.
    """
    endpoint, held = await dial_tcp(
        route.host,
        route.port,
        timeout_s=route.dial_timeout_s,
        keepalive_s=route.keepalive_s,
        local_ip=route.local_ip,
        link=True,
    )
    early = held.early
    if held.ended:
        endpoint.abort()
        raise DialError(f"{route.host}:{route.port} accepts connections and closes them at once")
    if route.tls is None:
        return endpoint, early
    if route.tls_first_byte:
        endpoint.write(bytes((FRP_TLS_BYTE,)))
    try:
        async with asyncio.timeout(route.dial_timeout_s):
            tls = await upgrade(
                endpoint,
                route.tls,
                server_side=False,
                server_name=route.tls_server_name,
                early=early,
            )
    except TimeoutError:
        raise HandshakeError(
            f"no TLS answer from {route.host}:{route.port} within {route.dial_timeout_s:g} s; "
            "is it an frp server, and does anything on the way hold TLS back?"
        ) from None
    return tls, b""


class DirectConnector:
    """`tcpMux = false`: every connection is dialled."""

    def __init__(self, route: Route) -> None:
        self._route = route

    async def open(self) -> tuple[Endpoint, bytes]:
        return await dial(self._route)

    def heard(self) -> float:
        return 0.0

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
        return self._mux.session.heard

    async def close(self) -> None:
        self._mux.close(PeerClosed("the session ended"))


async def connect(route: Route, on_error: Callable[[BaseException, str], None]) -> Connector:
    """Make the link, if there is one to make.

    Raises:
        LinkError: when the server cannot be reached.
    """
    if not route.tcp_mux:
        return DirectConnector(route)
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
        raise DialError(f"{route.host}:{route.port} closed the connection")
    endpoint.resume_reading()
    return MuxConnector(mux, lost)
