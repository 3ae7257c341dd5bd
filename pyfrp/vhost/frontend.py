"""The http vhost of a server: what all of its callers share."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Collection, Coroutine
from email.utils import formatdate
from typing import Any, Protocol

from pyfrp.errors import PyfrpError
from pyfrp.net.bridge import Bridge
from pyfrp.net.endpoint import Endpoint, format_address
from pyfrp.net.scope import Scope
from pyfrp.vhost.exchange import HttpExchange
from pyfrp.vhost.failover import other_member
from pyfrp.vhost.pages import custom_page
from pyfrp.vhost.router import Router
from pyfrp.vhost.serving import Refusal
from pyfrp.vhost.upstream import UpstreamPool
from pyfrp.wire.http1 import HeadEdit, RequestHead, ResponseHead

SWEEP_S = 1.0
RETRY_AFTER_S = 5  # Told to callers while the client is away; clients are back within seconds.
# Refusals logged per second; what scanners provoke on a public port must not fill the disk.
LOGGED_REFUSALS = 20


class Log(Protocol):
    """The part of a structlog logger that is used here."""

    def info(self, event: str, **kw: Any) -> Any: ...
    def warning(self, event: str, **kw: Any) -> Any: ...


class RouteGroup(Protocol):
    """Proxies that share the requests of one route."""

    def pick(self, tried: Collection[HttpRoute] = ()) -> HttpRoute | None:
        """The one whose turn it is and that has not been tried, or None."""
        ...

    def doubt(self, member: HttpRoute) -> bool:
        """It failed a request: pick others first for a while. Whether that is new."""
        ...


class HttpRoute:
    """An http proxy as the vhost sees it.

    Args:
        name: The proxy's wire name.
        pool: Its work connections.
        request_edit, response_edit: What its configuration changes in heads, or None.
        user, password: Required credentials; both empty for none.

    Attributes:
        group: Those who serve the route in turn, this one perhaps among them; None for it alone.
    """

    __slots__ = (
        "credentials",
        "group",
        "last_answer",
        "name",
        "pool",
        "request_edit",
        "requests",
        "response_edit",
    )

    def __init__(
        self,
        name: str,
        pool: UpstreamPool,
        *,
        request_edit: HeadEdit | None,
        response_edit: HeadEdit | None,
        user: str,
        password: str,
    ) -> None:
        self.name = name
        self.pool = pool
        self.request_edit = request_edit
        self.response_edit = response_edit
        self.credentials = f"{user}:{password}".encode() if user or password else None
        self.group: RouteGroup | None = None
        self.requests = 0
        self.last_answer: ResponseHead | None = None  # Within a second, many heads are equal.

    def admits(self, user: str, password: str) -> bool:
        if self.credentials is None:
            return True
        return hmac.compare_digest(f"{user}:{password}".encode(), self.credentials)


class HttpFrontend:
    """Routes, limits, answers of our own, and the callers' connections.

    Args:
        header_timeout_s: Seconds an upstream may take to its answer's head; 0 or less for no limit.
        frp_errors: Answer 404 where frp does, instead of 502 and 503.
        not_found_page: File served as the 404 page; read each time, "" for the built-in page.
    """

    def __init__(
        self,
        *,
        header_timeout_s: float,
        frp_errors: bool,
        not_found_page: str,
        log: Log,
        scope: Scope,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.clock = loop.time
        self.soon = loop.call_soon
        self.later = loop.call_later
        self.header_timeout_s = header_timeout_s
        self.router: Router[HttpRoute] = Router()
        self.prior_knowledge = True
        self.draining = False
        self.date = _http_date()
        self._frp_errors = frp_errors
        self._not_found_page = not_found_page
        self._log = log
        self._scope = scope
        self._pools: dict[UpstreamPool, None] = {}
        self._exchanges: dict[HttpExchange, None] = {}
        self._bridges: dict[Bridge, None] = {}
        self._quiet: asyncio.Event = asyncio.Event()
        self._logged = 0
        self._unlogged = 0
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    def __len__(self) -> int:
        """Open connections of callers."""
        return len(self._exchanges) + len(self._bridges)

    # -- for the server ------------------------------------------------------------------------

    def protocol(self) -> HttpExchange:
        """For `loop.create_server`."""
        return HttpExchange(self)

    def adopt(self, caller: asyncio.Transport, early: bytes) -> None:
        """Serve a connection that was accepted elsewhere, paused, and the bytes read from it."""
        exchange = HttpExchange(self)
        caller.set_protocol(exchange)
        exchange.connection_made(caller)
        exchange.data_received(early)
        if exchange.reads and not caller.is_closing():
            caller.resume_reading()

    def add_pool(self, pool: UpstreamPool) -> None:
        self._pools[pool] = None

    def remove_pool(self, pool: UpstreamPool) -> None:
        self._pools.pop(pool, None)
        pool.close()

    async def drain(self) -> None:
        """Close idle callers and wait for the busy ones; the caller sets the deadline."""
        self.draining = True
        for exchange in list(self._exchanges):
            exchange.drain()
        while len(self):
            self._quiet.clear()
            await self._quiet.wait()

    def close(self) -> None:
        """Drop everybody."""
        self._sweeper.cancel()
        for exchange in list(self._exchanges):
            exchange.abort()
        for bridge in list(self._bridges):
            bridge.abort()
        for pool in list(self._pools):
            self.remove_pool(pool)

    # -- for the exchanges ---------------------------------------------------------------------

    def enter(self, exchange: HttpExchange) -> None:
        self._exchanges[exchange] = None

    def leave(self, exchange: HttpExchange) -> None:
        self._exchanges.pop(exchange, None)
        self._settle()

    def bridge(self, join: Callable[..., Bridge]) -> None:
        """Keep an upgraded connection and its upstream joined for good."""
        self._bridges[join(on_close=self._unbridge)] = None

    def _unbridge(self, bridge: Bridge) -> None:
        self._bridges.pop(bridge, None)
        self._settle()

    def _settle(self) -> None:
        if not self._exchanges and not self._bridges:
            self._quiet.set()

    def spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        self._scope.spawn(coro, name="http upstream")

    def serve_http2(self, caller: Endpoint, early: bytes) -> None:
        """A caller that speaks HTTP/2 with prior knowledge; `early` starts with its preface."""
        from pyfrp.vhost.http2 import Http2Caller  # Rare; its parser is not loaded for HTTP/1.

        Http2Caller(caller, self).data_received(early)

    def route(self, head: RequestHead) -> HttpRoute | None:
        """The one place where a request meets its proxy."""
        route = self.router.find(head.host, head.path, head.user)
        if route is not None and route.group is not None:
            return route.group.pick()
        return route

    def pass_on(
        self, tried: tuple[HttpRoute, ...], head: RequestHead, ip: bytes, sent: bytes
    ) -> tuple[HttpRoute, bytes] | None:
        """Find another member for a request that the last of `tried` failed: see `other_member`."""
        failed = tried[-1]
        if failed.group is None:
            return None
        if failed.group.doubt(failed):
            self._log.warning("a member of a group failed, others go first", proxy=failed.name)
        return other_member(failed, tried, head, ip, sent)

    def refuse_unknown(self, exchange: HttpExchange, head: RequestHead) -> None:
        """No route: 404, or 503 when there was one and its client is away."""
        if self.router.misses(head.host, head.path, head.user) and not self._frp_errors:
            away = "no client serves this host at the moment"
            exchange.refuse(503, away, stage="route", extra=_RETRY_AFTER)
        else:
            self._refuse_not_found(exchange, "no proxy serves this host and path")

    def refuse_away(self, exchange: HttpExchange, exc: PyfrpError) -> None:
        """The client gave no work connection."""
        if self._frp_errors:
            self._refuse_not_found(exchange, str(exc))
            return
        away = f"the client does not answer: {exc}"
        exchange.refuse(503, away, stage="work connection", extra=_RETRY_AFTER)

    def refuse_dead(self, exchange: HttpExchange, why: str, *, stage: str) -> None:
        """The local service refused, or broke before an answer."""
        if self._frp_errors:
            self._refuse_not_found(exchange, why)
        else:
            exchange.refuse(502, why, stage=stage)

    def _refuse_not_found(self, exchange: HttpExchange, why: str) -> None:
        page = custom_page(self._not_found_page, self._log)
        exchange.refuse(404, why, stage="route", page=page)

    def log_refusal(self, refusal: Refusal) -> None:
        """One line per failed request: the proxy, the stage and the cause."""
        self._logged += 1
        if self._logged > LOGGED_REFUSALS:
            self._unlogged += 1
            return
        status, route = refusal.status, refusal.route
        emit = self._log.warning if not status or status >= 500 else self._log.info
        emit(
            "http request failed",
            proxy=route.name if route is not None else "",
            host=refusal.host,
            caller=format_address(refusal.caller),
            status=status or "cut",
            stage=refusal.stage,
            cause=refusal.cause,
        )

    # -- time ----------------------------------------------------------------------------------

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)
        now = self.clock()
        self.date = _http_date()
        for exchange in list(self._exchanges):
            if 0 < exchange.deadline <= now:
                exchange.expire()
        for pool in self._pools:
            pool.sweep(now)
        if self._unlogged:
            self._log.warning("http requests failed, not logged one by one", count=self._unlogged)
        self._logged = self._unlogged = 0


_RETRY_AFTER = (("Retry-After", str(RETRY_AFTER_S)),)


def _http_date() -> bytes:
    return formatdate(time.time(), usegmt=True).encode()
