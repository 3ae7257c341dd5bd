"""Back-pressure in an exchange: who does not read stops who sends, and nothing piles up."""

from __future__ import annotations

import asyncio

from pyfrp.vhost.stages import HEAD_S, LINGER_S, READ_AHEAD
from tests.unit.vhost.scene import (
    CHUNKED,
    MARK,
    answer,
    chunk,
    get,
    post,
    split_answers,
    turns,
    vhost,
)

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

# -- callers who do not read --------------------------------------------------------------------


async def test_a_caller_who_does_not_read_stops_the_service():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(CHUNKED)
        caller.stuck = True
        sent = 0
        while v.service.reading:
            v.service.feed(chunk(bytes(64 * 1024)))
            sent += 1
            assert sent < 10
        caller.unstick()
        assert v.service.reading
        v.service.feed(b"0\r\n\r\n")
        assert len(v.pool) == 1


async def test_a_work_connection_is_not_left_stopped_by_its_last_caller():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n")
        caller.stuck = True
        v.service.feed(bytes(300_000))
        assert not v.service.reading
        v.service.feed(bytes(100_000))
        assert len(v.pool) == 1
        assert v.service.reading


async def test_a_caller_who_still_does_not_read_waits_for_the_next_answer():
    async with vhost() as v:
        caller = await v.ask(get("/1") + get("/2"))
        caller.stuck = True
        v.service.feed(answer(bytes(MARK + 1)))
        await turns()
        v.advance(2 * HEAD_S)
        assert b"/2" not in v.service.sent
        caller.unstick()
        await turns()
        assert b"/2" in v.service.sent
        v.service.feed(answer(b"2"))
        assert [status for status, _ in split_answers(caller.sent)] == [200, 200]


async def test_a_caller_who_read_at_last_may_ask_again():
    async with vhost() as v:
        caller = await v.ask(get("/1"))
        caller.stuck = True
        v.service.feed(answer(bytes(MARK + 1)))
        caller.unstick()
        caller.feed(get("/2"))
        assert b"/2" in v.service.sent
        v.service.feed(answer(b"2"))
        v.advance(HEAD_S)
        assert caller.closed


async def test_a_caller_who_reads_at_last_and_ended_his_side_is_closed():
    async with vhost() as v:
        caller = await v.ask(get("/1"))
        caller.stuck = True
        v.service.feed(answer(bytes(MARK + 1)))
        caller.end()
        assert not caller.closed
        caller.unstick()
        assert caller.closed


async def test_a_caller_who_does_not_read_stops_a_service_that_is_only_being_reached():
    async with vhost() as v:
        v.opening = asyncio.Event()
        caller = await v.ask(get("/1"))
        caller.protocol.pause_writing()
        v.opening.set()
        await turns()
        assert not v.service.reading
        caller.protocol.resume_writing()
        assert v.service.reading
        v.service.feed(answer(b"1"))


async def test_refusals_that_nobody_reads_do_not_pile_up():
    async with vhost() as v:
        caller = v.call()
        caller.stuck = True
        sent = 0
        while caller.reading:
            caller.feed(get(host="nobody.test") * 100)
            await turns(300)
            sent += 100
            assert sent < 10_000
        assert len(caller.sent) < MARK + 1000
        caller.unstick()
        await turns(2 * sent)
        assert [status for status, _ in split_answers(caller.sent)] == [404] * sent


async def test_a_pipeline_is_not_read_ahead_further_with_each_request():
    async with vhost() as v:
        caller = await v.ask(get("/first"))
        sent = 0
        for _ in range(20):
            if caller.reading:
                caller.feed(get("/more") * 2000)
                sent += 2000
            v.service.feed(answer(b"1"))
            await turns()
        assert sent * len(get("/more")) < 4 * READ_AHEAD
        assert not caller.reading


async def test_a_caller_who_does_not_read_what_came_with_the_switch_stops_the_service():
    async with vhost() as v:
        caller = await v.ask(get("/ws", "Connection: Upgrade", "Upgrade: websocket"))
        caller.stuck = True
        v.service.feed(SWITCHED + bytes(MARK))
        assert not v.service.reading
        caller.unstick()
        assert v.service.reading


# -- services that do not read ------------------------------------------------------------------


async def test_a_service_that_does_not_read_stops_the_caller():
    async with vhost() as v:
        caller = await v.ask(post(b"").replace(b": 0", b": 9999999"))
        v.service.stuck = True
        sent = 0
        while caller.reading:
            caller.feed(bytes(64 * 1024))
            sent += 64 * 1024
            assert sent < 2 * MARK
        v.service.unstick()
        assert caller.reading


async def test_an_upload_is_stopped_while_its_work_connection_is_opened():
    async with vhost() as v:
        v.opening = asyncio.Event()
        caller = await v.ask(post(b"").replace(b": 0", b": 9999999"))
        sent = 0
        while caller.reading:
            caller.feed(bytes(16 * 1024))
            sent += 16 * 1024
            assert sent <= READ_AHEAD + 32 * 1024
        v.opening.set()
        await turns()
        assert caller.reading
        assert len(v.service.sent) > sent


async def test_an_upload_that_fills_its_new_work_connection_stays_stopped():
    async with vhost() as v:
        v.opening = asyncio.Event()
        caller = await v.ask(post(b"").replace(b": 0", b": 9999999"))
        caller.feed(bytes(MARK + 100))
        assert not caller.reading
        v.stuck = True
        v.opening.set()
        await turns()
        assert not caller.reading
        v.service.unstick()
        assert caller.reading


async def test_a_caller_is_read_again_after_an_answer_that_came_before_the_end_of_his_upload():
    async with vhost() as v:
        caller = await v.ask(post(b"").replace(b": 0", b": 9999999"))
        v.service.stuck = True
        caller.feed(bytes(2 * MARK))
        assert not caller.reading
        v.service.feed(answer(b"enough", status="413 Content Too Large"))
        # What he still sends is taken in and dropped.
        assert caller.reading
        v.advance(LINGER_S)
        assert caller.aborted


async def test_a_connection_adopted_with_more_than_enough_stays_stopped():
    async with vhost() as v:
        v.opening = asyncio.Event()
        caller = v.call()
        caller.lose()
        other = type(caller)()
        other.reading = False
        v.frontend.adopt(other, post(b"").replace(b": 0", b": 9999999") + bytes(2 * READ_AHEAD))
        assert not other.reading
        v.opening.set()
        await turns()
        assert other.reading
