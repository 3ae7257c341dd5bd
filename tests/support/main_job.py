"""What a tunnel is for, as its users do it: what a table of links runs through each of them."""

from __future__ import annotations

import hashlib
import os

from tests.support.backends import Exchange, Gate, HttpBackend, sse
from tests.support.datagrams import UdpUser
from tests.support.http import calling, request
from tests.support.services import BLOCK

EVENTS = 8
_HASH = hashlib.sha256(BLOCK).hexdigest()


async def small_requests(port: int, domain: str) -> None:
    """A few on one connection."""
    async with calling(port) as caller:
        for _ in range(3):
            answer = await caller.get("/hello", domain)
            assert (answer.status, answer.body) == (200, b"hello")


async def events_one_by_one(port: int, domain: str, backend: HttpBackend) -> None:
    """None is sent before its predecessor has arrived."""
    gate = Gate()
    path = f"/gated-{os.urandom(8).hex()}"

    async def script(x: Exchange) -> None:
        await x.start_chunked()
        for number in range(EVENTS):
            await x.chunk(sse(number))
            await gate.passed(number)
        await x.end_chunks()

    backend.on(path, script)
    async with calling(port) as caller:
        await caller.send(request(path, domain))
        head = await caller.begin()
        assert head.get("content-type") == "text/event-stream"
        pending = bytearray()
        for number in range(EVENTS):
            assert await caller.read_event(pending) == sse(number)
            gate.received(number)
        assert not pending
        assert await caller.rest() == b""


async def megabyte_up(port: int, domain: str) -> None:
    async with calling(port) as caller:
        await caller.send(request("/hash", domain, "POST", body=BLOCK))
        answer = await caller.answer()
        assert answer.json() == {"size": len(BLOCK), "sha256": _HASH}


async def megabyte_down(port: int, domain: str) -> None:
    async with calling(port) as caller:
        await caller.send(request(f"/bytes?n={len(BLOCK)}", domain))
        assert (await caller.begin()).status == 200
        assert await caller.rest_hash() == (len(BLOCK), _HASH)


async def echoes(port: int) -> None:
    """Pieces one by one, then a megabyte, on one connection."""
    async with calling(port) as caller:
        for number in range(EVENTS):
            await caller.echoed(sse(number))
        await caller.echoed(BLOCK)


async def datagrams(port: int) -> None:
    """Of several sizes, one by one."""
    with UdpUser(port) as user:
        for size in (1, 64, 1400):
            await user.echoed(os.urandom(size))
