"""Two yamux sessions against a model of what streams promise, driven by hypothesis.

Bytes cross the link when a rule says so, in pieces of any size; the model looks at the frames on
the wire with a reader of its own. Whatever is done in whatever order: nothing is lost, reordered
or doubled, no window is overrun, and in the end every stream has ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pyfrp.wire.yamux import (
    ACK,
    BATCH,
    FIN,
    HEADER,
    HEADER_SIZE,
    INITIAL_WINDOW,
    MAX_WINDOW,
    OPEN_LIMIT,
    RST,
    SLICE,
    SYN,
)
from tests.unit.wire.yamux_pair import KIB, MIB, Clock, Recorder, Side, pattern

BUDGET = 2 * MIB


@dataclass
class Direction:
    """What one end wrote and how it stopped."""

    writer: Recorder
    written: int = 0
    ended: bool = False


@dataclass
class Wire:
    """One direction of the link: bytes under way, and what the model read on them."""

    source: Side
    sink: Side
    pending: bytearray = field(default_factory=bytearray)
    unread: bytes = b""
    sent: dict[int, int] = field(default_factory=dict)  # Payload bytes put on the wire.
    granted: dict[int, int] = field(default_factory=dict)  # Credit that came back.
    fins: set[int] = field(default_factory=set)
    unacked: set[int] = field(default_factory=set)

    def put(self, data: bytes, back: Wire) -> None:
        self.pending += data
        self.unread += data
        while len(self.unread) >= HEADER_SIZE:
            word, number, length = HEADER.unpack_from(self.unread)
            kind, flags = word >> 16, word & 0xFFFF
            if kind == 0 and len(self.unread) < HEADER_SIZE + length:
                raise AssertionError("an output ends within a frame")
            self._note(kind, flags, number, length, back)
            self.unread = self.unread[HEADER_SIZE + (length if kind == 0 else 0) :]
        assert not self.unread

    def _note(self, kind: int, flags: int, number: int, length: int, back: Wire) -> None:
        if kind > 1:
            return
        if flags & SYN:
            assert number not in self.sent, "a number used twice"
            self.sent[number] = 0
            self.granted.setdefault(number, INITIAL_WINDOW)
            back.sent[number] = 0
            back.granted[number] = INITIAL_WINDOW
            self.unacked.add(number)
            assert len(self.unacked) <= OPEN_LIMIT
        assert number in self.sent, "a frame ahead of its SYN"
        if flags & ACK:
            back.unacked.discard(number)
        if kind == 0:
            assert 0 < length <= BATCH
            assert number not in self.fins, "data after FIN"
            self.sent[number] += length
            assert self.sent[number] <= self.granted[number], "a window overrun"
        else:
            back.granted[number] += length
        if flags & FIN:
            assert number not in self.fins, "FIN twice"
            self.fins.add(number)
        if flags & RST:
            self.unacked.discard(number)
            back.unacked.discard(number)

    def carry(self, size: int) -> None:
        piece = bytes(self.pending[:size])
        del self.pending[:size]
        if piece:
            self.sink.feed(piece)


class Sessions(RuleBasedStateMachine):
    streams = Bundle("streams")

    @initialize()
    def start(self) -> None:
        clock = Clock()
        self.sides = (
            Side(client=True, clock=clock, budget=BUDGET, keepalive=0),
            Side(client=False, clock=clock, budget=BUDGET, keepalive=0),
        )
        near, far = self.sides
        self.wires = (Wire(near, far), Wire(far, near))
        self.opened: list[tuple[int, Recorder]] = []
        self.directions: dict[tuple[int, int], Direction] = {}
        self.resets: set[int] = set()

    # -- what owners do -------------------------------------------------------------------------

    @rule(target=streams, side=st.integers(0, 1), data=st.integers(0, 3))
    def open(self, side: int, data: int) -> int:
        stream = self.sides[side].open()
        self.opened.append((side, stream))
        self.directions[stream.id, side] = Direction(stream)
        for _ in range(data):
            self.write(stream.id, side, 20)
        return stream.id

    def end_of(self, number: int, side: int) -> Recorder | None:
        """One end of a stream, if it is there (yet)."""
        direction = self.directions.get((number, side))
        if direction is not None:
            return direction.writer
        for stream in self.sides[side].accepted:
            if stream.id == number:
                self.directions[number, side] = Direction(stream)
                return stream
        return None

    @rule(
        number=streams,
        side=st.integers(0, 1),
        size=st.one_of(
            st.integers(1, 200),
            st.sampled_from([SLICE - 1, SLICE, SLICE + 1, INITIAL_WINDOW, INITIAL_WINDOW + 7]),
        ),
    )
    def write(self, number: int, side: int, size: int) -> None:
        stream = self.end_of(number, side)
        if stream is None:
            return
        direction = self.directions[number, side]
        data = pattern(number * 2 + side, direction.written, size)
        allowed = stream.writable
        stream.write(data)
        if allowed:
            direction.written += size
            if stream.pending > self.sides[side].session.high_water:
                assert stream.full

    @rule(number=streams, side=st.integers(0, 1))
    def end(self, number: int, side: int) -> None:
        stream = self.end_of(number, side)
        if stream is not None:
            self.directions[number, side].ended |= stream.writable
            stream.end()

    @rule(number=streams, side=st.integers(0, 1))
    def reset(self, number: int, side: int) -> None:
        stream = self.end_of(number, side)
        if stream is not None:
            stream.reset()
            self.resets.add(number)

    @rule(number=streams, side=st.integers(0, 1), on=st.booleans())
    def hold_or_release(self, number: int, side: int, on: bool) -> None:
        stream = self.end_of(number, side)
        if stream is None:
            return
        if on:
            stream.hold()
        else:
            stream.release()
            assert stream.held_size == 0 or stream.hook is not None

    @rule(number=streams, side=st.integers(0, 1), what=st.sampled_from(["hold", "again", "none"]))
    def act_in_callbacks(self, number: int, side: int, what: str) -> None:
        stream = self.end_of(number, side)
        if stream is None:
            return

        def act(s: Recorder, _: bytes) -> None:
            s.hold()
            if what == "again":
                s.release()

        stream.hook = None if what == "none" else act

    # -- what the link does ---------------------------------------------------------------------

    @rule(which=st.integers(0, 1), saturated=st.booleans())
    def take(self, which: int, saturated: bool) -> None:
        self._take(which, saturated)

    def _take(self, which: int, saturated: bool = False) -> int:
        wire = self.wires[which]
        data = wire.source.take(saturated=saturated)
        wire.put(data, self.wires[1 - which])
        return len(data)

    @rule(
        which=st.integers(0, 1),
        size=st.one_of(st.integers(1, 40), st.sampled_from([1000, 64 * KIB, 10 * MIB])),
    )
    def carry(self, which: int, size: int) -> None:
        self.wires[which].carry(size)

    @precondition(lambda self: any(w.pending for w in self.wires))
    @rule()
    def settle(self) -> None:
        busy = True
        while busy:
            busy = False
            for which in (0, 1):
                busy |= bool(self._take(which))
                busy |= bool(self.wires[which].pending)
                self.wires[which].carry(10 * MIB)

    # -- what must hold at any time -------------------------------------------------------------

    @invariant()
    def every_reader_has_a_beginning_of_what_was_written(self) -> None:
        for (number, side), direction in self.directions.items():
            reader = self.end_of_silently(number, 1 - side)
            if reader is None:
                continue
            got = reader.received
            assert len(got) <= direction.written
            assert got == pattern(number * 2 + side, 0, len(got))
            if reader.ends:
                assert reader.ends == 1
                assert direction.ended
                assert len(got) == direction.written

    def end_of_silently(self, number: int, side: int) -> Recorder | None:
        direction = self.directions.get((number, side))
        if direction is not None:
            return direction.writer
        return next((s for s in self.sides[side].accepted if s.id == number), None)

    @invariant()
    def memory_is_bounded(self) -> None:
        for side in self.sides:
            session = side.session
            grown = sum(s._window - INITIAL_WINDOW for s in session.streams.values())
            assert grown == session._grown
            assert session._grown <= BUDGET + MAX_WINDOW // 2
            for stream in session.streams.values():
                assert 0 <= stream.held_size <= MAX_WINDOW
                assert stream._credit >= 0
                assert stream._credit + stream.held_size <= MAX_WINDOW

    @invariant()
    def unacknowledged_opens_are_counted(self) -> None:
        for side in self.sides:
            session = side.session
            waiting = [s for s in session.streams.values() if not s._acked and not s._syn_due]
            assert session._unacked == len(waiting) <= OPEN_LIMIT

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        for number, _ in [(s.id, side) for side, s in self.opened]:
            for side in (0, 1):
                self.settle_all()
                stream = self.end_of(number, side)
                if stream is not None:
                    stream.hook = None
                    stream.release()
                    self.directions[number, side].ended |= stream.writable
                    stream.end()
        self.settle_all()
        self.every_reader_has_a_beginning_of_what_was_written()
        for (number, side), direction in self.directions.items():
            reader = self.end_of(number, 1 - side)
            assert direction.writer.pending == 0
            if number in self.resets:
                continue
            assert reader is not None
            assert reader.received == pattern(number * 2 + side, 0, direction.written)
            assert reader.ends == 1
            assert reader.resets == 0
        for side in self.sides:
            assert side.session.streams == {}
            assert side.session._grown == 0
            assert side.session._unacked == 0
            assert side.take() == b""

    def settle_all(self) -> None:
        busy = True
        while busy:
            busy = False
            for which in (0, 1):
                busy |= bool(self._take(which))
                busy |= bool(self.wires[which].pending)
                self.wires[which].carry(10 * MIB)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
