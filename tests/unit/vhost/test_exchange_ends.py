"""How an exchange ends: callers who leave or end their side, deadlines, drains, tunnels."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from pyfrp.errors import IdleTimeout
from pyfrp.vhost.departure import LOOK_S, LOOKS, PROBE
from pyfrp.vhost.stages import BODY_S, HEAD_S, LINGER_S
from tests.support.waiting import within
from tests.unit.vhost.scene import (
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

# -- leaving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["prefill", "head", "body", "upload"])
async def test_a_caller_who_leaves_takes_the_work_connection_along(when):
    async with vhost() as v:
        if when == "upload":
            caller = await v.ask(post(b"").replace(b": 0", b": 10") + b"123")
        else:
            caller = await v.ask(get())
        if when in ("head", "body"):
            v.service.feed(CHUNKED)
        if when == "body":
            v.service.feed(chunk(b"token"))
        caller.lose(ConnectionResetError())
        assert v.service.aborted
        assert len(v.frontend) == 0


async def test_a_caller_who_leaves_while_a_work_connection_is_opened_leaves_it_to_the_next():
    async with vhost() as v:
        v.opening = asyncio.Event()
        caller = await v.ask(get())
        caller.lose()
        v.opening.set()
        await turns()
        assert v.service.sent == b""
        assert len(v.pool) == 1
        other = await v.ask(get("/other"))
        v.service.feed(answer(b"1"))
        assert split_answers(other.sent) == [(200, b"1")]


async def test_a_caller_who_leaves_while_the_client_is_away_is_nobodys_error():
    async with vhost() as v:
        v.opening = asyncio.Event()
        v.refusal = IdleTimeout("no")
        caller = await v.ask(get())
        caller.lose()
        v.opening.set()
        await turns()
        assert v.log.lines == []


async def test_a_caller_who_ends_an_unfinished_request_is_closed():
    async with vhost() as v:
        for partial in (b"", b"GET / HT", get()[:-2], post(b"").replace(b": 0", b": 9") + b"1"):
            caller = await v.ask(partial) if partial else v.call()
            caller.end()
            await turns()
            assert caller.closed


async def test_an_idle_caller_is_closed_after_a_while():
    async with vhost() as v:
        silent = v.call()
        served = await v.ask(get())
        v.service.feed(answer(b"1"))
        served.take()
        v.advance(HEAD_S - 1)
        assert not silent.closed
        assert not served.closed
        v.advance(1)
        await turns()
        assert silent.closed
        assert served.closed
        assert served.sent == b""


async def test_a_refused_caller_may_be_gone_already(monkeypatch):
    """asyncio's own loops say so at once, before they report the loss; uvloop does not."""
    async with vhost() as v:
        caller = v.call()

        def refuse():
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        monkeypatch.setattr(caller, "write_eof", refuse)
        caller.feed(post(b"upload").replace(HOST.encode(), b"nobody.test")[:-1])
        assert split_answers(caller.sent)[0][0] == 404
        caller.lose(ConnectionResetError())
        assert len(v.frontend) == 0


async def test_a_head_that_trickles_in_is_refused_in_time():
    async with vhost() as v:
        caller = v.call()
        for byte in b"GET / HTTP/1.1\r\nHost: llm.test\r\nX: ":
            caller.feed(bytes((byte,)))
        for _ in range(12):
            v.advance(5)
            if not caller.closed and not caller.ended:
                caller.feed(b"x")
        assert split_answers(caller.sent)[0][0] == 408
        await turns()
        v.advance(LINGER_S)
        await turns()
        assert caller.closed


UPLOAD = post(bytes(1000))


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
async def test_an_upload_that_stalls_is_refused_and_frees_the_work_connection(kept):
    async with vhost() as v:
        if kept:
            await v.ask(get())
            v.service.feed(answer(b"1"))
        caller = await v.ask(UPLOAD[:-500])
        v.advance(BODY_S)
        assert caller.sent == b""  # Its head came with bytes of the body.
        v.advance(BODY_S)
        assert split_answers(caller.sent)[0][0] == 408
        assert v.service.aborted
        await turns()
        assert caller.closed
        assert v.log.lines[-1]["stage"] == "request body"


