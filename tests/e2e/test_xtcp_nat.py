"""Peer-to-peer connections through real NATs, in network namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import WORLD_A, WORLD_B, Homes, Nat, homes
from tests.support.processes import (
    LOGIN_DONE,
    SERVER_READY,
    TOKEN,
    Config,
    Kind,
    Program,
    command,
    merged,
    require_official,
)
from tests.support.stun import StunServer
from tests.support.waiting import within

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

SECRET = "spec-secret"
PORT, SERVICE, VISIT = 7000, 8000, 9000
BLOCK = bytes(range(256)) * 2000
OURS: tuple[Kind, Kind, Kind] = ("ours", "ours", "ours")
OFFICIAL: tuple[Kind, Kind, Kind] = ("official", "official", "official")
# The official programs among themselves are what ours are compared with.
either = pytest.mark.parametrize("kinds", [OURS, pytest.param(OFFICIAL, marks=pytest.mark.slow)])


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def apart(
    directory: Path, net: Homes, visitors: list[Config], kinds: tuple[Kind, Kind, Kind]
) -> AsyncIterator[tuple[Program, Program, Program]]:
    """A server in the world, an owner in one home and a guest in the other."""
    if "official" in kinds:
        require_official()
    backend = await asyncio.start_server(_echo, sock=net.listen(net.a, ("127.0.0.1", SERVICE)))
    base: Config = {"auth": {"token": TOKEN}, "log": {"level": "trace", "disablePrintColor": True}}
    offered = {"secretKey": SECRET, "localPort": SERVICE, "allowUsers": ["bob"]}
    proxies = [
        {"name": "p2p", "type": "xtcp", **offered},
        {"name": "relay", "type": "stcp", **offered},
    ]
    made = []

    def program(kind: Kind, role: Any, place: str, more: Config, name: str) -> Program:
        words = [*net.words(place), *command(kind, role)]
        made.append(Program(kind, role, merged(base, more), directory, name=name, words=words))
        return made[-1]

    def make(bind: Any) -> Any:
        return net.make(net.world, bind)

    async with StunServer(WORLD_A, WORLD_B, make=make) as stun:
        link = {"serverPort": PORT, "natHoleStunServer": stun.address}
        server = program(kinds[0], "server", net.world, {"bindPort": PORT}, "server")
        owner = program(
            kinds[1],
            "client",
            net.a,
            {**link, "serverAddr": WORLD_A, "user": "alice", "proxies": proxies},
            "owner",
        )
        guest = program(
            kinds[2],
            "client",
            net.b,
            {**link, "serverAddr": WORLD_B, "user": "bob", "visitors": visitors},
            "guest",
        )
        try:
            server.start()
            await server.logged(SERVER_READY)
            owner.start()
            await owner.logged(r"(?s)(start proxy success.*?){2}")
            guest.start()
            await guest.logged(LOGIN_DONE)
            await guest.logged(rf"(?s)(start visitor success.*?){{{len(visitors)}}}")
            yield server, owner, guest
        finally:
            for each in made:
                each.kill()
            backend.close()
            await backend.wait_closed()


def visitor(**more: Any) -> Config:
    base = {"name": "v", "type": "xtcp", "serverName": "p2p", "bindPort": VISIT}
    return {**base, "serverUser": "alice", "secretKey": SECRET, **more}


async def echoed(net: Homes, port: int = VISIT) -> None:
    sock = net.connect(net.b, ("127.0.0.1", port))
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(BLOCK)
    assert await within(reader.readexactly(len(BLOCK)), 45, "the echo") == BLOCK
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("a", "b", "kinds"),
    [
        ("restricted", "restricted", OURS),
        ("cone", "restricted", ("ours", "official", "ours")),
        pytest.param("restricted", "restricted", OFFICIAL, marks=pytest.mark.slow),
        pytest.param("cone", "restricted", OFFICIAL, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(120)
async def test_homes_behind_easy_nats_meet(
    a: Nat, b: Nat, kinds: tuple[Kind, Kind, Kind], tmp_path: Path
) -> None:
    visitors = [
        visitor(protocol="kcp"),
        visitor(name="q", protocol="quic", bindPort=VISIT + 1),
    ]
    with homes(a, b) as net:
        async with apart(tmp_path, net, visitors, kinds) as (server, _, guest):
            await asyncio.gather(echoed(net), echoed(net, VISIT + 1))
            await guest.logged("nat type: EasyNAT, behavior: BehaviorNoChange")
            await server.logged(r"(?s)(report make hole success: true, mode 0.*?){2}")


@pytest.mark.slow
@pytest.mark.timeout(120)
@either
async def test_a_home_behind_a_symmetric_nat_meets_one_behind_an_easy_nat(
    kinds: tuple[Kind, Kind, Kind], tmp_path: Path
) -> None:
    """By many sockets and random ports, which takes a while."""
    keep = visitor(protocol="kcp", keepTunnelOpen=True)
    with homes("symmetric", "restricted") as net:
        async with apart(tmp_path, net, [keep], kinds) as (server, owner, _):
            await owner.logged("nat type: HardNAT, behavior: Behavior")
            await server.logged("report make hole success: true, mode 2", 60)
            await echoed(net)


@pytest.mark.timeout(60)
@either
async def test_homes_that_cannot_meet_fall_back_to_the_server(
    kinds: tuple[Kind, Kind, Kind], tmp_path: Path
) -> None:
    relay = visitor(name="w", type="stcp", serverName="relay", bindPort=-1)
    visitors = [visitor(fallbackTo="w", fallbackTimeoutMs=300), relay]
    with homes("symmetric", "symmetric") as net:
        async with apart(tmp_path, net, visitors, kinds) as (_, _, guest):
            await echoed(net)
            await guest.logged("try to transfer connection to visitor: bob.w")
            await guest.logged("nat type: HardNAT, behavior: Behavior")
