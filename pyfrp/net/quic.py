"""QUIC connections over a UDP socket, and their streams as endpoints.

The protocol itself is aioquic's, which does no I/O; here are the timer, the order of things, and
what it leaves to its user: whom to trust, and when a peer is gone.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from aioquic.quic.events import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from pyfrp.errors import HandshakeError, LinkError, PeerClosed
from pyfrp.net import quic_tls
from pyfrp.net.quic_connection import ACK_DELAY_S, Connection
from pyfrp.net.quic_stream import QuicStream
from pyfrp.net.quic_tls import ALPN, DATAGRAM, WINDOW, Setup, Untrusted

__all__ = ["DATAGRAM", "WINDOW", "Address", "Datagrams", "QuicSession", "QuicStream"]

Address: TypeAlias = tuple[Any, ...]

HANDSHAKE_S = 10.0
MIN_INITIAL = 1200  # RFC 9000, 14.1
# Bytes to read in a turn, after which all of it is acknowledged at once: with an eighth of that, an
# echo of 8 MB over loopback takes 6 % longer.
TURN = 1024 * 1024
# A peer whose system says that nobody listens any more has gone; while it starts this is normal.
REFUSED_S = 5.0
# A stateless reset is sent by who knows nothing of us, and is small (RFC 9000, 10.3).
RESET_SIZES = range(21, 129)
_NO_ERROR = 0
_CRYPTO_FRAME = 6
_CRYPTO_ERROR = 0x100  # And a TLS alert (RFC 9001, 4.8).
# Version and first byte of an initial packet: QUIC 1 and QUIC 2.
_INITIAL = ((1, 0xC0), (0x6B3343CF, 0xD0))
_ALERTS = {
    quic_tls.NO_ALPN: "it speaks QUIC, but not frp (no ALPN in common)",
    quic_tls.CERTIFICATE_REQUIRED: (
        "a client certificate is required; set transport.tls.certFile and transport.tls.keyFile "
        "on the client"
    ),
    quic_tls.BAD_CERTIFICATE: "it refuses our certificate",
    quic_tls.CERTIFICATE_EXPIRED: "it refuses our certificate as expired",
    quic_tls.UNKNOWN_CA: "it does not trust our certificate",
}


class Datagrams(Protocol):
    """The socket below."""

    def send_many(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Send each to its address, in this order."""
        ...

    def close(self) -> None: ...


