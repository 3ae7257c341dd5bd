"""HTTP/2 on real connections, on each kind of loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from pyfrp.net.scope import Scope
from pyfrp.vhost.frontend import HttpFrontend, HttpRoute
from pyfrp.vhost.upstream import UpstreamPool
from pyfrp.wire.http1 import ChunkedDecoder
from tests.support.http2 import HOST, http2
from tests.unit.vhost.http2_scene import CHUNKED, DOMAIN, Log, Wire, answer, chunk

PIECE = bytes(range(256)) * 64
PIECES = 512


class Fountain(Wire):
    """A service that sends 8 MiB as fast as it is allowed to, or hashes what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 0
        self._body = ChunkedDecoder()
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if data.startswith(b"GET"):
            self._left = PIECES
            loop.call_soon(self.feed, CHUNKED)
            loop.call_soon(self._flow)
            return
        if data.startswith(b"POST"):
            data = data.partition(b"\r\n\r\n")[2]
        self._digest.update(self._body.feed(data)[0])
        if self._body.done:
            loop.call_soon(self.feed, answer(self._digest.hexdigest().encode()))

    def _flow(self) -> None:
        if self.closed or not self.reading:
            return
        if self._left:
            self._left -= 1
            self.feed(chunk(PIECE))
            asyncio.get_running_loop().call_soon(self._flow)
        else:
            self.feed(b"0\r\n\r\n")

    def resume_reading(self) -> None:
        if not self.reading:
            self.reading = True
            asyncio.get_running_loop().call_soon(self._flow)


@asynccontextmanager
async def serving(*, adopted: bool) -> AsyncIterator[int]:
    """A frontend at a free port; its connections are its own, or handed over paused."""
    scope = Scope(lambda exc, name: None)
    frontend = HttpFrontend(
        header_timeout_s=0, frp_errors=False, not_found_page="", log=Log(), scope=scope
    )
    backends: list[Fountain] = []

    async def connect(caller: tuple[str, int]) -> tuple[Any, bytes]:
        backends.append(Fountain())
        return backends[-1], b""

    pool = UpstreamPool(connect, frontend.clock)
    route = HttpRoute("llm", pool, request_edit=None, response_edit=None, user="", password="")
    frontend.router.add(DOMAIN, "", "", route)

    class Sniffer(asyncio.Protocol):
        """As the shared port does it: the first bytes decide, then another protocol reads."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.pause_reading()
            frontend.adopt(self.transport, data)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Sniffer if adopted else frontend.protocol, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
        async with asyncio.timeout(5):
            await frontend.drain()
    finally:
        server.close()
        frontend.close()
        await scope.close()


async def test_bulk_both_ways_on_streams_side_by_side(loop_kind: str) -> None:
    async with serving(adopted=False) as port, http2(port) as caller:
        down = [caller.request("/down", DOMAIN) for _ in range(3)]
        up = caller.request("/up", DOMAIN, "POST", end=False)
        sent = hashlib.sha256()
        for _ in range(64):
            await caller.send(up, PIECE)
            sent.update(PIECE)
        await caller.send(up, b"", end=True)
        answered = await caller.answer(up)
        assert bytes(answered.body).decode() == sent.hexdigest()
        for stream in down:
            assert (await caller.answer(stream)).body == PIECE * PIECES


async def test_a_connection_handed_over_paused_is_served(loop_kind: str) -> None:
    async with serving(adopted=True) as port, http2(port) as caller:
        for _ in range(3):
            for _ in range(40):
                caller.link.ping(b"12345678")
            stream = caller.request("/down", DOMAIN)
            assert (await caller.answer(stream)).body == PIECE * PIECES
