"""What a client knows of the way to its server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyfrp.config.outproxy import named_proxy, parse_proxy_url
from pyfrp.errors import ConfigError
from pyfrp.net.certs import LinkContext, client_context

if TYPE_CHECKING:
    from pyfrp.config import ClientConfig
    from pyfrp.net.outproxy import Proxy

# Seconds of silence before a ping of the mux. Some proxies cut what has been idle for 20 s, so the
# default is less through a proxy; what a file says otherwise counts.
DEFAULT_PING_S = 30
PROXIED_PING_S = 15.0


@dataclass(frozen=True, slots=True)
class QuicOptions:
    """What QUIC wants to know beyond other transports; its TLS is not OpenSSL's.

    The files are those of `Route.tls`, and empty where TLS is off: QUIC encrypts all the same.
    """

    cert_file: str = ""
    key_file: str = ""
    trusted_ca_file: str = ""
    keepalive_s: float = 10.0
    idle_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach the server. Times are in seconds; `tls` None means in the clear.

    Attributes:
        protocol: A key of `pyfrp.client.transports.TRANSPORTS`.
        pins: Fingerprints of which the server's certificate must have one; none: any will do.
        later_timeout_s: In place of `dial_timeout_s` once the login's own connection stands, for
            work connections that have one each; 0 for the same.
        on_certificate: Told the server's certificate, in DER, on each connection.
        proxy: What the connections to the server go through; None for none.
    """

    host: str
    port: int
    local_ip: str
    dial_timeout_s: float
    keepalive_s: float
    tls: LinkContext | None
    tls_server_name: str
    tls_first_byte: bool
    tcp_mux: bool
    mux_keepalive_s: float
    protocol: str = "tcp"
    pins: frozenset[str] = frozenset()
    on_certificate: Callable[[bytes], None] | None = None
    proxy: Proxy | None = None
    quic: QuicOptions = QuicOptions()
    later_timeout_s: float = 0.0


def make_route(cfg: ClientConfig, on_certificate: Callable[[bytes], None] | None = None) -> Route:
    """The way that a configuration names; with the protocol `auto`, what all ways share.

    Raises:
        ConfigError: for certificate files that cannot be used, or a proxy's URL.
    """
    transport = cfg.transport
    tls = transport.tls
    context = None
    if tls.enable:
        context = client_context(
            tls.cert_file, tls.key_file, tls.trusted_ca_file, tls.server_name or cfg.server_addr
        )
    route = Route(
        host=cfg.server_addr,
        port=cfg.server_port,
        local_ip=transport.connect_server_local_ip,
        dial_timeout_s=float(transport.dial_server_timeout),
        keepalive_s=float(transport.dial_server_keepalive),
        tls=context,
        tls_server_name=tls.server_name or cfg.server_addr,
        tls_first_byte=not tls.disable_custom_tls_first_byte,
        tcp_mux=transport.tcp_mux,
        mux_keepalive_s=float(transport.tcp_mux_keepalive_interval),
        protocol=transport.protocol,
        pins=_pins(tls.pinned_sha256),
        on_certificate=on_certificate,
        quic=QuicOptions(
            cert_file=tls.cert_file if tls.enable else "",
            key_file=tls.key_file if tls.enable else "",
            trusted_ca_file=tls.trusted_ca_file if tls.enable else "",
            keepalive_s=float(transport.quic.keepalive_period),
            idle_s=float(transport.quic.max_idle_timeout),
        ),
    )
    proxy = _proxy(cfg)
    return route if proxy is None else through(route, proxy)


def through(route: Route, proxy: Proxy) -> Route:
    """The same way, but through a proxy."""
    ping_s = route.mux_keepalive_s
    if ping_s == DEFAULT_PING_S:
        ping_s = PROXIED_PING_S
    return replace(route, proxy=proxy, mux_keepalive_s=ping_s)


def _proxy(cfg: ClientConfig) -> Proxy | None:
    found = named_proxy(cfg.transport.proxy_url, cfg.transport.protocol, os.environ)
    return None if found is None else make_proxy(*found)


def make_proxy(named_by: str, url: str) -> Proxy:
    """The proxy of a URL.

    Args:
        named_by: Where it stands, for messages.

    Raises:
        ConfigError: for a URL that cannot be used.
    """
    from pyfrp.net.outproxy import Proxy  # most clients need none

    try:
        return Proxy(*parse_proxy_url(url), named_by=named_by)
    except ValueError as exc:
        raise ConfigError(f"{named_by}: {exc}", key="transport.proxyURL") from None


def _pins(texts: list[str]) -> frozenset[str]:
    if not texts:
        return frozenset()
    from pyfrp.config.outward import parse_fingerprint  # few files have any

    return frozenset(parse_fingerprint(text) for text in texts)
