"""Two endpoints cross-wired: bytes, ends and cuts pass; memory stays bounded."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager

import pytest

from pyfrp.net.bridge import Bridge
from pyfrp.net.endpoint import HIGH_WATER, tune
from tests.support.waiting import until
from tests.unit.net.ends import Reader, memory_pair, tcp_to_raw, turns

KIB = 1024
MIB = 1024 * KIB


class Bridged:
    """A bridge over memory; `user` and `service` are the ends outside of it."""

    def __init__(self, *, near_can_end=True, far_can_end=True, **settings):
        self.user, self.near = memory_pair(can_end=near_can_end)
        self.far, self.service = memory_pair(can_end=far_can_end)
        self.near.pause_reading()
        self.far.pause_reading()
        self.user_reader, self.service_reader = Reader(), Reader()
        self.user.set_protocol(self.user_reader)
        self.service.set_protocol(self.service_reader)
        self.closed = []
        self.settings = settings

    def start(self):
        self.bridge = Bridge(self.near, self.far, on_close=self.closed.append, **self.settings)
        return self


async def test_bytes_pass_both_ways_and_are_counted():
    scene = Bridged().start()
    scene.user.write(b"question")
    scene.service.write(b"the answer")
    await turns()
    assert scene.service_reader.data == b"question"
    assert scene.user_reader.data == b"the answer"
    assert (scene.bridge.near.received, scene.bridge.far.received) == (8, 10)
    assert scene.closed == []


async def test_bytes_read_ahead_come_first_and_count():
    scene = Bridged(early=b"early ", far_early=b"greeting ")
    scene.user.write(b"late")
    scene.service.write(b"and more")
    scene.start()
    await turns()
    assert scene.service_reader.data == b"early late"
    assert scene.user_reader.data == b"greeting and more"
    assert (scene.bridge.near.received, scene.bridge.far.received) == (10, 17)


@pytest.mark.parametrize("first", ["user", "service"])
async def test_the_end_of_one_direction_leaves_the_other_open(first):
    scene = Bridged().start()
    one, other = scene.user, scene.service
    one_reader, other_reader = scene.user_reader, scene.service_reader
    if first == "service":
        one, other = other, one
        one_reader, other_reader = other_reader, one_reader
    one.write(b"request")
    one.write_eof()
    await turns()
    assert other_reader.events == ["data", "eof"]
    assert scene.closed == []
    other.write(b"answer")
    await turns()
    assert one_reader.data == b"answer"
    other.write_eof()
    await turns()
    assert one_reader.events == ["data", "eof"]
    assert scene.closed == [scene.bridge]
    # Counters stay readable.
    assert scene.bridge.near.received + scene.bridge.far.received == len(b"requestanswer")


@pytest.mark.parametrize(("near", "far"), [(False, True), (True, False), (False, False)])
async def test_an_end_closes_both_where_one_of_them_cannot_end_one_way(near, far):
    scene = Bridged(near_can_end=near, far_can_end=far).start()
    scene.user.write(b"last")
    scene.user.close()
    await turns()
    assert scene.service_reader.events == ["data", "eof"]
    assert scene.near.is_closing()
    assert scene.far.is_closing()
    assert scene.closed == [scene.bridge]


async def test_the_end_of_one_direction_may_find_the_other_end_reset(monkeypatch):
    """asyncio's own loops say so at once, before they report the loss; uvloop does not."""

    def refuse():
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    scene = Bridged().start()
    monkeypatch.setattr(scene.far, "write_eof", refuse)
    assert scene.bridge.near.eof_received()
    scene.far.lose(ConnectionResetError("reset"))
    await turns()
    assert scene.closed == [scene.bridge]


@pytest.mark.parametrize("first", ["user", "service"])
async def test_an_orderly_close_closes_the_other_end(first):
    scene = Bridged().start()
    one, other_reader = scene.user, scene.service_reader
    if first == "service":
        one, other_reader = scene.service, scene.user_reader
    one.write(b"bye")
    one.close()
    await turns()
    assert other_reader.events == ["data", "eof"]
    scene.bridge.abort()
    await turns()
    assert scene.closed == [scene.bridge]


