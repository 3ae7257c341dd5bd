"""Datagrams through our programs and the official ones, in every pairing."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.ports import free_port
from tests.support.processes import HOST, PAIRS, Config, Tunnel, require_official, tunnel
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SIZES = (64, 1400, 7000)
ROUNDS = 20
USERS = 100
WINDOW = 16
LAYERS = list(itertools.product((False, True), repeat=2))


def udp_proxy(name: str, local_port: int, remote_port: int, **transport: bool) -> Config:
    return {
        "name": name,
        "type": "udp",
        "localIP": HOST,
        "localPort": local_port,
        "remotePort": remote_port,
        "transport": transport,
    }


@dataclass
class Scene:
    """A pair with a proxy for each combination of encryption and compression."""

    pair: Tunnel
    echo: EchoUdp
    ports: dict[tuple[bool, bool], int]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    kinds, tcp_mux = request.param
    if "official" in kinds:
        require_official()
    ports = {layers: free_port() for layers in LAYERS}
    async with await EchoUdp().start() as echo:
        proxies = [
            udp_proxy(
                f"udp-{number}", echo.port, port, useEncryption=encrypt, useCompression=compress
            )
            for number, ((encrypt, compress), port) in enumerate(ports.items())
        ]
        link: Config = {"transport": {"tcpMux": tcp_mux}, "udpPacketSize": 7000}
        async with tunnel(
            tmp_path_factory.mktemp("udp"), proxies, kinds=kinds, server=link, client=link
        ) as pair:
            yield Scene(pair, echo, ports)


SCENES = [
    pytest.param(
        (kinds, tcp_mux),
        id=f"{kinds[0]}-server:{kinds[1]}-client:{'mux' if tcp_mux else 'nomux'}",
        marks=[pytest.mark.interop] if "official" in kinds else [],
    )
    # Without a mux the work connection is a connection of its own, which the pairs of ours show.
    for kinds, tcp_mux in [*((kinds, True) for kinds in PAIRS), (("ours", "ours"), False)]
]


@pytest.mark.parametrize("scene", SCENES, indirect=True)
async def test_every_pair_carries_datagrams_of_every_size(scene: Scene) -> None:
    async def one(port: int, size: int) -> None:
        with UdpUser(port) as user:
            for _ in range(ROUNDS):
                await user.echoed(os.urandom(size))
            if scene.pair.client.kind == scene.pair.server.kind == "ours":
                await user.echoed(b"")

    await all_of((one(port, size) for port in scene.ports.values() for size in SIZES), limit_s=20)


@pytest.mark.parametrize("scene", SCENES, indirect=True)
async def test_every_pair_tells_many_users_apart(scene: Scene) -> None:
    scene.echo.got.clear()
    with ExitStack() as stack:
        users = [
            stack.enter_context(UdpUser(port))
            for port in scene.ports.values()
            for _ in range(USERS // len(LAYERS))
        ]
        for number in range(3):
            # In small groups, so that no socket's buffer is too small for all at once.
            for start in range(0, USERS, 10):
                await all_of(
                    user.echoed(f"{number}:{start}:{index}".encode() * 20)
                    for index, user in enumerate(users[start : start + 10])
                )
        # Each user has one local socket of his own, and keeps it.
        assert len(scene.echo.sources) == USERS


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scene", SCENES[: len(PAIRS)], indirect=True)
async def test_a_stream_of_datagrams_loses_none(scene: Scene, count: int) -> None:
    """With so many under way that no socket's buffer overflows, nothing may be lost."""
    for size in SIZES:
        with UdpUser(scene.ports[False, False]) as user:
            body = os.urandom(size - 4)
            came = set()
            for number in range(count + WINDOW):
                if number < count:
                    user.send(number.to_bytes(4) + body)
                if number >= WINDOW:
                    data = await user.receive()
                    assert data[4:] == body
                    came.add(int.from_bytes(data[:4]))
            assert came == set(range(count))


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES[:1], indirect=True)
async def test_a_thousand_users_at_once(scene: Scene) -> None:
    scene.echo.got.clear()
    with ExitStack() as stack:
        port = scene.ports[False, False]
        users = [stack.enter_context(UdpUser(port)) for _ in range(1000)]
        for _ in range(3):
            for start in range(0, len(users), 50):
                await all_of(user.echoed(os.urandom(200)) for user in users[start : start + 50])
        assert len(scene.echo.sources) == len(users)


async def test_a_cut_link_and_a_dead_service_heal(tmp_path: Path) -> None:
    """The server's work connection dies with its client; the next client brings another one."""
    port, service = free_port(), free_port()
    proxy = udp_proxy("dns", service, port)
    link: Config = {"transport": {"tcpMux": False}}
    async with tunnel(tmp_path, [proxy], server=link, client=link) as pair:
        with UdpUser(port) as user:
            user.send(b"nobody there")
            await pair.client.logged(r"connect to local service .* error: connection refused")
            async with await EchoUdp().start(port=service):
                await user.echoed(b"there now")
                pair.client.kill()
                offset = pair.client.mark()
                pair.client.start()
                await pair.client_ready(offset=offset)
                await user.echoed(b"and again")
        before = pair.server.figures().fds
        assert await pair.client.terminate() == 0
        await until(lambda: pair.server.figures().fds < before, "the server to close its socket")
