"""Short ways through aioquic for packets that carry nothing but the bytes of a stream.

These, and acknowledgements, are nearly all packets of a long answer, and aioquic takes three times
as long for each. Whatever is not plain goes the usual way: other frames, gaps, other addresses, new
keys. Acknowledgements travel with what is sent anyway, instead of a millisecond later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aioquic
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # aioquic does not say so
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicPacketType, decode_packet_number, pull_ack_frame
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch

if TYPE_CHECKING:
    from aioquic.quic.connection import QuicConnection as Base
else:
    Base = object

# The series whose insides these know.
KNOWN = aioquic.__version__.startswith("1.7.")
_TURN = 16  # Packets of a stream before the others have their turn.
_TAG = 16
_HEADER = 3  # Of a short packet, without the connection id.
_STREAM, _OFFSET, _LENGTH, _FIN = 0x08, 4, 2, 1
_ACK = 0x02
_EARLIER_S = 0.000_1
_MAX_RANGES = 64  # Of packets to acknowledge; beyond, aioquic drops some.


class Shortcuts(Base):
    """To be mixed into aioquic's connection."""

    _unacked = 0
    """Packets that have come since an acknowledgement was sent."""

    # -- input ---------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        if (
            KNOWN
            and data
            and data[0] & 0xC0 == 0x40
            and self._handshake_confirmed
            and self._state is QuicConnectionState.CONNECTED
            and self._take(data, addr, now)
        ):
            self._unacked += 1
            return
        super().receive_datagram(data, addr, now)
        self._unacked += 1

    def _take(self, data: bytes, addr: Any, now: float) -> bool:
        """Handle a packet that is nothing but the next bytes of a stream; False for any other."""
        path = self._network_paths[0]
        start = 1 + len(self.host_cid)
        if path.addr != addr or not path.is_validated or data[1:start] != self.host_cid:
            return False
        space: Any = self._spaces[Epoch.ONE_RTT]
        crypto: Any = self._cryptos[Epoch.ONE_RTT].recv
        sample = data[start + 4 : start + 20]  # RFC 9001, 5.4.2
        if len(sample) < 16 or len(space.ack_queue) > _MAX_RANGES:
            return False
        mask = crypto.hp._mask(sample)
        first = data[0] ^ mask[0] & 0x1F
        width = (first & 3) + 1
        shown = (
            int.from_bytes(data[start : start + 4], "big") ^ int.from_bytes(mask[1:5], "big")
        ) >> (32 - 8 * width)
        number = decode_packet_number(shown, 8 * width, space.expected_packet_number)
        if (first & 4) >> 2 != crypto.key_phase or first & 0x18:
            return False
        if number <= space.largest_received_packet:
            return False
        header = b"".join((bytes((first,)), data[1:start], shown.to_bytes(width, "big")))
        try:
            plain = crypto.aead.decrypt(data[start + width :], header, number)
        except ValueError:  # aioquic's CryptoError.
            return False
        acked, at = None, 0
        try:
            if plain[0] == _ACK:
                buffer = Buffer(data=plain)
                buffer.seek(1)
                acked = pull_ack_frame(buffer)
                at = buffer.tell()
            fed = self._feed(plain, at) if at < len(plain) else None
        except (IndexError, ValueError):  # aioquic's BufferReadError is one, too.
            return False
        if fed is None and at < len(plain):
            return False
        if acked is not None:
            ranges, delay = acked
            self._loss.on_ack_received(
                ack_rangeset=ranges,
                ack_delay=(delay << self._remote_ack_delay_exponent) / 1_000_000,
                now=now,
                space=space,
            )
        if fed is not None:
            self._events.append(fed)
        self._note(space, number, first, now, asks=fed is not None)
        return True

    def _feed(self, plain: bytes, at: int) -> StreamDataReceived | None:
        """Take the next bytes of a stream, if a packet is nothing else from here on.

        Raises:
            IndexError: the packet ends within a frame.
        """
        kind = plain[at]
        if kind & ~(_OFFSET | _LENGTH) != _STREAM:
            return None
        stream_id, at = _varint(plain, at + 1)
        offset, at = _varint(plain, at) if kind & _OFFSET else (0, at)
        if kind & _LENGTH:
            size, at = _varint(plain, at)
        else:
            size = len(plain) - at
        stream = self._streams.get(stream_id)
        if stream is None or not size or at + size != len(plain):
            return None
        receiver, limit, end = stream.receiver, self._local_max_data, offset + size
        if (
            offset != receiver.highest_offset
            or offset != receiver._buffer_start
            or receiver.is_finished
            or receiver._final_size is not None
            or end > stream.max_stream_data_local
            or limit.used + size > limit.value
        ):
            return None
        receiver.highest_offset = receiver._buffer_start = end
        limit.used += size
        return StreamDataReceived(plain[at:], False, stream_id)

    def _note(self, space: Any, number: int, first: int, now: float, *, asks: bool) -> None:
        """What aioquic notes of each packet, and of those that ask for an acknowledgement."""
        space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            self._spin_bit = bool(first & 0x20) != self._is_client
            self._spin_highest_pn = number
        if now != space.largest_received_time or self._ack_eliciting_sent_since_receipt:
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = False
        space.largest_received_packet = number
        space.largest_received_time = now
        space.ack_queue.add(number)
        space.received_packets.add(number)
        if asks and space.ack_at is None:
            space.ack_at = now + self._ack_delay

    # -- output --------------------------------------------------------------------------------

    def _write_application(self, builder: Any, network_path: Any, now: float) -> None:
        space = self._spaces[Epoch.ONE_RTT]
        if space.ack_at is not None and (self._unacked > 1 or self._has_data()):
            # With what leaves anyway, or for every second packet (RFC 9000, 13.2.2).
            space.ack_at = min(space.ack_at, now - _EARLIER_S)
        if (
            KNOWN
            and self._handshake_confirmed
            and network_path.is_validated
            and not self._probe_pending
            and builder.max_total_bytes is None
            and not self._cryptos[Epoch.ONE_RTT]._update_key_requested
        ):
            self._write_full(builder, now)
            self._write_word(builder, space, now)
            if self._is_at_rest(space, network_path, now):
                if space.ack_at is None:
                    self._unacked = 0
                return
        super()._write_application(builder, network_path, now)
        if space.ack_at is None:
            self._unacked = 0

    def _has_data(self) -> bool:
        return any(not stream.sender.buffer_is_empty for stream in self._streams_queue)

    def _write_full(self, builder: Any, now: float) -> None:
        """Write packets that are full of one stream each, as long as there are such."""
        queue = self._streams_queue
        while served := [stream for stream in queue if self._write_turn(builder, stream, now)]:
            if len(queue) > 1:
                # Others come first in the packet that aioquic writes next.
                queue[:] = [stream for stream in queue if stream not in served] + served

    def _write_turn(self, builder: Any, stream: Any, now: float) -> bool:
        """Write some packets of a stream; whether there was one."""
        sender = stream.sender
        if sender.buffer_is_empty or stream.is_blocked or sender.reset_pending:
            return False
        if stream.receiver.stop_pending or not len(sender._pending):  # It has no truth of its own.
            return False
        first = sender._pending[0]
        start, stop = first.start, first.stop
        limit = min(
            stop,
            stream.max_stream_data_remote,
            sender.highest_offset + self._remote_max_data - self._remote_max_data_used,
        )
        peer_cid = self._peer_cid.cid
        named = bytes((_STREAM | _OFFSET | _LENGTH,)) + _packed(stream.stream_id)
        # The offset takes eight bytes whatever it is, and the length two.
        size = builder._buffer_capacity - _HEADER - len(peer_cid) - len(named) - 10 - _TAG
        # What is not of this kind finds room, too.
        room = builder.max_flight_bytes - builder._flight_bytes - builder._buffer_capacity
        pacer = self._loss._pacer
        length = (size | 0x4000).to_bytes(2, "big")
        written = 0
        while (
            written < _TURN
            and limit - start >= size
            and room >= builder._buffer_capacity
            and pacer.next_send_time(now=now) is None
        ):
            end = start + size
            base = sender._buffer_start
            plain = b"".join(
                (
                    named,
                    (start | 0xC000000000000000).to_bytes(8, "big"),
                    length,
                    sender._buffer[start - base : end - base],
                )
            )
            room -= self._emit(builder, plain, [(sender.on_data_delivery, (start, end, False))])
            self._sent(sender, start, end)
            pacer.update_after_send(now=now)
            start = end
            written += 1
        return written > 0

    def _write_word(self, builder: Any, space: Any, now: float) -> None:
        """Write what little there is of one stream, with an acknowledgement."""
        busy: list[Any] = [
            stream for stream in self._streams_queue if not stream.sender.buffer_is_empty
        ]
        if len(busy) != 1:
            return
        (stream,) = busy
        sender = stream.sender
        if (
            stream.is_blocked
            or sender.reset_pending
            or sender._buffer_fin is not None
            or len(sender._pending) != 1
        ):
            return
        start, stop = sender._pending[0].start, sender._pending[0].stop
        size, frames = stop - start, b""
        handlers: list[Any] = []
        if space.ack_at is not None and space.ack_at <= now:
            if len(space.ack_queue) != 1:
                return
            acked = space.ack_queue[0]
            delay = int((now - space.largest_received_time) * 1_000_000)
            frames = b"".join(
                (
                    bytes((_ACK,)),
                    _packed(acked.stop - 1),
                    _packed(delay >> self._local_ack_delay_exponent),
                    b"\0",
                    _packed(acked.stop - 1 - acked.start),
                )
            )
            handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))
        frames += bytes((_STREAM | _OFFSET | _LENGTH,)) + _packed(stream.stream_id)
        frames += _packed(start) + _packed(size)
        total = _HEADER + len(self._peer_cid.cid) + len(frames) + size + _TAG
        if (
            stop > stream.max_stream_data_remote
            or stop - sender.highest_offset > self._remote_max_data - self._remote_max_data_used
            or total
            > min(builder._buffer_capacity, builder.max_flight_bytes - builder._flight_bytes)
            or self._loss._pacer.next_send_time(now=now) is not None
        ):
            return
        base = sender._buffer_start
        handlers.append((sender.on_data_delivery, (start, stop, False)))
        self._emit(builder, frames + sender._buffer[start - base : stop - base], handlers)
        self._sent(sender, start, stop)
        self._loss._pacer.update_after_send(now=now)
        sender.buffer_is_empty = True
        if len(handlers) > 1:
            space.ack_at = None

    def _emit(self, builder: Any, plain: bytes, handlers: list[Any]) -> int:
        """Make a packet of its frames; returns its size."""
        crypto: Any = self._cryptos[Epoch.ONE_RTT].send
        number = builder._packet_number
        first, cid, shown = (
            0x41 | self._spin_bit << 5 | crypto.key_phase << 2,
            self._peer_cid.cid,
            number & 0xFFFF,
        )
        header = b"".join((bytes((first,)), cid, shown.to_bytes(2, "big")))
        sealed = crypto.aead.encrypt(plain, header, number)
        mask = crypto.hp._mask(sealed[2:18])  # RFC 9001, 5.4.2
        shown ^= mask[1] << 8 | mask[2]
        datagram = b"".join(
            (bytes((first ^ mask[0] & 0x1F,)), cid, shown.to_bytes(2, "big"), sealed)
        )
        packet = QuicSentPacket(Epoch.ONE_RTT, True, True, False, number, QuicPacketType.ONE_RTT)
        packet.sent_bytes = size = len(datagram)
        packet.delivery_handlers = handlers
        builder._packets.append(packet)
        builder._datagrams.append(datagram)
        builder._packet_number = number + 1
        builder._flight_bytes += size
        builder._total_bytes += size
        return size

    def _sent(self, sender: Any, start: int, end: int) -> None:
        sender._pending.subtract(start, end)
        if end > sender.highest_offset:
            self._remote_max_data_used += end - max(start, sender.highest_offset)
            sender.highest_offset = end

    def _is_at_rest(self, space: Any, path: Any, now: float) -> bool:
        """Whether aioquic would write nothing now."""
        streams, data = self._local_max_streams_bidi, self._local_max_data
        return not (
            (space.ack_at is not None and space.ack_at <= now)
            or self._handshake_done_pending
            or path.remote_challenges
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or self._ping_pending
            or self._probe_pending
            or self._datagrams_pending
            or data.used * 2 > data.value
            or data.value != data.sent
            or streams.value - streams.sent > streams.sent - streams.used
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
            or not all(known.was_sent for known in self._host_cids)
            or not all(map(self._stream_is_at_rest, self._streams_queue))
        )

    def _stream_is_at_rest(self, stream: Any) -> bool:
        sender, receiver = stream.sender, stream.receiver
        return (
            sender.buffer_is_empty
            and not sender.reset_pending
            and not receiver.stop_pending
            and not (sender.is_finished and receiver.is_finished)
            and self.limit_of(stream) == stream.max_stream_data_local_sent
        )

    def limit_of(self, stream: Any) -> int:
        """Up to where the peer may send on a stream."""
        return int(stream.max_stream_data_local)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends (RFC 9000, 16). Raises IndexError."""
    first = data[at]
    width = 1 << (first >> 6)
    if width == 1:
        return first, at + 1
    end = at + width
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[at:end], "big") & (1 << (8 * width - 2)) - 1, end


def _packed(number: int) -> bytes:
    """A number as it travels (RFC 9000, 16)."""
    for width, mark in ((1, 0), (2, 1), (4, 2)):
        if number < 1 << (8 * width - 2):
            return (number | mark << (8 * width - 2)).to_bytes(width, "big")
    return (number | 3 << 62).to_bytes(8, "big")
