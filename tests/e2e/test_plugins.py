"""The client's plugins, in pairs of our programs and the official ones, seen by the same users."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import leaks
from tests.support.backends import Exchange, HttpBackend
from tests.support.http import calling, request
from tests.support.plugins import PluginScene
from tests.support.processes import PAIRS, require_official, tunnel
from tests.support.services import BLOCK, EchoBackend, running, unix_echo

pytestmark = [pytest.mark.interop, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Scene(PluginScene):
    """The services behind the plugins that are no reverse proxies."""

    echo: EchoBackend
    http: HttpBackend
    files: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PAIRS, ids="-".join)
async def scene(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Scene]:
    kinds = request.param
    if "official" in kinds:
        require_official()
    directory = tmp_path_factory.mktemp("p")
    echo = EchoBackend()
    http = HttpBackend()
    made = Scene(kinds, echo, http, directory / "files")
    (made.files / "dir").mkdir(parents=True)
    (made.files / "page").mkdir()
    (made.files / "a.txt").write_bytes(b"hello")
    (made.files / "big.bin").write_bytes(BLOCK)
    (made.files / "page" / "index.html").write_bytes(b"<p>page")

    proxies = made.proxies(
        unix={"type": "unix_domain_socket", "unixPath": str(directory / "s")},
        socks={"type": "socks5"},
        files={"type": "static_file", "localPath": str(made.files)},
        files_secret={
            "type": "static_file",
            "localPath": str(made.files),
            "stripPrefix": "st",
            "httpUser": "u",
            "httpPassword": "p",
        },
        web={"type": "http_proxy"},
        web_secret={"type": "http_proxy", "httpUser": "u", "httpPassword": "p"},
        socks_secret={"type": "socks5", "username": "u", "password": "p"},
    )
    leaks.share(http)  # The official client keeps idle connections to it.
    async with (
        running(echo, http),
        unix_echo(directory / "s"),
        tunnel(directory / "t", proxies, kinds=kinds) as pair,
    ):
        made.pair = pair
        yield made
    leaks.unshare(http)


async def test_unix_domain_socket_carries_a_megabyte_each_way(scene: Scene) -> None:
    async with calling(scene.ports["unix"]) as caller:
        await caller.echoed(BLOCK)


# -- socks5 -------------------------------------------------------------------------------------

NAMED = b"\x05\x01\x00\x03\x09localhost"
SOCKS_ADDRESSES = [b"\x05\x01\x00\x01\x7f\x00\x00\x01", NAMED]


@pytest.mark.parametrize("address", SOCKS_ADDRESSES, ids=["ipv4", "name"])
async def test_socks5_carries_a_megabyte_each_way(scene: Scene, address: bytes) -> None:
    port = scene.echo.port.to_bytes(2, "big")
    async with calling(scene.ports["socks"]) as caller:
        await caller.send(b"\x05\x01\x00")
        assert await caller.exactly(2) == b"\x05\x00"
        await caller.send(address + port)
        assert (await caller.exactly(10))[:8] == b"\x05\x00\x00\x01\x7f\x00\x00\x01"
        await caller.echoed(BLOCK)


async def test_socks5_takes_the_right_credentials(scene: Scene) -> None:
    async with calling(scene.ports["socks_secret"]) as caller:
        await caller.send(b"\x05\x02\x00\x02")
        assert await caller.exactly(2) == b"\x05\x02"
        await caller.send(b"\x01\x01u\x01p")
        assert await caller.exactly(2) == b"\x01\x00"
        await caller.send(NAMED + scene.echo.port.to_bytes(2, "big"))
        assert (await caller.exactly(10))[:2] == b"\x05\x00"


@pytest.mark.parametrize(
    ("name", "said", "answer"),
    [
        ("socks_secret", b"\x05\x01\x00", b"\x05\xff"),
        ("socks_secret", b"\x05\x01\x02|\x01\x01u\x01x", b"\x05\x02\x01\x01"),
        ("socks", b"\x05\x01\x02", b"\x05\xff"),
        ("socks", b"\x04\x01\x00", b""),
        ("socks", b"\x05\x01\x00|" + NAMED + b"\x00\x01", b"\x05\x00\x05\x05"),
        ("socks", b"\x05\x01\x00|\x05\x02" + NAMED[2:] + b"\x00\x01", b"\x05\x00\x05\x07"),
    ],
    ids=["no method", "wrong password", "only password", "version", "refused", "bind"],
)
async def test_socks5_refuses_in_the_same_words(
    scene: Scene, name: str, said: bytes, answer: bytes
) -> None:
    async with calling(scene.ports[name]) as caller:
        steps = said.split(b"|")
        await caller.send(steps[0])
        for step in steps[1:]:
            assert await caller.exactly(2) == answer[:2]
            answer = answer[2:]
            await caller.send(step)
        got = await caller.everything()
        assert got[: len(answer)] == answer
        assert answer[:1] == b"\x05" or got == answer


# -- http_proxy ---------------------------------------------------------------------------------

PASSWORD = ("Proxy-Authorization", "Basic dTpw")
WRONG = ("Proxy-Authorization", "Basic dTp4")


@pytest.mark.parametrize("name", ["web", "web_secret"])
async def test_http_proxy_carries_requests_and_tunnels(scene: Scene, name: str) -> None:
    place = f"127.0.0.1:{scene.http.port}"
    seen: list[tuple[str | None, ...]] = []

    async def noting(x: Exchange) -> None:
        names = ("host", "proxy-authorization", "proxy-connection", "x-a")
        seen.append(tuple(x.request.get(field) for field in names))
        await x.reply(b"noted")

    scene.http.on("/noted", noting)
    async with calling(scene.ports[name]) as caller:
        more = (PASSWORD, ("Proxy-Connection", "keep-alive"), ("X-A", "1"))
        answer = await caller.get(f"http://{place}/noted?x=1", place, headers=more)
        assert (answer.status, answer.body) == (200, b"noted")
        assert seen == [(place, None, None, "1")]
    async with calling(scene.ports[name]) as caller:
        await caller.send(request(f"http://{place}/hash", place, "POST", more, BLOCK))
        assert (await caller.answer()).json()["size"] == len(BLOCK)
    async with calling(scene.ports[name]) as caller:
        echo = f"127.0.0.1:{scene.echo.port}"
        await caller.send(request(echo, echo, "CONNECT", [PASSWORD]))
        assert await caller.exactly(19) == b"HTTP/1.1 200 OK\r\n\r\n"
        await caller.echoed(BLOCK)


@pytest.mark.parametrize(
    ("name", "method", "target", "more", "status"),
    [
        ("web_secret", "GET", "http://127.0.0.1:1/", [], 407),
        ("web_secret", "GET", "http://127.0.0.1:1/", [WRONG], 407),
        ("web_secret", "CONNECT", "127.0.0.1:1", [], 407),
        ("web", "GET", "http://127.0.0.1:1/", [], 500),
        ("web", "CONNECT", "127.0.0.1:1", [], 400),
    ],
)
async def test_http_proxy_refuses_with_the_same_status(
    scene: Scene, name: str, method: str, target: str, more: list[tuple[str, str]], status: int
) -> None:
    async with calling(scene.ports[name]) as caller:
        host = target.removeprefix("http://").rstrip("/")
        await caller.send(request(target, host, method, more))
        head = await caller.read_head()
        assert head.status == status
        if status == 407:
            assert head.get("proxy-authenticate") == "Basic"


# -- static_file --------------------------------------------------------------------------------

LISTING = b"""<!doctype html>
<meta name="viewport" content="width=device-width">
<pre>
<a href="a.txt">a.txt</a>
<a href="big.bin">big.bin</a>
<a href="dir/">dir/</a>
<a href="page/">page/</a>
</pre>
"""
USER = ("Authorization", "Basic dTpw")


async def test_static_file_packs_text_for_those_who_take_it(scene: Scene) -> None:
    text = b"hello\n" * 20_000
    (scene.files / "dir" / "text.txt").write_bytes(text)
    async with calling(scene.ports["files"]) as caller:
        packed = [("Accept-Encoding", "gzip")]
        answer = await caller.get("/dir/text.txt", "a.test", headers=packed)
        assert (answer.status, answer.get("content-encoding")) == (200, "gzip")
        assert gzip.decompress(answer.body) == text


@pytest.mark.parametrize(
    ("name", "path", "more", "status", "what"),
    [
        ("files", "/a.txt", [], 200, b"hello"),
        ("files", "/", [], 200, LISTING),
        ("files", "/page/", [], 200, b"<p>page"),
        ("files", "/dir?x=1", [], 301, "dir/?x=1"),
        ("files", "/page/index.html", [], 301, "./"),
        ("files", "/a.txt/", [], 301, "../a.txt"),
        ("files", "/../../a.txt", [], 301, "/a.txt"),
        ("files", "/none", [], 404, b"404 page not found\n"),
        ("files", "/a.txt", [("Range", "bytes=1-2")], 206, b"el"),
        ("files", "/a.txt", [("Range", "bytes=9-")], 416, b"invalid range: failed to overlap\n"),
        ("files", "/a.txt", [("If-None-Match", "*")], 304, b""),
        ("files", "/a.txt", [("If-Match", '"x"')], 412, b""),
        ("files", "/big.bin", [], 200, BLOCK),
        ("files_secret", "/st/a.txt", [], 401, b"Unauthorized\n"),
        ("files_secret", "/st/a.txt", [USER], 200, b"hello"),
        ("files_secret", "/st", [USER], 404, b"404 page not found\n"),
        ("files_secret", "/a.txt", [USER], 404, b"404 page not found\n"),
    ],
)
async def test_static_file_answers_the_same(
    scene: Scene, name: str, path: str, more: list[tuple[str, str]], status: int, what: bytes | str
) -> None:
    async with calling(scene.ports[name]) as caller:
        answer = await caller.get(path, "a.test", headers=more)
        assert answer.status == status
        assert (answer.get("location") if status == 301 else answer.body) == what
