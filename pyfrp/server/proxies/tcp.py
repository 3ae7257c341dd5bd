"""Proxies of type tcp: a port on the server, a bridge per user."""

from __future__ import annotations

from functools import partial

from pyfrp.net.held import Held
from pyfrp.net.listen import listen
from pyfrp.server.groups import Door, Group
from pyfrp.server.proxies.base import bind_first
from pyfrp.server.proxies.bridged import BridgedProxy, admit


class TCPProxy(BridgedProxy):
    """Source: frp `server/proxy/tcp.go`."""

    counts_ports = 1

    async def start(self) -> str:
        wanted = self.wanted
        # Members that leave the choice to the server all get the port of the first.
        port = await self.stand(
            self._open, wanted.remote_port, mismatch="group should have same remote port"
        )
        shared = f" in group [{wanted.group}]" if wanted.group else ""
        self.log.info(f"tcp proxy listen port [{wanted.remote_port}]{shared}")
        return f":{port}"

    async def _open(self, group: Group[BridgedProxy]) -> Door:
        server, name, wanted = self.server, self.name, self.wanted.remote_port
        ports = server.ports.candidates(name, wanted, server.clock())
        listener, port = await bind_first(
            lambda port: listen(
                lambda: Held(partial(admit, group)),
                server.proxy_bind_addr,
                port,
                keepalive_s=server.keepalive_s,
            ),
            ports,
            fixed=bool(wanted),
        )
        server.ports.take(name, port)

        def close() -> None:
            listener.close()
            server.ports.release(name, port, server.clock())

        return Door(close, port)
