"""Both programs on plain asyncio, as they run where uvloop does not exist."""

from __future__ import annotations

import pytest

from tests.support.backends import Exchange, Gate, sse
from tests.support.frpwire import peering
from tests.support.http import Caller, request
from tests.support.office import Office
from tests.support.processes import TOKEN
from tests.support.services import pattern, pattern_hash, peer_left
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.clock, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SCENE = {"env": {"PYFRP_LOOP": "asyncio"}}
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _fresh_records(fresh: Office) -> None:
    """Every test counts requests from zero."""


async def test_64_kept_connections_do_not_stall(scene: Office) -> None:
    async def one() -> None:
        async with scene.calling() as caller:
            for _ in range(30):
                assert (await caller.get()).body == b"hello"

    await all_of((one() for _ in range(64)), limit_s=30)


async def test_200_streams_arrive_whole(scene: Office) -> None:
    whole = b"".join(sse(number) for number in range(10))

    async def one() -> None:
        assert (await scene.get("/events?n=10")).body == whole

    for _ in range(3):
        await all_of((one() for _ in range(200)), limit_s=30)


async def test_events_arrive_one_by_one(scene: Office) -> None:
    gate = Gate()

    async def script(x: Exchange) -> None:
        await x.start_chunked()
        for number in range(20):
            await x.chunk(sse(number))
            await gate.passed(number)
        await x.end_chunks()

    scene.api.on("/gated", script)
    async with scene.calling() as caller:
        await caller.send(request("/gated"))
        await caller.begin()
        pending = bytearray()
        for number in range(20):
            assert await caller.read_event(pending) == sse(number)
            gate.received(number)


async def test_bulk_passes_in_both_directions_at_once(scene: Office) -> None:
    size = 32 * MIB

    async def down() -> None:
        async with scene.calling(limit_s=60) as caller:
            await caller.send(request(f"/bytes?n={size}"))
            await caller.begin()
            assert await caller.rest_hash() == (size, pattern_hash(size))

    async def up() -> None:
        async with scene.calling(limit_s=60) as caller:
            fields = [("Content-Length", str(size))]
            await caller.send(request("/hash", method="POST", headers=fields))
            for piece in pattern(size):
                await caller.send(piece)
            assert (await caller.answer()).json() == {"size": size, "sha256": pattern_hash(size)}

    await all_of([down(), up(), down(), up()])


async def test_leaving_and_half_closing_are_carried(scene: Office) -> None:
    serving: list[Exchange] = []

    async def script(x: Exchange) -> None:
        serving.append(x)
        await x.gone.wait()

    scene.api.on("/generate", script)
    caller = await scene.caller()
    await caller.send(request("/generate"))
    await until(lambda: serving, "the request at the backend")
    await caller.close()
    await peer_left(serving[0].pipe, 1.0)
    echo = await Caller.open(scene.echo_port)
    await echo.send(b"all I have to say")
    echo.half_close()
    assert await echo.everything() == b"all I have to say"
    await echo.close()


async def test_strangers_are_refused(scene: Office) -> None:
    async with peering(scene.pair.bind_port) as peer:
        assert "token" in (await peer.login("wrong"))["error"]
    async with peering(scene.pair.bind_port, tls=True) as peer:
        assert not (await peer.login(TOKEN)).get("error")
        assert await peer.ask("h", {}, "4") == {}
    async with peering(scene.pair.bind_port) as peer:
        peer.raw(b"\t" * 100)
        assert await peer.closed()


async def test_it_ends_as_asked(scene: Office) -> None:
    """Last in this file: it ends both programs."""
    assert await scene.pair.client.terminate(5) == 0
    await until(lambda: not scene.echo.live, "connections to end")
    assert await scene.pair.server.terminate(5) == 0
