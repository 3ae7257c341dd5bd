"""What a caller over HTTP/2 may cost, how its connection ends, and whatever bytes it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from h2.stream import StreamState
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyfrp.vhost.http2 import IDLE_S, LINGER_S, MAX_STREAMS, STREAM_WINDOW, TABLE_BYTES
from pyfrp.vhost.http2_frames import CALM, CALM_PER_S, PREFACE, RESET_COST
from tests.unit.vhost.http2_scene import CHUNKED, DOMAIN, Scene, answer, chunk, frame, scene
from tests.unit.wire.pieces import Cut, three_ways

SETTINGS = frame(4)
CALM_DOWN = 11


def expire(s: Scene) -> None:
    """What the frontend does once a second."""
    for exchange in list(s.frontend._exchanges):
        if 0 < exchange.deadline <= s.now:
            exchange.expire()


async def ended_with(s: Scene, code: int) -> bool:
    await s.settle()
    return s.goaway is not None and int(s.goaway.error_code or 0) == code and s.wire.closed


# -- what it may have --------------------------------------------------------------------------


async def test_the_limits_are_told() -> None:
    async with scene() as s:
        told = s.h2.remote_settings
        assert told.max_concurrent_streams == MAX_STREAMS
        assert told.initial_window_size == STREAM_WINDOW
        assert told.max_header_list_size == 65536
        assert not told.enable_connect_protocol


async def test_a_stream_too_many_is_refused_alone() -> None:
    async with scene(started=False) as s:
        # Before the server's settings arrived, a caller knows of no limit.
        s.h2.initiate_connection()
        s.h2.remote_settings.update({SettingCodes.MAX_CONCURRENT_STREAMS: 1000})
        s.h2.remote_settings.acknowledge()
        streams = [s.ask(f"/{n}") for n in range(MAX_STREAMS + 20)]
        await s.settle()
        assert len(s.backends) == MAX_STREAMS
        refused = [stream for stream in streams if s.answers[stream].reset == 7]
        assert refused == streams[MAX_STREAMS:]
        await s.reply(answer(b"x"), 0)
        assert s.answers[streams[0]].ended
        again = await s.get()
        await s.reply(answer(b"x"), 0)
        assert s.answers[again].ended


async def test_fields_too_large_for_a_head_get_431() -> None:
    async with scene() as s:
        s.h2.remote_settings.update({SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 20})
        stream = await s.get("/", "GET", [(f"x-{n}", "v" * 800) for n in range(90)])
        assert s.answers[stream].status == 431
        stream = await s.get("/", "GET", [(f"x-{n}", "v") for n in range(150)])
        assert s.answers[stream].status == 431
        assert not s.backends
        assert s.goaway is None


async def test_a_field_block_that_unpacks_without_measure_ends_the_connection() -> None:
    async with scene() as s:
        fields = [("x-a", "v" * 3000)] * 60  # One entry of the table, named over and over.
        s.ask("/", "GET", fields)
        assert await ended_with(s, CALM_DOWN)
        assert not s.backends


async def test_the_compression_table_of_answers_is_not_the_callers_to_choose() -> None:
    async with scene() as s:
        s.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 1 << 30})
        await s.settle()
        for number in range(200):
            stream = await s.get()
            await s.reply(answer(b"x", f"X-Id: {number:0200d}"))
            assert s.answers[stream].headers["x-id"] == f"{number:0200d}"
        assert s.wire.protocol.h2.encoder.header_table._current_size <= TABLE_BYTES


# -- floods ------------------------------------------------------------------------------------


async def test_resetting_streams_as_fast_as_they_open_ends_the_connection() -> None:
    async with scene() as s:
        opened = 0
        while s.goaway is None:
            for _ in range(50):
                s.h2.reset_stream(s.ask(), 8)
                opened += 1
            await s.settle()
            assert opened <= CALM / RESET_COST + 50
        assert await ended_with(s, CALM_DOWN)
        assert not s.backends, "streams that were reset at once cost no work connection"


async def test_a_hundred_streams_may_be_cancelled_at_once() -> None:
    async with scene() as s:
        for _ in range(2):
            streams = [s.ask() for _ in range(MAX_STREAMS - 28)]
            await s.settle()
            for stream in streams:
                s.h2.reset_stream(stream, 8)
            await s.settle()
        assert s.goaway is None
        s.now += CALM / CALM_PER_S
        stream = await s.get()
        await s.reply(answer(b"x"))
        assert s.answers[stream].ended


FLOODS = {
    "ping": frame(6, bytes(8)),
    "settings": frame(4, bytes(6)),
    "priority": frame(2, bytes(5), stream=1),
    "unknown": frame(99, b"x", stream=3),
    "empty data": frame(0, stream=1),
    "window": frame(8, b"\0\0\0\1", stream=1),
    "empty continuation": frame(1, stream=3) + frame(9, stream=3) * 70,
    "reset of nothing": frame(3, bytes(4), stream=1),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_frames_that_bring_nothing_end_the_connection(flood: str) -> None:
    async with scene() as s:
        await s.get("/", "POST", end=False)
        for _ in range(40):
            if s.wire.closed:
                break
            s.wire.feed(FLOODS[flood] * 100)
            await s.settle()
        assert s.wire.closed
        assert s.goaway is not None
        assert int(s.goaway.error_code or 0) in (CALM_DOWN, 1)
        assert s.backends[0].aborted


async def test_a_steady_caller_may_ping_for_ever() -> None:
    async with scene() as s:
        for _ in range(3000):
            s.h2.ping(b"12345678")
            s.now += 0.1
            s.send()
            await asyncio.sleep(0)
            s.receive()
        assert s.pings == 3000
        assert s.goaway is None


async def test_updates_and_pings_for_each_frame_of_an_answer_are_welcome() -> None:
    async with scene() as s:
        stream = await s.get()
        await s.reply(CHUNKED)
        for _ in range(1500):
            s.backends[0].feed(chunk(b"token"))
            await asyncio.sleep(0)
            s.receive()
            s.h2.increment_flow_control_window(5)
            s.h2.increment_flow_control_window(5, stream)
            s.h2.ping(b"12345678")
            s.send()
        await s.settle()
        assert s.goaway is None
        assert len(s.answers[stream].parts) == 1500


async def test_a_flood_waits_its_turn() -> None:
    async with scene() as s:
        data = b"".join(frame(6, number.to_bytes(8, "big")) for number in range(320))
        s.wire.feed(data)
        assert not s.wire.reading, "the rest is looked at later"
        turns = 0
        while not s.wire.reading:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 9
        await s.settle()
        assert s.pings == 320


async def test_data_for_a_stream_that_was_answered_may_be_under_way_but_not_without_end() -> None:
    async with scene() as s:
        stream = await s.get("/", "POST", authority="no.test", end=False)
        assert s.answers[stream].reset == 0
        s.wire.feed(frame(0, bytes(1000), stream=stream) * 200)
        await s.settle()
        assert s.goaway is None
        s.wire.feed(frame(0, bytes(10), stream=stream) * 2000)
        assert await ended_with(s, CALM_DOWN)


async def test_a_caller_that_does_not_read_is_not_read_either() -> None:
    async with scene() as s:
        s.wire.fill()
        fed = 0
        ping = frame(6, bytes(8)) * 50
        while s.wire.reading and fed < 1 << 20:
            s.now += 1
            s.wire.feed(ping)
            fed += len(ping)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not s.wire.reading
        assert sum(map(len, s.wire.writes)) < 80 * 1024
        s.wire.feed(ping)  # What the transport had read already.
        s.wire.drain()
        await s.settle()
        assert s.wire.reading
        assert s.pings == (fed + len(ping)) // 17
        stream = await s.get()
        await s.reply(answer(b"x"))
        assert s.answers[stream].ended


# -- what is no HTTP/2 -------------------------------------------------------------------------

BROKEN = {
    "no settings": PREFACE + frame(6, bytes(8)),
    "settings acknowledged first": PREFACE + frame(4, flags=1),
    "frame too long": PREFACE + SETTINGS + b"\xff\xff\xff" + bytes(6),
    "frame within a block": PREFACE + SETTINGS + frame(1, stream=1) + frame(6, bytes(8)),
    "block of another stream": PREFACE + SETTINGS + frame(1, stream=1) + frame(9, stream=3),
    "block without end": PREFACE
    + SETTINGS
    + (frame(1, bytes(16384), stream=1) + frame(9, bytes(16384), stream=1) * 4),
    "continuation of nothing": PREFACE + SETTINGS + frame(9, flags=4, stream=1),
    "push": PREFACE + SETTINGS + frame(5, bytes(8), flags=4, stream=1),
    "even stream": PREFACE + SETTINGS + frame(1, b"\x82\x84\x87", flags=5, stream=2),
    "data on stream 0": PREFACE + SETTINGS + frame(0, b"x"),
    "data on an idle stream": PREFACE + SETTINGS + frame(0, b"x", stream=5),
    "window of nothing": PREFACE + SETTINGS + frame(8, bytes(4)),
    "window beyond measure": PREFACE + SETTINGS + frame(8, b"\x7f\xff\xff\xff"),
    "garbled fields": PREFACE + SETTINGS + frame(1, b"\xff" * 20, flags=5, stream=1),
    "padding beyond the frame": PREFACE + SETTINGS + frame(1, b"\xff\x82", flags=13, stream=1),
    "bad setting": PREFACE + SETTINGS + frame(4, b"\0\4\xff\xff\xff\xff"),
    "setting of odd length": PREFACE + SETTINGS + frame(4, bytes(5)),
    "short ping": PREFACE + SETTINGS + frame(6, bytes(7)),
    "short goaway": PREFACE + SETTINGS + frame(7, bytes(7)),
    "goaway on a stream": PREFACE + SETTINGS + frame(7, bytes(8), stream=1),
}


@three_ways
@pytest.mark.parametrize("case", BROKEN)
async def test_broken_rules_end_the_connection_with_a_word(case: str, cut: Cut) -> None:
    async with scene(started=False) as s:
        s.h2.initiate_connection()
        s.h2.data_to_send()
        for piece in cut(BROKEN[case]):
            if s.wire.closed:
                break
            s.wire.feed(piece)
        assert s.wire.closed
        await s.settle()
        assert s.goaway is not None
        assert s.goaway.error_code
        assert not s.backends
        assert s.log.lines
        s.lose()
        assert not len(s.frontend)


@three_ways
async def test_a_preface_that_goes_wrong_ends_the_connection(cut: Cut) -> None:
    async with scene(started=False) as s:
        for piece in cut(PREFACE[:18] + b"XX\r\n\r\n"):
            if not s.wire.closed:
                s.wire.feed(piece)
        assert s.wire.closed


@three_ways
async def test_frames_may_come_in_any_pieces(cut: Cut) -> None:
    async with scene(started=False) as s:
        s.h2.initiate_connection()
        stream = s.ask("/up", "POST", [("x-long", "v" * 300)], end=False)
        s.h2.send_data(stream, b"body" * 100, end_stream=True)
        s.h2.ping(b"12345678")
        for piece in cut(s.h2.data_to_send()):
            s.wire.feed(piece)
            await asyncio.sleep(0)
        await s.settle()
        assert s.backends[0].take().endswith(chunk(b"body" * 100) + b"0\r\n\r\n")
        assert s.pings == 1
        await s.reply(answer(b"ok"))
        assert s.answers[stream].body == b"ok"


async def test_a_window_that_a_stream_overflows_costs_only_the_stream() -> None:
    async with scene() as s:
        bad, good = s.ask("/bad"), s.ask("/good")
        await s.settle()
        s.wire.feed(frame(8, b"\x7f\xff\xff\xff", stream=bad))
        await s.settle()
        assert s.answers[bad].reset == 3
        assert s.backends[0].aborted
        await s.reply(answer(b"fine"), 1)
        assert s.answers[good].body == b"fine"


# -- ends --------------------------------------------------------------------------------------


async def test_an_idle_connection_is_closed_after_a_minute() -> None:
    async with scene() as s:
        stream = await s.get()
        s.now += 10 * IDLE_S
        expire(s)
        assert not s.wire.closed, "an open stream may take its time"
        await s.reply(answer(b"x"))
        assert s.answers[stream].ended
        s.now += IDLE_S - 1
        s.h2.ping(b"12345678")
        await s.settle()
        expire(s)
        assert not s.wire.closed
        s.now += 2
        expire(s)
        assert await ended_with(s, 0)
        assert s.goaway is not None
        assert s.goaway.last_stream_id == stream


async def test_a_connection_that_never_asks_is_closed_too() -> None:
    async with scene(started=False) as s:
        s.wire.feed(PREFACE[:20])
        s.now += IDLE_S + 1
        expire(s)
        assert s.wire.closed


async def test_a_closed_connection_that_lingers_is_dropped() -> None:
    async with scene() as s:
        s.wire.feed(frame(0, b"x"))
        assert s.wire.closed
        assert not s.wire.aborted
        s.now += LINGER_S + 1
        expire(s)
        assert s.wire.aborted


async def test_draining_lets_open_streams_end_and_takes_no_new_ones() -> None:
    async with scene() as s:
        stream = await s.get()
        await s.reply(CHUNKED + chunk(b"one"))
        drained = asyncio.get_running_loop().create_task(s.frontend.drain())
        await s.settle()
        # A caller that is told too early forgets its open streams.
        assert s.goaway is None
        late = await s.get()
        assert s.answers[late].reset == 7
        await s.reply(chunk(b"two") + b"0\r\n\r\n")
        assert (s.answers[stream].body, s.answers[stream].ended) == (b"onetwo", True)
        assert await ended_with(s, 0)
        assert not drained.done()
        s.lose()
        await drained


async def test_draining_closes_a_connection_without_streams_at_once() -> None:
    async with scene() as s:
        drained = asyncio.get_running_loop().create_task(s.frontend.drain())
        assert await ended_with(s, 0)
        s.lose()
        await drained


async def test_a_connection_that_begins_while_the_server_drains_is_turned_away() -> None:
    async with scene(started=False) as s:
        s.frontend.draining = True
        s.h2.initiate_connection()
        stream = s.ask()
        s.send()
        assert await ended_with(s, 0)
        assert not s.answers[stream].headers
        assert not s.backends


async def test_a_caller_that_says_goodbye_still_gets_its_answers() -> None:
    async with scene() as s:
        stream = await s.get()
        s.wire.feed(frame(7, bytes(8)))
        await s.settle()
        assert not s.wire.closed
        await s.reply(CHUNKED + chunk(b"x" * 70_000))
        await s.reply(b"0\r\n\r\n")
        assert (len(s.answers[stream].body), s.answers[stream].ended) == (70_000, True)
        assert s.wire.closed


async def test_a_caller_that_leaves_with_an_error_stops_everything() -> None:
    async with scene() as s:
        await s.get()
        s.wire.feed(frame(7, bytes(4) + b"\0\0\0\2"))
        assert s.backends[0].aborted
        assert s.wire.closed


# -- any bytes ---------------------------------------------------------------------------------


def conversation() -> st.SearchStrategy[list[tuple[str, int, bytes]]]:
    """Steps of a caller that knows the frames and not the rules."""
    kinds = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99])
    streams = st.sampled_from([0, 1, 2, 3, 5, 7])
    block = st.sampled_from([b"\x82\x84\x86\x41\x08" + DOMAIN.encode(), b"\x88", b"\x82", b""])
    payload = st.one_of(st.binary(max_size=20), block, st.just(bytes(8)), st.just(b"\0\0\1\0"))
    raw = st.builds(
        lambda k, f, s, p: ("raw", 0, frame(k, p, f, s)),
        kinds,
        st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x25, 0xFF]),
        streams,
        payload,
    )
    polite = st.builds(
        lambda what, n, p: (what, n, p),
        st.sampled_from(["ask", "post", "data", "end", "reset", "credit", "ping", "leave"]),
        st.integers(0, 5),
        st.binary(max_size=40),
    )
    service = st.builds(
        lambda what, n: (what, n, b""),
        st.sampled_from(["answer", "begin", "chunk", "finish", "die", "fill", "drain", "stuck"]),
        st.integers(0, 5),
    )
    return st.lists(st.one_of(polite, polite, service, service, raw), max_size=30)


def service_step(s: Scene, what: str, number: int) -> None:
    if what == "stuck":
        s.wire.fill()
        s.wire.drain()
        return
    live = [backend for backend in s.backends if not backend.closed]
    if not live:
        return
    backend = live[number % len(live)]
    steps: dict[str, Callable[[], object]] = {
        "answer": lambda: backend.feed(answer(bytes(100 * number))),
        "begin": lambda: backend.feed(CHUNKED),
        "chunk": lambda: backend.feed(chunk(bytes(10_000))),
        "finish": lambda: backend.feed(b"0\r\n\r\n"),
        "die": lambda: backend.protocol.connection_lost(None),
        "fill": backend.fill,
        "drain": backend.drain,
    }
    steps[what]()


def caller_step(s: Scene, what: str, number: int, payload: bytes) -> None:
    streams = [id_ for id_, stream in s.h2.streams.items() if not stream.closed]
    stream = streams[number % len(streams)] if streams else 0
    try:
        if what == "ask":
            s.ask(authority=DOMAIN if number else "no.test")
        elif what == "post":
            fields = [("content-length", "40")] if number % 2 else []
            s.ask("/", "POST", fields, end=False)
        elif what == "ping":
            s.h2.ping(b"12345678")
        elif what == "leave":
            s.wire.feed(frame(7, bytes(8)))
        elif stream and what in ("data", "end"):
            if s.h2.streams[stream].state_machine.state == StreamState.HALF_CLOSED_LOCAL:
                pass  # The attempt alone would close the stream in this caller's bookkeeping.
            elif what == "data":
                s.h2.send_data(stream, payload)
            else:
                s.h2.end_stream(stream)
        elif stream and what == "reset":
            s.h2.reset_stream(stream, 8)
        elif stream and what == "credit":
            s.h2.increment_flow_control_window(1000 * number + 1, stream)
    except ProtocolError:
        pass  # Not allowed at this point; the raw frames try such things.


@settings(max_examples=300, deadline=None)
@given(steps=conversation(), turns=st.booleans())
@example(steps=[("ask", 0, b""), ("data", 0, b"")], turns=False)
def test_no_conversation_breaks_the_server(
    steps: list[tuple[str, int, bytes]], turns: bool
) -> None:
    raw = any(what == "raw" for what, _, _ in steps)

    def hear(s: Scene) -> None:
        try:
            s.receive()
        except ProtocolError:
            # Raw frames open streams that this caller's own bookkeeping knows nothing of. Without
            # them, all that the server says must be good HTTP/2.
            if not raw:
                raise

    async def talk() -> None:
        async with scene() as s:
            for what, number, payload in steps:
                if s.wire.closed:
                    break
                if what == "raw":
                    s.send()
                    s.wire.feed(payload)
                elif what in (
                    "answer",
                    "begin",
                    "chunk",
                    "finish",
                    "die",
                    "fill",
                    "drain",
                    "stuck",
                ):
                    service_step(s, what, number)
                else:
                    caller_step(s, what, number, payload)
                if turns:
                    s.send()
                    await asyncio.sleep(0)
                    hear(s)
            for _ in range(10):
                s.send()
                await asyncio.sleep(0)
            hear(s)
            for backend in s.backends:
                if not backend.closed:
                    backend.protocol.connection_lost(None)

    asyncio.run(talk())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_no_bytes_break_the_server(pieces: list[bytes], settled: bool) -> None:
    async def talk() -> None:
        async with scene(started=False) as s:
            s.wire.feed(PREFACE + (SETTINGS if settled else b""))
            for piece in pieces:
                if not s.wire.closed:
                    s.wire.feed(piece)
                await asyncio.sleep(0)

    asyncio.run(talk())
