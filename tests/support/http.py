"""A raw HTTP/1.1 caller: sends bytes as told, reads answers strictly."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
LIMIT_S = 20.0


class Cut(AssertionError):
    """The answer ended before it was complete."""


class BadAnswer(AssertionError):
    """The answer breaks HTTP."""


@dataclass
class Head:
    """The head of an answer."""

    version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    raw: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None


@dataclass
class Answer:
    """A complete answer, with the interim ones before it."""

    head: Head
    body: bytes
    trailers: list[tuple[str, str]]
    interim: list[Head]
    framing: str

    @property
    def status(self) -> int:
        return self.head.status

    def get(self, name: str) -> str | None:
        return self.head.get(name)

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    path: str = "/hello",
    host: str = "llm.test",
    method: str = "GET",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    version: str = "1.1",
) -> bytes:
    """The bytes of a request; a body gets a Content-Length."""
    lines = [f"{method} {path} HTTP/{version}", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


@functools.cache
def trust(*protocols: str) -> ssl.SSLContext:
    """The TLS of a caller who verifies nothing and offers these protocols."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


class Caller:
    """One connection to a server, seen from outside.

    Every read has a limit (`LIMIT_S` unless told), so that a hang is a failure that says where.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit_s: float
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.limit_s = limit_s
        self.interim: list[Head] = []
        self.trailers: list[tuple[str, str]] = []
        self._framing = "none"
        self._left = 0

    @classmethod
    async def open(
        cls,
        port: int,
        *,
        limit_s: float = LIMIT_S,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
        name: str | None = None,
    ) -> Caller:
        """Connect to loopback `port`, over TLS if there is a context, asking for `name`."""
        raw = socket.socket()
        raw.setblocking(False)
        try:
            if receive_buffer is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(limit_s):
                await asyncio.get_running_loop().sock_connect(raw, (HOST, port))
        except BaseException:
            raw.close()
            raise
        reader, writer = await asyncio.open_connection(
            sock=raw, limit=256 * 1024, ssl=tls, server_hostname=(name or "") if tls else None
        )
        return cls(reader, writer, limit_s)

    # --- sending ----------------------------------------------------------------------

    async def send(self, data: bytes, splits: Iterable[int] = (), pause_s: float = 0.0) -> None:
        """Send `data`, as separate segments cut at the offsets in `splits`.

        Args:
            pause_s: Time between segments; it is a stimulus (so that they are not read as
                one), nothing waits for its end.
        """
        cuts = [0, *sorted(splits), len(data)]
        for index, (start, end) in enumerate(itertools.pairwise(cuts)):
            if index:
                await asyncio.sleep(pause_s)
            self.writer.write(data[start:end])
            async with asyncio.timeout(self.limit_s):
                await self.writer.drain()

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        self.writer.write_eof()

    # --- reading ----------------------------------------------------------------------

    async def read_head(self) -> Head:
        """The next head, interim or final."""
        try:
            async with asyncio.timeout(self.limit_s):
                raw = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise Cut(f"closed before a head was complete: {error.partial[:300]!r}") from None
        except ConnectionError as error:
            raise Cut(f"lost before a head was complete: {error!r}") from None
        except TimeoutError:
            raise AssertionError(f"no head within {self.limit_s:g} s") from None
        return _parse(raw)

    async def begin(self, method: str = "GET") -> Head:
        """Read up to the final head and get ready for its body."""
        self.interim = []
        self.trailers = []
        while True:
            head = await self.read_head()
            if head.status >= 200 or head.status == 101:
                break
            self.interim.append(head)
        self._frame(head, method)
        return head

    def _frame(self, head: Head, method: str) -> None:
        lengths, codings = head.all("content-length"), head.all("transfer-encoding")
        if lengths and codings:
            raise BadAnswer(f"both framings: {head.raw!r}")
        if method == "HEAD" or head.status in (204, 304):
            self._framing = "none"
        elif head.status == 101 or (method == "CONNECT" and head.status == 200):
            self._framing = "close"
        elif codings:
            if [c.lower() for c in codings] != ["chunked"]:
                raise BadAnswer(f"Transfer-Encoding {codings!r}")
            self._framing = "chunked"
            self._left = 0
        elif lengths:
            if len(lengths) != 1 or not lengths[0].isdigit():
                raise BadAnswer(f"Content-Length {lengths!r}")
            self._framing, self._left = "length", int(lengths[0])
            if not self._left:
                self._framing = "none"
        else:
            self._framing = "close"

    async def read(self) -> bytes:
        """Next piece of the body, b"" at its proper end.

        Raises:
            Cut: when it ended improperly.
        """
        try:
            async with asyncio.timeout(self.limit_s):
                return await self._read()
        except asyncio.IncompleteReadError as error:
            raise Cut(f"closed inside the body: {error.partial[-100:]!r}") from None
        except ConnectionError as error:
            raise Cut(f"lost inside the body: {error!r}") from None
        except TimeoutError:
            raise AssertionError(f"nothing of the body within {self.limit_s:g} s") from None

    async def _read(self) -> bytes:
        if self._framing == "none":
            return b""
        if self._framing == "close":
            return await self.reader.read(65536)
        if self._framing == "length":
            data = await self.reader.read(min(self._left, 65536))
            if not data:
                raise Cut(f"closed {self._left} bytes early")
            self._left -= len(data)
            if not self._left:
                self._framing = "none"
            return data
        if not self._left:
            line = await self.reader.readuntil(b"\r\n")
            try:
                self._left = int(line.partition(b";")[0].strip(), 16)
            except ValueError:
                raise BadAnswer(f"chunk size {line!r}") from None
            if not self._left:
                await self._read_trailers()
                self._framing = "none"
                return b""
        data = await self.reader.read(min(self._left, 65536))
        if not data:
            raise Cut("closed inside a chunk")
        self._left -= len(data)
        if not self._left and await self.reader.readexactly(2) != b"\r\n":
            raise BadAnswer("no CRLF after a chunk")
        return data

    async def _read_trailers(self) -> None:
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line[:-2].partition(b":")
            self.trailers.append((name.decode("latin-1"), value.strip().decode("latin-1")))

    async def echoed(self, data: bytes) -> None:
        """Send `data`, and read the same bytes back meanwhile."""
        _, echoed = await asyncio.gather(self.send(data), self.exactly(len(data)))
        assert hashlib.sha256(echoed).digest() == hashlib.sha256(data).digest()

    async def exactly(self, size: int) -> bytes:
        """`size` raw bytes, whatever they mean."""
        try:
            async with asyncio.timeout(self.limit_s):
                return await self.reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise Cut(f"closed after {len(error.partial)} of {size} bytes") from None
        except TimeoutError:
            raise AssertionError(f"not {size} bytes within {self.limit_s:g} s") from None

    async def read_event(self, pending: bytearray) -> bytes:
        """Next SSE event with its blank line; `pending` keeps what came too much."""
        while (at := pending.find(b"\n\n")) < 0:
            data = await self.read()
            if not data:
                raise Cut(f"the body ended inside an event: {bytes(pending)!r}")
            pending += data
        event = bytes(pending[: at + 2])
        del pending[: at + 2]
        return event

    async def rest(self) -> bytes:
        """What is left of the body."""
        pieces = []
        while data := await self.read():
            pieces.append(data)
        return b"".join(pieces)

    async def rest_hash(self) -> tuple[int, str]:
        """Length and SHA-256 of what is left of the body."""
        digest, size = hashlib.sha256(), 0
        while data := await self.read():
            digest.update(data)
            size += len(data)
        return size, digest.hexdigest()

    async def answer(self, method: str = "GET") -> Answer:
        """Read one complete answer."""
        head = await self.begin(method)
        framing = self._framing
        body = await self.rest()
        return Answer(head, body, self.trailers, self.interim, framing)

    async def get(self, path: str = "/hello", host: str = "llm.test", **more: Any) -> Answer:
        """Send a request and read its answer."""
        await self.send(request(path, host, **more))
        return await self.answer(more.get("method", "GET"))

    async def at_end(self, limit_s: float | None = None) -> bool:
        """Wait for the server to close; True if it did so cleanly with nothing more to say."""
        limit_s = self.limit_s if limit_s is None else limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await self.reader.read(65536) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            raise AssertionError(f"the server kept the connection for {limit_s:g} s") from None

    async def everything(self) -> bytes:
        """All bytes until the server closes, raw."""
        pieces = []
        try:
            async with asyncio.timeout(self.limit_s):
                while data := await self.reader.read(65536):
                    pieces.append(data)
        except OSError:
            pass  # A reset ends the answer as well; what came before it counts.
        except TimeoutError:
            raise AssertionError(
                f"no end within {self.limit_s:g} s; so far {b''.join(pieces)[:300]!r}"
            ) from None
        return b"".join(pieces)

    # --- leaving ----------------------------------------------------------------------

    async def close(self) -> None:
        """Close both directions."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # It was lost before; that is closed enough.

    async def reset(self) -> None:
        """Leave with a TCP reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _parse(raw: bytes) -> Head:
    lines = raw[:-4].split(b"\r\n")
    parts = lines[0].split(b" ", 2)
    if len(parts) < 2 or parts[0] not in (b"HTTP/1.0", b"HTTP/1.1") or not parts[1].isdigit():
        raise BadAnswer(f"status line {lines[0]!r}")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise BadAnswer(f"field line {line!r}")
        headers.append((name.decode("latin-1"), value.strip().decode("latin-1")))
    reason = parts[2].decode("latin-1") if len(parts) > 2 else ""
    return Head(parts[0].decode(), int(parts[1]), reason, headers, raw)


@asynccontextmanager
async def calling(port: int, **options: Any) -> AsyncIterator[Caller]:
    """A caller that is closed on leaving."""
    caller = await Caller.open(port, **options)
    try:
        yield caller
    finally:
        await caller.close()


async def fetch(port: int, path: str = "/hello", host: str = "llm.test", **more: Any) -> Answer:
    """One request on a connection of its own."""
    async with calling(port) as caller:
        return await caller.get(path, host, **more)
