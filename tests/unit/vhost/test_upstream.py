"""Work connections that are kept for the next request."""

from __future__ import annotations

import pytest

from pyfrp.errors import DialError
from pyfrp.vhost import upstream as module
from pyfrp.vhost.upstream import IDLE_S, Upstream, UpstreamPool
from tests.unit.vhost.scene import ADDRESS, Wire, turns


class User:
    """Notes what an upstream tells."""

    def __init__(self, *, awaits_head=True):
        self.awaits_head = awaits_head
        self.data = b""
        self.ended = []
        self.marks = []

    def upstream_data(self, data):
        self.data += data

    def upstream_ended(self, exc):
        self.ended.append(exc)

    def upstream_full(self):
        self.marks.append("full")

    def upstream_drained(self):
        self.marks.append("drained")


class Pool(UpstreamPool):
    """A pool that opens wires, at a time that the test sets."""

    def __init__(self, early=b""):
        self.now = 0.0
        self.wires = []
        self.early = early
        self.failure = None
        super().__init__(self._open, lambda: self.now)

    async def _open(self, caller):
        assert caller == ADDRESS
        if self.failure is not None:
            raise self.failure
        wire = Wire()
        wire.reading = False
        self.wires.append(wire)
        return wire, self.early

    async def used(self) -> Upstream:
        """An upstream that a user has."""
        upstream = await self.open(ADDRESS)
        upstream.user = User()
        return upstream


async def test_a_new_upstream_is_read_and_tells_its_user():
    pool = Pool()
    upstream = await pool.used()
    [wire] = pool.wires
    assert wire.reading
    wire.feed(b"answer")
    wire.protocol.pause_writing()
    wire.protocol.resume_writing()
    assert upstream.user.data == b"answer"
    assert upstream.user.marks == ["full", "drained"]


async def test_the_one_used_last_is_taken_first():
    pool = Pool()
    upstreams = [await pool.used() for _ in range(3)]
    for upstream in upstreams:
        pool.give_back(upstream)
    assert len(pool) == 3
    assert [pool.take() for _ in range(4)] == [*reversed(upstreams), None]


async def test_failing_to_open_one_is_the_callers_to_know():
    pool = Pool()
    pool.failure = DialError("nobody there")
    with pytest.raises(DialError):
        await pool.open(ADDRESS)


@pytest.mark.parametrize("how", ["end", "loss", "reset"])
async def test_an_idle_one_that_the_far_end_closed_is_never_handed_out(how):
    pool = Pool()
    pool.give_back(await pool.used())
    [wire] = pool.wires
    if how == "end":
        wire.end()
    else:
        wire.lose(ConnectionResetError() if how == "reset" else None)
    assert len(pool) == 0
    assert pool.take() is None
    await turns()
    assert wire.closed


async def test_one_that_has_not_taken_its_request_is_not_kept():
    """It was answered early: the next request would queue up behind the rest of that one."""
    pool = Pool()
    upstream = await pool.used()
    [wire] = pool.wires
    wire.protocol.pause_writing()
    pool.give_back(upstream)
    assert len(pool) == 0
    assert wire.closed


async def test_one_that_has_is_kept():
    pool = Pool()
    upstream = await pool.used()
    [wire] = pool.wires
    wire.protocol.pause_writing()
    wire.protocol.resume_writing()
    pool.give_back(upstream)
    assert pool.take() is upstream


async def test_one_with_bytes_that_wait_is_not_handed_out():
    """Nobody asked for them, and they would be taken for the next answer."""
    pool = Pool()
    waiting = {}
    pool._unread = lambda wire: waiting.get(wire, 0)
    for _ in range(2):
        pool.give_back(await pool.used())
    waiting[pool.wires[1]] = 3
    assert pool.take() is pool.wires[0].protocol
    assert pool.wires[1].closed
    assert pool.take() is None


async def test_one_that_closes_in_this_very_turn_is_not_handed_out():
    pool = Pool()
    pool.give_back(await pool.used())
    pool.give_back(await pool.used())
    pool.wires[1].closed = True  # Its protocol is told in the next turn.
    assert pool.take() is pool.wires[0].protocol


async def test_an_idle_one_that_speaks_unasked_is_dropped():
    """What it says would be taken for the next caller's answer."""
    pool = Pool()
    pool.give_back(await pool.used())
    pool.wires[0].feed(b"HTTP/1.1 200 OK\r\n")
    assert pool.wires[0].aborted
    assert pool.take() is None


async def test_one_that_speaks_before_it_is_asked_is_closed_from_the_start():
    pool = Pool(early=b"SSH-2.0-")
    upstream = await pool.open(ADDRESS)
    assert upstream.closed
    assert pool.wires[0].aborted
    assert not pool.wires[0].reading


async def test_the_end_is_told_once_and_to_nobody_after_it_was_given_up():
    pool = Pool()
    upstream = await pool.used()
    user = upstream.user
    pool.wires[0].end()
    pool.wires[0].lose(ConnectionResetError())
    assert user.ended == [None]
    other = await pool.used()
    user = other.user
    other.abort()
    other.abort()
    await turns()
    assert user.ended == []
    assert pool.wires[1].aborted


async def test_marks_of_an_idle_one_concern_nobody():
    pool = Pool()
    pool.give_back(await pool.used())
    pool.wires[0].protocol.pause_writing()
    pool.wires[0].protocol.resume_writing()
    assert len(pool) == 1


async def test_giving_back_what_has_ended_keeps_nothing():
    pool = Pool()
    upstream = await pool.used()
    pool.wires[0].end()
    pool.give_back(upstream)
    assert len(pool) == 0


async def test_idle_ones_end_after_their_time_and_not_before():
    pool = Pool()
    first, second = await pool.used(), await pool.used()
    pool.give_back(first)
    pool.now += 10
    pool.give_back(second)
    pool.now += IDLE_S - 10
    pool.sweep(pool.now)
    assert [w.aborted for w in pool.wires] == [True, False]
    pool.sweep(pool.now + 9)
    assert len(pool) == 1
    pool.sweep(pool.now + 10)
    assert len(pool) == 0


async def test_only_so_many_are_kept(monkeypatch):
    monkeypatch.setattr(module, "MAX_IDLE", 2)
    pool = Pool()
    for upstream in [await pool.used() for _ in range(3)]:
        pool.give_back(upstream)
    assert len(pool) == 2
    assert [w.aborted for w in pool.wires] == [False, False, True]


async def test_closing_ends_the_idle_now_and_the_busy_when_they_are_given_back():
    pool = Pool()
    idle, busy = await pool.used(), await pool.used()
    pool.give_back(idle)
    pool.close()
    assert [w.aborted for w in pool.wires] == [True, False]
    pool.give_back(busy)
    assert pool.wires[1].aborted


async def test_a_lost_client_fails_those_who_wait_for_a_head_and_no_others():
    pool = Pool()
    waiting, reading, idle = [await pool.used() for _ in range(3)]
    reading.user.awaits_head = False
    users = waiting.user, reading.user
    pool.give_back(idle)
    pool.fail()
    assert [type(exc) for exc in users[0].ended] == [ConnectionResetError]
    assert users[1].ended == []
    assert [w.aborted for w in pool.wires] == [True, False, False]


async def test_a_released_one_belongs_to_somebody_else():
    pool = Pool()
    upstream = await pool.used()
    user = upstream.user
    assert upstream.release() is pool.wires[0]
    assert not pool.wires[0].reading
    pool.fail()
    assert user.ended == []
    assert not pool.wires[0].aborted
