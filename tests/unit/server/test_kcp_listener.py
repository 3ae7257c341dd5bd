"""The KCP port under attack: what anybody can send in anybody's name."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from pyfrp.client.transports.kcp import Dialler
from pyfrp.net.conn import MessageConn
from pyfrp.server.transports import kcp as module
from pyfrp.server.transports.kcp import KcpListener
from pyfrp.wire import kcp
from pyfrp.wire.kcp import ACK, ASK_WINDOW, END, PUSH, TELL_WINDOW, Segment
from pyfrp.wire.kcp_session import LEAST_ROOM
from pyfrp.wire.messages import Login, LoginResp
from tests.support.waiting import until, within
from tests.unit.client.test_connector import ROUTE
from tests.unit.net.ends import Reader, turns
from tests.unit.server.test_links import Door

HOST = "127.0.0.1"


def datagram(conv: int, cmd: int = PUSH, data: bytes = b"o", **more: int) -> bytes:
    segment = Segment(conv, cmd, data=data if cmd == PUSH else b"", **more)
    return kcp.encode_data(0, kcp.encode_segments([segment]))


class Port:
    """A listener with a real socket, and those who come to it."""

    def __init__(self, door: Door, listener: KcpListener) -> None:
        self.door = door
        self.listener = listener
        self.port = int(listener._sockets[0].address[1])

    def user(self, address: str = HOST) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((address, 0))
        sock.connect((HOST, self.port))
        return sock

    async def client(self) -> tuple[MessageConn, Dialler]:
        """One that logged in."""
        dialler = Dialler()
        route = replace(ROUTE, port=self.port)
        conn = MessageConn((await dialler.dial(route))[0])
        conn.write(Login(run_id="x"))
        assert await within(conn.read(), 5, "the answer") == LoginResp(run_id="seen")
        return conn, dialler


@asynccontextmanager
async def listening(*, trusting: bool = True) -> AsyncIterator[Port]:
    door = Door()
    door.trusting = trusting
    listener = KcpListener(door.acceptor, keepalive_s=0)
    await listener.open(HOST, 0)
    try:
        yield Port(door, listener)
    finally:
        listener.close()
        await door.close()
        await turns()
        assert not listener.sessions
        assert all(sock.closed for sock in listener._sockets)


async def heard(sock: socket.socket) -> list[Segment]:
    """The segments of the next datagram, which is of no session."""
    loop = asyncio.get_running_loop()
    data = await within(loop.sock_recv(sock, 65536), 5, "a datagram")
    # Without a number, which a session's first datagram has: parity would mix them up.
    assert kcp.decode_datagram(data).seqid is None
    return kcp.decode_segments(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        random.Random(1).randbytes(1400),
        bytes(1400),
        datagram(5, sn=1),
        datagram(5, frg=1),
        datagram(5, data=b""),
        datagram(5, una=2**32 - 1, cmd=END, sn=0),
        datagram(5, cmd=ACK),
        datagram(5, cmd=TELL_WINDOW),
        datagram(5)[:-1],
        kcp.encode_parity(0, bytes(1000)),
        datagram(5, data=bytes(1500)),
    ],
)
async def test_only_a_clients_first_datagram_makes_a_session(data):
    async with listening() as port:
        with port.user() as user, port.user() as other:
            user.send(data)
            other.send(datagram(6))
            await until(lambda: port.listener.sessions, "the other's session")
            assert [peer.conv for peer in port.listener.sessions.values()] == [6]
            with pytest.raises(BlockingIOError):
                user.recv(2000)  # Nor is it answered.


async def test_a_question_before_the_first_datagram_is_answered_and_forgotten():
    async with listening() as port:
        with port.user() as user:
            user.send(datagram(9, ASK_WINDOW))
            (told,) = await heard(user)
            assert (told.conv, told.cmd, told.una) == (9, TELL_WINDOW, 0)
            assert not port.listener.sessions


@pytest.mark.parametrize(
    "stray",
    [datagram(7, sn=1), datagram(7), datagram(7, ACK), b"noise" * 9],
    ids=["later", "first", "ack", "noise"],
)
async def test_a_datagram_in_a_clients_name_costs_none_of_its_own(stray):
    """They may arrive with one call of the system."""
    async with listening() as port:
        with port.user() as user:
            user.send(datagram(6))
            await until(lambda: port.listener.sessions, "the session")
            [(address, peer)] = port.listener.sessions.items()
            sock = port.listener._sockets[0]
            port.listener._read(sock, [stray, datagram(6, sn=1), datagram(6, sn=2)], address)
            assert port.listener.sessions == {address: peer}
            assert peer.session._wanted == 3


@pytest.mark.parametrize("cmd", [PUSH, ACK, ASK_WINDOW])
async def test_a_client_of_an_earlier_server_is_told_so(cmd):
    async with listening() as port:
        with port.user() as user:
            user.send(datagram(9, cmd, sn=70, una=3))
            (told,) = await heard(user)
            assert (told.conv, told.cmd, told.frg) == (9, END, 1)


async def test_a_flood_of_beginnings_keeps_nobody_out(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNKNOWN", 20)
    async with listening() as port:
        early, first = await port.client()
        users = []
        for number in range(150):
            # As from everywhere: addresses that answer nothing.
            user = port.user(f"127.0.{1 + number % 100}.{1 + number // 100}")
            users.append(user)
            user.send(datagram(number, sn=0))
            for sn in range(2, 70):
                user.send(datagram(number, sn=sn, data=bytes(1000)))
            await turns(2)
            assert len(port.listener._unknown) <= 20
        late, second = await port.client()
        assert len(port.listener.sessions) <= 22
        for peer in port.listener.sessions.values():
            session = peer.session
            assert len(session._early) <= LEAST_ROOM + session._wanted
        assert not early.ended
        for user in users:
            user.close()
        for conn, dialler in ((early, first), (late, second)):
            conn.abort()
            dialler.close()


async def test_those_who_answer_outlast_those_who_do_not(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNKNOWN", 5)
    async with listening(trusting=False) as port:
        conn, dialler = await port.client()
        (proven,) = port.listener.sessions.values()
        await until(lambda: proven.session.proven, "the client's acknowledgement")
        users = [port.user() for _ in range(20)]
        for number, user in enumerate(users):
            user.send(datagram(number))
            await turns(2)
        await until(lambda: len(port.listener.sessions) == 5, "the newest sessions")
        assert proven in port.listener.sessions.values()
        for user in users:
            user.close()
        conn.abort()
        dialler.close()


async def test_a_new_conversation_replaces_one_that_has_not_logged_in():
    async with listening() as port:
        with port.user() as user:
            user.send(datagram(1))
            await until(lambda: port.listener.sessions, "a session")
            user.send(datagram(2))
            await until(
                lambda: [p.conv for p in port.listener.sessions.values()] == [2], "the new one"
            )


async def test_a_forged_beginning_does_not_end_a_client_that_is_there(monkeypatch):
    monkeypatch.setattr(module, "CHALLENGE_S", 0.05)
    async with listening() as port:
        conn, dialler = await port.client()
        (session,) = dialler._sessions
        address = session.get_extra_info("sockname")
        (peer,) = port.listener.sessions.values()
        sock = port.listener._sockets[0]
        for _ in range(3):
            port.listener._read(sock, [datagram(peer.conv ^ 1)], address)
            await until(lambda: peer.session.heard >= peer.challenged_at, "the client's answer")
            await asyncio.sleep(0.06)
        assert list(port.listener.sessions.values()) == [peer]
        # One that has gone without a word gives way.
        session._socket.send_all = lambda datagrams: None
        port.listener._read(sock, [datagram(peer.conv ^ 1)], address)
        await until(
            lambda: (
                port.listener._read(sock, [datagram(peer.conv ^ 1)], address)
                or peer not in port.listener.sessions.values()
            ),
            "the new session",
        )
        conn.abort()
        dialler.close()


async def test_replays_and_absurd_numbers_change_nothing():
    async with listening() as port:
        conn, dialler = await port.client()
        (session,) = dialler._sessions
        address = session.get_extra_info("sockname")
        (peer,) = port.listener.sessions.values()
        sock = port.listener._sockets[0]
        dice = random.Random(4)
        absurd = [
            datagram(peer.conv, cmd, sn=sn, una=una, wnd=wnd, ts=dice.getrandbits(32))
            for cmd in (PUSH, ACK, ASK_WINDOW, TELL_WINDOW)
            for sn in (0, 1, 2**31, 2**32 - 1)
            for una in (0, 1, 2**31, 2**32 - 1)
            for wnd in (0, 65535)
            if (cmd, sn) != (PUSH, 1)
        ]
        # A peer that forgets what it had would be told from these, so none of them twice.
        absurd = [d for d in absurd if kcp.first_segment(d).cmd != TELL_WINDOW]
        for _ in range(50):
            dice.shuffle(absurd)
            port.listener._read(sock, absurd, address)
            assert len(peer.session._early) + len(peer.session._ready) <= 1024
        await turns()
        assert not conn.ended
        conn.write(Login(run_id="again"))
        await until(lambda: session.session.idle, "the client's next message to arrive")
        conn.abort()
        dialler.close()


async def test_what_was_written_before_the_end_arrives():
    async with listening() as port:
        conn, dialler = await port.client()
        (session,) = dialler._sessions
        (peer,) = port.listener.sessions.values()
        reader = Reader()
        session.set_protocol(reader)
        session.resume_reading()
        peer.write(bytes(300_000))
        port.listener.close()
        await port.listener.settle()
        assert peer.session.idle
        assert len(reader.data) == 300_000
        peer.write(b"and its end")
        peer.close()
        session._socket.send_all = lambda datagrams: None  # It never acknowledges that.
        await port.listener.settle()
        assert not port.listener.sessions
        conn.abort()
        dialler.close()
