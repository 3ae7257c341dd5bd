"""The streaming contract: what the backend sends reaches the caller at once, whole and in order.

Also its reverse: a caller that leaves takes the backend connection with it, and a caller that
reads slowly does not fill anybody's memory.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.support.backends import Exchange, Gate, sse
from tests.support.http import Caller, Cut, request
from tests.support.office import DOMAIN, Office
from tests.support.services import peer_left
from tests.support.waiting import all_of, until, within

pytestmark = [pytest.mark.clock, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

MIB = 1024 * 1024
EVENT_GAP_S = 0.02
STREAMS = 200


@pytest.fixture(autouse=True)
def _fresh_records(fresh: Office) -> None:
    """Every test counts requests from zero."""


# --- every event at once ------------------------------------------------------------------


def ndjson(number: int) -> bytes:
    return json.dumps({"n": number, "token": "가"}).encode() + b"\n"


def octets(number: int) -> bytes:
    return bytes([number % 256]) * (1 + number % 40)


Piece = Callable[[int], bytes]


async def _chunked(x: Exchange, kind: str, piece: Piece, count: int) -> None:
    await x.start_chunked(kind)


async def _known_length(x: Exchange, kind: str, piece: Piece, count: int) -> None:
    size = sum(len(piece(number)) for number in range(count))
    await x.start("200 OK", [("Content-Type", kind), ("Content-Length", str(size))])


async def _until_close(x: Exchange, kind: str, piece: Piece, count: int) -> None:
    x.keep = False
    await x.start("200 OK", [("Content-Type", kind), ("Connection", "close")])


BODIES = {
    "sse": ("text/event-stream", sse, _chunked),
    "ndjson": ("application/x-ndjson", ndjson, _chunked),
    "octet-stream": ("application/octet-stream", octets, _chunked),
    "known-length": ("application/octet-stream", octets, _known_length),
    "until-close": ("text/event-stream", sse, _until_close),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("gap_s", [0.0, EVENT_GAP_S], ids=["at-once", "every-20-ms"])
async def test_each_event_reaches_the_caller_before_the_next_is_sent(
    scene: Office, body: str, gap_s: float
) -> None:
    kind, piece, start = BODIES[body]
    count = 25
    gate = Gate()

    async def script(x: Exchange) -> None:
        await start(x, kind, piece, count)
        framed = x.chunk if start is _chunked else x.send
        for number in range(count):
            await framed(piece(number))
            await gate.passed(number)
            await asyncio.sleep(gap_s)
        if start is _chunked:
            await x.end_chunks()

    scene.api.on("/stream", script)
    async with scene.calling() as caller:
        await caller.send(request("/stream"))
        head = await caller.begin()
        assert (head.status, head.get("content-type")) == (200, kind)
        for number in range(count):
            expected = piece(number)
            got = b""
            while len(got) < len(expected):
                data = await caller.read()
                assert data, f"the body ended before event {number}"
                got += data
            assert got == expected
            gate.received(number)
        assert await caller.rest() == b""


@pytest.mark.parametrize("framing", ["chunked", "known-length"])
async def test_each_piece_of_an_upload_reaches_the_backend_before_the_next_is_sent(
    scene: Office, framing: str
) -> None:
    count = 25
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(x: Exchange) -> None:
        async for data in x.chunks():
            arrived.put_nowait(data)
        await x.reply(b"done")

    scene.api.on("/upload", script)
    pieces = [octets(number) for number in range(count)]
    if framing == "chunked":
        headers = [("Transfer-Encoding", "chunked")]
    else:
        headers = [("Content-Length", str(sum(map(len, pieces))))]
    async with scene.calling() as caller:
        await caller.send(request("/upload", method="POST", headers=headers))
        for piece in pieces:
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece
            await caller.send(framed)
            got = b""
            while len(got) < len(piece):
                got += await within(arrived.get(), 5, "a piece of the upload")
            assert got == piece
        if framing == "chunked":
            await caller.send(b"0\r\n\r\n")
        assert (await caller.answer()).body == b"done"


async def test_request_and_answer_stream_at_the_same_time(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        await x.start_chunked("application/octet-stream")
        async for data in x.chunks():
            await x.chunk(data)
        await x.end_chunks()

    scene.api.on("/duplex", script)
    async with scene.calling() as caller:
        headers = [("Transfer-Encoding", "chunked")]
        await caller.send(request("/duplex", method="POST", headers=headers))
        await caller.begin("POST")
        for number in range(20):
            piece = octets(number)
            await caller.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            got = b""
            while len(got) < len(piece):
                got += await caller.read()
            assert got == piece
        await caller.send(b"0\r\n\r\n")
        assert await caller.rest() == b""


# --- many streams -------------------------------------------------------------------------


async def _numbered(x: Exchange) -> None:
    """`n` events, each naming the stream and its number, `gap` seconds apart."""
    count, gap_s = int(x.request.query["n"]), float(x.request.query.get("gap", "0"))
    name = x.request.query["s"]
    await x.start_chunked()
    for number in range(count):
        await x.chunk(sse(number, f"{name}/{number}"))
        await asyncio.sleep(gap_s)
    await x.end_chunks()


async def _follow(caller: Caller, name: str, count: int, gap_s: float) -> None:
    """Read one stream to its end and compare every byte."""
    await caller.send(request(f"/numbered?s={name}&n={count}&gap={gap_s}"))
    assert (await caller.begin()).status == 200
    assert await caller.rest() == b"".join(sse(n, f"{name}/{n}") for n in range(count))


async def _round(scene: Office, round_: int, count: int, gap_s: float, *, at_once: bool) -> None:
    """Open `STREAMS` streams side by side, each on a connection of its own."""
    callers: list[Caller] = []
    try:
        if at_once:
            callers += await all_of(scene.caller() for _ in range(STREAMS))
            jobs = [
                _follow(caller, f"{round_}-{index}", count, gap_s)
                for index, caller in enumerate(callers)
            ]
            await all_of(jobs, limit_s=60)
            return
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for index in range(STREAMS):
                caller = await scene.caller()
                callers.append(caller)
                group.create_task(_follow(caller, f"{round_}-{index}", count, gap_s))
    finally:
        await asyncio.gather(*(caller.close() for caller in callers))


@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "one-by-one"])
async def test_200_streams_at_a_time_lose_repeat_cut_and_reorder_nothing(
    scene: Office, at_once: bool
) -> None:
    # Half of the hundred rounds in each case, as fast as they go; the version with 20 ms between
    # the events is the slow one below.
    scene.api.on("/numbered", _numbered)
    for round_ in range(50):
        await _round(scene, round_, 6, 0.0, at_once=at_once)


async def test_200_streams_with_20_ms_between_their_events_arrive_whole(scene: Office) -> None:
    scene.api.on("/numbered", _numbered)
    for round_ in range(3):
        await _round(scene, round_, 10, EVENT_GAP_S, at_once=round_ % 2 == 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "one-by-one"])
async def test_200_streams_a_hundred_times_over_arrive_whole(scene: Office, at_once: bool) -> None:
    scene.api.on("/numbered", _numbered)
    for round_ in range(100):
        await _round(scene, round_, 25, EVENT_GAP_S, at_once=at_once)


async def test_streams_on_kept_connections_arrive_whole_many_times_over(scene: Office) -> None:
    scene.api.on("/numbered", _numbered)

    async def many(index: int) -> None:
        async with scene.calling() as caller:
            for turn in range(25):
                await _follow(caller, f"k{index}-{turn}", 5, 0.0)

    await all_of((many(index) for index in range(50)), limit_s=60)


# --- callers that leave -------------------------------------------------------------------


async def _leave_by_close(caller: Caller) -> None:
    await caller.close()


async def _leave_by_reset(caller: Caller) -> None:
    await caller.reset()


Leave = Callable[[Caller], Awaitable[None]]
LEAVING = {"close": _leave_by_close, "reset": _leave_by_reset}


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("stage", ["before-first-byte", "mid-stream", "mid-length", "mid-upload"])
async def test_a_caller_that_leaves_ends_the_backend_connection_within_a_second(
    scene: Office, stage: str, leave: str
) -> None:
    serving: asyncio.Queue[Exchange] = asyncio.Queue()

    async def script(x: Exchange) -> None:
        if stage == "mid-stream":
            await x.start_chunked()
            await x.chunk(sse(0))
        elif stage == "mid-length":
            await x.start("200 OK", [("Content-Length", "1000")])
            await x.send(b"x" * 500)
        serving.put_nowait(x)
        await x.gone.wait()

    scene.api.on("/generate", script)
    caller = await scene.caller()
    if stage == "mid-upload":
        await caller.send(
            request("/generate", method="POST", headers=[("Content-Length", "1000")]) + b"x" * 10
        )
    else:
        await caller.send(request("/generate", method="POST", body=b"prompt"))
    x = await within(serving.get(), 5, "the request at the backend")
    if stage.startswith("mid-s") or stage.startswith("mid-l"):
        await caller.begin()
        await caller.read()
    left_at = time.monotonic()
    await LEAVING[leave](caller)
    await peer_left(x.pipe, 1.0, "the backend connection to end after the caller left")
    assert time.monotonic() - left_at < 1.0


async def test_a_generation_goes_down_when_its_caller_closes_while_it_sends(scene: Office) -> None:
    lost: asyncio.Queue[int] = asyncio.Queue()

    async def script(x: Exchange) -> None:
        await x.start_chunked()
        number = 0
        try:
            while True:
                await x.chunk(sse(number))
                number += 1
                await asyncio.sleep(EVENT_GAP_S)
        finally:
            lost.put_nowait(number)

    scene.api.on("/endless", script)
    caller = await scene.caller()
    await caller.send(request("/endless"))
    await caller.begin()
    pending = bytearray()
    for number in range(5):
        assert await caller.read_event(pending) == sse(number)
    await caller.close()
    await within(lost.get(), 1.0, "the generation to be stopped")


async def test_callers_that_leave_take_nobody_else_with_them(scene: Office) -> None:
    scene.api.on("/numbered", _numbered)

    async def deserter(index: int) -> None:
        caller = await scene.caller()
        await caller.send(request(f"/numbered?s=d{index}&n=200&gap=0.01"))
        if index % 3:
            await caller.begin()
            await caller.read()
        await (caller.reset() if index % 2 else caller.close())

    async def loyal(index: int) -> None:
        async with scene.calling() as caller:
            await _follow(caller, f"l{index}", 40, 0.01)

    await all_of([*(deserter(i) for i in range(40)), *(loyal(i) for i in range(40))])
    await until(
        lambda: not [pipe for pipe in scene.api.live if pipe.eof], "deserted connections to close"
    )


# --- answers that break -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("framing", ["chunked", "known-length"])
async def test_an_answer_that_breaks_off_does_not_look_complete(
    scene: Office, framing: str, how: str
) -> None:
    async def script(x: Exchange) -> None:
        if framing == "chunked":
            await x.start_chunked()
            await x.chunk(sse(0))
        else:
            await x.start("200 OK", [("Content-Length", "1000")])
            await x.send(sse(0))
        await gate.passed(0)
        if how == "reset":
            x.pipe.reset()
        x.keep = False

    gate = Gate()
    scene.api.on("/breaks", script)
    async with scene.calling() as caller:
        await caller.send(request("/breaks"))
        await caller.begin()
        assert await caller.read() == sse(0)
        gate.received(0)
        with pytest.raises(Cut):
            await caller.rest()
    assert await scene.works()


# --- callers that read slowly -------------------------------------------------------------


async def test_a_slow_reader_of_a_large_answer_costs_no_memory(scene: Office) -> None:
    size = 512 * MIB
    idle = [figures.rss_kib for figures in scene.pair.figures()]
    programs = scene.pair.server, scene.pair.client
    for program in programs:
        program.reset_peak()
    caller = await scene.caller(receive_buffer=256 * 1024)
    started = time.monotonic()
    try:
        await caller.send(request(f"/bytes?n={size}"))
        assert (await caller.begin()).status == 200
        taken = 0
        # 1 MB/s, for long enough that everything on the way is full.
        while (elapsed := time.monotonic() - started) < 6.0:
            if taken < elapsed * 1_000_000:
                taken += len(await caller.read())
            else:
                await asyncio.sleep(0.01)
        # A short request meanwhile is not stuck behind it.
        assert (await scene.get()).status == 200
    finally:
        await caller.reset()
    peaks = [program.figures().peak_kib for program in programs]
    growth = [peak - before for peak, before in zip(peaks, idle, strict=True)]
    assert all(kib < 64 * 1024 for kib in growth), f"grew by {growth} KiB"


async def test_a_reader_that_stops_does_not_stop_the_others(scene: Office) -> None:
    stuck = await all_of(scene.caller(receive_buffer=64 * 1024) for _ in range(4))
    try:
        for caller in stuck:
            await caller.send(request(f"/bytes?n={64 * MIB}"))
            await caller.begin()
        for _ in range(20):
            answer = await within(scene.get(), 5, "an answer beside stopped readers")
            assert (answer.status, answer.body) == (200, b"hello")
        async with scene.calling() as caller:
            await caller.send(request(f"/bytes?n={8 * MIB}"))
            await caller.begin()
            size, _ = await within(caller.rest_hash(), 20, "a download beside stopped readers")
            assert size == 8 * MIB
    finally:
        for caller in stuck:
            await caller.reset()


async def test_a_first_byte_may_take_its_time(scene: Office) -> None:
    # Long prefills send no header before the first token. 2 s is short for that, but longer
    # than any timer that should not exist would be set to by mistake in a test configuration.
    async def script(x: Exchange) -> None:
        await asyncio.sleep(2.0)
        await x.reply(b"at last")

    scene.api.on("/slow", script)
    answer = await scene.get("/slow")
    assert (answer.status, answer.body) == (200, b"at last")
    assert scene.api.requests[-1].get("host") == DOMAIN
