"""What a token waits beside downloads on a thin link: `python -m tests.perf.thin_link`.

A stream of a token each 50 ms and small requests, beside so many downloads, through a relay that
lets 1 MB/s pass between client and server; the official pair and ours in turn. The relay itself
holds about half a second of that.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tests.support.backends import Exchange
from tests.support.office import DOMAIN, office
from tests.support.processes import Kind

KINDS: tuple[Kind, ...] = ("official", "ours")
EVERY_S = 0.05
_TIME = re.compile(rb"at (\d+) ns")


async def _tokens(x: Exchange) -> None:
    await x.start_chunked()
    while True:
        await x.chunk(
            b"data: at %019d ns, and about as long as a token is\n\n" % time.monotonic_ns()
        )
        await asyncio.sleep(EVERY_S)


async def _download(x: Exchange) -> None:
    await x.start_chunked()
    while True:
        await x.chunk(bytes(64 * 1024))


class Measure:
    """What callers at a port see.

    Attributes:
        tokens_ms, requests_ms: Delays.
        carried: Bytes of downloads.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.tokens_ms: list[float] = []
        self.requests_ms: list[float] = []
        self.carried = 0

    def clear(self) -> None:
        self.tokens_ms.clear()
        self.requests_ms.clear()
        self.carried = 0

    async def _ask(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"GET {path} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        return reader, writer

    async def stream(self) -> None:
        reader, writer = await self._ask("/tokens")
        try:
            while line := await reader.readline():
                if found := _TIME.search(line):
                    self.tokens_ms.append((time.monotonic_ns() - int(found[1])) / 1e6)
        finally:
            writer.transport.abort()

    async def download(self) -> None:
        reader, writer = await self._ask("/download")
        try:
            while data := await reader.read(64 * 1024):
                self.carried += len(data)
        finally:
            writer.transport.abort()

    async def requests(self) -> None:
        while True:
            begun = time.monotonic()
            reader, writer = await self._ask("/hello")
            try:
                await reader.read()
            finally:
                writer.transport.abort()
            self.requests_ms.append((time.monotonic() - begun) * 1e3)
            await asyncio.sleep(0.1)


async def _measure(kind: Kind, downloads: int, rate: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pair = office(Path(directory), kinds=(kind, kind), relayed=True, thin=True)
        async with pair as scene:
            assert scene.relay is not None
            scene.api.on("/tokens", _tokens)
            scene.api.on("/download", _download)
            scene.relay.throttle(rate)
            seen = Measure(scene.http_port)
            loads: list[Coroutine[Any, Any, None]] = [seen.stream(), seen.requests()]
            loads += [seen.download() for _ in range(downloads)]
            tasks = [asyncio.create_task(load) for load in loads]
            await asyncio.sleep(4)  # Until everything is as full as it gets.
            seen.clear()
            await asyncio.sleep(seconds)
            tokens, requests, carried = seen.tokens_ms, seen.requests_ms, seen.carried
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            scene.relay.throttle(None)
    print(
        f"{kind:8}  {downloads:3} downloads  token p50 {_median(tokens)} ms  "
        f"request p50 {_median(requests)} ms  downloads {carried / seconds / 1e3:.0f} KB/s",
        flush=True,
    )


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):5.0f}" if values else "never"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--rate", type=int, default=1_000_000, help="bytes per second")
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    for downloads in args.downloads:
        for kind in KINDS:
            asyncio.run(_measure(kind, downloads, args.rate, args.seconds))


if __name__ == "__main__":
    main()
