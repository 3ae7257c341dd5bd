"""Work connections that carry messages."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfrp.errors import IdleTimeout, PeerClosed, RemoteWireError
from pyfrp.net.packets import BATCH, QUEUE, PacketConn
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.datagram import encode_packet, user_part
from pyfrp.wire.framing import encode
from pyfrp.wire.messages import Message, Ping, UDPPacket
from tests.fuzz.engine import cut
from tests.unit.net.ends import MemoryEnd, Reader, memory_pair, turns

USER = user_part("192.0.2.7", 4711, "")


class Scene:
    """A packet connection and the far end of it."""

    def __init__(self, *, early: bytes = b"") -> None:
        self.near, self.far = memory_pair()
        self.near.pause_reading()
        self.writes: list[bytes] = []
        write = self.near.write

        def noted(data: bytes) -> None:
            self.writes.append(data)
            write(data)

        self.near.write = noted  # type: ignore[method-assign]  # to see single writes
        self.got: list[Message] = []
        self.conn = PacketConn(self.near, early, on_message=self.got.append)
        self.reader: Reader = self.far.get_protocol()


def frames(*sizes: int) -> list[bytes]:
    return [encode_packet(random.randbytes(size), USER) for size in sizes]


async def test_the_frames_of_one_turn_leave_in_one_write():
    scene = Scene()
    first, second = frames(10, 20, 30), frames(5)
    assert all(scene.conn.send(frame) for frame in first)
    assert scene.writes == []
    await turns()
    assert scene.conn.send(second[0])
    await turns()
    assert scene.writes == [b"".join(first), second[0]]
    scene.conn.abort()


async def test_a_turn_that_brings_very_much_makes_several_writes():
    scene = Scene()
    many = frames(*[10] * (2 * BATCH + 3))
    for frame in many:
        assert scene.conn.send(frame)
    await turns()
    assert [len(data) for data in scene.writes] == [
        len(b"".join(many[at : at + BATCH])) for at in range(0, len(many), BATCH)
    ]
    assert bytes(scene.reader.data) == b"".join(many)
    scene.conn.abort()


async def test_a_slow_link_holds_so_many_and_the_newest_are_lost():
    scene = Scene()
    scene.far.pause_reading()
    many = frames(*[1400] * (3 * QUEUE))
    taken = [frame for frame in many if scene.conn.send(frame)]
    assert QUEUE < len(taken) < 2 * QUEUE
    assert taken == many[: len(taken)]
    assert scene.near.get_write_buffer_size() <= scene.near.high + BATCH * 2000
    assert len(scene.conn._queue) == QUEUE
    scene.far.resume_reading()
    await turns(200)
    assert bytes(scene.reader.data) == b"".join(taken)
    assert scene.conn.send(many[0])
    scene.conn.abort()


async def test_closing_sends_what_is_pending_and_aborting_does_not():
    for method, arrives in (("close", True), ("abort", False)):
        scene = Scene()
        [frame] = frames(100)
        scene.conn.send(frame)
        getattr(scene.conn, method)()
        await turns()
        assert bytes(scene.reader.data) == (frame if arrives else b"")
        assert isinstance(scene.conn.ended.result(), PeerClosed)
        assert not scene.conn.send(frame)
        scene.conn.close()
        await turns()
        scene.far.abort()


async def test_messages_read_ahead_come_first():
    early, later = frames(10, 20)
    scene = Scene(early=encode(Ping()) + early + later[:7])
    scene.far.write(later[7:])
    await turns()
    assert [type(msg) for msg in scene.got] == [Ping, UDPPacket, UDPPacket]
    scene.conn.abort()


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_the_end_of_the_peer_ends_it_with_a_cause(end):
    scene = Scene()
    getattr(scene.far, end)()
    await turns()
    assert isinstance(scene.conn.ended.result(), PeerClosed)
    assert scene.near.is_closing()


async def test_an_endpoint_that_was_lost_before_ends_it_at_once():
    near, _ = memory_pair()
    near.abort()
    await turns()
    conn = PacketConn(near, b"", on_message=print)
    assert isinstance(conn.ended.result(), PeerClosed)
    assert not conn.send(b"x")


async def test_the_first_cause_stays():
    scene = Scene()
    scene.conn.abort(IdleTimeout("silence"))
    await turns()
    assert str(scene.conn.ended.result()) == "silence"


async def test_silence_ends_it_and_anything_that_comes_does_not(monkeypatch):
    scene = Scene()
    looks: list[float] = []
    wait = asyncio.wait

    async def impatient(what, timeout):
        looks.append(timeout)
        return await wait(what, timeout=0)

    monkeypatch.setattr(asyncio, "wait", impatient)
    watch = asyncio.ensure_future(scene.conn.until_silent(60))
    await turns()
    scene.conn.heard -= 50
    await turns()
    assert looks[-1] < 11
    scene.far.write(encode(Ping()))
    await turns()
    assert looks[-1] > 59
    assert not watch.done()
    scene.conn.heard -= 60
    assert isinstance(await watch, IdleTimeout)
    assert scene.near.aborted


async def test_waiting_for_silence_ends_with_the_connection():
    scene = Scene()
    watch = asyncio.ensure_future(scene.conn.until_silent(60))
    await turns()
    scene.far.close()
    assert isinstance(await watch, PeerClosed)
    scene.conn.abort()


async def test_bytes_that_are_no_message_end_it_and_what_came_before_counts():
    scene = Scene()
    scene.far.write(frames(5)[0] + b"GET / HTTP/1.1\r\n")
    await turns()
    assert len(scene.got) == 1
    assert isinstance(scene.conn.ended.result(), RemoteWireError)
    assert scene.near.aborted


async def test_nothing_is_delivered_after_its_end_within_one_read():
    near, far = memory_pair()
    near.pause_reading()
    got = []

    def once(msg: Message) -> None:
        got.append(msg)
        conn.abort()

    conn = PacketConn(near, b"", on_message=once)
    far.write(b"".join(frames(1, 2, 3)))
    await turns()
    assert len(got) == 1


def _layered(near: MemoryEnd, far: MemoryEnd, key, compress):
    return [wrap_payload(end, b"", key=key, compress=compress)[0] for end in (near, far)]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("key", [None, derive_key("token")], ids=["plain", "encrypted"])
async def test_messages_pass_under_every_layer(key, compress):
    near, far = memory_pair()
    near.pause_reading()
    far.pause_reading()
    got: list[Message] = []
    conns = [
        PacketConn(end, b"", on_message=got.append) for end in _layered(near, far, key, compress)
    ]
    for frame in frames(*range(0, 7000, 500)):
        conns[0].send(frame)
    await turns()
    assert [len(msg.content) for msg in got] == list(range(0, 7000, 500))
    for conn in conns:
        conn.abort()
    await turns()


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 3000), max_size=8),
    garbage=st.binary(max_size=40),
    seed=st.integers(0, 2**32),
)
async def test_any_bytes_in_any_pieces_end_in_messages_or_a_cause(sizes, garbage, seed):
    scene = Scene()
    whole = frames(*sizes)
    for piece in cut(b"".join(whole) + garbage, random.Random(seed)):
        if not scene.far.is_closing():
            scene.far.write(piece)
    await turns()
    assert [len(msg.content) for msg in scene.got[: len(sizes)]] == sizes
    if not scene.conn.ended.done():
        scene.conn.abort()
    else:
        assert isinstance(scene.conn.ended.result(), RemoteWireError)
    scene.far.abort()
    await turns()
