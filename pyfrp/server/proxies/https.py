"""Proxies of type https: names of the https vhost, a bridge per user."""

from __future__ import annotations

from pyfrp.errors import RefusedError
from pyfrp.server.proxies.bridged import BridgedProxy
from pyfrp.server.proxies.http import vhost_address, vhost_domains


class HTTPSProxy(BridgedProxy):
    """Source: frp `server/proxy/https.go`."""

    _domains: tuple[str, ...] = ()

    async def start(self) -> str:
        server = self.server
        wanted = self.wanted
        if server.https is None:
            raise RefusedError("type [https] not supported when vhost https port is not set")
        domains = vhost_domains(wanted.custom_domains, wanted.subdomain, server.sub_domain_host)
        try:
            for domain in domains:
                server.https.router.add(domain, "", "", self.take_user)
                self._domains += (domain,)
                self.log.info(f"https proxy listen for host [{domain}] group []")
        except RefusedError:
            self.close()
            raise
        return ",".join(vhost_address(domain, server.https_port) for domain in domains)

    def close(self, *, lost: bool = False) -> None:
        if self.server.https is not None:
            for domain in self._domains:
                self.server.https.router.remove(domain, "", "")
            self._domains = ()
        if lost:
            self.drop_waiting()
