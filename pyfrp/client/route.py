"""What a client knows of the way to its server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyfrp.net.certs import client_context

if TYPE_CHECKING:
    from pyfrp.config import ClientConfig


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
    """

    host: str
    port: int
    local_ip: str
    dial_timeout_s: float
    keepalive_s: float
    tls: ssl.SSLContext | None
    tls_server_name: str
    tls_first_byte: bool
    tcp_mux: bool
    mux_keepalive_s: float
    protocol: str = "tcp"
    quic: QuicOptions = QuicOptions()


def make_route(cfg: ClientConfig) -> Route:
    """The way that a configuration names.

    Raises:
        ConfigError: for certificate files that cannot be used.
    """
    transport = cfg.transport
    tls = transport.tls
    context = None
    if tls.enable:
        context = client_context(
            tls.cert_file, tls.key_file, tls.trusted_ca_file, tls.server_name or cfg.server_addr
        )
    return Route(
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
        quic=QuicOptions(
            cert_file=tls.cert_file if tls.enable else "",
            key_file=tls.key_file if tls.enable else "",
            trusted_ca_file=tls.trusted_ca_file if tls.enable else "",
            keepalive_s=float(transport.quic.keepalive_period),
            idle_s=float(transport.quic.max_idle_timeout),
        ),
    )
