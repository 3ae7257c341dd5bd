"""Groups whose services come and go under load: health checks take them out and put them back.

Two clients share an http group and a tcp group, each member with a service of its own. The
services go bad in turn, in the ways that services do, while users keep coming.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.e2e.test_groups import Stage, grouped, stage
from tests.support.backends import Exchange, HttpBackend
from tests.support.http import Answer, fetch
from tests.support.processes import http_proxy, tcp_proxy
from tests.support.services import running
from tests.support.waiting import PATIENCE_S, until, within

pytestmark = [pytest.mark.waits, pytest.mark.e2e]

INTERVAL_S = 1
# What a look at the service, the way to the server, and a busy machine may add.
SLACK_S = 1.0
HTTP_EVERY_S = 1 / 50
TCP_EVERY_S = 1 / 10

# Healthy; answering users, but not its health check; not listening.
State = Literal["well", "sick", "down"]


class Service(HttpBackend):
    """Says its name, and goes bad when it is told to."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.state: State = "well"
        self.downs: list[float] = []  # When it stopped to listen.
        self.known_since = 0.0  # When its client was told that it is sick.
        self.served = 0
        self.late: list[float] = []  # Users who came although that was known, and how much later.
        self.on("/who", self._who)
        self.on("/health", self._health)

    async def _who(self, x: Exchange) -> None:
        self.served += 1
        if self.state == "sick" and self.known_since:
            self.late.append(time.monotonic() - self.known_since)
        await x.body()
        await x.reply(self.name)

    async def _health(self, x: Exchange) -> None:
        if self.state == "sick" and not self.known_since:
            self.known_since = time.monotonic()
        await x.reply(b"", status="200 OK" if self.state == "well" else "503 Sick")

    async def become(self, state: State) -> None:
        self.known_since = 0.0
        self.state = state
        if state == "down":
            self.downs.append(time.monotonic())
            await self.stop()
        elif not self.listening:
            await self.start()


@dataclass
class Load:
    """Users who keep coming.

    Args:
        come: One of them; an error is kept.
        every_s: Seconds between two.
    """

    come: Callable[[], Awaitable[Answer]]
    every_s: float
    sent: int = 0
    failed: list[tuple[float, str]] = field(default_factory=list)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as users:
            while True:
                self.sent += 1
                users.create_task(self._one())
                due += self.every_s
                await asyncio.sleep(max(0.0, due - loop.time()))

    async def _one(self) -> None:
        came = time.monotonic()
        try:
            answer = await within(self.come(), PATIENCE_S, "an answer")
            if answer.status != 200:
                self.failed.append((came, f"status {answer.status}"))
        except (OSError, AssertionError, asyncio.IncompleteReadError) as exc:
            self.failed.append((came, f"{type(exc).__name__}: {exc}"))


async def used(service: Service) -> None:
    """Wait until users reach a service (again)."""
    before = service.served
    await until(lambda: service.served > before, f"{service.name} to be used")


async def flap(s: Stage, pair: list[Service], ways: list[State], end: float) -> int:
    """Let one service after the other go bad and recover, never both at once."""
    flaps = 0
    while time.monotonic() < end:
        victim, way = pair[flaps % 2], ways[flaps % len(ways)]
        offset = s.server.mark()
        await victim.become(way)
        await s.server.logged(rf"close proxy \[{victim.name}\] success", offset=offset)
        await victim.become("well")
        await s.server.logged(rf"new proxy \[{victim.name}\] .* success", offset=offset)
        await used(victim)
        flaps += 1
    return flaps


def registrations(log: str, name: str) -> list[int]:
    """How often a proxy was registered after each coming and going."""
    counts = [0]
    pattern = rf"new proxy \[{name}\] type \[\w+\] (success)|close proxy \[{name}\] success"
    for match in re.finditer(pattern, log):
        counts.append(counts[-1] + (1 if match[1] else -1))
    return counts


def proxies(s: Stage, web: Service, raw: Service) -> list[dict[str, object]]:
    every = {"intervalSeconds": INTERVAL_S, "timeoutSeconds": 1}
    http = http_proxy(web.name, web.port, "group.test")
    tcp = tcp_proxy(raw.name, raw.port, s.ports.tcp)
    return [
        grouped(http | {"healthCheck": {"type": "http", "path": "/health", **every}}, "g"),
        grouped(tcp | {"healthCheck": {"type": "tcp", **every}}, "g"),
    ]


@pytest.mark.parametrize(
    "seconds", [8, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(180)])]
)
async def test_services_that_flap_cost_no_request_and_no_proxy(
    seconds: int, tmp_path: Path
) -> None:
    web = [Service("web-a"), Service("web-b")]
    raw = [Service("raw-a"), Service("raw-b")]
    async with running(*web, *raw), stage(tmp_path, "ours") as s:
        clients = [
            await s.client(f"client-{n}", "ours", proxies(s, web[n], raw[n])) for n in (0, 1)
        ]
        for client in clients:
            await s.started(client)
        # As calls of an LLM API are; such requests are repeated less freely than a GET.
        post = {"method": "POST", "body": b"x" * 2000}
        http = Load(lambda: fetch(s.ports.http, "/who", "group.test", **post), HTTP_EVERY_S)
        tcp = Load(lambda: fetch(s.ports.tcp, "/who"), TCP_EVERY_S)
        loads = [asyncio.create_task(load.run()) for load in (http, tcp)]
        try:
            end = time.monotonic() + seconds
            flaps = await asyncio.gather(
                flap(s, web, ["sick", "down", "down", "sick"], end), flap(s, raw, ["down"], end)
            )
            failed = list(http.failed)
            # All of a group at once, and back.
            offset = s.server.mark()
            for service in web:
                await service.become("down")
            for service in web:
                await s.server.logged(rf"close proxy \[{service.name}\] success", offset=offset)
            assert (await fetch(s.ports.http, "/who", "group.test")).status == 503
            for service in web:
                await service.become("well")
            for service in (*web, *raw):
                await used(service)
        finally:
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
        log = s.server.log()
    assert all(count >= seconds // 6 for count in flaps), flaps
    assert http.sent > 40 * seconds, http.sent
    # One of the group was well all the time, so that every request had an answer.
    assert not failed, failed[:5]
    # No request went to a service that was known to be dead for longer than the interval.
    for service in web:
        assert all(late <= INTERVAL_S for late in service.late), (service.name, service.late)
    # Users of a bridge meet a dead service at most until the next look at it.
    downs = [down for service in raw for down in service.downs]
    for came, why in tcp.failed:
        assert any(down - SLACK_S <= came <= down + INTERVAL_S + SLACK_S for down in downs), why
    for service in (*web, *raw):
        counts = registrations(log, service.name)
        assert set(counts) == {0, 1}, (service.name, counts)
        assert counts[-1] == 1, (service.name, counts)
    assert "already exists" not in log
