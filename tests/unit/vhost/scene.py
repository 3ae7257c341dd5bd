"""A vhost in memory: callers and services that a test drives by hand, and a clock of its own."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pyfrp.errors import PyfrpError
from pyfrp.net.scope import Scope
from pyfrp.vhost.frontend import HttpFrontend, HttpRoute
from pyfrp.vhost.upstream import UpstreamPool
from pyfrp.wire.http1 import HeadEdit

HOST = "llm.test"
ADDRESS = ("203.0.113.9", 50123)
MARK = 256 * 1024


class Wire:
    """An endpoint that writes to a list; what it reads, the test feeds.

    As strict as uvloop: nothing is written after `write_eof` or the loss of the connection. While
    `stuck`, written bytes stay in its buffer, and above `MARK` the protocol is told to pause.
    """

    def __init__(self) -> None:
        self.protocol: Any = None
        self.writes: list[bytes] = []
        self.reading = True
        self.closed = False
        self.aborted = False
        self.ended = False
        self.lost = False
        self.stuck = False
        self.socket: Any = None
        self._unsent = 0
        self._full = False

    # As an endpoint:

    def write(self, data: bytes) -> None:
        assert data, "an empty write"
        assert not self.lost, "a write to a connection that was lost"
        assert not self.ended, "a write after write_eof"
        if self.closed:
            return
        self.writes.append(bytes(data))
        if self.stuck:
            self._unsent += len(data)
            if self._unsent > MARK and not self._full:
                self._full = True
                self.protocol.pause_writing()

    def write_eof(self) -> None:
        assert not self.lost
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.lose)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket" and self.socket is not None:
            return self.socket
        return ADDRESS if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self._unsent

    # For tests:

    @property
    def sent(self) -> bytes:
        """All that was written."""
        return b"".join(self.writes)

    def take(self) -> bytes:
        """What was written since the last call."""
        data = self.sent
        self.writes.clear()
        return data

    def feed(self, data: bytes) -> None:
        """The far end sent these bytes."""
        assert not self.closed
        self.protocol.data_received(data)

    def end(self) -> None:
        """The far end sent its EOF."""
        if not self.closed and not self.protocol.eof_received():
            self.close()

    def lose(self, exc: BaseException | None = None) -> None:
        """The connection is gone."""
        if not self.lost:
            self.lost = self.closed = True
            self.protocol.connection_lost(exc)

    def unstick(self) -> None:
        """The far end reads everything."""
        self.stuck = False
        self._unsent = 0
        if self._full:
            self._full = False
            self.protocol.resume_writing()


class Log:
    """Collects what is logged."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **kw: Any) -> None:
        self.lines.append({"level": "info", "event": event, **kw})

    def warning(self, event: str, **kw: Any) -> None:
        self.lines.append({"level": "warning", "event": event, **kw})


class Vhost:
    """A frontend with one proxy, whose work connections are `services` in the order of opening."""

    def __init__(self, scope: Scope, **options: Any) -> None:
        self.log = Log()
        self.now = 1000.0
        self._later: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = itertools.count()
        settings = {"header_timeout_s": 0, "frp_errors": False, "not_found_page": "", **options}
        self.frontend = HttpFrontend(log=self.log, scope=scope, **settings)
        self.frontend.clock = lambda: self.now  # type: ignore[method-assign]  # a clock of our own
        self.frontend.later = self._call_later  # type: ignore[method-assign]  # as above
        self.services: list[Wire] = []
        self.refusal: PyfrpError | None = None
        self.opening: asyncio.Event | None = None
        self.stuck = False  # Whether new work connections take nothing.
        self.greeting = b""  # What new work connections say unasked.
        self.pool = UpstreamPool(self._connect, lambda: self.now)
        self.route = self.add_route(HOST)

    def add_route(
        self,
        domain: str,
        *,
        location: str = "",
        user: str = "",
        password: str = "",
        request_edit: HeadEdit | None = None,
        response_edit: HeadEdit | None = None,
    ) -> HttpRoute:
        route = HttpRoute(
            "llm",
            self.pool,
            request_edit=request_edit,
            response_edit=response_edit,
            user=user,
            password=password,
        )
        self.frontend.router.add(domain, location, "", route)
        self.frontend.add_pool(self.pool)
        return route

    async def _connect(self, caller: tuple[str, int]) -> tuple[Wire, bytes]:
        assert caller == ADDRESS
        if self.opening is not None:
            await self.opening.wait()
        if self.refusal is not None:
            raise self.refusal
        service = Wire()
        service.reading = False
        service.stuck = self.stuck
        self.services.append(service)
        return service, self.greeting

    def _call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> None:
        heapq.heappush(self._later, (self.now + seconds, next(self._count), callback, args))

    def call(self) -> Wire:
        """A new caller."""
        wire = Wire()
        exchange = self.frontend.protocol()
        wire.protocol = exchange
        exchange.connection_made(wire)  # type: ignore[arg-type]  # an endpoint as well
        return wire

    async def ask(self, data: bytes) -> Wire:
        """A new caller that has sent these bytes, all of which were acted upon."""
        wire = self.call()
        wire.feed(data)
        await turns()
        return wire

    @property
    def service(self) -> Wire:
        """The newest work connection."""
        return self.services[-1]

    def advance(self, seconds: float) -> None:
        """Let time pass: timers run, and the frontend looks at its deadlines."""
        end = self.now + seconds
        while self._later and self._later[0][0] <= end:
            when, _, callback, args = heapq.heappop(self._later)
            self.now = max(self.now, when)
            callback(*args)
        self.now = end
        self.frontend._sweeper.cancel()
        self.frontend._sweep()


async def turns(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def vhost(**options: Any) -> AsyncIterator[Vhost]:
    """A vhost; nothing may fail unnoticed in it, and nothing of it is left at the end."""
    failures: list[BaseException] = []
    scope = Scope(lambda exc, name: failures.append(exc))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    made = Vhost(scope, **options)
    try:
        yield made
    finally:
        made.frontend.close()
        await turns()
        left = len(made.frontend)
        await scope.close()
    assert not failures, failures
    assert not left, "exchanges are left behind"


def get(path: str = "/", *fields: str, host: str = HOST, version: str = "1.1") -> bytes:
    return "\r\n".join((f"GET {path} HTTP/{version}", f"Host: {host}", *fields, "", "")).encode()


def post(body: bytes, *fields: str, path: str = "/") -> bytes:
    head = (f"POST {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}", *fields)
    return "\r\n".join((*head, "", "")).encode() + body


def answer(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def split_answers(data: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer in what a caller received; each has a Content-Length."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        length = 0
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        found.append((status, data[:length]))
        assert len(data) >= length
        data = data[length:]
    return found
