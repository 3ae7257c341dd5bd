"""Each plugin behind work connections that are encrypted, compressed, both or neither.

One table: our programs and the official ones in all four pairs, each plugin, each wrapping. A cell
carries a megabyte each way.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.support import leaks
from tests.support.backends import HttpBackend
from tests.support.http import Caller, calling, request, trust
from tests.support.http2 import http2
from tests.support.plugins import WRAPPINGS, PluginScene
from tests.support.processes import PAIRS, Config, require_official, tunnel
from tests.support.services import BLOCK, EchoBackend, pattern_hash, running, unix_echo
from tests.unit.net.tls_pair import certificate, server_context

pytestmark = [pytest.mark.interop, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HOST = "a.test"
PIPES = ("unix_domain_socket", "socks5", "tls2raw")
WEB = ("static_file", "http_proxy", "http2http", "http2https", "https2http", "https2https")
TLS = ("tls2raw", "https2http", "https2https")
CELLS = list(itertools.product((*PIPES, *WEB), WRAPPINGS))
HASH = pattern_hash(len(BLOCK))


@dataclass
class Scene(PluginScene):
    """The services behind the plugins."""

    http: HttpBackend
    https: HttpBackend
    echo: EchoBackend

    def calling(self, plugin: str, wrapping: str) -> AbstractAsyncContextManager[Caller]:
        """A connection to a plugin, within TLS if it takes that."""
        port = self.ports[f"{plugin}-{wrapping}"]
        return calling(port, tls=trust(), name=HOST) if plugin in TLS else calling(port)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PAIRS, ids="-".join)
async def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    kinds = request.param
    if "official" in kinds:
        require_official()
    directory = tmp_path_factory.mktemp("p")
    files = directory / "files"
    files.mkdir()
    (files / "block").write_bytes(BLOCK)
    pem = directory / "pair.pem"
    pem.write_bytes(certificate())
    made = Scene(kinds, HttpBackend(), HttpBackend(), EchoBackend())
    made.https.tls = server_context()

    plain, sealed, echo = (
        {"localAddr": f"127.0.0.1:{backend.port}"} for backend in (made.http, made.https, made.echo)
    )
    pair = {"crtPath": str(pem), "keyPath": str(pem)}
    options: dict[str, Config] = {
        "unix_domain_socket": {"unixPath": str(directory / "s")},
        "socks5": {},
        "tls2raw": {**echo, **pair},
        "static_file": {"localPath": str(files)},
        "http_proxy": {},
        "http2http": plain,
        "http2https": sealed,
        "https2http": {**plain, **pair},
        "https2https": {**sealed, **pair},
    }
    proxies = [
        made.proxy(f"{plugin}-{wrapping}", {"type": plugin, **options[plugin]}, wrapping)
        for plugin, wrapping in CELLS
    ]
    for backend in (made.http, made.https):
        leaks.share(backend)  # Clients keep idle connections to them.
    async with (
        running(made.http, made.https, made.echo),
        unix_echo(directory / "s"),
        tunnel(directory / "t", proxies, kinds=kinds),
    ):
        yield made
    for backend in (made.http, made.https):
        leaks.unshare(backend)


def _host_of(target: str) -> str:
    return urlsplit(target).netloc or HOST


async def _fetched(caller: Caller, target: str) -> None:
    await caller.send(request(target, _host_of(target)))
    assert (await caller.begin()).status == 200
    assert await caller.rest_hash() == (len(BLOCK), HASH)


async def _uploaded(caller: Caller, target: str) -> None:
    await caller.send(request(target, _host_of(target), "POST", body=BLOCK))
    assert (await caller.answer()).json() == {"size": len(BLOCK), "sha256": HASH}


@pytest.mark.parametrize(("plugin", "wrapping"), CELLS, ids=map("-".join, CELLS))
async def test_a_megabyte_goes_each_way(scene: Scene, plugin: str, wrapping: str) -> None:
    if plugin in PIPES:
        async with scene.calling(plugin, wrapping) as caller:
            if plugin == "socks5":
                await caller.send(b"\x05\x01\x00")
                assert await caller.exactly(2) == b"\x05\x00"
                await caller.send(b"\x05\x01\x00\x01\x7f\x00\x00\x01")
                await caller.send(scene.echo.port.to_bytes(2, "big"))
                assert (await caller.exactly(10))[:2] == b"\x05\x00"
            await caller.echoed(BLOCK)
        return
    place = f"http://127.0.0.1:{scene.http.port}" if plugin == "http_proxy" else ""
    steps = [(_fetched, "/block")]
    if plugin != "static_file":
        steps = [(_uploaded, f"{place}/hash"), (_fetched, f"{place}/bytes?n={len(BLOCK)}")]
    if scene.keeps(wrapping):
        async with scene.calling(plugin, wrapping) as caller:
            for step, target in 2 * steps:
                await step(caller, target)
        return
    # What is left out here, and why, is told by `keeps`: the second request of a connection.
    for step, target in steps:
        async with scene.calling(plugin, wrapping) as caller:
            await step(caller, target)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("plugin", ["https2http", "https2https"])
async def test_http2_requests_follow_one_another(scene: Scene, plugin: str, wrapping: str) -> None:
    """Go's server of HTTP/2 does not break off its reads, so this holds in every cell."""
    port = scene.ports[f"{plugin}-{wrapping}"]
    async with http2(port, tls=trust("h2"), name=HOST) as caller:
        for _ in range(2):
            upload = caller.request("/hash", HOST, "POST", end=False)
            await caller.send(upload, BLOCK, end=True)
            assert HASH.encode() in bytes((await caller.answer(upload)).body)
