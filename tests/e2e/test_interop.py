"""Our programs and the official ones, in every pairing and every way to set up the link.

One table: which server, which client, `tcpMux`, TLS, then per proxy type, `useEncryption` and
`useCompression`. Each cell carries a small request, events that must arrive one by one, and a
megabyte in both directions.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import leaks, main_job
from tests.support.backends import HttpBackend
from tests.support.http import request
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
from tests.support.services import EchoBackend, running
from tests.support.waiting import all_of, until_async

pytestmark = [pytest.mark.interop, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

TLS: dict[str, Config] = {
    "tls-off": {"enable": False},
    "tls-on": {"enable": True, "disableCustomTLSFirstByte": True},
    "tls-0x17": {"enable": True, "disableCustomTLSFirstByte": False},
}


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
    if cell.type == "http":
        port, domain = bench.pair.http_port, f"{cell}.test"
        jobs = [
            main_job.small_requests(port, domain),
            main_job.events_one_by_one(port, domain, bench.http),
            main_job.megabyte_up(port, domain),
            main_job.megabyte_down(port, domain),
        ]
    else:
        jobs = [main_job.echoes(bench.ports[str(cell)])]
    await all_of(jobs, limit_s=30)
    assert not bench.http.complaints


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
