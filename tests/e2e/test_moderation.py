"""A client that is woken often gives way to its service, until it is woken seldom again."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.support.office import Office, office
from tests.support.waiting import until

pytestmark = [
    pytest.mark.clock,
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="function"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the policy"),
]


async def _ask_without_pause(scene: Office) -> None:
    async with scene.calling() as caller:
        while True:
            assert (await caller.get("/hello")).body == b"hello"


async def test_a_client_gives_way_while_it_is_woken_often(tmp_path: Path) -> None:
    async with office(tmp_path) as scene:
        server, client = scene.pair.server.pid, scene.pair.client.pid
        assert os.sched_getscheduler(client) == os.SCHED_OTHER
        asking = asyncio.create_task(_ask_without_pause(scene))
        try:
            await until(
                lambda: asking.done() or os.sched_getscheduler(client) == os.SCHED_BATCH,
                "the client to give way",
            )
            assert not asking.done(), asking
            assert os.sched_getscheduler(server) == os.SCHED_OTHER, "it has no service beside it"
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        await until(lambda: os.sched_getscheduler(client) == os.SCHED_OTHER, "the client as it was")
        assert await scene.works()
