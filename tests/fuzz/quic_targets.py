"""QUIC: what comes to a port from strangers, and what a client says within its connection."""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import Any

from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch

from pyfrp.errors import LinkError
from pyfrp.net import quic_listener
from pyfrp.net.certs import ServerContext, generate_pair
from pyfrp.net.quic import QuicSession, QuicStream
from pyfrp.net.quic_listener import Listening, ServedSession
from pyfrp.net.quic_tls import peer_setup, server_setup
from tests.fuzz.engine import Behaviour, Target
from tests.unit.net.ends import turns

CLIENT = ("192.0.2.1", 4711)
SERVER = ("192.0.2.2", 7000)


class Wire:
    """A socket that notes what is sent."""

    address = SERVER
    largest = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send_many(self, datagrams: list[tuple[bytes, Any]]) -> None:
        self.sent += [data for data, _ in datagrams]

    def take(self) -> list[bytes]:
        sent, self.sent = self.sent, []
        return sent

    def close(self) -> None:
        pass


def _context() -> ServerContext:
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.pair, context.generated = generate_pair(), True
    return context


_CONTEXT = _context()


class Port:
    """A listener on a wire."""

    def __init__(self) -> None:
        self.streams: list[QuicStream] = []
        self.lost: list[LinkError] = []
        setup = server_setup(_CONTEXT, key_file="", trusted_ca_file="", keepalive_s=10, idle_s=30)
        self.wire = Wire()
        self.listening = Listening(
            setup,
            max_streams=100,
            on_session=lambda session: None,
            on_stream=self._take,
            on_lost=lambda session, cause: self.lost.append(cause),
            report=_raise,
        )
        self.listening._socket = self.wire

    def _take(self, session: ServedSession, stream: QuicStream) -> None:
        self.streams.append(stream)
        stream.set_protocol(asyncio.Protocol())
        stream.resume_reading()

    def close(self) -> None:
        self.listening.close()
        for session in list(self.listening._sessions):
            session.close()
        assert not self.listening._by_id
        assert not self.listening._half_open


def _raise(exc: BaseException, what: str) -> None:
    raise exc


def _first() -> bytes:
    setup = peer_setup(client=True, name="frps.test", keepalive_s=10, idle_s=30)
    connection = QuicConnection(configuration=setup.quic)
    connection.connect(SERVER, now=0.0)
    return connection.datagrams_to_send(now=0.0)[0][0]


async def _strangers(data: bytes, rng: random.Random) -> Behaviour:
    """Datagrams of somebody; nothing that is answered is answered with more."""
    port = Port()
    try:
        size = len(data)
        if rng.random() < 0.7:
            data = data.ljust(1200, b"\0")
        sources = [("198.51.100.1", rng.randrange(1024, 65536)) for _ in range(2)]
        for source in rng.choices(sources, k=3):
            port.listening._read(data, source)
        answers = port.wire.take()
        assert sum(map(len, answers)) < 3 * max(1, len(data))
        await turns(2)
        assert sum(map(len, port.wire.take())) <= 3 * 3 * len(data)
        assert len(port.listening._sessions) <= quic_listener.MAX_HALF_OPEN
        return (
            len(answers),
            bool(port.listening._half_open),
            min(size, 21),
            bool(data[:1] >= b"\x80"),
        )
    finally:
        port.close()


async def _within(data: bytes, rng: random.Random) -> Behaviour:
    """A client that has shaken hands and sends packets with this in them."""
    port, wire = Port(), Wire()
    setup = peer_setup(client=True, name="frps.test", keepalive_s=10, idle_s=30)
    client = QuicSession(wire, SERVER, setup=setup, info={}, on_stream=None, report=_raise)
    try:
        for _ in range(6):
            for sent in wire.take():
                port.listening._read(sent, CLIENT)
            await turns(2)
            for sent in port.wire.take():
                client.datagram_received(sent)
            await turns(2)
        await client.ready()
        (session,) = port.listening._sessions
        inner: Any = client.connection
        crypto = inner._cryptos[Epoch.ONE_RTT].send
        number = inner._packet_number
        for piece in (data[:1200], data[:1200], data[1200:2400]):
            number += rng.choice((0, 1, 1, 1, 3))
            header = b"\x41" + inner._peer_cid.cid + (number & 0xFFFF).to_bytes(2, "big")
            sealed = crypto.aead.encrypt(piece.ljust(4, b"\0"), header, number)
            session.datagram_received(crypto.hp.apply(header, sealed), CLIENT)
        await turns(3)
        assert len(port.streams) <= quic_listener.UNKNOWN_STREAMS
        return len(port.streams), session.ended.done(), len(port.lost)
    finally:
        client.close()
        port.close()
        await turns(2)


_HELLO = _first()
_STREAM = b"\x0a\x00\x05hello"
_FRAMES = [
    _STREAM,
    b"\x0f\x00\x00\x05hello",
    b"\x08\x00" + b"x" * 300,
    b"\x0e\x04\x00\x02hi" + b"\x0e\x08\x00\x01!",
    b"\x01",
    b"\x02\x00\x00\x00\x00" + _STREAM,
    b"\x04\x00\x00\x00",
    b"\x05\x00\x00",
    b"\x11\x00\x7f\xff",
    b"\x15\x1c\x00",
    b"\x1d\x00\x03bye",
    b"\x18\x01\x00\x08" + bytes(24),
]

TARGETS = [
    Target(
        "quic-strangers",
        _strangers,
        [_HELLO, _HELLO[:1] + b"\x1a\x2a\x3a\x4a" + _HELLO[5:], b"\x40" + bytes(40), b"\xc0" * 30],
        [bytes(4), b"\x00\x00\x00\x01", b"\x6b\x33\x43\xcf", b"\x14", b"\x00\x40\x20"],
    ),
    Target(
        "quic-within",
        _within,
        _FRAMES,
        [b"\x0e\x00", b"\x0f", b"\xff" * 8, b"\x80\x01\x00\x00", b"\x40\x40", *_FRAMES[:4]],
    ),
]
