"""Two mux transports on one link: in memory, on TCP, or on TLS over TCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pyfrp.net.mux import MuxStream, MuxTransport
from pyfrp.net.tls import upgrade
from tests.support.waiting import until
from tests.unit.net.ends import MemoryEnd, Reader, memory_pair, tcp_pair
from tests.unit.net.tls_pair import NAME, client_context, server_context


@dataclass
class MuxSide:
    """One mux transport, what it accepted and what became of it."""

    link: Any
    streams: list[MuxStream] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    lost: list[BaseException] = field(default_factory=list)
    errors: list[tuple[BaseException, str]] = field(default_factory=list)
    on_stream: Callable[[MuxStream, Reader], None] | None = None
    mux: MuxTransport = field(init=False)

    def start(self, *, client: bool, keepalive_s: float) -> None:
        self.mux = MuxTransport(
            self.link,
            client=client,
            on_stream=self._accept,
            on_lost=self.lost.append,
            keepalive_s=keepalive_s,
            on_error=lambda exc, what: self.errors.append((exc, what)),
        )
        self.link.resume_reading()

    def _accept(self, stream: MuxStream) -> None:
        reader = Reader()
        stream.set_protocol(reader)
        self.streams.append(stream)
        self.readers.append(reader)
        if self.on_stream is not None:
            self.on_stream(stream, reader)

    def open(self) -> tuple[MuxStream, Reader]:
        stream = self.mux.open()
        reader = Reader()
        stream.set_protocol(reader)
        return stream, reader

    async def accepted(self, count: int = 1) -> tuple[MuxStream, Reader]:
        """The newest of `count` accepted streams."""
        await until(lambda: len(self.streams) >= count, f"{count} streams")
        return self.streams[count - 1], self.readers[count - 1]


@asynccontextmanager
async def mux_pair(
    kind: str = "memory", *, keepalive_s: float = 0
) -> AsyncIterator[tuple[MuxSide, MuxSide]]:
    """A client's and a server's side."""
    if kind == "memory":
        near, far = memory_pair()
        async with _running(near, far, keepalive_s) as sides:
            yield sides
        return
    async with tcp_pair() as (near, far):
        near.pause_reading()
        far.pause_reading()
        if kind == "tls":
            near, far = await asyncio.gather(
                upgrade(near, client_context(), server_side=False, server_name=NAME),
                upgrade(far, server_context(), server_side=True),
            )
        async with _running(near, far, keepalive_s) as sides:
            yield sides


@asynccontextmanager
async def _running(
    near: Any, far: Any, keepalive_s: float
) -> AsyncIterator[tuple[MuxSide, MuxSide]]:
    sides = MuxSide(near), MuxSide(far)
    for side, client in zip(sides, (True, False), strict=True):
        side.start(client=client, keepalive_s=keepalive_s)
    try:
        yield sides
    finally:
        for side in sides:
            side.mux.close()


def link_of(side: MuxSide) -> MemoryEnd:
    """The link of a pair in memory."""
    assert isinstance(side.link, MemoryEnd)
    return side.link
