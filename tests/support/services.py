"""Plain services behind the tunnel, and the base of all of them.

A `Pipe` is one accepted connection with the exact bytes that it received and the moment when its
peer left. A `Backend` is a listener with its connections.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from tests.support.ports import free_port
from tests.support.waiting import until, within

HOST = "127.0.0.1"
RAW_LIMIT = 2 * 1024 * 1024
HIGH_WATER = 512 * 1024

_dice = random.Random(20250722)
BLOCK = _dice.randbytes(1024 * 1024)


def pattern(size: int) -> Iterable[bytes]:
    """`size` bytes that do not compress, in pieces of at most 64 KiB; equal on each call."""
    step = 64 * 1024
    sent = 0
    while sent < size:
        start = sent % len(BLOCK)
        piece = BLOCK[start : start + min(step, size - sent)]
        yield piece
        sent += len(piece)


def pattern_hash(size: int) -> str:
    """SHA-256 of what `pattern` gives, in hex."""
    digest = hashlib.sha256()
    for piece in pattern(size):
        digest.update(piece)
    return digest.hexdigest()


class Gone(ConnectionError):
    """The peer of a backend connection went away."""


class Malformed(Exception):
    """The backend was sent something that a careful proxy never sends."""


class Pipe(asyncio.Protocol):
    """One accepted connection with everything that it received, and when it ended."""

    def __init__(self, owner: Backend) -> None:
        self.owner = owner
        self.raw = bytearray()
        self.received = 0
        self.buffer = bytearray()
        self.eof = False
        self.lost = False
        self.lost_error: Exception | None = None
        self.gone = asyncio.Event()
        self.peer_closed_at: float | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False
        self.loop = asyncio.get_running_loop()

    # --- callbacks --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=256 * 1024, low=64 * 1024)
        self.owner.pipes.append(self)
        self.owner.opened += 1
        self.task = self.loop.create_task(self.owner.run(self), name="backend connection")
        self.owner.tasks.add(self.task)
        self.task.add_done_callback(self.owner.tasks.discard)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if len(self.raw) < RAW_LIMIT:
            self.raw += data
        self.buffer += data
        if len(self.buffer) > HIGH_WATER and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._readable.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._left()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.lost_error = exc
        self._left()
        self._writable.set()

    def _left(self) -> None:
        if self.peer_closed_at is None:
            self.peer_closed_at = self.loop.time()
        self.gone.set()
        self._readable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- for handlers -----------------------------------------------------------------

    async def more(self) -> bool:
        """Wait for more bytes in `buffer`; False when none will come."""
        if self.eof or self.lost:
            return False
        self._readable.clear()
        if self._paused and len(self.buffer) < HIGH_WATER:
            self._paused = False
            self.transport.resume_reading()
        await self._readable.wait()
        return not (self.eof or self.lost) or bool(self.buffer)

    async def read_some(self) -> bytes:
        """The next bytes, or b"" at the end."""
        while not self.buffer:
            if not await self.more():
                if self.buffer:
                    break
                return b""
        data = bytes(self.buffer)
        self.buffer.clear()
        return data

    async def read_until(self, end: bytes, limit: int) -> bytes:
        """Bytes up to and with `end`; b"" if the peer left before the first byte."""
        while True:
            at = self.buffer.find(end)
            if at >= 0:
                return self.take(at + len(end))
            if len(self.buffer) > limit:
                raise Malformed(f"no {end!r} within {limit} bytes")
            if not await self.more() and self.buffer.find(end) < 0:
                if not self.buffer:
                    return b""
                raise Gone(f"the peer left in the middle: {bytes(self.buffer[:200])!r}")

    async def read_exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            if not await self.more() and len(self.buffer) < size:
                raise Gone(f"the peer left {size - len(self.buffer)} bytes early")
        return self.take(size)

    def take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def send(self, data: bytes) -> None:
        """Write and wait until the kernel has most of it.

        Raises:
            Gone: when the connection is lost.
        """
        if self.lost:
            raise Gone("the connection is lost")
        self.transport.write(data)
        await self._writable.wait()
        if self.lost:
            raise Gone("the connection is lost")

    def write_eof(self) -> None:
        if not self.lost and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def reset(self) -> None:
        """End with a TCP reset instead of a FIN."""
        raw = self.transport.get_extra_info("socket")
        if raw is not None and not self.lost:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Backend:
    """Base of the services: a listener, its connections, and their tasks.

    Attributes:
        tls: Set before the start, it is what the service speaks.
    """

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.tls: ssl.SSLContext | None = None
        self.pipes: list[Pipe] = []
        self.opened = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.complaints: list[str] = []
        self._server: asyncio.Server | None = None

    async def run(self, pipe: Pipe) -> None:
        """Serve one connection; close it on leaving."""
        raise NotImplementedError

    async def start(self, backlog: int = 2048) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Pipe(self),
            HOST,
            self.port,
            backlog=backlog,
            reuse_address=True,
            ssl=self.tls,
        )

    @property
    def listening(self) -> bool:
        return self._server is not None

    @property
    def live(self) -> list[Pipe]:
        """Connections that neither end has closed completely."""
        return [pipe for pipe in self.pipes if not pipe.lost]

    async def refuse(self) -> None:
        """Stop listening; connections that exist go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        await self.refuse()
        for task in list(self.tasks):
            task.cancel()
        for pipe in self.live:
            pipe.transport.abort()
        await until(lambda: not self.live and not self.tasks, "the backend to stop")

    def forget(self) -> None:
        """Drop the records of connections that have ended."""
        self.pipes = self.live
        self.complaints.clear()

    def descriptors(self) -> set[int]:
        """Descriptors in use, for checks that look for leaks of others."""
        found = set()
        for pipe in self.live:
            raw = pipe.transport.get_extra_info("socket")
            if raw is not None:
                found.add(raw.fileno())
        if self._server is not None:
            found.update(listener.fileno() for listener in self._server.sockets)
        return found


# --- plain TCP --------------------------------------------------------------------------


class EchoBackend(Backend):
    """Sends back what it gets; at the end of input it ends its output too."""

    async def run(self, pipe: Pipe) -> None:
        try:
            while data := await pipe.read_some():
                await pipe.send(data)
            pipe.write_eof()
        except Gone:
            pass
        finally:
            pipe.close()


class ScriptBackend(Backend):
    """Runs a coroutine for each connection."""

    def __init__(self, script: Callable[[Pipe], Awaitable[None]], port: int | None = None) -> None:
        super().__init__(port)
        self.script = script

    async def run(self, pipe: Pipe) -> None:
        try:
            await self.script(pipe)
        except Gone:
            pass
        finally:
            pipe.close()


@asynccontextmanager
async def running(*backends: Backend) -> AsyncIterator[None]:
    """Run backends; on leaving without an error no backend may have a complaint."""
    try:
        for backend in backends:
            await backend.start()
        yield
    finally:
        for backend in backends:
            await backend.stop()
    complaints = [text for backend in backends for text in backend.complaints]
    assert not complaints, "\n".join(complaints)


@asynccontextmanager
async def unix_echo(path: Path) -> AsyncIterator[None]:
    """A service at a socket in the file system that sends everything back."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()


async def peer_left(pipe: Pipe, limit_s: float, what: str = "the backend to see the end") -> None:
    """Wait until the far side of `pipe` has closed."""
    await within(pipe.gone.wait(), limit_s, what)
