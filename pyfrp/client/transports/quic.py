"""QUIC: one connection, and each connection to the server a stream of it.

Source: frp `client/connector.go`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyfrp.client.connector import Connector, OnError
from pyfrp.client.route import Route
from pyfrp.client.transports.steps import check_certificate
from pyfrp.errors import (
    CertificateError,
    DialError,
    HandshakeError,
    LinkError,
    LookupFailed,
    PeerClosed,
)
from pyfrp.net.datagrams import connect_udp
from pyfrp.net.dial import first_that_answers
from pyfrp.net.endpoint import Endpoint, format_address
from pyfrp.net.sockets import explain, widen
from pyfrp.net.trains import Address, TrainSocket

if TYPE_CHECKING:
    from pyfrp.net.quic import QuicSession
    from pyfrp.net.quic_tls import Setup


class QuicConnector:
    """Streams of one connection."""

    def __init__(self, session: QuicSession) -> None:
        self._session = session

    async def open(self) -> tuple[Endpoint, bytes]:
        # What opens a stream is its first message, which we send at once.
        return self._session.open(announce=False), b""

    def heard(self) -> float:
        return self._session.heard()

    async def settle(self) -> None:
        pass

    async def close(self) -> None:
        self._session.close(PeerClosed("the session ended"))


async def connect(route: Route, on_error: OnError) -> Connector:
    """Make the connection, trying each of the server's addresses, under one deadline for all.

    Raises:
        DialError, HandshakeError: with the reason in words.
        ConfigError: a certificate file that cannot be used for QUIC.
    """
    try:
        from cryptography.hazmat.primitives.serialization import Encoding

        from pyfrp.net.quic_tls import client_setup
    except ImportError as exc:
        raise LinkError(
            'QUIC needs the package aioquic: pip install "pyfrp-tunnel[quic]", or use '
            'transport.protocol = "tcp"'
        ) from exc
    options = route.quic
    setup = client_setup(
        name=route.tls_server_name,
        cert_file=options.cert_file,
        key_file=options.key_file,
        trusted_ca_file=options.trusted_ca_file,
        keepalive_s=options.keepalive_s,
        idle_s=options.idle_s,
    )

    async def ask(address: tuple[str, int], limit_s: float) -> QuicConnector:
        session = await _dial(address, setup, limit_s, on_error)
        try:
            # aioquic insists on a certificate of the server's, so there is one.
            check_certificate(route, session.connection.shown[0].public_bytes(Encoding.DER))
        except CertificateError as exc:
            session.close(PeerClosed(str(exc)))
            raise
        return QuicConnector(session)

    try:
        return await first_that_answers(route.host, route.port, route.dial_timeout_s, ask)
    except LookupFailed:
        raise
    except DialError as exc:
        raise DialError(f"dial quic {exc}", exc.errno) from None


async def _dial(
    address: tuple[str, int], setup: Setup, limit_s: float, on_error: OnError
) -> QuicSession:
    """Connect to one address.

    Raises:
        DialError: nobody is there.
        HandshakeError: somebody is there, and we do not get on.
    """
    from pyfrp.net.quic import DATAGRAM, TURN, QuicSession

    sessions: list[QuicSession] = []

    def read(datagrams: list[bytes], source: Address) -> None:
        sessions[0].datagrams_received(datagrams)

    def fail(exc: OSError) -> None:
        if not sessions:
            refusals.append(exc)
        elif sessions[0].answered:
            sessions[0].error_received(exc)
        else:
            sessions[0].lose(_Unreachable(explain(exc)))

    refusals: list[OSError] = []
    try:
        raw = connect_udp(address)
        widen(raw)
        sock = _Socket(raw, on_datagrams=read, on_error=fail, turn=TURN, whole_above=DATAGRAM)
        await sock.attach()
        info = {"peername": address, "sockname": sock.address}
    except OSError as exc:
        raise DialError(explain(exc), exc.errno or 0) from exc
    session = QuicSession(
        sock,
        address,
        setup=setup,
        info=info,
        on_stream=None,
        report=on_error,
        largest=sock.largest,
    )
    sessions.append(session)
    if refusals:
        fail(refusals[0])
    try:
        async with asyncio.timeout(limit_s):
            await session.ready()
    except TimeoutError:
        if session.answered:
            raise HandshakeError(
                f"the QUIC handshake with {format_address(address)} was not done within "
                f"{limit_s:g} s"
            ) from None
        raise DialError(
            f"no answer within {round(limit_s, 1):g} s; is quicBindPort of the server open for "
            "UDP, and does anything on the way drop UDP?"
        ) from None
    except HandshakeError as exc:
        cause = session.ended.result()
        if isinstance(cause, _Unreachable):
            raise DialError(f"{cause}; is this quicBindPort of the server?") from exc
        raise HandshakeError(f"{format_address(address)}: {exc}") from exc
    return session


class _Socket(TrainSocket):
    """The socket of one connection, which has no other address."""

    def send_many(self, datagrams: Sequence[tuple[bytes, Address]]) -> None:
        self.send_all([data for data, _ in datagrams])


class _Unreachable(LinkError):
    """The system says that nobody is there."""