class QuicSession:
    """One connection. Whoever reads the socket calls `datagram_received` and `error_received`.

    Args:
        socket: Sends to the peer; closed at the end.
        peer: Its address.
        setup: Of our side. A client begins at once, a server with the first datagram.
        info: For `get_extra_info` of the streams.
        on_stream: Called with each stream that the peer opens, paused; None to refuse them.
        report: Called with an exception that escaped a stream's reader, and what it was.
        origin: For `Connection`, of a server whose first datagram was looked at already.
        largest: Bytes of a datagram to try at most, where the socket sends whole what is larger
            than DATAGRAM.

    Attributes:
        ended: Settled with the reason when the connection is gone.
        answered: Whether the peer has said anything.
    """

    def __init__(
        self,
        socket: Datagrams,
        peer: Address,
        *,
        setup: Setup,
        info: dict[str, Any],
        on_stream: Callable[[QuicStream], None] | None,
        report: Callable[[BaseException, str], None],
        origin: dict[str, Any] | None = None,
        largest: int = 0,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.info = info
        self.report = report
        self.ended: asyncio.Future[Exception] = self.loop.create_future()
        self.answered = False
        self._ready: asyncio.Future[None] = self.loop.create_future()
        self._socket = socket
        self._peer = peer
        self._setup = setup
        self._client = setup.quic.is_client
        self._on_stream = on_stream
        self._streams: dict[int, QuicStream] = {}
        self._watched: set[QuicStream] = set()
        self._fed: dict[QuicStream, None] = {}
        self._seen = 0  # Streams that the peer has opened.
        self._heard = self.loop.time()
        idle_s = setup.quic.idle_timeout
        self._keepalive_s = min(max(setup.keepalive_s, 1.0), idle_s / 2)
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = 0.0
        self._pinger: asyncio.TimerHandle | None = None
        self._limit = self.loop.call_later(HANDSHAKE_S, self._too_slow)
        self._connection: Connection | None = None
        if self._client or origin is not None:
            self._connection = Connection(setup, largest=largest, **origin or {})
        if self._client:
            self.connection.connect(peer, now=self.loop.time())
            self.flush()

    @property
    def connection(self) -> Connection:
        """aioquic's part, once there is one."""
        assert self._connection is not None
        return self._connection

    async def ready(self) -> None:
        """Wait for the handshake.

        Raises:
            HandshakeError: it failed, or the peer does not answer; the connection is closed.
        """
        try:
            await self._ready
        except BaseException:
            self.close()
            raise

    def open(self, *, announce: bool = True) -> QuicStream:
        """Open a stream, paused.

        Args:
            announce: Let the peer know of it although nothing is written yet.

        Raises:
            PeerClosed: the connection is gone.
        """
        if self.ended.done():
            raise PeerClosed(str(self.ended.result()))
        number = self.connection.get_next_available_stream_id()
        self.connection.send_stream_data(number, b"")
        stream = self._streams[number] = QuicStream(self, number)
        if announce:
            self.connection.announce(number)
        self.schedule()
        return stream

    def close(self, cause: LinkError | None = None) -> None:
        """End the connection and every stream. What was written in this turn still goes out."""
        if self.ended.done():
            return
        if self._connection is not None:
            self._transmit()
            self._hang_up(_NO_ERROR)
        self.lose(cause or PeerClosed("the tunnel was closed"))

    # -- a link of a server, see `pyfrp.server.links` ------------------------------------------

    def heard(self) -> float:
        """When anything last came, in the loop's time."""
        return self._heard

    def abort(self, cause: LinkError) -> None:
        self.close(cause)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.info.get(name, default)

    # -- what the socket brings ----------------------------------------------------------------

    def datagrams_received(self, datagrams: list[bytes], source: Address | None = None) -> None:
        """What came at once. See `datagram_received`."""
        self._flushing = True  # It is now that all of it is answered.
        try:
            for data in datagrams:
                self.datagram_received(data, source)
        finally:
            self._flushing = False
        self.flush()

    def datagram_received(self, data: bytes, source: Address | None = None) -> None:
        """Args: source: The sender, where that is not sure to be the peer's known address."""
        if self.ended.done() or (self._connection is None and not self._accept(data)):
            return
        if len(data) in RESET_SIZES and self._is_reset(data):
            self.lose(PeerClosed("the QUIC connection was lost: the peer has forgotten it"))
            return
        self._heard = self.loop.time()
        self.answered = True
        try:
            self.connection.receive_datagram(data, source or self._peer, now=self._heard)
        except Exception as exc:
            self._failed(exc)
            return
        self.schedule()

    def error_received(self, exc: OSError) -> None:
        """What the system says of an earlier datagram; sooner than the idle timeout."""
        refused = isinstance(exc, ConnectionError)
        if refused and self.loop.time() - self._heard > REFUSED_S:
            self.lose(PeerClosed(f"the QUIC connection was lost: {exc}"))

    def _accept(self, data: bytes) -> bool:
        """Take the first datagram of a client; anything else is dropped."""
        meant_for = first_of_client(data)
        if meant_for is None:
            return False
        self._connection = Connection(self._setup, original_destination_connection_id=meant_for)
        return True

    def _is_reset(self, data: bytes) -> bool:
        """Whether the peer, started anew, tells that it does not know us (RFC 9000, 10.3.1)."""
        known = b"" if self.connection.draining else self.connection.peers_token
        return bool(known) and not data[0] & 0x80 and hmac.compare_digest(data[-16:], known)

    def _read_events(self) -> None:
        while (event := self.connection.next_event()) is not None and not self.ended.done():
            self._on_event(event)
        # What came for a stream within a turn is one piece for its reader.
        while self._fed:
            fed, self._fed = self._fed, {}
            for stream in fed:
                stream.deliver()
        # A stream may be opened by another frame than data, of which there is no event.
        for index in range(self._seen, self.connection.opened):
            self._stream(index * 4 + int(self._client))

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            stream = self._streams.get(event.stream_id) or self._stream(event.stream_id)
            if stream is not None:
                stream.received(event.data, ended=event.end_stream)
                self._fed[stream] = None
        elif isinstance(event, StreamReset):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.was_reset()
        elif isinstance(event, StopSendingReceived):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.refused()
        elif isinstance(event, ConnectionIdIssued):
            self.id_changed(event.connection_id, known=True)
        elif isinstance(event, ConnectionIdRetired):
            self.id_changed(event.connection_id, known=False)
        elif isinstance(event, HandshakeCompleted):
            self._shaken(event.alpn_protocol)
        elif isinstance(event, ConnectionTerminated):
            self.lose(PeerClosed(f"the QUIC connection ended: {_words(event)}"))

    def _shaken(self, alpn: str | None) -> None:
        """The handshake is done; see whom it was with."""
        if alpn != ALPN:
            self._refuse(HandshakeError("the peer speaks QUIC, but not frp"), quic_tls.NO_ALPN)
            return
        if self._setup.trust is not None:
            try:
                self._setup.trust.check(self.connection.shown)
            except Untrusted as exc:
                self._refuse(exc, exc.alert)
                return
        self._limit.cancel()
        if not self._ready.done():
            self._ready.set_result(None)
        if self._setup.keepalive_s > 0:
            self._pinger = self.loop.call_later(self._keepalive_s, self._ping)
        self.established()

    def _refuse(self, cause: HandshakeError, alert: int) -> None:
        self._hang_up(_CRYPTO_ERROR + alert, _CRYPTO_FRAME)
        self.lose(cause)

    def _stream(self, number: int) -> QuicStream | None:
        """The stream of this number, made when the peer has just opened it; None for an old one."""
        stream = self._streams.get(number)
        if stream is not None or number % 4 != int(self._client):
            return stream
        while self._seen <= number // 4 and not self.ended.done():
            fresh = self._seen * 4 + number % 4
            self._seen += 1
            opened = self._streams[fresh] = QuicStream(self, fresh)
            if self._on_stream is None:
                opened.abort()
            else:
                self._on_stream(opened)
        return self._streams.get(number)

    def forget(self, stream: QuicStream, number: int) -> None:
        self._streams.pop(number, None)
        self._watched.discard(stream)

    # -- for who listens -----------------------------------------------------------------------

    def established(self) -> None:
        """The handshake is done."""

    def id_changed(self, connection_id: bytes, *, known: bool) -> None:
        """Datagrams that are ours have this number from now on, or no longer."""

    # -- output and time -----------------------------------------------------------------------

    def watch(self, stream: QuicStream) -> None:
        """Tell a stream when something was sent."""
        self._watched.add(stream)

    def schedule(self) -> None:
        """What comes up in a turn leaves together."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        if self._connection is None or self.ended.done():
            return
        try:
            self._flush()
        except Exception as exc:
            self._failed(exc)

    def _failed(self, exc: Exception) -> None:
        """Whatever a peer makes aioquic stumble over costs him alone, and leaves nothing behind."""
        self.report(exc, "a QUIC connection failed")
        self.lose(PeerClosed("the QUIC connection failed"))

    def _flush(self) -> None:
        self._flushing = True  # What the readers answer leaves now, too.
        try:
            self._read_events()
        finally:
            self._flushing = False
        if self.ended.done():
            return
        self._transmit()
        if self.connection.has_events:  # What was sent may have told of connection ids.
            self._read_events()
        if self._watched:
            for stream in list(self._watched):
                if not stream.sent():
                    self._watched.discard(stream)
        if self.ended.done():
            return
        soon = self.loop.time() + ACK_DELAY_S
        if self._timer is not None and self._wake_at <= soon and not self.connection.is_urgent:
            return  # Whatever has come up since it was set waits for longer.
        when = self.connection.get_timer()
        if self._timer is not None:
            # Not the handle's own: uvloop's of a moment that has passed does not tell it.
            if when is not None and self._wake_at <= when:
                return  # It fires early enough, and is set again then.
            self._timer.cancel()
        self._timer = None if when is None else self.loop.call_at(when, self._wake)
        self._wake_at = when or 0.0

    def _transmit(self) -> None:
        if not self.connection.begun:
            return  # There is nobody yet to send to.
        datagrams = self.connection.datagrams_to_send(now=self.loop.time())
        if datagrams:
            self._socket.send_many(datagrams)

    def _wake(self) -> None:
        self._timer = None
        try:
            self.connection.get_timer()  # It looks again at what the timer is for.
            self.connection.handle_timer(now=self.loop.time())
        except Exception as exc:
            self._failed(exc)
        self.flush()

    def _ping(self) -> None:
        self._pinger = self.loop.call_later(self._keepalive_s, self._ping)
        self.connection.send_ping(0)
        self.flush()

    def _too_slow(self) -> None:
        cause = HandshakeError(f"no QUIC handshake within {HANDSHAKE_S:g} s")
        if self._connection is not None:
            self._hang_up(_NO_ERROR)
        self.lose(cause)

    # -- the end -------------------------------------------------------------------------------

    def _hang_up(self, code: int, frame: int | None = None) -> None:
        self.connection.close(error_code=code, frame_type=frame)
        self._transmit()

    def lose(self, cause: LinkError) -> None:
        """The connection is gone; the peer is not told."""
        if self.ended.done():
            return
        self.ended.set_result(cause)
        if not self._ready.done():
            wrapped = cause if isinstance(cause, HandshakeError) else HandshakeError(str(cause))
            self._ready.set_exception(wrapped)
            self._ready.exception()  # Nobody may be waiting for it any more.
        for timer in (self._timer, self._pinger, self._limit):
            if timer is not None:
                timer.cancel()
        self._socket.close()
        for stream in list(self._streams.values()):
            stream.lose(ConnectionResetError(str(cause)))


def first_of_client(data: bytes) -> bytes | None:
    """The connection id that a client's first datagram is meant for; None for any other datagram.

    Source: RFC 9000, 17.2 and 17.2.2; RFC 9369, 3.2.
    """
    if len(data) < MIN_INITIAL:
        return None
    if (int.from_bytes(data[1:5], "big"), data[0] & 0xF0) not in _INITIAL:
        return None
    size = data[5]
    return data[6 : 6 + size] if 8 <= size <= 20 else None


def _words(event: ConnectionTerminated) -> str:
    """Why a connection ended, for an operator."""
    known = _ALERTS.get(event.error_code - _CRYPTO_ERROR)
    if known is not None:
        return known
    return event.reason_phrase[:200] or f"code {event.error_code}"
