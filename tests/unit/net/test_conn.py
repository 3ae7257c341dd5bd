"""Conversations in messages, and the hand-over of their endpoint with not one byte lost."""

from __future__ import annotations

import asyncio

import pytest

from pyfrp.errors import BadMessage, FrameTooLarge, LocalWireError, PeerClosed, RemoteWireError
from pyfrp.net import conn as module
from pyfrp.net.conn import MessageConn
from pyfrp.wire.cfb import Decryptor, Encryptor, derive_key
from pyfrp.wire.framing import encode
from pyfrp.wire.messages import (
    LoginResp,
    NewProxy,
    NewWorkConn,
    Ping,
    Pong,
    ReqWorkConn,
    StartWorkConn,
)
from tests.support.waiting import within
from tests.unit.net.ends import Reader, memory_pair, turns
from tests.unit.wire.pieces import three_ways

KEY = derive_key("token")
START = StartWorkConn(proxy_name="web", src_addr="203.0.113.7", src_port=4711)


def conversing(early: bytes = b""):
    """A conversation on one end, and the other end with its reader."""
    near, far = memory_pair()
    near.pause_reading()
    return MessageConn(near, early=early), near, far


async def read(conn):
    return await within(conn.read(), 5, "a message")


# -- reading ------------------------------------------------------------------------------------


@three_ways
async def test_messages_are_read_in_order_however_they_arrive(cut):
    conn, _, far = conversing()
    messages = [Ping(timestamp=1), ReqWorkConn(), Pong(error="no"), Ping(timestamp=2)]
    for piece in cut(b"".join(map(encode, messages))):
        if piece:
            far.write(piece)
    assert [await read(conn) for _ in messages] == messages


async def test_early_bytes_are_read_first():
    conn, _, far = conversing(early=encode(Ping(timestamp=1)) + encode(Ping(timestamp=2))[:4])
    far.write(encode(Ping(timestamp=2))[4:])
    assert await read(conn) == Ping(timestamp=1)
    assert await read(conn) == Ping(timestamp=2)


async def test_a_message_that_comes_later_wakes_the_reader():
    conn, _, far = conversing()
    waiting = asyncio.get_running_loop().create_task(conn.read())
    await turns()
    assert not waiting.done()
    far.write(encode(Pong()))
    assert await within(waiting, 5, "the message") == Pong()


async def test_messages_that_came_before_the_end_are_read_before_it():
    conn, near, far = conversing()
    far.write(encode(Pong(error="first")))
    far.write(encode(Pong(error="second"))[:6])
    far.close()
    assert await read(conn) == Pong(error="first")
    with pytest.raises(PeerClosed):
        await read(conn)
    with pytest.raises(PeerClosed):
        await read(conn)
    await turns()
    assert near.is_closing()
    assert conn.ended


async def test_a_reset_ends_the_reading_and_says_why():
    conn, _, far = conversing()
    far.abort()
    with pytest.raises(PeerClosed, match="reset by the far end"):
        await read(conn)


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_a_connection_that_is_lost_before_its_conversation_ends_that(how):
    """A new connection may end in the turn in which it is handed over; nobody else is told."""
    near, far = memory_pair()
    near.set_protocol(asyncio.Protocol())
    if how == "reset":
        far.abort()
    else:
        near.close()
    await turns()
    conn = MessageConn(near)
    conn.begin(NewWorkConn(run_id="r"))
    with pytest.raises(PeerClosed):
        await read(conn)


async def test_a_closed_conversation_reads_no_more():
    conn, near, _ = conversing()
    conn.close()
    with pytest.raises(PeerClosed, match="closed"):
        await read(conn)
    await turns()
    assert near.is_closing()
    assert not near.aborted


async def test_an_aborted_conversation_wakes_its_reader():
    conn, near, far = conversing()
    waiting = asyncio.get_running_loop().create_task(conn.read())
    await turns()
    far_reader = far.get_protocol()
    conn.abort()
    with pytest.raises(PeerClosed, match="aborted"):
        await within(waiting, 5, "the end")
    await turns()
    assert near.aborted
    assert isinstance(far_reader.lost[0], ConnectionResetError)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n", BadMessage),
        (b"\x00", BadMessage),
        (b"h" + (10241).to_bytes(8, "big"), FrameTooLarge),
        (b"h" + (2**64 - 1).to_bytes(8, "big"), FrameTooLarge),
        (b"h" + (2).to_bytes(8, "big") + b"[]", BadMessage),
        (b"h" + (4).to_bytes(8, "big") + b'{"a"', BadMessage),
    ],
)
async def test_bytes_that_are_no_message_are_refused(data, error):
    conn, _, far = conversing()
    far.write(data)
    with pytest.raises(error):
        await read(conn)


