"""A UDP port, and the QUIC connections of many clients at it.

Datagrams are told apart by the connection id that they are meant for, so that a client whose
address changes goes on. Whoever floods the port is answered, where at all, with less than he sent
and nothing is remembered of him: a version negotiation, a retry, a reset.

Source: RFC 9000, 5.2, 8.1, 10.3.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Callable

from aioquic.quic.packet import encode_quic_retry, encode_quic_version_negotiation
from aioquic.quic.retry import QuicRetryTokenHandler

from pyfrp.errors import LinkError, PeerClosed
from pyfrp.net.quic import MIN_INITIAL, TURN, QuicSession, QuicStream, first_of_client
from pyfrp.net.quic_tls import DATAGRAM, Setup
from pyfrp.net.sockets import bind_datagrams
from pyfrp.net.trains import Address, TrainSocket

# Connections without a handshake. From the first number on, a client has to show that it is where
# it says to be; beyond the second, the oldest goes: about 100 KB each.
RETRY_AT = 32
MAX_HALF_OPEN = 256
# Streams that a client may open before it has logged in, and that it may be ahead of those which
# it has opened, after: each that it skips is made, too.
UNKNOWN_STREAMS = 8
STREAMS_AHEAD = 1024
# Resets in a second; each is smaller than what it answers.
RESETS = 100
_LEAST_RESET, _MOST_RESET = 21, 42
_ID_SIZE = 8  # Of the connection ids that we choose.
_TOKEN_SIZE = 16


class Listening:
    """Takes connections at one port.

    Args:
        setup: Of a server.
        max_streams: Open at once on a connection that was allowed them.
        on_session: Called with each connection whose handshake is done.
        on_stream: Called with each of its streams, paused.
        on_lost: Called with a connection that is gone, if `on_session` was.
        report: Called with an exception that escaped a stream's reader, and what it was.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        max_streams: int,
        on_session: Callable[[ServedSession], None],
        on_stream: Callable[[ServedSession, QuicStream], None],
        on_lost: Callable[[ServedSession, LinkError], None],
        report: Callable[[BaseException, str], None],
    ) -> None:
        self.setup = setup
        self.max_streams = max_streams
        self.on_session = on_session
        self.on_stream = on_stream
        self.on_lost = on_lost
        self.report = report
        self._loop = asyncio.get_running_loop()
        self._socket: TrainSocket | None = None
        self._by_id: dict[bytes, ServedSession] = {}
        self._sessions: set[ServedSession] = set()
        self._half_open: dict[ServedSession, None] = {}
        self._retries = QuicRetryTokenHandler()
        self._resets = 0
        self._resets_until = 0.0
        self._closed = False

    async def open(self, host: str, port: int) -> None:
        """Bind the port; "0.0.0.0" and "::" are both families, as on TCP. Raises OSError."""
        sock = TrainSocket(
            bind_datagrams(host, port),
            on_datagrams=self._read_all,
            on_error=_forget,
            turn=TURN,
            whole_above=DATAGRAM,
        )
        await sock.attach()
        self._socket = sock

    @property
    def largest(self) -> int:
        """Bytes of a datagram that may be tried."""
        assert self._socket is not None
        return self._socket.largest

    @property
    def address(self) -> Address:
        """Where it is bound. Raises OSError after the end."""
        assert self._socket is not None
        return self._socket.address

    def close(self) -> None:
        """Take nobody new. The socket goes with the last connection."""
        self._closed = True
        for session in list(self._half_open):
            session.close()
        self._close_socket()

    async def settle(self) -> None:
        """Nothing to wait for: unlike with KCP, a peer is told of the end of its connection."""

    def send_many(self, datagrams: list[tuple[bytes, Address]]) -> None:
        if self._socket is not None:
            self._socket.send_many(datagrams)

    def _close_socket(self) -> None:
        if self._closed and not self._sessions and self._socket is not None:
            self._socket.close()
            self._socket = None

    # -- what comes ----------------------------------------------------------------------------

    def _read_all(self, datagrams: list[bytes], source: Address) -> None:
        first = datagrams[0]
        if first and not first[0] & 0x80:
            # One of a connection's life; what comes with it is nearly always for the same one.
            named = first[1 : 1 + _ID_SIZE]
            session = self._by_id.get(named)
            if session is not None and all(
                data[1 : 1 + _ID_SIZE] == named and not data[0] & 0x80 for data in datagrams
            ):
                session.datagrams_received(datagrams, source)
                return
        for data in datagrams:
            self._read(data, source)

    def _read(self, data: bytes, source: Address) -> None:
        if not data:
            return
        if not data[0] & 0x80:
            session = self._by_id.get(data[1 : 1 + _ID_SIZE])
            if session is not None:
                session.datagram_received(data, source)
            elif len(data) > _LEAST_RESET:
                self._reset(data, source)
            return
        if len(data) < 7:
            return
        version = int.from_bytes(data[1:5], "big")
        meant_for = data[6 : 6 + data[5]]
        session = self._by_id.get(meant_for)
        if session is not None:
            session.datagram_received(data, source)
        elif not version or len(data) < MIN_INITIAL:
            return
        elif version not in self.setup.quic.supported_versions:
            self._offer_versions(data, meant_for, source)
        elif first_of_client(data) is not None and not self._closed:
            self._begin(data, meant_for, version, source)

    def _offer_versions(self, data: bytes, meant_for: bytes, source: Address) -> None:
        """Source: RFC 9000, 6.1; RFC 8999, 5.1 and 6: ids of other versions may be longer."""
        reply_to, _ = _names(data)
        answer = encode_quic_version_negotiation(
            source_cid=meant_for,
            destination_cid=reply_to,
            supported_versions=self.setup.quic.supported_versions,
        )
        self.send_many([(answer, source)])

    def _begin(self, data: bytes, meant_for: bytes, version: int, source: Address) -> None:
        """Take a client that we do not know."""
        reply_to, token = _names(data)
        original, retried = meant_for, None
        if token:
            try:
                original = self._retries.validate_token(
                    address=source,
                    destination_cid=meant_for,
                    token=token,
                    now=self._loop.time(),
                )
            except ValueError:
                return  # None of ours, or too old: the client begins anew.
            retried = meant_for
        elif len(self._half_open) >= RETRY_AT:
            self._retry(reply_to, meant_for, version, source)
            return
        session = ServedSession(self, original, retried, source)
        self._sessions.add(session)
        self._half_open[session] = None
        self.learn(session, meant_for)
        self.learn(session, session.connection.host_cid)
        if len(self._half_open) > MAX_HALF_OPEN:
            next(iter(self._half_open)).lose(PeerClosed("too many connections are half open"))
        session.datagram_received(data, source)
        if not session.connection.begun:
            session.lose(PeerClosed("it began with noise"))

    def _retry(self, reply_to: bytes, meant_for: bytes, version: int, source: Address) -> None:
        """Have a client come again with what only whoever has its address can know."""
        fresh = os.urandom(_ID_SIZE)
        token = self._retries.create_token(
            address=source,
            original_destination_connection_id=meant_for,
            retry_source_connection_id=fresh,
            now=self._loop.time(),
        )
        answer = encode_quic_retry(
            version=version,
            source_cid=fresh,
            destination_cid=reply_to,
            original_destination_cid=meant_for,
            retry_token=token,
        )
        self.send_many([(answer, source)])

    def _reset(self, data: bytes, source: Address) -> None:
        """Tell a client whose connection nobody remembers, so that it comes again at once."""
        now = self._loop.time()
        if now >= self._resets_until:
            self._resets, self._resets_until = 0, now + 1.0
        if self._resets < RESETS:
            self._resets += 1
            # Smaller than what it answers: two of us would go on for ever.
            size = min(len(data) - 1, _MOST_RESET)
            noise = bytearray(os.urandom(size - _TOKEN_SIZE))
            noise[0] = noise[0] & 0x3F | 0x40
            token = self.reset_token(data[1 : 1 + _ID_SIZE])
            self.send_many([(bytes(noise) + token, source)])

    def reset_token(self, connection_id: bytes) -> bytes:
        """The same after a start anew, and known to nobody else."""
        return hmac.digest(self.setup.reset_key, connection_id, "sha256")[:_TOKEN_SIZE]

    # -- what the connections tell -------------------------------------------------------------

    def learn(self, session: ServedSession, connection_id: bytes) -> None:
        self._by_id[connection_id] = session
        session.ids.add(connection_id)

    def unlearn(self, session: ServedSession, connection_id: bytes) -> None:
        session.ids.discard(connection_id)
        self._by_id.pop(connection_id, None)

    def shaken(self, session: ServedSession) -> None:
        self._half_open.pop(session, None)
        self.on_session(session)

    def gone(self, session: ServedSession, cause: LinkError) -> None:
        for connection_id in session.ids:
            self._by_id.pop(connection_id, None)
        self._sessions.discard(session)
        if session in self._half_open:
            del self._half_open[session]
        elif session.known:
            self.on_lost(session, cause)
        self._close_socket()


