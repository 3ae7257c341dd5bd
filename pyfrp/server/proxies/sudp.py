"""Proxies of type sudp: no port; datagrams come through the visitors of other clients."""

from __future__ import annotations

from pyfrp.net.bridge import Bridge
from pyfrp.server.proxies.stcp import STCPProxy


class MessageBridge(Bridge):
    """Datagrams in messages, from a visitor to the proxy's client."""

    __slots__ = ()

    def at_rest(self) -> bool:
        """It lasts as long as both clients: nobody waits for its end, and datagrams may be lost."""
        return True


class SUDPProxy(STCPProxy):
    """Source: frp `server/proxy/sudp.go`."""

    bridge_type = MessageBridge
