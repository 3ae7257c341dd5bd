"""dig asks dnsmasq through a udp proxy, and through a tcp one where an answer is long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.real.tools import daemon, listening, output
from tests.support.ports import free_port
from tests.support.processes import HOST, Config, Kind, tcp_proxy, tunnel
from tests.support.waiting import all_of

pytestmark = pytest.mark.real

NAMES = 200
LONG_TEXT = [f"{number:02}-" + "x" * 200 for number in range(12)]
"""Records that are too long for one datagram of 1232 bytes."""


@asynccontextmanager
async def dnsmasq(directory: Path) -> AsyncIterator[int]:
    """A name server that knows its own names only."""
    port = free_port()
    config = directory / "dnsmasq.conf"
    lines = [
        *("keep-in-foreground", "no-resolv", "no-hosts", "bind-interfaces", "user=root"),
        *(f"port={port}", f"listen-address={HOST}", "pid-file", "edns-packet-max=1232"),
        *(f"host-record=n{number}.office.test,10.1.2.{number}" for number in range(NAMES)),
        *(f"txt-record=long.office.test,{text}" for text in LONG_TEXT),
        *("local=/office.test/", "log-facility=-"),
    ]
    config.write_text("\n".join(lines) + "\n")
    log = directory / "dnsmasq.log"
    async with daemon("dnsmasq", "-C", config, log=log, ready=listening(port)):
        yield port


async def dig(port: int, *question: str) -> list[str]:
    """The lines of a short answer."""
    options = ("-r", "+short", "+tries=2", "+time=5", "-p", str(port), f"@{HOST}")
    return (await output("dig", *options, *question)).splitlines()


async def test_names_are_resolved(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    async with dnsmasq(tmp_path) as port:
        remote = free_port()
        tcp = tcp_proxy("tcp", port, remote)
        proxies: list[Config] = [tcp, {**tcp, "name": "udp", "type": "udp"}]
        async with tunnel(tmp_path, proxies, kinds=kinds):
            assert await dig(remote, "n7.office.test") == ["10.1.2.7"]
            assert await dig(remote, "-x", "10.1.2.7") == ["n7.office.test."]
            assert await dig(remote, "none.office.test") == []
            assert await dig(remote, "+tcp", "n8.office.test") == ["10.1.2.8"]
            # Cut short over UDP, the answer comes again over TCP.
            long = await dig(remote, "long.office.test", "TXT")
            assert sorted(long) == [f'"{text}"' for text in LONG_TEXT]

            async def several(first: int) -> None:
                """Several users at once, each with many questions."""
                numbers = range(first, NAMES, 8)
                found = await dig(remote, *(f"n{number}.office.test" for number in numbers))
                assert found == [f"10.1.2.{number}" for number in numbers]

            await all_of(several(first) for first in range(8))
