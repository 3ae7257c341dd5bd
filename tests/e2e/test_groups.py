"""Load-balancing groups between our programs and the official ones, and under churn."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.test_https import https_proxy, reached, services
from tests.e2e.test_tcpmux import OK, connect, mux_proxy
from tests.support.backends import Exchange, HttpBackend
from tests.support.http import calling, fetch
from tests.support.ports import free_port
from tests.support.processes import (
    LOGIN_DONE,
    SERVER_READY,
    Config,
    Kind,
    Program,
    client_config,
    http_proxy,
    merged,
    require_official,
    server_config,
    tcp_proxy,
)
from tests.support.services import running
from tests.support.waiting import PATIENCE_S, until_async, within

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

Pick = Callable[[], Awaitable[str]]

# The server, and the two clients that share its users.
ROWS: list[tuple[Kind, Kind, Kind]] = [
    ("ours", "ours", "ours"),
    ("ours", "ours", "official"),
    ("official", "ours", "official"),
    ("official", "ours", "ours"),
]


def grouped(proxy: Config, group: str, key: str = "secret") -> Config:
    return merged(proxy, {"loadBalancer": {"group": group, "groupKey": key}})


def naming(name: str) -> HttpBackend:
    """A service that says who it is."""
    backend = HttpBackend()

    async def who(x: Exchange) -> None:
        await x.reply(name)

    backend.on("/who", who)
    return backend


@dataclass
class Ports:
    http: int
    https: int = field(default_factory=free_port)
    mux: int = field(default_factory=free_port)
    tcp: int = field(default_factory=free_port)


@dataclass
class Stage:
    """A server and clients that come and go."""

    directory: Path
    server: Program
    ports: Ports
    programs: list[Program] = field(default_factory=list)

    async def client(self, name: str, kind: Kind, proxies: Sequence[Config]) -> Program:
        """Start a client and wait for its login."""
        port = int(self.server.config["bindPort"])
        program = Program(kind, "client", client_config(port, proxies), self.directory, name=name)
        self.programs.append(program)
        program.start()
        await program.logged(LOGIN_DONE)
        return program

    async def started(self, program: Program) -> None:
        for proxy in program.config["proxies"]:
            await program.logged(rf"\[{re.escape(proxy['name'])}\] start proxy success")

    # Each says who served one user.

    async def by_http(self) -> str:
        return (await fetch(self.ports.http, "/who", "group.test")).body.decode()

    async def by_tcp(self) -> str:
        return (await fetch(self.ports.tcp, "/who")).body.decode()

    async def by_mux(self) -> str:
        async with calling(self.ports.mux) as caller:
            await caller.send(connect("group.test"))
            assert await caller.exactly(len(OK)) == OK
            return (await caller.get("/who")).body.decode()

    async def by_https(self) -> str:
        return await within(reached(self.ports.https, "group.test"), PATIENCE_S, "https")


@asynccontextmanager
async def stage(directory: Path, kind: Kind) -> AsyncIterator[Stage]:
    directory.mkdir(parents=True, exist_ok=True)
    config = server_config()
    ports = Ports(int(config["vhostHTTPPort"]))
    config |= {"vhostHTTPSPort": ports.https, "tcpmuxHTTPConnectPort": ports.mux}
    made = Stage(directory, Program(kind, "server", config, directory, name="server"), ports)
    try:
        made.server.start()
        await made.server.logged(SERVER_READY)
        yield made
    finally:
        for program in (*made.programs, made.server):
            program.kill()


def members(name: str, ports: Ports, port: int, key: str = "secret") -> list[Config]:
    """A client's proxies: one in each group. Names of groups are per type, so they may be equal."""
    made = [
        http_proxy(f"{name}-http", port, "group.test"),
        tcp_proxy(f"{name}-tcp", port, ports.tcp),
        mux_proxy(f"{name}-mux", port, customDomains=["group.test"]),
    ]
    return [grouped(proxy, "g", key) for proxy in made]


async def both_seen(pick: Pick, names: set[str]) -> None:
    """Users are served by all of these."""
    seen: set[str] = set()

    async def enough() -> bool:
        seen.add(await pick())
        return seen == names

    await until_async(enough, f"users to reach all of {names}", step_s=0)


