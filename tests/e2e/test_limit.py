"""Bandwidth limits of real programs: the rate that is set, on the side that is named."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.backends import Exchange, Gate, HttpBackend, sse
from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.http import calling, request
from tests.support.meeting import meeting, secret_proxy, visitor
from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    Config,
    Kind,
    Tunnel,
    http_proxy,
    merged,
    require_official,
    tcp_proxy,
    tunnel,
)
from tests.support.services import BLOCK, Backend, Pipe, ScriptBackend, running
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.clock, pytest.mark.e2e]

KB = 1024
MB = 1024 * KB
PIECE = BLOCK[: 64 * KB]
WITHIN = 0.12  # Of a short window on a busy machine.
WINDOW_S = 1.5


class User(asyncio.Protocol):
    """Somebody who reads, and writes if told so, as fast as the connection goes."""

    def __init__(self, first: bytes, *, floods: bool, reads: bool = True) -> None:
        self.received = 0
        self._reads = reads
        self._first = first
        self._floods = floods
        self._choked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._first)
        if not self._reads:
            asyncio.get_running_loop().call_soon(self.transport.pause_reading)
        self._flood()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False
        self._flood()

    def _flood(self) -> None:
        while self._floods and not self._choked and not self.transport.is_closing():
            self.transport.write(PIECE)


@dataclass
class Cell:
    """A proxy with a service of its own, and the users who use it all the time."""

    rate: int
    mode: str = "client"
    kind: str = "tcp"
    up: bool = False
    count: int = 1
    layers: Config = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    users: list[User] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backend: Backend
        if self.kind == "tcp":
            self.backend = ScriptBackend(self._serve)
        else:
            self.backend = HttpBackend()
            self.backend.on("/down", _flood)
            self.backend.on("/up", _swallow)

    @property
    def name(self) -> str:
        way = "up" if self.up else "down"
        return f"{self.kind}-{self.mode if self.rate else 'free'}-{way}-{self.count}"

    def proxy(self) -> Config:
        limit: Config = {}
        if self.rate:
            limit = {"bandwidthLimit": f"{self.rate / KB:g}KB", "bandwidthLimitMode": self.mode}
        more = {"transport": merged(limit, self.layers)}
        if self.kind == "tcp":
            return tcp_proxy(self.name, self.backend.port, self.port, **more)
        return http_proxy(self.name, self.backend.port, f"{self.name}.test", **more)

    async def _serve(self, pipe: Pipe) -> None:
        if not self.up:
            await _pour(pipe)
        while await pipe.read_some():
            pass

    def carried(self) -> int:
        if self.up:
            return sum(pipe.received for pipe in self.backend.pipes)
        return sum(user.received for user in self.users)

    async def begin(self, http_port: int = 0, *, count: int = 0, reads: bool = True) -> None:
        """Let `count` users come, or as many as the cell has."""
        loop = asyncio.get_running_loop()
        first, port = b"", self.port
        if self.kind == "http":
            port = http_port
            host = f"{self.name}.test"
            more: dict[str, Any] = {}
            if self.up:
                more = {"method": "POST", "headers": [("Content-Length", str(1 << 40))]}
            first = request("/up" if self.up else "/down", host, **more)
        for _ in range(count or self.count):
            _, user = await loop.create_connection(
                lambda: User(first, floods=self.up, reads=reads), HOST, port
            )
            self.users.append(user)

    async def seconds_for(self, size: int) -> float:
        """How long it takes to carry `size` more bytes."""
        start, since = self.carried(), time.monotonic()
        limit_s = 3 * size / self.rate + 15
        await until(lambda: self.carried() - start >= size, f"{self.name}: {size} bytes", limit_s)
        return time.monotonic() - since

    async def measured(self, http_port: int, window_s: float) -> float:
        """The rate in a window after the burst, in terms of the one that is set."""
        await self.begin(http_port)
        # The bucket is full at the beginning.
        await self.seconds_for(int(1.3 * self.rate))
        took = await self.seconds_for(int(window_s * self.rate))
        return window_s / took

    def end(self) -> None:
        for user in self.users:
            user.transport.abort()


async def _pour(pipe: Pipe) -> None:
    """Send until the peer leaves."""
    while True:
        await pipe.send(PIECE)
        await asyncio.sleep(0)  # The end comes in a turn of its own.


async def _flood(x: Exchange) -> None:
    await x.start("200 OK", [("Content-Length", str(1 << 40))])
    await _pour(x.pipe)


async def _swallow(x: Exchange) -> None:
    async for _ in x.chunks():
        pass


@asynccontextmanager
async def limited(
    directory: Path,
    cells: Sequence[Cell],
    kinds: tuple[Kind, Kind] = ("ours", "ours"),
) -> AsyncIterator[Tunnel]:
    """Run a pair of programs that has these proxies."""
    if "official" in kinds:
        require_official()
    async with (
        running(*(cell.backend for cell in cells)),
        tunnel(directory, [cell.proxy() for cell in cells], kinds=kinds) as pair,
    ):
        try:
            yield pair
        finally:
            for cell in cells:
                cell.end()


PAIRS: list[Any] = [
    pytest.param(("ours", "ours"), ("client", "server"), id="ours-ours"),
    pytest.param(("ours", "official"), ("server",), id="our-server", marks=pytest.mark.interop),
    pytest.param(("official", "ours"), ("client",), id="our-client", marks=pytest.mark.interop),
]


@pytest.mark.parametrize(("kinds", "modes"), PAIRS)
async def test_the_rate_is_the_one_that_is_set(
    kinds: tuple[Kind, Kind], modes: tuple[str, ...], tmp_path: Path
) -> None:
    """All cells at once: each proxy has a limit of its own, whatever goes on beside it."""
    cells = [
        Cell(256 * KB, mode, kind, up, count)
        for mode, kind, up, count in itertools.product(
            modes, ("tcp", "http"), (False, True), (1, 50)
        )
    ]
    async with limited(tmp_path, cells, kinds) as pair:
        found = await all_of(cell.measured(pair.http_port, WINDOW_S) for cell in cells)
        figures = {cell.name: round(rate, 3) for cell, rate in zip(cells, found, strict=True)}
        assert all(1 - WITHIN <= rate <= 1 + WITHIN for rate in found), figures


async def test_tokens_come_one_by_one_beside_users_who_take_all_they_can(tmp_path: Path) -> None:
    """The next token is sent when the last one is with the caller, who gets it in his turn."""
    cells = [Cell(256 * KB, mode, "http", count=8) for mode in ("client", "server")]
    gates = [Gate() for _ in cells]

    async def stream(cell: Cell, gate: Gate) -> float:
        async def tokens(x: Exchange) -> None:
            await x.start_chunked()
            for number in range(20):
                await x.chunk(sse(number))
                await gate.passed(number)
            await x.end_chunks()

        cast(HttpBackend, cell.backend).on("/tokens", tokens)
        await cell.begin(pair.http_port)
        await cell.seconds_for(int(1.1 * cell.rate))
        async with calling(pair.http_port) as caller:
            await caller.send(request("/tokens", f"{cell.name}.test"))
            await caller.begin()
            pending = bytearray()
            slowest = 0.0
            for number in range(20):
                asked = time.monotonic()
                assert await caller.read_event(pending) == sse(number)
                slowest = max(slowest, time.monotonic() - asked)
                gate.received(number)
            assert await caller.rest() == b""
        return slowest

    async with limited(tmp_path, cells) as pair:
        slowest = await all_of(itertools.starmap(stream, zip(cells, gates, strict=True)))
        # A round of all of them is less than a tenth of a second.
        assert max(slowest) < 0.6


async def test_users_who_do_not_read_take_no_credit_and_little_memory(tmp_path: Path) -> None:
    """What the system buffers for them is paid for; after that the others have all of the rate."""
    cells = [Cell(8 * MB, mode) for mode in ("client", "server")]
    async with limited(tmp_path, cells) as pair:
        for cell in cells:
            await cell.begin(count=4, reads=False)
        await until(lambda: all(len(c.backend.pipes) == 4 for c in cells), "the services to serve")
        for cell in cells:
            await cell.begin()

        async def at_full_rate(cell: Cell) -> None:
            while await cell.seconds_for(cell.rate // 4) > 0.25 * (1 + WITHIN):
                pass

        await all_of((at_full_rate(cell) for cell in cells), limit_s=20)
        before = pair.figures()
        took = await all_of(cell.seconds_for(cell.rate) for cell in cells)
        assert all(abs(seconds - 1) < WITHIN for seconds in took)
        for now, then in zip(pair.figures(), before, strict=True):
            # Their services would have sent hundreds of megabytes meanwhile.
            assert now.rss_kib - then.rss_kib < 8 * KB
            assert now.rss_kib < 128 * KB


async def test_datagrams_are_limited_too(tmp_path: Path) -> None:
    size, count, rate = 1000, 75, 100 * KB
    proxies: list[Config] = []
    visitors: list[Config] = []
    for mode in ("client", "server"):
        limit = {"bandwidthLimit": f"{rate // KB}KB", "bandwidthLimitMode": mode}
        shared = {"localIP": HOST, "transport": limit}
        proxies.append({"name": f"udp-{mode}", "type": "udp", "remotePort": free_port(), **shared})
        proxies.append(secret_proxy("sudp", f"sudp-{mode}", allowUsers=["*"], **shared))
        visitors.append(visitor("sudp", f"v-{mode}", f"sudp-{mode}"))
    async with (
        await EchoUdp().start() as echo,
        meeting(tmp_path, echo.port, proxies, visitors) as m,
    ):

        async def talk(port: int) -> float:
            with UdpUser(port) as user:
                await user.echoed(b"?")
                began = time.monotonic()
                for _ in range(count):
                    await user.echoed(bytes(size))
                return time.monotonic() - began

        ports = [made["remotePort"] for made in proxies if "remotePort" in made]
        took = await all_of(talk(port) for port in [*ports, *m.ports.values()])
    # Both ways, as base64 in messages; the first second's bytes are free.
    assert min(took) >= (count * 2 * size * 4 / 3 - rate) / rate


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
async def test_a_limit_is_exact_and_costs_little(
    up: bool, count: int, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    """One after the other, for ten seconds each, and the same without a limit for three."""
    free = Cell(0, up=up, count=count)
    cells = [Cell(4 * MB, mode, up=up, count=count) for mode in ("client", "server")]
    async with limited(tmp_path, [free, *cells]) as pair:

        def spent() -> float:
            return sum(figures.cpu_s for figures in pair.figures())

        await free.begin()
        await until(lambda: free.carried() > 50 * MB, "50 MB")
        cpu, carried, since = spent(), free.carried(), time.monotonic()
        await until(lambda: time.monotonic() - since > 3, "three seconds")
        load = (spent() - cpu) / (time.monotonic() - since)
        speed = (free.carried() - carried) / (time.monotonic() - since)
        free.end()
        for cell in cells:
            await cell.begin()
            await cell.seconds_for(int(1.3 * cell.rate))
            cpu = spent()
            took = await cell.seconds_for(10 * cell.rate)
            share = (spent() - cpu) / took / load
            cell.end()
            figures = (
                f"{cell.name}: {10 / took:.4f} of the rate; CPU {share * load:.3f} s/s, which is "
                f"{share:.1%} of the {load:.2f} without a limit ({speed / MB:.0f} MB/s)"
            )
            record_property("figures", figures)
            assert abs(10 / took - 1) <= 0.05, figures
            assert share < 0.1, figures
