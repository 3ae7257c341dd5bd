"""http_proxy: requests to anywhere and tunnels, and whose fault it is when they fail."""

from __future__ import annotations

import asyncio
import base64
import socket

import pytest

from pyfrp.plugins import http_proxy, http_session
from tests.support.services import EchoBackend, Pipe, ScriptBackend, running
from tests.support.waiting import until
from tests.unit.plugins.scene import plugin, user

SECRET = {"httpUser": "u", "httpPassword": "s3cret"}


def made(**options):
    return plugin(type="http_proxy", **options)


def basic(pair: str) -> bytes:
    return b"Proxy-Authorization: Basic " + base64.b64encode(pair.encode()) + b"\r\n"


def get(port: int, more: bytes = b"", method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    head = b"%b http://127.0.0.1:%d/x HTTP/%b\r\nHost: 127.0.0.1:%d\r\n%b\r\n"
    return head % (method, port, version, port, more)


def connect(port: int, more: bytes = b"") -> bytes:
    return b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%b\r\n" % (port, port, more)


def answering(answer: bytes, *, close: bool = True):
    """A server that notes what it gets, and answers with these bytes when it has a head."""
    heads: list[bytes] = []

    async def script(pipe: Pipe) -> None:
        heads.append(await pipe.read_until(b"\r\n\r\n", 65536))
        await pipe.send(answer)
        if not close:
            await pipe.gone.wait()

    backend = ScriptBackend(script)
    return backend, heads


SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: 3\r\nX-A: 1\r\n\r\nhello"


async def test_requests_follow_each_other_on_one_connection(loop_kind):
    server, heads = answering(SIZED)
    async with running(server), user(made()) as u:
        await until(lambda: u.bridges, "the conversation")
        (session,) = u.bridges
        assert session.at_rest()
        for count in (1, 2):
            await u.says(get(server.port, b"Proxy-Connection: keep-alive\r\n"))
            await until(lambda n=count: u.got.count(b"hello") == n, "the answer")
        assert (
            heads
            == [b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % server.port]
            * 2
        )
        assert b"Keep-Alive" not in u.got
        await until(session.at_rest, "rest")
        assert session.carried() > 200
        session.close()
        await u.done()


async def test_pipelined_requests_are_answered_in_order():
    server, heads = answering(SIZED)
    async with running(server), user(made()) as u:
        await u.says(get(server.port) + get(server.port, b"Connection: close\r\n"))
        got = await u.hears_end()
        assert got.count(b"hello") == 2
        assert got.endswith(b"hello")
        assert len(heads) == 2


@pytest.mark.parametrize(
    ("answer", "version", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nall", b"1.1", b"3\r\nall\r\n0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\nall", b"1.0", b"all"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", b"1.0", b"a"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED, b"1.0", b"hello"),
    ],
)
async def test_every_framing_arrives_as_the_caller_can_read_it(answer, version, body):
    server, _ = answering(answer)
    async with running(server), user(made()) as u:
        await u.says(get(server.port, b"Connection: close\r\n", version=version))
        head, _, rest = (await u.hears_end()).partition(b"\r\n\r\n")
        assert rest == body
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert (b"Transfer-Encoding" in head) == (version == b"1.1")


async def test_a_body_streams_up_while_the_answer_streams_down(loop_kind):
    async def script(pipe: Pipe) -> None:
        await pipe.read_until(b"\r\n\r\n", 65536)
        await pipe.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await pipe.send(await pipe.read_until(b"\r\n", 100))
            await pipe.send(await pipe.read_until(b"\r\n", 100))
        await pipe.send(await pipe.read_until(b"0\r\n\r\n", 100))

    async with running(server := ScriptBackend(script)), user(made()) as u:
        await u.says(get(server.port, b"Transfer-Encoding: chunked\r\n", b"POST"))
        await until(lambda: b"\r\n\r\n" in u.got, "the head")
        u.reader.data.clear()
        for piece in (b"1\r\na\r\n", b"2\r\nbc\r\n", b"3\r\ndef\r\n"):
            await u.says(piece, piece)
        await u.says(b"0\r\n\r\n", b"0\r\n\r\n")
        # When the answer began, nobody could know whether the request would end.
        assert await u.hears_end() == b""


async def test_a_body_that_ends_before_the_answer_leaves_the_connection_of_use():
    server, _ = answering(SIZED)
    async with running(server), user(made()) as u:
        await u.says(get(server.port, b"Content-Length: 3\r\n", b"POST") + b"abc")
        await u.says(get(server.port, b"Expect: x\r\n"))
        await until(lambda: b"hello" in u.got, "the answer")
        assert b"HTTP/1.1 417 " in await u.hears_end()


async def test_a_slow_server_holds_the_upload_back_and_a_slow_user_the_answer():
    async def script(pipe: Pipe) -> None:
        pipe.transport.pause_reading()
        await pipe.gone.wait()

    async with running(server := ScriptBackend(script)), user(made()) as u:
        await u.says(get(server.port, b"Content-Length: 90000000\r\n", b"POST"))

        def held() -> bool:
            if not u.reader.choked:
                u.end.write(bytes(65536))
            return u.reader.choked and u.work.paused

        await until(held, "the caller to be told to wait", step_s=0)

    async def endless(pipe: Pipe) -> None:
        await pipe.read_until(b"\r\n\r\n", 65536)
        await pipe.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")
        while True:
            await pipe.send(bytes(65536))

    async with running(server := ScriptBackend(endless)), user(made()) as u:
        u.end.pause_reading()
        await u.says(get(server.port))
        await until(lambda: u.work._choked, "the answer to be held back")


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_user_that_leaves_ends_the_work_at_the_server(how, loop_kind):
    left = asyncio.Event()

    async def script(pipe: Pipe) -> None:
        await pipe.read_until(b"\r\n\r\n", 65536)
        while await pipe.read_some():
            pass
        left.set()

    async with running(server := ScriptBackend(script)), user(made()) as u:
        await u.says(get(server.port))
        await until(lambda: server.live, "the server's connection")
        getattr(u.end, how)()
        await asyncio.wait_for(left.wait(), 5)
        await u.done()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\npart",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
    ],
)
async def test_a_cut_answer_does_not_look_whole(answer):
    server, _ = answering(answer)
    async with running(server), user(made()) as u:
        await u.says(get(server.port))
        await u.done()
        assert u.work.aborted