async def test_an_upload_may_be_as_slow_as_it_likes():
    async with vhost() as v:
        caller = await v.ask(UPLOAD[:-20])
        for at in range(20, 0, -1):
            v.advance(BODY_S - 1)
            caller.feed(UPLOAD[-at : len(UPLOAD) - at + 1])
        # From here on the service has the time.
        v.advance(10 * BODY_S)
        v.service.feed(answer(b"thanks"))
        assert split_answers(caller.sent) == [(200, b"thanks")]


async def test_a_caller_who_is_made_to_wait_does_not_stall():
    async with vhost() as v:
        caller = await v.ask(UPLOAD[:-500])
        v.service.protocol.pause_writing()
        assert not caller.reading
        for _ in range(5):
            v.advance(BODY_S)
        assert caller.sent == b""
        v.service.protocol.resume_writing()
        caller.feed(UPLOAD[-500:])
        v.service.feed(answer(b"thanks"))
        assert split_answers(caller.sent) == [(200, b"thanks")]


async def test_an_upload_may_pause_for_good_once_its_answer_has_begun():
    async with vhost() as v:
        caller = await v.ask(UPLOAD[:-500])
        v.service.feed(CHUNKED + chunk(b"listening"))
        for _ in range(5):
            v.advance(BODY_S)
        assert not caller.closed
        assert b"listening" in caller.take()
        caller.feed(UPLOAD[-500:])
        v.service.feed(b"0\r\n\r\n")
        assert caller.sent.endswith(b"0\r\n\r\n")


# -- deadlines of the service -------------------------------------------------------------------


@pytest.mark.parametrize("limit_s", [0, -1])
async def test_without_a_limit_a_service_may_think_for_ever(limit_s):
    async with vhost(header_timeout_s=limit_s) as v:
        caller = await v.ask(get())
        v.advance(100_000)
        v.service.feed(answer(b"at last"))
        assert split_answers(caller.sent) == [(200, b"at last")]


async def test_with_a_limit_a_silent_service_is_a_504():
    async with vhost(header_timeout_s=30) as v:
        caller = await v.ask(get())
        v.advance(29)
        assert caller.sent == b""
        v.advance(1)
        assert split_answers(caller.sent)[0][0] == 504
        assert v.service.aborted
        assert not caller.closed


async def test_the_limit_counts_from_the_end_of_the_request_to_the_head_of_the_answer():
    async with vhost(header_timeout_s=30) as v:
        caller = await v.ask(post(b"").replace(b": 0", b": 4"))
        v.advance(BODY_S - 1)
        caller.feed(b"body")
        v.advance(29)
        v.service.feed(CHUNKED)
        v.advance(1000)
        v.service.feed(chunk(b"slow") + b"0\r\n\r\n")
        assert b"200 OK" in caller.sent
        assert not caller.closed


async def test_an_interim_answer_does_not_stop_the_clock():
    async with vhost(header_timeout_s=30) as v:
        caller = await v.ask(get())
        v.advance(20)
        v.service.feed(b"HTTP/1.1 102 Processing\r\n\r\n")
        v.advance(10)
        assert b"504" in caller.sent


async def test_waiting_for_a_work_connection_has_its_own_limit():
    async with vhost(header_timeout_s=30) as v:
        v.opening = asyncio.Event()
        caller = await v.ask(get())
        v.advance(1000)
        assert caller.sent == b""
        v.refusal = IdleTimeout("timeout trying to get work connection")
        v.opening.set()
        await turns()
        assert split_answers(caller.sent)[0][0] == 503


# -- callers who end their side -----------------------------------------------------------------


class Socket:
    """A socket that tells an error once it is due."""

    def __init__(self):
        self.error = 0

    def getsockopt(self, level, option):
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        if self.error < 0:
            raise OSError(errno.EBADF, "closed")
        return self.error

    def setsockopt(self, *_):
        pass


WATCHED_S = LOOK_S * LOOKS


