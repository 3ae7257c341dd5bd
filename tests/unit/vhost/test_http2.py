"""Requests and answers over HTTP/2: what the exchange of HTTP/1.1 does, a stream at a time."""

from __future__ import annotations

import asyncio
import json

import pytest
from h2.events import DataReceived

from pyfrp.errors import LinkError
from pyfrp.vhost.http2 import FLUSH_BYTES, STREAM_WINDOW
from pyfrp.vhost.http2_stream import HIGH_WATER, LOW_WATER
from tests.unit.vhost.http2_scene import ADDRESS, CHUNKED, DOMAIN, MARK, Scene, answer, chunk, scene

KIB = 1024


def body_parts(s: Scene, stream: int) -> list[bytes]:
    return s.answers[stream].parts


# -- requests ----------------------------------------------------------------------------------


async def test_a_request_reaches_the_service_as_http_1_1() -> None:
    async with scene() as s:
        fields = [("accept", "*/*"), ("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")]
        stream = await s.get("/v1/models?x=1", "GET", fields)
        assert s.backends[0].take() == (
            b"GET /v1/models?x=1 HTTP/1.1\r\nhost: llm.test\r\naccept: */*\r\ncookie: a=1; b=2\r\n"
            b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Host: llm.test\r\n"
            b"X-Forwarded-Proto: http\r\nTE: trailers\r\n\r\n"
        )
        await s.reply(answer(b"hello", "X-A: b", "Connection: keep-alive", "Keep-Alive: timeout=5"))
        got = s.answers[stream]
        assert (got.status, got.body, got.ended, got.reset) == (200, b"hello", True, None)
        assert got.headers["content-length"] == "5"
        assert got.headers["x-a"] == "b"
        assert not {"connection", "keep-alive"} & got.headers.keys()


async def test_a_work_connection_carries_the_requests_of_one_stream_after_another() -> None:
    async with scene() as s:
        for _ in range(5):
            stream = await s.get()
            await s.reply(answer(b"x"))
            assert s.answers[stream].ended
        assert len(s.backends) == 1
        assert len(s.pool) == 1


async def test_streams_do_not_wait_for_each_other() -> None:
    async with scene() as s:
        first, second = s.ask("/first"), s.ask("/second")
        await s.settle()
        assert b"/second" in s.backends[1].take()
        await s.reply(answer(b"second"), 1)
        assert s.answers[second].body == b"second"
        assert not s.answers[first].headers
        await s.reply(answer(b"first"), 0)
        assert s.answers[first].body == b"first"


async def test_a_body_of_unknown_length_is_sent_in_chunks() -> None:
    async with scene() as s:
        stream = await s.get("/up", "POST", end=False)
        assert b"transfer-encoding: chunked\r\n" in s.backends[0].take()
        for part in (b"one", b"three"):
            s.h2.send_data(stream, part)
            await s.settle()
            assert s.backends[0].take() == chunk(part)
        s.h2.send_data(stream, b"last", end_stream=True)
        await s.settle()
        assert s.backends[0].take() == chunk(b"last") + b"0\r\n\r\n"


async def test_a_body_of_known_length_is_sent_as_it_is() -> None:
    async with scene() as s:
        stream = await s.get("/up", "POST", [("content-length", "7")], end=False)
        assert b"content-length: 7\r\n" in s.backends[0].take()
        s.h2.send_data(stream, b"abc", pad_length=20)
        s.h2.send_data(stream, b"defg")
        s.h2.end_stream(stream)
        await s.settle()
        assert s.backends[0].take() == b"abcdefg"
        await s.reply(answer(b"ok"))
        assert s.answers[stream].ended
        assert len(s.pool) == 1


async def test_trailers_of_a_request_follow_its_last_chunk() -> None:
    async with scene() as s:
        stream = await s.get("/up", "POST", [("trailer", "x-sum")], end=False)
        s.backends[0].take()
        s.h2.send_data(stream, b"body")
        s.h2.send_headers(stream, [("x-sum", "42")], end_stream=True)
        await s.settle()
        assert s.backends[0].take() == chunk(b"body") + b"0\r\nx-sum: 42\r\n\r\n"