@pytest.mark.parametrize("row", ROWS, ids=["-".join(row) for row in ROWS])
async def test_two_clients_share_users_whoever_made_server_and_clients(
    row: tuple[Kind, Kind, Kind], tmp_path: Path
) -> None:
    require_official()
    server, *kinds = row
    backends = {name: naming(name) for name in "ab"}
    async with (
        running(*backends.values()),
        services(["a", "b"]) as tls,
        stage(tmp_path, server) as s,
    ):
        clients = {}
        for name, kind in zip("ab", kinds, strict=True):
            proxies = members(name, s.ports, backends[name].port)
            if server == "ours" or name == "a":
                secure = https_proxy(f"{name}-https", tls[name], ["group.test"])
                proxies.append(grouped(secure, "g"))
            clients[name] = await s.client(name, kind, proxies)
        for client in clients.values():
            await s.started(client)
        # Requests alternate, whatever their callers do.
        seen = [await s.by_http() for _ in range(6)]
        assert seen in (["a", "b"] * 3, ["b", "a"] * 3)
        picks = [s.by_tcp, s.by_mux] + ([s.by_https] if server == "ours" else [])
        for pick in picks:
            await both_seen(pick, {"a", "b"})
        await _refused(s, kinds[0], backends["a"].port)
        # A client that dies takes nobody along. Its link tells the server so at once; users of a
        # bridge who were faster than that have met it.
        offset = s.server.mark()
        clients["b"].kill()
        if server == "ours":
            assert {await s.by_http() for _ in range(4)} == {"a"}
        await s.server.logged(r"client exit success", offset=offset)
        for pick in [s.by_http, *picks]:
            assert {await pick() for _ in range(4)} == {"a"}
        await clients["a"].terminate()
        with pytest.raises(ConnectionRefusedError):
            await until_async(_fails(s.by_tcp), "the port to close")
        # The last has left: the groups can be made anew, with another key.
        again = await s.client(
            "c", kinds[0], members("c", s.ports, backends["b"].port, key="another")
        )
        await s.started(again)
        for pick in [s.by_http, s.by_tcp, s.by_mux]:
            assert await pick() == "b"


def _fails(pick: Pick) -> Callable[[], Awaitable[bool]]:
    """Something to wait for whose end is an exception."""

    async def attempt() -> bool:
        try:
            await pick()
        except ConnectionRefusedError:
            raise
        except (OSError, AssertionError, asyncio.IncompleteReadError):
            pass  # A user who was accepted just before the end.
        return False

    return attempt


async def _refused(s: Stage, kind: Kind, port: int) -> None:
    """What does not fit into the groups is told so."""
    wrong = members("wrong", s.ports, port, key="guess")
    other = [
        grouped(http_proxy("h-domain", port, "other.test"), "g"),
        grouped(http_proxy("h-place", port, "group.test", locations=["/x"]), "g"),
        grouped(http_proxy("h-two", port, "x.test", customDomains=["x.test", "y.test"]), "h"),
        grouped(tcp_proxy("t-port", port, free_port()), "g"),
        grouped(mux_proxy("m-user", port, customDomains=["group.test"], httpUser="u"), "g"),
        http_proxy("h-alone", port, "group.test"),
        tcp_proxy("t-alone", port, s.ports.tcp),
    ]
    errors = {proxy["name"]: "group auth failed" for proxy in wrong} | {
        "h-domain": "group params invalid",
        "h-place": "group params invalid",
        "h-two": "group params invalid",
        "t-port": "group should have same remote port",
        "m-user": "group params invalid",
        "h-alone": "router config conflict",
        "t-alone": "port already used",
    }
    if s.server.kind == "official":
        # 0.65 has no groups of this type: the name is taken.
        other.append(grouped(https_proxy("s-group", port, ["group.test"]), "g"))
        errors["s-group"] = "router config conflict"
    client = await s.client("refused", kind, wrong + other)
    for name, text in errors.items():
        await client.logged(re.escape(f"[{name}] start error: {text}"))
    offset = s.server.mark()
    client.kill()
    await s.server.logged(r"client exit success", offset=offset)
