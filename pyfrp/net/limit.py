"""Bandwidth limits: an endpoint whose bytes wait for credit, and who gives it.

Nothing sleeps here. Bytes for which there is credit pass at once. The others are held, their source
is paused, and one timer per proxy lets them go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from pyfrp.net.endpoint import Endpoint, OnLink, end_writing
from pyfrp.wire.bucket import Bucket


class Limiter:
    """The limit of one proxy.

    Args:
        rate: Bytes per second, of all connections and both directions together.
        loop: Whose clock and timers are used; the running one if not given.
    """

    def __init__(self, rate: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._bucket = Bucket(rate, self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self._serving = False

    def limit(self, link: Endpoint, early: bytes) -> Endpoint:
        """Put the limit on a paused endpoint; `early` was read from it and waits as well."""
        return LimitedEndpoint(link, self, early)

    def unread(self, endpoint: Endpoint) -> int:
        """Bytes that an endpoint of `limit` has received and not delivered."""
        return cast(LimitedEndpoint, endpoint).unread

    def soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back in the next turn of the loop."""
        self._loop.call_soon(callback, *args)

    def take(self, size: int) -> int:
        """See `Bucket.take`."""
        return self._bucket.take(size, self._loop.time())

    def join(self, lane: Lane) -> None:
        """Wait for credit; `lane.release` will be called."""
        self._bucket.join(lane)
        if self._timer is None and not self._serving:
            self._arm()

    def leave(self, lane: Lane) -> None:
        """Wait no longer."""
        self._bucket.leave(lane)
        if self._timer is not None and not self._bucket:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        when = self._bucket.wake_at(self._loop.time())
        self._timer = None if when is None else self._loop.call_at(when, self._serve)

    def _serve(self) -> None:
        self._timer = None
        self._serving = True
        try:
            self._bucket.serve(self._loop.time())
        finally:
            # Also when one connection's reader failed: the others wait for their turn.
            self._serving = False
            self._arm()


class Lane:
    """One direction of a limited connection.

    Args:
        pass_on: Takes what there is credit for.
        on_empty: Called when the last of what was held has been passed on.

    Attributes:
        held: Bytes that wait, for credit or because the lane is stopped.
        stopped: Whether whoever takes the bytes has said that it takes no more for now.
    """

    __slots__ = (
        "_chunks",
        "_closed",
        "_limiter",
        "_offset",
        "_on_empty",
        "_pass_on",
        "_passing",
        "held",
        "stopped",
    )

    def __init__(
        self,
        limiter: Limiter,
        pass_on: Callable[[bytes], None],
        on_empty: Callable[[], None],
        *,
        early: bytes = b"",
        stopped: bool = False,
    ) -> None:
        self._limiter = limiter
        self._pass_on = pass_on
        self._on_empty = on_empty
        self._chunks: deque[bytes] = deque([early] if early else ())
        self._offset = 0  # How much of the first chunk has been passed on.
        self._passing = False
        self._closed = False
        self.held = len(early)
        self.stopped = stopped

    def put(self, data: bytes) -> None:
        """Pass on `data` as far as there is credit, and hold the rest."""
        size = 0
        if not self.held and not self.stopped:
            size = self._limiter.take(len(data))
            if size == len(data):
                self._pass_on(data)
                return
        if self._closed or not data:
            return
        self._chunks.append(data)
        # Before anything is passed on: what comes in return has to queue up behind it.
        self.held += len(data)
        if size:
            self.release(size)
        elif not self.stopped:
            self._limiter.join(self)

    def release(self, size: int) -> None:
        """Pass on `size` bytes, for which credit was taken."""
        data = self._cut(size)
        self._passing = True
        try:
            self._pass_on(data)
        finally:
            self._passing = False
        if self._closed:
            return
        if not self.held:
            self._on_empty()
        elif not self.stopped:
            self._limiter.join(self)

    def stop(self) -> None:
        """Hold everything, credit or not."""
        self.stopped = True
        if self.held:
            self._limiter.leave(self)

    def go_on(self) -> None:
        """Pass on again, beginning with what is held."""
        if self._closed:
            return
        self.stopped = False
        if not self.held or self._passing:
            return
        size = self._limiter.take(self.held)
        if size:
            self.release(size)
        else:
            self._limiter.join(self)

    def close(self) -> None:
        """Drop what is held and whatever still comes."""
        self._closed = self.stopped = True
        self._chunks.clear()
        self.held = 0
        self._limiter.leave(self)

    def _cut(self, size: int) -> bytes:
        """The first `size` of the bytes that are held."""
        chunks = self._chunks
        self.held -= size
        parts = []
        while size:
            start = self._offset
            part = chunks[0][start : start + size]
            parts.append(part)
            size -= len(part)
            self._offset += len(part)
            if self._offset == len(chunks[0]):
                chunks.popleft()
                self._offset = 0
        return parts[0] if len(parts) == 1 else b"".join(parts)


