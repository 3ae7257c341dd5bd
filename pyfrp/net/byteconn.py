"""Conversations in plain bytes on any endpoint: before a bridge, or in place of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyfrp.errors import PeerClosed
from pyfrp.net.endpoint import HIGH_WATER, LOW_WATER, Endpoint, end_writing, reset

# What may wait here for its reader. Up to that the endpoint is read all the time, also when nobody
# waits for bytes, so that its end is seen at once.
READ_AHEAD_BYTES = 64 * 1024


class ByteConn(asyncio.Protocol):
    """`await more()`, `take()`, `write()` and `drain()` on an endpoint that can be handed on.

    One coroutine reads at a time. Deadlines are the caller's (`asyncio.timeout_at`).

    Args:
        endpoint: A paused endpoint; this becomes its protocol.
        early: Bytes already read from it.
        ended: Whether its EOF came before, too.

    Attributes:
        buffer: What came and was not taken.
        ended: Whether the far end has sent all that it will send.
        finished: Whether it has said so itself, and nothing was cut off.
        lost: Whether the connection is gone, in both directions.
        received: Bytes so far, those of `early` included.
        on_data: While set, takes what comes in place of `buffer`.
        on_end: Called when the far end has said that it sends no more.
        on_lost: Called when the connection is gone.
        on_choke: Called with True when the far end stops reading, with False when it goes on.
    """

    def __init__(self, endpoint: Endpoint, *, early: bytes = b"", ended: bool = False) -> None:
        self.endpoint = endpoint
        self.buffer = bytearray(early)
        self.received = len(early)
        self.ended = ended
        self.finished = ended
        self.lost = False
        self.on_data: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_choke: Callable[[bool], None] | None = None
        self._held = False
        self._paused = True
        self._choked = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._gone = asyncio.get_running_loop().create_future()
        endpoint.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        endpoint.set_protocol(self)
        if endpoint.is_closing():
            # It was lost before this was its protocol, and reports to nobody.
            self.connection_lost(None)
        else:
            self._pace()

    # -- reading -------------------------------------------------------------------------------

    async def more(self) -> bool:
        """Wait for bytes to be added to `buffer`; False when none can come any more."""
        size = self.received
        while self.received == size:
            if self.ended or self.lost:
                return False
            self._reader = asyncio.get_running_loop().create_future()
            self._pace()
            try:
                if self.received == size:  # A filter may deliver what it has at once.
                    await self._reader
            finally:
                self._reader = None
        return True

    async def exactly(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            PeerClosed: when the far end ended before.
        """
        while len(self.buffer) < size:
            if not await self.more():
                raise PeerClosed("the peer closed the connection")
        return self.take(size)

    def take(self, size: int) -> bytes:
        """The first `size` bytes of `buffer`, or all if there are fewer."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        self._pace()
        return data

    def hold(self, on: bool) -> None:
        """Read nothing while `on`, because what takes the bytes is full."""
        self._held = on
        self._pace()

    def divert(self, sink: Callable[[bytes], None]) -> None:
        """Let `sink` take what waits in `buffer`, and then as `on_data` what comes.

        Not with `take`: that lets the endpoint go on, and what it delivers at once would overtake.
        """
        data = bytes(self.buffer)
        self.buffer.clear()
        self.on_data = sink
        if data:
            sink(data)
        self._pace()

    def _pace(self) -> None:
        """Pause or resume the endpoint as the buffer asks for."""
        full = self._held or (len(self.buffer) >= READ_AHEAD_BYTES and self._reader is None)
        if full is self._paused or self.lost or self.endpoint.is_closing():
            return
        self._paused = full
        if full:
            self.endpoint.pause_reading()
        else:
            self.endpoint.resume_reading()

    # -- writing -------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send `data`; after the end of the connection it is dropped."""
        if data and not self.lost:
            self.endpoint.write(data)

    def write_eof(self) -> None:
        """Say that nothing more will be written, where the endpoint can say so."""
        if not self.lost and not self.endpoint.is_closing() and self.endpoint.can_write_eof():
            end_writing(self.endpoint)

    async def drain(self) -> None:
        """Wait until the far end reads again, if it has stopped.

        Raises:
            PeerClosed: when the connection is gone, so that nobody goes on writing to it.
        """
        while self._choked and not self.lost:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self.lost or self.endpoint.is_closing():
            raise PeerClosed("the connection was closed")

    # -- the end -------------------------------------------------------------------------------

    def detach(self) -> tuple[Endpoint, bytes]:
        """Give up the endpoint, paused, and the bytes that were not taken; `ended` goes with them.

        Raises:
            PeerClosed: when the connection is gone by now.
        """
        if self.lost or self.endpoint.is_closing():
            raise PeerClosed("the connection was closed")
        self._held = True
        self._pace()
        return self.endpoint, bytes(self.buffer)

    def close(self) -> None:
        """Send what is pending, then close; what still comes is dropped."""
        self.on_data = _drop
        self.buffer.clear()
        self._wake()
        if not self.lost:
            # A mux stream that is closed with bytes unread is reset, and loses what was written.
            self.hold(False)
            self.endpoint.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        if not self.lost:  # A mux stream that has ended in order would be reset after all.
            self.endpoint.abort()
        self._wake()

    def reset(self) -> None:
        """Drop the connection so that the far end cannot take it for an orderly end."""
        if not self.lost:
            reset(self.endpoint)
        self._wake()

    async def finish(self, limit_s: float) -> None:
        """Close, and wait for the far end to take what is pending, but not for ever."""
        self.close()
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(self._gone)
        except TimeoutError:
            pass  # It does not read; it loses what it did not read.
        finally:
            self.abort()

    # -- Protocol ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.on_data is not None:
            self.on_data(data)
            return
        self.buffer += data
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        elif len(self.buffer) >= READ_AHEAD_BYTES:
            self._pace()

    def eof_received(self) -> bool:
        self.ended = self.finished = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if self.on_end is not None:
            self.on_end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._wake()
        if self.on_lost is not None:
            self.on_lost()
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        self._choked = True
        if self.on_choke is not None:
            self.on_choke(True)

    def resume_writing(self) -> None:
        self._choked = False
        if self.on_choke is not None:
            self.on_choke(False)
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _wake(self) -> None:
        """Let go whoever waits: nothing will come, or leave."""
        self.ended = True
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


def _drop(data: bytes) -> None:
    """Where bytes go that nobody wants."""
