"""Ends of connections for tests: real sockets with a reader that notes, and pairs in memory."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.support.waiting import until, within

LIMIT_S = 10.0


class Reader(asyncio.Protocol):
    """Notes everything that an endpoint tells its protocol.

    Args:
        keep_open: What `eof_received` answers.
    """

    def __init__(self, *, keep_open: bool = True) -> None:
        self.data = bytearray()
        self.events: list[str] = []
        self.ends = 0
        self.lost: list[BaseException | None] = []
        self.choked = False
        self.pauses = 0
        self.keep_open = keep_open
        self.on_data: Callable[[bytes], None] | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data
        assert not self.lost, "data after the connection was lost"
        self.data += data
        if not self.events or self.events[-1] != "data":
            self.events.append("data")
        if self.on_data is not None:
            self.on_data(data)

    def eof_received(self) -> bool:
        self.ends += 1
        self.events.append("eof")
        return self.keep_open

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.append(exc)
        self.events.append("lost")

    def pause_writing(self) -> None:
        assert not self.choked
        self.choked = True
        self.pauses += 1

    def resume_writing(self) -> None:
        assert self.choked
        self.choked = False

    async def until_data(self, size: int, limit_s: float = LIMIT_S) -> bytes:
        await until(lambda: len(self.data) >= size, f"{size} bytes, not {len(self.data)}", limit_s)
        return bytes(self.data)

    async def until_ended(self, limit_s: float = LIMIT_S) -> None:
        await until(lambda: self.ends, "the end of the far side", limit_s)

    async def until_lost(self, limit_s: float = LIMIT_S) -> BaseException | None:
        await until(lambda: self.lost, "the loss of the connection", limit_s)
        return self.lost[0]


@asynccontextmanager
async def tcp_pair() -> AsyncIterator[tuple[Any, Any]]:
    """Two transports of one TCP connection on loopback; their protocols are Readers."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[Any] = asyncio.Queue()

    class Accepting(Reader):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.put_nowait(transport)

    server = await loop.create_server(Accepting, "127.0.0.1", 0)
    near = far = None
    try:
        port = server.sockets[0].getsockname()[1]
        near, _ = await loop.create_connection(Reader, "127.0.0.1", port)
        far = await within(accepted.get(), LIMIT_S, "the accepted connection")
        yield near, far
    finally:
        server.close()
        for transport in (near, far):
            if transport is not None:
                transport.abort()


class RawPeer:
    """A blocking-free plain socket at the far end, for resets and slow reading.

    Args:
        sock: Connected; this closes it.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        await within(loop.sock_sendall(self.sock, data), LIMIT_S, "sending")

    async def receive(self, size: int = 65536) -> bytes:
        loop = asyncio.get_running_loop()
        return await within(loop.sock_recv(self.sock, size), LIMIT_S, "receiving")

    async def receive_all(self) -> bytes:
        """Everything up to the end; raises ConnectionResetError for a reset."""
        parts = []
        while part := await self.receive():
            parts.append(part)
        return b"".join(parts)

    async def receive_exactly(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            part = await self.receive(size - len(got))
            assert part, f"the end after {len(got)} of {size} bytes"
            got += part
        return got

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00" + bytes(4))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


@asynccontextmanager
async def tcp_to_raw(
    protocol: Callable[[], asyncio.BaseProtocol] = Reader,
) -> AsyncIterator[tuple[Any, RawPeer]]:
    """A transport of the loop, and the plain socket at its other end."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near_sock = socket.create_connection(listener.getsockname())
        far_sock, _ = listener.accept()
    near_sock.setblocking(False)
    peer = RawPeer(far_sock)
    transport, _ = await loop.create_connection(protocol, sock=near_sock)
    try:
        yield transport, peer
    finally:
        transport.abort()
        peer.close()


# -- in memory ----------------------------------------------------------------------------------

_EOF = object()


class MemoryEnd:
    """One end of a connection in memory, as strict as uvloop: no write after `write_eof` or loss.

    Bytes arrive in a later turn of the loop, in the pieces in which they were written. As long as
    the far end has more than `high` bytes unread, the writer is told to pause.
    """

    def __init__(self, *, can_end: bool = True) -> None:
        self.far: MemoryEnd = self
        self.loop = asyncio.get_running_loop()
        self.high = 256 * 1024
        self.low = 64 * 1024
        self.unread = 0
        self.paused = False
        self.aborted = False
        self.written = bytearray()
        self.extra: dict[str, Any] = {"peername": ("203.0.113.7", 4711)}
        self._can_end = can_end
        self._protocol: Any = None
        self._inbox: deque[Any] = deque()
        self._scheduled = False
        self._closing = False
        self._lost = False
        self._sent_eof = False
        self._got_eof = False
        self._choked = False

    # Endpoint:

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def write(self, data: bytes) -> None:
        if self._lost:
            raise RuntimeError("unable to perform operation; the handler is closed")
        if self._sent_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._closing or not data:
            return
        self.written += data
        self.far._put(bytes(data))
        if self.far.unread > self.high and not self._choked:
            self._choked = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        if self._lost:
            raise RuntimeError("unable to perform operation; the handler is closed")
        assert self._can_end
        if not self._sent_eof:
            self._sent_eof = True
            self.far._put(_EOF)

    def can_write_eof(self) -> bool:
        return self._can_end

    def close(self) -> None:
        if self._closing:
            return
        if not self._sent_eof:
            self._sent_eof = True
            self.far._put(_EOF)
        self._closing = True
        self.loop.call_soon(self.lose, None)

    def abort(self) -> None:
        self.aborted = True
        if self._lost:
            return
        self._closing = True
        self.loop.call_soon(self.lose, None)
        self.loop.call_soon(self.far.lose, ConnectionResetError("reset by the far end"))

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        self._schedule()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.extra.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high if high is not None else self.high
        self.low = low if low is not None else self.low

    def get_write_buffer_size(self) -> int:
        return self.far.unread

    # Within:

    def _put(self, item: Any) -> None:
        if self._closing:
            return
        self._inbox.append(item)
        if item is not _EOF:
            self.unread += len(item)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._inbox and not self.paused:
            self._scheduled = True
            self.loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        while self._inbox and not self.paused and not self._closing:
            item = self._inbox.popleft()
            if item is _EOF:
                self._got_eof = True
                if not self._protocol.eof_received():
                    self.close()
                return
            self.unread -= len(item)
            self._protocol.data_received(item)
            if self.far._choked and self.unread <= self.far.low:
                self.far._choked = False
                if not self.far._lost:
                    self.loop.call_soon(self.far._resume)

    def _resume(self) -> None:
        if not self._choked and not self._lost:
            self._protocol.resume_writing()

    def lose(self, exc: BaseException | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._inbox.clear()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(exc)


def memory_pair(**settings: Any) -> tuple[MemoryEnd, MemoryEnd]:
    """Two ends in memory, with Readers as their protocols."""
    near, far = MemoryEnd(**settings), MemoryEnd(**settings)
    near.far, far.far = far, near
    near.set_protocol(Reader())
    far.set_protocol(Reader())
    return near, far


async def turns(count: int = 20) -> None:
    """Let the loop run for some turns: enough for anything in memory to settle."""
    for _ in range(count):
        await asyncio.sleep(0)
