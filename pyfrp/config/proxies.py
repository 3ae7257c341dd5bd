"""Every key of a `[[proxies]]` table.

Source of names and defaults: frp `pkg/config/v1/proxy.go`.
"""

from __future__ import annotations

from typing import ClassVar

from pyfrp.config.base import Field, Model, Tagged, Variants, secret, secret_map
from pyfrp.config.common import HeaderOperations, HTTPHeader


class ClientPluginOptions(Tagged):
    """The `plugin` table of a proxy; the variants are in `pyfrp.config.plugins`."""

    kind: ClassVar[str] = "plugin"

    @classmethod
    def variants(cls) -> Variants:
        """Map each plugin type to its model."""
        from pyfrp.config.plugins import CLIENT_PLUGINS  # few files use plugins: not at start-up

        return CLIENT_PLUGINS


class ProxyTransport(Model):
    """How the bytes of a proxy travel."""

    use_encryption: bool = False
    """Encrypt the payload with the token as key. Default false."""

    use_compression: bool = False
    """Compress the payload (snappy). Default false."""

    bandwidth_limit: str = ""
    """`<number>MB` or `<number>KB` per second; empty: no limit."""

    bandwidth_limit_mode: str = "client"
    """Which side limits: `client` or `server`. Default `client`."""

    proxy_protocol_version: str = ""
    """PROXY protocol header for the local service: empty, `v1` or `v2`."""


class LoadBalancer(Model):
    """Proxies of one group share their traffic."""

    group: str = ""
    """Name of the group; empty: none. For tcp, http, tcpmux and https, the last since frp 0.66."""

    group_key: str = secret()
    """Must be equal within the group."""


class HealthCheck(Model):
    """Probing of the local service."""

    type: str = ""
    """`tcp` or `http`; empty: none."""

    timeout_seconds: int = 3
    """Seconds one probe may take. Default 3."""

    max_failed: int = 1
    """Failures in a row before the proxy is taken out. Default 1."""

    interval_seconds: int = 10
    """Seconds between probes. Default 10."""

    path: str = ""
    """Path to ask for; required for `http`."""

    http_headers: list[HTTPHeader] = Field(default_factory=list)
    """Headers of the probe."""


class NatTraversal(Model):
    """How a peer-to-peer connection is found."""

    disable_assisted_addrs: bool = False
    """Use only the addresses that STUN finds. Default false."""


class ProxyBase(Tagged):
    """The keys of all proxy types."""

    kind: ClassVar[str] = "proxy"

    @classmethod
    def variants(cls) -> Variants:
        """Map each proxy type to its model."""
        return PROXY_TYPES

    name: str = ""
    """Unique name; required."""

    enabled: bool = True
    """False drops the proxy. Default true."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Remarks for the dashboard; keys are Kubernetes qualified names."""

    metadatas: dict[str, str] = secret_map()
    """Values for the server's plugins."""

    transport: ProxyTransport = Field(default_factory=ProxyTransport)
    """How the bytes travel."""

    load_balancer: LoadBalancer = Field(default_factory=LoadBalancer)
    """Sharing with other proxies."""

    health_check: HealthCheck = Field(default_factory=HealthCheck)
    """Probing of the local service."""

    local_ip: str = "127.0.0.1"
    """Host of the local service. Default 127.0.0.1."""

    local_port: int = 0
    """Port of the local service."""

    plugin: ClientPluginOptions | None = None
    """Takes the place of the local service."""


class DomainProxy(ProxyBase):
    """The keys of the types that are found by a domain."""

    custom_domains: list[str] = Field(default_factory=list)
    """Exact names, `*.x.y`, or `*` for everything."""

    subdomain: str = ""
    """Stands for `<subdomain>.<subDomainHost of the server>`."""


class SecretProxy(ProxyBase):
    """The keys of the types that only visitors reach."""

    secret_key: str = secret()
    """Shared with the visitors."""

    allow_users: list[str] = Field(default_factory=list)
    """Users whose visitors may connect; empty: the same user; `*`: all."""


class TCPProxyConfig(ProxyBase):
    """A TCP port on the server."""

    type: str = "tcp"
    remote_port: int = 0
    """Port on the server; 0, the default: the server picks one."""


class UDPProxyConfig(ProxyBase):
    """A UDP port on the server."""

    type: str = "udp"
    remote_port: int = 0
    """Port on the server; 0, the default: the server picks one."""


class HTTPProxyConfig(DomainProxy):
    """An HTTP virtual host."""

    type: str = "http"
    locations: list[str] = Field(default_factory=list)
    """Path prefixes; the longest match wins. Default: everything."""

    http_user: str = ""
    """User of the basic authentication that callers must pass."""

    http_password: str = secret()
    """Its password."""

    host_header_rewrite: str = ""
    """New `Host` for the local service."""

    request_headers: HeaderOperations = Field(default_factory=HeaderOperations)
    """Changes to the request."""

    response_headers: HeaderOperations = Field(default_factory=HeaderOperations)
    """Changes to the answer."""

    route_by_http_user: str = ""
    """Take only requests of this user."""


class HTTPSProxyConfig(DomainProxy):
    """A virtual host found by the name in the TLS greeting."""

    type: str = "https"


class TCPMuxProxyConfig(DomainProxy):
    """A host behind the CONNECT multiplexer."""

    type: str = "tcpmux"
    http_user: str = ""
    """User of the proxy authentication that callers must pass."""

    http_password: str = secret()
    """Its password."""

    route_by_http_user: str = ""
    """Take only requests of this user."""

    multiplexer: str = ""
    """Must be `httpconnect`."""


class STCPProxyConfig(SecretProxy):
    """A TCP service for visitors."""

    type: str = "stcp"


class SUDPProxyConfig(SecretProxy):
    """A UDP service for visitors."""

    type: str = "sudp"


class XTCPProxyConfig(SecretProxy):
    """A TCP service for visitors, peer to peer."""

    type: str = "xtcp"
    nat_traversal: NatTraversal = Field(default_factory=NatTraversal)
    """How the connection is found."""


PROXY_TYPES: Variants = {
    "tcp": TCPProxyConfig,
    "udp": UDPProxyConfig,
    "http": HTTPProxyConfig,
    "https": HTTPSProxyConfig,
    "tcpmux": TCPMuxProxyConfig,
    "stcp": STCPProxyConfig,
    "sudp": SUDPProxyConfig,
    "xtcp": XTCPProxyConfig,
}
