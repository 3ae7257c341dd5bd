"""Proxies of type tcpmux: hosts behind the CONNECT multiplexer, a bridge per user."""

from __future__ import annotations

from functools import partial

from pyfrp.errors import RefusedError
from pyfrp.server.groups import Door, Group
from pyfrp.server.proxies.bridged import BridgedProxy, admit
from pyfrp.server.proxies.http import vhost_address, vhost_domains
from pyfrp.vhost.router import Router
from pyfrp.vhost.tcpmux import TcpmuxRoute


class TCPMuxProxy(BridgedProxy):
    """Source: frp `server/proxy/tcpmux.go`; checks of `pkg/config/v1/validation/proxy.go`."""

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
        for domain in domains:
            terms = (domain, user, wanted.http_user, wanted.http_pwd)
            await self.stand(partial(self._open, server.tcpmux.router, domain), terms)
            self.log.info(
                f"tcpmux httpconnect multiplexer listens for host [{domain}], group "
                f"[{wanted.group}] routeByHTTPUser [{user}]"
            )
        return ",".join(vhost_address(domain, server.tcpmux_port) for domain in domains)

    async def _open(
        self, router: Router[TcpmuxRoute], domain: str, group: Group[BridgedProxy]
    ) -> Door:
        wanted = self.wanted
        route = TcpmuxRoute(partial(admit, group), wanted.http_user, wanted.http_pwd)
        router.add(domain, "", wanted.route_by_http_user, route)
        return Door(partial(router.remove, domain, "", wanted.route_by_http_user))
