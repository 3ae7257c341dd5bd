"""Our programs and the official ones, in every pairing and every way to set up the link.

One table: which server, which client, `tcpMux`, TLS, then per proxy type, `useEncryption` and
`useCompression`. Each cell carries a small request, events that must arrive one by one, and a
megabyte in both directions.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import leaks
from tests.support.backends import Exchange, Gate, HttpBackend, sse
from tests.support.http import calling, request
from tests.support.office import office
from tests.support.ports import free_port
from tests.support.processes import (
    KINDS,
    Config,
    Kind,
    Tunnel,
    http_proxy,
    merged,
    require_official,
    tcp_proxy,
    tunnel,
)
from tests.support.services import BLOCK, EchoBackend, running
from tests.support.waiting import all_of, until_async

pytestmark = [pytest.mark.interop, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

TLS: dict[str, Config] = {
    "tls-off": {"enable": False},
    "tls-on": {"enable": True, "disableCustomTLSFirstByte": True},
    "tls-0x17": {"enable": True, "disableCustomTLSFirstByte": False},
}
EVENTS = 8
MEGABYTE = len(BLOCK)
BLOCK_HASH = hashlib.sha256(BLOCK).hexdigest()


@dataclass(frozen=True)
class Setup:
    """One pair of processes: a row of the table."""

    server: Kind
    client: Kind
    tcp_mux: bool
    tls: str

    def __str__(self) -> str:
        mux = "mux" if self.tcp_mux else "nomux"
        return f"{self.server}-server:{self.client}-client:{mux}:{self.tls}"


@dataclass(frozen=True)
class Cell:
    """One proxy of a pair: a column of the table."""

    type: str
    encrypted: bool
    compressed: bool

    def __str__(self) -> str:
        marks = [m for m, on in (("enc", self.encrypted), ("comp", self.compressed)) if on]
        return "-".join([self.type, *(marks or ["plain"])])


SETUPS = [Setup(*row) for row in itertools.product(KINDS, KINDS, (True, False), TLS)]
CELLS = [Cell(*column) for column in itertools.product(("http", "tcp"), *[(False, True)] * 2)]


@dataclass
class Bench:
    """What the cells share: two backends and one running pair."""

    http: HttpBackend
    echo: EchoBackend
    pair: Tunnel
    ports: dict[str, int]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backends() -> AsyncIterator[tuple[HttpBackend, EchoBackend]]:
    pair = HttpBackend(), EchoBackend()
    for backend in pair:
        leaks.share(backend)
    async with running(*pair):
        yield pair
    for backend in pair:
        leaks.unshare(backend)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(
    request: pytest.FixtureRequest,
    backends: tuple[HttpBackend, EchoBackend],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Bench]:
    setup: Setup = request.param
    if "official" in (setup.server, setup.client):
        require_official()
    http, echo = backends
    ports = {str(cell): free_port() for cell in CELLS if cell.type == "tcp"}
    proxies = []
    for cell in CELLS:
        transport = {"useEncryption": cell.encrypted, "useCompression": cell.compressed}
        if cell.type == "http":
            proxy = http_proxy(str(cell), http.port, f"{cell}.test", transport=transport)
        else:
            proxy = tcp_proxy(str(cell), echo.port, ports[str(cell)], transport=transport)
        proxies.append(proxy)
    link: Config = {"transport": {"tcpMux": setup.tcp_mux}}
    async with tunnel(
        tmp_path_factory.mktemp("interop"),
        proxies,
        kinds=(setup.server, setup.client),
        server=link,
        client=merged(link, {"transport": {"tls": TLS[setup.tls]}}),
    ) as pair:
        yield Bench(http, echo, pair, ports)


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("bench", SETUPS, ids=str, indirect=True)
async def test_every_pair_carries_the_main_job_over_every_kind_of_link(
    bench: Bench, cell: Cell
) -> None:
    checks = HTTP_CHECKS if cell.type == "http" else TCP_CHECKS
    await all_of([check(bench, cell) for check in checks], limit_s=30)
    assert not bench.http.complaints


async def _small_request(bench: Bench, cell: Cell) -> None:
    async with calling(bench.pair.http_port) as caller:
        for _ in range(3):
            answer = await caller.get("/hello", f"{cell}.test")
            assert (answer.status, answer.body) == (200, b"hello")


async def _streamed_events(bench: Bench, cell: Cell) -> None:
    gate = Gate()
    path = f"/gated-{os.urandom(8).hex()}"

    async def script(x: Exchange) -> None:
        await x.start_chunked()
        for number in range(EVENTS):
            await x.chunk(sse(number))
            await gate.passed(number)
        await x.end_chunks()

    bench.http.on(path, script)
    async with calling(bench.pair.http_port) as caller:
        await caller.send(request(path, f"{cell}.test"))
        head = await caller.begin()
        assert head.get("content-type") == "text/event-stream"
        pending = bytearray()
        for number in range(EVENTS):
            assert await caller.read_event(pending) == sse(number)
            gate.received(number)
        assert not pending
        assert await caller.rest() == b""


async def _megabyte_up(bench: Bench, cell: Cell) -> None:
    async with calling(bench.pair.http_port) as caller:
        await caller.send(request("/hash", f"{cell}.test", "POST", body=BLOCK))
        answer = await caller.answer()
        assert answer.json() == {"size": MEGABYTE, "sha256": BLOCK_HASH}


async def _megabyte_down(bench: Bench, cell: Cell) -> None:
    async with calling(bench.pair.http_port) as caller:
        await caller.send(request(f"/bytes?n={MEGABYTE}", f"{cell}.test"))
        assert (await caller.begin()).status == 200
        assert await caller.rest_hash() == (MEGABYTE, BLOCK_HASH)


async def _echoed_pieces(bench: Bench, cell: Cell) -> None:
    async with calling(bench.ports[str(cell)]) as caller:
        for number in range(EVENTS):
            piece = sse(number)
            await caller.send(piece)
            assert await caller.exactly(len(piece)) == piece


async def _echoed_megabyte(bench: Bench, cell: Cell) -> None:
    async with calling(bench.ports[str(cell)]) as caller:
        await caller.echoed(BLOCK)


HTTP_CHECKS = (_small_request, _streamed_events, _megabyte_up, _megabyte_down)
TCP_CHECKS = (_echoed_pieces, _echoed_megabyte)


# --- recovery between the two ---------------------------------------------------------------

MIXED: list[tuple[Kind, Kind]] = [("ours", "official"), ("official", "ours")]


@pytest.mark.parametrize("kinds", MIXED, ids=["-".join(kinds) for kinds in MIXED])
async def test_mixed_pairs_find_each_other_again(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    """The link is cut, then the server is killed and started, with a stream under way."""
    require_official()

    async def scenario(tcp_mux: bool) -> None:
        link: Config = {"transport": {"tcpMux": tcp_mux}}
        async with office(
            tmp_path / str(tcp_mux), kinds=kinds, server=link, client=link, relayed=True
        ) as scene:
            assert scene.relay is not None
            for end in (scene.relay.cut, scene.pair.server.kill):
                caller = await scene.caller()
                await caller.send(request("/hang"))
                await scene.api.saw("/hang")
                scene.api.forget()
                offset = scene.pair.client.mark()
                end()
                if not scene.pair.server.is_running():
                    scene.pair.server.start()
                await scene.pair.client_ready(30, offset)
                await until_async(scene.works, "requests to work again", 20)
                await caller.close()

    await all_of((scenario(tcp_mux) for tcp_mux in (True, False)), limit_s=90)
