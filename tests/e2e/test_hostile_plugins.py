"""Plugins as a hostile user sees them: refused in clear words, and nobody else notices.

Waits that end by a deadline are in `tests/unit/plugins`, where deadlines are short.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.support.attack import MEMORY_KIB, Attacked, served_meanwhile
from tests.support.http import calling, request, trust
from tests.support.office import Office, office
from tests.support.ports import free_port
from tests.support.processes import Config, tcp_proxy
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SECRET = {"httpUser": "u", "httpPassword": "s3cret"}
LOCAL = "outside the root"
TLS = ("https2http", "tls2raw")
PORTS: dict[str, int] = {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    """A pair with every plugin, whose real user is served all the while."""
    directory = tmp_path_factory.mktemp("h")
    files = directory / "files"
    files.mkdir()
    (files / "a.txt").write_bytes(b"hello")
    (files / "loop").symlink_to("loop")
    (directory / "secret").write_text(LOCAL)
    api_port = free_port()
    api = f"127.0.0.1:{api_port}"
    plugins: dict[str, Config] = {
        "static_file": {"type": "static_file", "localPath": str(files)},
        "static_file_secret": {"type": "static_file", "localPath": str(files), **SECRET},
        "http_proxy": {"type": "http_proxy"},
        "http_proxy_secret": {"type": "http_proxy", **SECRET},
        "socks5": {"type": "socks5"},
        "socks5_secret": {"type": "socks5", "username": "u", "password": "s3cret"},
        "http2http": {"type": "http2http", "localAddr": api},
        "https2http": {"type": "https2http", "localAddr": api},
        "tls2raw": {"type": "tls2raw", "localAddr": api},
    }
    PORTS.update({name: free_port() for name in plugins})
    proxies = [tcp_proxy(name, 0, PORTS[name], plugin=plugins[name]) for name in plugins]
    env = {"STATE_DIRECTORY": str(directory / "state")}
    async with office(
        directory / "o", proxies=proxies, shared=True, env=env, api_port=api_port
    ) as made:
        client = made.pair.client
        assert await made.works()
        before = client.figures()
        client.reset_peak()
        async with served_meanwhile(Attacked(made, True)):
            yield made
        await until(lambda: client.figures().fds <= before.fds + 4, "the client's descriptors", 15)
        assert client.figures().peak_kib - before.rss_kib < MEMORY_KIB
        for word in ("Traceback", "Task exception", "internal error", "s3cret"):
            assert word not in client.log()


async def told(name: str, data: bytes, *, within_tls: bool = False, end: bool = False) -> bytes:
    """Everything that a user gets who says `data`."""
    async with calling(PORTS[name], tls=trust() if within_tls else None) as caller:
        await caller.send(data)
        if end:
            caller.half_close()
        return await caller.everything()


def head(first: str, *fields: str) -> bytes:
    return "\r\n".join([first, *fields, "", ""]).encode("latin-1")


def get(target: str, *fields: str, host: str = "a.test") -> bytes:
    return head(f"GET {target} HTTP/1.1", f"Host: {host}", *fields, "Connection: close")


def basic(pair: bytes, name: str = "Proxy-Authorization") -> str:
    return f"{name}: Basic {base64.b64encode(pair).decode()}"


# -- HTTP, wherever it is read --------------------------------------------------------------------

BAD_HEADS = [
    (head("GET / HTTP/1.1", "Host: a", "Content-Length: 1", "Transfer-Encoding: chunked"), 400),
    (head("GET / HTTP/1.1", "Host: a", "Content-Length: 1", "Content-Length: 2"), 400),
    (head("GET / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked, identity"), 400),
    (head("GET / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked"), 501),
    (head("GET / HTTP/1.1", "Host: a", "Host: b"), 400),
    (head("GET / HTTP/1.1"), 400),
    (head("GET / HTTP/1.1", "Host: a", "X : y"), 400),
    (head("GET / HTTP/1.1", "Host: a", "X: a\0b"), 400),
    (head("GET / HTTP/1.1", "Host: a", " folded"), 400),
    (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    (b"\x16\x03\x01\x00\x05hello", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (head("GET / HTTP/1.1", "Host: a", "X: " + "a" * 70_000), 431),
    (head("GET / HTTP/1.1", "Host: a", *["X: y"] * 200), 431),
    (head("GET /" + "a" * 40_000 + " HTTP/1.1", "Host: a"), 414),
]
SPEAKERS = ["static_file", "http_proxy", "http2http", "https2http"]


@pytest.mark.parametrize("name", SPEAKERS)
async def test_bad_heads_are_refused_and_go_nowhere(scene: Office, name: str) -> None:
    seen = len(scene.api.requests)

    async def one(data: bytes, status: int) -> None:
        async with calling(PORTS[name], tls=trust() if name in TLS else None) as caller:
            await caller.send(data)
            answer = await caller.answer()
            assert answer.status == status, data[:80]
            assert answer.get("connection") == "close"

    await all_of(one(*case) for case in BAD_HEADS)
    foreign = [r for r in scene.api.requests[seen:] if r.path != "/hello"]
    assert not foreign


@pytest.mark.parametrize("name", SPEAKERS)
async def test_a_crowd_of_unfinished_heads_keeps_nobody_out(scene: Office, name: str) -> None:
    async with AsyncExitStack() as crowd:
        for _ in range(40):
            caller = await crowd.enter_async_context(
                calling(PORTS[name], tls=trust() if name in TLS else None)
            )
            await caller.send(b"GET / HTTP/1.1\r\nHost: ")
        got = await told(name, get("/a.txt"), within_tls=name in TLS)
        assert got.startswith(b"HTTP/1.1 ")


# -- static_file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/../secret", 301),
        ("/..%2fsecret", 400),
        ("/%2e%2e/secret", 301),
        ("/%2e%2e%2fsecret", 400),
        ("/./../../secret", 301),
        ("//secret", 301),
        ("/..\\secret", 404),
        ("/%5c..%5csecret", 404),
        ("/a.txt%00.html", 400),
        ("/%c0%ae%c0%ae/secret", 404),
        ("/....//secret", 301),
        ("/loop", 500),
        ("/a.txt/../../secret", 301),
        ("/secret", 404),
    ],
)
async def test_nothing_outside_the_root_is_served(scene: Office, target: str, status: int) -> None:
    for method in ("GET", "HEAD"):
        data = head(f"{method} {target} HTTP/1.1", "Host: a.test", "Connection: close")
        got = await told("static_file", data)
        assert got.startswith(b"HTTP/1.1 %d " % status)
        assert LOCAL.encode() not in got


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ("X: y", 401),
        (basic(b"u:wrong", "Authorization"), 401),
        (basic(b"u:s3cre", "Authorization"), 401),
        ("Authorization: Basic ====", 401),
        ("Authorization: Bearer s3cret", 401),
        (basic(b"u:s3cret", "Proxy-Authorization"), 401),
        (basic(b"u:s3cret", "Authorization"), 200),
    ],
)
async def test_files_are_only_for_those_with_the_password(
    scene: Office, field: str, status: int
) -> None:
    got = await told("static_file_secret", get("/a.txt", field))
    assert got.startswith(b"HTTP/1.1 %d " % status)


# -- http_proxy -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("http_proxy", get("/hello"), 400),
        ("http_proxy", get("http://b.test@a.test/"), 400),
        ("http_proxy", get("https://a.test/"), 400),
        ("http_proxy", get("file:///etc/passwd"), 400),
        ("http_proxy", get("http://a.test\\@b.test/"), 400),
        ("http_proxy", head("CONNECT a.test HTTP/1.1", "Host: a.test"), 400),
        ("http_proxy", head("CONNECT a.test:99999 HTTP/1.1", "Host: a.test:99999"), 400),
        ("http_proxy_secret", get("http://127.0.0.1:1/", host="127.0.0.1:1"), 407),
        ("http_proxy_secret", head("CONNECT 127.0.0.1:1 HTTP/1.1", "Host: 127.0.0.1:1"), 407),
        (
            "http_proxy_secret",
            get("http://127.0.0.1:1/", basic(b"u:x"), basic(b"u:s3cret"), host="127.0.0.1:1"),
            400,
        ),
        (
            "http_proxy_secret",
            get("http://127.0.0.1:1/", basic(b"u:s3cret", "Authorization"), host="127.0.0.1:1"),
            407,
        ),
    ],
)
async def test_the_proxy_is_open_for_nothing_it_should_not_do(
    scene: Office, name: str, data: bytes, status: int
) -> None:
    got = await told(name, data)
    assert got.startswith(b"HTTP/1.1 %d " % status)


async def test_the_proxy_goes_where_the_target_says_and_not_where_host_does(scene: Office) -> None:
    place = f"127.0.0.1:{scene.api.port}"
    got = await told("http_proxy", get(f"http://{place}/hello", host="127.0.0.1:1"))
    assert got.startswith(b"HTTP/1.1 200 ")
    got = await told("http_proxy", head(f"CONNECT {place} HTTP/1.1", "Host: 127.0.0.1:1"))
    assert got.startswith(b"HTTP/1.1 200 ")


async def test_a_second_request_cannot_hide_in_the_body_of_the_first(scene: Office) -> None:
    place = f"127.0.0.1:{scene.api.port}"
    hidden = get("/hidden")
    for name, target in (("http_proxy", f"http://{place}/hash"), ("http2http", "/hash")):
        got = await told(
            name, request(target, place, "POST", [("Connection", "close")], body=hidden)
        )
        assert b'"size": %d' % len(hidden) in got
    assert not scene.api.seen("/hidden")


# -- socks5 ---------------------------------------------------------------------------------------

HELLO = b"\x05\x01\x00"


@pytest.mark.parametrize(
    ("name", "data", "answer"),
    [
        ("socks5", b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b""),
        ("socks5", b"GET / HTTP/1.1\r\n\r\n", b""),
        ("socks5", b"\x05\x00", b"\x05\xff"),
        ("socks5", b"\x05\xff" + b"\x02" * 255, b"\x05\xff"),
        ("socks5", HELLO + b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x07"),
        ("socks5", HELLO + b"\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x07"),
        ("socks5", HELLO + b"\x05\x01\x00\x09\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x08"),
        ("socks5", HELLO + b"\x05\x01\x00\x03\x00\x00\x50", b"\x05\x00\x05\x04"),
        ("socks5", HELLO + b"\x05\x01\x00\x03\x03a\x00b\x00\x50", b"\x05\x00\x05\x04"),
        ("socks5", HELLO + b"\x05\x01\x00\x03\x02\r\n\x00\x50", b"\x05\x00\x05\x04"),
        ("socks5", HELLO + b"\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00"),
        ("socks5_secret", HELLO, b"\x05\xff"),
        ("socks5_secret", b"\x05\x01\x02\x01\x01u\x05wrong", b"\x05\x02\x01\x01"),
        ("socks5_secret", b"\x05\x01\x02\x01\x00\x00", b"\x05\x02\x01\x01"),
        ("socks5_secret", b"\x05\x01\x02\x05\x01\x00\x01", b"\x05\x02"),
    ],
)
async def test_malformed_socks_is_refused_as_the_standard_says(
    scene: Office, name: str, data: bytes, answer: bytes
) -> None:
    got = await told(name, data)
    assert got[: len(answer)] == answer
    assert len(got) in (len(answer), 12)


# -- TLS ------------------------------------------------------------------------------------------

HELLO_START = bytes.fromhex("16030100c8010000c40303")


@pytest.mark.parametrize("name", TLS)
async def test_what_is_no_handshake_is_turned_away(scene: Office, name: str) -> None:
    async def one(data: bytes) -> None:
        got = await told(name, data, end=True)
        assert got == b"" or got[:1] == b"\x15" or got.startswith(b"HTTP/1.0 400 "), data[:20]

    jobs = [b"", b"\0" * 5000, b"\x16" * 5000, b"\x17\x03\x03\x00\x01x", get("/")]
    jobs += [HELLO_START + bytes(range(size % 256)) for size in (0, 1, 100, 200, 255)]
    jobs += [b"\x16\x03\x01\x40\x00\x01\x00\xff\xff" + bytes(20_000)]
    await all_of(one(data) for data in jobs)


@pytest.mark.parametrize("name", TLS)
async def test_a_crowd_of_slow_handshakes_keeps_nobody_out(scene: Office, name: str) -> None:
    async with AsyncExitStack() as crowd:
        for number in range(100):
            caller = await crowd.enter_async_context(calling(PORTS[name]))
            await caller.send(HELLO_START[: number % 11])
        got = await asyncio.wait_for(told(name, get("/hello"), within_tls=True), 3)
        assert got.endswith(b"hello")


async def test_a_handshake_that_is_broken_off_again_and_again_costs_nothing(scene: Office) -> None:
    async def one(name: str) -> None:
        async with calling(PORTS[name], tls=trust()) as caller:
            await caller.reset()

    for _ in range(2):
        await all_of(one(name) for name in TLS * 10)
    for name in TLS:
        assert (await told(name, get("/hello"), within_tls=True)).endswith(b"hello")