@pytest.mark.parametrize("first", ["user", "service"])
async def test_a_reset_is_carried_as_a_reset(first):
    scene = Bridged().start()
    one, other_reader = scene.user, scene.service_reader
    if first == "service":
        one, other_reader = scene.service, scene.user_reader
    one.abort()
    await turns()
    assert isinstance(other_reader.lost[0], ConnectionResetError)
    assert other_reader.ends == 0
    assert scene.closed == [scene.bridge]


async def test_a_reset_after_one_end_is_still_carried():
    scene = Bridged().start()
    scene.user.write_eof()
    await turns()
    scene.service.abort()
    await turns()
    assert isinstance(scene.user_reader.lost[0], ConnectionResetError)
    assert scene.closed == [scene.bridge]


async def test_aborting_drops_both_ends_and_tells_once():
    scene = Bridged().start()
    scene.bridge.abort()
    scene.bridge.abort()
    await turns()
    assert scene.near.aborted
    assert scene.far.aborted
    assert scene.closed == [scene.bridge]


@pytest.mark.parametrize("which", ["near", "far", "both"])
@pytest.mark.parametrize("told", [False, True])
async def test_an_endpoint_lost_before_the_bridge_ends_it_at_once(which, told):
    """`told`: its loss went to an earlier protocol already, so no other will hear of it."""
    scene = Bridged(early=b"x", far_early=b"y")
    for name in ("near", "far"):
        if which in (name, "both"):
            end = getattr(scene, name)
            end.abort()
            if told:
                await turns()
    scene.start()
    await turns()
    assert scene.near.aborted
    assert scene.far.aborted
    assert scene.closed == [scene.bridge]


async def test_a_bridge_needs_no_callback():
    user, near = memory_pair()
    far, service = memory_pair()
    Bridge(near, far)
    user.abort()
    await turns()
    assert far.is_closing()
    near.abort()
    lost = Bridge(near, far)
    assert lost.near.received == 0
    service.abort()
    await turns()


@pytest.mark.parametrize("which", ["near", "far"])
async def test_an_end_that_came_before_the_bridge_is_carried(which):
    scene = Bridged(**{f"{which}_ended": True}).start()
    await turns()
    there, back = scene.service_reader, scene.user
    if which == "far":
        there, back = scene.user_reader, scene.service
    assert there.events == ["eof"]
    assert scene.closed == []
    reader = back.get_protocol()
    assert reader.events == []


async def test_ends_that_both_came_before_the_bridge_close_it():
    scene = Bridged(near_ended=True, far_ended=True, early=b"all").start()
    await turns()
    assert scene.service_reader.events == ["data", "eof"]
    assert scene.user_reader.events == ["eof"]
    assert scene.closed == [scene.bridge]


# -- back-pressure ------------------------------------------------------------------------------


async def test_a_reader_that_stops_stops_its_source_and_nothing_else():
    scene = Bridged().start()
    scene.service.pause_reading()
    total = 0
    while not scene.user_reader.choked:
        scene.user.write(bytes(16 * KIB))
        total += 16 * KIB
        await turns(3)
    assert scene.near.paused
    assert not scene.far.paused
    # What is under way is what two ends in memory may hold, not what was written.
    assert total <= 2 * (HIGH_WATER + 32 * KIB)
    scene.service.write(b"still fine")
    await turns()
    assert scene.user_reader.data == b"still fine"
    scene.service.resume_reading()
    await until(lambda: len(scene.service_reader.data) == total, "everything written")
    assert not scene.near.paused


async def test_early_bytes_that_fill_the_far_end_keep_the_near_one_stopped():
    scene = Bridged(early=bytes(HIGH_WATER + 1))
    scene.service.pause_reading()
    scene.user.write(b"more")
    scene.start()
    await turns()
    assert scene.near.paused
    assert scene.bridge.near.received == HIGH_WATER + 1
    scene.service.resume_reading()
    await turns()
    assert len(scene.service_reader.data) == HIGH_WATER + 5


