"""QUIC connections over a UDP socket to one peer, and their streams as endpoints.

The protocol itself is aioquic's, which does no I/O; here are the socket, the timer, and what it
leaves to its user: room for what is read slowly, and limits for what is written.

Source: frp `pkg/util/net/conn.go` (`QuicStreamToNetConn`): ALPN, how streams end.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Protocol

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.tls import load_pem_private_key, load_pem_x509_certificates

from pyfrp.errors import HandshakeError, LinkError, PeerClosed
from pyfrp.net.certs import generate_pair
from pyfrp.net.endpoint import HIGH_WATER, LOW_WATER

ALPN = "frp"
HANDSHAKE_S = 10.0
WINDOW = 1024 * 1024  # Bytes that may wait for the reader of a stream.
DATAGRAM = 1350  # Passes every usual path, as KCP's datagrams do.
MIN_INITIAL = 1200  # RFC 9000, 14.1
# A peer whose system says that nobody listens any more has gone; while it starts this is normal.
REFUSED_S = 5.0
_NO_ERROR = 0
# Version and first byte of an initial packet: QUIC 1 and QUIC 2.
_INITIAL = ((1, 0xC0), (0x6B3343CF, 0xD0))


class Datagrams(Protocol):
    """The socket below, connected to the peer."""

    def send(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class QuicSession:
    """One connection. Whoever reads the socket calls `datagram_received` and `error_received`.

    Args:
        socket: Sends to the peer; closed at the end.
        peer: Its address; a client shows it as the server's name, as frp does.
        info: For `get_extra_info` of the streams.
        client: Whether we start the handshake.
        on_stream: Called with each stream that the peer opens, paused; None to refuse them.
        keepalive_s: Seconds between pings.
        idle_s: Seconds of silence after which the connection is over.
        report: Called with an exception that escaped a stream's reader, and what it was.

    Attributes:
        ended: Settled with the reason when the connection is gone.
    """

    def __init__(
        self,
        socket: Datagrams,
        peer: tuple[str, int],
        *,
        info: dict[str, Any],
        client: bool,
        on_stream: Callable[[QuicStream], None] | None,
        keepalive_s: float,
        idle_s: float,
        report: Callable[[BaseException, str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.info = info
        self.report = report
        self.ended: asyncio.Future[Exception] = self.loop.create_future()
        self._ready: asyncio.Future[None] = self.loop.create_future()
        self._socket = socket
        self._peer = peer
        self._on_stream = on_stream
        self._streams: dict[int, QuicStream] = {}
        self._seen = 0  # Streams that the peer has opened.
        self._heard = self.loop.time()
        self._keepalive_s = max(keepalive_s, 1.0)
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._pinger: asyncio.TimerHandle | None = None
        self._setup = QuicConfiguration(
            is_client=client,
            alpn_protocols=[ALPN],
            congestion_control_algorithm="cubic",
            idle_timeout=idle_s if idle_s > 0 else 30.0,
            max_datagram_size=DATAGRAM,
            max_stream_data=WINDOW,
            max_data=16 * WINDOW,
            server_name=f"{peer[0]}:{peer[1]}" if client else None,
            verify_mode=ssl.CERT_NONE,
        )
        # aioquic's types leave out what we need of its insides.
        self.connection: Any = None
        if client:
            connection = QuicConnection(configuration=self._setup)
            self._begin(connection)
            connection.connect(peer, now=self.loop.time())
            self.flush()
        else:
            pair = generate_pair()
            self._setup.certificate = load_pem_x509_certificates(pair)[0]
            self._setup.private_key = load_pem_private_key(pair)

    async def ready(self) -> None:
        """Wait for the handshake.

        Raises:
            HandshakeError: it failed, or the peer does not answer; the connection is closed.
        """
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await self._ready
        except TimeoutError:
            self.close()
            raise HandshakeError(f"no QUIC handshake within {HANDSHAKE_S:g} s") from None
        except BaseException:
            self.close()
            raise

    def open(self) -> QuicStream:
        """Open a stream, paused. Raises PeerClosed when the connection is gone."""
        if self.ended.done():
            raise PeerClosed(str(self.ended.result()))
        number = self.connection.get_next_available_stream_id()
        self.connection.send_stream_data(number, b"")
        stream = self._streams[number] = QuicStream(self, number)
        stream.announce()
        return stream

    def close(self) -> None:
        """End the connection and every stream. Idempotent."""
        if self.ended.done():
            return
        if self.connection is not None:
            self.connection.close(error_code=_NO_ERROR)
            for data, _ in self.connection.datagrams_to_send(now=self.loop.time()):
                self._socket.send(data)
        self._lose(PeerClosed("the tunnel was closed"))

    # -- what the socket brings ----------------------------------------------------------------

    def datagram_received(self, data: bytes) -> None:
        if self.ended.done() or (self.connection is None and not self._accept(data)):
            return
        self._heard = self.loop.time()
        self.connection.receive_datagram(data, self._peer, now=self._heard)
        self._read_events()
        self.schedule()

    def error_received(self, exc: OSError) -> None:
        """What the system says of an earlier datagram; sooner than the idle timeout."""
        refused = isinstance(exc, ConnectionError)
        if refused and self.loop.time() - self._heard > REFUSED_S:
            self._lose(PeerClosed(f"the QUIC connection was lost: {exc}"))

    def _accept(self, data: bytes) -> bool:
        """Take the first datagram of a client; anything else is dropped."""
        meant_for = _first_of_client(data)
        if meant_for is None:
            return False
        self._begin(
            QuicConnection(
                configuration=self._setup,
                original_destination_connection_id=meant_for,
            )
        )
        return True

    def _begin(self, connection: Any) -> None:
        self.connection = connection
        _give_credit_on_reading(connection, self._streams)

    def _read_events(self) -> None:
        while (event := self.connection.next_event()) is not None:
            self._on_event(event)
        # A stream may be opened by another frame than data, of which there is no event.
        opened = getattr(getattr(self.connection, "_local_max_streams_bidi", None), "used", 0)
        for index in range(self._seen, opened):
            self._stream(index * 4 + int(self._setup.is_client))

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.received(event.data, ended=event.end_stream)
        elif isinstance(event, StreamReset):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.was_reset()
        elif isinstance(event, StopSendingReceived):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.refused()
        elif isinstance(event, HandshakeCompleted):
            if not self._ready.done():
                self._ready.set_result(None)
            self._pinger = self.loop.call_later(self._keepalive_s, self._ping)
        elif isinstance(event, ConnectionTerminated):
            reason = event.reason_phrase or f"code {event.error_code}"
            self._lose(PeerClosed(f"the QUIC connection ended: {reason}"))

    def _stream(self, number: int) -> QuicStream | None:
        """The stream of this number, made when the peer has just opened it; None for an old one."""
        stream = self._streams.get(number)
        if stream is not None or number % 4 != int(self._setup.is_client):
            return stream
        while self._seen <= number // 4:
            fresh = self._seen * 4 + number % 4
            self._seen += 1
            opened = self._streams[fresh] = QuicStream(self, fresh)
            if self._on_stream is None:
                opened.abort()
            else:
                self._on_stream(opened)
        return self._streams.get(number)

    def forget(self, number: int) -> None:
        self._streams.pop(number, None)

    # -- output and time -----------------------------------------------------------------------

    def schedule(self) -> None:
        """What comes up in a turn leaves together."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flushing = False
        if self.ended.done() or self.connection is None:
            return
        for data, _ in self.connection.datagrams_to_send(now=self.loop.time()):
            self._socket.send(data)
        for stream in list(self._streams.values()):
            stream.sent()
        when = self.connection.get_timer()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if when is None else self.loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.connection.handle_timer(now=self.loop.time())
        self._read_events()
        self.flush()

    def _ping(self) -> None:
        self._pinger = self.loop.call_later(self._keepalive_s, self._ping)
        self.connection.send_ping(0)
        self.flush()

    # -- the end -------------------------------------------------------------------------------

    def _lose(self, cause: LinkError) -> None:
        if self.ended.done():
            return
        self.ended.set_result(cause)
        if not self._ready.done():
            self._ready.set_exception(HandshakeError(str(cause)))
            self._ready.exception()  # Nobody may be waiting for it any more.
        for timer in (self._timer, self._pinger):
            if timer is not None:
                timer.cancel()
        self._socket.close()
        for stream in list(self._streams.values()):
            stream.lose(ConnectionResetError(str(cause)))


