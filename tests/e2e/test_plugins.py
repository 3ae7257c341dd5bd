"""The client's plugins, in pairs of our programs and the official ones, seen by the same users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.http import calling
from tests.support.ports import free_port
from tests.support.processes import Config, Kind, Tunnel, require_official, tcp_proxy, tunnel
from tests.support.services import BLOCK, EchoBackend, running
from tests.support.waiting import all_of

pytestmark = [pytest.mark.interop, pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

PAIRS: list[tuple[Kind, Kind]] = [("ours", "ours"), ("official", "ours"), ("ours", "official")]


@dataclass
class Scene:
    """A running pair whose client has every plugin, each behind a port."""

    kinds: tuple[Kind, Kind]
    echo: EchoBackend
    files: Path
    ports: dict[str, int] = field(default_factory=dict)
    pair: Tunnel | None = None

    def proxies(self, **plugins: Config) -> list[Config]:
        found = []
        for number, (name, options) in enumerate(plugins.items()):
            self.ports[name] = free_port()
            # Plugins get the payload as it was before encryption and compression.
            transport = {"useEncryption": number % 2 == 1, "useCompression": number % 3 == 1}
            found.append(tcp_proxy(name, 0, self.ports[name], plugin=options, transport=transport))
        return found


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=PAIRS, ids=["-".join(pair) for pair in PAIRS]
)
async def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    kinds = request.param
    if "official" in kinds:
        require_official()
    directory = tmp_path_factory.mktemp("p")
    echo = EchoBackend()
    made = Scene(kinds, echo, directory / "files")
    made.files.mkdir()

    async def unix_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(unix_echo, directory / "s")
    proxies = made.proxies(
        unix={"type": "unix_domain_socket", "unixPath": str(directory / "s")},
    )
    async with running(echo), tunnel(directory / "t", proxies, kinds=kinds) as pair:
        made.pair = pair
        yield made
    server.close()


async def _echoes(caller_port: int, opening: bytes = b"", answer: bytes = b"") -> None:
    async with calling(caller_port) as caller:
        await caller.send(opening)
        assert await caller.exactly(len(answer)) == answer

        async def back() -> bytes:
            return await caller.exactly(len(BLOCK))

        _, echoed = await all_of([caller.send(BLOCK), back()])
        assert echoed == BLOCK


async def test_unix_domain_socket_carries_a_megabyte_each_way(scene: Scene) -> None:
    await _echoes(scene.ports["unix"])
