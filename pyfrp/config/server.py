"""Every key of the server's file (frps.toml).

Source of names and defaults: frp `pkg/config/v1/server.go`.
"""

from __future__ import annotations

from typing import ClassVar

from pyfrp.config.base import Field, Model, RootModel
from pyfrp.config.common import (
    AuthConfig,
    LogConfig,
    QUICOptions,
    TLSFiles,
    WebServerConfig,
)


class ServerOIDC(Model):
    """How the server checks the tokens of an OpenID Connect provider."""

    issuer: str = ""
    """URL of the provider."""

    audience: str = ""
    """Audience a token must carry; empty: not checked."""

    skip_expiry_check: bool = False
    """Take expired tokens. Default false."""

    skip_issuer_check: bool = False
    """Take tokens of any issuer. Default false."""


class ServerAuth(AuthConfig):
    """How clients prove who they are."""

    oidc: ServerOIDC = Field(default_factory=ServerOIDC)
    """For method `oidc`."""

    max_clock_skew: int = 900
    """Seconds that the time in a login may be off from our clock; 0: not checked (pyfrp's own key).

    Default 900."""


class ServerTLS(TLSFiles):
    """TLS of the control port."""

    force: bool = False
    """Take no client without TLS. Default false; true once `trustedCaFile` is set."""


class ServerTransport(Model):
    """The links to the clients."""

    tcp_mux: bool = True
    """Many streams over one connection; must equal the client's. Default true."""

    tcp_mux_keepalive_interval: int = 30
    """Seconds between the pings of the multiplexed link. Default 30."""

    tcp_keepalive: int = 7200
    """Seconds of TCP keep-alive on accepted connections; negative: off. Default 7200."""

    max_pool_count: int = 5
    """Upper bound of a client's `poolCount`. Default 5."""

    heartbeat_timeout: int = 0
    """Seconds without life after which a control connection is closed; negative: never.

    Default -1 with `tcpMux`, else 90."""

    quic: QUICOptions = Field(default_factory=QUICOptions)
    """Tuning of QUIC."""

    tls: ServerTLS = Field(default_factory=ServerTLS)
    """TLS of the control port."""


class SSHTunnelGateway(Model):
    """A port where plain ssh clients can open tunnels."""

    bind_port: int = 0
    """TCP port; 0, the default, turns it off."""

    private_key_file: str = ""
    """Host key; when empty, the next key counts."""

    auto_gen_private_key_path: str = "./.autogen_ssh_key"
    """Where a generated host key is kept. Default `./.autogen_ssh_key`."""

    authorized_keys_file: str = ""
    """Public keys that may log in; empty: anybody may."""


class PortRange(Model):
    """One port, or the ports from start to end."""

    start: int = 0
    """First port of the range."""

    end: int = 0
    """Last port of the range, included."""

    single: int = 0
    """One port; when greater than 0 it wins over the range."""

    @property
    def bounds(self) -> tuple[int, int]:
        """First and last port, both included; empty when first > last."""
        return (self.single, self.single) if self.single > 0 else (self.start, self.end)

    def __contains__(self, port: int) -> bool:
        """Tell whether a port lies in the range."""
        low, high = self.bounds
        return low <= port <= high


class HTTPPluginOptions(Model):
    """One program that is asked over HTTP about what clients do."""

    name: str = ""
    """Name for the log."""

    addr: str = ""
    """`host:port`, or with `http://` or `https://` before it."""

    path: str = ""
    """Path appended to `addr`."""

    ops: list[str] = Field(default_factory=list)
    """What it is asked about: Login NewProxy CloseProxy Ping NewWorkConn NewUserConn."""

    tls_verify: bool = False
    """Verify the certificate of an https plugin. Default false."""


class ServerConfig(RootModel):
    """The server's file."""

    zero_is_meant: ClassVar[frozenset[str]] = frozenset({"shutdownTimeout"})

    version: str = ""
    """Accepted and ignored."""

    auth: ServerAuth = Field(default_factory=ServerAuth)
    """How clients prove who they are."""

    bind_addr: str = "0.0.0.0"
    """Address for the connections of clients. Default 0.0.0.0."""

    bind_port: int = 7000
    """TCP port for the connections of clients. Default 7000."""

    kcp_bind_port: int = 0
    """UDP port for KCP; 0, the default, turns it off."""

    quic_bind_port: int = 0
    """UDP port for QUIC; 0, the default, turns it off."""

    proxy_bind_addr: str = ""
    """Address of the ports that proxies and virtual hosts listen on. Default: `bindAddr`."""

    vhost_http_port: int = 0
    """Port of the HTTP virtual hosts; may equal `bindPort`; 0, the default, turns it off."""

    vhost_http_timeout: int = 0
    """Seconds to wait for the header of an answer. Default 0: no limit (frp's default is 60).

    Below 0 there is none either, as in frp. A model may think for minutes before its first byte, so
    only a value that is set limits."""

    vhost_http_error_style: str = "gateway"
    """`gateway`: 502 and 503 tell what is wrong; `frp`: its 404 for all (pyfrp's own key).

    Default `gateway`."""

    vhost_https_port: int = 0
    """Port of the HTTPS virtual hosts (by SNI); 0, the default, turns it off."""

    tcpmux_http_connect_port: int = 0
    """Port that multiplexes by HTTP CONNECT; 0, the default, turns it off."""

    tcpmux_passthrough: bool = False
    """Hand the CONNECT request on instead of answering it. Default false."""

    sub_domain_host: str = ""
    """Domain that `subdomain` of a proxy is put in front of."""

    custom_404_page: str = ""
    """File that is sent as the body of a 404; read anew each time."""

    ssh_tunnel_gateway: SSHTunnelGateway = Field(default_factory=SSHTunnelGateway)
    """The gateway for ssh clients."""

    web_server: WebServerConfig = Field(default_factory=WebServerConfig)
    """The dashboard."""

    enable_prometheus: bool = False
    """Serve `/metrics` on the dashboard. Default false."""

    log: LogConfig = Field(default_factory=LogConfig)
    """Where the log goes."""

    transport: ServerTransport = Field(default_factory=ServerTransport)
    """The links to the clients."""

    detailed_errors_to_client: bool = True
    """Tell clients the cause of an error, not just a summary. Default true."""

    max_ports_per_client: int = 0
    """Ports that one client may take; 0, the default: no limit."""

    user_conn_timeout: int = 10
    """Seconds a user's connection waits for a work connection. Default 10."""

    udp_packet_size: int = 1500
    """Largest UDP packet in bytes; must equal the client's. Default 1500."""

    nathole_analysis_data_reserve_hours: int = 168
    """Hours that statistics of hole punching are kept. Default 168."""

    allow_ports: list[PortRange] = Field(default_factory=list)
    """Ports that proxies may take. Default: all."""

    http_plugins: list[HTTPPluginOptions] = Field(default_factory=list)
    """Programs that are asked about what clients do, in order."""

    shutdown_timeout: int = 30
    """Seconds that open exchanges may take to finish at SIGTERM; 0: none (pyfrp's own key).

    Default 30."""
