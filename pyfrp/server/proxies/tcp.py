"""Proxies of type tcp: a port on the server, a bridge per user."""

from __future__ import annotations

import asyncio
from typing import Any

from pyfrp.errors import LinkError
from pyfrp.net.bridge import Bridge
from pyfrp.net.endpoint import format_address, local_address, peer_address, tune
from pyfrp.net.held import Held
from pyfrp.net.listen import Listener, listen
from pyfrp.server.proxies.base import ServerProxy, bind_first


class TCPProxy(ServerProxy):
    """Source: frp `server/proxy/tcp.go`."""

    counts_ports = 1

    _listener: Listener | None = None
    _port = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._waiting: set[asyncio.Transport] = set()  # Users without a work connection yet.

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
            for user in self._waiting:
                user.abort()
            self._waiting.clear()

    def _accept(self, user: asyncio.Transport, held: Held) -> None:
        if self._listener is None:  # Accepted in the turn in which the listener was closed.
            user.abort()
            return
        self._waiting.add(user)
        self.scope.spawn(self._serve(user, held), name=f"user of {self.name}")

    async def _serve(self, user: asyncio.Transport, held: Held) -> None:
        address = peer_address(user)
        self.log.debug(f"get a user connection [{format_address(address)}]")
        try:
            tune(user)
            work, early = await self.open_work(address, local_address(user))
        except LinkError as exc:
            self.log.warning(str(exc), user=format_address(address))
            user.abort()
            return
        except BaseException:
            user.abort()
            raise
        finally:
            self._waiting.discard(user)
        if user.is_closing():
            work.abort()
            return
        if not held.ended:
            user.pause_reading()
        bridge = Bridge(
            user,
            work,
            early=held.early,
            far_early=early,
            near_ended=held.ended,
            on_close=self.server.bridge_closed,
        )
        self.server.bridges[bridge] = None
