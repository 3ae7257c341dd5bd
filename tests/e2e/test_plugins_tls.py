"""The plugins that are reverse proxies or end TLS, in pairs of our programs and the official ones.

Where the client is official it is the reference: what the user and the backend see is the same.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.support import leaks
from tests.support.backends import Exchange, Gate, HttpBackend, sse
from tests.support.http import Caller, calling, request, trust
from tests.support.http2 import http2
from tests.support.plugins import PluginScene
from tests.support.ports import free_port
from tests.support.processes import (
    PAIRS,
    http_proxy,
    require_official,
    tcp_proxy,
    tunnel,
)
from tests.support.services import BLOCK, EchoBackend, pattern_hash, peer_left, running
from tests.support.waiting import until
from tests.unit.net.tls_pair import NAME, certificate, server_context

pytestmark = [pytest.mark.interop, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

WEB = ["http2http", "http2https", "https2http", "https2https"]
HOST = "a.test"


@dataclass
class Scene(PluginScene):
    """The services behind the plugins."""

    http: HttpBackend
    https: HttpBackend
    echo: EchoBackend

    def backend(self, name: str) -> HttpBackend:
        return self.https if name.endswith("https") else self.http

    def call(self, name: str, asked: str = HOST) -> Any:
        """A connection to the plugin, within TLS if it takes that."""
        if name.startswith("http2"):
            return calling(self.ports[name])
        return calling(self.ports[name], tls=trust(), name=asked)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PAIRS, ids="-".join)
async def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    kinds = request.param
    if "official" in kinds:
        require_official()
    directory = tmp_path_factory.mktemp("p")
    pem = directory / "pair.pem"
    pem.write_bytes(certificate())
    https = HttpBackend()
    https.tls = server_context()
    made = Scene(kinds, HttpBackend(), https, EchoBackend())
    plain, sealed = (f"127.0.0.1:{backend.port}" for backend in (made.http, made.https))
    pair = {"crtPath": str(pem), "keyPath": str(pem)}
    changes = {"hostHeaderRewrite": "b.test:8", "requestHeaders": {"set": {"X-Set": "1"}}}
    dead = f"127.0.0.1:{free_port()}"
    proxies = made.proxies(
        http2http={"type": "http2http", "localAddr": plain},
        http2https={"type": "http2https", "localAddr": sealed},
        https2http={"type": "https2http", "localAddr": plain, **pair},
        https2https={"type": "https2https", "localAddr": sealed},
        http2http_changed={"type": "http2http", "localAddr": plain, **changes},
        https2http_changed={"type": "https2http", "localAddr": plain, **changes},
        https2http_old={"type": "https2http", "localAddr": plain, "enableHTTP2": False},
        http2http_dead={"type": "http2http", "localAddr": dead},
        https2https_dead={"type": "https2https", "localAddr": dead},
        tls2raw={"type": "tls2raw", "localAddr": f"127.0.0.1:{made.echo.port}", **pair},
    )
    made.ports["https"] = free_port()
    proxies += [
        http_proxy("by-host", 0, HOST, plugin={"type": "http2https", "localAddr": sealed}),
        {
            "name": "by-name",
            "type": "https",
            "customDomains": [HOST],
            "plugin": {"type": "https2http", "localAddr": plain, **pair},
        },
    ]
    for backend in (made.http, made.https):
        leaks.share(backend)  # Clients keep idle connections to them.
    env = {"STATE_DIRECTORY": str(directory / "state")}
    async with (
        running(made.http, made.https, made.echo),
        tunnel(
            directory / "t",
            proxies,
            kinds=kinds,
            server={"vhostHTTPSPort": made.ports["https"]},
            env=env,
        ) as running_pair,
    ):
        made.pair = running_pair
        yield made
    for backend in (made.http, made.https):
        leaks.unshare(backend)


# -- heads ----------------------------------------------------------------------------------------

TOLD = [
    ("X-Forwarded-For", "192.0.2.1"),
    ("X-Forwarded-Host", "h"),
    ("X-Forwarded-Proto", "p"),
    ("Forwarded", "for=192.0.2.1"),
    ("X-Set", "0"),
]
KEPT = {"x-forwarded-for: 192.0.2.1", "x-forwarded-host: h", "x-forwarded-proto: p", "x-set: 0"}
OURS = {
    "x-forwarded-for: 192.0.2.1, 127.0.0.1",
    f"x-forwarded-host: {HOST}",
    "x-forwarded-proto: https",
}


@pytest.mark.parametrize(
    ("name", "host", "fields"),
    [
        ("http2http", HOST, {"x-set: 0"}),
        ("http2https", HOST, KEPT),
        ("https2http", HOST, {*OURS, "x-set: 0"}),
        ("https2https", HOST, {*OURS, "x-set: 0"}),
        ("http2http_changed", "b.test:8", {"x-set: 1"}),
        ("https2http_changed", "b.test:8", {*OURS, "x-set: 1"}),
    ],
)
async def test_the_backend_sees_the_same_head(
    scene: Scene, name: str, host: str, fields: set[str]
) -> None:
    async with scene.call(name) as caller:
        # The official client asks for gzip on behalf of those who do not ask at all.
        headers = [*TOLD, ("Accept-Encoding", "x"), ("Connection", "keep-alive")]
        for _ in range(2):
            answer = await caller.get("/head?a=%41", HOST, headers=headers)
            assert answer.status == 200
            first, *lines = answer.body.decode().strip().split("\r\n")
            assert first == "GET /head?a=%41 HTTP/1.1"
            seen = {f"{k.lower()}:{v}" for k, _, v in (line.partition(":") for line in lines)}
            assert seen == {f"host: {host}", "accept-encoding: x", *fields}


async def test_absolute_targets_become_paths(scene: Scene) -> None:
    async with scene.call("http2http") as caller:
        answer = await caller.get(f"http://{HOST}/head?a", HOST)
        assert answer.body.startswith(b"GET /head?a HTTP/1.1\r\nHost: a.test\r\n")


async def test_plugins_serve_what_virtual_hosts_route_to_them(scene: Scene) -> None:
    assert scene.pair is not None
    told = [("X-Forwarded-For", "192.0.2.1")]
    async with calling(scene.ports["https"], tls=trust(), name=HOST) as caller:
        for _ in range(2):
            answer = await caller.get("/head", HOST, headers=told)
            assert b"\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n" in answer.body
            assert b"\r\nX-Forwarded-Proto: https\r\n" in answer.body
    async with calling(scene.pair.http_port) as caller:
        for _ in range(2):
            answer = await caller.get("/head", HOST, headers=told)
            assert b"\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n" in answer.body
            assert b"\r\nX-Forwarded-Proto: http\r\n" in answer.body


# -- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEB)
async def test_each_event_arrives_before_the_next_is_sent(scene: Scene, name: str) -> None:
    gate = Gate()

    async def handler(x: Exchange) -> None:
        await x.start_chunked()
        for number in range(5):
            await x.chunk(sse(number))
            await gate.passed(number)
        await x.end_chunks()

    scene.backend(name).on("/gated", handler)
    async with scene.call(name) as caller:
        await caller.send(request("/gated", HOST))
        await caller.begin()
        pending = bytearray()
        for number in range(5):
            assert await caller.read_event(pending) == sse(number)
            gate.received(number)
        assert await caller.rest() == b""


@pytest.mark.parametrize("name", WEB)
async def test_a_megabyte_goes_each_way(scene: Scene, name: str) -> None:
    async with scene.call(name) as caller:
        await caller.send(request("/hash", HOST, "POST", body=BLOCK))
        assert (await caller.answer()).json() == {
            "size": len(BLOCK),
            "sha256": pattern_hash(len(BLOCK)),
        }
        await caller.send(request(f"/bytes?n={len(BLOCK)}", HOST))
        await caller.begin()
        assert await caller.rest_hash() == (len(BLOCK), pattern_hash(len(BLOCK)))


@pytest.mark.parametrize("name", WEB)
async def test_a_websocket_becomes_a_pipe(scene: Scene, name: str) -> None:
    async def handler(x: Exchange) -> None:
        await x.start(
            "101 Switching Protocols", [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        )
        pipe = await x.take_over()
        while data := await pipe.read_some():
            await pipe.send(data)

    scene.backend(name).on("/ws", handler)
    async with scene.call(name) as caller:
        upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        await caller.send(request("/ws", HOST, headers=upgrade))
        head = await caller.begin()
        assert (head.status, head.get("upgrade")) == (101, "websocket")
        for size in (5, 70_000):
            await caller.send(BLOCK[:size])
            assert await caller.exactly(size) == BLOCK[:size]


async def _by_reset(caller: Caller) -> None:
    await caller.reset()


async def _by_close(caller: Caller) -> None:
    caller.writer.close()


@pytest.mark.parametrize("leave", [_by_reset, _by_close])
@pytest.mark.parametrize("name", WEB)
async def test_a_caller_that_leaves_ends_the_work_of_the_backend(
    scene: Scene, name: str, leave: Any
) -> None:
    backend = scene.backend(name)
    started: list[Any] = []

    async def handler(x: Exchange) -> None:
        started.append(x.pipe)
        await x.start_chunked()
        await x.chunk(sse(0))
        await x.gone.wait()
        x.keep = False

    backend.on("/left", handler)
    async with scene.call(name) as caller:
        await caller.send(request("/left", HOST))
        await caller.begin()
        assert await caller.read_event(bytearray()) == sse(0)
        await leave(caller)
        await peer_left(started[0], 3)


# -- HTTP/2 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["https2http", "https2https"])
async def test_http2_streams_are_requests_of_their_own(scene: Scene, name: str) -> None:
    gate = Gate()

    async def handler(x: Exchange) -> None:
        await x.start_chunked()
        for number in range(3):
            await x.chunk(sse(number))
            await gate.passed(number)
        await x.end_chunks()

    scene.backend(name).on("/gated2", handler)
    async with http2(scene.ports[name], tls=trust("h2"), name=HOST) as caller:
        events = caller.request("/gated2", HOST)
        for number in range(3):
            found = await caller.head(events)
            whole = b"".join(sse(n) for n in range(number + 1))
            while len(found.body) < len(whole):
                await caller.wait()
            assert found.body == whole
            gate.received(number)
        upload = caller.request("/hash", HOST, "POST", end=False)
        await caller.send(upload, BLOCK, end=True)
        other = caller.request("/hello", "other.test")
        assert pattern_hash(len(BLOCK)).encode() in bytes((await caller.answer(upload)).body)
        assert (await caller.answer(other)).headers[":status"] == "421"
        assert (await caller.answer(events)).ended


@pytest.mark.parametrize(
    ("name", "offered", "agreed"),
    [
        ("https2http", ("h2", "http/1.1"), "h2"),
        ("https2https", ("h2", "http/1.1"), "h2"),
        ("https2http", ("http/1.1",), "http/1.1"),
        ("https2http_old", ("h2", "http/1.1"), "http/1.1"),
        ("tls2raw", ("h2", "http/1.1"), None),
    ],
)
async def test_the_same_protocol_is_agreed_on(
    scene: Scene, name: str, offered: tuple[str, ...], agreed: str | None
) -> None:
    async with calling(scene.ports[name], tls=trust(*offered), name=HOST) as caller:
        assert caller.writer.get_extra_info("ssl_object").selected_alpn_protocol() == agreed


# -- refusals and certificates --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "host", "status"),
    [
        ("https2http", "b.test", HOST, 421),
        ("https2https", "b.test", HOST, 421),
        ("https2http", "A.TEST", "a.test:99", 200),
        ("https2http", "", "whatever.test", 200),
        ("http2http_dead", "", HOST, 502),
        ("https2https_dead", HOST, HOST, 502),
    ],
)
async def test_the_status_is_the_same(
    scene: Scene, name: str, asked: str, host: str, status: int
) -> None:
    async with scene.call(name, asked) as caller:
        for _ in range(2):  # None of these ends the connection.
            assert (await caller.get("/hello", host)).status == status


async def test_plain_http_on_a_port_for_tls_is_told_so(scene: Scene) -> None:
    async with calling(scene.ports["https2http"]) as caller:
        await caller.send(request("/hello", HOST))
        assert b"400 Bad Request" in await caller.everything()


@pytest.mark.parametrize("name", ["https2http", "tls2raw"])
async def test_the_configured_certificate_is_shown(scene: Scene, name: str) -> None:
    context = ssl.create_default_context()
    pem = certificate().decode()
    context.load_verify_locations(cadata=pem[pem.index("-----BEGIN CERT") :])
    async with calling(scene.ports[name], tls=context, name=NAME) as caller:
        assert caller.writer.get_extra_info("ssl_object").getpeercert()


async def test_tls2raw_carries_a_megabyte_each_way(scene: Scene) -> None:
    async with scene.call("tls2raw") as caller:
        await caller.echoed(BLOCK)
    await until(lambda: not scene.echo.live, "the backend's connection to close")


async def test_a_bad_certificate_ends_the_start_with_the_reason(tmp_path: Any) -> None:
    plugin = {"type": "https2http", "localAddr": "127.0.0.1:1", "crtPath": "/no", "keyPath": "/no"}
    proxies = [tcp_proxy("p", 0, free_port(), plugin=plugin)]
    async with tunnel(tmp_path, proxies, ready=False) as pair:
        assert await pair.client.exited() != 0
        assert "/no: the certificate file does not exist; check plugin.crtPath" in pair.client.log()
