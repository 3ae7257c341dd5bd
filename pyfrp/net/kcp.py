"""KCP sessions as endpoints: a reliable stream over a UDP socket.

KCP has no end of its own: a peer that is gone is noticed by what runs on top.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from pyfrp.net.endpoint import HIGH_WATER, LOW_WATER
from pyfrp.wire.kcp_session import KcpSession

# After `close`: for what was written to arrive.
LINGER_S = 2.0
# A peer whose system says that nobody listens any more has gone; while it starts this is normal.
REFUSED_S = 5.0


class Datagrams(Protocol):
    """The socket below: `pyfrp.net.datagrams.DatagramSocket`, connected."""

    def send(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class KcpEndpoint:
    """One session, paused until `resume_reading`.

    Whoever reads the socket calls `datagram_received` and `error_received`.

    Args:
        socket: Sends to the peer; closed at the end.
        conv: The number of the conversation, equal on both sides.
        info: For `get_extra_info`: `sockname`, `peername`.
    """

    def __init__(self, socket: Datagrams, *, conv: int, info: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket
        self._info = info
        self._protocol: asyncio.Protocol = asyncio.Protocol()
        self._high, self._low = HIGH_WATER, LOW_WATER
        self._full = False
        self._closing = False
        self._lost = False
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self.session = KcpSession(conv, on_data=self._on_data, now=self._loop.time())
        self.session.hold()

    # -- Endpoint ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]  # readers of bytes, by contract

    def write(self, data: bytes) -> None:
        if self._closing or not data:
            return
        self.session.write(data)
        self._schedule()
        if not self._full and self.session.unsent > self._high:
            self._full = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("KCP cannot end one direction alone")

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.session.hold()

    def resume_reading(self) -> None:
        if not self._closing:
            self.session.release()
            self._schedule()

    def close(self) -> None:
        """Let what was written arrive, for a moment, then end."""
        if self._closing:
            return
        self._closing = True
        self._flush()
        if self.session.idle:
            self._loop.call_soon(self._lose, None)
        else:
            self._linger = self._loop.call_later(LINGER_S, self._lose, None)

    def abort(self) -> None:
        self._closing = True
        self._release()
        self._loop.call_soon(self._lose, None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._info.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self.session.unsent

    # -- what the socket brings ----------------------------------------------------------------

    def datagram_received(self, data: bytes) -> None:
        if self._lost:
            return
        self.session.feed(data, self._loop.time())
        self._schedule()

    def error_received(self, exc: OSError) -> None:
        """What the system says of an earlier datagram."""
        refused = isinstance(exc, ConnectionError)
        if refused and self._loop.time() - self.session.heard > REFUSED_S:
            self._closing = True
            self._lose(exc)

    # -- output --------------------------------------------------------------------------------

    def _on_data(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)

    def _schedule(self) -> None:
        """What comes up in a turn leaves in as few datagrams as possible."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._lost:
            return
        for datagram in self.session.take_output(self._loop.time()):
            self._socket.send(datagram)
        self._arm()
        if self._closing:
            if self.session.idle:
                self._lose(None)
        elif self._full and self.session.unsent <= self._low:
            self._full = False
            self._protocol.resume_writing()

    def _arm(self) -> None:
        when = self.session.deadline()
        if self._timer is not None:
            if when is not None and self._timer.when() <= when:
                return  # It fires early enough, and is set again then.
            self._timer.cancel()
        self._timer = None if when is None else self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.session.wake(self._loop.time())
        self._flush()

    # -- the end -------------------------------------------------------------------------------

    def _lose(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._release()
        self._protocol.connection_lost(exc)

    def _release(self) -> None:
        for timer in (self._timer, self._linger):
            if timer is not None:
                timer.cancel()
        self._timer = self._linger = None
        self._socket.close()
