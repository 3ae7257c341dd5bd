"""A server that has no file descriptors left: it says so, lives on, and serves again afterwards."""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

import pytest

from tests.support.office import office
from tests.support.waiting import until_async

pytestmark = [
    pytest.mark.waits,
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="function"),
    pytest.mark.skipif(sys.platform != "linux", reason="limits of others are Linux's to set"),
]


async def test_a_server_without_descriptors_says_so_and_recovers(tmp_path: Path) -> None:
    async with office(tmp_path) as scene:
        server = scene.pair.server
        spare = 20
        allowed = server.figures().fds + spare
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (allowed, allowed))
        before = server.figures()
        writers = []
        try:
            for _ in range(3 * spare):
                _, writer = await asyncio.open_connection("127.0.0.1", scene.http_port)
                writers.append(writer)
            await server.logged(rf"\[W\].* no file descriptors are left of {allowed}: ")
        finally:
            for writer in writers:
                writer.transport.abort()
        await server.logged("enough file descriptors again")
        await until_async(scene.works, "an answer")
        assert server.figures().cpu_s - before.cpu_s < 1.0, "it spun"
