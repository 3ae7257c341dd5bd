"""What a connection sends when it is nothing but the bytes of streams, and acknowledgements.

aioquic goes through all streams whenever it writes, and takes long for a packet. Here only streams
that are not at rest are gone through, what little there is of many shares a packet, and what is not
plain is left to aioquic: ends, resets, limits, challenges, new keys.

Source: RFC 9000, 12.4, 13.2, 19.3, 19.8; RFC 9001, 5.4.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # aioquic does not say so
from aioquic.quic.congestion.base import K_INITIAL_WINDOW, K_MINIMUM_WINDOW
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet import QuicPacketType, pull_quic_transport_parameters
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.tls import Epoch

from pyfrp.net.quic_path import PathSize

if TYPE_CHECKING:
    from aioquic.quic.connection import QuicConnection as Base
else:
    Base = object

# Acknowledge so much at once. At first every second packet, for a peer that begins slowly lives
# from acknowledgements; RFC 9000, 13.2.2 lets the rest be ours to choose.
ACK_SOON_PACKETS = 100
ACK_PACKETS = 64
ACK_BYTES = 13_500
# So many acknowledgements that nobody has acknowledged end in a ping (RFC 9000, 13.2.4).
_ALONE = 32
_TURN = 16  # Packets of a stream before the others have their turn.
_TAG = 16
_HEADER = 3  # Of a short packet, without the connection id.
_ACK, _PING = 0x02, b"\x01"
# STREAM, with an offset and with or without a length.
_WORD, _FULL = b"\x0e", b"\x0c"
_OFFSET, _LENGTH = 8, 4  # Bytes that these take at most; in a full packet the offset always.
# An acknowledgement travels with words if it has no more ranges, and so no more bytes, than this.
_FEW_RANGES, _ACK_SIZE = 4, 96
_EARLIER_S = 0.000_1
# The idle timeout begins anew with what comes and goes, to within this.
_IDLE_STEP_S = 0.05


class Outgoing(Base):
    """To be mixed into aioquic's connection.

    Its `_streams_queue` has those streams that are not at rest, `_queued` the same as a set.
    """

    _short: bool
    """Whether aioquic is of the series whose insides this knows."""

    def __init__(self, *, largest: int, **options: Any) -> None:
        super().__init__(**options)
        self._sizes = PathSize(self._max_datagram_size, largest if self._short else 0)
        self._queued: set[Any] = set()
        self._unacked = self._unacked_bytes = 0
        """What has come and wants an acknowledgement, since one was sent."""
        self._gap = False
        """Whether some of it came out of order."""
        self._alone = 0
        """Acknowledgements sent since anything else was."""
        self._idle_from = 0.0
        self._ids_wait = True
        if self._short:
            self._streams = _Streams(self)
            self._on_packets_lost = self._loss._on_packets_lost
            self._loss._on_packets_lost = self._on_lost  # type: ignore[method-assign]  # its own

    def _on_lost(self, *, packets: Iterable[Any], now: float, space: Any, **more: Any) -> None:
        """Whatever they were about has to be said again."""
        lost = tuple(packets)
        tries = [packet for packet in lost if self._is_try(packet)]
        if tries:  # It was their size, and no congestion.
            lost = tuple(packet for packet in lost if packet not in tries)
            self._on_packets_lost(packets=tries, now=now, space=space, congestion_event=False)
        self._on_packets_lost(packets=lost, now=now, space=space, **more)
        for packet in lost:
            for handler, args in packet.delivery_handlers:
                if handler == self._on_max_stream_data_delivery:
                    number = args[0].stream_id
                else:  # Of one of a stream's two halves, or of the connection.
                    number = getattr(handler.__self__, "_stream_id", None)
                if number in self._streams:
                    self._look_after(self._streams[number])

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        # An epoch is slow to look up.
        self._space: Any = self._spaces[Epoch.ONE_RTT]
        self._crypto: Any = self._cryptos[Epoch.ONE_RTT]
        self._crypto_stream = self._crypto_streams[Epoch.ONE_RTT]

    # -- streams that are not at rest ----------------------------------------------------------

    def _look_after(self, stream: Any) -> None:
        """There may be something to say about a stream."""
        if self._short and stream not in self._queued:
            self._queued.add(stream)
            self._streams_queue.append(stream)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> Any:
        stream = super()._get_or_create_stream(frame_type, stream_id)
        if len(self._queued) != len(self._streams_queue):
            self._queued.update(self._streams_queue)
        self._look_after(stream)
        return stream

    def _get_or_create_stream_for_send(self, stream_id: int) -> Any:
        stream: Any = self._streams.get(stream_id)
        if stream is None or stream_id & 2:
            stream = super()._get_or_create_stream_for_send(stream_id)
            self._queued.update(self._streams_queue)
        self._look_after(stream)
        return stream

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        super().stop_stream(stream_id, error_code)
        self._look_after(self._streams[stream_id])

    def _settle(self) -> None:
        """Forget the streams that are at rest."""
        if all(map(_is_at_rest, self._streams_queue)):
            self._streams_queue.clear()
            self._queued.clear()
            return
        queue = self._streams_queue = [
            stream for stream in self._streams_queue if not _is_at_rest(stream)
        ]
        self._queued = set(queue)

    # -- datagrams -----------------------------------------------------------------------------

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        if not (self._short and self._is_plain()):
            return super().datagrams_to_send(now)
        self._pacing_at = None
        address = self._network_paths[0].addr
        sent = [(datagram, address) for datagram in self._write_plain(now)]
        if self._has_more():
            sent += super().datagrams_to_send(now)
        return sent

    def _is_plain(self) -> bool:
        """Whether nothing is going on that concerns every packet."""
        paths = self._network_paths
        return (
            self._handshake_confirmed
            and self._state is QuicConnectionState.CONNECTED
            and not self._close_pending
            and not self._probe_pending
            and paths[0].is_validated
            and (len(paths) == 1 or all(map(_is_quiet, paths[1:])))
            and self._remote_preferred_address is None
            and not self._crypto._update_key_requested
        )

    def _write_application(self, builder: Any, network_path: Any, now: float) -> None:
        """aioquic's way."""
        space = self._space
        if space.ack_at is not None and (self._has_come_enough(space) or self._has_data()):
            space.ack_at = min(space.ack_at, now - _EARLIER_S)
        try:
            super()._write_application(builder, network_path, now)
        finally:
            if space.ack_at is None:
                self._acknowledged()
            if self._short:
                self._settle()
                self._ids_wait = not all(known.was_sent for known in self._host_cids)

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._ids_wait = True

    def _on_new_connection_id_delivery(self, delivery: QuicDeliveryState, known: Any) -> None:
        super()._on_new_connection_id_delivery(delivery, known)
        self._ids_wait = True

    def _has_data(self) -> bool:
        return any(not stream.sender.buffer_is_empty for stream in self._streams_queue)

    def _has_more(self) -> bool:
        """Whether there is anything for aioquic to write."""
        streams, data = self._local_max_streams_bidi, self._local_max_data
        return (
            data.used * 2 > data.value
            or data.value != data.sent
            or streams.value - streams.sent > streams.sent - streams.used
            or any(map(_is_special, self._streams_queue))
            or self._handshake_done_pending
            or bool(
                self._network_paths[0].remote_challenges
                or self._retire_connection_ids
                or self._streams_blocked_pending
                or self._ping_pending
                or self._datagrams_pending
            )
            or not self._crypto_stream.sender.buffer_is_empty
            or self._ids_wait
        )

    def _write_plain(self, now: float) -> list[bytes]:
        """Make packets of acknowledgements and of bytes of streams."""
        out: list[bytes] = []
        space = self._space
        if self._streams_queue:
            while self._write_words(out, space, now):
                pass
            if self._has_data() and self._write_full(out, space, now):
                while self._write_words(out, space, now):
                    pass
                if size := self._sizes.to_try(len(out)):
                    self._try(out, space, size, now)
            self._settle()
        if space.ack_at is not None and (space.ack_at <= now or self._has_come_enough(space)):
            frames, handlers = [self._ack(space, now)], []
            self._alone += 1
            asks = self._alone > _ALONE or (
                len(space.ack_queue) > 1 and self._packet_number % 8 == 0
            )
            if asks:
                frames.append(_PING)
            handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))
            self._emit(out, space, b"".join(frames), handlers, now, asks=asks)
        return out

    def _write_words(self, out: list[bytes], space: Any, now: float) -> bool:
        """Write a packet of what little there is of each stream; whether it was too small."""
        full = self._max_datagram_size - _HEADER - _TAG - len(self._peer_cid.cid)
        room = self._room() - self._max_datagram_size
        left = full + min(room, 0)
        acknowledges = space.ack_at is not None and len(space.ack_queue) <= _FEW_RANGES
        if acknowledges:
            left -= _ACK_SIZE
        frames: list[Any] = []
        handlers: list[Any] = []
        overflow = False
        stream: Any
        for stream in self._streams_queue:
            sender = stream.sender
            if (
                sender.buffer_is_empty
                or sender._buffer_fin is not None
                or stream.is_blocked
                or sender.reset_pending
                or stream.receiver.stop_pending
                or not len(sender._pending)
            ):
                continue
            first = sender._pending[0]
            start = first.start
            end = min(
                first.stop,
                stream.max_stream_data_remote,
                sender.highest_offset + self._remote_max_data - self._remote_max_data_used,
            )
            named = _WORD + packed(stream.stream_id)
            if end <= start or end - start >= full - len(named) - _OFFSET:
                continue
            named += packed(start)
            if len(named) + _LENGTH + end - start > left:
                overflow = True
                if frames or room < 0:
                    continue
                end = start + left - len(named) - _LENGTH
            if not frames:
                self._pacing_at = self._loss._pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    return False
            base = sender._buffer_start
            frames.append(named + packed(end - start))
            frames.append(sender._buffer[start - base : end - base])
            handlers.append((sender.on_data_delivery, (start, end, False)))
            left -= len(named) + _LENGTH + end - start
            self._sent(sender, start, end)
            if len(sender._pending):
                overflow = True
            else:
                sender.buffer_is_empty = True
        if not frames:
            return False
        if acknowledges:
            frames.insert(0, self._ack(space, now))
            handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))
        self._emit(out, space, b"".join(frames), handlers, now, asks=True)
        self._loss._pacer.update_after_send(now=now)
        return overflow

    def _write_full(self, out: list[bytes], space: Any, now: float) -> bool:
        """Write packets that are full of one stream each; whether there was one."""
        queue = self._streams_queue
        written = False
        while served := [s for s in queue if self._write_turn(out, space, s, now)]:
            written = True
            if len(queue) > 1:
                queue[:] = [stream for stream in queue if stream not in served] + served
        return written

    def _write_turn(self, out: list[bytes], space: Any, stream: Any, now: float) -> bool:
        """Write some packets of a stream; whether there was one."""
        sender = stream.sender
        if sender.buffer_is_empty or stream.is_blocked or sender.reset_pending:
            return False
        if stream.receiver.stop_pending or not len(sender._pending):  # It has no truth of its own.
            return False
        first = sender._pending[0]
        at = start = first.start
        limit = min(
            first.stop,
            stream.max_stream_data_remote,
            sender.highest_offset + self._remote_max_data - self._remote_max_data_used,
        )
        named = _FULL + packed(stream.stream_id)
        full = self._max_datagram_size - _HEADER - _TAG - len(self._peer_cid.cid)
        size = full - len(named) - _OFFSET
        base = sender._buffer_start
        pacer: Any = self._loss._pacer
        most = min(limit, start + _TURN * size)
        large = self._max_datagram_size > self._configuration.max_datagram_size
        while most - at >= size and self._room() >= self._max_datagram_size:
            self._pacing_at = pacer.next_send_time(now=now)
            if self._pacing_at is not None:
                break
            end = at + size
            plain = b"".join(
                (
                    named,
                    (at | 0xC000000000000000).to_bytes(8, "big"),
                    sender._buffer[at - base : end - base],
                )
            )
            handlers: list[Any] = [(sender.on_data_delivery, (at, end, False))]
            if large:
                handlers.append((self._on_large, (self._max_datagram_size,)))
            self._emit(out, space, plain, handlers, now, asks=True)
            pacer.update_after_send(now=now)
            at = end
        if at == start:
            return False
        self._sent(sender, start, at)
        if not len(sender._pending) and sender._buffer_fin is None:
            sender.buffer_is_empty = True
        return True

    def _room(self) -> int:
        """Bytes that may be sent now.

        Two datagrams may be under way in any case (RFC 9002, 7.2): what arrives of them is all that
        would widen a window that has become narrower than that.
        """
        control = self._loss._cc
        least = K_MINIMUM_WINDOW * self._max_datagram_size
        return max(control.congestion_window, least) - control.bytes_in_flight

    def _sent(self, sender: Any, start: int, end: int) -> None:
        pending = sender._pending
        if pending[0].stop == end:
            pending.shift()
        else:
            pending.subtract(start, end)
        if end > sender.highest_offset:
            self._remote_max_data_used += end - max(start, sender.highest_offset)
            sender.highest_offset = end

    def _emit(
        self,
        out: list[bytes],
        space: Any,
        plain: bytes,
        handlers: list[Any],
        now: float,
        *,
        asks: bool,
    ) -> None:
        """Make a packet of its frames, and note what aioquic notes of each.

        Args:
            asks: Whether the peer has to acknowledge it.
        """
        crypto = self._crypto.send
        number = self._packet_number
        first = 0x41 | self._spin_bit << 5 | crypto.key_phase << 2
        cid, shown = self._peer_cid.cid, number & 0xFFFF
        header = b"%c%b%c%c" % (first, cid, shown >> 8, shown & 0xFF)
        sealed = crypto.aead.encrypt(plain, header, number)
        mask = crypto.hp._mask(sealed[2:18])  # RFC 9001, 5.4.2
        datagram = b"%c%b%c%c%b" % (
            first ^ mask[0] & 0x1F,
            cid,
            shown >> 8 ^ mask[1],
            shown & 0xFF ^ mask[2],
            sealed,
        )
        size = len(datagram)
        packet = QuicSentPacket(
            Epoch.ONE_RTT, asks, asks, False, number, QuicPacketType.ONE_RTT, now, size, handlers
        )
        self._packet_number = number + 1
        self._loss.on_packet_sent(packet=packet, space=space)
        self._network_paths[0].bytes_sent += size
        out.append(datagram)
        if asks:
            self._alone = 0
            if not self._ack_eliciting_sent_since_receipt:
                self._ack_eliciting_sent_since_receipt = True
                self._is_not_idle(now)

    def _is_not_idle(self, now: float) -> None:
        """Source: RFC 9000, 10.1."""
        if now - self._idle_from > _IDLE_STEP_S:
            self._idle_from = now
            self._close_at = now + self._idle_timeout()

    # -- how large they may be -----------------------------------------------------------------

    def _try(self, out: list[bytes], space: Any, size: int, now: float) -> None:
        """See whether a datagram of a size arrives."""
        padding = bytes(size - _HEADER - len(self._peer_cid.cid) - len(_PING) - _TAG)
        self._emit(out, space, _PING + padding, [(self._on_tried, (size,))], now, asks=True)

    def _is_try(self, packet: Any) -> bool:
        return any(handler == self._on_tried for handler, _ in packet.delivery_handlers)

    def _on_tried(self, delivery: QuicDeliveryState, size: int) -> None:
        self._sizes.tried(size, arrived=delivery is QuicDeliveryState.ACKED)
        self._resize()

    def _on_large(self, delivery: QuicDeliveryState, size: int) -> None:
        if self._sizes.went(size, arrived=delivery is QuicDeliveryState.ACKED):
            self._resize()

    def _resize(self) -> None:
        size, control = self._sizes.size, self._loss._cc
        if size != self._max_datagram_size:
            self._max_datagram_size = self._loss._pacer._max_datagram_size = size
            control._max_datagram_size = control.additive_increase_factor = size  # type: ignore[attr-defined]  # cubic's
            least = K_MINIMUM_WINDOW if control.ssthresh is not None else K_INITIAL_WINDOW
            if control.congestion_window < least * size:
                control.congestion_window = least * size
                # Cubic goes on from there, not from what it had before.
                control._starting_congestion_avoidance = True  # type: ignore[attr-defined]  # cubic's

    def _send_probe(self) -> None:
        super()._send_probe()
        if self._loss._pto_count > 1 and self._sizes.give_up():  # Nothing arrives any more.
            self._resize()

    def _add_network_path(self, network_path: Any) -> None:
        super()._add_network_path(network_path)
        if self._sizes.give_up():
            self._resize()

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        told = pull_quic_transport_parameters(Buffer(data=data)).max_udp_payload_size
        if told is not None:
            self._sizes.bound(told)

    # -- acknowledgements ----------------------------------------------------------------------

    def _has_come_enough(self, space: Any) -> bool:
        """Whether what has come is to be acknowledged at once."""
        return self._gap or (
            self._unacked > 1
            and (
                self._unacked >= ACK_PACKETS
                or self._unacked_bytes >= ACK_BYTES
                or space.largest_received_packet < ACK_SOON_PACKETS
                or len(space.ack_queue) > 1
            )
        )

    def _acknowledged(self) -> None:
        self._unacked = self._unacked_bytes = 0
        self._gap = False

    def _ack(self, space: Any, now: float) -> bytes:
        """The frame that acknowledges everything."""
        ranges = space.ack_queue
        newest = ranges[-1]
        delay = int((now - space.largest_received_time) * 1_000_000)
        parts = [
            packed(newest.stop - 1),
            packed(delay >> self._local_ack_delay_exponent),
            packed(len(ranges) - 1),
            packed(newest.stop - 1 - newest.start),
        ]
        later = newest.start
        for at in range(len(ranges) - 2, -1, -1):
            one = ranges[at]
            parts += (packed(later - one.stop - 1), packed(one.stop - 1 - one.start))
            later = one.start
        space.ack_at = None
        self._acknowledged()
        return b"\x02" + b"".join(parts)

    # -- time ----------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        if not (self._short and self._is_plain()):
            return super().get_timer()
        space, loss = self._space, self._loss
        at: float = self._close_at  # type: ignore[assignment]  # It is set from the start.
        if space.ack_at is not None and space.ack_at < at:
            at = space.ack_at
        self._loss_at = loss_at = space.loss_time
        if loss_at is None and space.ack_eliciting_in_flight:
            loss_at = loss._time_of_last_sent_ack_eliciting_packet + (
                loss.get_probe_timeout() * (1 << loss._pto_count)
            )
            self._loss_at = loss_at
        if loss_at is not None and loss_at < at:
            at = loss_at
        if self._pacing_at is not None and self._pacing_at < at:
            at = self._pacing_at
        return at