async def test_a_caller_who_ends_his_side_after_the_request_gets_the_answer():
    async with vhost() as v:
        caller = await v.ask(get())
        caller.end()
        assert caller.take() == PROBE
        v.advance(10)
        v.service.feed(answer(b"late"))
        assert split_answers(caller.sent) == [(200, b"late")]
        assert caller.closed
        assert not caller.aborted


async def test_a_caller_who_ended_his_side_gets_a_streamed_answer_with_pauses():
    async with vhost() as v:
        caller = await v.ask(get())
        caller.end()
        v.advance(WATCHED_S / 2)
        v.service.feed(CHUNKED)
        v.advance(10)
        v.service.feed(chunk(b"token") + b"0\r\n\r\n")
        assert not caller.aborted
        assert caller.sent.endswith(chunk(b"token") + b"0\r\n\r\n")


async def test_a_caller_of_http_1_0_is_not_probed():
    async with vhost() as v:
        caller = await v.ask(get(version="1.0"))
        caller.end()
        v.advance(10)
        assert caller.sent == b""
        v.service.feed(answer(b"late"))
        assert split_answers(caller.sent) == [(200, b"late")]


@pytest.mark.parametrize("error", [errno.ECONNRESET, -1])
async def test_a_caller_who_has_left_altogether_is_noticed_within_a_second(error):
    async with vhost() as v:
        caller = await v.ask(get())
        caller.socket = Socket()
        caller.end()
        v.advance(LOOK_S)
        assert not caller.aborted
        caller.socket.error = error
        v.advance(LOOK_S)
        assert caller.aborted
        await turns()
        assert v.service.aborted


async def test_a_caller_who_ends_his_side_within_an_answer_is_not_probed():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(CHUNKED + chunk(b"one"))
        before = caller.sent
        caller.end()
        assert caller.sent == before


async def test_a_caller_who_ends_his_side_within_a_silent_answer_counts_as_gone():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(CHUNKED + chunk(b"one"))
        caller.end()
        v.advance(WATCHED_S - 0.01)
        assert not caller.aborted
        v.advance(0.02)
        assert caller.aborted


async def test_a_caller_who_ends_his_side_within_a_lively_answer_gets_the_rest():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(CHUNKED + chunk(b"one"))
        caller.end()
        v.advance(WATCHED_S / 2)
        v.service.feed(chunk(b"two"))
        v.advance(100)
        v.service.feed(chunk(b"three") + b"0\r\n\r\n")
        assert caller.sent.endswith(chunk(b"three") + b"0\r\n\r\n")
        assert caller.closed
        assert not caller.aborted


async def test_a_caller_who_was_answered_meanwhile_is_not_looked_at_any_more():
    async with vhost() as v:
        caller = await v.ask(get())
        caller.socket = Socket()
        caller.end()
        v.service.feed(answer(b"x"))
        caller.socket = None
        v.advance(WATCHED_S)
        assert not caller.aborted


async def test_a_caller_who_ends_his_side_while_a_work_connection_is_opened_is_served():
    async with vhost() as v:
        v.opening = asyncio.Event()
        caller = await v.ask(get())
        caller.end()
        v.opening.set()
        await turns()
        caller.take()
        v.service.feed(answer(b"x"))
        assert split_answers(caller.sent) == [(200, b"x")]


# -- the end of the server ----------------------------------------------------------------------


async def test_draining_closes_idle_callers_and_waits_for_the_busy():
    async with vhost() as v:
        idle, busy, partial = v.call(), await v.ask(get()), await v.ask(b"GET / HTTP/1.1\r\n")
        draining = asyncio.get_running_loop().create_task(v.frontend.drain())
        await turns()
        assert idle.closed
        assert not busy.closed
        assert not partial.closed
        assert not draining.done()
        v.service.feed(answer(b"done"))
        assert busy.closed
        assert b"Connection: close\r\n" in busy.sent
        partial.feed(f"Host: {HOST}\r\n\r\n".encode())
        await turns()
        v.service.feed(answer(b"too"))
        assert split_answers(partial.sent) == [(200, b"too")]
        await within(draining, 5, "the drain")


