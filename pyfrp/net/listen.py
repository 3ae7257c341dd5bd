"""Incoming connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from pyfrp.net.sockets import BACKLOG, bind, is_numeric
from pyfrp.wire.sniff import Kind, classify


class Sniffer(asyncio.Protocol):
    """Reads as many bytes of a connection as tell what it speaks, then gives it away, paused.

    Args:
        http_here, https_here: Whether http, and https, vhost callers come to this port too.
        on_known: Called with the transport, the kind and the bytes read.
        on_gone: Called with this object when it is done, whatever came of it.
    """

    def __init__(
        self,
        *,
        http_here: bool,
        https_here: bool = False,
        on_known: Callable[[asyncio.Transport, Kind, bytes], None],
        on_gone: Callable[[Sniffer], None],
    ) -> None:
        self._http_here = http_here
        self._https_here = https_here
        self._on_known = on_known
        self._on_gone = on_gone
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        kind = classify(self._data, http_here=self._http_here, https_here=self._https_here)
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


class Listener:
    """Accepts connections on a port until it is closed.

    Attributes:
        port: The port it got.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.servers: list[asyncio.Server] = []

    def close(self) -> None:
        for server in self.servers:
            server.close()

    async def settle(self) -> None:
        """Nothing: the kernel goes on sending what was written."""


async def listen(
    factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    *,
    keepalive_s: float,
    links: bool = False,
    lanes: int = 1,
    bound: socket.socket | None = None,
) -> Listener:
    """Listen on TCP `host:port`, on each address of a name.

    Args:
        keepalive_s, links: As for `sockets.bind`.
        lanes: Connections to accept in one turn of the loop, where it would take one.
        bound: The socket, if there is one already; this closes it.

    Raises:
        OSError: with the system's reason; `bind_error` makes a sentence of it.
    """
    loop = asyncio.get_running_loop()
    if bound is not None:
        sockets = [bound]
    else:
        hosts = [host]
        if not is_numeric(host):
            found = await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            hosts = list(dict.fromkeys(str(item[4][0]) for item in found))
        sockets = []
        try:
            for address in hosts:
                sockets.append(bind(address, port, keepalive_s=keepalive_s, links=links))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
    listener = Listener(sockets[0].getsockname()[1])
    if isinstance(loop, asyncio.BaseEventLoop):
        lanes = 1  # asyncio's own loops empty the queue; libuv's accepts one per turn and socket.
    try:
        for sock in sockets:
            for lane in [sock, *(sock.dup() for _ in range(lanes - 1))]:
                server = await loop.create_server(
                    factory, sock=lane, backlog=BACKLOG, start_serving=False
                )
                listener.servers.append(server)
                await server.start_serving()  # asyncio's own loops may be cancelled here.
    except BaseException:
        listener.close()
        raise
    return listener