class LimitedEndpoint(OnLink, asyncio.Protocol):
    """An endpoint that carries no more than its limiter allows, in both directions.

    While bytes are held in one direction its source is paused, so no more than what was on its way
    is ever held. `close` and `write_eof` take effect when what was written before has left within
    the limit; `abort` drops it. The end of the link follows the bytes that came before it, unless
    the link was reset.

    Args:
        link: A paused endpoint; this becomes its protocol.
        early: Bytes already read from `link`.
    """

    __slots__ = (
        "_choked",
        "_closing",
        "_ended",
        "_finished",
        "_full",
        "_gone",
        "_in",
        "_limiter",
        "_link",
        "_lost",
        "_out",
        "_protocol",
    )

    def __init__(self, link: Endpoint, limiter: Limiter, early: bytes = b"") -> None:
        self._link = link
        self._limiter = limiter
        self._protocol: asyncio.Protocol = asyncio.Protocol()
        self._in = Lane(limiter, self._deliver, self._delivered, early=early, stopped=True)
        self._out = Lane(limiter, self._send, self._sent)
        self._full = False  # The link takes no more for now.
        self._choked = False  # Our protocol knows that we take no more for now.
        self._ended: bool | None = None  # The link sends no more; True when our protocol knows.
        self._gone = False  # The link is lost.
        self._finished = False  # `write_eof` was called,
        self._closing = False  # `close` or `abort`,
        self._lost = False  # and `connection_lost` of our protocol.
        link.set_protocol(self)

    # -- Endpoint ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)
        self._choked = False  # It has not been told, and is with its next write.

    def write(self, data: bytes) -> None:
        if self._closing or self._finished or self._gone:
            return
        self._out.put(data)
        self._pace()

    def write_eof(self) -> None:
        if self._finished or self._closing or self._gone:
            return
        self._finished = True
        if not self._out.held and not self._link.is_closing():
            end_writing(self._link)

    def can_write_eof(self) -> bool:
        return self._link.can_write_eof()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        reading = not self._in.stopped
        self._in.close()
        if self._gone:
            self._limiter.soon(self._lose, None)
        elif self._out.held:
            self._link.pause_reading()  # It is not worth reading; what is held goes out first.
        else:
            self._close_link(reading=reading)

    def abort(self) -> None:
        self._closing = True
        self._in.close()
        self._out.close()
        if self._gone:
            self._limiter.soon(self._lose, None)
        else:
            self._link.abort()

    def is_closing(self) -> bool:
        # What came before the link's end is still to be read.
        return self._closing or (self._link.is_closing() and not self._in.held)

    def pause_reading(self) -> None:
        self._in.stop()
        if not self._link.is_closing():
            self._link.pause_reading()

    def resume_reading(self) -> None:
        if self._closing:
            return
        if self._in.held:
            self._in.go_on()
        else:
            self._in.stopped = False
            self._read_on()

    def get_write_buffer_size(self) -> int:
        return self._out.held + self._link.get_write_buffer_size()

    @property
    def unread(self) -> int:
        """Bytes that have come and not been delivered."""
        return self._in.held

    # -- reading -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._in.put(data)
        if self._in.held and not self._link.is_closing():
            self._link.pause_reading()

    def _deliver(self, data: bytes) -> None:
        try:
            self._protocol.data_received(data)
        except Exception:
            # Not every caller of this would end the connection; who gets the exception reports it.
            self.abort()
            raise

    def _delivered(self) -> None:
        """All that came so far is with our protocol."""
        if self._ended is False:
            self._tell_end()
        if self._gone:
            self._lose(None)
        elif not self._in.stopped:
            self._read_on()

    def _read_on(self) -> None:
        if self._ended is None and not self._link.is_closing():
            self._link.resume_reading()

    def eof_received(self) -> bool:
        self._ended = False
        if not self._in.held and not self._closing:
            self._tell_end()
        # The link stays open for what is held; `_tell_end` closes it in time.
        return self._link.can_write_eof()

    def _tell_end(self) -> None:
        self._ended = True
        if not self._protocol.eof_received():
            self.close()

    # -- writing -------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if not self._link.is_closing():  # It ended, and will say so.
            self._link.write(data)

    def pause_writing(self) -> None:
        self._full = True
        self._out.stop()
        self._pace()

    def resume_writing(self) -> None:
        self._full = False
        self._out.go_on()
        self._pace()

    def _sent(self) -> None:
        """All that was written so far is with the link."""
        if self._closing:
            self._close_link(reading=True)
            return
        if self._finished and not self._link.is_closing():
            end_writing(self._link)
        self._pace()

    def _pace(self) -> None:
        """Tell our protocol when it should stop writing, and when to go on."""
        choked = self._full or self._out.held > 0
        if choked is self._choked or self._closing or self._gone:
            return
        self._choked = choked
        if choked:
            self._protocol.pause_writing()
        else:
            self._protocol.resume_writing()

    # -- the end -------------------------------------------------------------------------------

    def _close_link(self, *, reading: bool) -> None:
        self._out.close()
        if reading and not self._link.is_closing():
            # A mux stream that is closed with bytes unread is reset, and loses what was written.
            self._link.resume_reading()
        self._link.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._out.close()
        if exc is None and self._in.held:
            return  # `_delivered` goes on from here.
        self._in.close()
        self._lose(exc)

    def _lose(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        protocol, self._protocol = self._protocol, asyncio.Protocol()
        protocol.connection_lost(exc)
