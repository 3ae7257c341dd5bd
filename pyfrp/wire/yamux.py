"""One side of a yamux session, without I/O.

Wire format and rules: hashicorp/yamux `spec.md`; the values frp sets: frp `client/connector.go` and
`server/service.go` (`MaxStreamWindowSize` 6 MiB, keepalive 30 s). Where the specification leaves a
choice, the comment says what Go peers do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from pyfrp.errors import LocalWireError, MuxError
from pyfrp.wire.yamux_stream import (
    ACK,
    BATCH,
    BURST,
    CLOSE_TIMEOUT,
    DATA,
    FIN,
    FLAG_MASK,
    GATHERED,
    GO_AWAY,
    HEADER,
    HEADER_SIZE,
    INITIAL_WINDOW,
    KNOWN_FLAGS,
    LONG,
    MAX_WINDOW,
    OPEN_LIMIT,
    PING,
    PING_TIMEOUT,
    RECORD,
    RST,
    SHORT,
    SLICE,
    SYN,
    TYPE_MASK,
    WINDOW_BUDGET,
    WINDOW_UPDATE,
    Half,
    Stream,
)

__all__ = [
    "ACK",
    "BATCH",
    "BURST",
    "CLOSE_TIMEOUT",
    "DATA",
    "FIN",
    "GO_AWAY",
    "HEADER",
    "HEADER_SIZE",
    "INITIAL_WINDOW",
    "MAX_WINDOW",
    "OPEN_LIMIT",
    "PING",
    "PING_TIMEOUT",
    "RST",
    "SHORT",
    "SLICE",
    "SYN",
    "WINDOW_BUDGET",
    "WINDOW_UPDATE",
    "Half",
    "Session",
    "Stream",
]

S = TypeVar("S", bound=Stream)


class Session(Generic[S]):
    """One side of a yamux session.

    After `on_output` was called, the owner calls `take_output()` once per turn of its loop until it
    returns nothing, and re-arms its timer from `deadline()`.

    Args:
        client: True for the side that opens odd stream ids (spec.md, "StreamID Field").
        make_stream: `make_stream(session, stream_id)` builds a stream, for both sides' opens.
        on_stream: Called with each stream the peer opens, before any of its data.
        on_output: Called once when output appears where there was none.
        now: The present time, in seconds of the owner's monotonic clock.
        keepalive: Seconds of silence after which a ping is sent; 0 for never.
        budget: Bytes of window beyond the initial ones for all streams together.
        on_burst: Called when so many streams have output that it should not wait for the end of
            the turn: the far end can work on these while the others are still being read.
        on_pong: Called when a ping was answered: `deadline()` may be sooner than it was.
    """

    def __init__(
        self,
        *,
        client: bool,
        make_stream: Callable[[Session[S], int], S],
        on_stream: Callable[[S], None] | None,
        on_output: Callable[[], None],
        now: float,
        keepalive: float = 30.0,
        budget: int = WINDOW_BUDGET,
        on_burst: Callable[[], None] = lambda: None,
        on_pong: Callable[[], None] = lambda: None,
    ) -> None:
        self.streams: dict[int, S] = {}
        self._make_stream = make_stream
        self._on_stream = on_stream
        self._on_output = on_output
        self._on_burst = on_burst
        self._on_pong = on_pong
        self._next_id = 1 if client else 2
        self._peer_parity = 0 if client else 1
        self._budget = budget
        self._grown = 0
        self._keepalive = keepalive
        self.heard = now
        self._ping_sent: float | None = None
        self._ping_id = 0
        self._lingering: dict[int, float] = {}
        # Input: a partial header, or the rest of a data frame's body and where it goes.
        self._head = b""
        self._body_left = 0
        self._body_stream: S | None = None
        self._body_ends = False
        # Output: control frames go first, then the streams in turn.
        self._frames: list[bytes | memoryview] = []
        self._ready: deque[Stream] = deque()
        self._unacked = 0
        self._waiting: deque[Stream] = deque()
        self._awake = False
        # Pending bytes of a stream above which its source is told to pause. The owner sets it to 0
        # while the link does not drain, so that every source pauses after one more chunk.
        self.high_water = SLICE
        self.burst = BURST
        # Bytes that one output may hold. The owner lowers it while the link is slower than its
        # sources: what is in the link's buffer delays every other stream.
        self.batch = BATCH
        # A stream that waits for no turn, and for no room in the link: for messages that are few.
        self.first: S | None = None
        self.going_away = False  # The peer opens and accepts no more streams.
        self.closed = False

    # -- opening -------------------------------------------------------------------------------

    def open(self) -> S:
        """Open a stream; its SYN leaves with the next output, ahead of its data.

        Raises:
            LocalWireError: when the session is closed, going away, or out of stream ids.
        """
        if self.closed or self.going_away or self._next_id > 0xFFFFFFFF:
            raise LocalWireError("this mux session opens no more streams")
        stream = self._make_stream(self, self._next_id)
        self._next_id += 2
        stream._syn_due = True
        stream._acked = False
        self.streams[stream.id] = stream
        stream._queue()
        return stream

    # -- input ---------------------------------------------------------------------------------

    def feed(self, data: bytes | memoryview, now: float) -> None:
        """Take bytes from the link; of a view nothing is kept, so its buffer is free afterwards.

        Raises:
            MuxError: when the peer breaks a rule. The go-away frame is already queued: send the
                output, then drop the link.
        """
        self.heard = now
        try:
            if isinstance(data, memoryview):
                # The rest of a body, mostly: it is copied once, into what the stream is given. All
                # is copied before the stream has it, for its reader may cause the next reading.
                chunk, start = self._collect(data, 0) if self._body_left else (b"", 0)
                data = data[start:].tobytes()
                if chunk:
                    self._deliver(chunk)
            self._feed(data)
        except MuxError as exc:
            self._control(GO_AWAY, 0, exc.code)
            raise

    def _feed(self, data: bytes) -> None:
        if self._head:
            data = self._head + data
            self._head = b""
        pos = 0
        end = len(data)
        if self._body_left:
            pos = self._bodies(data, 0)
        streams = self.streams
        unpack = HEADER.unpack_from
        while end - pos >= HEADER_SIZE:
            word, stream_id, length = unpack(data, pos)
            pos += HEADER_SIZE
            if word:
                if word & TYPE_MASK:
                    self._on_control(word, stream_id, length)
                    continue
                self._on_data_flags(word, stream_id, length)
            stream = streams.get(stream_id)
            stop = pos + length
            # Fast path: a whole small data frame for a live stream within its credit.
            if stop <= end and stream is not None and 0 < length < GATHERED and not word:
                credit = stream._credit = stream._credit - length
                if credit < 0 or stream._in != Half.OPEN:
                    raise self._overrun(stream)
                if stream._holding:
                    self._keep(stream, data[pos:stop])
                else:
                    stream.on_data(data[pos:stop])
                    # Read again: a release within the callback has granted already.
                    if stream._credit <= stream._window >> 1 and stream._in == Half.OPEN:
                        stream._grant()
                pos = stop
                continue
            self._body_begin(stream, length, word)
            if length:
                pos = self._bodies(data, pos)
        if pos < end:
            self._head = data[pos:]

    def _body_begin(self, stream: S | None, length: int, word: int) -> None:
        if stream is not None and length and (stream._credit < length or stream._in != Half.OPEN):
            raise self._overrun(stream)
        self._body_left = length
        self._body_stream = stream
        self._body_ends = bool(word & FIN)
        if not length:
            self._body_done()

    def _bodies(self, data: bytes, pos: int) -> int:
        """Deliver a body from `pos` on, and with it those that follow; returns how far it got."""
        chunk, pos = self._collect(data, pos)
        self._deliver(chunk)
        return pos

    def _collect(self, data: bytes | memoryview, pos: int) -> tuple[bytes, int]:
        """Take a body from `pos` on, and with it those that follow for the same stream.

        Go peers send frames as long as the window, so a body is delivered in parts; and each piece
        is a write to a socket further on, so what came together is delivered in one.

        Returns:
            The bytes, and how far they went.
        """
        stream = self._body_stream
        end = len(data)
        left = self._body_left
        view = memoryview(data)
        pieces = []
        size = 0
        while True:
            stop = min(pos + left, end)
            pieces.append(view[pos:stop])
            size += stop - pos
            left -= stop - pos
            pos = stop
            if left or self._body_ends or stream is None or end - pos < HEADER_SIZE:
                break
            word, stream_id, length = HEADER.unpack_from(data, pos)
            if word or stream_id != stream.id or size + length > stream._credit:
                break
            pos += HEADER_SIZE
            left = length
        self._body_left = left
        return b"".join(pieces), pos

    def _deliver(self, chunk: bytes) -> None:
        """Hand on what was taken of the body that is being read."""
        stream = self._body_stream
        if chunk and stream is not None and stream._in == Half.OPEN:
            # Charged as it comes, so that a frame longer than half the window earns credit midway.
            stream._credit -= len(chunk)
            if stream._holding:
                self._keep(stream, chunk)
            else:
                stream.on_data(chunk)
                # Read again: a release within the callback has granted already.
                if stream._credit <= stream._window >> 1 and stream._in == Half.OPEN:
                    stream._grant()
        if not self._body_left:
            self._body_done()

    def _body_done(self) -> None:
        stream = self._body_stream
        self._body_stream = None
        if self._body_ends and stream is not None and stream._in != Half.RESET:
            self._on_fin(stream)
        self._body_ends = False

    def _keep(self, stream: S, chunk: bytes) -> None:
        held = stream._held
        if held is None:
            held = stream._held = deque()
        held.append(chunk)
        stream._held_size += len(chunk)
        if stream._credit < SLICE and stream._window > INITIAL_WINDOW:
            stream._shrink()

    def _overrun(self, stream: S) -> MuxError:
        if stream._in != Half.OPEN:
            return MuxError(f"stream {stream.id}: data after its end")
        return MuxError(f"stream {stream.id}: more data than its window allows")

    def _on_data_flags(self, word: int, stream_id: int, length: int) -> None:
        """Flags on a data frame, except FIN, which takes effect after the body."""
        flags = word & FLAG_MASK
        if flags & ~KNOWN_FLAGS:
            raise MuxError(f"unknown flags 0x{flags:x}")
        if flags & SYN:
            self._on_syn(stream_id)
        stream = self.streams.get(stream_id)
        if stream is not None:
            if flags & ACK:
                self._on_ack(stream)
            if flags & RST:
                stream._drop()
                stream.on_reset()

    def _on_control(self, word: int, stream_id: int, length: int) -> None:
        kind = word & TYPE_MASK
        flags = word & FLAG_MASK
        if flags & ~KNOWN_FLAGS:
            raise MuxError(f"unknown flags 0x{flags:x}")
        if kind == WINDOW_UPDATE:
            self._on_window_update(flags, stream_id, length)
        elif kind == PING:
            if stream_id:
                raise MuxError("ping on a stream")
            if flags & SYN:
                self._control(PING | ACK, 0, length)
            elif flags & ACK:
                self._ping_sent = None
                self._on_pong()
            else:
                raise MuxError("ping that neither asks nor answers")
        elif kind == GO_AWAY:
            if stream_id:
                raise MuxError("go-away on a stream")
            if length:
                raise MuxError(f"the peer ended the session with code {length}")
            self.going_away = True
        else:
            raise MuxError(f"unknown version or frame type 0x{word >> 16:x}")

    def _on_window_update(self, flags: int, stream_id: int, delta: int) -> None:
        if flags & SYN:
            self._on_syn(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None:
            return  # It is gone here, and the peer will learn so.
        if flags & ACK:
            self._on_ack(stream)
        if delta:
            if stream._send_window + delta > 0xFFFFFFFF:
                raise MuxError(f"stream {stream_id}: window beyond 32 bits")
            stream._send_window += delta
            if stream._out:
                stream._queue()
        if flags & FIN:
            self._on_fin(stream)
        if flags & RST:
            stream._drop()
            stream.on_reset()

    def _on_syn(self, stream_id: int) -> None:
        if stream_id in self.streams:
            raise MuxError(f"stream {stream_id} opened twice")
        if not stream_id or stream_id & 1 != self._peer_parity or self._on_stream is None:
            raise MuxError(f"stream {stream_id} is not the peer's to open")
        if self.closed:
            return  # Closed by a callback of the same bytes: nobody would end this stream.
        # Any order: Go's concurrent opens overtake each other (`session.go`, OpenStream, takes the
        # id first and sends the SYN later).
        stream = self._make_stream(self, stream_id)
        self.streams[stream_id] = stream
        self._control(WINDOW_UPDATE | ACK, stream_id, 0)
        self._on_stream(stream)

    def _on_ack(self, stream: S) -> None:
        if not stream._acked:
            stream._acked = True
            self._acked_one()

    def _acked_one(self) -> None:
        self._unacked -= 1
        while self._waiting:
            stream = self._waiting.popleft()
            if stream._send != Half.RESET:
                self._ready.append(stream)
                self._wake_output()
                break

    def _on_fin(self, stream: S) -> None:
        stream._move_in(Half.ENDED)
        if stream._holding:
            stream._end_due = True
        else:
            stream.on_end()

    # -- output --------------------------------------------------------------------------------

    def take_output(self, *, saturated: bool = False) -> bytes | list[bytes | memoryview]:
        """Everything that may leave now, whole or in pieces, in their order; `b""`: nothing.

        Control frames come first, then what `first` has, then the streams in turn: at most `SLICE`
        bytes of each a round and about `batch` bytes in all; a stream that has the link for itself
        gets all its rounds in one frame. On a link that is slower than its sources, those go before
        the others that have little to send: a token does not wait for a slice of each download.
        When streams are left over, `on_output` was called again.

        What is short comes in one piece. Of a long body only as much is joined with its header as
        fills a TLS record; the rest of it need not be copied.

        Args:
            saturated: The link does not drain at the moment: only control frames and those of
                `first` are taken.
        """
        self._awake = False
        out = self._frames
        self._frames = []
        ready = self._ready
        room = self.batch
        first = self.first
        if first is not None and first._queued and not first._syn_due:
            ready.remove(first)
            room -= self._take_from(first, SLICE, out)
        if ready and not saturated:
            if self.batch < BATCH and len(ready) > 1:
                room -= self._take_short(out)
                room = max(
                    room, 1
                )  # A slice of somebody else goes with them, however many they are.
            while ready and room > 0:
                stream = ready.popleft()
                room -= self._take_from(stream, SLICE if ready else max(room, SLICE), out)
            if ready:
                self._wake_output()
        return b"".join(out) if self.batch - room < LONG else _gather(out)

    def _take_short(self, out: list[bytes | memoryview]) -> int:
        """Take all of the streams that have little to send; returns the payload's size."""
        ready = self._ready
        size = 0
        for _ in range(len(ready)):
            stream = ready.popleft()
            if stream.pending < SHORT:
                size += self._take_from(stream, SLICE, out)
            else:
                ready.append(stream)
        return size

    def _take_from(self, stream: Stream, limit: int, out: list[bytes | memoryview]) -> int:
        """Move a turn of `limit` bytes of one stream into `out`; returns the payload's size."""
        stream._queued = False
        if stream._syn_due:
            if stream._send == Half.RESET:
                return 0
            if self._unacked >= OPEN_LIMIT:
                stream._queued = True
                self._waiting.append(stream)
                return 0
            self._unacked += 1
            stream._syn_due = False
            out.append(HEADER.pack(WINDOW_UPDATE | SYN, stream.id, 0))
        data = stream._out
        size = 0
        if data:
            pos = stream._out_pos
            left = len(data) - pos
            size = min(left, stream._send_window, limit)
            if size:
                stream._send_window -= size
                out.append(HEADER.pack(DATA, stream.id, size))
                if size == left:
                    out.append(memoryview(data)[pos:] if pos else data)
                    stream._out = b""
                    stream._out_pos = 0
                else:
                    out.append(memoryview(data)[pos : pos + size])
                    stream._out_pos = pos + size
                    if stream._send_window:
                        stream._queued = True
                        self._ready.append(stream)
                stream.on_drained()
        if stream._send == Half.ENDING and not stream._out:
            out.append(HEADER.pack(WINDOW_UPDATE | FIN, stream.id, 0))
            stream._move_send(Half.ENDED)
        return size

    @property
    def backlog(self) -> int:
        """Control frames that wait for `take_output`."""
        return len(self._frames)

    def _control(self, word: int, stream_id: int, value: int) -> None:
        self._frames.append(HEADER.pack(word, stream_id, value))
        if not self._awake:
            self._awake = True
            self._on_output()

    def _wake_output(self) -> None:
        if not self._awake:
            self._awake = True
            self._on_output()

    # -- time ----------------------------------------------------------------------------------

    def linger(self, stream: S, now: float) -> None:
        """Reset `stream` unless the peer's FIN comes within `CLOSE_TIMEOUT`.

        For an owner that has ended its half and does not read any more.
        """
        self._lingering[stream.id] = now + CLOSE_TIMEOUT

    def deadline(self) -> float | None:
        """When `wake` wants to be called, or None."""
        times = [next(iter(self._lingering.values()))] if self._lingering else []
        if self._ping_sent is not None:
            times.append(self._ping_sent + PING_TIMEOUT)
        elif self._keepalive > 0:
            times.append(self.heard + self._keepalive)
        return min(times, default=None)

    def wake(self, now: float) -> None:
        """Ping a silent peer, give up on a dead one, reset streams whose peer never finished.

        Any byte counts as life, not only ping replies: a reply may be stuck behind bulk data.

        Raises:
            MuxError: when nothing came for `PING_TIMEOUT` seconds after a ping.
        """
        while self._lingering:
            stream_id, when = next(iter(self._lingering.items()))
            if when > now:
                break
            del self._lingering[stream_id]
            stream = self.streams.get(stream_id)
            if stream is not None:
                stream.reset()
                stream.on_reset()  # The owner may still wait for its pending bytes to leave.
        if self._ping_sent is not None:
            if self.heard >= self._ping_sent:
                self._ping_sent = None
            elif now >= self._ping_sent + PING_TIMEOUT:
                raise MuxError(f"no sign of life for {now - self.heard:.0f} s")
        elif 0 < self._keepalive <= now - self.heard:
            self._control(PING | SYN, 0, self._ping_id)
            self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
            self._ping_sent = now

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """The link is gone: every stream gets `on_reset`. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._frames.clear()
        self._waiting.clear()
        for stream in list(self.streams.values()):
            stream._drop()
            stream.on_reset()

    def _forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        self._lingering.pop(stream.id, None)
        self._grown -= stream._window - INITIAL_WINDOW
        if not stream._acked and not stream._syn_due:
            stream._acked = True
            self._acked_one()


def _gather(frames: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join short pieces, and leave the bulk of long ones as it is."""
    out: list[bytes | memoryview] = []
    short: list[bytes | memoryview] = []
    room = RECORD
    for frame in frames:
        size = len(frame)
        if size < LONG:
            short.append(frame)
            room -= size
            continue
        room %= RECORD
        view = memoryview(frame)
        short.append(view[:room])
        out.append(b"".join(short))
        out.append(view[room:])
        short.clear()
        room = RECORD
    if short:
        out.append(b"".join(short))
    return out
