"""PostgreSQL twice behind one port: a group of two clients, one of which dies under load."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.real.tools import Done, daemon, directory_of, output, run, says
from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    Config,
    Kind,
    Program,
    Tunnel,
    client_config,
    tcp_proxy,
    tunnel,
)
from tests.support.waiting import all_of, until, until_async

pytestmark = pytest.mark.real

USER = "postgres"
WORKERS = 4
SLEEPERS = 8
SLEEP_S = 3


@dataclass
class Database:
    """A running server with an empty database."""

    port: int
    process: subprocess.Popen[bytes]

    async def sleepers(self) -> int:
        """How many sessions are in the middle of a long query, asked past the tunnel."""
        query = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
        return int((await psql(self.port, query)).out)


async def psql(port: int, query: str) -> Done:
    """Run a query on a connection of its own."""
    where = f"host={HOST} port={port} user={USER} dbname=postgres connect_timeout=10"
    return await run("psql", "-X", "-w", "-q", "-A", "-t", where, "-c", query, limit_s=20)


@asynccontextmanager
async def database(directory: Path, name: str) -> AsyncIterator[Database]:
    """Make a cluster and serve it; it refuses to be run by root."""
    port, data, log = free_port(), directory / name, directory / f"{name}.log"
    made = ("--auth", "trust", "--username", USER, "--no-sync", "--encoding", "UTF8")
    await output("initdb", "--pgdata", data, *made, user=USER, limit_s=60)
    settings = [f"listen_addresses={HOST}", f"unix_socket_directories={directory}", "fsync=off"]
    async with daemon(
        *("postgres", "-D", data, "-p", str(port)),
        *(word for setting in settings for word in ("-c", setting)),
        log=log,
        ready=says(log, "database system is ready to accept connections"),
        user=USER,
        stop=signal.SIGINT,
    ) as process:
        yield Database(port, process)


@dataclass
class Group:
    """Two databases with a client each, behind one port of the server."""

    port: int
    first: Database
    second: Database
    pair: Tunnel
    other: Program

    async def asked(self) -> int:
        """Which database answers, by its own port; 0 when none does."""
        done = await psql(self.port, "select inet_server_port()")
        return int(done.out) if done.code == 0 else 0

    async def answers(self, times: int) -> list[int]:
        return [await self.asked() for _ in range(times)]

    async def shared(self) -> bool:
        """Tell whether both databases are among those that answer now."""
        found = await all_of(self.asked() for _ in range(WORKERS))
        return {self.first.port, self.second.port} <= set(found)


@asynccontextmanager
async def group(directory: Path, kinds: tuple[Kind, Kind], **more: Config) -> AsyncIterator[Group]:
    async with AsyncExitStack() as stack:
        place = stack.enter_context(directory_of(USER))
        one, two = await all_of(
            stack.enter_async_context(database(place, name)) for name in ("one", "two")
        )
        port = free_port()
        first, second = (
            tcp_proxy(
                f"db-{member.port}",
                member.port,
                port,
                loadBalancer={"group": "databases", "groupKey": "a-group-key"},
                **more,
            )
            for member in (one, two)
        )
        pair = await stack.enter_async_context(tunnel(directory, [first], kinds=kinds))
        config = client_config(pair.bind_port, [second])
        other = Program(kinds[1], "client", config, directory, name="other")
        stack.callback(other.kill)
        other.start()
        await other.logged("start proxy success")
        yield Group(port, one, two, pair, other)


@dataclass
class Load:
    """Callers that ask again and again, and when each that failed had begun."""

    failed: list[float] = field(default_factory=list)
    answered: int = 0

    async def keep_asking(self, members: Group, done: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not done.is_set():
            begun = loop.time()
            if await members.asked():
                self.answered += 1
            else:
                self.failed.append(begun)


async def test_a_client_that_dies_takes_only_its_own_sessions_along(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    async with group(tmp_path, kinds) as members, asyncio.TaskGroup() as tasks:
        await until_async(members.shared, "both to answer")
        done, load = asyncio.Event(), Load()
        try:
            for _ in range(WORKERS):
                tasks.create_task(load.keep_asking(members, done))
            query = f"select pg_sleep({SLEEP_S}), inet_server_port()"
            long = [tasks.create_task(psql(members.port, query)) for _ in range(SLEEPERS)]

            async def asleep() -> list[int]:
                counts = [await each.sleepers() for each in (members.first, members.second)]
                return counts if sum(counts) == SLEEPERS else []

            kept, lost = await until_async(asleep, "all sessions to be in their query")
            offset = members.pair.server.mark()
            members.other.kill()
            await members.pair.server.logged("client exit success", offset=offset)
            noticed = asyncio.get_running_loop().time()
            answered = load.answered
            assert set(await members.answers(10)) == {members.first.port}

            ended = await asyncio.gather(*long)
            survived = [each.out.strip() for each in ended if each.code == 0]
            assert survived == [f"|{members.first.port}"] * kept
            assert len(ended) - len(survived) == lost
            await until(lambda: load.answered > answered + 20, "the load to go on")
            assert [begun for begun in load.failed if begun > noticed] == []

            members.other.start()
            await until_async(members.shared, "both to answer again")
        finally:
            done.set()
        assert [begun for begun in load.failed if begun > noticed] == []


async def test_a_database_that_dies_is_taken_out_by_its_health_check(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    check = {"type": "tcp", "intervalSeconds": 1, "timeoutSeconds": 1, "maxFailed": 1}
    async with group(tmp_path, kinds, healthCheck=check) as members:
        await until_async(members.shared, "both to answer")
        members.second.process.send_signal(signal.SIGQUIT)

        async def only_one() -> bool:
            return set(await members.answers(10)) == {members.first.port}

        await until_async(only_one, "the dead one to be taken out")
        assert set(await members.answers(20)) == {members.first.port}