async def test_a_greeting_that_fills_the_near_end_keeps_the_far_one_stopped():
    scene = Bridged(far_early=bytes(HIGH_WATER + 1))
    scene.user.pause_reading()
    scene.service.write(b"more")
    scene.start()
    await turns()
    assert scene.far.paused
    scene.user.resume_reading()
    await turns()
    assert len(scene.user_reader.data) == HIGH_WATER + 5


async def test_an_end_that_drains_after_its_source_was_lost_resumes_nobody():
    scene = Bridged().start()
    scene.service.pause_reading()
    while not scene.user_reader.choked:
        scene.user.write(bytes(64 * KIB))
        await turns(3)
    scene.user.abort()
    await turns()
    scene.service.resume_reading()
    await turns()
    assert scene.closed == [scene.bridge]


# -- on sockets ---------------------------------------------------------------------------------


@asynccontextmanager
async def bridged_sockets():
    """Two plain sockets with a bridge of real transports between them."""
    async with tcp_to_raw() as (near, user), tcp_to_raw() as (far, service):
        for transport in (near, far):
            tune(transport)
            transport.pause_reading()
        closed = []
        bridge = Bridge(near, far, on_close=closed.append)
        yield user, service, bridge, closed
        bridge.abort()
        await until(lambda: closed, "the bridge to close")


async def test_sockets_exchange_and_end_each_way(loop_kind):
    async with bridged_sockets() as (user, service, _, closed):
        await user.send(b"GET")
        user.end()
        assert await service.receive_all() == b"GET"
        await service.send(b"200")
        service.end()
        assert await user.receive_all() == b"200"
        await until(lambda: closed, "the bridge to close")


async def test_a_reset_socket_resets_the_other(loop_kind):
    """Also one that only reads: its bytes are what the reset interrupts."""
    async with bridged_sockets() as (user, service, _, closed):
        await service.send(b"part of it")
        assert await user.receive_exactly(10) == b"part of it"
        service.reset()
        with pytest.raises(ConnectionResetError):
            await user.receive_all()
        await until(lambda: closed, "the bridge to close")


async def test_a_user_that_leaves_takes_the_service_along(loop_kind):
    async with bridged_sockets() as (user, service, _, closed):
        await service.send(b"token ")
        assert await user.receive() == b"token "
        user.close()

        async def generate():
            while True:
                await service.send(b"token ")
                await asyncio.sleep(0)

        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            async with asyncio.timeout(10):
                await generate()
        await until(lambda: closed, "the bridge to close")


async def test_a_slow_reader_bounds_what_the_bridge_holds(loop_kind):
    async with bridged_sockets() as (user, service, bridge, _):
        far = bridge.far.near
        near = bridge.near.near
        sending = asyncio.get_running_loop().create_task(service.send(bytes(64 * MIB)))
        try:
            await until(lambda: not far.is_reading(), "the source to be paused")
            assert near.get_write_buffer_size() <= HIGH_WATER + 512 * KIB
            # Not one byte is lost by it.
            total = 0
            worst = 0
            while total < 64 * MIB:
                total += len(await user.receive(1 * MIB))
                worst = max(worst, near.get_write_buffer_size())
            assert worst <= HIGH_WATER + 512 * KIB
            await sending
        finally:
            sending.cancel()


async def test_large_transfers_in_both_directions_arrive_whole(loop_kind):
    data = bytes(range(256)) * (8 * MIB // 256)
    async with bridged_sockets() as (user, service, bridge, _):
        sends = [asyncio.get_running_loop().create_task(end.send(data)) for end in (user, service)]
        got = await asyncio.gather(
            user.receive_exactly(len(data)), service.receive_exactly(len(data))
        )
        await asyncio.gather(*sends)
        assert got[0] == got[1] == data
        assert (bridge.near.received, bridge.far.received) == (len(data), len(data))


async def test_a_socket_that_was_closed_before_the_bridge_closes_it(loop_kind):
    async with tcp_to_raw() as (near, user), tcp_to_raw() as (far, service):
        reader = near.get_protocol()
        near.abort()
        await reader.until_lost()
        closed = []
        far.pause_reading()
        Bridge(near, far, on_close=closed.append)
        await until(lambda: closed, "the bridge to close")
        assert far.is_closing()
        user.close()
        assert await service.receive_all() == b""
