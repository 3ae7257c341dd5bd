"""Secret TCP proxies and their visitors: every mix of our programs and the official ones.

Each row runs a server, the client that owns the proxies, and the client that visits them. The
proxies and the visitors of a row differ in what each leg is wrapped in, because the two legs are
independent: the server unwraps one and wraps the other.
"""

from __future__ import annotations

import hashlib
import itertools
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
from tests.support.waiting import all_of

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

KINDS: tuple[Kind, ...] = ("ours", "official")
SECRET = "spec-secret"
# What the leg of the visitor and the leg of the proxy are wrapped in.
LEGS: list[tuple[Config, Config]] = [
    ({}, {}),
    ({"useEncryption": True}, {"useCompression": True}),
    ({"useCompression": True}, {"useEncryption": True}),
    ({"useEncryption": True, "useCompression": True},) * 2,
]


def proxy(name: str, port: int, **more: Any) -> Config:
    base = {"name": name, "type": "stcp", "secretKey": SECRET, "localIP": HOST, "localPort": port}
    return merged(base, more)


def visitor(name: str, target: str, **more: Any) -> Config:
    base = {
        "name": name,
        "type": "stcp",
        "serverName": target,
        "secretKey": SECRET,
        "bindAddr": HOST,
        "bindPort": free_port(),
    }
    return merged(base, more)


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
    link: Config | None = None,
    owner: str = "alice",
    guest: str = "bob",
) -> AsyncIterator[Meeting]:
    """Run a server, an owner with `proxies` of an echo service, and a guest with `visitors`."""
    if "official" in kinds:
        require_official()
    link = link or {}
    echo = EchoBackend()
    async with (
        running(echo),
        tunnel(
            directory,
            [merged(made, {"localPort": echo.port}) for made in proxies],
            kinds=kinds[:2],
            server=link,
            client=merged(link, {"user": owner}),
        ) as pair,
    ):
        cfg = client_config(pair.bind_port, [], merged(link, {"user": guest, "visitors": visitors}))
        del cfg["proxies"]
        program = Program(kinds[2], "client", cfg, directory, name=f"guest-{kinds[2]}")
        try:
            program.start()
            await program.logged(LOGIN_DONE)
            # frp does not say which.
            await program.logged(rf"(?s)(start visitor success.*?){{{len(visitors)}}}")
            yield Meeting(pair, program, {v["name"]: v["bindPort"] for v in visitors}, echo)
        finally:
            program.kill()


async def _echoed(user: Caller, data: bytes) -> None:
    async def back() -> bytes:
        return await user.exactly(len(data))

    _, echoed = await all_of([user.send(data), back()])
    assert hashlib.sha256(echoed or b"").digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("tcp_mux", [True, False], ids=["mux", "nomux"])
@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, repeat=3)), ids="-".join)
async def test_users_of_a_visitor_reach_the_service(
    kinds: tuple[Kind, Kind, Kind], tcp_mux: bool, tmp_path: Path
) -> None:
    proxies, visitors = [], []
    for number, (outer, inner) in enumerate(LEGS):
        proxies.append(proxy(f"p{number}", 1, allowUsers=["bob"], transport=inner))
        visitors.append(visitor(f"v{number}", f"p{number}", serverUser="alice", transport=outer))
    proxies += [proxy("all", 1, allowUsers=["carol", "*"]), proxy("same", 1)]
    visitors += [
        visitor("all", "all", serverUser="alice"),
        visitor("other-user", "same", serverUser="alice"),
        visitor("wrong-key", "p0", serverUser="alice", secretKey="guess"),
        visitor("nobody", "p9", serverUser="alice"),
        visitor("own", "p0"),  # Ours to look for is `bob.p0`.
    ]
    link = {"transport": {"tcpMux": tcp_mux}}
    async with meeting(tmp_path, proxies, visitors, kinds=kinds, link=link) as m:

        async def served(name: str) -> None:
            async with m.at(name) as user:
                for piece in (b"a", b"few", b"words"):
                    await _echoed(user, piece)
                await _echoed(user, BLOCK)

        names = ["all", *(f"v{number}" for number in range(len(LEGS)))]
        await all_of((served(name) for name in names), limit_s=30)
        if tcp_mux and "official" not in kinds:  # Neither frp nor TLS ends one direction alone.
            async with m.at("v3") as user:
                await user.send(BLOCK)
                user.half_close()
                assert await user.everything() == BLOCK
        refusals = {
            "wrong-key": r"visitor connection of \[alice.p0\] auth failed",
            "other-user": r"visitor connection of \[alice.same\] user \[bob\] not allowed",
            "nobody": r"custom listener for \[alice.p9\] doesn't exist",
            "own": r"custom listener for \[bob.p0\] doesn't exist",
        }
        for name, words in refusals.items():
            async with m.at(name) as user:
                assert await user.at_end()
            await m.guest.logged(f"start new visitor connection error: {words}")
