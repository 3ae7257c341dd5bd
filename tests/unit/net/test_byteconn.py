"""Conversations in bytes: nothing is lost on the way, and everybody is told of the end."""

from __future__ import annotations

import asyncio
import random

import pytest

from pyfrp.errors import PeerClosed
from pyfrp.net.byteconn import READ_AHEAD_BYTES, ByteConn
from tests.support.waiting import until, within
from tests.unit.net.ends import memory_pair, turns
from tests.unit.net.mux_pair import mux_pair


def made(**more):
    ours, theirs = memory_pair()
    ours.pause_reading()
    return ByteConn(ours, **more), theirs, ours


async def test_bytes_are_read_in_order_and_the_rest_is_handed_on():
    conn, far, ours = made(early=b"ab")
    far.write(b"cdef")
    assert await within(conn.exactly(4), 5, "four bytes") == b"abcd"
    endpoint, rest = conn.detach()
    assert (endpoint, rest, ours.paused) == (ours, b"ef", True)
    ours.abort()
    await turns()


async def test_what_waited_goes_to_a_sink_before_what_the_endpoint_holds():
    """A stream delivers what it holds at once when it may go on."""
    block = random.Random(1).randbytes(2 * READ_AHEAD_BYTES)
    async with mux_pair() as (a, b):
        b.on_stream = lambda stream, _: stream.pause_reading()
        stream, _ = a.open()
        stream.write(block[:READ_AHEAD_BYTES])
        near, _ = await b.accepted()
        conn = ByteConn(near)
        await until(lambda: len(conn.buffer) == READ_AHEAD_BYTES, "the buffer to fill")
        stream.write(block[READ_AHEAD_BYTES:])
        await turns()
        assert len(conn.buffer) == READ_AHEAD_BYTES
        got = bytearray()
        conn.divert(got.extend)
        await until(lambda: len(got) == len(block), "all of it")
        assert got == block
        conn.abort()
        stream.abort()


async def test_who_waits_for_bytes_is_told_of_the_end():
    conn, far, _ = made()
    waiting = asyncio.ensure_future(conn.exactly(2))
    far.write(b"a")
    far.write_eof()
    with pytest.raises(PeerClosed):
        await waiting
    assert not await conn.more()
    conn.write(b"bye")
    await conn.finish(5)
    assert bytes(far.get_protocol().data) == b"bye"
    far.abort()
    await turns()


async def test_an_orderly_end_is_not_followed_by_a_reset():
    """A mux stream would be reset after all, and the far end lose what it had not read yet."""
    conn, far, ours = made()
    conn.write(b"last words")
    await conn.finish(5)
    conn.abort()
    conn.reset()
    assert not ours.aborted
    far.abort()
    await turns()


async def test_a_far_end_that_takes_nothing_is_dropped_in_time():
    conn, _, ours = made()
    ours.close = lambda: None
    await conn.finish(0.01)
    assert ours.aborted
    await turns()


async def test_writers_wait_for_readers_and_learn_of_their_end():
    conn, far, _ = made()
    far.pause_reading()
    conn.write(bytes(400_000))
    waiting = asyncio.ensure_future(conn.drain())
    await turns()
    assert not waiting.done()
    far.resume_reading()
    await within(waiting, 5, "the reader")
    far.abort()
    await turns()
    with pytest.raises(PeerClosed):
        await conn.drain()


async def test_what_nobody_takes_is_bounded():
    conn, far, ours = made()
    far.write(bytes(READ_AHEAD_BYTES))
    await until(lambda: ours.paused, "the pause")
    conn.take(1)
    assert not ours.paused
    conn.abort()
    await turns()


async def test_a_connection_that_is_gone_already_says_so():
    ours, _ = memory_pair()
    ours.abort()
    await turns()
    conn = ByteConn(ours)
    assert not await conn.more()
    with pytest.raises(PeerClosed):
        conn.detach()