@pytest.mark.parametrize(
    "answer",
    [b"", b"220 hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", b"HTTP/1.1 101 X\r\n\r\n",
     b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"],
)  # fmt: skip
async def test_a_server_without_an_answer_is_told_by_a_500_as_in_frp(answer):
    server, _ = answering(answer)
    async with running(server), user(made()) as u:
        await u.says(get(server.port))
        assert (await u.hears_end()).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        await u.done()
        assert u.log.has("http_proxy: 127.0.0.1:", "warning")


async def test_a_server_that_is_not_there_is_a_500_and_for_a_tunnel_a_400():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        async with user(made()) as u:
            await u.says(get(port))
            await until(lambda: b"refused\n" in u.got, "the answer")
            assert u.got.startswith(b"HTTP/1.1 500 ")
            await u.says(connect(port))
            got = await u.hears_end()
            assert b"HTTP/1.1 400 Bad Request\r\n" in got
            assert u.log.has("connection refused", "warning")


async def test_a_tunnel_carries_what_was_sent_ahead(loop_kind):
    echo = EchoBackend()
    async with running(echo), user(made()) as u:
        await u.says(connect(echo.port) + b"ahead", b"HTTP/1.1 200 OK\r\n\r\nahead")
        await u.done()
        assert len(u.bridges) == 1
        await u.says(b"more", b"more")
        u.end.write_eof()
        assert await u.hears_end() == b""
        await until(lambda: u.closed == 2, "the bridge to close")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        basic("u:wrong"),
        basic("x:s3cret"),
        basic("u"),
        b"Proxy-Authorization: Basic !!\r\n",
        b"Proxy-Authorization: Bearer s3cret\r\n",
        # Credentials for the server at the far end are none for this one.
        basic("u:s3cret").removeprefix(b"Proxy-"),
    ],
)
async def test_without_the_password_nothing_is_asked_anywhere(said, monkeypatch):
    monkeypatch.setattr(http_proxy, "WRONG_PASSWORD_S", 0.0)
    server, heads = answering(SIZED)
    async with running(server):
        async with user(made(**SECRET)) as u:
            await u.says(get(server.port, said))
            await until(lambda: b"\r\n\r\n" in u.got, "the answer")
            assert u.got.startswith(b"HTTP/1.1 407 Proxy Authentication Required\r\n")
            assert b"\r\nProxy-Authenticate: Basic\r\n" in u.got
            assert b"\r\nContent-Length: 0\r\n" in u.got
            # The same connection may try again.
            await u.says(get(server.port, basic("u:s3cret")))
            await until(lambda: b"hello" in u.got, "the second answer")
        async with user(made(**SECRET)) as u:
            await u.says(connect(server.port, said))
            got = await u.hears_end()
            assert got.startswith(b"HTTP/1.1 407 Not authorized\r\n")
            assert b"\r\nConnection: close\r\n" in got
        assert len(heads) == 1
        assert b"Authorization" not in heads[0]


@pytest.mark.parametrize("host", [b"Host: other.test\r\n", b""])
async def test_the_target_decides_whatever_host_says(host):
    server, heads = answering(SIZED)
    async with running(server), user(made()) as u:
        await u.says(b"GET http://127.0.0.1:%d/x HTTP/1.1\r\n%b\r\n" % (server.port, host))
        await until(lambda: b"hello" in u.got, "the answer")
        assert heads[0].startswith(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % server.port)
        assert b"other" not in heads[0]
    async with running(echo := EchoBackend()), user(made()) as u:
        await u.says(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n%b\r\n" % (echo.port, host))
        await until(lambda: b"\r\n\r\n" in u.got, "the answer")
        assert u.got.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
         b"Content-Length: 1\r\n\r\n", 400),
        (b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\nHost: a\n\n", 400),
        (b"\x16\x03\x01\x00\x00", 400),
        (b"GET http://a/ HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70000, 431),
    ],
)  # fmt: skip
async def test_ambiguity_is_refused_and_goes_nowhere(data, status):
    async with user(made()) as u:
        await u.says(data)
        assert (await u.hears_end()).startswith(b"HTTP/1.1 %d " % status)
        await u.done()


async def test_a_bad_body_is_the_callers_fault_and_reaches_no_end():
    server, _ = answering(b"", close=False)
    async with running(server), user(made()) as u:
        await u.says(get(server.port, b"Transfer-Encoding: chunked\r\n", b"POST"))
        await until(lambda: server.live, "the server's connection")
        await u.says(b"zz\r\n")
        assert (await u.hears_end()).startswith(b"HTTP/1.1 400 ")


async def test_slow_heads_and_idle_connections_end(monkeypatch):
    monkeypatch.setattr(http_session, "HEAD_S", 0.05)
    monkeypatch.setattr(http_session, "IDLE_S", 0.05)
    async with user(made()) as u:
        assert await u.hears_end() == b""
        await u.done()
    async with user(made()) as u:
        await u.says(b"GET http://a/ HTTP/1.1\r\n")
        assert (await u.hears_end()).startswith(b"HTTP/1.1 408 ")
        await u.done()
