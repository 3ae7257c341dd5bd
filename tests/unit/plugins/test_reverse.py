"""The reverse proxies without TLS on the user's side; what the exchange does has its own tests."""

from __future__ import annotations

import socket

import pytest

from pyfrp.errors import ConfigError
from pyfrp.plugins import base, reverse
from pyfrp.plugins.base import LogLimit
from pyfrp.plugins.reverse import ReversePlugin
from pyfrp.vhost import ends, exchange
from tests.support.backends import Exchange, HttpBackend
from tests.support.services import Pipe, ScriptBackend, running
from tests.support.waiting import until
from tests.unit.net.tls_pair import server_context
from tests.unit.plugins.scene import User, plugin, user

TOLD = (
    b"X-Forwarded-For: 192.0.2.1\r\nx-forwarded-host: h\r\nX-Forwarded-Proto: p\r\n"
    b"Forwarded: for=192.0.2.1\r\n"
)


def made(port: int, kind: str = "http2http", **options) -> ReversePlugin:
    found = plugin(type=kind, localAddr=f"127.0.0.1:{port}", **options)
    assert isinstance(found, ReversePlugin)
    return found


def get(path: str = "/hello", more: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: a.test\r\n%b\r\n" % (method, path.encode(), more)


async def heard(u: User, end: bytes) -> bytes:
    await until(lambda: u.got.endswith(end), f"{end!r}")
    got = u.got
    u.reader.data.clear()
    return got


@pytest.fixture
def dead() -> int:
    """A port where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


# -- what the backend sees ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "host", "fields"),
    [
        ("http2http", {}, b"a.test", b""),
        (
            "http2https",
            {},
            b"a.test",
            b"X-Forwarded-For: 192.0.2.1\r\nx-forwarded-host: h\r\nX-Forwarded-Proto: p\r\n",
        ),
        (
            "http2http",
            {"hostHeaderRewrite": "b.test:8", "requestHeaders": {"set": {"X-A": "1"}}},
            b"b.test:8",
            b"X-A: 1\r\n",
        ),
        (
            "http2http",
            {"requestHeaders": {"set": {"x-forwarded-for": "2"}}},
            b"a.test",
            b"x-forwarded-for: 2\r\n",
        ),
    ],
)
async def test_the_head_is_changed_as_configured(kind, options, host, fields, loop_kind):
    backend = HttpBackend()
    backend.tls = server_context() if kind == "http2https" else None
    p = made(backend.port, kind, **options)
    async with running(backend):
        async with user(p) as u:
            await u.says(get("/head", TOLD + b"X-A: 0\r\n"))
            kept = b"" if b"X-A" in fields else b"X-A: 0\r\n"
            await heard(u, b"GET /head HTTP/1.1\r\nHost: %b\r\n%b%b\r\n" % (host, kept, fields))
        p.rest()


# -- bodies ---------------------------------------------------------------------------------------


async def test_each_token_passes_alone_and_so_does_each_piece_of_an_upload(loop_kind):
    backend = HttpBackend()

    async def talk(x: Exchange) -> None:
        await x.start_chunked()
        async for piece in x.chunks():
            await x.chunk(piece.upper())
        await x.end_chunks()

    backend.on("/talk", talk)
    p = made(backend.port)
    async with running(backend), user(p) as u:
        await u.says(get("/talk", b"Transfer-Encoding: chunked\r\n", b"POST"))
        for word in (b"one", b"two", b"three"):
            await u.says(b"%x\r\n%b\r\n" % (len(word), word))
            await heard(u, b"%x\r\n%b\r\n" % (len(word), word.upper()))
        await u.says(b"0\r\n\r\n")
        await heard(u, b"0\r\n\r\n")
        p.rest()


async def test_connections_are_kept_on_both_sides_until_the_session_ends():
    backend = HttpBackend()
    p = made(backend.port)
    async with running(backend):
        for _ in range(2):
            async with user(p) as u:
                for _ in range(2):
                    await u.says(get())
                    await heard(u, b"hello")
        assert backend.opened == 1
        assert backend.live
        p.rest()
        await until(lambda: not backend.live, "the kept connection to close")


async def test_an_answer_that_ends_the_connection_arrives_whole(loop_kind):
    backend = HttpBackend()
    p = made(backend.port)
    async with running(backend):
        async with user(p) as u:
            await u.says(get("/hello", b"Connection: close\r\n"))
            assert (await u.hears_end()).endswith(b"hello")
            await u.done()
            assert not u.work.aborted
        p.rest()


async def test_a_kept_connection_ends_after_a_while(monkeypatch):
    monkeypatch.setattr(reverse, "SWEEP_S", 0.01)
    monkeypatch.setattr("pyfrp.vhost.upstream.IDLE_S", 0.03)
    backend = HttpBackend()
    p = made(backend.port)
    async with running(backend):
        async with user(p) as u:
            await u.says(get())
            await heard(u, b"hello")
        await until(lambda: not backend.live, "the kept connection to close")
        await until(lambda: p._sweeper is None, "nobody to look any more")


@pytest.mark.parametrize("kind", ["http2http", "http2https"])
async def test_a_user_that_leaves_ends_the_work_of_the_backend(kind, loop_kind):
    backend = HttpBackend()
    backend.tls = server_context() if kind == "http2https" else None
    async with running(backend), user(made(backend.port, kind)) as u:
        await u.says(get("/hang"))
        await backend.saw("/hang")
        u.end.abort()
        await until(lambda: not backend.live, "the backend's connection to close", 2)
        await u.done()
        assert u.closed == 1


async def test_an_upgrade_becomes_a_pipe(loop_kind):
    async def script(pipe: Pipe) -> None:
        await pipe.read_until(b"\r\n\r\n", 65536)
        await pipe.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n>"
        )
        while data := await pipe.read_some():
            await pipe.send(data)

    backend = ScriptBackend(script)
    async with running(backend), user(made(backend.port)) as u:
        await u.says(get("/", b"Connection: Upgrade\r\nUpgrade: x\r\n"))
        assert (await heard(u, b"\r\n\r\n>")).startswith(b"HTTP/1.1 101 ")
        await u.says(b"ping", b"ping")
        (carried,) = u.bridges
        assert not carried.at_rest()
        assert carried.carried() > 4
        u.end.write_eof()
        await u.done()


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http2http", "http2https"])
async def test_a_dead_backend_is_a_502_and_the_next_request_may_do_better(kind, dead):
    async with user(made(dead, kind)) as u:
        for _ in range(2):
            await u.says(get())
            got = await heard(u, b"</html>\n")
            assert got.startswith(b"HTTP/1.1 502 ")
            assert b"127.0.0.1" not in got
        assert u.log.has("connection refused", "warning")
        assert not u.task.done()


async def test_without_an_address_each_request_is_a_502():
    p = plugin(type="http2http")
    assert p.warnings() == ["plugin.localAddr is empty: each request is answered with 502"]
    async with user(p) as u:
        await u.says(get())
        assert (await heard(u, b"</html>\n")).startswith(b"HTTP/1.1 502 ")


async def test_a_backend_that_speaks_no_tls_is_a_502_that_says_so():
    async def script(pipe: Pipe) -> None:
        await pipe.read_some()
        await pipe.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    backend = ScriptBackend(script)
    async with running(backend), user(made(backend.port, "http2https")) as u:
        await u.says(get())
        assert (await heard(u, b"</html>\n")).startswith(b"HTTP/1.1 502 ")
        assert u.log.has("does not speak TLS", "warning")


async def test_a_backend_that_is_silent_in_tls_is_a_502_in_time(monkeypatch):
    monkeypatch.setattr("pyfrp.plugins.local.DIAL_S", 0.1)

    async def script(pipe: Pipe) -> None:
        await pipe.gone.wait()

    backend = ScriptBackend(script)
    async with running(backend), user(made(backend.port, "http2https")) as u:
        await u.says(get())
        assert (await heard(u, b"</html>\n")).startswith(b"HTTP/1.1 502 ")
        await until(lambda: not backend.live, "its connection to close")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\npart",
    ],
)
async def test_a_cut_answer_does_not_look_whole(answer):
    async def script(pipe: Pipe) -> None:
        await pipe.read_until(b"\r\n\r\n", 65536)
        await pipe.send(answer)

    backend = ScriptBackend(script)
    async with running(backend), user(made(backend.port)) as u:
        await u.says(get())
        await u.done()
        assert u.work.aborted
        assert u.log.has("answer cut", "warning")


async def test_a_crowd_of_failures_is_not_logged_one_by_one(dead, monkeypatch):
    monkeypatch.setattr(base.time, "monotonic", lambda: 5.0)
    p = made(dead)
    p.log_limit = LogLimit(2)
    async with user(p) as u:
        for _ in range(4):
            await u.says(get())
            await heard(u, b"</html>\n")
        assert len([line for line in u.log.lines if line[0] == "warning"]) == 2


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"\x16\x03\x01\x00\x00", 400),
        (get("/", b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", b"POST"), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70000, 431),
    ],
)
async def test_ambiguity_is_refused_and_goes_nowhere(data, status):
    backend = HttpBackend()
    async with running(backend), user(made(backend.port)) as u:
        await u.says(data)
        assert (await u.hears_end()).startswith(b"HTTP/1.1 %d " % status)
        await u.done()
        assert not backend.opened
        assert not [line for line in u.log.lines if line[0] != "debug"]


async def test_slow_heads_and_idle_connections_end(monkeypatch):
    for module in (ends, exchange):
        monkeypatch.setattr(module, "HEAD_S", 0.05)
    monkeypatch.setattr(reverse, "SWEEP_S", 0.02)
    p = made(1)
    async with user(p) as u:
        assert await u.hears_end() == b""
        await u.done()
    async with user(p) as u:
        await u.says(b"GET / HTTP/1.1\r\n")
        assert (await u.hears_end()).startswith(b"HTTP/1.1 408 ")
        await u.done()


# -- the client's own end -------------------------------------------------------------------------


async def test_only_a_connection_without_a_request_is_at_rest():
    backend = HttpBackend()
    p = made(backend.port)
    async with running(backend), user(p) as u:
        await u.says(get())
        await heard(u, b"hello")
        (carried,) = u.bridges
        assert carried.at_rest()
        assert carried.carried() == 1
        await u.says(get("/hang"))
        await backend.saw("/hang")
        assert not carried.at_rest()
        carried.close()
        assert not u.task.done()
    async with running(backend), user(p) as u:
        await u.says(get())
        await heard(u, b"hello")
        next(iter(u.bridges)).close()
        assert await u.hears_end() == b""
        p.rest()


async def test_a_connection_that_ends_before_it_is_served_is_let_go():
    u = User(made(1))
    u.end.abort()
    u.work.lose(None)
    await u.done()
    assert u.closed == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"localAddr": "a b"}, "plugin.localAddr 'a b' is not host:port"),
        ({"localAddr": "a:99999"}, "plugin.localAddr 'a:99999' is not host:port"),
        ({"localAddr": "x" * 70, "type": "http2https"}, "plugin.localAddr cannot be used: 'xxx"),
        ({"hostHeaderRewrite": "a/b"}, "not a host to rewrite to"),
        ({"requestHeaders": {"set": {"a b": "c"}}}, "not a header that can be set: 'a b'"),
        ({"requestHeaders": {"set": {"a": "c\r\nd: e"}}}, "not a header that can be set: 'a'"),
    ],
)
def test_what_cannot_work_ends_the_start(options, words):
    with pytest.raises(ConfigError) as caught:
        plugin(**{"type": "http2http", **options})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("localhost", ("localhost", 80)),
        (":81", ("127.0.0.1", 81)),
        ("[::1]:8", ("::1", 8)),
        ("a.test:8", ("a.test", 8)),
    ],
)
def test_addresses_are_read_as_go_does(address, place):
    p = plugin(type="http2http", localAddr=address)
    assert isinstance(p, ReversePlugin)
    assert (p._local._host, p._local._port) == place


def test_headers_without_effect_are_told():
    p = made(1, requestHeaders={"set": {"Content-Length": "1"}})
    assert p.warnings() == ["set headers that frame messages have no effect: Content-Length"]
