"""What `http2http`, `http2https`, `https2http` and `https2https` share: a reverse proxy.

Requests and answers pass as at the http vhost, by the same code (`pyfrp.vhost.exchange`): byte by
byte as they come, connections kept on both sides, upgrades, strict framing. What differs is where
callers come from and that there is one service.

Source: frp `pkg/plugin/client/http2http.go`, `http2https.go`, `https2http.go`, `https2https.go`.
Unlike there, backends are not asked for gzip on behalf of callers that did not: unpacking would
hold tokens back.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, cast

from pyfrp.errors import ConfigError, PyfrpError
from pyfrp.net.bridge import Bridge, Carried
from pyfrp.net.endpoint import Endpoint, format_address
from pyfrp.net.scope import Scope
from pyfrp.plugins.base import LogLimit, Plugin, Visit
from pyfrp.plugins.local import LocalService
from pyfrp.vhost.caller import CallerSide
from pyfrp.vhost.exchange import HttpExchange
from pyfrp.vhost.frontend import HttpRoute
from pyfrp.vhost.serving import Refusal
from pyfrp.vhost.upstream import UpstreamPool
from pyfrp.wire.http1 import Forwarding, HeadEdit, RequestHead, http_date

SWEEP_S = 1.0  # How often deadlines are looked at.


class ReversePlugin(Plugin):
    """A reverse proxy to `localAddr`."""

    forwarding: ClassVar[Forwarding]
    speaks_tls: ClassVar[bool]  # With the backend.

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        host = options.host_header_rewrite
        try:
            edit = HeadEdit(
                host.encode() if host else None,
                options.request_headers.set,
                forwarding=self.forwarding,
                origin_form=True,
            )
        except ValueError as exc:
            raise ConfigError(f"plugin {options.type}: {exc}", key="plugin") from exc
        self._ignored = edit.ignored
        self._local = LocalService(
            options.local_addr,
            tls=self.speaks_tls,
            default_port=443 if self.speaks_tls else 80,
        )
        self._pool = UpstreamPool(self._connect, time.monotonic)
        self.route = HttpRoute(
            options.type, self._pool, request_edit=edit, response_edit=None, user="", password=""
        )
        self.date = b""
        self._fronts: dict[Front, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.log_limit = LogLimit()

    def warnings(self) -> list[str]:
        found = []
        if not self.options.local_addr:
            found.append("plugin.localAddr is empty: each request is answered with 502")
        if self._ignored:
            names = ", ".join(self._ignored)
            found.append(f"set headers that frame messages have no effect: {names}")
        return found

    def rest(self) -> None:
        self._pool.sweep(math.inf)

    async def serve(self, visit: Visit) -> None:
        await self.attend(visit, visit.work, visit.early)

    async def attend(
        self, visit: Visit, caller: Endpoint, early: bytes, *, name: str = "", http2: bool = False
    ) -> None:
        """Serve a caller until its connection is closed.

        Args:
            caller: Paused.
            early: Bytes read from it.
            name: The host that it asked for in TLS.
            http2: Whether it speaks HTTP/2.
        """
        front = Front(self, visit, caller, name)
        self._fronts[front] = None
        if self._sweeper is None:
            self._sweep()
        visit.keeper.bridges[front] = None
        try:
            await front.run(early, http2=http2)
        finally:
            front.end()
            del self._fronts[front]
            visit.keeper.bridge_closed(front)

    async def _connect(self, _: tuple[str, int]) -> tuple[Endpoint, bytes]:
        far, held = await self._local.dial()
        return far, held.early

    def _sweep(self) -> None:
        if not self._fronts and not len(self._pool):
            self._sweeper = None
            return
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        self.date = http_date(time.time())
        now = time.monotonic()
        for front in self._fronts:
            front.expire(now)
        self._pool.sweep(now)


class Front:
    """One user's connection: what its exchanges ask for (`pyfrp.vhost.serving`).

    To the owner of the client's connections it is one of them (`pyfrp.net.bridge.Carried`).

    Args:
        caller: The connection, below which TLS may have been taken off.
        name: The host that was asked for in TLS, "" for none.
    """

    clock = staticmethod(time.monotonic)
    header_timeout_s = 0.0
    prior_knowledge = False  # HTTP/2 is agreed on in TLS.

    def __init__(self, plugin: ReversePlugin, visit: Visit, caller: Endpoint, name: str) -> None:
        loop = asyncio.get_running_loop()
        self.soon: Callable[..., Any] = loop.call_soon
        self.later: Callable[..., Any] = loop.call_later
        self.draining = False
        self._plugin = plugin
        self._visit = visit
        self._caller = caller
        self._name = name
        self._requests = 0
        self._detail = ""
        self._scope = Scope(self._report)
        self._exchanges: dict[HttpExchange, None] = {}
        self._bridges: dict[Bridge, None] = {}
        self._quiet = asyncio.Event()

    @property
    def date(self) -> bytes:
        return self._plugin.date

    # -- for the plugin ------------------------------------------------------------------------

    async def run(self, early: bytes, *, http2: bool) -> None:
        """Serve until nothing is left of the connection."""
        caller = self._caller
        if caller.is_closing():
            return  # It was lost before anybody listened.
        if http2:
            self.serve_http2(caller, early)
            caller.resume_reading()
        else:
            exchange = HttpExchange(self)
            caller.set_protocol(exchange)
            # An endpoint is what it uses of a transport.
            exchange.connection_made(cast(asyncio.BaseTransport, caller))
            if early:
                exchange.data_received(early)
            if exchange.reads and not caller.is_closing():
                caller.resume_reading()
        while self._exchanges or self._bridges:
            self._quiet.clear()
            await self._quiet.wait()

    def end(self) -> None:
        """Drop what is left."""
        self._scope.cancel()
        self.abort()

    def expire(self, now: float) -> None:
        for exchange in list(self._exchanges):
            if 0 < exchange.deadline <= now:
                exchange.expire()

    # -- as a connection of the client ---------------------------------------------------------

    def carried(self) -> int:
        """Requests so far, and bytes after an upgrade: enough to tell whether it moves."""
        return self._requests + sum(bridge.carried() for bridge in self._bridges)

    def at_rest(self) -> bool:
        if self._bridges or self._caller.get_write_buffer_size():
            return False
        # A deadline runs between requests, and while none is under way.
        return all(exchange.deadline for exchange in self._exchanges)

    def close(self) -> None:
        self.draining = True
        for exchange in list(self._exchanges):
            exchange.drain()

    def abort(self) -> None:
        for exchange in list(self._exchanges):
            exchange.abort()
        for bridge in list(self._bridges):
            bridge.abort()
        # One that has ended in order would be reset after all, and lose what was just sent.
        if not self._caller.is_closing():
            self._caller.abort()

    # -- for the exchanges ---------------------------------------------------------------------

    def enter(self, exchange: HttpExchange) -> None:
        self._exchanges[exchange] = None
        if isinstance(exchange, CallerSide):  # The connection of HTTP/2 streams enters as well.
            exchange.came_from(self._visit.source)

    def leave(self, exchange: HttpExchange) -> None:
        self._exchanges.pop(exchange, None)
        self._quiet.set()

    def bridge(self, join: Callable[..., Bridge]) -> None:
        self._bridges[join(on_close=self._unbridge)] = None

    def _unbridge(self, bridge: Carried) -> None:
        self._bridges.pop(cast(Bridge, bridge), None)
        self._quiet.set()

    def spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        self._scope.spawn(coro, name="http upstream")

    def serve_http2(self, caller: Endpoint, early: bytes) -> None:
        from pyfrp.vhost.http2 import Http2Caller  # Its parser is not loaded for HTTP/1.

        connection = Http2Caller(caller, self)
        if early:
            connection.data_received(early)

    def route(self, head: RequestHead) -> HttpRoute | None:
        self._requests += 1
        if self._name and head.host != self._name:
            return None
        return self._plugin.route

    def pass_on(
        self, tried: tuple[HttpRoute, ...], head: RequestHead, ip: bytes, sent: bytes
    ) -> None:
        """There is one service, and it had the request."""

    def refuse_unknown(self, exchange: HttpExchange, head: RequestHead) -> None:
        exchange.refuse(421, "TLS was opened for another host than the request names", stage="host")

    def refuse_away(self, exchange: HttpExchange, exc: PyfrpError) -> None:
        self._detail = f": {exc}"  # For the log: addresses in here are not the caller's business.
        exchange.refuse(502, "the local service cannot be reached", stage="connect")
        self._detail = ""

    def refuse_dead(self, exchange: HttpExchange, why: str, *, stage: str) -> None:
        exchange.refuse(502, why, stage=stage)

    def log_refusal(self, refusal: Refusal) -> None:
        log, kind = self._visit.log, self._plugin.options.type
        stage, status = refusal.stage, refusal.status
        if stage.startswith("request") or 0 < status < 500:  # The caller is to blame.
            log.debug(f"{kind}: refused a request: {refusal.cause}")
        elif self._plugin.log_limit.allows():
            log.warning(
                f"{kind}: {refusal.cause}{self._detail}",
                host=refusal.host,
                caller=format_address(self._visit.source),
                status=status or "cut",
                stage=stage,
            )

    def _report(self, exc: BaseException, what: str) -> None:
        text = f"internal error in {what}: {type(exc).__name__}: {exc}"
        self._visit.log.error(text, exc_info=exc)
