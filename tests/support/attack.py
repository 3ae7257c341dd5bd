"""What attacks on the control port have in common: the target, the victim, the ammunition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.frpwire import peering
from tests.support.http import calling
from tests.support.office import Office
from tests.support.waiting import all_of, until

# What a server under attack may take above what it had before.
MEMORY_KIB = 64 * 1024
# How long the real caller may wait meanwhile.
PATIENCE_S = 3.0

# Values that no honest peer puts into a field.
ABSURD: list[Any] = [
    -1,
    0,
    2**31,
    2**63 - 1,
    -(2**63),
    10**30,
    1.5,
    True,
    None,
    "",
    "a" * 9000,
    "\0\r\n\x1b[31m",
    "../../../etc/passwd",
    "%s%n{0}{x!r}",
    "가\U0001f600\u202e",
    [],
    [[]],
    ["", None, 1, {}],
    ["a" * 300] * 30,
    {},
    {"": ""},
    {"a": 1},
    {"X: a\r\nEvil": "b\r\nEvil: yes"},
    {"a": {"b": {"c": []}}},
]


@dataclass
class Attacked:
    """A scene under attack, by its kind of link."""

    office: Office
    muxed: bool

    @property
    def port(self) -> int:
        return self.office.pair.bind_port

    def peer(self, **options: Any) -> Any:
        return peering(self.port, muxed=self.muxed, **options)


@asynccontextmanager
async def served_meanwhile(target: Attacked) -> AsyncIterator[None]:
    """Keep a real caller busy, and compare the server before and after."""
    scene, server = target.office, target.office.pair.server
    assert await scene.works()
    before = server.figures()
    server.reset_peak()
    failures: list[str] = []
    slowest = 0.0
    stop = asyncio.Event()

    async def serve() -> None:
        nonlocal slowest
        while not stop.is_set():
            started = time.monotonic()
            try:
                async with calling(scene.http_port, limit_s=10) as caller:
                    answer = await caller.get()
                if (answer.status, answer.body) != (200, b"hello"):
                    failures.append(f"status {answer.status}")
            except (AssertionError, OSError) as error:
                failures.append(repr(error))
            slowest = max(slowest, time.monotonic() - started)
            await asyncio.sleep(0.03)

    logins = scene.pair.client.log().count("login to server success")
    caller = asyncio.get_running_loop().create_task(serve(), name="the real caller")
    yield
    stop.set()
    await caller
    assert not failures, failures[:5]
    assert slowest < PATIENCE_S, f"a request took {slowest:.1f} s"
    assert server.is_running()
    assert scene.pair.client.log().count("login to server success") == logins
    await until(lambda: server.figures().fds <= before.fds + 4, "its descriptors to come back", 15)
    after = server.figures()
    assert after.peak_kib - before.rss_kib < MEMORY_KIB, (before, after)
    assert "Traceback" not in server.log()
    assert "Task exception" not in server.log()


async def many(jobs: list[Coroutine[Any, Any, Any]], at_once: int = 50) -> None:
    """Run jobs, some at a time."""
    for start in range(0, len(jobs), at_once):
        await all_of(jobs[start : start + at_once])


async def throw(port: int, data: bytes, *, wait: bool = True, cut: bool = False) -> None:
    """Send bytes on a connection of their own; they may be answered by anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if cut and writer.can_write_eof():
            writer.write_eof()
        if wait:
            async with asyncio.timeout(2):
                while await reader.read(65536):
                    pass
    except (OSError, TimeoutError):
        pass  # Being cut off is what this deserves; being left waiting is bounded elsewhere.
    finally:
        writer.transport.abort()
