"""The ports of a server, taken before the rest of it is loaded.

A client or caller that comes while a server starts then waits a moment in the kernel's queue,
instead of being refused and coming back seconds later.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeAlias

from pyfrp.errors import ConfigError
from pyfrp.net.sockets import bind, bind_error, is_numeric

if TYPE_CHECKING:
    from pyfrp.config import ServerConfig

Bound: TypeAlias = dict[tuple[str, int], socket.socket]
"""Listening sockets by the address that the configuration gives."""


def shares_port(cfg: ServerConfig, port: int) -> bool:
    """Whether those who come to `port` of a vhost come to the clients' port."""
    return port == cfg.bind_port and cfg.bind_addr == cfg.proxy_bind_addr


def own_ports(cfg: ServerConfig) -> list[int]:
    """The ports of vhosts that are not the clients' port as well."""
    ports = [cfg.vhost_http_port, cfg.vhost_https_port]
    own = [port for port in ports if port and not shares_port(cfg, port)]
    if cfg.tcpmux_http_connect_port:
        own.append(cfg.tcpmux_http_connect_port)
    return own


def bind_early(cfg: ServerConfig) -> Bound:
    """Bind the fixed ports of a configuration, if only they can still fail.

    Certificates, a log file, a name to look up or what QUIC needs may be found wanting later, and
    nothing shall be bound by then; with these, nothing is bound here.

    Raises:
        ConfigError: a port cannot be had; nothing stays bound.
    """
    tls = cfg.transport.tls
    files = tls.cert_file or tls.key_file or tls.trusted_ca_file
    if files or cfg.quic_bind_port or cfg.log.to not in ("", "console"):
        return {}
    wanted = [(cfg.bind_addr, cfg.bind_port, True)]
    wanted += [(cfg.proxy_bind_addr, port, False) for port in own_ports(cfg)]
    if not all(is_numeric(host) for host, _, _ in wanted):
        return {}
    bound: Bound = {}
    keepalive_s = float(cfg.transport.tcp_keepalive)
    for host, port, links in wanted:
        try:
            bound[host, port] = bind(host, port, keepalive_s=keepalive_s, links=links)
        except OSError as exc:
            for sock in bound.values():
                sock.close()
            text = bind_error(host, port, exc)
            raise ConfigError(f"create server listener error, {text}") from exc
    return bound
