"""Work connections of one client: who asks for how many, and who gets which."""

from __future__ import annotations

import asyncio

import pytest

from pyfrp.errors import IdleTimeout, PeerClosed
from pyfrp.server.workpool import EXTRA, WorkPool
from tests.support.waiting import within
from tests.unit.net.ends import memory_pair, turns
from tests.unit.net.mux_pair import mux_pair


class Counted:
    """A pool and how often the client was asked."""

    def __init__(self, size=0, timeout_s=30.0):
        self.asked = 0
        self.pool = WorkPool(size, request=self._ask, timeout_s=timeout_s)

    def _ask(self):
        self.asked += 1

    def bring(self):
        """The client brings a work connection: our end of it, and whether it was taken in."""
        ours, theirs = memory_pair()
        ours.pause_reading()
        return ours, theirs, self.pool.add(ours)

    def start(self):
        """A user who waits for a work connection."""
        return asyncio.get_running_loop().create_task(self.pool.take())


@pytest.mark.parametrize("size", [0, 1, 5])
async def test_the_client_is_asked_for_the_pool_at_the_start(size):
    scene = Counted(size)
    scene.pool.fill()
    assert scene.asked == size


async def test_a_filled_pool_asks_once_for_each_user():
    scene = Counted(1)
    scene.pool.fill()
    ours, _, taken = scene.bring()
    assert taken
    assert await within(scene.pool.take(), 5, "the connection") is ours
    assert scene.asked == 2
    assert ours.paused


async def test_an_empty_pool_asks_twice_for_each_user():
    """Once to serve him and once to fill the pool, as frp's GetWorkConn."""
    scene = Counted(1)
    user = scene.start()
    await turns()
    assert scene.asked == 1
    ours, _, _ = scene.bring()
    assert await within(user, 5, "the connection") is ours
    assert scene.asked == 2


async def test_connections_are_handed_out_oldest_first_and_once():
    scene = Counted(3)
    brought = [scene.bring()[0] for _ in range(3)]
    assert [await scene.pool.take() for _ in range(3)] == brought
    user = scene.start()
    await turns()
    assert not user.done()
    user.cancel()
    await asyncio.wait([user])


async def test_users_who_wait_are_served_in_their_order():
    scene = Counted(0)
    users = []
    for _ in range(3):
        users.append(scene.start())
        await turns(2)
    brought = [scene.bring()[0] for _ in range(3)]
    assert [await within(user, 5, "a connection") for user in users] == brought
    assert scene.asked == 6


@pytest.mark.parametrize("size", [0, 1, 5])
async def test_only_so_many_are_kept(size):
    scene = Counted(size)
    taken = [scene.bring()[2] for _ in range(size + EXTRA + 3)]
    assert taken == [True] * (size + EXTRA) + [False] * 3


@pytest.mark.parametrize("how", ["close", "abort", "speak"])
async def test_a_waiting_connection_that_ends_or_speaks_leaves_the_pool(how):
    scene = Counted(1)
    ours, theirs, _ = scene.bring()
    if how == "speak":
        theirs.write(b"too early")
    else:
        getattr(theirs, how)()
    await turns()
    assert ours.is_closing()
    user = scene.start()
    await turns()
    assert not user.done()
    other, _, _ = scene.bring()
    assert await within(user, 5, "the connection") is other


async def test_a_user_waits_only_so_long_and_then_the_connection_is_for_the_next():
    scene = Counted(1, timeout_s=0.02)
    with pytest.raises(IdleTimeout, match=r"^timeout trying to get work connection$"):
        await scene.pool.take()
    assert scene.asked == 1
    ours, _, taken = scene.bring()
    assert taken
    assert await scene.pool.take() is ours


@pytest.mark.parametrize("room", [True, False])
async def test_a_connection_that_meets_a_user_who_just_gave_up_is_not_lost(room):
    scene = Counted(1)
    user = scene.start()
    await turns()
    ours, _, _ = scene.bring()
    if not room:
        for _ in range(1 + EXTRA):
            assert scene.bring()[2]
    user.cancel()
    await asyncio.wait([user])
    assert user.cancelled()
    if room:
        assert await scene.pool.take() is ours
    else:
        assert ours.aborted


async def test_a_user_who_gives_up_does_not_take_a_place_in_the_queue():
    scene = Counted(0)
    impatient, patient = scene.start(), scene.start()
    await turns()
    impatient.cancel()
    await asyncio.wait([impatient])
    ours, _, _ = scene.bring()
    assert await within(patient, 5, "the connection") is ours


async def test_the_end_of_the_client_ends_all_waiting_on_both_sides():
    scene = Counted(2)
    ours, theirs, _ = scene.bring()
    scene.pool.close()
    await turns()
    assert ours.aborted
    assert theirs.is_closing()
    with pytest.raises(PeerClosed):
        await scene.pool.take()
    late, _, taken = scene.bring()
    assert not taken
    assert not late.aborted  # Whoever brings it disposes of it.
    asked = scene.asked
    waiting = Counted(0)
    users = [waiting.start() for _ in range(3)]
    await turns()
    waiting.pool.close()
    for user in users:
        with pytest.raises(PeerClosed):
            await within(user, 5, "the end")
    assert scene.asked == asked


async def test_a_user_who_was_just_served_when_the_client_ended_asks_no_more():
    scene = Counted(0)
    user = scene.start()
    await turns()
    scene.bring()
    scene.pool.close()
    await within(user, 5, "the connection")
    assert scene.asked == 1


async def test_a_stream_that_ended_before_it_came_to_the_pool_does_not_stay():
    """A mux stream delivers what it holds while it is taken in."""
    async with mux_pair() as (client, server):
        server.on_stream = lambda s, _: s.hold()
        stream, _ = client.open()
        stream.write(b"x")
        stream.close()
        other, _ = await server.accepted()
        await turns()
        scene = Counted(1)
        scene.pool.add(other)
        await turns()
        user = scene.start()
        await turns()
        assert not user.done()
        ours, _, _ = scene.bring()
        assert await within(user, 5, "the connection") is ours