async def test_trailers_behind_a_body_of_known_length_are_left_out() -> None:
    async with scene() as s:
        stream = await s.get("/up", "POST", [("content-length", "4")], end=False)
        s.backends[0].take()
        s.h2.send_data(stream, b"body")
        s.h2.send_headers(stream, [("x-sum", "42")], end_stream=True)
        await s.settle()
        assert s.backends[0].take() == b"body"
        await s.reply(answer(b"ok"))
        assert s.answers[stream].ended


@pytest.mark.parametrize("field", [("content-length", "3"), ("x a", "b"), ("host", "evil")])
async def test_trailers_that_could_be_taken_for_a_head_are_not_passed_on(
    field: tuple[str, str],
) -> None:
    async with scene() as s:
        s.be_rude()
        stream = await s.get("/up", "POST", end=False)
        s.h2.send_headers(stream, [field], end_stream=True)
        await s.settle()
        assert field[0].encode() not in s.backends[0].take().partition(b"\r\n\r\n")[2]
        assert s.backends[0].aborted
        assert s.answers[stream].status == 400 or s.answers[stream].reset == 1


@pytest.mark.parametrize("sent", [3, 9])
async def test_a_body_of_another_length_than_announced_ends_nowhere_else(sent: int) -> None:
    async with scene() as s:
        s.be_rude()
        await s.get("/other")
        stream = await s.get("/up", "POST", [("content-length", "5")], end=False)
        s.backends[1].take()
        s.h2.send_data(stream, b"GET / HTTP/1.1"[:sent])
        if sent < 5:
            s.h2.send_headers(stream, [("x-end", "1")], end_stream=True)
        await s.settle()
        assert len(s.backends[1].take()) < 5
        assert s.backends[1].aborted
        assert s.answers[stream].reset == 1
        # It is one stream's fault.
        assert s.goaway is None
        assert not s.backends[0].aborted


@pytest.mark.parametrize("length", ["five", "-5", "5, 5"])
async def test_a_length_that_is_none_costs_one_request_and_not_the_connection(length: str) -> None:
    async with scene() as s:
        s.be_rude()
        await s.get("/other")
        stream = await s.get("/up", "POST", [("content-length", length)], end=False)
        assert s.answers[stream].status == 400
        assert s.goaway is None
        assert not s.backends[0].aborted


async def test_more_bytes_than_announced_are_stopped_here_too() -> None:
    async with scene() as s:
        stream = await s.get("/up", "POST", [("content-length", "3")], end=False)
        s.backends[0].take()
        s.h2.send_data(stream, b"abcGET / HTTP/1.1\r\n")
        await s.settle()
        assert not s.backends[0].take()
        assert s.backends[0].aborted
        assert s.answers[stream].reset == 1