class ServedSession(QuicSession):
    """A client's connection.

    Attributes:
        ids: What its datagrams may be meant for.
        known: Whether it was told of.
    """

    def __init__(
        self, port: Listening, original: bytes, retried: bytes | None, source: Address
    ) -> None:
        self.ids: set[bytes] = set()
        self.known = False
        self._port = port
        super().__init__(
            _Share(port),
            source,
            setup=port.setup,
            info={"peername": source, "sockname": port.address},
            on_stream=lambda stream: port.on_stream(self, stream),
            report=port.report,
            origin={
                "token": port.reset_token,
                "original_destination_connection_id": original,
                "retry_source_connection_id": retried,
            },
            largest=port.largest,
        )
        self.connection.begin_with_streams(UNKNOWN_STREAMS)

    def allow_streams(self) -> None:
        """The client has logged in; call it with every stream that it opens."""
        opened = self.connection.opened
        ended = opened - len(self._streams)
        self.connection.allow_streams(min(opened + STREAMS_AHEAD, ended + self._port.max_streams))

    def established(self) -> None:
        self.known = True
        self._port.shaken(self)

    def id_changed(self, connection_id: bytes, *, known: bool) -> None:
        (self._port.learn if known else self._port.unlearn)(self, connection_id)

    def lose(self, cause: LinkError) -> None:
        if not self.ended.done():
            super().lose(cause)
            self._port.gone(self, cause)


class _Share:
    """The socket of a port, as one of its connections has it."""

    def __init__(self, port: Listening) -> None:
        self.send_many = port.send_many

    def close(self) -> None:
        """It is for the others, too."""


def _names(data: bytes) -> tuple[bytes, bytes]:
    """The connection id of who sent a long packet, and the token of an initial one.

    Source: RFC 9000, 17.2 and 17.2.2.
    """
    at = 6 + data[5]
    reply_to = data[at + 1 : at + 1 + data[at]]
    at += 1 + len(reply_to)
    width = 1 << (data[at] >> 6)
    size = int.from_bytes(data[at : at + width], "big") & (1 << (8 * width - 2)) - 1
    return reply_to, data[at + width : at + width + size]


def _forget(exc: OSError) -> None:
    """Somebody among many does not listen any more; his connection ends in time."""
