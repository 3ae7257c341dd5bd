"""Every key of a `[[visitors]]` table.

Source of names and defaults: frp `pkg/config/v1/visitor.go` and `visitor_plugin.go`.
"""

from __future__ import annotations

from typing import ClassVar

from pyfrp.config.base import Field, Model, Tagged, Variants, secret
from pyfrp.config.proxies import NatTraversal


class VisitorPluginOptions(Tagged):
    """The `plugin` table of a visitor."""

    kind: ClassVar[str] = "visitor plugin"

    @classmethod
    def variants(cls) -> Variants:
        """Map each visitor plugin type to its model."""
        return VISITOR_PLUGINS


class VirtualNetVisitorPlugin(VisitorPluginOptions):
    """Reaches an address of the virtual network."""

    type: str = "virtual_net"
    destination_ip: str = ""
    """Address to reach; required at start."""


class VisitorTransport(Model):
    """How the bytes of a visitor travel."""

    use_encryption: bool = False
    """Encrypt the payload with the secret key. Default false."""

    use_compression: bool = False
    """Compress the payload (snappy). Default false."""


class VisitorBase(Tagged):
    """The keys of all visitor types."""

    kind: ClassVar[str] = "visitor"

    @classmethod
    def variants(cls) -> Variants:
        """Map each visitor type to its model."""
        return VISITOR_TYPES

    name: str = ""
    """Unique name; required."""

    enabled: bool = True
    """False drops the visitor. Default true."""

    transport: VisitorTransport = Field(default_factory=VisitorTransport)
    """How the bytes travel."""

    secret_key: str = secret()
    """Equals the proxy's."""

    server_user: str = ""
    """Owner of the proxy. Default: the client's `user`."""

    server_name: str = ""
    """Name of the proxy, without the owner; required."""

    bind_addr: str = "127.0.0.1"
    """Address to listen on. Default 127.0.0.1."""

    bind_port: int = 0
    """Port to listen on, not 0; negative: only connections that other visitors hand over."""

    plugin: VisitorPluginOptions | None = None
    """Takes the place of the listener."""


class STCPVisitorConfig(VisitorBase):
    """Reaches a proxy of type stcp."""

    type: str = "stcp"


class SUDPVisitorConfig(VisitorBase):
    """Reaches a proxy of type sudp."""

    type: str = "sudp"


class XTCPVisitorConfig(VisitorBase):
    """Reaches a proxy of type xtcp, peer to peer."""

    type: str = "xtcp"
    protocol: str = "quic"
    """Protocol of the tunnel: `quic` or `kcp`. Default `quic`."""

    keep_tunnel_open: bool = False
    """Punch again in the background whenever the tunnel is gone. Default false."""

    max_retries_an_hour: int = 8
    """Limit for `keepTunnelOpen`. Default 8."""

    min_retry_interval: int = 90
    """Seconds between the attempts of `keepTunnelOpen`. Default 90."""

    fallback_to: str = ""
    """Visitor that takes over a connection when punching fails."""

    fallback_timeout_ms: int = 1000
    """Milliseconds before that. Default 1000."""

    nat_traversal: NatTraversal = Field(default_factory=NatTraversal)
    """How the connection is found."""


VISITOR_TYPES: Variants = {
    "stcp": STCPVisitorConfig,
    "sudp": SUDPVisitorConfig,
    "xtcp": XTCPVisitorConfig,
}
VISITOR_PLUGINS: Variants = {"virtual_net": VirtualNetVisitorPlugin}