class _Streams(dict[int, Any]):
    """Whenever aioquic writes it goes through the values; those at rest would have nothing."""

    def __init__(self, owner: Outgoing) -> None:
        self._owner = owner

    def values(self) -> Any:
        return self._owner._streams_queue


def _is_quiet(path: Any) -> bool:
    """Whether there is nothing to say to an address that is not the peer's present one."""
    return path.is_validated and not path.remote_challenges


def _is_at_rest(stream: Any) -> bool:
    """Whether there is nothing to say about a stream until something happens to it.

    Of its end being acknowledged nobody tells, so that until then it is not.
    """
    sender, receiver = stream.sender, stream.receiver
    if sender.is_finished:
        settled = not receiver.is_finished
    else:
        settled = sender._buffer_fin is None and sender._reset_error_code is None
    return (
        settled
        and sender.buffer_is_empty
        and not receiver.stop_pending
        and not stream.is_blocked
        and stream.max_stream_data_local == stream.max_stream_data_local_sent
    )


def _is_special(stream: Any) -> bool:
    """Whether there is something to say that is not plain."""
    sender, receiver = stream.sender, stream.receiver
    return (
        (sender._buffer_fin is not None and not sender.buffer_is_empty)
        or sender.reset_pending
        or receiver.stop_pending
        or stream.max_stream_data_local != stream.max_stream_data_local_sent
        or (sender.is_finished and receiver.is_finished)
    )


def packed(number: int) -> bytes:
    """A number as it travels (RFC 9000, 16)."""
    if number < 0x40:
        return _SMALL[number]
    if number < 0x4000:
        return (number | 0x4000).to_bytes(2, "big")
    if number < 0x4000_0000:
        return (number | 0x8000_0000).to_bytes(4, "big")
    return (number | 3 << 62).to_bytes(8, "big")


_SMALL = [bytes((number,)) for number in range(0x40)]
