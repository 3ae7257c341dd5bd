"""A port for users, and the connections that carry their datagrams, without a network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfrp.errors import IdleTimeout, PeerClosed, RemoteWireError
from pyfrp.net import userport as module
from pyfrp.net.userport import UserPort
from pyfrp.wire.framing import FrameDecoder, encode
from pyfrp.wire.messages import Message, Ping, Pong, UDPAddr, UDPPacket
from tests.support.waiting import within
from tests.unit.net.ends import memory_pair, turns
from tests.unit.server.scene import Log

USER = ("192.0.2.7", 4711)


class Wire:
    """Stands for a bound socket that nobody reads.

    Attributes:
        sent: Datagrams and their addresses.
    """

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.family = family
        self.sent: list[tuple[bytes, tuple[Any, ...]]] = []
        self.closed = False

    def sendto(self, data: bytes, address: tuple[Any, ...]) -> None:
        self.sent.append((data, address))

    def close(self) -> None:
        self.closed = True


class Scene:
    """A port, and the far ends of its connections.

    Attributes:
        got: What each connection has carried so far.
        ends: Why those that ended did.
    """

    def __init__(self, *, size: int = 1500, family: int = socket.AF_INET) -> None:
        self.wire = Wire(family)
        self.log = Log()
        self.port = UserPort(self.wire, packet_size=size, log=self.log)  # type: ignore[arg-type]  # see there
        self.got: list[list[Message]] = []
        self.ends: list[Exception] = []
        self._tasks: list[asyncio.Task[None]] = []

    def come(self, data: bytes, address: tuple[Any, ...] = USER) -> None:
        self.port._socket.datagram_received(data, address)

    async def carry(self, early: bytes = b"") -> Any:
        """A connection for the port; its far end."""
        near, far = memory_pair()
        near.pause_reading()
        decoder = FrameDecoder()
        got: list[Message] = []
        self.got.append(got)

        def read(data: bytes) -> None:
            decoder.feed(data)
            while (msg := decoder.next()) is not None:
                got.append(msg)

        far.get_protocol().on_data = read
        self._spawn(self._serve(near, early))
        await turns()
        return far

    async def _serve(self, near: Any, early: bytes) -> None:
        self.ends.append(await self.port.serve(near, early))

    def _spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(coro))

    async def over(self) -> None:
        self.port.close(lost=True)
        await within(asyncio.gather(*self._tasks), 5, "the connections to end")
        assert self.port.conn is None
        assert self.wire.closed


def packet(data: bytes, ip: str = USER[0], port: int = USER[1], zone: str = "") -> UDPPacket:
    return UDPPacket(content=data, remote_addr=UDPAddr(ip=ip, port=port, zone=zone))


async def test_datagrams_and_answers_pass_with_the_address_of_their_user():
    scene = Scene()
    far = await scene.carry(encode(packet(b"early")))
    scene.come(b"one")
    scene.come(b"", ("192.0.2.8", 9))
    await turns()
    assert scene.got == [[packet(b"one"), packet(b"", "192.0.2.8", 9)]]
    far.write(encode(Ping()) + encode(packet(b"answer")) + encode(Pong()))
    await turns()
    assert scene.wire.sent == [(b"early", USER), (b"answer", USER)]
    assert scene.log.lines == []
    await scene.over()


async def test_a_port_says_when_it_wants_a_connection():
    scene = Scene()
    waiting = asyncio.ensure_future(scene.port.wanted())
    await turns()
    assert not waiting.done()
    scene.come(b"one")
    assert await waiting
    await scene.carry()
    assert scene.got == [[packet(b"one")]]
    again = asyncio.ensure_future(scene.port.wanted())
    scene.come(b"two")
    await turns()
    assert not again.done()  # The connection that is there carries it.
    scene.port.close()
    assert not await again
    await scene.over()


async def test_what_waits_for_nothing_is_dropped():
    scene = Scene()
    scene.come(b"stale")
    scene.port.drop_waiting()
    waiting = asyncio.ensure_future(scene.port.wanted())
    await turns()
    assert not waiting.done()
    scene.come(b"fresh")
    assert await waiting
    await scene.carry()
    assert scene.got == [[packet(b"fresh")]]
    await scene.over()
    scene.port.drop_waiting()
    assert not await scene.port.wanted()


async def test_so_many_wait_and_the_newest_are_lost(monkeypatch):
    monkeypatch.setattr(module, "QUEUE", 3)
    scene = Scene()
    for number in range(5):
        scene.come(bytes((number,)))
    assert scene.log.has("datagrams of users are dropped: the far side", "warning")
    await scene.carry()
    assert [msg.content for msg in scene.got[0]] == [b"\0", b"\1", b"\2"]
    await scene.over()


async def test_longer_datagrams_are_cut_and_said_so_once():
    scene = Scene(size=100)
    await scene.carry()
    for size in (100, 101, 5000):
        scene.come(bytes(size))
    await turns()
    assert [len(msg.content) for msg in scene.got[0]] == [100] * 3
    [text] = scene.log.events("warning")
    assert "a datagram of 101 bytes from a user was cut: udpPacketSize is 100" in text
    await scene.over()


async def test_datagrams_beyond_any_message_are_dropped_and_said_so():
    scene = Scene(size=65000)
    await scene.carry()
    scene.come(bytes(8000))
    scene.come(b"short")
    await turns()
    assert scene.got == [[packet(b"short")]]
    assert scene.log.has("a datagram of a user was dropped: UDPPacket of 107", "warning")
    await scene.over()


@pytest.mark.parametrize(
    ("family", "addr"),
    [
        (socket.AF_INET, None),
        (socket.AF_INET, UDPAddr(ip="localhost", port=9)),
        (socket.AF_INET, UDPAddr(ip="127.0.0.1", port=0)),
        (socket.AF_INET, UDPAddr(ip="::1", port=9)),
        (socket.AF_INET6, UDPAddr(ip="127.0.0.1", port=9)),
        (socket.AF_INET6, UDPAddr(ip="fe80::1", port=9, zone="nowhere")),
    ],
)
async def test_an_answer_to_no_address_is_dropped_and_said_so(family, addr):
    scene = Scene(family=family)
    far = await scene.carry()
    far.write(encode(UDPPacket(content=b"x", remote_addr=addr)))
    await turns()
    assert scene.wire.sent == []
    assert scene.log.has("an answer to a user was dropped: it has ", "warning")
    await scene.over()


async def test_what_the_system_says_of_one_user_concerns_no_other():
    scene = Scene()
    far = await scene.carry()
    scene.port._socket.error_received(ConnectionRefusedError("no"))
    far.write(encode(packet(b"answer")))
    await turns()
    assert scene.wire.sent == [(b"answer", USER)]
    assert scene.log.has("a datagram to or from a user was lost: no", "debug")
    await scene.over()


async def test_a_datagram_that_comes_as_the_connection_ends_waits_for_the_next():
    scene = Scene()
    await scene.carry()
    assert scene.port.conn is not None
    scene.port.conn.abort()
    scene.come(b"just then")
    assert await scene.port.wanted()
    await turns()
    await scene.carry()
    assert scene.got == [[], [packet(b"just then")]]
    assert scene.log.events("warning") == []
    await scene.over()


@pytest.mark.parametrize(
    ("end", "cause"),
    [("close", PeerClosed), ("abort", PeerClosed), ("nonsense", RemoteWireError)],
)
async def test_one_connection_follows_the_other(end, cause):
    scene = Scene()
    far = await scene.carry()
    scene.come(b"one")
    await turns()
    if end == "nonsense":
        far.write(b"GET / HTTP/1.1\r\n")
    else:
        getattr(far, end)()
    await turns()
    assert isinstance(scene.ends[0], cause)
    scene.come(b"two")
    assert await scene.port.wanted()
    await scene.carry()
    assert scene.got == [[packet(b"one")], [packet(b"two")]]
    await scene.over()


async def test_a_silent_connection_is_dropped(monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.05)
    scene = Scene()
    far = await scene.carry()
    await within(asyncio.gather(*scene._tasks), 5, "the end")
    assert isinstance(scene.ends[0], IdleTimeout)
    assert str(scene.ends[0]) == "nothing came for 0.05 s"
    assert far.is_closing()
    await scene.over()


@pytest.mark.parametrize("lost", [False, True])
async def test_closing_ends_the_connection(lost):
    scene = Scene()
    await scene.carry()
    scene.come(b"last words")
    scene.port.close(lost=lost)
    await turns()
    assert scene.got == [[] if lost else [packet(b"last words")]]
    scene.come(b"too late")
    far = await scene.carry()
    assert far.is_closing()
    assert scene.got[1] == []
    await scene.over()


async def test_who_gives_up_leaves_no_connection():
    scene = Scene()
    far = await scene.carry()
    scene._tasks.pop().cancel()
    await turns()
    assert scene.port.conn is None
    assert far.is_closing()
    await scene.over()


ACTS = st.lists(st.sampled_from(["datagram", "connect", "lose", "give up"]), max_size=30)


@settings(max_examples=60)
@given(ACTS)
async def test_each_datagram_is_carried_once_and_in_order(acts):
    """By the connection that is there, or else the next one, unless somebody gives up."""
    scene = Scene()
    expected: list[list[bytes]] = []
    waiting: list[bytes] = []
    far = None
    for number, act in enumerate(acts):
        if act == "datagram":
            data = str(number).encode()
            scene.come(data)
            (waiting if far is None else expected[-1]).append(data)
        elif act == "connect" and far is None:
            far = await scene.carry()
            expected.append(waiting)
            waiting = []
        elif act == "lose" and far is not None:
            await turns()
            far.abort()
            far = None
        elif act == "give up":
            scene.port.drop_waiting()
            waiting = []
        await turns()
        assert scene.port._woken.is_set() == bool(waiting)
    assert [[msg.content for msg in got] for got in scene.got] == expected
    await scene.over()