def _first_of_client(data: bytes) -> bytes | None:
    """The connection id that a client's first datagram is meant for; None for any other datagram.

    Source: RFC 9000, 17.2 and 17.2.2; RFC 9369, 3.2.
    """
    if len(data) < MIN_INITIAL:
        return None
    if (int.from_bytes(data[1:5], "big"), data[0] & 0xF0) not in _INITIAL:
        return None
    size = data[5]
    return data[6 : 6 + size] if 8 <= size <= 20 else None


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
        self.consumed = 0

    # -- Endpoint ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]  # readers of bytes, by contract

    def write(self, data: bytes) -> None:
        if self._closing or self._near_ended or self._refused or not data:
            return
        self._send(data)
        self._written += len(data)
        if not self._full and self._unsent() > HIGH_WATER:
            self._full = True
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
        self._deliver()
        self._session.schedule()  # There may be credit to give.

    def close(self) -> None:
        """Send what is pending, and an end after it; refuse what still comes."""
        if self._closing:
            return
        self.write_eof()
        self._closing = True
        self._refuse()
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

    def announce(self) -> None:
        """Let the peer know of the stream although nothing is written yet.

        A service may speak first. A new limit for what the peer may send opens the stream there
        (RFC 9000, 3.1), in official peers too.
        """
        inner = self._inner()
        if inner is not None:
            inner.max_stream_data_local += 1
        self._session.schedule()

    def received(self, data: bytes, *, ended: bool) -> None:
        self._far_ended = self._far_ended or ended
        if self._closing:
            return
        if data:
            self._held.append(data)
        self._deliver()

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

    def sent(self) -> None:
        """Something was sent, of whatever stream."""
        if self._full and self._unsent() <= LOW_WATER and not self._closing:
            self._full = False
            self._protocol.resume_writing()
        if self._closing and not self._lost:
            inner = self._inner()
            if inner is None or inner.sender.is_finished:
                self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._held.clear()
        self._session.forget(self._number)
        self._protocol.connection_lost(exc)

    # -- helpers -------------------------------------------------------------------------------

    def _deliver(self) -> None:
        if self._holding or self._closing:
            return
        try:
            if self._held:
                data = b"".join(self._held)
                self._held.clear()
                self.consumed += len(data)
                self._protocol.data_received(data)
            if self._far_ended and not self._told_end and not self._held:
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

    def _inner(self) -> Any:
        """aioquic's own stream, for what it does not tell; None when it has ended both ways."""
        return getattr(self._session.connection, "_streams", {}).get(self._number)

    def _unsent(self) -> int:
        inner = self._inner()
        return 0 if inner is None else max(0, self._written - inner.sender.highest_offset)

    def _refuse(self) -> None:
        if not self._far_ended and not self._session.ended.done():
            try:
                self._session.connection.stop_stream(self._number, _NO_ERROR)
            except ValueError:
                pass  # It has ended both ways, and is forgotten.


class _Window:
    """A stream as `_write_stream_limits` looks at it, with nothing received that was not read.

    aioquic doubles a limit whenever half of it has come, read or not: a slow reader would have
    everything in memory.
    """

    class _Receiver:
        highest_offset = 0

    receiver = _Receiver()

    def __init__(self, stream: Any) -> None:
        object.__setattr__(self, "_stream", stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_stream"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_stream"), name, value)


def _give_credit_on_reading(connection: Any, streams: dict[int, QuicStream]) -> None:
    """Let the peer send as much as was read and a window more, in steps of half a window."""
    write = getattr(connection, "_write_stream_limits", None)
    if write is None:
        return  # Another version of aioquic: memory is not bounded, all else works.

    def write_limits(builder: Any, space: Any, stream: Any) -> None:
        ours = streams.get(stream.stream_id)
        if ours is not None and stream.max_stream_data_local:
            limit = ours.consumed + WINDOW
            if limit - stream.max_stream_data_local >= WINDOW // 2:
                stream.max_stream_data_local = limit
        write(builder, space, _Window(stream))

    connection._write_stream_limits = write_limits
