"""The proxies on the way to identity providers."""

from __future__ import annotations

import os

from pyfrp.config.outproxy import parse_proxy_url, proxy_from_environment
from pyfrp.net.fetch import FetchError, FindProxy, Place
from pyfrp.net.outproxy import Proxy


def always(named_by: str, url: str) -> FindProxy:
    """The proxy of a URL, for every place.

    Args:
        named_by: The key that it is the value of.

    Raises:
        ValueError: with what is wrong with the URL, without anything secret.
    """
    proxy = Proxy(*parse_proxy_url(url), named_by=named_by)
    return lambda place: proxy


class EnvironmentProxies:
    """Finds the proxy that the environment names for a place, as Go's `net/http` does.

    Each is made once: proxies remember how they want to be asked.

    Source: Go `golang.org/x/net/http/httpproxy`.
    """

    def __init__(self) -> None:
        self._made: dict[str, Proxy] = {}

    def __call__(self, place: Place) -> Proxy | None:
        """See `FindProxy`."""
        secure = place.scheme == "https"
        named = proxy_from_environment(
            os.environ, place.host, place.port, secure=secure, as_go=True
        )
        if named is None:
            return None
        proxy = self._made.get(named.url)
        if proxy is None:
            named_by = f"{named.variable} in the environment"
            try:
                proxy = Proxy(*parse_proxy_url(named.url), named_by=named_by)
            except ValueError as exc:
                raise FetchError(f"{named_by}: {exc}") from exc
            self._made[named.url] = proxy
        return proxy
