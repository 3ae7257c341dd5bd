"""Secret TCP proxies and their visitors: every mix of our programs and the official ones.

Each row runs a server, the client that owns the proxies, and the client that visits them. The
proxies and the visitors of a row differ in what each leg is wrapped in.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.http import calling
from tests.support.meeting import LEGS, TRIPLES, admitted, meeting, refused
from tests.support.processes import Kind
from tests.support.services import BLOCK, EchoBackend, running
from tests.support.waiting import all_of

pytestmark = [pytest.mark.interop, pytest.mark.e2e]


@pytest.mark.parametrize("tcp_mux", [True, False], ids=["mux", "nomux"])
@pytest.mark.parametrize("kinds", TRIPLES, ids="-".join)
async def test_users_of_a_visitor_reach_the_service(
    kinds: tuple[Kind, Kind, Kind], tcp_mux: bool, tmp_path: Path
) -> None:
    proxies, visitors = admitted("stcp")
    names = [made["name"] for made in visitors]
    same, turned_away, refusals = refused("stcp")
    link = {"transport": {"tcpMux": tcp_mux}}
    echo = EchoBackend()
    async with (
        running(echo),
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
            async with calling(m.ports[name]) as user:
                for piece in (b"a", b"few", b"words"):
                    await user.echoed(piece)
                await user.echoed(BLOCK)

        await all_of((served(name) for name in names), limit_s=30)
        if tcp_mux and "official" not in kinds:  # Neither frp nor TLS ends one direction alone.
            async with calling(m.ports[f"v{len(LEGS) - 1}"]) as user:
                await user.send(BLOCK)
                user.half_close()
                assert await user.everything() == BLOCK
        for name, words in refusals.items():
            async with calling(m.ports[name]) as user:
                assert await user.at_end()
            await m.guest.logged(f"start new visitor connection error: {words}")
