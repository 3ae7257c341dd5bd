"""Every key of the `plugin` table of a proxy.

Source of names and defaults: frp `pkg/config/v1/proxy_plugin.go`.
"""

from __future__ import annotations

from pyfrp.config.base import Field, Variants, secret
from pyfrp.config.common import HeaderOperations
from pyfrp.config.proxies import ClientPluginOptions


class HTTPProxyPlugin(ClientPluginOptions):
    """A forward proxy for HTTP."""

    type: str = "http_proxy"
    http_user: str = ""
    """User that callers must pass; empty: none."""

    http_password: str = secret()
    """Its password."""


class Socks5Plugin(ClientPluginOptions):
    """A SOCKS5 proxy."""

    type: str = "socks5"
    username: str = ""
    """User that callers must pass; empty: none."""

    password: str = secret()
    """Its password."""


class StaticFilePlugin(ClientPluginOptions):
    """Serves the files of a directory."""

    type: str = "static_file"
    local_path: str = ""
    """The directory; required."""

    strip_prefix: str = ""
    """Prefix of the URL that is not part of the path."""

    http_user: str = ""
    """User that callers must pass; empty: none."""

    http_password: str = secret()
    """Its password."""


class UnixDomainSocketPlugin(ClientPluginOptions):
    """Connects to a unix socket."""

    type: str = "unix_domain_socket"
    unix_path: str = ""
    """Path of the socket; required."""


class HTTP2HTTPPlugin(ClientPluginOptions):
    """Takes HTTP and speaks HTTP with a local address."""

    type: str = "http2http"
    local_addr: str = ""
    """`host:port` of the service."""

    host_header_rewrite: str = ""
    """New `Host`."""

    request_headers: HeaderOperations = Field(default_factory=HeaderOperations)
    """Changes to the request."""


class HTTP2HTTPSPlugin(ClientPluginOptions):
    """Takes HTTP and speaks HTTPS with a local address."""

    type: str = "http2https"
    local_addr: str = ""
    """`host:port` of the service; required."""

    host_header_rewrite: str = ""
    """New `Host`."""

    request_headers: HeaderOperations = Field(default_factory=HeaderOperations)
    """Changes to the request."""


class HTTPSPlugin(ClientPluginOptions):
    """The keys of the plugins that end the caller's TLS and look at the HTTP within."""

    local_addr: str = ""
    """`host:port` of the service; required."""

    host_header_rewrite: str = ""
    """New `Host`."""

    request_headers: HeaderOperations = Field(default_factory=HeaderOperations)
    """Changes to the request."""

    enable_http2: bool = True
    """Offer HTTP/2 to callers. Default true."""

    crt_path: str = ""
    """PEM file of the certificate; empty: a generated one."""

    key_path: str = ""
    """PEM file of its key; empty: a generated one."""


class HTTPS2HTTPPlugin(HTTPSPlugin):
    """Takes HTTPS and speaks HTTP with a local address."""

    type: str = "https2http"


class HTTPS2HTTPSPlugin(HTTPSPlugin):
    """Takes HTTPS and speaks HTTPS with a local address."""

    type: str = "https2https"


class TLS2RawPlugin(ClientPluginOptions):
    """Ends the caller's TLS and hands on the bytes within."""

    type: str = "tls2raw"
    local_addr: str = ""
    """`host:port` of the service; required."""

    crt_path: str = ""
    """PEM file of the certificate; empty: a generated one."""

    key_path: str = ""
    """PEM file of its key; empty: a generated one."""


class VirtualNetPlugin(ClientPluginOptions):
    """Connects to the virtual network."""

    type: str = "virtual_net"


CLIENT_PLUGINS: Variants = {
    "http_proxy": HTTPProxyPlugin,
    "socks5": Socks5Plugin,
    "static_file": StaticFilePlugin,
    "unix_domain_socket": UnixDomainSocketPlugin,
    "http2http": HTTP2HTTPPlugin,
    "http2https": HTTP2HTTPSPlugin,
    "https2http": HTTPS2HTTPPlugin,
    "https2https": HTTPS2HTTPSPlugin,
    "tls2raw": TLS2RawPlugin,
    "virtual_net": VirtualNetPlugin,
}
