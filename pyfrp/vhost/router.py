"""Which proxy answers a request: host, then path, then HTTP user.

The order of the search is frp's (`pkg/util/vhost/router.go`, `vhost.go`): the exact host, then
wildcards from the longest, then `*`; within a domain the routes of the request's HTTP user before
those for everybody; within these the longest location that is a string prefix of the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from pyfrp.errors import RefusedError

T = TypeVar("T")

# Routes remembered after they went, to answer 503 instead of 404.
MAX_KNOWN = 10_000


class Router(Generic[T]):
    """Routes of one kind of vhost.

    Domains are compared in lower case, IPv6 addresses without the brackets that they have in a
    URL. A route is (domain, location, user).
    """

    def __init__(self) -> None:
        # domain -> user -> routes in descending order of location, which puts the longest match
        # first.
        self._domains: dict[str, dict[str, list[tuple[str, T]]]] = {}
        # Every route there was: domain -> (location, user), and all of them, oldest first.
        self._known: dict[str, dict[tuple[str, str], None]] = {}
        self._ever: dict[tuple[str, str, str], None] = {}

    def add(self, domain: str, location: str, user: str, target: T) -> None:
        """Add a route.

        Raises:
            RefusedError: with frp's text, when the same route exists.
        """
        domain = _key(domain)
        routes = self._domains.setdefault(domain, {}).setdefault(user, [])
        if any(known == location for known, _ in routes):
            raise RefusedError("router config conflict")
        routes.append((location, target))
        routes.sort(key=lambda route: route[0], reverse=True)
        self._remember(domain, location, user)

    def _remember(self, domain: str, location: str, user: str) -> None:
        self._known.setdefault(domain, {})[location, user] = None
        self._ever[domain, location, user] = None
        if len(self._ever) > MAX_KNOWN:
            oldest = next(iter(self._ever))
            del self._ever[oldest]
            places = self._known[oldest[0]]
            del places[oldest[1:]]
            if not places:
                del self._known[oldest[0]]

    def remove(self, domain: str, location: str, user: str) -> None:
        """Remove a route that `add` accepted."""
        domain = _key(domain)
        users = self._domains[domain]
        users[user] = [route for route in users[user] if route[0] != location]
        if not users[user]:
            del users[user]
        if not users:
            del self._domains[domain]

    def find(self, host: str, path: str, user: str) -> T | None:
        """The target for a request, or None.

        Args:
            host: Lower case, without port and trailing dot.
            path: Percent-decoded, without query.
            user: From the request's credentials, or "".
        """
        # The exact host comes first and is what nearly all requests have.
        found = self._find_in(host, path, user)
        if found is not None:
            return found
        for domain in wildcards(host):
            found = self._find_in(domain, path, user)
            if found is not None:
                return found
        return None

    def _find_in(self, domain: str, path: str, user: str) -> T | None:
        users = self._domains.get(domain)
        if users is not None:
            for name in (user, "") if user else ("",):
                for location, target in users.get(name, ()):
                    if path.startswith(location):
                        return target
        return None

    def knows(self, host: str) -> bool:
        """Whether `host` has, or since the start once had, a route."""
        return host in self._known or any(domain in self._known for domain in wildcards(host))

    def misses(self, host: str, path: str, user: str) -> bool:
        """Whether a route that has gone would take a request for which `find` has none."""
        return any(
            path.startswith(location) and known_user in (user, "")
            for domain in (host, *wildcards(host))
            for location, known_user in self._known.get(domain, ())
        )


def _key(domain: str) -> str:
    return domain.lower().strip("[]")


def wildcards(host: str) -> Iterator[str]:
    """The wildcard domains that may route `host`, best first; never as wide as `*.com`."""
    labels = host.split(".")
    while len(labels) >= 3:
        labels[0] = "*"
        yield ".".join(labels)
        del labels[0]
    yield "*"
