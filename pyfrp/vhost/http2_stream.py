"""One stream of an HTTP/2 connection, in the shape of a caller of HTTP/1.1.

To its exchange it is a connection like any other (`pyfrp.net.endpoint`): it feeds the text of a
request and takes the text of an answer. To the connection it is what has bytes to send.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from pyfrp.errors import BadHead
from pyfrp.vhost.http2_frames import MAX_FRAME_BYTES, Code
from pyfrp.vhost.http2_heads import answer_fields, trailer_fields, trailer_text
from pyfrp.wire import http1
from pyfrp.wire.http1 import CHUNKED, LAST_CHUNK, UNTIL_CLOSE, ChunkedDecoder, encode_chunk

if TYPE_CHECKING:
    from pyfrp.vhost.http2 import Http2Caller

# Bytes of an answer that wait for the caller's windows before its source is paused, and below
# which it goes on. Smaller than a connection's marks, because a connection has many streams.
HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
NO_LIMIT = 1 << 62

_NO_BODY = 0


class Http2Stream:
    """An `Endpoint` whose far end is a stream.

    Args:
        caller: The connection.
        stream_id: Of the stream, which has just been opened.
        method: Of its request.
        length: Bytes of its body, or `CHUNKED`.
        asked: Whether the caller has ended its side already, as far as frames go.

    Attributes:
        asked: As given; the owner sets it later. Bytes of the request may still be held here.
    """

    __slots__ = (
        "_answer_left",
        "_answered",
        "_asked_left",
        "_buffer",
        "_caller",
        "_choked",
        "_decoder",
        "_held",
        "_in_body",
        "_method",
        "_out",
        "_over",
        "_protocol",
        "_reading",
        "_size",
        "_trailers",
        "asked",
        "stream_id",
    )

    def __init__(
        self, caller: Http2Caller, stream_id: int, method: bytes, length: int, *, asked: bool
    ) -> None:
        self.stream_id = stream_id
        self._caller = caller
        self._method = method
        self._protocol: asyncio.Protocol | None = None
        self._over = False  # Nothing more is sent.
        # The request:
        self.asked = asked
        self._asked_left = length
        self._reading = True
        self._held: deque[tuple[bytes, int]] = deque()  # What the exchange could not take yet.
        # The answer:
        self._buffer = b""  # An unfinished head.
        self._in_body = False
        self._answer_left = 0
        self._decoder: ChunkedDecoder | None = None
        self._answered = False  # The whole of it has been written here.
        self._trailers: list[tuple[bytes, bytes]] = []
        self._out: list[bytes | memoryview] = []
        self._size = 0
        self._choked = False

    # -- for the exchange ----------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        # The socket belongs to all streams; nobody tunes or watches it on behalf of one.
        return default if name == "socket" else self._caller.transport.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Without effect: a stream's marks are not those of a connection."""

    def get_write_buffer_size(self) -> int:
        return self._size

    def is_closing(self) -> bool:
        return self._over or self._answered

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        if self._over or self._answered:
            return
        try:
            if self._in_body:
                self._write_body(data)
            else:
                self._write_head(data)
        except BadHead:
            self.reset(Code.INTERNAL_ERROR)

    def close(self) -> None:
        """End the answer, if that is how its end is told; one that is incomplete is cut."""
        if self._over or self._answered:
            return
        if self._in_body and self._answer_left == UNTIL_CLOSE:
            self._complete()
            self._caller.push(self)
        else:
            self.reset(Code.INTERNAL_ERROR)

    def abort(self) -> None:
        self.reset(Code.INTERNAL_ERROR)

    def pause_reading(self) -> None:
        """Withhold the caller's window, and hold what it may still send."""
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            if self._held:
                self._caller.soon(self._deliver_held)

    # -- the answer ----------------------------------------------------------------------------

    def _write_head(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        while True:
            head = http1.next_response_head(data, self._method)
            if head is None:
                self._buffer = data
                return
            if head.status == 101:
                # There are no upgrades in HTTP/2, so nobody asked for one.
                self.reset(Code.INTERNAL_ERROR)
                return
            data = data[len(head.raw) :]
            if head.status >= 200:
                break
            self._caller.send_fields(self.stream_id, answer_fields(head), ended=False)
        self._buffer = b""
        self._in_body = True
        self._answer_left = length = head.length
        fields = answer_fields(head)
        if length == _NO_BODY:
            self._complete()
            self._caller.send_fields(self.stream_id, fields, ended=True)
            self._end()
            return
        if length == CHUNKED:
            self._decoder = ChunkedDecoder()
        self._caller.send_fields(self.stream_id, fields, ended=False)
        if data:
            self._write_body(data)

    def _write_body(self, data: bytes) -> None:
        decoder = self._decoder
        if decoder is not None:
            data, _ = decoder.feed(data)
            if decoder.done:
                self._trailers = trailer_fields(decoder.trailers)
                self._complete()
        elif self._answer_left != UNTIL_CLOSE:
            data = data[: self._answer_left]
            self._answer_left -= len(data)
            if not self._answer_left:
                self._complete()
        if data:
            self._out.append(data)
            self._size += len(data)
        elif not self._answered:
            return
        self._caller.push(self)
        protocol = self._protocol
        if self._size > HIGH_WATER and not self._choked and not self._answered and protocol:
            self._choked = True
            protocol.pause_writing()

    def _complete(self) -> None:
        """The answer is whole, so the exchange is done; what is left is to send it."""
        self._answered = True
        self._caller.soon(self._detach, None)

    def _detach(self, exc: Exception | None) -> None:
        protocol, self._protocol = self._protocol, None
        while self._held:
            self._caller.acknowledge(self.stream_id, self._held.popleft()[1])
        if protocol is not None:
            protocol.connection_lost(exc)

    # -- for the connection --------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether there is something to send."""
        return not self._over and (self._size > 0 or self._answered)

    def pump(self, limit: int) -> int:
        """Send at most `limit` bytes of the answer, as the windows allow.

        Returns:
            The number of frames that were sent.
        """
        if self._over:
            return 0
        frames = 0
        h2 = self._caller.h2
        window = min(h2.local_flow_control_window(self.stream_id), limit) if self._size else 0
        if window > 0:
            out = self._out
            data = memoryview(out[0] if len(out) == 1 else b"".join(out))
            size = min(window, len(data))
            self._size -= size
            self._out = [data[size:]] if self._size else []
            ends = self._answered and not self._size and not self._trailers
            for at in range(0, size, MAX_FRAME_BYTES):
                part = data[at : min(at + MAX_FRAME_BYTES, size)]
                h2.send_data(self.stream_id, part, end_stream=ends and at + len(part) == size)
                frames += 1
            if ends:
                self._end()
                return frames
        if self._answered and not self._size:
            if self._trailers:
                self._caller.send_fields(self.stream_id, self._trailers, ended=True)
            else:
                h2.end_stream(self.stream_id)
            self._end()
            return frames + 1
        if self._choked and self._size <= LOW_WATER:
            self._choked = False
            if self._protocol is not None:
                self._protocol.resume_writing()
        return frames

    def _end(self) -> None:
        """END_STREAM is out."""
        self._over = True
        if not self.asked:
            # The caller need not finish its request (RFC 9113, 8.1).
            self._caller.h2.reset_stream(self.stream_id, Code.NO_ERROR)
        self._caller.gone(self)

    def receive(
        self,
        data: bytes,
        credit: int,
        *,
        ended: bool,
        trailers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Take a part of the request's body.

        Args:
            credit: What it took of the windows, padding included.
            ended: Whether it is the last part.
        """
        text = data
        left = self._asked_left
        try:
            if left != CHUNKED:
                # More than was announced would be read as another request.
                self._asked_left = left = left - len(data)
                if left < 0 or (ended and left):
                    raise BadHead("a body that is not as long as its content-length")
            else:
                text = encode_chunk(data) if data else b""
                if ended:
                    text += trailer_text(trailers) if trailers else LAST_CHUNK
        except BadHead:
            self._caller.acknowledge(self.stream_id, credit)
            self.reset(Code.PROTOCOL_ERROR)
            return
        if self._protocol is not None and (self._held or not self._reading):
            self._held.append((text, credit))
        else:
            self._deliver(text, credit)

    def _deliver(self, text: bytes, credit: int) -> None:
        if text and self._protocol is not None:
            self._protocol.data_received(text)
        if credit:
            self._caller.acknowledge(self.stream_id, credit)

    def _deliver_held(self) -> None:
        while self._held and self._reading:
            self._deliver(*self._held.popleft())

    def reset(self, code: Code) -> None:
        """Cut the stream off; the exchange, if it still is at it, learns in the next turn."""
        if self._over:
            return
        self._caller.h2.reset_stream(self.stream_id, code)
        self._drop()
        self._caller.gone(self)
        self._caller.soon(self._detach, ConnectionAbortedError("the stream was reset"))

    def lose(self, exc: Exception | None) -> None:
        """The caller has cut the stream off, or is gone altogether."""
        self._drop()
        self._detach(exc)

    def _drop(self) -> None:
        self._over = True
        self._out.clear()
        self._size = 0
