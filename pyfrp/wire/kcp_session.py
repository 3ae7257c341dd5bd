"""One side of a KCP session, without I/O: a stream of bytes over datagrams that get lost.

Source: skywind3000/kcp `ikcp.c` and xtaci/kcp-go `kcp.go` (rules of windows, acknowledgements and
repetition), with the parameters of frp `pkg/util/net/kcp.go`: stream mode, no delay, repetition
after two skips. What differs and a peer cannot tell: acknowledgements and data leave when they are
there rather than every 20 ms, and a window of our own keeps bursts from overrunning the receiver's
socket, which has room for about a hundred datagrams.

Parity datagrams are ignored and none is sent: what gets lost is sent again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyfrp.errors import RemoteWireError
from pyfrp.wire.kcp import (
    ACK,
    ASK_WINDOW,
    MAX_SEGMENT_DATA,
    MTU,
    PARITY,
    PUSH,
    TELL_WINDOW,
    Segment,
    decode_datagram,
    decode_segments,
    encode_data,
    encode_segments,
)

WINDOW = 1024
"""Segments on their way and segments that wait for their reader, as frp has it for xtcp."""
SKIPS = 2
"""Later segments that were acknowledged before one counts as lost."""
FIRST_RTO_S, MIN_RTO_S, MAX_RTO_S = 0.2, 0.03, 60.0
TICK_S = 0.02  # How late official peers may answer: they do so every 20 ms.
PROBE_S, MAX_PROBE_S = 7.0, 120.0
# Our own window, in segments.
START_BURST, LEAST_BURST = 64, 16
OVERHEAD = MTU - MAX_SEGMENT_DATA
MAX_DATAGRAM = 1500
"""More than any peer sends; segments that wait for their reader must not be any larger."""

_U32 = 0xFFFFFFFF


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
    return base + ((number - base + 0x80000000) & _U32) - 0x80000000


class KcpSession:
    """The state of one conversation.

    After every `feed`, `write`, `release` or `wake` the caller sends `take_output()` and re-arms
    its timer from `deadline()`. Numbers of segments are kept in full; the wire has 32 bits.

    Args:
        conv: The conversation's number, equal on both sides.
        on_data: Called with bytes in their order while `feed` or `release` runs.
        window: Segments that may be on their way, and that may wait for their reader.
        now: Seconds of any clock that only goes forward, as everywhere here.
    """

    def __init__(
        self, conv: int, *, on_data: Callable[[bytes], None], now: float, window: int = WINDOW
    ) -> None:
        self.heard = now
        self._conv = conv
        self._on_data = on_data
        self._window = window
        self._seqid = 0
        # Sending.
        self._unsent = bytearray()
        self._sent: dict[int, _Sent] = {}
        self._next = 0
        self._far_window = window
        self._burst = START_BURST
        self._shrunk_at = now - MAX_RTO_S
        self._resend_at: float | None = None
        self._again: list[int] = []
        self._rto = FIRST_RTO_S
        self._srtt = 0.0
        self._spread = 0.0
        self._probe_s = PROBE_S
        self._probe_at: float | None = None
        self._asks = False
        # Receiving.
        self._wanted = 0
        self._early: dict[int, bytes] = {}
        self._ready: list[bytes] = []
        self._holding = False
        self._acks: list[tuple[int, int]] = []
        self._tells = False
        self._told = window

    @property
    def unsent(self) -> int:
        """Bytes that were written and are not on their way yet."""
        return len(self._unsent)

    @property
    def idle(self) -> bool:
        """Whether everything that was written has arrived."""
        return not self._unsent and not self._sent

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

    # -- what comes ----------------------------------------------------------------------------

    def feed(self, datagram: bytes, now: float) -> None:
        """Take a datagram. Anybody can send one, so that what makes no sense is ignored."""
        if len(datagram) > MAX_DATAGRAM:
            return
        try:
            unpacked = decode_datagram(datagram)
            if unpacked.kind == PARITY:
                return
            segments = decode_segments(unpacked.body)
        except RemoteWireError:
            return
        latest: int | None = None
        newest = -1
        for segment in segments:
            if segment.conv != self._conv:
                return
            self.heard = now
            self._far_window = segment.wnd
            self._on_una(segment.una)
            if segment.cmd == PUSH:
                self._on_push(segment)
            elif segment.cmd == ACK:
                number = _near(segment.sn, self._next)
                if self._sent.pop(number, None) is not None:
                    self._burst = min(self._burst + 1, self._window)
                newest = max(newest, number)
                latest = segment.ts
            elif segment.cmd == ASK_WINDOW:
                self._tells = True
        if latest is not None:
            self._on_round_trip(((_ms(now) - latest) & _U32) / 1000)
            self._count_skips(min(newest, self._next), now)
        if not self._far_window and self._probe_at is None:
            self._probe_s = PROBE_S
            self._probe_at = now + PROBE_S
        elif self._far_window:
            self._probe_at = None
        self._deliver()

    def _on_una(self, una: int) -> None:
        """The peer has everything before `una`."""
        una = _near(una, self._next)
        if una > self._next:
            return
        gone = []
        for number in self._sent:  # In their order.
            if number >= una:
                break
            gone.append(number)
        for number in gone:
            del self._sent[number]
        self._burst = min(self._burst + len(gone), self._window)

    def _on_push(self, segment: Segment) -> None:
        number = _near(segment.sn, self._wanted)
        if number >= self._wanted - len(self._ready) + self._window:
            return  # Beyond the window: not acknowledged, so that it comes again.
        self._acks.append((segment.sn, segment.ts))
        if number < self._wanted or number in self._early:
            return
        self._early[number] = segment.data
        while self._wanted in self._early:
            self._ready.append(self._early.pop(self._wanted))
            self._wanted += 1

    def _on_round_trip(self, took: float) -> None:
        """Learn from an acknowledgement how long to wait for one (RFC 6298)."""
        if took > MAX_RTO_S:
            return  # An echo of nothing that we sent.
        if self._srtt == 0.0:
            self._srtt = took
            self._spread = took / 2
        else:
            delta = took - self._srtt
            self._srtt += delta / 8
            self._spread += (abs(delta) - self._spread) / 4
        rto = self._srtt + max(TICK_S, 4 * self._spread)
        self._rto = min(max(rto, MIN_RTO_S), MAX_RTO_S)

    def _count_skips(self, newest: int, now: float) -> None:
        """Find those that were overtaken, and are lost therefore."""
        for number, sent in self._sent.items():
            if number >= newest:
                break
            sent.skips += 1
            if sent.skips == SKIPS:
                self._again.append(number)
        if self._again:
            self._shrink(now)

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

    def deadline(self) -> float | None:
        """When `wake` is to be called; None for never."""
        times = [when for when in (self._resend_at, self._probe_at) if when is not None]
        return min(times, default=None)

    def wake(self, now: float) -> None:
        """Look for what was not acknowledged in time."""
        if self._probe_at is not None and self._probe_at <= now:
            self._asks = True
            self._probe_s = min(self._probe_s * 1.5, MAX_PROBE_S)
            self._probe_at = now + self._probe_s
        if self._resend_at is None or self._resend_at > now:
            return
        self._resend_at = None
        for number, sent in self._sent.items():
            if sent.resend_at <= now:
                sent.rto = min(sent.rto + self._rto / 2, MAX_RTO_S)
                self._again.append(number)
            else:
                self._expect(sent.resend_at)
        if self._again:
            self._shrink(now)

    def _expect(self, when: float) -> None:
        if self._resend_at is None or when < self._resend_at:
            self._resend_at = when

    # -- what goes -----------------------------------------------------------------------------

    def take_output(self, now: float) -> list[bytes]:
        """The datagrams to send now."""
        room = self._window - len(self._ready)
        una = self._wanted & _U32
        out: list[Segment] = []
        if self._acks:
            # `una` says it for those before it, except that the latest carries the time back.
            last = len(self._acks) - 1
            for at, (number, stamp) in enumerate(self._acks):
                if at == last or _near(number, self._wanted) >= self._wanted:
                    out.append(Segment(self._conv, ACK, 0, room, stamp, number, una))
            self._acks.clear()
        if self._asks:
            out.append(Segment(self._conv, ASK_WINDOW, 0, room, 0, 0, una))
            self._asks = False
        if self._tells:
            out.append(Segment(self._conv, TELL_WINDOW, 0, room, 0, 0, una))
            self._tells = False
        stamp = _ms(now)
        for number in self._again:
            sent = self._sent.get(number)
            if sent is not None:
                self._push(number, sent, now)
                out.append(Segment(self._conv, PUSH, 0, room, stamp, number & _U32, una, sent.data))
        self._again.clear()
        first = next(iter(self._sent), self._next)
        allowed = min(self._window, self._far_window, self._burst) - (self._next - first)
        while self._unsent and allowed > 0:
            data = bytes(self._unsent[:MAX_SEGMENT_DATA])
            del self._unsent[:MAX_SEGMENT_DATA]
            sent = self._sent[self._next] = _Sent(data, now, now, self._rto)
            self._push(self._next, sent, now)
            out.append(Segment(self._conv, PUSH, 0, room, stamp, self._next & _U32, una, data))
            self._next += 1
            allowed -= 1
        if out:
            self._told = room
        return self._pack(out)

    def _push(self, number: int, sent: _Sent, now: float) -> None:
        sent.sent_at = now
        sent.resend_at = now + sent.rto
        sent.skips = 0
        self._expect(sent.resend_at)

    def _pack(self, segments: list[Segment]) -> list[bytes]:
        """Share datagrams out among segments, as many as fit into each."""
        datagrams: list[bytes] = []
        group: list[Segment] = []
        size = 0
        for segment in segments:
            length = OVERHEAD + len(segment.data)
            if size + length > MTU:
                datagrams.append(self._seal(group))
                group = []
                size = 0
            group.append(segment)
            size += length
        if group:
            datagrams.append(self._seal(group))
        return datagrams

    def _seal(self, group: list[Segment]) -> bytes:
        seqid = self._seqid
        self._seqid = (seqid + 1) & _U32
        return encode_data(seqid, encode_segments(group))


def _ms(now: float) -> int:
    return int(now * 1000) & _U32
