"""A QUIC port on loopback: its clients, and those who are none."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("aioquic", reason="QUIC is optional, and not installed here")

from aioquic.quic.connection import QuicConnection

from pyfrp.client.connector import Connector
from pyfrp.client.route import Route
from pyfrp.client.transports import quic as transport
from pyfrp.errors import HandshakeError, LinkError
from pyfrp.net import quic, quic_listener
from pyfrp.net.certs import ServerContext, generate_pair
from pyfrp.net.datagrams import connect_udp
from pyfrp.net.quic import QuicStream
from pyfrp.net.quic_listener import Listening, ServedSession
from pyfrp.net.quic_tls import peer_setup, server_setup
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, turns

HOST = "127.0.0.1"


class Echo(asyncio.Protocol):
    def __init__(self, stream: QuicStream) -> None:
        self.stream = stream

    def data_received(self, data: bytes) -> None:
        self.stream.write(data)


class Port:
    """A listener, and what it told."""

    def __init__(self) -> None:
        context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
        context.pair, context.generated = generate_pair(), True
        setup = server_setup(context, key_file="", trusted_ca_file="", keepalive_s=10, idle_s=30)
        self.sessions: list[ServedSession] = []
        self.streams: list[QuicStream] = []
        self.lost: list[LinkError] = []
        self.errors: list[Any] = []
        self.trusted = False
        self.listening = Listening(
            setup,
            max_streams=2000,
            on_session=self.sessions.append,
            on_stream=self._serve,
            on_lost=lambda session, cause: self.lost.append(cause),
            report=lambda exc, what: self.errors.append((exc, what)),
        )

    def _serve(self, session: ServedSession, stream: QuicStream) -> None:
        if self.trusted:
            session.allow_streams()
        self.streams.append(stream)
        stream.set_protocol(Echo(stream))
        stream.resume_reading()

    @property
    def number(self) -> int:
        return int(self.listening.address[1])


def route(port: int, **more: Any) -> Route:
    return Route(
        port=port,
        local_ip="",
        keepalive_s=0,
        tls=None,
        tls_server_name="frps.test",
        tls_first_byte=True,
        tcp_mux=True,
        mux_keepalive_s=30,
        protocol="quic",
        **{"host": HOST, "dial_timeout_s": 10, **more},
    )


def report(exc: BaseException, what: str) -> None:
    raise AssertionError(what) from exc


@asynccontextmanager
async def port() -> AsyncIterator[Port]:
    made = Port()
    await made.listening.open(HOST, 0)
    try:
        yield made
        assert made.errors == []
    finally:
        made.listening.close()
        for session in list(made.listening._sessions):
            session.close()
        assert made.listening._socket is None
        assert not made.listening._by_id


@asynccontextmanager
async def client(number: int) -> AsyncIterator[Connector]:
    made = await transport.connect(route(number), report)
    try:
        yield made
    finally:
        await made.close()


async def echoed(connector: Connector, data: bytes = b"hello") -> None:
    stream, _ = await connector.open()
    reader = Reader()
    stream.set_protocol(reader)
    stream.resume_reading()
    stream.write(data)
    assert await reader.until_data(len(data)) == data
    stream.close()


@asynccontextmanager
async def stranger(number: int) -> AsyncIterator[socket.socket]:
    sock = connect_udp((HOST, number))
    try:
        yield sock
    finally:
        sock.close()


async def answer(sock: socket.socket) -> bytes:
    return await within(asyncio.get_running_loop().sock_recv(sock, 2048), 5, "an answer")


def initial() -> bytes:
    """The first datagram of a client."""

    setup = peer_setup(client=True, name="x", keepalive_s=10, idle_s=30)
    connection = QuicConnection(configuration=setup.quic)
    connection.connect((HOST, 1), now=0.0)
    return connection.datagrams_to_send(now=0.0)[0][0]


async def test_clients_share_a_port():
    async with port() as p, client(p.number) as one, client(p.number) as two:
        await echoed(one)
        await echoed(two, os.urandom(300_000))
        assert len(p.sessions) == 2
        names = {session.get_extra_info("peername") for session in p.sessions}
        assert len(names) == 2
        assert p.sessions[0].get_extra_info("sockname")[1] == p.number
        await one.close()
        await until(lambda: p.lost, "the end to be told")
        await echoed(two)


async def test_what_comes_at_once_may_be_for_different_connections_or_none():
    async with port() as p, client(p.number) as one, client(p.number) as two:
        await echoed(one)
        await echoed(two)
        took: list[bytes] = []
        for session in p.sessions:
            take = session.datagram_received
            session.datagram_received = lambda data, source, take=take: (
                took.append(data),
                take(data, source),
            )
        ids = [session.connection.host_cid for session in p.sessions]
        source = p.sessions[0].get_extra_info("peername")
        mine, other = (b"\x40" + known + bytes(30) for known in ids)
        p.listening._read_all([mine, other, b"", b"\x40", b"\xc0" * 30, mine], source)
        assert took == [mine, other, mine]
        p.listening._read_all([b"", mine], source)
        p.listening._read_all([mine, mine], source)
        assert took[3:] == [mine] * 3
        await echoed(one)
        await echoed(two)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told to send datagrams whole")
async def test_a_long_answer_over_loopback_comes_in_larger_datagrams():
    async with port() as p, client(p.number) as c:
        await echoed(c, os.urandom(3_000_000))
        assert c._session.connection._max_datagram_size > 10_000
        assert p.sessions[0].connection._max_datagram_size > 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="others have one loopback address")
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_an_answer_comes_from_the_address_that_was_asked(host):
    made = Port()
    await made.listening.open(host, 0)
    try:
        for asked in ("127.0.0.1", "127.0.0.2", *(["::1"] if socket.has_dualstack_ipv6() else [])):
            c = await transport.connect(route(made.number, host=asked, dial_timeout_s=3), report)
            await echoed(c, os.urandom(100_000))
            await c.close()
    finally:
        made.listening.close()
        for session in list(made.listening._sessions):
            session.close()


@pytest.mark.skipif(sys.platform != "linux", reason="others have one loopback address")
async def test_without_ipv6_an_answer_comes_from_the_address_that_was_asked(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    await test_an_answer_comes_from_the_address_that_was_asked("0.0.0.0")


async def test_a_client_whose_address_changes_goes_on():
    async with port() as p, client(p.number) as c:
        await echoed(c)
        session = p.sessions[0]
        before = session.connection.get_peer_address()
        # Another socket of the same client, as a NAT that forgot makes it look.
        wire = c._session._socket
        wire._loop.remove_reader(wire._sock)
        wire._sock.close()
        wire._sock = wire._sender._sock = connect_udp((HOST, p.number))
        wire._loop.add_reader(wire._sock, wire._read)
        await echoed(c, os.urandom(100_000))
        assert session.connection.get_peer_address() != before
        assert len(p.sessions) == 1


async def test_an_unknown_version_is_told_the_known_ones():
    async with port() as p, stranger(p.number) as sock:
        first = initial()
        odd = first[:1] + b"\x1a\x2a\x3a\x4a" + first[5:]
        sock.send(odd)
        told = await answer(sock)
        assert told[1:5] == bytes(4)
        size = first[5]
        assert told[6 : 6 + told[5]] == first[7 + size : 7 + size + first[6 + size]]
        assert told[-8:] == b"\x00\x00\x00\x01\x6b\x33\x43\xcf"
        assert len(told) < len(odd)
        # Ids of other versions may be as long as their field can tell.
        sock.send(b"\xff\x0a\x0a\x0a\x0a\xff" + bytes(255) + b"\xff" + bytes(1200))
        assert (await answer(sock))[5] == 255
        # What is answered by nothing: our own answer, and what is too small.
        sock.send(told.ljust(1300, b"\0"))
        sock.send(odd[:1000])
        async with client(p.number) as c:
            await echoed(c)
        with pytest.raises(BlockingIOError):
            sock.recv(2048)
        assert len(p.sessions) == 1


async def test_noise_leaves_nothing_behind():
    dice = random.Random(5)
    async with port() as p, stranger(p.number) as sock, client(p.number) as c:
        first = initial()
        for _ in range(2000):
            sock.send(dice.randbytes(dice.randint(0, 1400)))
            mangled = bytearray(first)
            for _ in range(3):
                mangled[dice.randrange(len(mangled))] = dice.randrange(256)
            mangled[0] &= 0xEF  # No initial packet.
            sock.send(mangled[: dice.randint(1, 1300)])
            await turns()
        await echoed(c)
        assert len(p.listening._sessions) <= 1 + quic_listener.MAX_HALF_OPEN
        assert len(p.sessions) == 1


async def test_a_flood_of_beginnings_keeps_nobody_out(monkeypatch):
    monkeypatch.setattr(quic_listener, "RETRY_AT", 4)
    async with port() as p, stranger(p.number) as sock:
        # From addresses that are not the sender's: nobody answers.
        firsts = [initial() for _ in range(20)]
        for data in firsts * 3:
            sock.send(data)
        await until(lambda: len(p.listening._half_open) >= 4, "the flood")
        async with client(p.number) as c:
            await echoed(c)
            assert len(p.listening._half_open) == 4
        answers = []
        for _ in range(4 * 3 + 48):
            try:
                answers.append(sock.recv(2048))
            except BlockingIOError:
                break
        retries = [data for data in answers if data[0] & 0xF0 == 0xF0]
        assert retries
        assert all(len(data) < 300 for data in retries)


async def test_a_token_of_nobody_is_worth_nothing():
    async with port() as p, stranger(p.number) as sock:
        first = initial()
        at = 6 + first[5]
        at += 1 + first[at]
        assert first[at] == 0  # No token.
        sock.send(first[:at] + b"\x20" + bytes(32) + first[at + 1 :])
        async with client(p.number) as c:
            await echoed(c)
        assert not p.listening._half_open


async def test_more_than_may_be_half_open_push_the_oldest_out(monkeypatch):
    monkeypatch.setattr(quic_listener, "RETRY_AT", 100)
    monkeypatch.setattr(quic_listener, "MAX_HALF_OPEN", 5)
    async with port() as p, stranger(p.number) as sock:
        for _ in range(12):
            sock.send(initial())
            await turns()
        await until(lambda: len(p.listening._half_open) == 5, "the flood")
        async with client(p.number) as c:
            await echoed(c)
        assert len(p.listening._half_open) <= 5
        assert p.lost == [] or len(p.lost) == 1


async def test_a_handshake_that_stays_half_done_is_given_up(monkeypatch):
    monkeypatch.setattr(quic, "HANDSHAKE_S", 0.1)
    async with port() as p, stranger(p.number) as sock:
        sock.send(initial())
        await until(lambda: p.listening._sessions, "the beginning")
        await until(lambda: not p.listening._sessions, "its end")
        assert p.sessions == []
        assert p.lost == []


async def test_who_has_not_logged_in_opens_few_streams():
    async with port() as p, client(p.number) as c:
        streams = [(await c.open())[0] for _ in range(20)]
        for stream in streams:
            stream.set_protocol(Reader())
            stream.write(b"x")
        await until(lambda: len(p.streams) == quic_listener.UNKNOWN_STREAMS, "the first of them")
        for _ in range(20):
            await turns()
        assert len(p.streams) == quic_listener.UNKNOWN_STREAMS
        p.trusted = True
        p.sessions[0].allow_streams()
        p.sessions[0].schedule()
        await until(lambda: len(p.streams) == 20, "the rest")


@pytest.mark.parametrize("step", ["next_event", "datagrams_to_send", "get_timer", "handle_timer"])
async def test_what_a_client_makes_fail_costs_him_alone(monkeypatch, step):
    """A connection that nobody wakes any more would stay for ever."""

    def fail(**given: Any) -> None:
        raise AssertionError("within aioquic")

    async with port() as p, client(p.number) as other:
        await echoed(other)
        c = await transport.connect(route(p.number), report)
        await echoed(c)
        broken = p.sessions[1]
        monkeypatch.setattr(broken.connection, step, fail)
        if step == "handle_timer":
            assert broken._timer is not None
            broken._timer.cancel()
            broken._wake()
        else:
            broken.flush()
        await until(lambda: p.lost, "the end of that connection")
        assert broken not in p.listening._sessions
        assert [str(exc) for exc, _ in p.errors] == ["within aioquic"]
        p.errors.clear()
        await echoed(other)
        await c.close()


async def test_a_client_that_opens_too_many_is_cut_off():
    async with port() as p:
        c = await transport.connect(route(p.number), report)
        inner = c._session.connection
        inner._remote_max_streams_bidi = 10**6
        inner._local_next_stream_id_bidi = 4 * 10**5
        stream, _ = await c.open()
        reader = Reader()
        stream.set_protocol(reader)
        stream.write(b"x")
        assert isinstance(await reader.until_lost(), ConnectionResetError)
        await until(lambda: p.lost, "the end")
        assert p.streams == []


async def test_a_forgotten_connection_is_reset():
    async with port() as p:
        c = await transport.connect(route(p.number), report)
        await echoed(c)
        p.sessions[0].lose(LinkError("as after a start anew"))
        stream, _ = await c.open()
        reader = Reader()
        stream.set_protocol(reader)
        stream.write(b"x")
        assert isinstance(await reader.until_lost(), ConnectionResetError)
        assert "has forgotten it" in str(c._session.ended.result())


async def test_resets_are_smaller_than_what_they_answer_and_few(monkeypatch):
    monkeypatch.setattr(quic_listener, "RESETS", 3)
    async with port() as p, stranger(p.number) as sock:
        for _ in range(10):
            sock.send(b"\x40" + bytes(29))
        sock.send(b"\x40" + bytes(15))
        async with client(p.number) as c:
            await echoed(c)
        answers = [sock.recv(100) for _ in range(3)]
        assert {len(data) for data in answers} == {29}
        assert len({data[-16:] for data in answers}) == 1
        with pytest.raises(BlockingIOError):
            sock.recv(100)


async def test_nobody_new_comes_after_the_end():
    async with port() as p, client(p.number) as c:
        await echoed(c)
        number = p.number
        p.listening.close()
        await echoed(c)  # Those who are there go on.
        with pytest.raises(LinkError, match=r"no answer within 0\.3 s; is quicBindPort"):
            await transport.connect(route(number, dial_timeout_s=0.3), report)


async def test_another_protocol_over_quic_is_told_apart():
    async with port() as p:
        p.listening.setup.quic.alpn_protocols = ["h3"]
        with pytest.raises(HandshakeError, match="speaks QUIC, but not frp"):
            await transport.connect(route(p.number), report)


async def test_a_port_that_answers_otherwise_is_told_apart():
    with pytest.raises(LinkError, match="connection refused; is this quicBindPort of the server"):
        await transport.connect(route(free_port()), report)
