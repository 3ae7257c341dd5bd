"""Peer-to-peer proxies and their visitors: every mix of our programs and the official ones."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.http import Caller, calling
from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    LOGIN_DONE,
    Config,
    Kind,
    Program,
    Tunnel,
    client_config,
    merged,
    require_official,
    tunnel,
)
from tests.support.services import BLOCK, EchoBackend, running
from tests.support.stun import StunServer
from tests.support.waiting import all_of

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

SECRET = "spec-secret"
# The interfaces of the machine stay out of it: everything happens on loopback.
LOOPBACK_ONLY = {"natTraversal": {"disableAssistedAddrs": True}}
LAYERS = {"transport": {"useEncryption": True, "useCompression": True}}


def proxy(name: str, port: int, **more: Any) -> Config:
    base = {"name": name, "type": "xtcp", "secretKey": SECRET, "localIP": HOST, "localPort": port}
    return merged(merged(base, LOOPBACK_ONLY), more)


def visitor(name: str, target: str, **more: Any) -> Config:
    base = {
        "name": name,
        "type": "xtcp",
        "serverName": target,
        "serverUser": "alice",
        "secretKey": SECRET,
        "bindAddr": HOST,
        "bindPort": free_port(),
    }
    return merged(merged(base, LOOPBACK_ONLY), more)


@dataclass
class Meeting:
    """Three running programs and the visitors of the third."""

    owner: Tunnel
    guest: Program
    ports: dict[str, int]
    echo: EchoBackend

    def at(self, name: str) -> Any:
        """A user at a visitor, for an `async with`."""
        return calling(self.ports[name])


@asynccontextmanager
async def meeting(
    directory: Path,
    proxies: list[Config],
    visitors: list[Config],
    *,
    kinds: tuple[Kind, Kind, Kind] = ("ours", "ours", "ours"),
    stun: str,
) -> AsyncIterator[Meeting]:
    """Run a server, an owner with `proxies` of an echo service, and a guest with `visitors`."""
    if "official" in kinds:
        require_official()
    echo = EchoBackend()
    link = {"natHoleStunServer": stun, "log": {"level": "trace"}}
    async with (
        running(echo),
        tunnel(
            directory,
            [merged(made, {"localPort": echo.port}) for made in proxies],
            kinds=kinds[:2],
            server={"log": {"level": "trace"}},
            client=merged(link, {"user": "alice"}),
        ) as pair,
    ):
        cfg = client_config(pair.bind_port, [], merged(link, {"user": "bob", "visitors": visitors}))
        del cfg["proxies"]
        program = Program(kinds[2], "client", cfg, directory, name=f"guest-{kinds[2]}")
        try:
            program.start()
            await program.logged(LOGIN_DONE)
            await program.logged(rf"(?s)(start visitor success.*?){{{len(visitors)}}}")
            ports = {made["name"]: made["bindPort"] for made in visitors}
            yield Meeting(pair, program, ports, echo)
        finally:
            program.kill()


async def _echoed(user: Caller, data: bytes) -> None:
    async def back() -> bytes:
        return await user.exactly(len(data))

    _, echoed = await all_of([user.send(data), back()])
    assert hashlib.sha256(echoed or b"").digest() == hashlib.sha256(data).digest()


MIXES: list[tuple[Kind, Kind, Kind]] = [
    ("ours", "official", "official"),
    ("ours", "ours", "ours"),
    ("official", "ours", "official"),
    ("official", "official", "ours"),
]


@pytest.mark.parametrize("kinds", MIXES, ids="-".join)
async def test_users_of_a_visitor_reach_the_service_past_the_server(
    kinds: tuple[Kind, Kind, Kind], tmp_path: Path
) -> None:
    proxies = [
        proxy("kcp", 1, allowUsers=["bob"], **LAYERS),
        proxy("quic", 1, allowUsers=["bob"], **LAYERS),
    ]
    visitors = [
        visitor("kcp", "kcp", protocol="kcp", **LAYERS),
        visitor("quic", "quic", protocol="quic", **LAYERS),
    ]
    async with (
        StunServer() as stun,
        meeting(tmp_path, proxies, visitors, kinds=kinds, stun=stun.address) as m,
    ):

        async def served(name: str) -> None:
            async with m.at(name) as user:
                for piece in (b"a", b"few", b"words"):
                    await _echoed(user, piece)
                await _echoed(user, BLOCK)

        await all_of((served(name) for name in ("kcp", "quic")), limit_s=40)
        await m.owner.server.logged(r"(?s)(report make hole success: true, mode 0, index \d.*?){2}")
