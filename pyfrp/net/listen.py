"""Incoming connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from pyfrp.net.dial import explain
from pyfrp.net.endpoint import bound_unsent, set_keepalive
from pyfrp.wire.sniff import Kind, classify

BACKLOG = 1024  # Connections the kernel holds for us while the loop is busy.


class Sniffer(asyncio.Protocol):
    """Reads as many bytes of a connection as tell what it speaks, then gives it away, paused.

    Args:
        http_here: Whether http vhost callers come to this port too.
        on_known: Called with the transport, the kind and the bytes read.
        on_gone: Called with this object when it is done, whatever came of it.
    """

    def __init__(
        self,
        *,
        http_here: bool,
        on_known: Callable[[asyncio.Transport, Kind, bytes], None],
        on_gone: Callable[[Sniffer], None],
    ) -> None:
        self._http_here = http_here
        self._on_known = on_known
        self._on_gone = on_gone
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        kind = classify(self._data, http_here=self._http_here, https_here=False)
        if kind is not None and self._transport is not None:
            transport, self._transport = self._transport, None
            transport.pause_reading()
            self._on_gone(self)
            self._on_known(transport, kind, self._data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_gone(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def listen(
    factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    *,
    keepalive_s: float,
    links: bool = False,
) -> asyncio.Server:
    """Listen on TCP `host:port`.

    Args:
        keepalive_s: For accepted connections, which inherit it; 0 or less for none.
        links: Whether they are links, on which much waits behind what the kernel holds.

    Raises:
        OSError: with the system's reason; `bind_error` makes a sentence of it.
    """
    server = await asyncio.get_running_loop().create_server(
        factory, host, port, backlog=BACKLOG, reuse_address=True
    )
    for sock in server.sockets:
        set_keepalive(sock, keepalive_s)
        if links:
            bound_unsent(sock)
    return server


def bind_error(host: str, port: int, exc: OSError) -> str:
    """frp's text for a listener that cannot be had, with what to try."""
    reason = explain(exc)
    hint = ""
    if "in use" in reason:
        hint = f" (another program has port {port}: `ss -ltnp 'sport = :{port}'` names it)"
    elif "permission" in reason:
        hint = " (ports below 1024 need CAP_NET_BIND_SERVICE or another port)"
    elif "assign" in reason:
        hint = " (this machine does not have that address)"
    return f"listen tcp {host}:{port}: bind: {reason}{hint}"


def port_of(server: asyncio.Server) -> int:
    """The port a listener got."""
    return int(server.sockets[0].getsockname()[1])
