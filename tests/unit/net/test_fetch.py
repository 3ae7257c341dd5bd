from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.auth.outproxy import EnvironmentProxies, always
from pyfrp.config.outproxy import DEFAULT_PORTS
from pyfrp.net import fetch as module
from pyfrp.net.certs import trusting_context
from pyfrp.net.fetch import Fetcher, FetchError, Place, read_url
from tests.support.identity import loopback_pem
from tests.support.waiting import within

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HOST = "127.0.0.1"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    path = tmp_path / "pair.pem"
    path.write_bytes(loopback_pem())
    return str(path)


@pytest.fixture
def tls(ca_file: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file)
    return context


@pytest.fixture
def trusting(ca_file: str) -> ssl.SSLContext:
    return trusting_context(ca_file, "auth.oidc.trustedCaFile")


@asynccontextmanager
async def listening(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Have `talk` serve each connection; its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        try:
            await talk(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # Whoever called is gone, or the test is over.
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


class Site:
    """Answers each request with the same bytes, and keeps the requests."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heads: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")),
            0,
        )
        self.heads.append((head + await reader.readexactly(length)).decode())
        writer.write(self.answer)
        await writer.drain()


def reply(body: bytes = b"{}", more: str = "", status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: Application/JSON; x=y\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def failure(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(FetchError) as caught:
        await fetcher.get(url)
    assert "hush" not in str(caught.value)
    return str(caught.value)


# -- the exchange -------------------------------------------------------------------------------


async def test_a_get_and_a_post(loop_kind: str) -> None:
    site = Site(reply(b'{"a":1}'))
    async with listening(site) as port:
        fetcher = Fetcher()
        answer = await fetcher.get(f"http://{HOST}:{port}/a/b?c=%20d")
        assert (answer.status, answer.kind, answer.body) == (200, "application/json", b'{"a":1}')
        await fetcher.post(f"http://{HOST}:{port}", b"x=1", {"Authorization": "Basic hush"})
    get, post = site.heads
    assert get.startswith(f"GET /a/b?c=%20d HTTP/1.1\r\nHost: {HOST}:{port}\r\n")
    assert "Connection: close\r\n" in get
    assert post.startswith("POST / HTTP/1.1\r\n")
    assert "Content-Type: application/x-www-form-urlencoded\r\n" in post
    assert post.endswith("Authorization: Basic hush\r\nContent-Length: 3\r\n\r\nx=1")


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"hello"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b"hello"),
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        CHUNKED + b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n",
        reply(b"hello") + b"and more that nobody asked for",
    ],
)
async def test_a_body_may_be_framed_in_any_way(answer: bytes) -> None:
    async with listening(Site(answer)) as port:
        assert (await Fetcher().get(f"http://{HOST}:{port}/")).body == b"hello"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhush", "cut its answer off"),
        (CHUNKED + b"5\r\nhush", "cut its answer off"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP: "),
        (CHUNKED + b"hush", "is malformed: "),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_100_000, "is longer than 1048576 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 1_100_000, "is longer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "does not speak HTTP: "),
    ],
)
async def test_answers_that_are_none_are_told(answer: bytes, words: str) -> None:
    async with listening(Site(answer)) as port:
        text = await failure(Fetcher(), f"http://{HOST}:{port}/?k=hush")
        assert f"http://{HOST}:{port}" in text
        assert words in text


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(nothing) as port:
        began = time.monotonic()
        text = await failure(Fetcher(timeout_s=0.2), f"http://{HOST}:{port}/hush")
        assert text == f"no answer of http://{HOST}:{port} within 0.2 s"
        assert time.monotonic() - began < 2


async def test_a_server_that_drips_is_given_up_too() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with listening(drip) as port:
        assert "within 0.2 s" in await failure(Fetcher(timeout_s=0.2), f"http://{HOST}:{port}/")


async def test_a_cancelled_exchange_leaves_nothing_open() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        with contextlib.suppress(OSError):
            await reader.read()
        ended.set()

    async with listening(wait) as port:
        task = asyncio.get_running_loop().create_task(Fetcher().get(f"http://{HOST}:{port}/"))
        await within(asked.wait(), 5, "the request")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await within(ended.wait(), 5, "the end of the connection")


# -- redirections -------------------------------------------------------------------------------


async def test_a_get_follows_redirections_and_a_post_does_not() -> None:
    there = Site(reply(b"there"))
    async with listening(there) as port:
        here = Site(reply(b"", f"Location: http://{HOST}:{port}/keys\r\n", "307 Elsewhere"))
        async with listening(here) as first:
            assert (await Fetcher().get(f"http://{HOST}:{first}/")).body == b"there"
            assert there.heads[0].startswith("GET /keys ")
            answer = await Fetcher().post(f"http://{HOST}:{first}/", b"secret=hush", {})
            assert answer.status == 307
    assert len(there.heads) == 1


async def test_redirections_end_and_lead_to_no_less_safety(
    tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with listening(Site(reply(b"", "location: /again\r\n", "302 X"))) as port:
        text = await failure(Fetcher(), f"http://{HOST}:{port}/")
        assert text == f"http://{HOST}:{port} sends us on and on"
    async with listening(Site(reply(b"", "", "302 X"))) as port:
        assert "elsewhere" in await failure(Fetcher(), f"http://{HOST}:{port}/")
    async with listening(Site(reply(b"", "location: http://x/\r\n", "301 X")), tls) as port:
        text = await failure(Fetcher(context=trusting), f"https://{HOST}:{port}/")
        assert text.endswith("sends us elsewhere, to no https URL")
    async with listening(Site(reply(b"", "location: ftp://x/\r\n", "301 X"))) as port:
        text = await failure(Fetcher(), f"http://{HOST}:{port}/")
        assert text == "a URL cannot be used: it must begin with http:// or https://"


# -- TLS ----------------------------------------------------------------------------------------


async def test_tls_is_verified_unless_told_otherwise(
    tls: ssl.SSLContext, trusting: ssl.SSLContext, loop_kind: str
) -> None:
    async with listening(Site(reply(b"sealed")), tls) as port:
        url = f"https://{HOST}:{port}/"
        assert (await Fetcher(context=trusting).get(url)).body == b"sealed"
        anybody = trusting_context("", "auth.oidc.trustedCaFile")
        assert (await Fetcher(context=anybody).get(url)).body == b"sealed"
        text = await failure(Fetcher(), url)
        assert text.startswith(f"https://{HOST}:{port}: its certificate is not trusted: ")
        assert "transport.tls" not in text

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply())
        await reader.read()

    async with listening(hasty) as port:
        text = await failure(Fetcher(context=trusting), f"https://{HOST}:{port}/")
        assert text == f"https://{HOST}:{port}: TLS handshake failed: wrong version number"


# -- proxies ------------------------------------------------------------------------------------


class Proxy:
    """An HTTP and SOCKS5 proxy that sends everybody to one port, and notes what was asked."""

    def __init__(self, target: int, secret: str = "", answer: bytes = b"") -> None:
        self.target = target
        self.secret = secret
        self.answer = answer
        self.asked: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(1)
        if first == b"\x05":
            await self._socks(reader, writer)
            return
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head.partition("\r\n")[0])
        basic = base64.b64encode(self.secret.encode()).decode()
        if self.secret and f"Proxy-Authorization: Basic {basic}\r\n" not in head:
            asks = "Proxy-Authenticate: Basic realm=x\r\nConnection: close\r\n"
            writer.write(reply(b"", asks, "407 No"))
        elif self.answer:
            writer.write(self.answer)
        elif head.startswith("CONNECT"):
            writer.write(b"HTTP/1.1 200 Go ahead\r\n\r\n")
            await self._join(reader, writer)
        else:
            await self._join(reader, writer, head.encode())

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        if self.answer:
            writer.write(self.answer)
            return
        wanted = 2 if self.secret else 0
        writer.write(bytes((5, wanted if wanted in methods else 255)))
        if self.secret:
            await reader.readexactly(1)
            given = [await reader.readexactly((await reader.readexactly(1))[0]) for _ in range(2)]
            right = b":".join(given).decode() == self.secret
            writer.write(b"\x01\x00" if right else b"\x01\x01")
            if not right:
                return
        kind = (await reader.readexactly(4))[3]
        size = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
        host = await reader.readexactly(size)
        await reader.readexactly(2)
        self.asked.append(f"{kind} {host.decode() if kind == 3 else ipaddress.ip_address(host)}")
        if self.target == 0:
            writer.write(b"\x05\x05\x00\x01" + bytes(6))
            return
        writer.write(b"\x05\x00\x00\x03\x01x\x00\x00")
        await self._join(reader, writer)

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = b""
    ) -> None:
        far_reader, far = await asyncio.open_connection(HOST, self.target)
        far.write(first)

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        try:
            await asyncio.gather(carry(reader, far), carry(far_reader, writer))
        finally:
            far.close()
            await far.wait_closed()


def by(url: str, context: ssl.SSLContext | None = None) -> Fetcher:
    return Fetcher(context=context, find_proxy=always("the.key", url))


@pytest.mark.parametrize("scheme", sorted(DEFAULT_PORTS.keys() - {"ntlm"}))
@pytest.mark.parametrize("sealed", [False, True], ids=["http", "https"])
async def test_each_kind_of_proxy_leads_there(
    scheme: str, sealed: bool, tls: ssl.SSLContext, trusting: ssl.SSLContext, loop_kind: str
) -> None:
    site = Site(reply(b"there"))
    async with listening(site, tls if sealed else None) as target:
        proxy = Proxy(target, "me:hu:sh")
        async with listening(proxy, tls if scheme == "https" else None) as port:
            fetcher = by(f"{scheme}://me:hu%3ash@{HOST}:{port}", trusting)
            url = f"http{'s' if sealed else ''}://localhost:1/keys"
            assert (await fetcher.get(url)).body == b"there"
        if scheme.startswith("socks"):
            assert proxy.asked == ["3 localhost"]
        elif sealed:
            # First without a password, to see what the strongest is that it takes.
            assert proxy.asked == ["CONNECT localhost:1 HTTP/1.1"] * 2
        else:
            assert proxy.asked == ["GET http://localhost:1/keys HTTP/1.1"]
        assert ("Proxy-Authorization" in site.heads[0]) is (
            not sealed and not scheme.startswith("socks")
        )


@pytest.mark.parametrize("host", ["10.1.2.3", "[fe80::1]"])
async def test_addresses_are_given_to_socks_as_such(host: str) -> None:
    async with listening(Site(reply())) as target:
        proxy = Proxy(target)
        async with listening(proxy) as port:
            await by(f"socks5://{HOST}:{port}").get(f"http://{host}/")
        assert proxy.asked == [f"{4 if ':' in host else 1} {host.strip('[]')}"]


# Most of what a proxy can do wrong is in test_via.py.
P = f"the proxy {HOST}:PORT"
ASKS = "407 No\r\nProxy-Authenticate: "
REFUSALS: list[tuple[str, str, Proxy, str]] = [
    (
        "http",
        "https",
        Proxy(1, answer=reply(b"", "", f"{ASKS}Basic realm=x")),
        f"{P} asks for a user and a password (407, it offers Basic): write them into the.key, as "
        "in http://USER:PASSWORD@127.0.0.1:PORT",
    ),
    (
        "http",
        "http",
        Proxy(1, answer=reply(b"", "", f"{ASKS}Digest nonce=x")),
        f"{P} asks for a user and a password (407, it offers Digest): write them into the.key, as "
        "in http://USER:PASSWORD@127.0.0.1:PORT",
    ),
    (
        "http",
        "https",
        Proxy(1, answer=reply(b"", "", "403 No")),
        f"{P} refuses a tunnel to x:443 (403 No): have its administrators allow CONNECT to x:443",
    ),
    (
        "http",
        "https",
        Proxy(1, answer=b"\x00"),
        f"{P} answers CONNECT with something else than HTTP (it is not HTTP): it seems to be a "
        "SOCKS proxy: write socks5:// for its scheme",
    ),
    ("http", "http", Proxy(1, answer=b"SSH-2\r\n\r\n"), "http://x does not speak HTTP: "),
    ("socks5", "http", Proxy(0), f"{P} cannot reach x:80 (reply 5: connection refused): check"),
    ("socks5", "http", Proxy(1, answer=b"HT"), "does not answer in SOCKS5"),
    ("socks5", "http", Proxy(1, answer=b"\x05\xff"), "write them into the.key, as in socks5://"),
    ("socks5", "http", Proxy(1, answer=b"\x05"), "without an answer to the request for x:80"),
]


@pytest.mark.parametrize(("scheme", "wanted", "proxy", "words"), REFUSALS)
async def test_proxies_that_refuse_are_named(
    scheme: str, wanted: str, proxy: Proxy, words: str
) -> None:
    async with listening(proxy) as port:
        text = await failure(by(f"{scheme}://{HOST}:{port}"), f"{wanted}://x/hush")
        assert words in text.replace(str(port), "PORT")
        assert "transport.proxyURL" not in text
        assert "serverAddr" not in text


async def test_a_wrong_password_is_told_without_it_and_not_tried_twice() -> None:
    async with listening(Proxy(1, "me:right")) as port:
        text = await failure(by(f"socks5://me:hush@{HOST}:{port}"), "http://x/")
        assert text.startswith(
            f"the proxy {HOST}:{port} does not accept the user and the password of the.key: "
        )
    proxy = Proxy(1, answer=reply(b"", "Connection: close\r\n", f"{ASKS}Basic realm=x"))
    async with listening(proxy) as port:
        for wanted in ("http", "https"):
            text = await failure(by(f"http://me:hush@{HOST}:{port}"), f"{wanted}://x/")
            assert "does not accept the user and the password of the.key (407, Basic): " in text
        assert proxy.asked[0] == "GET http://x/ HTTP/1.1"
        assert set(proxy.asked[1:]) == {"CONNECT x:443 HTTP/1.1"}
    text = await failure(by(f"http://me:hush@{HOST}:{port}"), "http://x/")
    assert text == (
        f"the proxy {HOST}:{port} cannot be reached: dial tcp {HOST}:{port}: connection refused; "
        "check the.key"
    )


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_silent_is_told_before_all_the_time_is_over(scheme: str) -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(nothing) as port:
        fetcher = Fetcher(find_proxy=always("the.key", f"{scheme}://{HOST}:{port}"), timeout_s=0.5)
        text = await failure(fetcher, "https://x/")
        assert text.startswith((f"the proxy {HOST}:{port} takes", f"TLS with the proxy {HOST}"))
        assert "within 0.4 s" in text


async def test_a_proxy_that_wants_more_than_basic_gets_it_in_a_tunnel() -> None:
    site = Site(reply(b"there"))
    proofs = []

    async def proud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            proofs.append(f"{head.split()[0]} {head.partition('Authorization: ')[2].split()[:1]}")
            if "Authorization: Digest " in head:
                writer.write(b"HTTP/1.1 200 Go ahead\r\n\r\n")
                await site(reader, writer)
                return
            more = 'Proxy-Authenticate: Digest realm="x", nonce="y", qop="auth"\r\n'
            writer.write(reply(b"", more, "407 No"))

    async with listening(proud) as port:
        assert (await by(f"http://me:hush@{HOST}:{port}").get("http://x/")).body == b"there"
    assert proofs == ["GET ['Basic']", "CONNECT []", "CONNECT ['Digest']"]


async def test_the_environment_names_proxies_for_all_but_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(reply())
    fetcher = Fetcher(find_proxy=EnvironmentProxies())
    async with listening(site) as target:
        proxy = Proxy(target)
        async with listening(proxy) as port:
            monkeypatch.setenv("HTTP_PROXY", f"{HOST}:{port}")
            monkeypatch.setenv("NO_PROXY", "direct.example,.corp")
            await fetcher.get("http://idp.example/keys")
            assert proxy.asked == ["GET http://idp.example/keys HTTP/1.1"]
            await fetcher.get(f"http://{HOST}:{target}/")
            await fetcher.get(f"http://localhost:{target}/")
            assert len(proxy.asked) == 1
            monkeypatch.setattr(module, "dial_tcp", _unreachable)
            for url in ("http://direct.example/", "http://idp.corp/", "https://idp.example/"):
                host = url.split("/")[2]
                assert await failure(fetcher, url) == f"{host} was dialled"
            assert await failure(Fetcher(), "http://idp.example/") == "idp.example was dialled"
            monkeypatch.setenv("HTTP_PROXY", "gopher://hush")
            text = await failure(fetcher, "http://idp.example/")
            assert text.startswith("HTTP_PROXY in the environment: the scheme gopher is not one of")


async def _unreachable(host: str, port: int, **_: object) -> None:
    raise FetchError(f"{host} was dialled")


# -- URLs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://x", Place("http", "x", 80)),
        ("HTTPS://X.example:8443/a?b=c#d", Place("https", "x.example", 8443, "/a?b=c")),
        ("https://[::1]/", Place("https", "::1", 443)),
        ("http://a%40b:c%3Ad@x/", Place("http", "x", 80, "/", "a@b", "c:d")),
    ],
)
def test_urls_are_taken_apart(url: str, place: Place) -> None:
    assert read_url(url) == place
    assert "c:d" not in repr(place) + str(place)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "it has a space"),
        ("x", "it must begin with http:// or https://"),
        ("ftp://x", "it must begin with"),
        ("http://", "it names no host"),
        ("http:///x", "it names no host"),
        ("http://x:99999/", "no number in the range"),
        ("http://x:y/", "no number in the range"),
        ("http://x/a b", "it has a space"),
        ("http://x/\r\nHost: y", "it has a space"),
        ("http://xé/", "percent-encoded"),
        ("http://[::1/", "no host"),
    ],
)
def test_what_is_no_url_is_told(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_url(url)


@given(st.text(st.characters(max_codepoint=0x17F)) | st.from_regex(r"https?://[!-~]{0,30}"))
def test_any_text_is_a_url_or_an_error(url: str) -> None:
    try:
        place = read_url(url)
    except ValueError:
        return
    assert place.host
    assert 0 <= place.port < 65536
    assert not set("\r\n ") & set(place.path + place.authority)
