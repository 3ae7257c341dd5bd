"""Proxies of type https: names of the https vhost, a bridge per user."""

from __future__ import annotations

from functools import partial

from pyfrp.errors import RefusedError
from pyfrp.server.groups import Door, Group
from pyfrp.server.proxies.bridged import BridgedProxy, admit
from pyfrp.server.proxies.http import vhost_address, vhost_domains
from pyfrp.vhost.muxer import UserSink
from pyfrp.vhost.router import Router


class HTTPSProxy(BridgedProxy):
    """Source: frp `server/proxy/https.go`; 0.65 knows no groups of this type, 0.66 does."""

    async def start(self) -> str:
        server = self.server
        wanted = self.wanted
        if server.https is None:
            raise RefusedError("type [https] not supported when vhost https port is not set")
        domains = vhost_domains(wanted.custom_domains, wanted.subdomain, server.sub_domain_host)
        for domain in domains:
            await self.stand(partial(_open, server.https.router, domain), domain)
            self.log.info(f"https proxy listen for host [{domain}] group [{wanted.group}]")
        return ",".join(vhost_address(domain, server.https_port) for domain in domains)


async def _open(router: Router[UserSink], domain: str, group: Group[BridgedProxy]) -> Door:
    router.add(domain, "", "", partial(admit, group))
    return Door(partial(router.remove, domain, "", ""))