async def test_a_drain_lets_a_streamed_answer_finish():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(CHUNKED)
        draining = asyncio.get_running_loop().create_task(v.frontend.drain())
        await turns()
        v.service.feed(chunk(b"token"))
        assert not caller.closed
        v.service.feed(b"0\r\n\r\n")
        assert caller.closed
        await within(draining, 5, "the drain")


async def test_a_drain_waits_for_upgraded_connections():
    async with vhost() as v:
        caller = await v.ask(upgrade())
        v.service.feed(SWITCHED)
        draining = asyncio.get_running_loop().create_task(v.frontend.drain())
        await turns()
        assert not draining.done()
        caller.lose()
        v.service.lose()
        await within(draining, 5, "the drain")


async def test_draining_an_empty_frontend_is_done_at_once():
    async with vhost() as v:
        await within(v.frontend.drain(), 5, "the drain")


# -- tunnels ------------------------------------------------------------------------------------

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def upgrade():
    return get("/ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x")


async def test_an_upgraded_connection_becomes_a_pipe():
    async with vhost() as v:
        caller = await v.ask(upgrade() + b"early frame")
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in v.service.sent
        v.service.take()
        v.service.feed(SWITCHED + b"hello")
        assert caller.take().startswith(SWITCHED[:-2])
        assert v.service.take() == b"early frame"
        caller.feed(b"GET / is no request any more")
        v.service.feed(b"HTTP/1.1 500 neither")
        assert v.service.take() == b"GET / is no request any more"
        assert caller.take() == b"HTTP/1.1 500 neither"
        assert len(v.frontend) == 1
        caller.end()
        assert v.service.ended
        v.service.end()
        await turns()
        assert len(v.frontend) == 0


@pytest.mark.parametrize("who", ["caller", "service"])
async def test_the_end_of_a_pipe_is_the_end_of_both(who):
    async with vhost() as v:
        caller = await v.ask(upgrade())
        v.service.feed(SWITCHED)
        one, other = (caller, v.service) if who == "caller" else (v.service, caller)
        one.lose(ConnectionResetError())
        await turns()
        assert other.aborted
        assert len(v.frontend) == 0


async def test_an_upgrade_that_is_turned_down_is_an_answer_like_any_other():
    async with vhost() as v:
        caller = await v.ask(upgrade() + get("/next"))
        v.service.feed(answer(b"no", status="426 Upgrade Required"))
        await turns()
        v.service.feed(answer(b"next"))
        assert split_answers(caller.sent) == [(426, b"no"), (200, b"next")]


async def test_connect_becomes_a_pipe_after_a_2xx():
    async with vhost() as v:
        request = f"CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}:80\r\n\r\n".encode()
        caller = await v.ask(request + b"first bytes")
        v.service.take()
        v.service.feed(b"HTTP/1.1 200 Connection established\r\n\r\nhello")
        assert caller.take().endswith(b"\r\n\r\nhello")
        assert v.service.take() == b"first bytes"
        v.service.feed(b"more")
        assert caller.take() == b"more"
        caller.lose()
        v.service.lose()


async def test_a_pipe_whose_caller_had_ended_his_side_before_carries_that_on():
    async with vhost() as v:
        request = f"CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}:80\r\n\r\n".encode()
        caller = await v.ask(request + b"all of it")
        caller.end()
        v.service.take()
        v.service.feed(b"HTTP/1.1 200 Connection established\r\n\r\n")
        assert v.service.take() == b"all of it"
        assert v.service.ended
        v.service.feed(b"the answer")
        assert caller.sent.endswith(b"the answer")
        v.service.end()
        await turns()
        assert caller.closed
        assert len(v.frontend) == 0


async def test_connect_that_is_turned_down_is_an_answer_like_any_other():
    async with vhost() as v:
        request = f"CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}:80\r\n\r\n".encode()
        caller = await v.ask(request)
        v.service.feed(answer(b"no", status="403 Forbidden"))
        assert split_answers(caller.sent) == [(403, b"no")]
        assert not caller.closed
