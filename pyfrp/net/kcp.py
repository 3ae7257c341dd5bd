"""KCP sessions as endpoints: a reliable stream over a UDP socket.

KCP has no end of its own. Peers that are pyfrp tell each other (`pyfrp.wire.kcp.END`); that any
other has gone is noticed by what runs on top, or where nothing does that would, by questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from pyfrp.net.alarm import Alarm
from pyfrp.net.endpoint import HIGH_WATER, LOW_WATER
from pyfrp.wire.kcp_session import WINDOW, KcpSession

# After `close`, what was written may take its time to arrive, on a thin link or with a slow reader,
# for as long as the peer answers: it is asked often, and gone after such a silence. A reader that
# stopped would have it kept for ever, so that there is an end to it.
LOOK_S, LINGER_S, LONGEST_S = 0.5, 5.0, 300.0
# A peer whose system says that nobody listens any more has gone; while it starts this is normal.
REFUSED_S = 5.0
# Silences, one after the other, each ended by a question, after which a peer is gone.
QUESTIONS = 3
ASK_S = 0.25  # Between questions to a peer that has not answered yet.


class Datagrams(Protocol):
    """The socket below, connected: `pyfrp.net.trains.TrainSocket` or part of one."""

    def send_all(self, datagrams: Sequence[bytes]) -> None: ...
    def close(self) -> None: ...


class KcpEndpoint:
    """One session, paused until `resume_reading`.

    Whoever reads the socket calls `datagrams_received` and `error_received`.

    Args:
        socket: Sends to the peer; closed at the end.
        conv: The number of the conversation, equal on both sides.
        info: For `get_extra_info`: `sockname`, `peername`.
        send_window, window: As for `KcpSession`.
        skew: As for `KcpSession`.
        keepalive_s: Silence after which the peer is asked whether it is there; 0 where what runs on
            top does so.
        refused_s: How long a peer must have been silent for us to believe the system that nobody
            listens there.
    """

    def __init__(
        self,
        socket: Datagrams,
        *,
        conv: int,
        info: dict[str, Any],
        send_window: int = WINDOW,
        window: int = WINDOW,
        skew: int = 0,
        keepalive_s: float = 0.0,
        refused_s: float = REFUSED_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket
        self._info = info
        self._keepalive_s = keepalive_s
        self._refused_s = refused_s
        self._asked = 0
        self._protocol: asyncio.Protocol = asyncio.Protocol()
        self._high, self._low = HIGH_WATER, LOW_WATER
        self._full = False
        self._closing = False
        self._told = False
        self._lost = False
        self._released = False
        self._flushing = False
        self._linger: asyncio.TimerHandle | None = None
        self._settled: asyncio.Future[None] | None = None
        self._answer: asyncio.Future[Exception | None] | None = None
        self._alarm = Alarm(self._wake)
        self.session = KcpSession(
            conv,
            on_data=self._on_data,
            now=self._loop.time(),
            send_window=send_window,
            window=window,
            skew=skew,
        )
        self.session.hold()
        self._arm()

    # -- Endpoint ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]  # readers of bytes, by contract

    def write(self, data: bytes) -> None:
        if self._closing or not data:
            return
        self.session.write(data)
        if not self.session.gathers(self._loop.time()):
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
        if not self._closing:
            self.session.hold()

    def resume_reading(self) -> None:
        if not self._closing:
            self.session.release()
            self._hear_end()
            self._schedule()

    def close(self) -> None:
        """Let what was written arrive, then end."""
        if self._closing:
            return
        self._closing = True
        self.session.release()  # A peer that is not read could not end either.
        self.session.finish()
        self._flush()
        if not self.session.idle:
            now = self._loop.time()
            self._linger = self._loop.call_later(LOOK_S, self._look, now, now)

    def _look(self, closed: float, heard: float) -> None:
        """See whether the peer is still there to take what was written."""
        now = self._loop.time()
        heard = max(heard, self.session.heard)
        gone = self.session.ended or now - heard >= LINGER_S
        if gone or now - closed >= LONGEST_S:
            self._lose(None)
            return
        self.ask()
        self._linger = self._loop.call_later(LOOK_S, self._look, closed, heard)

    def abort(self) -> None:
        if not self._lost and not self._released:
            self._socket.send_all([self.session.farewell()])
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

    def ask(self) -> None:
        """Have the peer answer, whatever it is."""
        self.session.ask()
        self._schedule()

    async def answered(self) -> None:
        """Ask until the peer answers. Runs under the caller's deadline.

        Raises:
            OSError: the system says that nobody is there; the session is lost.
        """
        answer = self._answer = self._loop.create_future()
        try:
            while not answer.done():
                self.ask()
                await asyncio.wait((answer,), timeout=ASK_S)
            failure = answer.result()
            if failure is not None:
                raise failure
        finally:
            self._answer = None

    async def settle(self, limit_s: float) -> None:
        """Wait until what was written has arrived, but no longer than that."""
        self._flush()
        if self.session.idle or self._lost:
            return
        self._settled = self._loop.create_future()
        try:
            async with asyncio.timeout(limit_s):
                await self._settled
        except TimeoutError:
            pass  # The peer has gone, or will hear of it otherwise.
        finally:
            self._settled = None

    # -- what the socket brings ----------------------------------------------------------------

    def datagrams_received(self, datagrams: Sequence[bytes]) -> None:
        if self._lost or self._released:
            return
        self._asked = 0
        self.session.feed(datagrams, self._loop.time())
        if self.session.reset:
            self._closing = True
            self._lose(ConnectionResetError("the peer has ended this session"))
            return
        if self._answer is not None and not self._answer.done() and self.session.alive:
            self._answer.set_result(None)
        self._hear_end()
        if self.session.eager:
            self._schedule()
        else:
            self._after_output()

    def error_received(self, exc: OSError) -> None:
        """What the system says of an earlier datagram."""
        refused = isinstance(exc, ConnectionError)
        if refused and self._loop.time() - self.session.heard >= self._refused_s:
            self._closing = True
            self._lose(exc)

    # -- output --------------------------------------------------------------------------------

    def _on_data(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self._protocol.data_received(data)
        except BaseException:
            self.abort()  # As of any transport: what it did not read would be missing.
            raise

    def _hear_end(self) -> None:
        if self._told or self._closing or not self.session.ended:
            return
        self._told = True
        if not self._protocol.eof_received():
            self.close()

    def _schedule(self) -> None:
        """What comes up in a turn leaves in as few datagrams as possible."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        if self._lost or self._released:
            return
        datagrams = self.session.take_output(self._loop.time())
        if datagrams:
            self._socket.send_all(datagrams)
        self._after_output()

    def _after_output(self) -> None:
        if self._released:
            return  # The system told of the peer's end while it was sent.
        self._arm()
        if self.session.idle:
            if self._settled is not None and not self._settled.done():
                self._settled.set_result(None)
            if self._closing:
                self._loop.call_soon(self._lose, None)
                return
        if self._full and not self._closing and self.session.unsent <= self._low:
            self._full = False
            self._protocol.resume_writing()

    # -- time ----------------------------------------------------------------------------------

    def _arm(self) -> None:
        when = self.session.deadline()
        if self._keepalive_s > 0:
            ask_at = self.session.heard + self._keepalive_s * (self._asked + 1)
            when = ask_at if when is None else min(when, ask_at)
        self._alarm.set(when)

    def _wake(self) -> None:
        now = self._loop.time()
        self.session.wake(now)
        if self._keepalive_s > 0:
            silences = int((now - self.session.heard) / self._keepalive_s)
            if silences > QUESTIONS:
                self._closing = True
                self._lose(
                    TimeoutError(f"the peer was silent for {now - self.session.heard:.0f} s")
                )
                return
            if silences > self._asked:
                self.session.ask()
            self._asked = silences
        self._flush()

    # -- the end -------------------------------------------------------------------------------

    def _lose(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(exc or ConnectionAbortedError("the session was closed"))
        self._release()
        self._protocol.connection_lost(exc)

    def _release(self) -> None:
        self._released = True
        self._alarm.cancel()
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._socket.close()
