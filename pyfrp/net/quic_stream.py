"""A stream of a QUIC connection as an endpoint.

Source: frp `pkg/util/net/conn.go` (`QuicStreamToNetConn`): how streams end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pyfrp.net.endpoint import HIGH_WATER, LOW_WATER
from pyfrp.net.quic_tls import WINDOW

if TYPE_CHECKING:
    from pyfrp.net.quic import QuicSession

_NO_ERROR = 0


class QuicStream:
    """One bidirectional stream, paused until `resume_reading`."""

    def __init__(self, session: QuicSession, number: int) -> None:
        self._session = session
        self._number = number
        self._protocol: asyncio.Protocol = asyncio.Protocol()
        self._held: list[bytes] = []
        self._holding = True
        self._written = 0
        self._full = False
        self._far_ended = False
        self._told_end = False
        self._near_ended = False
        self._refused = False
        self._closing = False
        self._lost = False
        self._consumed = self._allowed = 0

    def hold(self) -> None:
        """Keep what comes until there is a reader, as it does anyway."""

    # -- Endpoint ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]  # readers of bytes, by contract
        # The last one may have been told to pause. This one has to hear of it with its next write.
        self._full = False

    def write(self, data: bytes) -> None:
        if self._closing or self._near_ended or self._refused or not data:
            return
        self._send(data)
        self._written += len(data)
        if not self._full and self._unsent() > HIGH_WATER:
            self._full = True
            self._session.watch(self)
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not (self._near_ended or self._refused or self._lost):
            self._near_ended = True
            self._send(b"", end=True)

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def pause_reading(self) -> None:
        self._holding = True

    def resume_reading(self) -> None:
        if self._closing:
            return
        self._holding = False
        self.deliver()
        self._session.schedule()  # There may be credit to give.

    def close(self) -> None:
        """Send what is pending, and an end after it; refuse what still comes."""
        if self._closing:
            return
        self.write_eof()
        self._closing = True
        self._refuse()
        self._session.watch(self)
        self._session.schedule()

    def abort(self) -> None:
        self._closing = True
        if not self._session.ended.done():
            try:
                self._session.connection.reset_stream(self._number, _NO_ERROR)
            except ValueError:
                pass  # It has ended both ways, and is forgotten.
            self._refuse()
            self._session.schedule()
        self._session.loop.call_soon(self.lose, None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._session.info.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The marks are our own: the buffer is inside the connection."""

    def get_write_buffer_size(self) -> int:
        return self._unsent()

    # -- what the session tells ----------------------------------------------------------------

    def received(self, data: bytes, *, ended: bool) -> None:
        """Keep what came; `deliver` follows."""
        self._far_ended = self._far_ended or ended
        if data and not self._closing:
            self._held.append(data)

    def was_reset(self) -> None:
        self._far_ended = True
        if not self._closing:  # Else it is the answer to our refusal.
            self._closing = True
            self._session.loop.call_soon(self.lose, ConnectionResetError("the stream was reset"))

    def refused(self) -> None:
        """The peer reads no more; official ones say so whenever they close."""
        self._refused = True
        self._full = False
        if self._told_end or self._closing:
            self._session.loop.call_soon(self.lose, None)

    def sent(self) -> bool:
        """Something was sent, of whatever stream. Returns whether to be told of it further on."""
        if self._full and self._unsent() <= LOW_WATER and not self._closing:
            self._full = False
            self._protocol.resume_writing()
        if self._closing and self._session.connection.has_sent(self._number):
            self.lose(None)
        return not self._lost and (self._full or self._closing)

    def lose(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._held.clear()
        self._session.forget(self, self._number)
        self._protocol.connection_lost(exc)

    # -- helpers -------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Give the reader what there is for it, if it reads."""
        if self._holding or self._closing:
            return
        try:
            if self._held:
                data = b"".join(self._held)
                self._held.clear()
                self._consumed += len(data)
                if self._consumed - self._allowed >= WINDOW // 2:
                    # What was read and a window more, in steps of half a window.
                    self._allowed = self._consumed
                    self._session.connection.allow(self._number, self._consumed + WINDOW)
                self._protocol.data_received(data)
            # Not to a reader that said "hold" just now: a layer may still have bytes for it.
            waits = self._held or self._holding
            if self._far_ended and not (waits or self._told_end or self._closing):
                self._told_end = True
                if not self._protocol.eof_received():
                    self.close()
                elif self._refused:
                    self._session.loop.call_soon(self.lose, None)
        except Exception as exc:
            self._session.report(exc, "a stream's reader failed")
            self.abort()

    def _send(self, data: bytes, *, end: bool = False) -> None:
        try:
            self._session.connection.send_stream_data(self._number, data, end_stream=end)
        except (RuntimeError, ValueError):
            self._refused = True  # The peer has said so already; we have not read that far yet.
        self._session.schedule()

    def _unsent(self) -> int:
        return self._session.connection.unsent(self._number, self._written)

    def _refuse(self) -> None:
        if not self._far_ended and not self._session.ended.done():
            try:
                self._session.connection.stop_stream(self._number, _NO_ERROR)
            except ValueError:
                pass  # It has ended both ways, and is forgotten.