async def test_expect_continue_is_for_the_service_to_answer() -> None:
    async with scene() as s:
        fields = [("expect", "100-continue"), ("content-length", "2")]
        stream = await s.get("/up", "POST", fields, end=False)
        assert b"expect: 100-continue\r\n" in s.backends[0].take()
        await s.reply(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert s.answers[stream].interim == [{":status": "100"}]
        s.h2.send_data(stream, b"ok", end_stream=True)
        await s.settle()
        await s.reply(answer(b"done"))
        assert s.answers[stream].body == b"done"


# -- answers -----------------------------------------------------------------------------------


async def test_each_event_is_a_frame_of_its_own_in_the_turn_it_comes() -> None:
    async with scene() as s:
        stream = await s.get()
        await s.reply(CHUNKED)
        assert s.answers[stream].headers["content-type"] == "text/event-stream"
        assert "transfer-encoding" not in s.answers[stream].headers
        for number in range(5):
            await s.reply(chunk(b"data: %d\n\n" % number))
            assert body_parts(s, stream)[-1] == b"data: %d\n\n" % number
        assert not s.answers[stream].ended
        await s.reply(b"0\r\n\r\n")
        assert s.answers[stream].ended
        assert len(body_parts(s, stream)) == 5


async def test_what_streams_send_in_one_turn_leaves_in_one_write() -> None:
    async with scene() as s:
        streams = [s.ask(f"/{n}") for n in range(10)]
        await s.settle()
        for backend in s.backends:
            backend.feed(CHUNKED + chunk(b"token"))
        assert not s.wire.writes
        await s.settle()
        s.wire.writes.clear()
        for backend in s.backends:
            backend.feed(chunk(b"token"))
        await asyncio.sleep(0)
        assert len(s.wire.writes) == 1
        s.receive()
        assert all(body_parts(s, stream) == [b"token"] * 2 for stream in streams)


async def test_trailers_of_an_answer_come_through() -> None:
    async with scene() as s:
        stream = await s.get()
        await s.reply(CHUNKED + chunk(b"x") + b"0\r\nGrpc-Status: 0\r\n\r\n")
        got = s.answers[stream]
        assert (got.body, got.trailers, got.ended) == (b"x", {"grpc-status": "0"}, True)


async def test_interim_answers_come_before_the_final_one() -> None:
    async with scene() as s:
        stream = await s.get()
        await s.reply(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        assert s.answers[stream].interim == [{":status": "103", "link": "</a>"}]
        await s.reply(b"HTTP/1.1 102 Processing\r\n\r\n" + answer(b"ok"))
        assert len(s.answers[stream].interim) == 2
        assert s.answers[stream].body == b"ok"


@pytest.mark.parametrize(
    ("method", "reply", "length"),
    [
        ("HEAD", answer(b"hello")[:-5], "5"),
        ("HEAD", CHUNKED, None),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "7"),
        ("GET", answer(b""), "0"),
        ("GET", CHUNKED + b"0\r\n\r\n", None),
    ],
)
async def test_answers_without_a_body_end_at_their_head(
    method: str, reply: bytes, length: str | None
) -> None:
    async with scene() as s:
        for _ in range(2):
            stream = await s.get("/", method)
            await s.reply(reply)
            got = s.answers[stream]
            assert (got.body, got.ended, got.reset) == (b"", True, None)
            assert got.headers.get("content-length") == length
        assert len(s.backends) == 1


async def test_an_answer_that_the_service_ends_by_closing_ends_well() -> None:
    async with scene() as s:
        stream = await s.get()
        await s.reply(b"HTTP/1.1 200 OK\r\n\r\nuntil ")
        await s.reply(b"close")
        s.backends[0].protocol.eof_received()
        await s.settle()
        got = s.answers[stream]
        assert (got.body, got.ended, got.reset) == (b"until close", True, None)
        assert not s.wire.closed


@pytest.mark.parametrize(
    "cut",
    [
        answer(b"hello")[:-1],
        CHUNKED + chunk(b"x"),
        CHUNKED + b"5\r\nab",
        b"HTTP/1.1 200 OK\r\n\r\nx",
    ],
    ids=["length", "between chunks", "in a chunk", "until close, with a reset"],
)
async def test_a_cut_answer_resets_its_stream_and_no_other(cut: bytes) -> None:
    async with scene() as s:
        other, stream = s.ask("/other"), s.ask("/cut")
        await s.settle()
        await s.reply(cut, 1)
        s.backends[1].protocol.connection_lost(ConnectionResetError())
        await s.settle()
        assert (s.answers[stream].ended, s.answers[stream].reset) == (False, 2)
        await s.reply(answer(b"fine"), 0)
        assert s.answers[other].body == b"fine"


@pytest.mark.parametrize("begun", [b"", answer(b"hello")[:-1]])
async def test_an_answer_that_is_closed_before_its_end_counts_as_cut(begun: bytes) -> None:
    async with scene() as s:
        stream = await s.get()
        if begun:
            await s.reply(begun)
        s.wire.protocol._streams[stream].close()
        await s.settle()
        assert (s.answers[stream].ended, s.answers[stream].reset) == (False, 2)
        assert s.backends[0].aborted


async def test_a_malformed_chunk_resets_the_stream() -> None:
    async with scene() as s:
        stream = await s.get()
        await s.reply(CHUNKED + chunk(b"x"))
        await s.reply(b"zz\r\n")
        assert s.answers[stream].reset == 2
        assert s.backends[0].aborted


async def test_a_switch_of_protocols_that_nobody_asked_for_is_no_answer() -> None:
    async with scene() as s:
        stream = await s.get()
        await s.reply(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
        )
        assert s.answers[stream].reset == 2 or s.answers[stream].status == 502
        assert s.backends[0].closed
        s.backends[0].protocol.connection_lost(None)
        await s.settle()
        again = await s.get()
        await s.reply(answer(b"fine"))
        assert s.answers[again].body == b"fine"


# -- refusals ----------------------------------------------------------------------------------


async def test_an_unknown_authority_gets_404() -> None:
    async with scene() as s:
        stream = await s.get("/", "GET", [("accept", "application/json")], authority="no.test")
        got = s.answers[stream]
        assert (got.status, got.ended) == (404, True)
        assert json.loads(got.body)["error"]["type"] == "invalid_request_error"
        assert not s.backends


async def test_a_client_that_is_away_gives_503_and_a_dead_service_502() -> None:
    async with scene() as s:
        s.away = LinkError("no work connection")
        stream = await s.get()
        assert s.answers[stream].status == 503
        assert s.answers[stream].headers["retry-after"]
        s.away = None
        stream = await s.get()
        s.backends[0].protocol.connection_lost(None)
        await s.settle()
        assert s.answers[stream].status == 502


async def test_a_slow_service_gives_504_when_a_limit_is_set() -> None:
    async with scene(header_timeout_s=5) as s:
        stream = await s.get()
        s.now += 6
        for exchange in list(s.frontend._exchanges):
            if 0 < exchange.deadline <= s.now:
                exchange.expire()
        await s.settle()
        assert s.answers[stream].status == 504
        assert s.backends[0].aborted


async def test_an_early_answer_stops_the_upload_without_an_error() -> None:
    async with scene() as s:
        stream = await s.get("/up", "POST", [("content-length", "1000000")], end=False)
        s.h2.send_data(stream, bytes(1000))
        await s.settle()
        await s.reply(answer(b"too large", status="413 Content Too Large"))
        got = s.answers[stream]
        assert (got.status, got.body, got.ended, got.reset) == (413, b"too large", True, 0)
        assert s.backends[0].aborted
        again = await s.get()
        await s.reply(answer(b"fine"))
        assert s.answers[again].body == b"fine"


async def test_a_request_that_came_whole_is_not_reset_when_it_is_refused_at_once() -> None:
    async with scene() as s:
        stream = s.ask("/", "POST", authority="no.test", end=False)
        s.h2.send_data(stream, b"body", end_stream=True)
        await s.settle()
        assert (s.answers[stream].status, s.answers[stream].reset) == (404, None)


async def test_a_malformed_request_gets_400_and_its_neighbours_go_on() -> None:
    async with scene() as s:
        s.be_rude()
        fields = [("connection", "close"), ("accept", "application/json")]
        bad, good = s.ask("/", "GET", fields), s.ask("/")
        await s.settle()
        got = s.answers[bad]
        assert (got.status, got.ended) == (400, True)
        assert "connection" in json.loads(got.body)["error"]["message"]
        await s.reply(answer(b"fine"))
        assert s.answers[good].body == b"fine"
        assert len(s.backends) == 1
        assert s.log.lines[0]["status"] == 400


async def test_connect_is_refused_with_501() -> None:
    async with scene() as s:
        s.be_rude()
        stream = s.h2.get_next_available_stream_id()
        s.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", f"{DOMAIN}:80")])
        s.h2.send_data(stream, b"early")
        await s.settle()
        assert (s.answers[stream].status, s.answers[stream].reset) == (501, 0)
        assert not s.backends


# -- back-pressure -----------------------------------------------------------------------------


async def test_a_caller_without_credit_pauses_its_own_source_only() -> None:
    async with scene() as s:
        s.acknowledge = False
        slow, quick = s.ask("/slow"), s.ask("/quick")
        await s.settle()
        await s.reply(CHUNKED, 0)
        window = 65535
        fed = 0
        for _ in range(3):
            while s.backends[0].reading:
                s.backends[0].feed(chunk(bytes(8 * KIB)))
                fed += 8 * KIB
                await s.settle()
                assert fed <= window + HIGH_WATER + 8 * KIB
            assert len(s.answers[slow].body) == window
            # The source goes on once most of what is held is gone.
            more = fed - window - LOW_WATER
            s.h2.increment_flow_control_window(more + 5)
            s.h2.increment_flow_control_window(more - 1, slow)
            await s.settle()
            assert not s.backends[0].reading
            s.h2.increment_flow_control_window(1, slow)
            await s.settle()
            assert s.backends[0].reading
            window += more
            assert len(s.answers[slow].body) == window
        await s.reply(answer(b"quick"), 1)
        assert s.answers[quick].body == b"quick"
        s.h2.increment_flow_control_window(LOW_WATER)
        s.h2.increment_flow_control_window(LOW_WATER, slow)
        await s.reply(b"0\r\n\r\n", 0)
        assert s.answers[slow].body == bytes(fed)
        assert s.answers[slow].ended


async def test_the_end_of_an_answer_waits_for_its_bytes() -> None:
    async with scene() as s:
        s.acknowledge = False
        stream = await s.get()
        await s.reply(answer(bytes(70_000)))
        assert (len(s.answers[stream].body), s.answers[stream].ended) == (65535, False)
        assert len(s.pool) == 1, "the work connection is free already"
        s.h2.increment_flow_control_window(10_000)
        s.h2.increment_flow_control_window(10_000, stream)
        await s.settle()
        assert (len(s.answers[stream].body), s.answers[stream].ended) == (70_000, True)


async def test_a_full_transport_holds_all_streams_and_serves_them_in_turn() -> None:
    async with scene() as s:
        s.h2.increment_flow_control_window(1 << 24)
        streams = [s.ask(f"/{n}") for n in range(4)]
        await s.settle()
        for stream in streams:
            s.h2.increment_flow_control_window(1 << 20, stream)
        for backend in s.backends:
            backend.feed(CHUNKED)
        await s.settle()
        s.wire.fill()
        for backend in s.backends:
            backend.feed(chunk(bytes(100 * KIB)))
        await s.settle()
        assert not any(s.answers[stream].body for stream in streams)
        assert not any(backend.reading for backend in s.backends)
        order: list[int] = []
        take = s._take

        def note(event: object) -> None:
            if isinstance(event, DataReceived):
                order.append(event.stream_id or 0)
            take(event)

        s._take = note  # type: ignore[method-assign]  # to see the order
        s.wire.drain()
        await s.settle()
        assert all(s.answers[stream].body == bytes(100 * KIB) for stream in streams)
        assert all(backend.reading for backend in s.backends)
        assert order[:4] == streams
        assert order[4:8] == streams


async def test_a_transport_that_fills_again_stops_the_streams_again() -> None:
    async with scene() as s:
        s.h2.increment_flow_control_window(1 << 24)
        stream = await s.get()
        s.h2.increment_flow_control_window(1 << 24, stream)
        await s.reply(CHUNKED)
        s.wire.fill()
        s.backends[0].feed(chunk(bytes(2048 * KIB)))
        await s.settle()
        s.wire.stuck = True
        s.wire.drain()
        await s.settle()
        assert sum(map(len, s.wire.writes)) < 700 * KIB
        assert not s.backends[0].reading
        for _ in range(20):
            s.wire.unstick()
            s.receive()
            s.wire.stuck = True
            await s.settle()
        s.wire.unstick()
        s.receive()
        assert len(s.answers[stream].body) == 2048 * KIB
        assert s.backends[0].reading


async def test_a_round_of_many_streams_ends_when_the_transport_is_full() -> None:
    async with scene() as s:
        s.h2.increment_flow_control_window(1 << 24)
        for number in range(60):
            s.ask(f"/{number}")
        await s.settle()
        s.wire.fill()
        for backend in s.backends:
            backend.feed(CHUNKED + chunk(bytes(60 * KIB)))
        await s.settle()
        s.wire.take()
        s.wire.stuck = True
        s.wire.drain()
        assert sum(map(len, s.wire.writes)) <= MARK + FLUSH_BYTES + 64 * KIB


async def test_bytes_that_follow_held_ones_stay_behind_them() -> None:
    async with scene() as s:
        stream = await s.get("/up", "POST", [("content-length", "9")], end=False)
        s.backends[0].take()
        s.backends[0].fill()
        s.h2.send_data(stream, b"one")
        s.h2.send_data(stream, b"two")
        s.send()
        s.backends[0].drain()
        s.h2.send_data(stream, b"end", end_stream=True)
        s.send()
        await s.settle()
        assert s.backends[0].take() == b"onetwoend"


async def test_an_upload_that_the_service_does_not_take_gets_no_more_credit() -> None:
    async with scene() as s:
        stream = await s.get("/up", "POST", end=False)
        s.backends[0].fill()
        s.backends[0].take()
        sent = 0
        while room := min(s.h2.local_flow_control_window(stream), 16 * KIB):
            s.h2.send_data(stream, bytes(room))
            sent += room
            await s.settle()
            assert sent <= STREAM_WINDOW
        assert sent == STREAM_WINDOW
        assert not s.backends[0].take(), "nothing is pushed into a full connection"
        other = await s.get("/other", "POST", end=False)
        s.h2.send_data(other, b"other", end_stream=True)
        await s.settle()
        assert s.backends[1].take().endswith(chunk(b"other") + b"0\r\n\r\n")
        s.backends[0].drain()
        await s.settle()
        assert len(s.backends[0].take()) > sent
        assert s.h2.local_flow_control_window(stream) >= STREAM_WINDOW // 2
        s.h2.send_data(stream, b"end", end_stream=True)
        await s.settle()
        assert s.backends[0].take() == chunk(b"end") + b"0\r\n\r\n"


async def test_credit_of_the_connection_survives_streams_that_end_with_bytes_held() -> None:
    async with scene() as s:
        for _ in range(40):
            stream = s.ask("/up", "POST", end=False)
            await s.settle()
            s.backends[-1].fill()
            for _ in range(12):
                s.h2.send_data(stream, bytes(16 * KIB))
            await s.settle()
            s.h2.reset_stream(stream, 8)
            await s.settle()
            assert s.backends[-1].aborted
        assert s.h2.outbound_flow_control_window > 1 << 20


# -- leaving -----------------------------------------------------------------------------------


async def test_a_caller_that_resets_a_stream_ends_its_work_connection() -> None:
    async with scene() as s:
        gone, stays = s.ask("/gone"), s.ask("/stays")
        await s.settle()
        await s.reply(CHUNKED + chunk(b"x"), 0)
        s.h2.reset_stream(gone, 8)
        s.send()
        assert s.backends[0].aborted
        assert not s.backends[1].aborted
        await s.reply(answer(b"fine"), 1)
        assert s.answers[stays].body == b"fine"


async def test_a_reset_before_the_work_connection_stands_is_heeded() -> None:
    async with scene() as s:
        stream = s.ask()
        s.h2.reset_stream(stream, 8)
        await s.settle()
        assert not s.backends
        assert len(s.frontend) == 1
        stream = s.ask()
        s.send()
        s.h2.reset_stream(stream, 8)
        await s.settle()
        assert len(s.frontend) == 1
        assert all(not backend.writes for backend in s.backends)


@pytest.mark.parametrize("way", ["lost", "eof"])
async def test_a_caller_that_leaves_ends_all_its_work_connections(way: str) -> None:
    async with scene() as s:
        for number in range(3):
            s.ask(f"/{number}")
        await s.settle()
        await s.reply(CHUNKED + chunk(b"x"), 0)
        if way == "lost":
            s.lose(ConnectionResetError())
        else:
            assert not s.wire.protocol.eof_received()
        assert all(backend.aborted for backend in s.backends)
        s.lose()
        assert not len(s.frontend)


async def test_the_frontend_can_drop_a_caller() -> None:
    async with scene() as s:
        await s.get()
        s.frontend.close()
        assert s.wire.aborted


async def test_the_callers_address_is_that_of_its_connection() -> None:
    async with scene() as s:
        await s.get(authority="no.test")
        assert s.log.lines[-1]["caller"] == f"{ADDRESS[0]}:{ADDRESS[1]}"
