"""One side of a KCP session, without I/O: a stream of bytes over datagrams that get lost.

Source: skywind3000/kcp `ikcp.c` and xtaci/kcp-go `kcp.go` (rules of windows, acknowledgements and
repetition), with the parameters of frp `pkg/util/net/kcp.go`: stream mode, no delay, repetition
after two skips. What differs and a peer cannot tell: data leaves when it is there rather than every
20 ms, acknowledgements soon after or with data, and a window of our own keeps bursts from
overrunning the receiver's socket, which may have room for about a hundred datagrams.

Parity that comes is always used. Parity is made only while datagrams get lost, where the official
peers make it always: it costs 10 µs a full datagram, five times what all the rest of sending does,
and a third more datagrams, for nothing on a link that loses none. See `PARITY_FROM`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyfrp.wire.kcp import (
    ACK,
    ASK_WINDOW,
    COMMANDS,
    DATA,
    END,
    MAX_DATAGRAM,
    MAX_SEGMENT_DATA,
    MTU,
    PARITY,
    PUSH,
    SEGMENT,
    TELL_WINDOW,
)
from pyfrp.wire.kcp_fec import Protection, Recovery

WINDOW = 1024
"""Segments on their way and segments that wait for their reader, as frp has it for xtcp."""
SKIPS = 2
"""Later segments that were acknowledged before one counts as lost."""
FIRST_RTO_S, MIN_RTO_S, MAX_RTO_S = 0.2, 0.03, 60.0
TICK_S = 0.02  # How late official peers may answer: they do so every 20 ms.
PROBE_S, MAX_PROBE_S = 7.0, 120.0
# An acknowledgement waits that long for data that it can go with, unless so many are due, of which
# a full segment counts for more, or something is missing. Official peers let them wait for up to
# `TICK_S`.
ACK_DELAY_S, ACK_EVERY, ACK_FULL = 0.01, 32, 8
# Little data leaves at once, but without a word from the peer only once in `GATHER_S`, and so many
# times more: then it is of many streams of tokens, and no answer that anybody waits for. After
# that time it leaves with what comes (no alarm: being woken would cost as much as it spares), or
# after twice as long. Measured at 4000 tokens a second: a datagram costs as much as four tokens.
GATHER_S, GATHER_AFTER, GATHER_BYTES = 0.002, 8, 4 * MAX_SEGMENT_DATA
# uvloop's clock goes in milliseconds. The one that was meant counts as it, whatever the rounding of
# a sum: until the next we would be woken over and over.
HAIR_S = 1e-5
# Our own window, in segments.
START_BURST, LEAST_BURST = 64, 16
# What may wait here of a peer that has brought nothing in order yet, in segments; with each that
# it brings it may be one more. So a flood of beginnings costs little memory.
LEAST_ROOM = 32
# The share of datagrams lost from which parity is made: two within a few hundred. The average is
# over about `LOSS_SPAN` datagrams.
PARITY_FROM = 0.003
LOSS_SPAN = 512
OVERHEAD = SEGMENT.size

_U32 = 0xFFFFFFFF
_HALF = 0x80000000
_DATA = DATA.to_bytes(2, "little")
_PARITY = PARITY.to_bytes(2, "little")
_FEC = struct.Struct("<IHH")
# A datagram with one segment: FEC header and segment header in one go.
_WHOLE = struct.Struct("<IHHIBBHIIII")


@dataclass(slots=True)
class _Sent:
    """A segment on its way."""

    data: bytes
    sent_at: float
    resend_at: float
    rto: float
    skips: int = 0


def _near(number: int, base: int) -> int:
    """The full number whose lower 32 bits came over the wire, next to `base`."""
    return base + ((number - base + _HALF) & _U32) - _HALF


class KcpSession:
    """The state of one conversation.

    After every `feed`, `write`, `release`, `ask`, `finish` or `wake` the caller sends
    `take_output()` and re-arms its timer from `deadline()`. Numbers of segments are kept in full;
    the wire has 32 bits.

    Args:
        conv: The conversation's number, equal on both sides.
        on_data: Called with bytes in their order while `feed` or `release` runs.
        send_window: Segments that may be on their way.
        window: Segments that may wait for their reader; at most 65535.
        now: Seconds of any clock that only goes forward, as everywhere here.
        skew: Added to the milliseconds that the peer is told. A random one lets only those answer
            who can read what we send, see `proven`; until then what is lost is repeated less often.

    Attributes:
        heard: When anything last came; when it began, before that.
        alive: Whether anything came.
        proven: Whether the peer has shown that it gets what we send: it echoed our clock.
        ended: The peer has ended, all that it sent was delivered, and nobody said `hold` since: a
            layer above may still have bytes for its reader.
        reset: The peer has ended, or knows nothing of this session; more will not come.
    """

    def __init__(
        self,
        conv: int,
        *,
        on_data: Callable[[bytes], None],
        now: float,
        send_window: int = WINDOW,
        window: int = WINDOW,
        skew: int = 0,
    ) -> None:
        self.heard = now
        self.alive = False
        self.proven = False
        self.reset = False
        self._conv = conv
        self._on_data = on_data
        self._skew = skew
        # Sending.
        self._send_window = send_window
        self._unsent = bytearray()
        self._sent: dict[int, _Sent] = {}
        self._first = 0  # The first that the peer still misses.
        self._next = 0
        self._far_window = send_window
        self._burst = START_BURST
        self._shrunk_at = now - MAX_RTO_S
        self._resend_at: float | None = None
        self._again: list[int] = []
        self._rto = FIRST_RTO_S
        self._srtt = 0.0
        self._spread = 0.0
        self._ripe_at = 0.0  # When little data may leave.
        self._gather_until: float | None = None  # Set while it waits for more of it.
        self._probe_s = PROBE_S
        self._probe_at: float | None = None
        self._asks = False
        self._ends = False
        self._end_due = False
        self._protection = Protection()
        self._lost = 0.0  # The share of datagrams, on average.
        # Receiving.
        self._window = window
        self._wanted = 0
        self._early: dict[int, bytes] = {}
        self._ready: list[bytes] = []
        self._holding = False
        self._ack: tuple[int, int] | None = None  # Number and time of the latest.
        self._ack_due = 0  # How many segments it is for; `ACK_EVERY` and more: at once.
        self._ack_at: float | None = None
        self._early_acks: dict[int, tuple[int, int]] = {}
        self._answered: tuple[int, int] | None = None  # The same of what the peer acknowledged.
        self._tells = False
        self._told = window
        self._end_at: int | None = None
        self._strange = 0
        self._recovery = Recovery(conv)

    @property
    def unsent(self) -> int:
        """Bytes that were written and are not on their way yet."""
        return len(self._unsent)

    @property
    def idle(self) -> bool:
        """Whether everything that was written has arrived."""
        return not self._unsent and not self._sent

    @property
    def eager(self) -> bool:
        """Whether `take_output` may have something before `deadline` or another `write`."""
        unsent = self._unsent and self._gather_until is None
        asked = self._asks or self._tells or self._end_due
        return bool(unsent or asked or self._again or self._ack_due >= ACK_EVERY)

    def gathers(self, now: float) -> bool:
        """Whether what was written waits for more of it, so that there is nothing to take."""
        if self._gather_until is None or len(self._unsent) >= GATHER_BYTES:
            return False
        return now + HAIR_S < self._ripe_at

    @property
    def ended(self) -> bool:
        if self._end_at is None or self._holding:
            return False
        return self._wanted >= self._end_at and not self._ready

    # -- what the caller wants -----------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Append to the stream."""
        self._unsent += data

    def hold(self) -> None:
        """Deliver nothing until `release`; the peer may send one window more."""
        self._holding = True

    def release(self) -> None:
        """Deliver what waits, and go on delivering."""
        self._holding = False
        self._deliver()
        if not self._holding and self._told < self._window // 2:
            self._tells = True  # The peer may have stopped for it.

    def ask(self) -> None:
        """Have the peer answer, whatever it is: it tells its window."""
        self._asks = True

    def finish(self) -> None:
        """Tell the peer, behind all that was written, that no more will come."""
        self._ends = self._end_due = True

    def farewell(self) -> bytes:
        """A datagram that tells the peer to expect nothing more, not even what is on its way."""
        return farewell(self._conv, self._next)

    # -- what comes ----------------------------------------------------------------------------

    def feed(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take datagrams. Anybody can send one, so that what makes no sense is ignored."""
        heard = False
        note = self._recovery.note
        for datagram in datagrams:
            size = len(datagram)
            if size > MAX_DATAGRAM:
                continue
            kind = datagram[4:6]
            if kind == _DATA and size >= 8:
                end = 6 + (datagram[6] | datagram[7] << 8)
                if not 8 <= end <= size or not self._take(datagram, 8, end, direct=True):
                    continue
                bodies = note(int.from_bytes(datagram[:4], "little"), datagram)
            elif kind == _PARITY:
                bodies = note(int.from_bytes(datagram[:4], "little"), datagram)
                if not bodies:
                    continue
            elif self._take(datagram, 0, size, direct=True):
                bodies = []
            else:
                continue
            heard = True
            for body in bodies:
                self._take(body, 0, len(body), direct=False)
        if not heard:
            return
        self.heard = now
        self.alive = True
        if self._ack is not None and self._ack_at is None:
            self._ack_at = now + ACK_DELAY_S
        if self._answered is not None:
            self._learn(*self._answered, now)
            self._answered = None
        if self._far_window:
            self._probe_at = None
        elif self._probe_at is None:
            self._probe_s = PROBE_S
            self._probe_at = now + PROBE_S
        self._deliver()

    def _take(self, data: bytes, at: int, end: int, *, direct: bool) -> bool:
        """Take the segments of a datagram; False for one that is none of this session.

        Args:
            direct: Whether it came as it is, and is not made from parity: then it is the latest.
        """
        unpack = SEGMENT.unpack_from
        known = False
        while end - at >= OVERHEAD:
            conv, cmd, _, wnd, stamp, number, una, length = unpack(data, at)
            at += OVERHEAD
            if conv != self._conv or cmd not in COMMANDS or length > end - at:
                break
            known = True
            una = _near(una, self._next)
            if self._first <= una <= self._next:
                if direct:
                    self._far_window = wnd
                if una > self._first:
                    self._on_una(una)
            if cmd == PUSH:
                self._on_push(number, stamp, data[at : at + length])
            elif cmd == ACK:
                self._on_ack(number, stamp, direct=direct)
            elif cmd == ASK_WINDOW:
                self._tells = True
            elif cmd == TELL_WINDOW:
                self._on_tell(una)
            elif self._end_at is None:  # END
                self._end_at = max(_near(number, self._wanted), self._wanted)
                self.reset = data[at - OVERHEAD + 5] == 1
            at += length
        return known

    def _on_una(self, una: int) -> None:
        """The peer has everything before `una`."""
        pop = self._sent.pop
        gone = 0
        for number in range(self._first, una):
            if pop(number, None) is not None:
                gone += 1
        self._first = una
        self._burst = min(self._burst + gone, self._send_window)

    def _on_ack(self, number: int, stamp: int, *, direct: bool) -> None:
        number = _near(number, self._next)
        if not self._first <= number < self._next:
            if number >= self._next:
                return
        elif self._sent.pop(number, None) is not None:
            self._burst = min(self._burst + 1, self._send_window)
        if direct and (self._answered is None or number >= self._answered[0]):
            self._answered = number, stamp

    def _on_tell(self, una: int) -> None:
        """A peer that has lost this session makes a new one of a question, and has nothing."""
        if una <= 0 < self._first:
            self._strange += 1
            self._asks = True  # A late datagram may say it once.
            self.reset = self.reset or self._strange > 1
        else:
            self._strange = 0

    def _on_push(self, sn: int, stamp: int, data: bytes) -> None:
        self._ripe_at = 0.0
        self._gather_until = None
        wanted = self._wanted
        number = wanted + ((sn - wanted + _HALF) & _U32) - _HALF
        delivered = wanted - len(self._ready)
        room = LEAST_ROOM + delivered
        if (
            number >= delivered + self._window
            or number >= wanted + room
            or (self._holding and wanted >= delivered + room)
        ):
            return  # Beyond the window: not acknowledged, so that it comes again.
        self._ack = sn, stamp
        # Behind full ones there is more, that may wait for this.
        self._ack_due += 1 if len(data) < MAX_SEGMENT_DATA else ACK_FULL
        if number != wanted:
            self._ack_due = ACK_EVERY
            if number > wanted:
                self._early_acks[number] = sn, stamp
                self._early.setdefault(number, data)
            return
        early, ready = self._early, self._ready
        if early:
            self._ack_due = ACK_EVERY
        ready.append(data)
        wanted += 1
        while early and wanted in early:
            ready.append(early.pop(wanted))
            wanted += 1
        self._wanted = wanted

    def _learn(self, newest: int, stamp: int, now: float) -> None:
        """Learn from an acknowledgement how long they take, and what it overtook."""
        took = ((self._ms(now) - stamp) & _U32) / 1000
        if took > MAX_RTO_S:
            return  # An echo of nothing that we sent.
        self.proven = True
        self._on_round_trip(took)
        sent_at = now - took + 0.001
        for number in range(self._first, newest):
            sent = self._sent.get(number)
            # One that was sent again meanwhile was not overtaken.
            if sent is not None and sent.sent_at <= sent_at:
                sent.skips += 1
                if sent.skips == SKIPS:
                    self._again.append(number)
        if self._again:
            self._shrink(now)

    def _on_round_trip(self, took: float) -> None:
        """Learn how long to wait for an acknowledgement (RFC 6298)."""
        if self._srtt == 0.0:
            self._srtt = took
            self._spread = took / 2
        else:
            delta = took - self._srtt
            self._srtt += delta / 8
            self._spread += (abs(delta) - self._spread) / 4
        rto = self._srtt + max(TICK_S, 4 * self._spread)
        self._rto = min(max(rto, MIN_RTO_S), MAX_RTO_S)

    def _shrink(self, now: float) -> None:
        """Something was lost: send less at a time; once for each round trip."""
        if now - self._shrunk_at > self._srtt:
            self._shrunk_at = now
            self._burst = max(self._burst * 3 // 4, LEAST_BURST)

    def _deliver(self) -> None:
        while self._ready and not self._holding:
            # At once, not segment by segment; the reader may say "hold" in between.
            data = b"".join(self._ready)
            self._ready.clear()
            if data:
                self._on_data(data)

    # -- time ----------------------------------------------------------------------------------

    def _ms(self, now: float) -> int:
        return (int(now * 1000) + self._skew) & _U32

    def deadline(self) -> float | None:
        """When `wake` is to be called; None for never."""
        when = self._resend_at
        for other in (self._probe_at, self._ack_at, self._gather_until):
            if other is not None and (when is None or other < when):
                when = other
        return when

    def wake(self, now: float) -> None:
        """Look for what is due, and for what was not acknowledged in time."""
        now += HAIR_S
        if self._ack_at is not None and self._ack_at <= now:
            self._ack_due = ACK_EVERY
        if self._gather_until is not None and self._gather_until <= now:
            self._gather_until = None  # It leaves now, or as soon as the window opens.
        if self._probe_at is not None and self._probe_at <= now:
            self._asks = True
            self._probe_s = min(self._probe_s * 1.5, MAX_PROBE_S)
            self._probe_at = now + self._probe_s
        if self._resend_at is None or self._resend_at > now:
            return
        self._resend_at = None
        for number, sent in self._sent.items():
            if sent.resend_at <= now:
                # Somebody may have begun in the name of a peer that wants none of it.
                more = sent.rto if self._skew and not self.proven else self._rto / 2
                sent.rto = min(sent.rto + more, MAX_RTO_S)
                self._again.append(number)
            else:
                self._expect(sent.resend_at)
        if self._again:
            self._shrink(now)
            self._end_due = self._ends

    def _expect(self, when: float) -> None:
        if self._resend_at is None or when < self._resend_at:
            self._resend_at = when

    # -- what goes -----------------------------------------------------------------------------

    def take_output(self, now: float) -> list[bytes]:
        """The datagrams to send now."""
        out: list[bytes] = []
        room = self._window - len(self._ready)
        head = SEGMENT.pack
        conv, una = self._conv, self._wanted & _U32
        small: list[bytes] = []  # Segments that may share a datagram.
        pushes = self._pushes(now)
        if self._ack is not None and (
            pushes or self._asks or self._tells or self._ack_due >= ACK_EVERY
        ):
            self._acknowledge(small, room)
        if self._asks:
            small.append(head(conv, ASK_WINDOW, 0, room, 0, 0, una, 0))
            self._asks = False
        if self._tells:
            small.append(head(conv, TELL_WINDOW, 0, room, 0, 0, una, 0))
            self._tells = False
        stamp = self._ms(now)
        for number, data in pushes:
            if len(data) == MAX_SEGMENT_DATA:
                if small:
                    self._pack(small, out, now)
                self._add(
                    _WHOLE.pack(
                        self._protection.seqid,
                        DATA,
                        MTU + 2,
                        conv,
                        PUSH,
                        0,
                        room,
                        stamp,
                        number & _U32,
                        una,
                        MAX_SEGMENT_DATA,
                    )
                    + data,
                    out,
                    now,
                )
            else:
                small.append(head(conv, PUSH, 0, room, stamp, number & _U32, una, len(data)) + data)
        if self._end_due and not self._unsent:
            small.append(head(conv, END, 0, room, 0, self._next & _U32, una, 0))
            self._end_due = False
        if small:
            self._pack(small, out, now)
        if out:
            self._told = room
        return out

    def _acknowledge(self, small: list[bytes], room: int) -> None:
        """Say what came. `una` says it of what was in order, but for the time, which goes back."""
        assert self._ack is not None
        head = SEGMENT.pack
        conv, una = self._conv, self._wanted & _U32
        latest, latest_stamp = self._ack
        for number, (sn, stamp) in self._early_acks.items():
            if number > self._wanted and sn != latest:
                small.append(head(conv, ACK, 0, room, stamp, sn, una, 0))
        small.append(head(conv, ACK, 0, room, latest_stamp, latest, una, 0))
        self._early_acks.clear()
        self._ack = self._ack_at = None
        self._ack_due = 0

    def _pushes(self, now: float) -> list[tuple[int, bytes]]:
        """The numbers and bytes of what is to be sent, again or for the first time."""
        pushes: list[tuple[int, bytes]] = []
        resent = 0
        for number in self._again:
            sent = self._sent.get(number)
            if sent is not None:
                sent.sent_at = now
                sent.resend_at = now + sent.rto
                sent.skips = 0
                self._expect(sent.resend_at)
                pushes.append((number, sent.data))
                resent += 1
        self._again.clear()
        if self._unsent:
            allowed = min(self._send_window, self._far_window, self._burst)
            allowed -= self._next - self._first
            if allowed > 0 and not self._waits(now):
                size = min(len(self._unsent), allowed * MAX_SEGMENT_DATA)
                with memoryview(self._unsent) as view:
                    chunk = bytes(view[:size])
                del self._unsent[:size]
                number, rto, on_way = self._next, self._rto, self._sent
                resend_at = now + rto
                for at in range(0, size, MAX_SEGMENT_DATA):
                    data = chunk[at : at + MAX_SEGMENT_DATA]
                    on_way[number] = _Sent(data, now, resend_at, rto)
                    pushes.append((number, data))
                    number += 1
                self._next = number
                self._expect(resend_at)
        if pushes:
            self._lost += (resent - self._lost * len(pushes)) / LOSS_SPAN
        return pushes

    def _waits(self, now: float) -> bool:
        """Whether what was written waits for more of it; if not, it is taken to leave."""
        if len(self._unsent) < GATHER_BYTES and not self._ends:
            if now + HAIR_S < self._ripe_at:
                self._gather_until = self._ripe_at + GATHER_S
                return True
            self._ripe_at = max(self._ripe_at, now - GATHER_AFTER * GATHER_S) + GATHER_S
        self._gather_until = None
        return False

    def _pack(self, segments: list[bytes], out: list[bytes], now: float) -> None:
        """Share datagrams out among segments, as many as fit into each; empties the list."""
        begin = size = 0
        for at, segment in enumerate(segments):
            if size + len(segment) > MTU:
                self._seal(segments[begin:at], size, out, now)
                begin, size = at, 0
            size += len(segment)
        self._seal(segments[begin:], size, out, now)
        segments.clear()

    def _seal(self, segments: list[bytes], size: int, out: list[bytes], now: float) -> None:
        head = _FEC.pack(self._protection.seqid, DATA, size + 2)
        self._add(head + b"".join(segments), out, now)

    def _add(self, datagram: bytes, out: list[bytes], now: float) -> None:
        out.append(datagram)
        out += self._protection.add(datagram, now, wanted=self._lost > PARITY_FROM)


def farewell(conv: int, number: int = 0) -> bytes:
    """A datagram that tells a peer that there is no such conversation here, or no more.

    Like every datagram that a session did not number it has no FEC header: with a number of another
    one it would be taken for that when parity is used.

    Args:
        number: Segments that were sent in all.
    """
    return SEGMENT.pack(conv, END, 1, 0, 0, number & _U32, 0, 0)
