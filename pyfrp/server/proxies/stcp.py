"""Proxies of type stcp: no port; users come through the visitors of other clients."""

from __future__ import annotations

from pyfrp.net.endpoint import Endpoint
from pyfrp.net.held import Held
from pyfrp.server.proxies.bridged import BridgedProxy
from pyfrp.wire.version import Version


class STCPProxy(BridgedProxy):
    """Source: frp `server/proxy/stcp.go`."""

    async def start(self) -> str:
        self.server.visitors.listen(
            self.name,
            secret_key=self.wanted.sk,
            allow_users=self.wanted.allow_users or [self.user],
            accept=self._accept,
        )
        self.log.info(f"{self.wanted.proxy_type} proxy custom listen success")
        return ""

    def close(self, *, lost: bool = False) -> None:
        self.server.visitors.unlisten(self.name)
        super().close(lost=lost)

    def _accept(self, visitor: Endpoint, early: bytes, version: Version) -> None:
        self.take_user(visitor, Held(early=early))
