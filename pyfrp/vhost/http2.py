"""HTTP/2: one connection, many exchanges.

Each stream is a caller of its own to the exchange of HTTP/1.1, so that routes, credentials, limits,
headers and refusals are the same for both (`pyfrp.vhost.exchange`). Here are the connection's
windows, its turns and its ends.

Source: RFC 9113. The `h2` package keeps the states of the connection and its streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream

from pyfrp.errors import BadHead
from pyfrp.net.endpoint import HIGH_WATER, Endpoint, peer_address
from pyfrp.vhost.exchange import HttpExchange
from pyfrp.vhost.http2_frames import MAX_FRAME_BYTES, Code, FrameGate, Http2Error, goaway
from pyfrp.vhost.http2_heads import accepts_json, request_text
from pyfrp.vhost.http2_stream import NO_LIMIT, Http2Stream
from pyfrp.vhost.serving import Refusal, Serving
from pyfrp.wire.http1 import CHUNKED, MAX_HEAD_BYTES, error_response

MAX_STREAMS = 128
IDLE_S = 60.0  # Without a stream; as an idle connection of HTTP/1.1.
LINGER_S = 5.0  # To take the last bytes of a connection that was closed.
# What one upload may have in flight, and all of them together. With the first, 50 ms to the caller
# still carry 5 MB/s; the second bounds what backends that do not read can make us hold.
STREAM_WINDOW = 256 * 1024
CONNECTION_WINDOW = 4 * 1024 * 1024
# Frames other than DATA for a caller that does not read, before we stop reading it, too.
UNREAD_BYTES = 64 * 1024
# The compression table of answers: h2 would let the caller choose up to 4 GiB, and searches it.
TABLE_BYTES = 4096
# Answers wait in their streams, not in the transport; so much is handed to it at a time.
FLUSH_BYTES = HIGH_WATER


class _Connection(H2Connection):
    """`H2Connection` with limits for a public port."""

    # Closed streams are remembered for frames that were under way; 65536 of them take 10 MB.
    MAX_CLOSED_STREAMS = 1024

    @property
    def open_inbound_streams(self) -> int:
        """None, so that a stream too many is refused alone and not with the whole connection."""
        return super().open_inbound_streams * 0  # Asked, it also forgets the closed ones.

    def _begin_new_stream(self, stream_id: int, allowed_ids: Any) -> H2Stream:
        """A stream that does not look at content-length, for which h2 would end the connection.

        `http2_heads` and `Http2Stream.receive` do, and end the stream alone (RFC 9113, 8.1.1).
        """
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        stream._initialize_content_length = _ignore  # type: ignore[method-assign]  # of this one
        return stream


def _ignore(headers: object) -> None:
    pass


class Http2Caller(asyncio.Protocol):
    """The protocol of a connection that began with HTTP/2's preface.

    It takes the endpoint over; the bytes read so far go to `data_received`. To the frontend it is
    one more exchange: it is told to drain, to expire, and to abort.

    Args:
        transport: The caller's connection, reading or about to.
        frontend: For the exchanges of its streams.

    Attributes:
        deadline: When `expire` is to be called; 0 for never.
        h2: For the streams.
    """

    def __init__(self, transport: Endpoint, frontend: Serving) -> None:
        self.transport = transport
        self.soon: Callable[..., Any] = frontend.soon
        self.deadline = frontend.clock() + IDLE_S
        self._frontend = frontend
        self._streams: dict[int, Http2Stream] = {}
        self._waiting: dict[Http2Stream, None] = {}  # For a window, or the transport.
        self._gate = FrameGate(frontend.clock(), self._streams)
        self._closing = False
        self._last = False  # No stream is taken after those that are open.
        self._busy = False  # What is sent leaves at the end of the current callback.
        self._read_soon = False
        self._reading = True
        self._choked = False
        self._unread = 0  # Bytes written since the transport was choked.
        self.h2 = _Connection(
            H2Configuration(
                client_side=False,
                # The same checks are made here (`http2_heads`), where they cost one stream and
                # not the connection, and a tenth of the time.
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
            },
        )
        # Up to here the exchange says 431; a block that unpacks to more ends the connection.
        self.h2.decoder.max_header_list_size = 2 * MAX_HEAD_BYTES
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW - 65535)
        transport.set_protocol(self)
        # The frontend knows one kind of caller; this one answers to the same four names.
        frontend.enter(cast(HttpExchange, self))
        self._touch()
        if frontend.draining:
            self.drain()

    # -- the transport -------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._gate.feed(data)
        if not self._read_soon:
            self._read()

    def eof_received(self) -> bool:
        """The caller is gone: HTTP/2 has no use for one that cannot open its windows."""
        self._lose_streams(None)
        self._closing = True
        self.deadline = self._frontend.clock() + LINGER_S
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._lose_streams(exc)
        self._frontend.leave(cast(HttpExchange, self))

    def pause_writing(self) -> None:
        self._choked = True
        self._unread = 0

    def resume_writing(self) -> None:
        self._choked = False
        self._pump()
        if self._gate.ready:
            self._read_later()
        self._set_reading()

    # -- reading -------------------------------------------------------------------------------

    def _read_later(self) -> None:
        if not self._read_soon:
            self._read_soon = True
            self.soon(self._read)

    def _read(self) -> None:
        """Look at the next frames; the rest waits for the next turn of the loop."""
        self._read_soon = False
        if self._closing or self._overfull():
            return
        self._busy = True
        try:
            self._take_frames()
        except Http2Error as exc:
            self._fail(exc, exc.code)
        finally:
            self._busy = False
        self._flush()
        if not self._closing:
            if self._gate.ready:
                self._read_later()
            self._set_reading()

    def _take_frames(self) -> None:
        gate = self._gate
        frames = gate.take(self._frontend.clock())
        if frames:
            try:
                events = self.h2.receive_data(frames)
            except ProtocolError as exc:
                self._fail(exc, None)
                return
            except Exception as exc:
                # Bytes that h2 and its parts did not foresee; never seen, and not worth a process.
                self._fail(exc, Code.INTERNAL_ERROR)
                return
            self._handle(events)
        if gate.goaway is not None and not self._closing:
            self._last = True
            if gate.goaway != Code.NO_ERROR:
                self._lose_streams(None)
            self._close_if_done()

    def _handle(self, events: list[Event]) -> None:
        # h2 is at the end of these events already: what it has closed takes nothing any more.
        reset: set[int | None] = set()
        ended: set[int | None] = set()
        for event in events:
            if isinstance(event, StreamReset):
                reset.add(event.stream_id)
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None:
                    self.gone(stream)
                    stream.lose(None)
            elif isinstance(event, StreamEnded):
                ended.add(event.stream_id)
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None:
                    stream.asked = True
        opened = False
        for event in events:
            if isinstance(event, DataReceived):
                self._take_data(event)
            elif isinstance(event, RequestReceived):
                self._gate.highest = event.stream_id or 0
                if event.stream_id not in reset:
                    self._take_request(event, asked=event.stream_id in ended)
            elif isinstance(event, TrailersReceived):
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None:
                    stream.receive(b"", 0, ended=True, trailers=event.headers or ())
            elif isinstance(event, WindowUpdated):
                opened = True
            elif isinstance(event, RemoteSettingsChanged):
                opened = True
                if self.h2.encoder.header_table_size > TABLE_BYTES:
                    self.h2.encoder.header_table_size = TABLE_BYTES
        if opened:
            self._pump()

    def _take_request(self, event: RequestReceived, *, asked: bool) -> None:
        stream_id = event.stream_id or 0
        fields = event.headers or []
        if self._last or len(self._streams) >= MAX_STREAMS:
            # Told so, a caller may safely repeat it (RFC 9113, 8.7).
            self.h2.reset_stream(stream_id, Code.REFUSED_STREAM)
            self._gate.charge()
            return
        self.deadline = 0.0
        try:
            request = request_text(fields, ended=event.stream_ended is not None)
        except BadHead as exc:
            self._refuse(stream_id, fields, exc, asked=asked)
            return
        stream = Http2Stream(self, stream_id, request.method, request.length, asked=asked)
        self._streams[stream_id] = stream
        exchange = HttpExchange(self._frontend)
        stream.set_protocol(exchange)
        exchange.connection_made(cast(asyncio.BaseTransport, stream))
        exchange.data_received(request.head)

    def _refuse(
        self, stream_id: int, fields: Sequence[tuple[bytes, bytes]], exc: BadHead, *, asked: bool
    ) -> None:
        """Answer a request that cannot be put to an exchange."""
        address = peer_address(self.transport)
        self._frontend.log_refusal(
            Refusal(None, None, address, exc.status, "request head", str(exc))
        )
        head_only = (b":method", b"HEAD") in fields
        method = b"HEAD" if head_only else b"GET"
        stream = Http2Stream(self, stream_id, method, CHUNKED, asked=asked)
        self._streams[stream_id] = stream
        stream.write(
            error_response(
                exc.status,
                str(exc),
                json=accepts_json(fields),
                keep_alive=True,
                head_only=head_only,
            )
        )

    def _take_data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id or 0)
        credit = event.flow_controlled_length or 0
        if stream is None:
            self.acknowledge(event.stream_id or 0, credit)
        else:
            stream.receive(event.data or b"", credit, ended=event.stream_ended is not None)

    def _overfull(self) -> bool:
        """Whether the caller must read before it is read."""
        return self._choked and self._unread > UNREAD_BYTES

    def _set_reading(self) -> None:
        reading = not self._read_soon and not self._overfull()
        if reading is self._reading or self._closing:
            return
        self._reading = reading
        if reading:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    # -- writing, for the streams --------------------------------------------------------------

    def send_fields(
        self, stream_id: int, fields: list[tuple[bytes, bytes]], *, ended: bool
    ) -> None:
        """Send the fields of an answer, or its trailers."""
        self.h2.send_headers(stream_id, fields, end_stream=ended)
        self._gate.earn(1)
        self._touch()

    def acknowledge(self, stream_id: int, credit: int) -> None:
        """Open the windows again by what the exchange has taken."""
        if credit and not self._closing:
            self.h2.acknowledge_received_data(credit, stream_id)
            self._touch()

    def push(self, stream: Http2Stream) -> None:
        """Send what a stream has, as far as that is possible now."""
        if not self._choked:
            self._gate.earn(stream.pump(NO_LIMIT))
            self._touch()
        if stream.waits:
            self._waiting[stream] = None
        else:
            self._waiting.pop(stream, None)

    def gone(self, stream: Http2Stream) -> None:
        """A stream has ended."""
        self._waiting.pop(stream, None)
        self._streams.pop(stream.stream_id, None)
        self._touch()
        if not self._streams:
            self.deadline = self._frontend.clock() + IDLE_S
            if self._last:
                self.soon(self._close_if_done)

    def _pump(self) -> None:
        """Let the waiting streams send, in turn, until nothing moves or the transport is full."""
        waiting = self._waiting
        busy, self._busy = self._busy, True
        moved = not self._choked
        while moved and waiting:
            moved = False
            queued = 0
            for stream in list(waiting):
                frames = stream.pump(MAX_FRAME_BYTES)
                waiting.pop(stream, None)
                if stream.waits:
                    waiting[stream] = None  # Behind the others.
                if not frames:
                    continue
                self._gate.earn(frames)
                moved = True
                queued += MAX_FRAME_BYTES
                if queued >= FLUSH_BYTES:
                    queued = 0
                    if not self._flush():
                        moved = False
                        break
            moved = self._flush() and moved
        self._busy = busy

    def _touch(self) -> None:
        """There may be something to send: all of it leaves at once, in this turn of the loop."""
        if not self._busy:
            self._busy = True
            self.soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._busy = False
        self._flush()
        self._set_reading()

    def _flush(self, more: bytes = b"") -> bool:
        """Write what there is; tell whether the transport takes more."""
        out = self.h2.data_to_send() + more
        if out and not self._closing:
            if self._choked:
                self._unread += len(out)
            self.transport.write(out)
        return not self._choked and not self._closing

    # -- ends ----------------------------------------------------------------------------------

    def _fail(self, exc: Exception, code: Code | None) -> None:
        """End the connection of a caller that broke a rule.

        Args:
            code: For the GOAWAY frame; None when h2 has written one.
        """
        address = peer_address(self.transport)
        self._frontend.log_refusal(Refusal(None, None, address, 400, "http2 connection", str(exc)))
        self._flush()
        self._lose_streams(None)
        self._close(code)

    def _close(self, code: Code | None) -> None:
        if self._closing:
            return
        self._flush(goaway(self._gate.highest, code) if code is not None else b"")
        self._closing = True
        self.deadline = self._frontend.clock() + LINGER_S
        self.transport.close()

    def _close_if_done(self) -> None:
        if self._last and not self._streams:
            self._close(Code.NO_ERROR)

    def _lose_streams(self, exc: Exception | None) -> None:
        streams = list(self._streams.values())
        self._streams.clear()
        self._waiting.clear()
        for stream in streams:
            stream.lose(exc)

    # -- for the frontend ----------------------------------------------------------------------

    def expire(self) -> None:
        """The frontend found `deadline` passed."""
        self.deadline = 0.0
        if self._closing:
            self.transport.abort()
        else:
            self._last = True
            self._close_if_done()

    def drain(self) -> None:
        """The server is ending: open streams go on, new ones are refused.

        GOAWAY waits for the last stream. Callers made of `h2`, as httpx is, take nothing after it,
        and would lose the answers that they are in the middle of.
        """
        self._last = True
        self._close_if_done()

    def abort(self) -> None:
        self.transport.abort()
