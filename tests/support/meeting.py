"""A server, a client that owns secret proxies, and a client that visits them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    KINDS,
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

TRIPLES = list(itertools.product(KINDS, repeat=3))
SECRET = "spec-secret"
OWNER, GUEST = "alice", "bob"
# What the leg of the visitor and the leg of the proxy are wrapped in. They are independent: the
# server unwraps one and wraps the other.
LEGS: list[tuple[Config, Config]] = [
    ({}, {}),
    ({"useEncryption": True}, {"useCompression": True}),
    ({"useCompression": True}, {"useEncryption": True}),
    ({"useEncryption": True, "useCompression": True},) * 2,
]


def secret_proxy(kind: str, name: str, **more: Any) -> Config:
    return merged({"name": name, "type": kind, "secretKey": SECRET, "localIP": HOST}, more)


def visitor(kind: str, name: str, target: str, **more: Any) -> Config:
    base = {
        "name": name,
        "type": kind,
        "serverUser": OWNER,
        "serverName": target,
        "secretKey": SECRET,
        "bindAddr": HOST,
        "bindPort": free_port(),
    }
    return merged(base, more)


def admitted(kind: str) -> tuple[list[Config], list[Config]]:
    """Proxies for each of `LEGS`, `v0` and so on, and one for everybody; their visitors."""
    proxies, visitors = [], []
    for number, (outer, inner) in enumerate(LEGS):
        proxies.append(secret_proxy(kind, f"p{number}", allowUsers=[GUEST], transport=inner))
        visitors.append(visitor(kind, f"v{number}", f"p{number}", transport=outer))
    proxies.append(secret_proxy(kind, "all", allowUsers=["carol", "*"]))
    visitors.append(visitor(kind, "all", "all"))
    return proxies, visitors


def refused(kind: str) -> tuple[Config, list[Config], dict[str, str]]:
    """A proxy, visitors whom the server refuses, and in which words; with those `admitted`."""
    visitors = [
        visitor(kind, "other-user", "same"),
        visitor(kind, "wrong-key", "p0", secretKey="guess"),
        visitor(kind, "nobody", "p9"),
        visitor(kind, "own", "p0", serverUser=""),  # Ours to look for is `bob.p0`.
    ]
    words = {
        "wrong-key": r"visitor connection of \[alice.p0\] auth failed",
        "other-user": r"visitor connection of \[alice.same\] user \[bob\] not allowed",
        "nobody": r"custom listener for \[alice.p9\] doesn't exist",
        "own": r"custom listener for \[bob.p0\] doesn't exist",
    }
    return secret_proxy(kind, "same"), visitors, words


@dataclass
class Meeting:
    """Three running programs, and the ports of the third's visitors."""

    owner: Tunnel
    guest: Program
    ports: dict[str, int]

    async def guest_ready(self, offset: int = 0) -> None:
        """Wait until the guest is logged in and all its visitors have started."""
        await self.guest.logged(LOGIN_DONE, offset=offset)
        # frp does not say which.
        started = rf"(?s)(start visitor success.*?){{{len(self.ports)}}}"
        await self.guest.logged(started, offset=offset)


@asynccontextmanager
async def meeting(
    directory: Path,
    local_port: int,
    proxies: Sequence[Config],
    visitors: Sequence[Config],
    *,
    kinds: tuple[Kind, Kind, Kind] = ("ours", "ours", "ours"),
    link: Config | None = None,
) -> AsyncIterator[Meeting]:
    """Run the three, with `link` laid over the configuration of each.

    Args:
        local_port: Of the service behind all proxies.
    """
    if "official" in kinds:
        require_official()
    link = link or {}
    async with tunnel(
        directory,
        [merged(made, {"localPort": local_port}) for made in proxies],
        kinds=kinds[:2],
        server=link,
        client=merged(link, {"user": OWNER}),
    ) as pair:
        more = merged(link, {"user": GUEST, "visitors": list(visitors)})
        cfg = client_config(pair.bind_port, [], more)
        del cfg["proxies"]
        program = Program(kinds[2], "client", cfg, directory, name=f"guest-{kinds[2]}")
        try:
            program.start()
            made = Meeting(pair, program, {v["name"]: v["bindPort"] for v in visitors})
            await made.guest_ready()
            yield made
        finally:
            program.kill()
