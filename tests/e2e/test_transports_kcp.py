"""KCP between every pair of our programs and the official ones, over good networks and bad ones."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.http import calling
from tests.support.lossy import losing
from tests.support.office import Office, office
from tests.support.ports import free_port
from tests.support.processes import HOST, Kind, tunnel

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

PAIRS: list[tuple[Kind, Kind]] = list(itertools.product(("ours", "official"), repeat=2))
CASES = [
    pytest.param(
        kinds,
        tls,
        tcp_mux,
        id=f"{'-'.join(kinds)}-{'tls' if tls else 'plain'}-{'mux' if tcp_mux else 'nomux'}",
    )
    for kinds, tls, tcp_mux in itertools.product(PAIRS, (True, False), (True, False))
]
LOSS = 0.03


def over_kcp(*, tls: bool = True, tcp_mux: bool = True) -> dict[str, Any]:
    """Arguments of `office` for a link over KCP; the UDP port has the TCP port's number."""
    port = free_port()
    transport = {"protocol": "kcp", "tcpMux": tcp_mux, "tls": {"enable": tls}}
    return {
        "server": {
            "bindPort": port,
            "kcpBindPort": port,
            "transport": {"tcpMux": tcp_mux},
        },
        "client": {"transport": transport},
    }


@asynccontextmanager
async def served(directory: Path, kinds: tuple[Kind, Kind], **how: Any) -> AsyncIterator[Office]:
    async with office(directory, kinds=kinds, **how) as scene:
        yield scene
        scene.drop_callers()


@pytest.mark.parametrize(("kinds", "tls", "tcp_mux"), CASES)
async def test_every_pair_carries_tcp_http_and_udp(
    kinds: tuple[Kind, Kind], tls: bool, tcp_mux: bool, tmp_path: Path
) -> None:
    port = free_port()
    async with await EchoUdp().start() as echo:
        udp = {"name": "u", "type": "udp", "localIP": HOST, "localPort": echo.port}
        udp["remotePort"] = port
        how = over_kcp(tls=tls, tcp_mux=tcp_mux)
        async with served(tmp_path, kinds, proxies=[udp], **how) as scene:
            assert (await scene.get()).body == b"hello"
            async with calling(scene.echo_port) as user:
                await user.echoed(b"a few words")
                await user.echoed(os.urandom(1_000_000))
            with UdpUser(port) as datagrams:
                await datagrams.echoed(os.urandom(1200))
            if kinds[0] == "ours":
                expected = rf"frps kcp listen on udp {HOST}:{scene.pair.bind_port}"
                await scene.pair.server.logged(expected)
            if kinds[1] == "ours":
                # What it says at its end gets out, although nothing tells UDP of an end.
                scene.pair.client.signal(signal.SIGTERM)
                for name in ("llm-api", "echo", "u"):
                    await scene.pair.server.logged(
                        rf"close proxy \[{name}\] success|"
                        rf"\[{name}\] .*clos"
                    )


@pytest.mark.parametrize("kinds", PAIRS[:3], ids="-".join)
async def test_a_network_that_loses_datagrams_costs_time_only(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    how = over_kcp()
    async with losing(how["server"]["bindPort"], loss=LOSS) as relay:
        how["client"]["serverPort"] = relay.port
        async with served(tmp_path, kinds, **how) as scene:
            async with calling(scene.echo_port) as user:
                await user.echoed(os.urandom(2_000_000))
            assert (await scene.get("/bytes?n=500000")).status == 200
        assert relay.lost > 100


async def test_a_server_that_comes_back_is_found_at_once(tmp_path: Path) -> None:
    """It says farewell when it stops; a client need not wait until nothing has come for long."""
    async with office(tmp_path, **over_kcp()) as scene:
        pair = scene.pair
        ours, theirs = pair.server.mark(), pair.client.mark()
        await pair.server.terminate()
        await pair.client.logged("session with the server ended", 5, offset=theirs)
        pair.server.start()
        await pair.server_ready(offset=ours)
        await pair.client_ready(offset=theirs)
        assert await scene.works()


@pytest.mark.parametrize(
    ("listening", "text"),
    [
        (False, r"dial udp 127.0.0.1:\d+: connection refused; is it the server's kcpBindPort"),
        (True, r"dial udp 127.0.0.1:\d+: no answer within 1 s; is it the server's kcpBindPort"),
    ],
    ids=["refused", "silent"],
)
async def test_a_server_that_is_not_there_is_named(
    listening: bool, text: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        port = sock.getsockname()[1]
        if not listening:
            sock.close()
        link = {"protocol": "kcp", "dialServerTimeout": 1}
        client = {"serverPort": port, "transport": link}
        async with tunnel(tmp_path, [], client=client, ready=False) as pair:
            assert await pair.client.exited() == 1
            assert re.search(text, pair.client.log())


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        port = sock.getsockname()[1]
        async with tunnel(tmp_path, [], server={"kcpBindPort": port}, ready=False) as pair:
            assert await pair.server.exited() == 1
            reason = f"listen udp {HOST}:{port}: bind: address already in use"
            assert f"listen on kcp udp address {HOST}:{port} error: {reason}" in pair.server.log()
