"""SIGTERM, SIGINT and SIGSTOP of either side, with and without load."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.backends import Exchange, sse
from tests.support.http import Caller, request
from tests.support.office import Office, office
from tests.support.ports import free_port
from tests.support.processes import Config, Kind, Program, Role, client_config, server_config
from tests.support.waiting import all_of, until, until_async, within

pytestmark = [pytest.mark.waits, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="function")]

BEATS: Config = {"transport": {"heartbeatInterval": 1, "heartbeatTimeout": 3}}
BEATS_SERVER: Config = {"transport": {"heartbeatTimeout": 3}}
STREAMS = 20
Kinds = tuple[Kind, Kind]


def side(scene: Office, role: str) -> Program:
    return scene.pair.server if role == "server" else scene.pair.client


async def _events(x: Exchange) -> None:
    """Numbered events, 20 ms apart."""
    await x.start_chunked()
    for number in range(int(x.request.query["n"])):
        await x.chunk(sse(number))
        await asyncio.sleep(0.02)
    await x.end_chunks()


async def _stream(scene: Office, started: asyncio.Semaphore, count: int) -> None:
    """Follow one stream to its end; every event must come, in order."""
    async with scene.calling(limit_s=30) as caller:
        await caller.send(request(f"/paced?n={count}"))
        assert (await caller.begin()).status == 200
        first = await caller.read()
        started.release()
        assert first + await caller.rest() == b"".join(sse(n) for n in range(count))


async def _acquire(started: asyncio.Semaphore, count: int) -> None:
    for _ in range(count):
        await started.acquire()


@asynccontextmanager
async def _streaming(
    scene: Office, started: asyncio.Semaphore
) -> AsyncIterator[asyncio.Task[None]]:
    """A stream of two seconds that is under way; on leaving it must end whole."""
    task = asyncio.get_running_loop().create_task(_stream(scene, started, 100))
    try:
        await within(_acquire(started, 1), 5, "the stream to run")
        yield task
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- the end, asked for -------------------------------------------------------------------


@pytest.mark.parametrize("role", ["server", "client"])
async def test_systemd_is_told_how_long_the_end_may_take(tmp_path: Path, role: Role) -> None:
    """Its unit gives 45 s, after which it kills; the file may give open answers more."""
    long = {"shutdownTimeout": 300}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        loop = asyncio.get_running_loop()
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        async with office(tmp_path, server=long, client=long, env=env) as scene:
            await within(loop.sock_recv(systemd, 1000), 5, "READY of one")
            await within(loop.sock_recv(systemd, 1000), 5, "READY of the other")
            assert await side(scene, role).terminate() == 0
            told = await within(loop.sock_recv(systemd, 1000), 5, "STOPPING")
            assert told == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=360000000"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("role", ["server", "client"])
async def test_an_idle_program_ends_at_once_with_0(
    kinds: Kinds, tmp_path: Path, role: str, number: int
) -> None:
    async with office(tmp_path, kinds=kinds) as scene:
        assert await scene.works()
        program = side(scene, role)
        started = time.monotonic()
        program.signal(number)
        assert await program.exited(5) == 0
        # An official server keeps the connection of a request, so our client waits for silence.
        kept = role == "client" and kinds == ("official", "ours")
        assert time.monotonic() - started < (4.0 if kept else 2.0)


@pytest.mark.parametrize("role", ["server", "client"])
async def test_a_program_that_waits_for_its_token_ends_at_once_with_what_it_asked(
    tmp_path: Path, role: Role
) -> None:
    printed = tmp_path / "pid"
    run = {
        "command": "sh",
        "args": ["-c", f"echo $$ > {printed}.new; mv {printed}.new {printed}; exec sleep 60"],
    }
    config = server_config() if role == "server" else client_config(free_port(), [])
    config["auth"] = {"tokenSource": {"type": "exec", "exec": run}}
    program = Program("ours", role, config, tmp_path)
    program.start("--allow-unsafe", "TokenSourceExec")
    try:
        await until(printed.exists, "the program that prints the token")
        started = time.monotonic()
        program.signal(signal.SIGTERM)
        assert await program.exited(5) == 0
        assert time.monotonic() - started < 2
        words = Path(f"/proc/{printed.read_text().strip()}/cmdline")
        assert not words.exists() or not words.read_bytes()  # Of one that nobody has buried yet.
    finally:
        program.kill()


@pytest.mark.parametrize("role", ["server", "client"])
async def test_sigterm_under_load_lets_open_answers_finish(
    kinds: Kinds, tmp_path: Path, role: str
) -> None:
    async with office(tmp_path, kinds=kinds) as scene:
        scene.api.on("/paced", _events)
        started = asyncio.Semaphore(0)
        program = side(scene, role)

        async def end_it() -> int:
            await within(_acquire(started, STREAMS), 10, "the streams to run")
            program.signal(signal.SIGTERM)
            return await program.exited(20)

        jobs = [_stream(scene, started, 100) for _ in range(STREAMS)]
        results = await all_of([end_it(), *jobs])
        assert results[0] == 0


async def test_a_draining_server_takes_no_new_connection(kinds: Kinds, tmp_path: Path) -> None:
    async with office(tmp_path, kinds=kinds) as scene:
        scene.api.on("/paced", _events)
        started = asyncio.Semaphore(0)
        async with _streaming(scene, started) as streaming:
            await _server_drains(scene, streaming)
        assert await scene.pair.server.exited(5) == 0
        # The client was told or noticed, and is there when the server is.
        scene.pair.server.start()
        await until_async(scene.works, "requests to work again", 30)


async def _server_drains(scene: Office, streaming: asyncio.Task[None]) -> None:
    scene.pair.server.signal(signal.SIGTERM)

    async def refused() -> bool:
        try:
            caller = await Caller.open(scene.http_port)
        except ConnectionRefusedError:
            return True
        await caller.close()
        return False

    await until_async(refused, "the HTTP port to be closed", 1.0)
    assert not streaming.done()


async def test_a_draining_client_is_away_for_new_requests(kinds: Kinds, tmp_path: Path) -> None:
    async with office(tmp_path, kinds=kinds) as scene:
        scene.api.on("/paced", _events)
        started = asyncio.Semaphore(0)
        async with _streaming(scene, started) as streaming:
            scene.pair.client.signal(signal.SIGTERM)

            async def away() -> bool:
                return (await scene.get()).status == 503

            await until_async(away, "new requests to be refused", 1.5)
            assert not streaming.done()
        assert await scene.pair.client.exited(5) == 0


@pytest.mark.parametrize("role", ["server", "client"])
async def test_a_second_signal_ends_at_once(kinds: Kinds, tmp_path: Path, role: str) -> None:
    async with office(tmp_path, kinds=kinds) as scene:
        caller = await scene.caller()
        await caller.send(request("/hang"))
        await scene.api.saw("/hang")
        program = side(scene, role)
        program.signal(signal.SIGTERM)
        await program.logged("stop")
        await asyncio.sleep(0.3)
        assert program.is_running()
        program.signal(signal.SIGTERM)
        await program.exited(2)
        await caller.close()


# --- processes that stand still -----------------------------------------------------------


@pytest.mark.parametrize("role", ["server", "client"])
async def test_a_program_that_stood_still_for_a_moment_goes_on_as_if_nothing_was(
    kinds: Kinds, tmp_path: Path, role: str
) -> None:
    async with office(tmp_path, kinds=kinds) as scene:
        scene.api.on("/paced", _events)
        started = asyncio.Semaphore(0)
        program = side(scene, role)

        async def stop_and_go() -> None:
            await within(_acquire(started, STREAMS), 10, "the streams to run")
            program.signal(signal.SIGSTOP)
            try:
                late = [asyncio.get_running_loop().create_task(scene.works()) for _ in range(5)]
                await asyncio.sleep(1.5)
            finally:
                program.signal(signal.SIGCONT)
            assert all(await asyncio.gather(*late))

        await all_of([stop_and_go(), *(_stream(scene, started, 50) for _ in range(STREAMS))])
        assert await scene.works()


@pytest.mark.parametrize("role", ["server", "client"])
async def test_a_program_that_stood_still_beyond_the_heartbeats_is_replaced_and_returns(
    kinds: Kinds, tmp_path: Path, role: str
) -> None:
    async with office(tmp_path, kinds=kinds, server=BEATS_SERVER, client=BEATS) as scene:
        program = side(scene, role)
        other = side(scene, "client" if role == "server" else "server")
        offset = other.mark()
        caller = await scene.caller(limit_s=30)
        await caller.send(request("/hang"))
        await scene.api.saw("/hang")
        program.signal(signal.SIGSTOP)
        try:
            await other.logged("heartbeat timeout", 8, offset=offset)
            if role == "client":
                assert (await scene.get()).status == 503
                assert (await caller.answer()).status in (502, 503)
        finally:
            program.signal(signal.SIGCONT)
        await until_async(scene.works, "requests to work again", 30)
        await caller.close()
