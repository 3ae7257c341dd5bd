"""A yamux session on a link, and its streams as endpoints.

All frames that come up during one turn of the event loop, whatever their stream, leave in one write
to the link: fewer TLS records, fewer system calls.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from pyfrp.errors import LinkError, LocalWireError, MuxError, PeerClosed
from pyfrp.net.alarm import Alarm
from pyfrp.net.endpoint import Endpoint, ViewReader, keeps_nothing, writer_of_pieces
from pyfrp.wire.yamux import BATCH, BURST, SLICE, Half, Session, Stream

# A link whose buffer grows this far although all sources are paused belongs to a peer that asks for
# answers (pings, opened streams) and does not read them.
UNREAD_LIMIT = 2 * 1024 * 1024
# For what is pending on a link that was closed to arrive: a peer that does not read would have it,
# and the connection, kept for ever.
LINGER_S = 10.0
# Marks of a link's write buffer, in bytes: what is in it delays everybody on a thin link.
LINK_HIGH = 64 * 1024
LINK_LOW = 16 * 1024
# Batches that full streams may send within a turn instead of pausing their sources. A loop would
# read a busy socket dozens of times before it looks at the others.
EARLY_LIMIT = 2
# Control frames at which output leaves within a turn: a loop may read a link dozens of times before
# the turn ends.
BACKLOG = 4096


class MuxStream(Stream):
    """A stream that speaks like a transport.

    `close` sends what is pending, then FIN, and discards what still comes; `abort` sends RST.
    """

    __slots__ = ("_closing", "_full", "_lost", "_mux", "_protocol")

    def __init__(self, session: Session[MuxStream], stream_id: int, mux: MuxTransport) -> None:
        super().__init__(session, stream_id)
        self._mux = mux
        self._protocol: asyncio.Protocol | None = None
        self._closing = False
        self._full = False
        self._lost = False

    # -- Endpoint ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]  # readers of bytes, by contract
        # The last one may have been told to pause. This one has to hear of it with its next write.
        self._full = False

    def get_protocol(self) -> asyncio.BaseProtocol | None:
        return self._protocol

    def lend(self, data: memoryview) -> None:
        """Write bytes of a buffer that is the caller's again afterwards."""
        if self._mux.borrows:
            super().lend(data)
        else:
            self.write(data.tobytes())

    def go_first(self) -> None:
        """Overtake the other streams: for the control conversation, on which all of them wait."""
        self._mux.session.first = self

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.end()

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def pause_reading(self) -> None:
        self.hold()

    def resume_reading(self) -> None:
        if self._holding and not self._closing:
            self.release()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._held_size:
            # Unread bytes would never be read; the peer must not wait for credit that never comes.
            self.abort()
            return
        self.end()
        self._holding = False
        if not self.pending:
            self._mux.loop.call_soon(self._lose, None)
        if self._in == Half.OPEN:
            self._mux.linger(self)

    def abort(self) -> None:
        self._closing = True
        self.reset()
        self._mux.loop.call_soon(self._lose, None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return default  # It belongs to the link and to all of its streams.
        return self._mux.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The marks are the session's: one slice, or nothing while the link is saturated."""

    def get_write_buffer_size(self) -> int:
        return self.pending

    # -- Stream --------------------------------------------------------------------------------

    def on_data(self, chunk: bytes) -> None:
        if self._closing:
            if not self.pending:
                self.abort()  # Tell the peer to stop; not sooner, for it takes all that is pending.
            return
        try:
            self._protocol.data_received(chunk)  # type: ignore[union-attr]  # set before any data
        except Exception as exc:
            self._mux.report(exc, "a stream's reader failed")
            self.abort()

    def on_end(self) -> None:
        if self._closing or self._protocol is None:
            return
        try:
            keep_open = self._protocol.eof_received()
        except Exception as exc:
            self._mux.report(exc, "a stream's reader failed")
            self.abort()
            return
        if not keep_open:
            self.close()

    def on_reset(self) -> None:
        self._closing = True
        why = self._mux.cause or "the stream was reset"
        self._mux.loop.call_soon(self._lose, ConnectionResetError(str(why)))

    def on_full(self) -> None:
        if self._full or self._protocol is None:
            return
        # A link that takes it is cheaper than a source that is stopped and started again.
        if not self._mux.make_room(self):
            self._full = True
            self._protocol.pause_writing()

    def on_drained(self) -> None:
        if self._out:
            return
        if self._full:
            self._mux.loop.call_soon(self._resume)
        if self._closing:
            self._mux.loop.call_soon(self._lose, None)

    def _resume(self) -> None:
        # Written to again meanwhile, it is drained again some time.
        if self._full and not self._out and self._protocol is not None:
            self._full = False
            self._protocol.resume_writing()

    def _lose(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(exc)


class MuxTransport(ViewReader):
    """One yamux session over an endpoint.

    Args:
        link: A connected endpoint; this becomes its protocol.
        client: Whether our side opens the odd streams.
        on_stream: Called with each stream the peer opens; must set its protocol before returning.
        on_lost: Called once with the cause when the link is gone, after every stream was told.
        keepalive_s: Seconds of silence before a ping.
        on_error: Called with an exception that escaped a stream's reader, and what it was.
    """

    def __init__(
        self,
        link: Endpoint,
        *,
        client: bool,
        on_stream: Callable[[MuxStream], None] | None,
        on_lost: Callable[[LinkError | MuxError], None],
        keepalive_s: float,
        on_error: Callable[[BaseException, str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._link = link
        self._on_lost = on_lost
        self.report = on_error
        self._saturated = False
        self._early = 0  # Batches that left within this turn, before its end.
        self._cause: LinkError | MuxError | None = None
        self._lost = False
        self._linger: asyncio.TimerHandle | None = None
        self.session: Session[MuxStream] = Session(
            client=client,
            make_stream=self._make_stream,
            on_stream=on_stream,
            on_output=self._schedule,
            on_burst=self._flush,
            on_pong=self._arm,
            now=self.loop.time(),
            keepalive=keepalive_s,
        )
        self._alarm = Alarm(self._wake)
        self._write_pieces = writer_of_pieces(link)
        self.borrows = keeps_nothing(link)
        link.set_write_buffer_limits(high=LINK_HIGH, low=LINK_LOW)
        link.set_protocol(self)
        self._arm()

    def _make_stream(self, session: Session[MuxStream], stream_id: int) -> MuxStream:
        return MuxStream(session, stream_id, self)

    def open(self) -> MuxStream:
        """Open a stream. Raises PeerClosed when the link takes no more."""
        try:
            return self.session.open()
        except LocalWireError as exc:
            raise PeerClosed(str(exc)) from exc

    @property
    def lost(self) -> bool:
        return self._lost

    @property
    def cause(self) -> LinkError | MuxError | None:
        """Why the link is gone; None while it is there."""
        return self._cause if self._lost else None

    def heard(self) -> float:
        """When anything last came, in the loop's time."""
        return self.session.heard

    def close(self, cause: LinkError | MuxError | None = None) -> None:
        """Drop the link and every stream. What was written in this turn still goes out."""
        self._cause = self._cause or cause
        if not self._lost:
            self._flush()
            if self._link.get_write_buffer_size():
                self._linger = self.loop.call_later(LINGER_S, self._link.abort)
            self._link.close()
            self._end()

    def abort(self, cause: LinkError | MuxError) -> None:
        """Drop the link at once, whatever is pending on it."""
        self._cause = self._cause or cause
        self._link.abort()
        self._end()

    def linger(self, stream: MuxStream) -> None:
        self.session.linger(stream, self.loop.time())
        self._arm()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._link.get_extra_info(name, default)

    # -- Protocol of the link ------------------------------------------------------------------

    def data_received(self, data: bytes | memoryview) -> None:
        try:
            self.session.feed(data, self.loop.time())
        except MuxError as exc:
            self.close(exc)
            return
        if self.session.backlog > BACKLOG:
            self._flush()

    def eof_received(self) -> bool:
        self.close(PeerClosed("the peer closed the link"))
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        if self._cause is None:
            self._cause = PeerClosed(f"the link was lost: {exc}" if exc else "the link was closed")
        self._end()

    def pause_writing(self) -> None:
        self._saturated = True
        self.session.high_water = 0
        self.session.burst = sys.maxsize
        self.session.batch = SLICE

    def resume_writing(self) -> None:
        self._saturated = False
        self.session.high_water = SLICE
        self.session.burst = BURST
        self._flush()

    # -- output --------------------------------------------------------------------------------

    def make_room(self, stream: MuxStream) -> bool:
        """Whether the link took what `stream` has pending, so that its source may go on."""
        if not self._saturated and self._early < EARLY_LIMIT:
            self._early += 1
            self._flush()
        return stream.pending <= self.session.high_water

    def _schedule(self) -> None:
        self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._early = 0
        self._flush()

    def _flush(self) -> None:
        if self._lost:
            return
        output = self.session.take_output(saturated=self._saturated)
        if output:
            if isinstance(output, bytes):
                size = len(output)
                self._link.write(output)
            else:
                size = sum(map(len, output))
                self._write_pieces(output)
            if not self._saturated:
                if self.session.batch < BATCH and size > self.session.batch:
                    self.session.batch *= 2
            elif self._link.get_write_buffer_size() > UNREAD_LIMIT:
                self.abort(MuxError("the peer asks for answers and does not read them"))

    # -- time and the end ----------------------------------------------------------------------

    def _arm(self) -> None:
        if not self._lost:  # What is left of a reading is still gone through.
            self._alarm.set(self.session.deadline())

    def _wake(self) -> None:
        try:
            self.session.wake(self.loop.time())
        except MuxError as exc:
            self.abort(exc)
            return
        self._arm()

    def _end(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._cause = self._cause or PeerClosed("the link was closed")
        self._alarm.cancel()
        self.session.close()
        self._on_lost(self._cause)
