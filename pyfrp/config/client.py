"""Every key of the client's file (frpc.toml) outside its proxies and visitors.

Source of names and defaults: frp `pkg/config/v1/client.go`.
"""

from __future__ import annotations

from typing import ClassVar

from pyfrp.config.base import Field, Model, RootModel, secret, secret_map
from pyfrp.config.common import (
    AuthConfig,
    LogConfig,
    QUICOptions,
    TLSFiles,
    ValueSource,
    WebServerConfig,
)
from pyfrp.config.proxies import ProxyBase
from pyfrp.config.visitors import VisitorBase


class ClientOIDC(Model):
    """How the client gets tokens from an OpenID Connect provider."""

    client_id: str = ""
    """Identity at the provider."""

    client_secret: str = secret()
    """Its secret."""

    audience: str = ""
    """Audience to ask for."""

    scope: str = ""
    """Scope to ask for."""

    token_endpoint_url: str = secret()
    """Absolute http or https URL of the token endpoint."""

    additional_endpoint_params: dict[str, str] = secret_map()
    """Extra form fields."""

    trusted_ca_file: str = ""
    """PEM file of the authorities for the endpoint."""

    insecure_skip_verify: bool = False
    """Do not verify the endpoint's certificate. Default false."""

    proxy_url: str = secret()
    """Proxy on the way to the endpoint: an http, https, socks5, socks5h or ntlm URL.

    Without it the environment is asked (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), unless
    `trustedCaFile` or `insecureSkipVerify` is set."""

    token_source: ValueSource | None = None
    """Take the token from here, anew each time; excludes every other key of this table."""


class ClientAuth(AuthConfig):
    """How this client proves who it is."""

    oidc: ClientOIDC = Field(default_factory=ClientOIDC)
    """For method `oidc`."""


class ClientTLS(TLSFiles):
    """TLS to the server."""

    enable: bool = True
    """Use TLS. Default true."""

    disable_custom_tls_first_byte: bool = True
    """False sends frp's marker byte (0x17) before the TLS greeting. Default true."""

    pinned_sha256: list[str] = Field(default_factory=list)
    """Fingerprints of which the server's certificate must have one (pyfrp's own key).

    SHA-256 in hexadecimal, as the server logs it at start. Default: none, any certificate will do.
    """


# The cheapest way first; none by UDP, for which servers have no port unless they are told so.
_LADDER = ("tcp", "wss", "websocket", "tcp+proxy", "wss+proxy", "websocket+proxy")


class AutoOptions(Model):
    """The protocol `auto` (pyfrp's own): which ways are tried, and how long."""

    ladder: list[str] = Field(default_factory=lambda: list(_LADDER))
    """Ways to try, in this order: a protocol, `:PORT` if it is not serverPort, `+proxy`.

    Default tcp, wss, websocket, tcp+proxy, wss+proxy, websocket+proxy."""

    rung_timeout: int = 5
    """Seconds for each step of a way; doubled, up to dialServerTimeout, while none works.

    Default 5."""


class ClientTransport(Model):
    """The link to the server."""

    protocol: str = "tcp"
    """tcp, kcp, quic, websocket or wss, or auto to find out (pyfrp's own). Default tcp."""

    auto: AutoOptions = Field(default_factory=AutoOptions)
    """For the protocol `auto` (pyfrp's own key)."""

    wire_protocol: str = "v1"
    """How messages are framed: v1, or v2, which seals the control connection against changes and
    needs a server of pyfrp or of frp 0.69 and newer. Default v1."""

    dial_server_timeout: int = 10
    """Seconds to wait for a connection. Default 10."""

    dial_server_keepalive: int = 7200
    """Seconds of TCP keep-alive; negative: off. Default 7200."""

    connect_server_local_ip: str = ""
    """Source address of the connection. Default: the system's choice."""

    proxy_url: str = secret()
    """Proxy on the way to the server: http, https, socks5, socks5h or ntlm://user:password@host:port.

    For tcp, websocket and wss. Default: the environment variable http_proxy."""

    pool_count: int = 1
    """Work connections opened in advance; the server caps it. Default 1."""

    tcp_mux: bool = True
    """Many streams over one connection; must equal the server's. Default true."""

    tcp_mux_keepalive_interval: int = 30
    """Seconds between the pings of the multiplexed link. Default 30."""

    quic: QUICOptions = Field(default_factory=QUICOptions)
    """Tuning of QUIC."""

    heartbeat_interval: int = 0
    """Seconds between heartbeats; negative: none. Default -1 with `tcpMux`, else 30."""

    heartbeat_timeout: int = 0
    """Seconds without an answer after which the link is dropped; negative: never.

    Default -1 with `tcpMux`, else 90."""

    tls: ClientTLS = Field(default_factory=ClientTLS)
    """TLS to the server."""


class VirtualNetConfig(Model):
    """The virtual network."""

    address: str = ""
    """Address with prefix length; needs the feature gate VirtualNet."""


class StoreConfig(Model):
    """Proxies and visitors that the admin API keeps."""

    path: str = ""
    """JSON file, relative to the directory of the configuration file; empty: none."""


class ClientConfig(RootModel):
    """The client's file."""

    zero_is_meant: ClassVar[frozenset[str]] = frozenset({"shutdownTimeout"})

    version: str = ""
    """Accepted and ignored."""

    auth: ClientAuth = Field(default_factory=ClientAuth)
    """How this client proves who it is."""

    user: str = ""
    """Put in front of the names of proxies on the wire: `<user>.<name>`."""

    client_id: str = ""
    """Identity that lasts over restarts, unique per user."""

    server_addr: str = "0.0.0.0"
    """Host of the server; IPv6 without brackets. Default 0.0.0.0."""

    server_port: int = 7000
    """Port of the server. Default 7000."""

    nat_hole_stun_server: str = "stun.easyvoip.com:3478"
    """STUN server for peer-to-peer connections. Default stun.easyvoip.com:3478."""

    dns_server: str = ""
    """DNS server to ask for all names, `ip` or `ip:port`. Default: the system's resolver."""

    login_fail_exit: bool = True
    """End when the first login fails. Default true."""

    start: list[str] = Field(default_factory=list)
    """Names of the proxies and visitors to start. Default: all."""

    log: LogConfig = Field(default_factory=LogConfig)
    """Where the log goes."""

    web_server: WebServerConfig = Field(default_factory=WebServerConfig)
    """The admin API."""

    transport: ClientTransport = Field(default_factory=ClientTransport)
    """The link to the server."""

    virtual_net: VirtualNetConfig = Field(default_factory=VirtualNetConfig)
    """The virtual network."""

    feature_gates: dict[str, bool] = Field(default_factory=dict)
    """Features to turn on: VirtualNet."""

    udp_packet_size: int = 1500
    """Largest UDP packet in bytes; must equal the server's. Default 1500."""

    metadatas: dict[str, str] = secret_map()
    """Sent at login, for the server's plugins."""

    includes: list[str] = Field(default_factory=list)
    """Patterns of further files with proxies and visitors."""

    store: StoreConfig = Field(default_factory=StoreConfig)
    """Proxies and visitors that the admin API keeps."""

    proxies: list[ProxyBase] = Field(default_factory=list)
    """The services to offer."""

    visitors: list[VisitorBase] = Field(default_factory=list)
    """The services of others to reach."""

    shutdown_timeout: int = 30
    """Seconds that open exchanges may take to finish at SIGTERM; 0: none (pyfrp's own key).

    Default 30."""
