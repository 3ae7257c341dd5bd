"""Months in seconds: thousands of requests and hundreds of reconnects leave nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.backends import sse
from tests.support.http import Caller, request
from tests.support.office import Office, office
from tests.support.processes import LOGIN_DONE, Kind
from tests.support.services import BLOCK
from tests.support.waiting import all_of, until, until_async

pytestmark = [pytest.mark.clock, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="function")]

CALLERS = 50
# What may be more at the end than at the start, per process. Memory also holds what allocators
# keep of earlier bursts, so it is given more room than the countable things.
MORE_FDS = 3
MORE_TASKS = 3
MORE_OBJECTS = 1500
# Without mux each work connection brings a TLS state of its own: a client of many stops growing
# only some thousands of them later, at about 76 MiB.
MORE_KIB = {True: 6 * 1024, False: 16 * 1024}


@dataclass(frozen=True)
class Figures:
    """One process at rest."""

    fds: int
    tasks: int
    objects: int
    rss_kib: int
    names: str


async def _requests(scene: Office, count: int) -> None:
    """`count` requests of every kind, from `CALLERS` callers side by side."""

    async def caller(share: int) -> None:
        kept = await Caller.open(scene.http_port)
        try:
            for number in range(share):
                kind = number % 10
                if kind == 0:
                    assert (await kept.get("/events?n=4")).body == b"".join(map(sse, range(4)))
                elif kind == 1:
                    await kept.send(request("/echo", method="POST", body=BLOCK[:5000]))
                    assert (await kept.answer()).body == BLOCK[:5000]
                elif kind == 2:
                    assert (await scene.get()).body == b"hello"
                elif kind == 3:
                    assert (await scene.get("/hello", "nobody.test")).status == 404
                elif kind == 4:
                    await _desert(scene, number)
                elif kind == 5:
                    await _echo(scene)
                else:
                    assert (await kept.get()).body == b"hello"
        finally:
            await kept.close()

    await all_of((caller(count // CALLERS) for _ in range(CALLERS)), limit_s=100)


async def _desert(scene: Office, number: int) -> None:
    """A caller that leaves in the middle of it."""
    deserter = await Caller.open(scene.http_port)
    await deserter.send(request("/hang" if number % 20 == 4 else f"/bytes?n={200_000}"))
    if number % 20 != 4:
        await deserter.begin()
        await deserter.read()
    await (deserter.reset() if number % 40 < 20 else deserter.close())


async def _echo(scene: Office) -> None:
    caller = await Caller.open(scene.echo_port)
    await caller.send(b"echo")
    assert await caller.exactly(4) == b"echo"
    await caller.close()


async def _reconnects(scene: Office, count: int) -> None:
    """Lose the link `count` times, in two ways, with requests under way."""
    client = scene.pair.client
    assert scene.relay is not None
    for number in range(count):
        callers = await all_of(scene.caller() for _ in range(3))
        for caller in callers:
            await caller.send(request("/hang"))
        await scene.api.saw("/hang")
        offset = client.mark()
        if number % 2:
            scene.relay.cut()
        else:
            scene.relay.close_all()
        await client.logged(LOGIN_DONE, 10, offset=offset)
        scene.drop_callers()
        if number % 10 == 0:
            await until_async(scene.works, "requests to work after a reconnect")
        await client.logged(r"\[llm-api\] start proxy success", 10, offset=offset)
        scene.api.forget()


async def _at_rest(scene: Office, most_tasks: int | None = None) -> list[Figures]:
    """Both processes shortly after a reconnect, when no idle pool hides anything.

    Args:
        most_tasks: Wait for this; what was cut off in a handshake may take its ten seconds.
    """
    await _reconnects(scene, 1)
    await until_async(scene.works, "requests to work")
    await _echo(scene)
    await until(lambda: len(scene.api.live) <= 2 and not scene.echo.live, "connections to end")
    found = []
    for program in (scene.pair.server, scene.pair.client):
        insides = await program.insides()
        deadline = time.monotonic() + 13.0
        while most_tasks is None or insides["tasks"] > most_tasks:
            if time.monotonic() > deadline:
                break
            before = insides
            await asyncio.sleep(0.3)
            insides = await program.insides()
            if most_tasks is None and insides["tasks"] == before["tasks"]:
                break
        figures = program.figures()
        found.append(
            Figures(
                figures.fds,
                insides["tasks"],
                insides["objects"],
                figures.rss_kib,
                str(insides["names"]),
            )
        )
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("mux", "requests", "reconnects"), [(True, 10_000, 200), (False, 2_500, 50)], ids=str
)
async def test_nothing_grows_with_requests_and_reconnects(
    kinds: tuple[Kind, Kind],
    tmp_path: Path,
    mux: bool,
    requests: int,
    reconnects: int,
    record_property: Callable[[str, str], None],
) -> None:
    assert kinds == ("ours", "ours"), "only our programs tell their insides"
    link = {"transport": {"tcpMux": mux}}
    async with office(tmp_path, server=link, client=link, relayed=True, observed=True) as scene:
        # What is loaded or kept on first use is no growth.
        await _requests(scene, 1500)
        await _reconnects(scene, 10)
        before = await _at_rest(scene)
        await _requests(scene, requests)
        await _reconnects(scene, reconnects)
        await until(lambda: len(scene.api.live) <= 10, "deserted connections to end", 20)
        after = await _at_rest(scene, max(old.tasks for old in before) + 2)
        for name, old, new in zip(("server", "client"), before, after, strict=True):
            told = f"{name}: {old} became {new}"
            record_property(name, told)
            assert new.fds <= old.fds + MORE_FDS, told
            assert new.tasks <= old.tasks + MORE_TASKS, told
            assert new.objects <= old.objects + MORE_OBJECTS, told
            assert new.rss_kib <= old.rss_kib + MORE_KIB[mux], told
