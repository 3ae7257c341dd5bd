"""Proxies of type tcp: a port on the server, a bridge per user."""

from __future__ import annotations

import asyncio

from pyfrp.net.held import Held
from pyfrp.net.listen import Listener, listen
from pyfrp.server.proxies.base import bind_first
from pyfrp.server.proxies.bridged import BridgedProxy


class TCPProxy(BridgedProxy):
    """Source: frp `server/proxy/tcp.go`."""

    counts_ports = 1

    _listener: Listener | None = None
    _port = 0

    async def start(self) -> str:
        server = self.server
        wanted = self.wanted.remote_port
        ports = server.ports.candidates(self.name, wanted, server.clock())
        self._listener, self._port = await bind_first(
            lambda port: listen(
                lambda: Held(self._accept),
                server.proxy_bind_addr,
                port,
                keepalive_s=server.keepalive_s,
            ),
            ports,
            fixed=bool(wanted),
        )
        server.ports.take(self.name, self._port)
        self.log.info(f"tcp proxy listen port [{wanted}]")
        return f":{self._port}"

    def close(self, *, lost: bool = False) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.server.ports.release(self.name, self._port, self.server.clock())
        if lost:
            self.drop_waiting()

    def _accept(self, user: asyncio.Transport, held: Held) -> None:
        if self._listener is None:  # Accepted in the turn in which the listener was closed.
            user.abort()
            return
        self.take_user(user, held)
