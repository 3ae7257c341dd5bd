"""The proxy types of a client that bridge to a local TCP service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfrp.client.proxies.base import ClientProxy
from pyfrp.client.proxies.httpbridge import HttpBridge
from pyfrp.wire.messages import NewProxy

if TYPE_CHECKING:
    from pyfrp.config.proxies import (
        HTTPProxyConfig,
        HTTPSProxyConfig,
        TCPMuxProxyConfig,
        TCPProxyConfig,
    )


class TCPProxy(ClientProxy):
    """Type tcp."""

    cfg: TCPProxyConfig

    def request(self) -> NewProxy:
        msg = super().request()
        msg.remote_port = self.cfg.remote_port
        return msg


class HTTPProxy(ClientProxy):
    """Type http."""

    cfg: HTTPProxyConfig
    bridge_type = HttpBridge

    def request(self) -> NewProxy:
        msg = super().request()
        cfg = self.cfg
        msg.custom_domains = list(cfg.custom_domains)
        msg.subdomain = cfg.subdomain
        msg.locations = list(cfg.locations)
        msg.http_user = cfg.http_user
        msg.http_pwd = cfg.http_password
        msg.host_header_rewrite = cfg.host_header_rewrite
        msg.headers = dict(cfg.request_headers.set)
        msg.response_headers = dict(cfg.response_headers.set)
        msg.route_by_http_user = cfg.route_by_http_user
        return msg


class HTTPSProxy(ClientProxy):
    """Type https: TLS passes through, and the local service has the certificate."""

    cfg: HTTPSProxyConfig

    def request(self) -> NewProxy:
        msg = super().request()
        msg.custom_domains = list(self.cfg.custom_domains)
        msg.subdomain = self.cfg.subdomain
        return msg


class TCPMuxProxy(ClientProxy):
    """Type tcpmux."""

    cfg: TCPMuxProxyConfig

    def request(self) -> NewProxy:
        msg = super().request()
        cfg = self.cfg
        msg.custom_domains = list(cfg.custom_domains)
        msg.subdomain = cfg.subdomain
        msg.multiplexer = cfg.multiplexer
        msg.http_user = cfg.http_user
        msg.http_pwd = cfg.http_password
        msg.route_by_http_user = cfg.route_by_http_user
        return msg
