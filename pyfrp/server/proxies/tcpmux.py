"""Proxies of type tcpmux: hosts behind the CONNECT multiplexer, a bridge per user."""

from __future__ import annotations

from pyfrp.errors import RefusedError
from pyfrp.server.proxies.bridged import BridgedProxy
from pyfrp.server.proxies.http import vhost_address, vhost_domains
from pyfrp.vhost.tcpmux import TcpmuxRoute


class TCPMuxProxy(BridgedProxy):
    """Source: frp `server/proxy/tcpmux.go`; checks of `pkg/config/v1/validation/proxy.go`."""

    _domains: tuple[str, ...] = ()

    async def start(self) -> str:
        server = self.server
        wanted = self.wanted
        known = wanted.multiplexer == "httpconnect"
        if known and server.tcpmux is None:
            raise RefusedError(
                "tcpmux with multiplexer httpconnect not supported because this feature is not "
                "enabled in server"
            )
        domains = vhost_domains(wanted.custom_domains, wanted.subdomain, server.sub_domain_host)
        if not known or server.tcpmux is None:
            raise RefusedError(f"unknown multiplexer [{wanted.multiplexer[:100]}]")
        user = wanted.route_by_http_user
        route = TcpmuxRoute(self.take_user, wanted.http_user, wanted.http_pwd)
        try:
            for domain in domains:
                server.tcpmux.router.add(domain, "", user, route)
                self._domains += (domain,)
                self.log.info(
                    f"tcpmux httpconnect multiplexer listens for host [{domain}], group [] "
                    f"routeByHTTPUser [{user}]"
                )
        except RefusedError:
            self.close()
            raise
        return ",".join(vhost_address(domain, server.tcpmux_port) for domain in domains)

    def close(self, *, lost: bool = False) -> None:
        if self.server.tcpmux is not None:
            for domain in self._domains:
                self.server.tcpmux.router.remove(domain, "", self.wanted.route_by_http_user)
            self._domains = ()
        if lost:
            self.drop_waiting()
