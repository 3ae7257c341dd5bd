"""Proxies of type udp: a port on the server, and one work connection for all users."""

from __future__ import annotations

import asyncio
from typing import Any

from pyfrp.errors import LinkError, RefusedError
from pyfrp.net.datagrams import bind_udp
from pyfrp.net.userport import UserPort
from pyfrp.server.proxies.base import ServerProxy, bind_first

START_S = 0.5  # A client that has not read our answer yet closes the work connection.
RETRY_S = 1.0  # Between attempts to have a work connection that came to nothing.


class UDPProxy(ServerProxy):
    """Source: frp `server/proxy/udp.go` (times, sizes)."""

    counts_ports = 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._users: UserPort | None = None
        self._port = 0
        self._task: asyncio.Task[Any] | None = None
        self._closed = False

    async def start(self) -> str:
        server = self.server
        wanted = self.wanted.remote_port
        try:
            ports = server.udp_ports.candidates(self.name, wanted, server.clock())
            sock, self._port = await bind_first(
                lambda port: bind_udp(server.proxy_bind_addr, port), ports, fixed=bool(wanted)
            )
        except RefusedError as exc:
            raise RefusedError(f"acquire port {wanted} error: {exc}") from exc
        server.udp_ports.take(self.name, self._port)
        users = self._users = UserPort(
            sock, packet_size=server.udp_packet_size, log=self.log, version=self._pool.version
        )
        try:
            await users.attach()
        except OSError as exc:
            self.close()
            raise RefusedError(f"acquire port {wanted} error: port unavailable") from exc
        except BaseException:
            self.close()
            raise
        if self._closed:
            raise RefusedError("the server is stopping")
        self.log.info(f"udp proxy listen port [{self._port}]")
        self.scope.spawn(self._serve(users), name=f"work connection of {self.name}")
        return f":{self._port}"

    def close(self, *, lost: bool = False) -> None:
        self._closed = True
        if self._users is None:
            return
        self._users.close(lost=lost)
        self._users = None
        self.server.udp_ports.release(self.name, self._port, self.server.clock())
        if self._task is not None:
            self._task.cancel()

    async def _serve(self, users: UserPort) -> None:
        """Have a work connection as long as the proxy lasts."""
        if self._closed:
            return
        self._task = asyncio.current_task()
        await asyncio.sleep(START_S)
        clock = self.server.clock
        while True:
            try:
                work, early = await self.open_work(("", 0))
            except LinkError as exc:
                self.log.warning(str(exc))
                await asyncio.sleep(RETRY_S)
                continue
            began = clock()
            cause = await users.serve(work, early)
            self.log.warning(f"read from workConn for udp error: {cause}")
            if clock() - began < RETRY_S:
                # A client that takes no work connections must not be asked as fast as it can.
                await asyncio.sleep(RETRY_S)
