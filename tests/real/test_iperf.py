"""iperf3 through a tcp and a udp proxy at the same port, in both directions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.real.tools import daemon, output, says
from tests.support.ports import free_port
from tests.support.processes import HOST, Config, Kind, tcp_proxy, tunnel

pytestmark = pytest.mark.real

SECONDS = 2
UDP_MBITS = 20


@asynccontextmanager
async def measured(
    directory: Path, kinds: tuple[Kind, Kind], **transport: bool
) -> AsyncIterator[int]:
    """An iperf3 server behind the tunnel; gives the port to call."""
    port, remote = free_port(), free_port()
    log = directory / "iperf3.log"
    tcp = tcp_proxy("tcp", port, remote, transport=transport)
    # Its streams of datagrams are arranged over TCP at the same port.
    proxies: list[Config] = [tcp, {**tcp, "name": "udp", "type": "udp"}]
    words = ("iperf3", "--server", "--bind", HOST, "--port", str(port), "--forceflush")
    async with (
        daemon(*words, log=log, ready=says(log, "Server listening on")),
        tunnel(directory, proxies, kinds=kinds),
    ):
        yield remote


async def iperf3(port: int, *more: str) -> dict[str, Any]:
    """The sums of one measurement."""
    words = ("--client", HOST, "--port", str(port), "--time", str(SECONDS), "--json", *more)
    report = json.loads(await output("iperf3", *words, limit_s=SECONDS + 20))
    assert "error" not in report, report
    return dict(report["end"])


@pytest.mark.parametrize("direction", [[], ["--reverse"], ["--bidir"]], ids=["to", "from", "both"])
async def test_streams_flow(direction: list[str], kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    async with measured(tmp_path, kinds) as port:
        end = await iperf3(port, "--parallel", "4", *direction)
    for name in [
        "sum_received",
        *(["sum_received_bidir_reverse"] if "--bidir" in direction else []),
    ]:
        # A bound that says "it flows": what is fast is measured elsewhere.
        assert end[name]["bits_per_second"] > 20e6, end[name]


@pytest.mark.parametrize("layers", [(), ("useEncryption", "useCompression")], ids=["plain", "both"])
@pytest.mark.parametrize("direction", [[], ["--reverse"]], ids=["to", "from"])
async def test_datagrams_arrive(
    direction: list[str], layers: tuple[str, ...], kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    async with measured(tmp_path, kinds, **dict.fromkeys(layers, True)) as port:
        size = ("--length", "1200", "--bitrate", f"{UDP_MBITS}M")
        end = await iperf3(port, "--udp", *size, *direction)
    total = end["sum"]
    assert total["packets"] > UDP_MBITS * 1e6 / 8 / 1200 * SECONDS / 2, total
    assert total["lost_percent"] < 5, total
