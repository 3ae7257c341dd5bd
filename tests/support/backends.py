"""An HTTP service behind the tunnel, written for finding out the truth.

It keeps the exact bytes that each connection received, parses them strictly (anything unusual
becomes a complaint that fails the test) and lets a test script every byte of the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.support.services import Backend, Gone, Malformed, Pipe, pattern
from tests.support.waiting import PATIENCE_S, until

HEAD_LIMIT = 1024 * 1024

# --- HTTP ------------------------------------------------------------------------------


@dataclass
class Request:
    """A request head as it arrived."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    raw: bytes

    @property
    def path(self) -> str:
        path = self.target.partition("?")[0]
        if path.startswith("http://"):
            # Absolute form: frp passes it on as it came.
            path = "/" + path[7:].partition("/")[2]
        return path

    @property
    def query(self) -> dict[str, str]:
        pairs = self.target.partition("?")[2].split("&")
        return dict(pair.partition("=")[::2] for pair in pairs if pair)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None


_TOKEN_CHARS = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


def parse_head(raw: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Split a head into its first line and its fields, refusing every liberty."""
    lines = raw[:-4].split(b"\r\n")
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or not _TOKEN_CHARS.issuperset(name):
            raise Malformed(f"bad field line {line!r}")
        if b"\r" in value or b"\n" in value or b"\0" in value:
            raise Malformed(f"bad field value {value!r}")
        fields.append((name.decode("ascii"), value.strip(b" \t").decode("latin-1")))
    first = lines[0].decode("latin-1")
    if any(char in first for char in "\r\n\0"):
        raise Malformed(f"bad first line {first!r}")
    return first, fields


@dataclass
class Exchange:
    """One request and the means to answer it, byte for byte."""

    pipe: Pipe
    request: Request
    keep: bool = True
    trailers: list[tuple[str, str]] = field(default_factory=list)
    taken_over: bool = False
    _left: int = 0
    _chunked: bool = False
    _body_done: bool = False
    answered: bool = False

    def __post_init__(self) -> None:
        request = self.request
        codings = request.all("transfer-encoding")
        lengths = request.all("content-length")
        if codings and lengths:
            raise Malformed("both Content-Length and Transfer-Encoding")
        if codings:
            if [c.lower() for c in codings] != ["chunked"]:
                raise Malformed(f"Transfer-Encoding {codings!r}")
            self._chunked = True
        elif lengths:
            if len(lengths) != 1 or not lengths[0].isascii() or not lengths[0].isdigit():
                raise Malformed(f"Content-Length {lengths!r}")
            self._left = int(lengths[0])
        self._body_done = not self._chunked and self._left == 0
        connection = ",".join(request.all("connection")).lower()
        if request.version == "HTTP/1.0":
            self.keep = "keep-alive" in connection
        elif "close" in connection:
            self.keep = False

    @property
    def gone(self) -> asyncio.Event:
        """Set when the caller's side has closed, wholly or half."""
        return self.pipe.gone

    # --- the request body -------------------------------------------------------------

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, decoded."""
        pipe = self.pipe
        while self._left and not self._chunked:
            while not pipe.buffer:
                if not await pipe.more():
                    raise Gone(f"the body ended {self._left} bytes early")
            piece = pipe.take(min(self._left, len(pipe.buffer)))
            self._left -= len(piece)
            yield piece
        while self._chunked and not self._body_done:
            line = await pipe.read_until(b"\r\n", 1024)
            if not line:
                raise Gone("the body ended before its last chunk")
            size_text = line[:-2].partition(b";")[0]
            if not size_text or not set(size_text) <= set(b"0123456789abcdefABCDEF"):
                raise Malformed(f"chunk size {line!r}")
            size = int(size_text, 16)
            if size == 0:
                await self._read_trailers()
                break
            while size:
                while not pipe.buffer:
                    if not await pipe.more():
                        raise Gone("the body ended inside a chunk")
                piece = pipe.take(min(size, len(pipe.buffer)))
                size -= len(piece)
                yield piece
            if await pipe.read_exactly(2) != b"\r\n":
                raise Malformed("no CRLF after a chunk")
        self._body_done = True

    async def _read_trailers(self) -> None:
        while True:
            line = await self.pipe.read_until(b"\r\n", HEAD_LIMIT)
            if not line:
                raise Gone("the body ended inside its trailers")
            if line == b"\r\n":
                return
            name, _, value = line[:-2].partition(b":")
            self.trailers.append((name.decode("latin-1"), value.strip().decode("latin-1")))

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.chunks()])

    async def body_hash(self) -> tuple[int, str]:
        """Length and SHA-256 of the body, without keeping it."""
        digest, size = hashlib.sha256(), 0
        async for piece in self.chunks():
            digest.update(piece)
            size += len(piece)
        return size, digest.hexdigest()

    # --- the answer -------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        self.answered = True
        await self.pipe.send(data)

    async def start(
        self, status: str = "200 OK", headers: Sequence[tuple[str, str]] = (), version: str = "1.1"
    ) -> None:
        """Send a head with exactly these fields."""
        lines = [f"HTTP/{version} {status}", *(f"{name}: {value}" for name, value in headers)]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def reply(
        self,
        body: bytes | str = b"",
        status: str = "200 OK",
        headers: Sequence[tuple[str, str]] = (),
        kind: str = "text/plain",
    ) -> None:
        """Send a whole answer of known length in one write."""
        data = body.encode() if isinstance(body, str) else body
        fields = [("Content-Type", kind), ("Content-Length", str(len(data))), *headers]
        if not self.keep:
            fields.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields)]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        await self.send(head if self.request.method == "HEAD" else head + data)

    async def reply_json(self, value: object, status: str = "200 OK") -> None:
        await self.reply(json.dumps(value), status, kind="application/json")

    async def start_chunked(
        self, kind: str = "text/event-stream", headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        fields = [("Content-Type", kind), ("Transfer-Encoding", "chunked"), *headers]
        await self.start("200 OK", fields)

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_chunks(self, trailers: Sequence[tuple[str, str]] = ()) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
        await self.send(b"0\r\n" + lines.encode("latin-1") + b"\r\n")

    async def take_over(self) -> Pipe:
        """Leave HTTP: the handler owns the connection until it returns."""
        self.taken_over = True
        self.keep = False
        return self.pipe


Handler = Callable[[Exchange], Awaitable[None]]


class HttpBackend(Backend):
    """An HTTP/1.1 service with scripted answers.

    A test registers a handler per path with `on`. Paths that begin with a built-in name are
    answered without: `/hello`, `/echo` (the body back), `/hash` (length and SHA-256 of the
    body), `/bytes?n=N` (`pattern(N)`, known length), `/events?n=N` (N numbered SSE events),
    `/head` (the raw request head as the body), `/hang` (no answer until the caller leaves).
    """

    def __init__(self, port: int | None = None) -> None:
        super().__init__(port)
        self.requests: list[Request] = []
        self._routes: dict[str, Handler] = {}
        self._builtin: dict[str, Handler] = {
            "hello": lambda x: x.reply(b"hello"),
            "echo": _echo,
            "hash": _hash,
            "bytes": _bytes,
            "events": _events,
            "head": lambda x: x.reply(x.request.raw),
            "hang": _hang,
        }

    def on(self, path: str, handler: Handler) -> None:
        """Let `handler` answer requests for `path` (without query)."""
        self._routes[path] = handler

    def forget(self) -> None:
        super().forget()
        self.requests.clear()
        self._routes.clear()

    def seen(self, path: str) -> list[Request]:
        """Requests for `path` so far."""
        return [request for request in self.requests if request.path == path]

    async def saw(self, path: str, count: int = 1, limit_s: float = PATIENCE_S) -> list[Request]:
        """Wait for `count` requests for `path`."""
        await until(lambda: len(self.seen(path)) >= count, f"{count} requests for {path}", limit_s)
        return self.seen(path)

    async def run(self, pipe: Pipe) -> None:
        try:
            while True:
                head = await pipe.read_until(b"\r\n\r\n", HEAD_LIMIT)
                if not head:
                    return
                exchange = Exchange(pipe, self._parse(head))
                self.requests.append(exchange.request)
                await self._handler(exchange.request)(exchange)
                if exchange.taken_over:
                    return
                async for _ in exchange.chunks():
                    pass
                if not exchange.keep:
                    return
        except Gone:
            pass  # Callers that leave are part of many tests; `Pipe.gone` tells them.
        except Malformed as error:
            self.complaints.append(f"{error} in {bytes(pipe.raw[:600])!r}")
        finally:
            pipe.close()

    @staticmethod
    def _parse(raw: bytes) -> Request:
        first, fields = parse_head(raw)
        parts = first.split(" ")
        if len(parts) != 3 or parts[2] not in ("HTTP/1.0", "HTTP/1.1"):
            raise Malformed(f"bad request line {first!r}")
        request = Request(parts[0], parts[1], parts[2], fields, raw)
        if request.version == "HTTP/1.1" and len(request.all("host")) != 1:
            raise Malformed(f"{len(request.all('host'))} Host fields")
        return request

    def _handler(self, request: Request) -> Handler:
        handler = self._routes.get(request.path)
        if handler is None:
            handler = self._builtin.get(request.path.strip("/").split("/")[0], _missing)
        return handler


async def _missing(x: Exchange) -> None:
    await x.reply(f"no handler for {x.request.path}", "418 No Handler")


async def _echo(x: Exchange) -> None:
    await x.reply(await x.body(), kind="application/octet-stream")


async def _hash(x: Exchange) -> None:
    size, digest = await x.body_hash()
    await x.reply_json({"size": size, "sha256": digest})


async def _bytes(x: Exchange) -> None:
    size = int(x.request.query["n"])
    await x.start(
        "200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
    )
    for piece in pattern(size):
        await x.send(piece)


async def _events(x: Exchange) -> None:
    await x.start_chunked()
    for number in range(int(x.request.query.get("n", "5"))):
        await x.chunk(sse(number))
    await x.end_chunks()


async def _hang(x: Exchange) -> None:
    await x.gone.wait()
    x.keep = False


def sse(number: int, text: str = "") -> bytes:
    """A numbered server-sent event."""
    return f"id: {number}\ndata: {text or f'event {number}'}\n\n".encode()


class Gate:
    """Lets a backend send event n+1 only after the test has received event n."""

    def __init__(self) -> None:
        self._seen = -1
        self._changed = asyncio.Event()
        self.sent = -1

    def received(self, number: int) -> None:
        """The test has event `number`."""
        self._seen = max(self._seen, number)
        self._changed.set()

    async def passed(self, number: int, limit_s: float = PATIENCE_S) -> None:
        """The backend sent event `number` and waits for the test to have it."""
        self.sent = number
        try:
            async with asyncio.timeout(limit_s):
                while self._seen < number:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise Gone(f"event {number} did not reach the caller in time") from None
