"""Proxies of type sudp: no port; datagrams come through the visitors of other clients."""

from __future__ import annotations

from typing import Any

from pyfrp.net.bridge import Bridge
from pyfrp.net.datagrams import Complaints
from pyfrp.net.endpoint import Endpoint
from pyfrp.server.proxies.stcp import STCPProxy
from pyfrp.wire.version import Version


class MessageBridge(Bridge):
    """Datagrams in messages, from a visitor to the proxy's client."""

    __slots__ = ()

    def at_rest(self) -> bool:
        """It lasts as long as both clients: nobody waits for its end, and datagrams may be lost."""
        return True


class SUDPProxy(STCPProxy):
    """Source: frp `server/proxy/sudp.go`."""

    bridge_type = MessageBridge

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._complaints = Complaints(self.log.warning)

    def _accept(self, visitor: Endpoint, early: bytes, version: Version) -> None:
        ours = self._pool.version
        if version is not ours:
            from pyfrp.net.translated import translated  # Few clients differ in that.

            self.log.info(f"a visitor speaks wire {version.name}, the proxy {ours.name}")
            visitor = translated(visitor, early, version, ours, complaints=self._complaints)
            early = b""
        super()._accept(visitor, early, version)
