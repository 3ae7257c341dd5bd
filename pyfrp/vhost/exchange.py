"""One caller's connection to the http vhost: requests in, answers out, nothing collected.

RFC 9112 for the framing, RFC 9110 for what a gateway adds and removes; routing, credentials and
headers as frp does (`pkg/util/vhost/http.go`), differences as listed in the README.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, cast

from pyfrp.errors import BadHead, PyfrpError
from pyfrp.net.bridge import Bridge
from pyfrp.net.endpoint import Endpoint
from pyfrp.vhost.bodies import Body, OpenBody, body_of
from pyfrp.vhost.departure import watch_departure
from pyfrp.vhost.ends import Ends
from pyfrp.vhost.failover import repeatable
from pyfrp.vhost.replay import Replay
from pyfrp.vhost.stages import BODY_S, HEAD_S, READ_AHEAD, Answering, Asking
from pyfrp.vhost.upstream import Upstream
from pyfrp.wire import http1
from pyfrp.wire.http1 import CHUNKED, UNTIL_CLOSE, RequestHead, ResponseHead

if TYPE_CHECKING:
    from pyfrp.vhost.frontend import HttpRoute
    from pyfrp.vhost.serving import Serving

PREFACE = b"PRI * HTTP/2.0\r\n\r\n"


class HttpExchange(Ends):
    """A protocol around the strict parser of `pyfrp.wire.http1`.

    The caller's connection outlives its requests, and so does the upstream: both are reused where
    the framing of request and answer proves that nothing is left on them.
    """

    __slots__ = (
        "_answer_body",
        "_body",
        "_choked",
        "_last",
        "_pipelined",
        "_replay",
        "_requests",
        "_response",
        "_silent",
        "_skipped",
        "_tried",
        "_upstream_buffer",
        "_upstream_full",
    )

    def __init__(self, frontend: Serving) -> None:
        super().__init__(frontend)
        self._requests = 0
        # The next request waits for its turn in `_buffer`, or would if it were here already.
        self._pipelined = False
        self._silent = False  # Nothing was sent since the caller half-closed.
        self._choked = False  # The caller does not drain, so the upstream is paused.
        self._last: RequestHead | None = None  # Many callers repeat the head of their last request.
        self._skipped = False
        self._tried: tuple[HttpRoute, ...] = ()  # Asked for a fresh connection for this request.
        self._body: Body | None = None
        self._replay = Replay()
        self._upstream_buffer = b""
        self._upstream_full = False
        self._response: ResponseHead | None = None
        self._answer_body: Body | None = None

    # -- the caller ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._frontend.enter(self)

    def data_received(self, data: bytes) -> None:
        if self._answering == Answering.OVER:
            return  # A caller that was refused in its upload; what it still sends is not read.
        if self._asking == Asking.HEAD and not self._pipelined:
            self._read_head(data)
        elif self._asking == Asking.BODY:
            self._read_body(data)
        else:
            self._buffer += data
            if len(self._buffer) > READ_AHEAD:
                self._stop_reading()

    def eof_received(self) -> bool:
        """The caller sends no more: gone, or half-closed and waiting for its answer?"""
        self._half_closed = True
        if self._pipelined:
            return True  # A request may be at hand; `_next` or `_go_on` will see.
        over = self._asking != Asking.DONE or self._answering == Answering.OVER
        if over or not cast(Endpoint, self._caller).can_write_eof():
            return False  # Nothing could be answered any more; and TLS ends as a whole.
        self._watch()
        return True

    def _watch(self) -> None:
        """Notice when a half-closed caller has in fact left."""
        self._silent = True
        watch_departure(
            cast(Endpoint, self._caller),
            self._frontend.later,
            may_probe=self._answering != Answering.BODY and cast(RequestHead, self._head).minor > 0,
            silent=lambda: self._silent and self._answering == Answering.BODY,
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def pause_writing(self) -> None:
        self._choked = True
        if self._upstream is not None:
            self._upstream.endpoint.pause_reading()

    def resume_writing(self) -> None:
        self._choked = False
        if self._upstream is not None and not self._upstream.closed:
            self._upstream.endpoint.resume_reading()
        elif self._pipelined:
            self._go_on()

    def _leave(self) -> None:
        """The caller is gone, so the model may stop."""
        self._caller = None
        self._answering = Answering.OVER
        self._frontend.leave(self)
        self._drop_upstream()

    # -- the request ---------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> None:
        seen = len(self._buffer)
        if seen:
            data = self._buffer + data
        try:
            if data.startswith(b"\r\n") and not self._skipped:
                self._skipped = True  # One empty line before a request is ignored (RFC 9112, 2.2).
                data = data[http1.skip_empty_line(data) :]
                seen = 0
            if not self._requests and self._frontend.prior_knowledge and data.startswith(PREFACE):
                self._frontend.serve_http2(self._hand_over(), data)
                return
            head = http1.next_request_head(data, self._last, seen)
        except BadHead as exc:
            # `_asking` stays: who knows what this caller still sends.
            self.refuse(exc.status, str(exc), stage="request head", keep_alive=False)
            return
        if head is None:
            self._buffer = data
            if not seen:
                self.deadline = self._frontend.clock() + HEAD_S
            return
        end = len(head.raw)
        self._buffer = data[end:] if end < len(data) else b""
        self._requests += 1
        self._skipped = False
        self._last = self._head = head
        self._keep_alive = head.keep_alive and not self._frontend.draining
        self._begin(head)

    def _begin(self, head: RequestHead) -> None:
        """Route a request, and send it on its way or refuse it."""
        if head.length == 0 or head.method == b"CONNECT":
            self._asking = Asking.DONE
        else:
            self._asking = Asking.BODY
            self._body = body_of(head.length, status=400)
        route = self._frontend.route(head)
        if route is None:
            self._frontend.refuse_unknown(self, head)
            return
        if route.credentials is not None and not route.admits(head.user, head.password):
            self.refuse(
                401,
                "Unauthorized",
                stage="credentials",
                extra=(("WWW-Authenticate", 'Basic realm="Restricted"'),),
            )
            return
        self._route = route
        route.requests += 1
        out = http1.rewrite_request_head(head, route.request_edit, self._ip)
        upstream = route.pool.take()
        if upstream is None:
            self._queued = out
            self._replay.drop()
            self.deadline = 0.0
            self._frontend.spawn(self._connect(route))
        else:
            self._attach(upstream)
            self._replay.begin(out, self._frontend.clock())
            upstream.endpoint.write(out)
        if self._asking == Asking.BODY and self._buffer:
            rest, self._buffer = self._buffer, b""
            self._read_body(rest)
        if self._asking == Asking.BODY and upstream is not None:
            self._await_body()

    def _await_body(self) -> None:
        """The rest of the upload is the caller's to send; see `expire`."""
        self.deadline = self._frontend.clock() + BODY_S

    def _read_body(self, data: bytes) -> None:
        self._moved = True
        body = cast(Body, self._body)
        try:
            data = body.feed(data)
        except BadHead as exc:
            if self._answering == Answering.BODY:
                self._cut(exc)  # A refusal in the middle of an answer would be part of it.
            else:
                self.refuse(exc.status, str(exc), stage="request body", keep_alive=False)
            return
        if body.done:
            self._buffer = body.rest
            self._asking = Asking.DONE
            self._body = None
            self.deadline = 0.0
            if self._answering == Answering.HEAD:
                self._await_answer()
        upstream = self._upstream
        if upstream is None:
            self._queued += data
            if len(self._queued) > READ_AHEAD:
                self._stop_reading()
            return
        self._replay.add(data)
        upstream.endpoint.write(data)

    # -- the work connection -------------------------------------------------------------------

    async def _connect(self, route: HttpRoute) -> None:
        self._tried += (route,)
        try:
            upstream = await route.pool.open(self._address)
        except PyfrpError as exc:
            if self._caller is None or self._route is not route:
                return
            if not self._send_again(self._queued):
                self._frontend.refuse_away(self, exc)
            return
        if self._caller is None or self._answering != Answering.NONE:
            # The caller left meanwhile; the connection is as good as new for the next one.
            route.pool.give_back(upstream)
            return
        if upstream.closed:
            if not self._send_again(self._queued):
                why = "the local service closed the connection"
                self._frontend.refuse_dead(self, why, stage="work connection")
            return
        self._attach(upstream)
        if self._asking == Asking.BODY:
            self._await_body()
        queued, self._queued = self._queued, b""
        if route.group is not None:
            self._replay.begin(queued, self._frontend.clock())
        upstream.endpoint.write(queued)
        self._read_on()

    def _attach(self, upstream: Upstream) -> None:
        upstream.user = self
        self._upstream = upstream
        self._answering = Answering.HEAD
        self._upstream_buffer = b""
        self._upstream_full = False
        self.deadline = 0.0
        if self._choked:
            upstream.endpoint.pause_reading()
        if self._asking == Asking.DONE:
            self._await_answer()

    def _await_answer(self) -> None:
        """The request is out; from here the wait for the answer's head counts."""
        limit = self._frontend.header_timeout_s
        if limit > 0:
            self.deadline = self._frontend.clock() + limit

    @property
    def awaits_head(self) -> bool:
        return self._answering == Answering.HEAD

    def upstream_full(self) -> None:
        self._upstream_full = True
        if self._asking == Asking.BODY:
            self._stop_reading()

    def upstream_drained(self) -> None:
        self._upstream_full = False
        self._read_on()

    def upstream_data(self, data: bytes) -> None:
        if self._answering == Answering.BODY:
            self._pass_on(data)
        elif self._answering == Answering.HEAD:
            self._read_answer(data)

    def upstream_ended(self, exc: Exception | None) -> None:
        """The work connection is gone in the middle of an exchange."""
        self._upstream = None
        if self._answering == Answering.BODY:
            if isinstance(self._answer_body, OpenBody) and exc is None:
                self._finish(None)
            else:
                self._cut(exc)
            return
        if self._answering != Answering.HEAD:
            return
        safe = repeatable(cast("HttpRoute", self._route), cast(RequestHead, self._head))
        again = None if self._upstream_buffer else self._replay.take(self._frontend.clock(), safe)
        if again is not None and self._send_again(again):
            return
        why = "the local service refused, or closed the connection without an answer"
        self._frontend.refuse_dead(self, why, stage="response head")

    def _send_again(self, sent: bytes) -> bool:
        """Send a request of which nothing was answered, `sent` so far, again if anybody is left."""
        head, route = cast(RequestHead, self._head), cast("HttpRoute", self._route)
        if route in self._tried:
            again = self._frontend.pass_on(self._tried, head, self._ip, sent)
            if again is None:
                return False
            route, sent = again
        self._answering = Answering.NONE
        self.deadline = 0.0
        self._route, self._queued = route, sent
        self._frontend.spawn(self._connect(route))
        return True

    # -- the answer ----------------------------------------------------------------------------

    def _read_answer(self, data: bytes) -> None:
        head = cast(RequestHead, self._head)
        route = cast("HttpRoute", self._route)
        seen = len(self._upstream_buffer)
        if seen:
            data = self._upstream_buffer + data
        while True:
            try:
                answer = http1.next_response_head(data, head.method, route.last_answer, seen)
            except BadHead as exc:
                self._broken_answer(str(exc))
                return
            if answer is None:
                self._upstream_buffer = data
                return
            end = len(answer.raw)
            data = data[end:] if end < len(data) else b""
            seen = 0
            self._replay.drop()
            if answer.status >= 200 or answer.status == 101:
                break
            if head.minor:
                self._write(answer.raw)
        self._upstream_buffer = b""
        self._silent = False
        if answer.status == 101 and not head.upgrade:
            self._broken_answer("it switches protocols without being asked to")
            return
        self._response = route.last_answer = answer
        if answer.status == 101 or (head.method == b"CONNECT" and answer.status < 300):
            self._tunnel(answer, data)
            return
        length = answer.length
        unwrap = length == CHUNKED and not head.minor
        # Without framing that the caller can read, only the end of the connection ends the answer;
        # and bytes of an unfinished request would be taken for the next one.
        self._keep_alive = (
            self._keep_alive
            and length != UNTIL_CLOSE
            and not unwrap
            and self._asking == Asking.DONE
            and not self._frontend.draining
        )
        out = http1.rewrite_response_head(
            answer,
            route.response_edit,
            keep_alive=self._keep_alive,
            caller_minor=head.minor,
            dechunk=unwrap,
            date=self._frontend.date,
        )
        self._answering = Answering.BODY
        self.deadline = 0.0
        # The common case first: head and whole body came in one piece and leave in one piece.
        if length == len(data):
            self._write(out + data if data else out)
            self._finish(answer)
            return
        self._answer_body = body_of(length, status=502, unwrap=unwrap)
        if data:
            self._pass_on(data, out)
        else:
            self._write(out)

    def _broken_answer(self, why: str) -> None:
        why = f"the local service sent a broken answer: {why}"
        self._frontend.refuse_dead(self, why, stage="response head")

    def _pass_on(self, data: bytes, head: bytes = b"") -> None:
        """Send body bytes on in the turn in which they came."""
        body = cast(Body, self._answer_body)
        try:
            data = body.feed(data)
        except BadHead as exc:
            if head:  # Nothing has gone out yet.
                self._answering = Answering.HEAD
                self._broken_answer(str(exc))
            else:
                self._cut(exc)
            return
        caller = self._caller
        if caller is not None:
            self._silent = False
            caller.write(head + data if head else data)
        if body.done:
            # Bytes beyond the answer would be taken for the next one.
            self._finish(None if body.rest else self._response)

    def _finish(self, answer: ResponseHead | None) -> None:
        """The answer is complete: free the upstream, go on with the caller.

        Args:
            answer: The head that says whether the upstream may be kept; None for certainly not.
        """
        upstream, self._upstream = self._upstream, None
        self._upstream_full = False
        if upstream is not None:
            if answer is not None and answer.keep_alive and self._asking == Asking.DONE:
                cast("HttpRoute", self._route).pool.give_back(upstream)
                if self._choked:
                    upstream.endpoint.resume_reading()
            else:
                upstream.abort()
        self._answer_body = None
        self._response = None
        self._route = None
        self._tried = ()
        self._head = None
        if not self._keep_alive:
            self._close()
            return
        self._asking = Asking.HEAD
        self._answering = Answering.NONE
        if self._choked:
            # Answers of our own to a caller who reads none of them would pile up.
            self._pipelined = True
            self.deadline = 0.0
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Turn to the caller's next request."""
        self.deadline = self._frontend.clock() + HEAD_S
        self._pipelined = bool(self._buffer)
        if self._pipelined:
            self._frontend.soon(self._next)
        elif self._half_closed:
            self._close()
        elif not self._reading:
            self._read_on()

    def _next(self) -> None:
        """A pipelined request is at hand."""
        self._pipelined = False
        if self._caller is None or self._asking != Asking.HEAD:
            return
        data, self._buffer = self._buffer, b""
        if data:
            self._read_head(data)
        self._read_on()
        if not self._half_closed or self._pipelined:
            return
        if self._asking == Asking.DONE and self._answering != Answering.OVER:
            self._watch()
        elif self._asking != Asking.DONE:
            self._close()

    # -- the hand-over -------------------------------------------------------------------------

    def _tunnel(self, answer: ResponseHead, early: bytes) -> None:
        """An upgrade, or CONNECT: from here on a plain pipe."""
        upstream, self._upstream = cast(Upstream, self._upstream), None
        route = cast("HttpRoute", self._route)
        rest, self._buffer = self._buffer, b""
        caller = self._hand_over()
        out = http1.rewrite_response_head(
            answer,
            route.response_edit,
            keep_alive=True,
            caller_minor=1,
            dechunk=False,
            date=self._frontend.date,
        )
        caller.pause_reading()
        join = partial(
            Bridge,
            caller,
            upstream.release(),
            early=rest,
            far_early=out + early,
            near_ended=self._half_closed,
        )
        self._frontend.bridge(join)

    def _read_on(self) -> None:
        # Each request of a long pipeline would let one more chunk in than it takes out.
        if not self._upstream_full and len(self._buffer) <= READ_AHEAD:
            super()._read_on()

    def _hand_over(self) -> Endpoint:
        self._answering = Answering.OVER
        self._frontend.leave(self)
        return super()._hand_over()
