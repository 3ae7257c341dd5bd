"""A frontend between an HTTP/2 caller and a service, all of it in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events

from pyfrp.errors import PyfrpError
from pyfrp.net.scope import Scope
from pyfrp.vhost.frontend import HttpFrontend, HttpRoute
from pyfrp.vhost.upstream import UpstreamPool

DOMAIN = "llm.test"
ADDRESS = ("203.0.113.9", 50123)
MARK = 256 * 1024


class Wire:
    """An endpoint that writes to a list. What is written is taken at once, unless `stuck`."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.writes: list[bytes] = []
        self.reading = True
        self.closed = False
        self.aborted = False
        self.ended = False
        self.stuck = False
        self._unsent = 0
        self._full = False

    # As an endpoint:

    def write(self, data: bytes) -> None:
        assert data, "an empty write"
        if self.closed:
            return
        self.writes.append(bytes(data))
        if self.stuck:
            self._unsent += len(data)
            if self._unsent > MARK and not self._full:
                self._full = True
                self.protocol.pause_writing()

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ADDRESS if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self._unsent

    # For tests:

    def unstick(self) -> None:
        """The far end reads everything."""
        self.stuck = False
        self._unsent = 0
        if self._full:
            self._full = False
            self.protocol.resume_writing()

    def fill(self) -> None:
        """The far end does not read."""
        self._full = True
        self.protocol.pause_writing()

    def drain(self) -> None:
        self._full = False
        self.protocol.resume_writing()

    def feed(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def take(self) -> bytes:
        data = b"".join(self.writes)
        self.writes.clear()
        return data


@dataclass
class Answer:
    """What the caller received on a stream."""

    headers: dict[str, str] = field(default_factory=dict)
    interim: list[dict[str, str]] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.headers.get(":status", "0"))

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


class Log:
    """Collects what is logged."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **kw: Any) -> None:
        self.lines.append({"event": event, **kw})

    warning = info


class Scene:
    """One HTTP/2 caller, and the connections to the service that its requests open."""

    def __init__(self, scope: Scope, **options: Any) -> None:
        self.log = Log()
        self.now = 1000.0
        self.frontend = HttpFrontend(
            header_timeout_s=options.pop("header_timeout_s", 0),
            frp_errors=False,
            not_found_page="",
            log=self.log,
            scope=scope,
        )
        self.frontend.clock = lambda: self.now  # type: ignore[method-assign]  # time stands still
        self.backends: list[Wire] = []
        self.away: PyfrpError | None = None
        self.pool = UpstreamPool(self._connect, self.frontend.clock)
        self.frontend.add_pool(self.pool)
        route = HttpRoute(
            "llm", self.pool, request_edit=None, response_edit=None, **{"user": "", "password": ""}
        )
        self.frontend.router.add(DOMAIN, "", "", route)
        self.wire = Wire()
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.pings = 0
        self.acknowledge = True
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        exchange = self.frontend.protocol()
        self.wire.protocol = exchange
        exchange.connection_made(self.wire)  # type: ignore[arg-type]  # an endpoint as well

    async def _connect(self, caller: tuple[str, int]) -> tuple[Wire, bytes]:
        if self.away is not None:
            raise self.away
        backend = Wire()
        self.backends.append(backend)
        return backend, b""

    def be_rude(self) -> None:
        """Let the caller send what h2 would not."""
        self.h2.config.validate_outbound_headers = False
        self.h2.config.normalize_outbound_headers = False

    # -- turns of the loop ---------------------------------------------------------------------

    async def start(self) -> None:
        self.h2.initiate_connection()
        await self.settle()

    async def settle(self) -> None:
        """Carry bytes between caller and server until both are quiet."""
        quiet = 0
        while quiet < 3:
            moved = self.send()
            await asyncio.sleep(0)
            moved |= self.receive()
            quiet = 0 if moved else quiet + 1

    def send(self) -> bool:
        """Bring what the caller has to say to the server."""
        data = self.h2.data_to_send()
        if data and self.wire.reading and not self.wire.closed:
            self.wire.feed(data)
        return bool(data)

    def receive(self) -> bool:
        """Bring what the server wrote to the caller, unless it is stuck."""
        if self.wire.stuck:
            return False
        data = self.wire.take()
        if not data:
            return False
        for event in self.h2.receive_data(data):
            self._take(event)
        return True

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.answers[event.stream_id].headers = dict(event.headers)
        elif isinstance(event, h2.events.InformationalResponseReceived):
            self.answers[event.stream_id].interim.append(dict(event.headers))
        elif isinstance(event, h2.events.TrailersReceived):
            self.answers[event.stream_id].trailers = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            if event.data:
                self.answers[event.stream_id].parts.append(event.data)
            if self.acknowledge:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.answers[event.stream_id].ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.answers[event.stream_id].reset = int(event.error_code)
        elif isinstance(event, h2.events.PingAckReceived):
            self.pings += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            # h2 would forget what it may still do; a caller goes on with its open streams.
            self.goaway = event
            self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN

    # -- requests ------------------------------------------------------------------------------

    def ask(
        self,
        path: str = "/v1/models",
        method: str = "GET",
        fields: Sequence[tuple[str, str]] = (),
        *,
        authority: str = DOMAIN,
        end: bool = True,
    ) -> int:
        """Write the head of a request; return its stream."""
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", authority)]
        self.h2.send_headers(stream, [*head, (":path", path), *fields], end_stream=end)
        return stream

    async def get(self, *args: Any, **kw: Any) -> int:
        stream = self.ask(*args, **kw)
        await self.settle()
        return stream

    async def reply(self, data: bytes, backend: int = -1) -> None:
        """Let the service answer."""
        self.backends[backend].feed(data)
        await self.settle()

    def lose(self, exc: Exception | None = None) -> None:
        """The transport reports the end of the caller's connection."""
        self.wire.closed = True
        self.wire.protocol.connection_lost(exc)


@asynccontextmanager
async def scene(*, started: bool = True, **options: Any) -> AsyncIterator[Scene]:
    """A scene; at its end no exchange may be left once the caller's connection is lost."""
    failures: list[BaseException] = []
    scope = Scope(lambda exc, name: failures.append(exc))
    made = Scene(scope, **options)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    try:
        if started:
            await made.start()
        yield made
        if not failures:
            if made.wire.protocol is not None:
                made.lose()
            for _ in range(3):
                await asyncio.sleep(0)
            assert not len(made.frontend), "exchanges are left behind"
    finally:
        made.frontend.close()
        await scope.close()
    assert not failures, failures


def answer(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    """An answer of known length, as the service sends it."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """A frame as it is on the wire."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload
