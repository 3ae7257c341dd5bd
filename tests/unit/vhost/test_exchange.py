"""One caller's connection: requests in, answers out, each exactly once."""

from __future__ import annotations

import re

import pytest

from pyfrp.errors import IdleTimeout
from pyfrp.vhost.departure import PROBE
from pyfrp.vhost.replay import LIMIT, WITHIN_S
from pyfrp.vhost.stages import LINGER_S
from tests.unit.vhost.scene import (
    ADDRESS,
    CHUNKED,
    HOST,
    answer,
    chunk,
    get,
    post,
    split_answers,
    turns,
    vhost,
)

# -- one after another --------------------------------------------------------------------------


async def test_a_request_is_rewritten_and_its_answer_passed_on():
    async with vhost() as v:
        caller = await v.ask(get("/v1/models?x=1", "Accept: */*"))
        sent = v.service.sent
        assert sent.startswith(b"GET /v1/models?x=1 HTTP/1.1\r\nHost: llm.test\r\n")
        assert f"X-Forwarded-For: {ADDRESS[0]}\r\n".encode() in sent
        assert b"X-Forwarded-Host: llm.test\r\n" in sent
        v.service.feed(answer(b"models"))
        assert split_answers(caller.sent) == [(200, b"models")]
        assert v.route.requests == 1


async def test_both_connections_are_kept_for_the_next_request():
    async with vhost() as v:
        caller = await v.ask(get("/1"))
        for number in range(2, 5):
            v.service.feed(answer(b"answer"))
            caller.feed(get(f"/{number}"))
            await turns()
        v.service.feed(answer(b"answer"))
        assert len(v.services) == 1
        assert split_answers(caller.sent) == [(200, b"answer")] * 4
        assert not caller.closed


async def test_a_kept_work_connection_serves_any_caller():
    async with vhost() as v:
        first = await v.ask(get("/first"))
        v.service.feed(answer(b"1"))
        second = await v.ask(get("/second"))
        v.service.feed(answer(b"2"))
        assert len(v.services) == 1
        assert split_answers(first.sent) == [(200, b"1")]
        assert split_answers(second.sent) == [(200, b"2")]


async def test_requests_at_the_same_time_have_a_work_connection_each():
    async with vhost() as v:
        callers = [await v.ask(get(f"/{number}")) for number in range(5)]
        assert len(v.services) == 5
        for number, service in enumerate(v.services):
            service.feed(answer(b"%d" % number))
        for number, caller in enumerate(callers):
            assert split_answers(caller.sent) == [(200, b"%d" % number)]
        assert len(v.pool) == 5


@pytest.mark.parametrize("size", [1, 2, 7, 50])
async def test_requests_in_pieces_of_any_size_are_the_same_requests(size):
    async with vhost() as v:
        caller = v.call()
        stream = b"\r\n" + get("/a") + b"\r\n" + post(b"body of b", path="/b") + get("/c")
        for at in range(0, len(stream), size):
            caller.feed(stream[at : at + size])
            await turns(2)
        for _ in range(3):
            await turns()
            v.service.feed(answer(b"x"))
        await turns()
        assert split_answers(caller.sent) == [(200, b"x")] * 3
        paths = re.findall(rb"(?:GET|POST) (/[abc]) HTTP/1.1", v.service.sent)
        assert paths == [b"/a", b"/b", b"/c"]
        assert b"body of b" in v.service.sent


@pytest.mark.parametrize("size", [1, 3, 40])
async def test_an_answer_in_pieces_of_any_size_is_the_same_answer(size):
    async with vhost() as v:
        caller = await v.ask(get())
        data = answer(b"the body", "X-Test: 1")
        for at in range(0, len(data), size):
            v.service.feed(data[at : at + size])
        assert split_answers(caller.sent) == [(200, b"the body")]
        assert len(v.pool) == 1


async def test_each_part_of_a_body_leaves_in_the_turn_in_which_it_came():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(CHUNKED)
        caller.take()
        for number in range(20):
            event = chunk(b"data: %d\n\n" % number)
            v.service.feed(event)
            assert caller.take() == event
        v.service.feed(b"0\r\n\r\n")
        assert caller.take() == b"0\r\n\r\n"
        assert len(v.pool) == 1
        caller.feed(get("/next"))
        assert v.service.sent.count(b"GET /next") == 1


# -- pipelines ----------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order_one_at_a_time():
    async with vhost() as v:
        caller = await v.ask(get("/1") + get("/2") + get("/3"))
        for number in (1, 2, 3):
            assert v.service.sent.count(b" HTTP/1.1\r\n") == number
            v.service.feed(answer(b"%d" % number))
            await turns()
        assert split_answers(caller.sent) == [(200, b"1"), (200, b"2"), (200, b"3")]


async def test_a_request_that_comes_in_the_turn_of_an_answer_waits_for_its_turn():
    async with vhost() as v:
        caller = await v.ask(get("/1") + get("/2"))
        v.service.feed(answer(b"1"))
        caller.feed(get("/3"))
        for body in (b"2", b"3"):
            await turns()
            v.service.feed(answer(body))
        await turns()
        assert split_answers(caller.sent) == [(200, b"1"), (200, b"2"), (200, b"3")]


async def test_a_pipeline_with_a_body_and_the_next_head_cut_in_two():
    async with vhost() as v:
        stream = post(b"one", path="/1") + get("/2")
        caller = await v.ask(stream[:-10])
        v.service.feed(answer(b"1"))
        await turns()
        caller.feed(stream[-10:])
        await turns()
        v.service.feed(answer(b"2"))
        assert split_answers(caller.sent) == [(200, b"1"), (200, b"2")]


async def test_a_refused_request_in_a_pipeline_does_not_stop_it():
    async with vhost() as v:
        caller = await v.ask(get("/1") + get("/2", host="unknown.test") + get("/3"))
        v.service.feed(answer(b"1"))
        await turns()
        v.service.feed(answer(b"3"))
        await turns()
        assert [status for status, _ in split_answers(caller.sent)] == [200, 404, 200]


async def test_a_pipeline_that_ends_its_side_is_answered_to_its_last_request():
    async with vhost() as v:
        caller = await v.ask(get("/1") + get("/2", host="unknown.test") + get("/3"))
        caller.end()
        v.service.feed(answer(b"1"))
        await turns()
        v.service.feed(answer(b"3"))
        await turns()
        received = caller.sent.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
        assert [status for status, _ in split_answers(received)] == [200, 404, 200]
        assert caller.closed


async def test_an_end_between_two_pipelined_requests_leaves_the_second_its_answer():
    async with vhost() as v:
        caller = await v.ask(get("/1") + get("/2"))
        v.service.feed(answer(b"1"))
        caller.end()  # In the turn of the first answer, before the second request has its own.
        await turns()
        v.service.feed(answer(b"2"))
        await turns()
        received = caller.sent.replace(PROBE, b"")
        assert split_answers(received) == [(200, b"1"), (200, b"2")]
        assert caller.closed


async def test_who_leaves_between_two_pipelined_requests_stops_the_second():
    async with vhost() as v:
        caller = await v.ask(get("/1") + get("/2"))
        v.service.feed(answer(b"1"))
        caller.end()
        await turns()
        assert PROBE in caller.sent  # Answered with a reset by a socket that was closed.


async def test_a_long_pipeline_is_not_read_ahead_without_bound():
    async with vhost() as v:
        caller = await v.ask(get("/first"))
        sent = 0
        while caller.reading:
            caller.feed(get("/more" + "x" * 1000))
            sent += 1
            assert sent < 200
        v.service.feed(answer(b"1"))
        await turns()
        assert caller.reading
        for _ in range(sent):
            v.service.feed(answer(b"2"))
            await turns(3)
        assert len(split_answers(caller.sent)) == sent + 1


# -- a work connection that ends under a request ------------------------------------------------


async def kept(v):
    """A caller whose first request was answered, so that a work connection is kept."""
    caller = await v.ask(get("/first"))
    v.service.feed(answer(b"1"))
    caller.take()
    v.service.take()
    return caller


@pytest.mark.parametrize("reset", [False, True])
async def test_a_request_that_met_the_end_of_a_kept_connection_goes_out_once_more(reset):
    async with vhost() as v:
        caller = await kept(v)
        caller.feed(post(b"the body", path="/second"))
        first = v.service
        first.lose(ConnectionResetError()) if reset else first.end()
        await turns()
        assert len(v.services) == 2
        assert v.service.sent == first.sent
        v.service.feed(answer(b"2"))
        assert split_answers(caller.sent) == [(200, b"2")]


async def test_the_rest_of_a_body_follows_on_the_second_try():
    async with vhost() as v:
        caller = await kept(v)
        request = post(b"0123456789", path="/second")
        caller.feed(request[:-6])
        v.service.end()
        caller.feed(request[-6:-3])
        await turns()
        caller.feed(request[-3:])
        assert v.service.sent.endswith(b"\r\n\r\n0123456789")
        v.service.feed(answer(b"2"))
        assert split_answers(caller.sent) == [(200, b"2")]


async def test_there_is_no_third_try():
    async with vhost() as v:
        caller = await kept(v)
        caller.feed(get("/second"))
        v.service.end()
        await turns()
        v.service.end()
        await turns()
        assert len(v.services) == 2
        assert split_answers(caller.sent)[0][0] == 502


@pytest.mark.parametrize(
    "partial", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
async def test_a_request_whose_answer_had_begun_is_not_repeated(partial):
    async with vhost() as v:
        caller = await kept(v)
        caller.feed(get("/second"))
        v.service.feed(partial)
        v.service.end()
        await turns()
        assert len(v.services) == 1
        assert b"502" in caller.sent


async def test_a_request_on_which_the_service_worked_for_a_while_is_not_repeated():
    async with vhost() as v:
        caller = await kept(v)
        caller.feed(get("/second"))
        v.advance(WITHIN_S)
        v.service.end()
        await turns()
        assert len(v.services) == 1
        assert split_answers(caller.sent)[0][0] == 502


async def test_a_request_too_long_to_keep_is_not_repeated():
    async with vhost() as v:
        caller = await kept(v)
        caller.feed(post(bytes(LIMIT), path="/second"))
        v.service.end()
        await turns()
        assert len(v.services) == 1
        assert split_answers(caller.sent)[0][0] == 502


async def test_a_request_on_a_fresh_connection_is_not_repeated():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.end()
        await turns()
        assert len(v.services) == 1
        assert split_answers(caller.sent)[0][0] == 502


async def test_a_client_that_is_lost_during_the_second_try_is_told():
    async with vhost() as v:
        caller = await kept(v)
        caller.feed(get("/second"))
        v.refusal = IdleTimeout("timeout trying to get work connection")
        v.service.end()
        await turns()
        assert split_answers(caller.sent)[0][0] == 503


# -- answers that break off, and what follows them ----------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "begun",
    [
        CHUNKED + chunk(b"half"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        CHUNKED,
    ],
)
async def test_a_broken_answer_cuts_the_caller(begun, reset):
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(begun)
        v.service.lose(ConnectionResetError("the model died")) if reset else v.service.end()
        assert caller.aborted
        await turns()
        assert v.log.lines[-1]["status"] == "cut"
        assert v.log.lines[-1]["stage"] == "response body"


async def test_an_answer_that_ends_with_its_connection_ends_the_callers():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(b"HTTP/1.1 200 OK\r\n\r\nall of ")
        v.service.feed(b"it")
        assert not caller.closed
        v.service.end()
        assert caller.sent.endswith(b"\r\n\r\nall of it")
        assert b"Connection: close\r\n" in caller.sent
        assert caller.closed
        assert not caller.aborted


async def test_an_answer_that_should_end_with_its_connection_but_was_reset_is_cut():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(b"HTTP/1.1 200 OK\r\n\r\nall of ")
        v.service.lose(ConnectionResetError())
        assert caller.aborted


async def test_bad_chunks_of_an_answer_cut_the_caller():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(CHUNKED + chunk(b"good"))
        v.service.feed(b"XYZ\r\n")
        assert caller.aborted
        assert v.service.aborted


async def test_bad_chunks_right_behind_the_head_are_a_broken_answer():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(CHUNKED + b"XYZ\r\n")
        assert split_answers(caller.sent)[0][0] == 502
        assert v.service.aborted


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/2 200\r\n\r\n",
        b"200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"SSH-2.0-OpenSSH\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_a_502(broken):
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(broken)
        assert split_answers(caller.sent)[0][0] == 502
        assert v.service.aborted
        caller.feed(get("/next"))
        await turns()
        assert len(v.services) == 2


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\n\r\n"])
@pytest.mark.parametrize("apart", [False, True])
async def test_bytes_behind_an_answer_are_never_taken_for_the_next(extra, apart):
    async with vhost() as v:
        caller = await v.ask(get("/1"))
        if apart:
            v.service.feed(answer(b"1"))
            v.service.feed(extra)
        else:
            v.service.feed(answer(b"1") + extra)
        caller.feed(get("/2"))
        await turns()
        assert len(v.services) == 2
        v.service.feed(answer(b"2"))
        assert split_answers(caller.sent) == [(200, b"1"), (200, b"2")]


@pytest.mark.parametrize("field", ["Connection: close", "Connection: foo, close"])
async def test_a_service_that_closes_keeps_the_callers_connection(field):
    async with vhost() as v:
        caller = await v.ask(get("/1"))
        v.service.feed(answer(b"1", field))
        assert v.service.aborted
        assert not caller.closed
        assert b"close" not in caller.sent
        caller.feed(get("/2"))
        await turns()
        v.service.feed(answer(b"2"))
        assert [body for _, body in split_answers(caller.sent)] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("request_bytes", "kept_open"),
    [
        (get(), True),
        (get("/", "Connection: close"), False),
        (get("/", version="1.0"), False),
        (get("/", "Connection: keep-alive", version="1.0"), True),
    ],
)
async def test_the_caller_decides_about_his_own_connection(request_bytes, kept_open):
    async with vhost() as v:
        caller = await v.ask(request_bytes)
        v.service.feed(answer(b"1"))
        assert caller.closed != kept_open
        # The work connection is not his to close.
        assert len(v.pool) == 1


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_without_a_body_are_complete_with_their_head(status):
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(f"HTTP/1.1 {status}\r\nETag: x\r\n\r\n".encode())
        assert len(v.pool) == 1
        assert not caller.closed


async def test_the_answer_to_head_has_a_length_and_no_body():
    async with vhost() as v:
        caller = await v.ask(get().replace(b"GET", b"HEAD"))
        v.service.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        assert b"Content-Length: 5000\r\n" in caller.sent
        assert len(v.pool) == 1


async def test_a_body_in_answer_to_head_is_not_passed_on():
    async with vhost() as v:
        caller = await v.ask(get().replace(b"GET", b"HEAD"))
        v.service.feed(answer(b"a body"))
        assert caller.sent.endswith(b"\r\n\r\n")
        assert v.service.aborted
        assert not caller.closed


async def test_chunks_are_taken_apart_for_http_1_0():
    async with vhost() as v:
        caller = await v.ask(get("/", "Connection: keep-alive", version="1.0"))
        v.service.feed(CHUNKED + chunk(b"one ") + chunk(b"two")[:4])
        v.service.feed(chunk(b"two")[4:] + b"0\r\nX-Trailer: 1\r\n\r\n")
        assert caller.sent.endswith(b"\r\n\r\none two")
        assert b"chunked" not in caller.sent
        assert caller.closed
        assert len(v.pool) == 1


# -- interim answers ----------------------------------------------------------------------------


async def test_interim_answers_are_passed_on_before_the_final_one():
    async with vhost() as v:
        caller = await v.ask(post(b"", "Expect: 100-continue").replace(b": 0", b": 4"))
        v.service.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert caller.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.feed(b"body")
        assert v.service.sent.endswith(b"body")
        v.service.feed(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer(b"done"))
        assert caller.sent.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200")
        assert len(v.pool) == 1


async def test_interim_answers_are_not_for_http_1_0():
    async with vhost() as v:
        caller = await v.ask(get(version="1.0"))
        v.service.feed(b"HTTP/1.1 102 Processing\r\n\r\n" + answer(b"done"))
        assert split_answers(caller.sent) == [(200, b"done")]


# -- bodies -------------------------------------------------------------------------------------


async def test_an_upload_is_passed_on_as_it_comes():
    async with vhost() as v:
        caller = await v.ask(post(b"").replace(b": 0", b": 10"))
        v.service.take()
        for part in (b"01", b"234", b"56789"):
            caller.feed(part)
            assert v.service.take() == part
        v.service.feed(answer(b"ok"))
        assert split_answers(caller.sent) == [(200, b"ok")]


async def test_a_chunked_upload_is_passed_on_unchanged_and_ends_where_it_ends():
    async with vhost() as v:
        head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        body = chunk(b"one") + chunk(b"two;x") + b"0\r\nX-T: 1\r\n\r\n"
        caller = await v.ask(head + body + get("/next"))
        assert v.service.sent.endswith(b"\r\n\r\n" + body)
        v.service.feed(answer(b"1"))
        await turns()
        v.service.feed(answer(b"2"))
        assert split_answers(caller.sent) == [(200, b"1"), (200, b"2")]


async def test_bad_chunks_of_an_upload_are_refused_and_the_service_is_told():
    async with vhost() as v:
        head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        caller = await v.ask(head + chunk(b"good"))
        caller.feed(b"-5\r\nevil!")
        assert split_answers(caller.sent)[0][0] == 400
        assert v.service.aborted
        assert b"evil" not in v.service.sent
        await turns()
        assert caller.closed or caller.ended


async def test_bad_chunks_behind_the_start_of_an_answer_cut_the_caller():
    async with vhost() as v:
        head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        caller = await v.ask(head + chunk(b"good"))
        v.service.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        before = caller.sent
        caller.feed(b"-5\r\nevil!")
        assert caller.sent == before
        assert caller.aborted
        assert v.service.aborted


async def test_an_early_final_answer_reaches_a_caller_who_is_still_sending():
    async with vhost() as v:
        caller = await v.ask(post(b"").replace(b": 0", b": 1000000") + bytes(1000))
        v.service.feed(answer(b"too large", status="413 Content Too Large"))
        assert split_answers(caller.sent) == [(413, b"too large")]
        assert b"Connection: close\r\n" in caller.sent
        assert v.service.aborted
        # What he still sends is taken in, so that the answer is not lost in a reset.
        assert caller.ended
        assert not caller.closed
        caller.feed(bytes(5000))
        caller.end()
        await turns()
        assert caller.closed
        assert not caller.aborted


@pytest.mark.parametrize(
    "refused",
    [
        post(b"").replace(b": 0", b": 9\r\nTransfer-Encoding: chunked"),
        post(b"", "Expect: more").replace(b": 0", b": 9"),
        post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"nonsense\r\n",
    ],
    ids=["framing", "expectation", "chunks"],
)
async def test_who_still_sends_what_was_refused_is_not_reset_before_he_has_read_why(refused):
    async with vhost() as v:
        caller = await v.ask(refused)
        assert split_answers(caller.sent)[0][0] in (400, 417)
        assert caller.ended
        caller.feed(bytes(1000))
        assert not caller.closed
        caller.end()
        assert caller.closed


async def test_a_caller_who_never_stops_sending_after_his_answer_is_cut():
    async with vhost() as v:
        caller = await v.ask(post(b"").replace(b": 0", b": 1000000") + bytes(1000))
        v.service.feed(answer(b"too large", status="413 Content Too Large"))
        v.advance(LINGER_S - 0.1)
        assert not caller.closed
        v.advance(0.2)
        assert caller.aborted


async def test_an_answer_and_the_upload_may_overlap():
    async with vhost() as v:
        caller = await v.ask(post(b"").replace(b": 0", b": 8") + b"1234")
        v.service.feed(CHUNKED + chunk(b"echo 1234"))
        caller.feed(b"5678")
        assert v.service.sent.endswith(b"12345678")
        v.service.feed(chunk(b"echo 5678") + b"0\r\n\r\n")
        assert caller.sent.endswith(chunk(b"echo 5678") + b"0\r\n\r\n")
        await turns()
        # Told to close with the head, when the request was not complete yet.
        assert caller.closed
