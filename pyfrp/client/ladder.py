"""The protocol `auto`: ways to the server, tried until the login is answered by one (ours).

One after the other, not at once: two logins with one run id would take the place of each other at
the server. What makes that quick enough is that every step has a short limit, that ways which begin
with the same connection fail together, and that what worked is tried first the next time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from errno import ECONNREFUSED
from typing import TYPE_CHECKING, Any, TypeVar

from pyfrp.client.route import Route, make_proxy, through
from pyfrp.client.transports import TRANSPORTS
from pyfrp.config.outproxy import proxy_from_environment
from pyfrp.config.outward import PROXIED, Rung, parse_rung
from pyfrp.errors import (
    AuthError,
    CertificateError,
    ConfigError,
    DialError,
    HandshakeError,
    LinkError,
    LoginRefused,
    LookupFailed,
    ProxyError,
    PyfrpError,
)

if TYPE_CHECKING:
    from pyfrp.config import ClientConfig
    from pyfrp.net.outproxy import Proxy

P = TypeVar("P")
T = TypeVar("T")

LOOK_S = 2.0  # For each step of another way, once one has worked: they are looked at in passing.
BETTER_AFTER_S = 3600.0  # After so long on a lower rung the higher ones are tried first again.
# Some proxies let everything through and cut it soon after. A way on which so many sessions in a
# row were so short is tried last the next time.
SHORT_S = 60.0
SHORT_SESSIONS = 3

_UNNAMED = (
    "no proxy is named for this server, neither by transport.proxyURL nor by HTTPS_PROXY, "
    "HTTP_PROXY or ALL_PROXY (or NO_PROXY excepts it)"
)


class NoWay(LinkError):
    """None of the ways leads to the server.

    Args:
        reason: What happened on each, and what to do.
        status: 407 if a proxy refused our credentials on one of them, else 0.
    """

    def __init__(self, reason: str, status: int = 0) -> None:
        self.status = status
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Way:
    """A rung, and how to go by it.

    Attributes:
        route: None where there is no way, for the reason in `missing`.
    """

    rung: Rung
    route: Route | None
    missing: str = ""

    def __str__(self) -> str:
        return _named([self])

    @property
    def through(self) -> str:
        """Behind its name; "" for a direct way."""
        proxy = None if self.route is None else self.route.proxy
        return "" if proxy is None else f" through {proxy.scheme}://{proxy.place}"

    @property
    def beginning(self) -> tuple[object, ...]:
        """Equal for ways that begin with the same connection."""
        assert self.route is not None
        udp = "" if self.rung.protocol in PROXIED else self.rung.protocol
        return udp, self.route.port, self.route.proxy


@dataclass(slots=True)
class _Failure:
    """Why some ways do not lead there."""

    ways: list[Way]
    cause: PyfrpError

    def __str__(self) -> str:
        return f"{_named(self.ways)}: {self.cause}"


class Ladder:
    """Finds a way that works, and remembers it while the process lives.

    Args:
        base: What all ways share.
        environ: Names the proxy where the configuration does not.

    Raises:
        ConfigError: for a proxy's URL in the configuration that cannot be used.
    """

    def __init__(
        self, cfg: ClientConfig, base: Route, log: Any, environ: Mapping[str, str] = os.environ
    ) -> None:
        auto = cfg.transport.auto
        self.log = log
        self._base = base
        self._rung_s = float(auto.rung_timeout)
        self._most_s = max(self._rung_s, base.dial_timeout_s)
        self._ways = _ways(cfg, base, environ)
        self._worked: Way | None = None
        self._looked = 0.0  # When all ways were last tried from the top.
        self._vain = 0  # Rounds without a way, since one was found.
        self._short = 0  # Short sessions in a row on the way that worked.

    async def climb(
        self,
        prove: Callable[[], Awaitable[P]],
        attempt: Callable[[Route, float, P], Awaitable[T]],
    ) -> T:
        """Try the ways until a login is answered; says in the log which one it was and why.

        Args:
            prove: Gets what to log in with, anew for each way and not on its time: whoever gives
                it out may be slow, and no way is to blame for that.
            attempt: Logs in by a route, with so many seconds for the answer. A refusal is an
                answer: nothing else is tried then.

        Raises:
            NoWay: with what happened on each, and what to do.
            AuthError: from `prove` and `attempt`; LoginRefused is one.
        """
        failures: list[_Failure] = []
        beginnings: dict[tuple[object, ...], _Failure] = {}
        for way, patience_s in self._plan():
            if way.route is None:
                continue
            known = beginnings.get(way.beginning)
            if known is not None:
                known.ways.append(way)
                continue
            try:
                proof = await prove()
                result = await self._go(way.route, attempt, patience_s, proof)
            except LoginRefused:
                self._found(way, failures)
                raise
            except AuthError:
                raise  # There is nothing to log in with, by whichever way.
            except PyfrpError as exc:
                failure = _note(failures, way, exc)
                if isinstance(exc, DialError):
                    beginnings[way.beginning] = failure
            else:
                self._found(way, failures)
                return result
        self._vain += 1
        statuses = {getattr(failure.cause, "status", 0) for failure in failures}
        raise NoWay(self._dead_end(failures), 407 if 407 in statuses else 0)

    @property
    def climb_s(self) -> float:
        """The most seconds that the next climb takes, while no way has worked.

        Whoever starts us anew before its end has us begin at the first way again. 0 once a climb
        with all patience was in vain: then it is not for lack of time.
        """
        if self._vain and self._patience(self._vain - 1) == self._most_s:
            return 0.0
        return 2 * self._patience(self._vain) * sum(way.route is not None for way in self._ways)

    def ended(self, lasted_s: float) -> None:
        """A session on the way that worked is over."""
        self._short = self._short + 1 if lasted_s < SHORT_S else 0

    def _plan(self) -> Iterable[tuple[Way, float]]:
        """The ways in the order to try them, each with the seconds for a step of it."""
        full_s = self._patience(self._vain)
        worked = self._worked
        if worked is None:
            return [(way, full_s) for way in self._ways]
        if self._short >= SHORT_SESSIONS:
            self._short = 0
            at = self._ways.index(worked) + 1
            return [(way, full_s) for way in (*self._ways[at:], *self._ways[:at])]
        look_s = min(LOOK_S * _growth(self._vain), full_s)
        now = asyncio.get_running_loop().time()
        if worked is not self._ways[0] and now - self._looked > BETTER_AFTER_S:
            self._looked = now
            return [(way, full_s if way is worked else look_s) for way in self._ways]
        others = [way for way in self._ways if way is not worked]
        return [(worked, full_s), *((way, look_s) for way in others)]

    def _patience(self, vain: int) -> float:
        """Seconds for a step of a way, after so many rounds in vain."""
        return min(self._rung_s * _growth(vain), self._most_s)

    async def _go(
        self,
        route: Route,
        attempt: Callable[[Route, float, P], Awaitable[T]],
        patience_s: float,
        proof: P,
    ) -> T:
        route = replace(route, dial_timeout_s=patience_s, later_timeout_s=route.dial_timeout_s)
        whole_s = 2 * patience_s  # Each step is quick where the way is good at all.
        try:
            async with asyncio.timeout(whole_s):
                return await attempt(route, patience_s, proof)
        except TimeoutError:
            raise HandshakeError(
                f"the login was not done within {whole_s:g} s", unanswered=True
            ) from None

    def _found(self, way: Way, failures: list[_Failure]) -> None:
        if self._worked is not way:
            self._looked = asyncio.get_running_loop().time()
            self._short = 0
        self._worked = way
        self._vain = 0
        before = f"; failed before: {_listed(failures)}" if failures else ""
        self.log.info(f"connected by {way}{before}")

    def _dead_end(self, failures: list[_Failure]) -> str:
        """What to tell when nothing worked."""
        missing: dict[str, list[Way]] = {}
        for way in self._ways:
            if way.route is None:
                missing.setdefault(way.missing, []).append(way)
        texts = [*failures, *(f"{_named(ways)}: {reason}" for reason, ways in missing.items())]
        host, port = self._base.host, self._base.port
        step = next_step(host, port, [failure.cause for failure in failures])
        return f"no way to {host}:{port} was found: {_listed(texts)}; next step: {step}"


def _growth(vain: int) -> float:
    return 2.0 ** min(vain, 10)


def _named(ways: Iterable[Way]) -> str:
    """Ways in a row: `tcp, wss, websocket, tcp through http://proxy:3128`."""
    runs: list[tuple[str, list[str]]] = []
    for way in ways:
        rung = way.rung if way.route is None else way.rung._replace(proxied=False)
        if runs and runs[-1][0] == way.through:
            runs[-1][1].append(str(rung))
        else:
            runs.append((way.through, [str(rung)]))
    return ", ".join(", ".join(rungs) + through for through, rungs in runs)


def _listed(items: Sequence[object]) -> str:
    """Sentences that may hold semicolons themselves, as one."""
    if len(items) == 1:
        return str(items[0])
    return "; ".join(f"({number}) {item}" for number, item in enumerate(items, 1))


def _note(failures: list[_Failure], way: Way, exc: PyfrpError) -> _Failure:
    """Put a failure with the others, and ways that failed alike together."""
    for failure in failures:
        if str(failure.cause) == str(exc):
            failure.ways.append(way)
            return failure
    failures.append(_Failure([way], exc))
    return failures[-1]


def next_step(host: str, port: int, causes: list[PyfrpError]) -> str:
    """What an operator should do first, where no way leads to the server.

    Args:
        causes: Why the ways failed that there are.
    """
    beyond = [exc for exc in causes if not isinstance(exc, DialError)]
    dials = [exc for exc in causes if isinstance(exc, DialError)]
    if any(isinstance(exc, CertificateError) for exc in beyond):
        return (
            "connections stand, but do not show the server's certificate: do what is said there "
            "of the certificate"
        )
    if beyond:
        return (
            f"connections to {host}:{port} stand and what is said on them does not get through: "
            "check that this is the server's port; if it is, ask for an exception from inspection "
            'for it, or let the server listen on port 443 and put "wss:443" into '
            "transport.auto.ladder"
        )
    if any(isinstance(exc, ProxyError) for exc in dials):
        return "the proxy is the way out of this network: do what is said there of it"
    if any(isinstance(exc, LookupFailed) for exc in dials):
        return (
            f"the name {host} is not found: check serverAddr, and dnsServer or the system's "
            "resolver; behind a proxy, which looks it up itself, name the proxy"
        )
    if dials and all(exc.errno == ECONNREFUSED for exc in dials):
        return f"{host} is there and refuses: does the server run, and is its bindPort {port}?"
    return (
        f"this network lets nothing out to {host}:{port}: if it has a proxy, name it in "
        "transport.proxyURL or HTTPS_PROXY; if not, let the server listen on port 443 and put "
        '"wss:443" into transport.auto.ladder'
    )


def _ways(cfg: ClientConfig, base: Route, environ: Mapping[str, str]) -> list[Way]:
    proxies = _Proxies(cfg.transport.proxy_url, environ, base.host)
    ways = []
    for rung in map(parse_rung, cfg.transport.auto.ladder):
        port = rung.port or base.port
        if rung.protocol not in TRANSPORTS:
            ways.append(Way(rung, None, f"{rung.protocol} is not in this release of pyfrp"))
            continue
        route = replace(base, protocol=rung.protocol, port=port)
        if rung.proxied:
            proxy, missing = proxies.find(port, secure=rung.protocol != "websocket")
            if proxy is None:
                ways.append(Way(rung, None, missing))
                continue
            route = through(route, proxy)
        ways.append(Way(rung, route))
    return ways


class _Proxies:
    """The proxies that are named, each made once: they remember how they want to be asked."""

    def __init__(self, url: str, environ: Mapping[str, str], host: str) -> None:
        self._url = url
        self._environ = environ
        self._host = host
        self._made: dict[str, Proxy] = {}

    def find(self, port: int, *, secure: bool) -> tuple[Proxy | None, str]:
        """The proxy for a port of the server, or why there is none."""
        if self._url:
            return self._make("transport.proxyURL", self._url), ""
        named = proxy_from_environment(self._environ, self._host, port, secure=secure)
        if named is None:
            return None, _UNNAMED
        try:
            return self._make(f"{named.variable} in the environment", named.url), ""
        except ConfigError as exc:  # A variable for other programs keeps nobody from starting.
            return None, str(exc)

    def _make(self, named_by: str, url: str) -> Proxy:
        proxy = self._made.get(url)
        if proxy is None:
            proxy = self._made[url] = make_proxy(named_by, url)
        return proxy
