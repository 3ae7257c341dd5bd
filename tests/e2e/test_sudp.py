"""Secret UDP proxies and their visitors: every mix of our programs and the official ones.

Each row runs a server, the client that owns the proxies, and the client that visits them, as in
`test_stcp`.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.meeting import TRIPLES, admitted, meeting, refused, secret_proxy, visitor
from tests.support.processes import Config, Kind
from tests.support.waiting import PATIENCE_S, all_of

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

SIZES = (64, 1400, 7000)
ROUNDS = 5
# Without a mux each leg is a connection of its own, which the row of ours shows.
ROWS = [*((kinds, True) for kinds in TRIPLES), (TRIPLES[0], False)]
IDS = ["-".join((*kinds, "mux" if mux else "nomux")) for kinds, mux in ROWS]
HEALED = [("ours", "ours", "ours"), ("official", "official", "ours")]


@pytest.mark.parametrize(("kinds", "tcp_mux"), ROWS, ids=IDS)
async def test_users_of_a_visitor_reach_the_service(
    kinds: tuple[Kind, Kind, Kind], tcp_mux: bool, tmp_path: Path
) -> None:
    proxies, visitors = admitted("sudp")
    names = [made["name"] for made in visitors]
    same, turned_away, refusals = refused("sudp")
    link: Config = {"udpPacketSize": max(SIZES), "transport": {"tcpMux": tcp_mux}}
    async with (
        await EchoUdp().start() as echo,
        meeting(
            tmp_path,
            echo.port,
            [*proxies, same],
            [*visitors, *turned_away],
            kinds=kinds,
            link=link,
        ) as m,
    ):

        async def served(name: str) -> None:
            # Two users of a visitor share its connection, and are told apart.
            with UdpUser(m.ports[name]) as one, UdpUser(m.ports[name]) as two:
                for size in SIZES:
                    for _ in range(ROUNDS):
                        await all_of(user.echoed(os.urandom(size)) for user in (one, two))

        await all_of((served(name) for name in names), limit_s=30)
        assert len(echo.sources) == 2 * len(names)
        with ExitStack() as stack:
            for name in refusals:
                stack.enter_context(UdpUser(m.ports[name])).send(b"let me in")
            for words in refusals.values():
                await m.guest.logged(f"start new visitor connection error: {words}")
        assert len(echo.sources) == 2 * len(names)


async def _served_again(user: UdpUser, data: bytes) -> None:
    """Ask until there is an answer, as users of datagrams do."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await user.echoed(data, limit_s=0.5)
                return
            except (AssertionError, ConnectionRefusedError):
                await asyncio.sleep(0.1)  # Nobody has the port, or the datagram was lost.


@pytest.mark.parametrize("kinds", HEALED, ids="-".join)
async def test_a_restart_of_the_owner_and_of_the_server_heals(
    kinds: tuple[Kind, Kind, Kind], tmp_path: Path
) -> None:
    """The visitor takes a new connection when the next datagram comes."""
    ends = [secret_proxy("sudp", "dns", allowUsers=["*"])], [visitor("sudp", "v", "dns")]
    async with (
        await EchoUdp().start() as echo,
        meeting(tmp_path, echo.port, *ends, kinds=kinds) as m,
    ):
        with UdpUser(m.ports["v"]) as user:
            await user.echoed(b"hello")
            # Killed, as a machine that loses its power; the guest's session goes on.
            m.owner.client.kill()
            await m.guest.logged("read from workconn for user udp conn error: ")
            offset = m.owner.client.mark()
            m.owner.client.start()
            await m.owner.client_ready(offset=offset)
            await user.echoed(b"the owner is back")
            m.owner.server.kill()
            offset, before = m.guest.mark(), m.owner.server.mark()
            m.owner.server.start()
            await m.owner.server_ready(offset=before)
            await m.guest_ready(offset=offset)
            await _served_again(user, b"the server is back")
        if kinds[0] == "ours":
            # A tunnel of datagrams has no end to wait for.
            assert await m.owner.server.terminate(limit_s=5.0) == 0
