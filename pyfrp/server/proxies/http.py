"""Proxies of type http: routes of the http vhost."""

from __future__ import annotations

from functools import partial
from itertools import product

from pyfrp.errors import RefusedError
from pyfrp.server.groups import Door, Group
from pyfrp.server.proxies.base import ServerProxy
from pyfrp.vhost.frontend import HttpRoute
from pyfrp.vhost.router import Router
from pyfrp.vhost.upstream import UpstreamPool
from pyfrp.wire.http1 import HeadEdit


class HTTPProxy(ServerProxy):
    """Source: frp `server/proxy/http.go`; checks of `pkg/config/v1/validation/proxy.go`."""

    _pool_of_upstreams: UpstreamPool | None = None

    async def start(self) -> str:
        server = self.server
        wanted = self.wanted
        if server.http is None:
            raise RefusedError("type [http] not supported when vhost http port is not set")
        domains = vhost_domains(wanted.custom_domains, wanted.subdomain, server.sub_domain_host)
        try:
            request_edit = _edit(wanted.host_header_rewrite, wanted.headers)
            response_edit = _edit("", wanted.response_headers)
        except ValueError as exc:
            raise RefusedError(f"invalid header in proxy: {exc}") from exc
        for edit in (request_edit, response_edit):
            if edit is not None and edit.ignored:
                names = ", ".join(edit.ignored)
                self.log.warning(f"set headers that frame messages have no effect: {names}")
        unread = None if self._limiter is None else self._limiter.unread
        pool = UpstreamPool(self.open_work, server.clock, unread=unread)
        route = HttpRoute(
            self.name,
            pool,
            request_edit=request_edit,
            response_edit=response_edit,
            user=wanted.http_user,
            password=wanted.http_pwd,
        )
        addresses = []
        for domain, location in product(domains, wanted.locations or [""]):
            key = (domain, location, wanted.route_by_http_user)
            entrance = await self.enter(route, partial(_open, server.http.router, key, route), key)
            if wanted.group:
                route.group = entrance.group
            addresses.append(vhost_address(domain, server.http_port))
            self.log.info(
                f"http proxy listen for host [{domain}] location [{location}] group "
                f"[{wanted.group}], routeByHTTPUser [{wanted.route_by_http_user}]"
            )
        server.http.add_pool(pool)
        self._pool_of_upstreams = pool
        return ",".join(addresses)

    def close(self, *, lost: bool = False) -> None:
        self.leave()  # First: requests that fail now go to the other members of the group.
        pool, self._pool_of_upstreams = self._pool_of_upstreams, None
        if pool is None or self.server.http is None:
            return
        self.server.http.remove_pool(pool)
        if lost:
            pool.fail()


async def _open(
    router: Router[HttpRoute], key: tuple[str, str, str], route: HttpRoute, _: Group[HttpRoute]
) -> Door:
    # Of the route of a group the vhost uses only `HttpRoute.group`, so that it may stay when the
    # member that it belongs to has left.
    router.add(*key, route)
    return Door(partial(router.remove, *key))


def _edit(host: str, headers: dict[str, str]) -> HeadEdit | None:
    if not host and not headers:
        return None
    return HeadEdit(host.encode() if host else None, headers)


def vhost_address(domain: str, port: int) -> str:
    """What a client is told of where a vhost proxy can be reached; the usual ports are left out."""
    return domain if port in (80, 443) else f"{domain}:{port}"


def vhost_domains(custom: list[str], subdomain: str, sub_domain_host: str) -> list[str]:
    """The domains of a vhost proxy.

    Raises:
        RefusedError: with frp's text (`pkg/config/v1/validation/proxy.go`, `validateDomainConfig`).
    """
    host = sub_domain_host.lower()
    domains = []
    for domain in custom:
        if host and domain.lower().endswith("." + host):
            raise RefusedError(
                f"custom domain [{domain}] should not belong to subdomain host [{sub_domain_host}]"
            )
        if domain:
            domains.append(domain.lower())
    if subdomain:
        if not host:
            raise RefusedError(
                "subdomain is not supported because this feature is not enabled in server"
            )
        if "." in subdomain or "*" in subdomain:
            raise RefusedError("'.' and '*' are not supported in subdomain")
        domains.append(f"{subdomain.lower()}.{host}")
    return list(dict.fromkeys(domains))