async def test_a_deadline_is_the_callers_and_loses_nothing():
    conn, _, far = conversing()
    far.write(encode(Pong(error="slow"))[:7])
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout_at(loop.time()):
            await conn.read()
    far.write(encode(Pong(error="slow"))[7:])
    assert await read(conn) == Pong(error="slow")


async def test_nothing_is_read_ahead_of_the_conversation_without_bound():
    conn, near, far = conversing()
    size = len(encode(NewProxy(proxy_name="x" * 9000)))
    sent = 0
    while sent < 256 * 1024:
        far.write(encode(NewProxy(proxy_name="x" * 9000)))
        sent += size
        await turns(2)
    assert near.unread > sent - 2 * size
    for _ in range(sent // size):
        assert (await read(conn)).proxy_name == "x" * 9000


async def test_activity_is_told_for_any_bytes():
    conn, _, far = conversing()
    seen = []
    conn.on_activity = lambda: seen.append(1)
    far.write(b"h")
    reading = asyncio.get_running_loop().create_task(conn.read())
    await turns()
    assert seen
    reading.cancel()
    await asyncio.wait([reading])


# -- writing ------------------------------------------------------------------------------------


async def test_a_message_too_long_for_the_peer_is_refused_here():
    conn, near, _ = conversing()
    with pytest.raises(LocalWireError):
        conn.write(NewProxy(proxy_name="x" * 10240))
    assert near.written == b""


async def test_draining_does_not_wait_for_the_turn_of_a_few_messages():
    conn, near, far = conversing()
    far.pause_reading()
    near.high = 0
    conn.write(Ping(timestamp=1))
    assert conn._choked
    await within(conn.drain(), 5, "draining a little")
    far.resume_reading()
    await turns()


async def test_draining_waits_for_a_peer_that_does_not_read(monkeypatch):
    monkeypatch.setattr(module, "MOST_PENDING", 100)
    conn, near, far = conversing()
    far.pause_reading()
    await within(conn.drain(), 5, "draining nothing")
    near.high = 100
    for _ in range(10):
        conn.write(Ping(timestamp=1))
    waiting = asyncio.get_running_loop().create_task(conn.drain())
    await turns()
    assert not waiting.done()
    far.resume_reading()
    await within(waiting, 5, "draining")


async def test_draining_ends_when_the_peer_is_gone(monkeypatch):
    monkeypatch.setattr(module, "MOST_PENDING", 10)
    conn, near, far = conversing()
    far.pause_reading()
    near.high = 10
    conn.write(Ping(timestamp=1))
    waiting = asyncio.get_running_loop().create_task(conn.drain())
    await turns()
    far.abort()
    with pytest.raises(PeerClosed):
        await within(waiting, 5, "draining")
    with pytest.raises(PeerClosed):
        await conn.drain()


@pytest.mark.parametrize("how", ["close", "reset", "own close"])
async def test_messages_for_a_peer_that_is_gone_are_dropped(how):
    """uvloop's transports raise instead, and whoever writes may not have heard of the loss."""
    conn, _, far = conversing()
    if how == "reset":
        far.abort()
    elif how == "close":
        far.close()
        with pytest.raises(PeerClosed):
            await read(conn)
    else:
        conn.close()
    await turns()
    conn.write(Ping(timestamp=1))


async def test_what_was_written_before_closing_is_sent():
    conn, _, far = conversing()
    reader = far.get_protocol()
    conn.write(LoginResp(error="no"))
    conn.close()
    await turns()
    assert reader.data == encode(LoginResp(error="no"))
    assert reader.events == ["data", "eof"]


async def test_closing_with_messages_unread_is_still_orderly():
    """A reset would overtake the refusal that was just written."""
    conn, near, far = conversing()
    reader = far.get_protocol()
    for _ in range(3):
        far.write(encode(Ping(timestamp=1)))
    assert await read(conn) == Ping(timestamp=1)
    conn.write(LoginResp(error="no"))
    conn.close()
    await turns()
    assert reader.events == ["data", "eof"]
    assert not near.aborted


# -- ciphers ------------------------------------------------------------------------------------


async def test_both_directions_are_ciphered_from_the_switch_on():
    conn, _, far = conversing()
    conn.write(Pong())
    conn.secure(Encryptor(KEY).encrypt, Decryptor(KEY).decrypt)
    conn.write(Pong(error="secret"))
    sealed = Encryptor(KEY).encrypt(encode(Ping(timestamp=9)))
    far.write(sealed)
    assert await read(conn) == Ping(timestamp=9)
    clear = encode(Pong())
    written = bytes(far.far.written)
    assert written.startswith(clear)
    assert b"secret" not in written
    assert Decryptor(KEY).decrypt(written[len(clear) :]) == encode(Pong(error="secret"))


async def test_bytes_read_ahead_of_the_switch_are_deciphered_at_every_split():
    clear = encode(LoginResp(run_id="r"))
    seal = Encryptor(KEY, b"i" * 16).encrypt
    sealed = b"".join((seal(encode(ReqWorkConn())), seal(encode(Pong(error="second")))))
    whole = clear + sealed
    for split in range(len(whole) + 1):
        conn, _, far = conversing(early=whole[:split] if split % 2 else b"")
        if split % 2 == 0 and split:
            far.write(whole[:split])
        if split < len(whole):
            far.write(whole[split:])
        assert await read(conn) == LoginResp(run_id="r")
        conn.secure(Encryptor(KEY).encrypt, Decryptor(KEY).decrypt)
        assert await read(conn) == ReqWorkConn()
        assert await read(conn) == Pong(error="second")


async def test_a_wrong_key_reads_as_nonsense():
    conn, _, far = conversing()
    conn.secure(Encryptor(KEY).encrypt, Decryptor(derive_key("other")).decrypt)
    far.write(Encryptor(KEY).encrypt(encode(Ping(timestamp=9)) * 50))
    # Nonsense may look like the start of a message of at most 10 KiB, but not for ever.
    far.write(Encryptor(KEY).encrypt(bytes(11_000)))
    with pytest.raises(RemoteWireError):
        await read(conn)


async def test_bytes_that_cannot_be_deciphered_end_the_reading():
    def fails(data):
        raise RemoteWireError("forged")

    conn, _, far = conversing()
    conn.secure(lambda data: data, fails)
    far.write(b"x")
    with pytest.raises(RemoteWireError, match="forged"):
        await read(conn)
    far.write(b"y")
    with pytest.raises(RemoteWireError, match="forged"):
        await read(conn)


# -- the hand-over ------------------------------------------------------------------------------


def join(endpoint, early):
    """What a bridge does with what it is handed."""
    reader = Reader()
    endpoint.set_protocol(reader)
    if early:
        reader.data_received(early)
    endpoint.resume_reading()
    return reader


async def test_detaching_loses_no_byte_at_any_split():
    payload = b"payload that follows at once"
    whole = encode(START) + payload
    for split in range(len(whole) + 1):
        conn, _, far = conversing(early=whole[:split])
        if split < len(whole):
            far.write(whole[split:])
        assert await read(conn) == START
        endpoint, early = conn.detach()
        reader = join(endpoint, early)
        far.write(b" and later")
        await turns()
        assert reader.data == payload + b" and later"


async def test_detaching_loses_no_byte_of_many_pieces():
    conn, near, far = conversing()
    frame = encode(START)
    for at in range(len(frame)):
        far.write(frame[at : at + 1])
    for piece in (b"one", b"two", b"three"):
        far.write(piece)
    assert await read(conn) == START
    await turns()
    endpoint, early = conn.detach()
    assert near.paused
    far.write(b"four")
    await turns()
    reader = join(endpoint, early)
    await turns()
    assert reader.data == b"onetwothreefour"


@pytest.mark.parametrize("payload", [b"", b"request"])
@pytest.mark.parametrize("together", [False, True])
async def test_detaching_does_not_lose_the_end_that_follows_the_payload(payload, together):
    """A user who sends all he has and ends his side: both are there before anybody reads."""
    conn, _, far = conversing()
    if together:
        far.write(encode(START) + payload)
    else:
        far.write(encode(START))
        if payload:
            far.write(payload)
    far.write_eof()
    await turns()
    assert await read(conn) == START
    await turns()
    endpoint, early = conn.detach()
    await turns()
    reader = join(endpoint, early)
    await turns()
    assert reader.data == payload
    assert reader.ends == 1
    assert not endpoint.is_closing()


async def test_an_endpoint_that_was_lost_cannot_be_handed_on():
    conn, near, far = conversing()
    far.write(encode(START))
    assert await read(conn) == START
    near.lose(ConnectionResetError("gone"))
    with pytest.raises(PeerClosed, match="gone"):
        conn.detach()


async def test_a_message_that_asks_for_nothing_leaves_no_rest():
    conn, _, far = conversing()
    far.write(encode(NewWorkConn(run_id="r")))
    assert await read(conn) == NewWorkConn(run_id="r")
    assert conn.detach()[1] == b""
