"""Short ways through aioquic for packets that carry nothing but the bytes of streams.

These, and acknowledgements, are nearly all packets of a long answer, and aioquic takes three times
as long for each. Whatever is not plain goes the usual way: other frames, gaps, other addresses, new
keys. What comes is here, what goes in `quic_out`.
"""

from __future__ import annotations

from typing import Any

import aioquic
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # aioquic does not say so
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import decode_packet_number, pull_ack_frame
from aioquic.quic.rangeset import RangeSet
from aioquic.tls import Epoch

from pyfrp.net.quic_out import Outgoing

# The series whose insides these know.
KNOWN = aioquic.__version__.startswith("1.7.")
_STREAM, _OFFSET, _LENGTH = 0x08, 4, 2
_ACK, _PING = 0x02, 0x01
_MAX_RANGES = 64  # Of packets to acknowledge; beyond, aioquic drops some.


class Shortcuts(Outgoing):
    """To be mixed into aioquic's connection."""

    def __init__(self, **options: Any) -> None:
        self._short = KNOWN
        super().__init__(**options)

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        if (
            self._short
            and data
            and data[0] & 0xC0 == 0x40
            and self._handshake_confirmed
            and self._state is QuicConnectionState.CONNECTED
            and self._take(data, addr, now)
        ):
            return
        space = self._spaces.get(Epoch.ONE_RTT)
        expected = 0 if space is None else space.largest_received_packet + 1
        super().receive_datagram(data, addr, now)
        if space is not None:
            self._unacked += 1
            self._unacked_bytes += len(data)
            self._gap = self._gap or space.largest_received_packet != expected

    def _take(self, data: bytes, addr: Any, now: float) -> bool:
        """Handle a packet that is nothing but the next bytes of streams; False for any other."""
        path = self._network_paths[0]
        start = 1 + len(self.host_cid)
        if path.addr != addr or not path.is_validated or data[1:start] != self.host_cid:
            return False
        space: Any = self._space
        crypto = self._crypto.recv
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
        try:
            read = self._parse(plain)
        except (IndexError, ValueError):  # aioquic's BufferReadError is one, too.
            return False
        if read is None:
            return False
        acked, delay, pieces, asks = read
        if acked is not None:
            self._loss.on_ack_received(
                ack_rangeset=acked,
                ack_delay=(delay << self._remote_ack_delay_exponent) / 1_000_000,
                now=now,
                space=space,
            )
        for stream, at, end, size in pieces:
            stream.receiver.highest_offset += size
            stream.receiver._buffer_start += size
            self._local_max_data.used += size
            self._events.append(StreamDataReceived(plain[at:end], False, stream.stream_id))
        self._note(space, number, first, now, asks=asks)
        if asks:
            self._unacked += 1
            self._unacked_bytes += len(data)
        return True

    def _parse(
        self, plain: bytes
    ) -> tuple[RangeSet | None, int, list[tuple[Any, int, int, int]], bool] | None:
        """Look at the frames of a packet.

        Returns:
            What it acknowledges with what delay, of which streams it has bytes, and where and how
            many, and whether it has to be acknowledged; None if it is not plain.

        Raises:
            IndexError, ValueError: the packet ends within a frame.
        """
        acked: RangeSet | None = None
        delay = total = at = 0
        asks = False
        pieces: list[tuple[Any, int, int, int]] = []
        while at < len(plain):
            kind = plain[at]
            if kind & ~(_OFFSET | _LENGTH) == _STREAM:
                number, at = _varint(plain, at + 1)
                offset, at = _varint(plain, at) if kind & _OFFSET else (0, at)
                size, at = _varint(plain, at) if kind & _LENGTH else (len(plain) - at, at)
                stream: Any = self._streams.get(number)
                if stream is None or not size or at + size > len(plain):
                    return None
                receiver = stream.receiver
                total += size
                if (
                    offset != receiver.highest_offset
                    or offset != receiver._buffer_start
                    or receiver.is_finished
                    or receiver._final_size is not None
                    or offset + size > stream.max_stream_data_local
                    or any(stream is known for known, _, _, _ in pieces)
                ):
                    return None
                pieces.append((stream, at, at + size, size))
                at += size
                asks = True
            elif kind == _ACK and acked is None:
                buffer = Buffer(data=plain)
                buffer.seek(at + 1)
                acked, delay = pull_ack_frame(buffer)
                at = buffer.tell()
            elif kind == _PING:
                at += 1
                asks = True
            else:
                return None
        limit = self._local_max_data
        if not plain or limit.used + total > limit.value:
            return None
        return acked, delay, pieces, asks

    def _note(self, space: Any, number: int, first: int, now: float, *, asks: bool) -> None:
        """What aioquic notes of each packet, and of those that ask for an acknowledgement."""
        space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            self._spin_bit = bool(first & 0x20) != self._is_client
            self._spin_highest_pn = number
        self._ack_eliciting_sent_since_receipt = False
        self._is_not_idle(now)
        self._gap = self._gap or number != space.largest_received_packet + 1
        space.largest_received_packet = number
        space.largest_received_time = now
        space.ack_queue.add(number)
        space.received_packets.add(number)
        if asks and space.ack_at is None:
            space.ack_at = now + self._ack_delay


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends (RFC 9000, 16). Raises IndexError."""
    first = data[at]
    if first < 0x40:
        return first, at + 1
    width = 1 << (first >> 6)
    end = at + width
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[at:end], "big") & (1 << (8 * width - 2)) - 1, end
