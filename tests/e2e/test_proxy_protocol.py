"""What `transport.proxyProtocolVersion` makes either client tell the local service."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pyfrp.wire import proxyproto
from tests.support.http import calling
from tests.support.ports import free_port
from tests.support.processes import Kind, require_official, tcp_proxy, tunnel
from tests.support.services import EchoBackend, running

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

KINDS: tuple[Kind, ...] = ("ours", "official")
PAIRS = list(itertools.product(KINDS, KINDS))
CELLS = [(version, plain) for version, plain in itertools.product(("v1", "v2"), (True, False))]


@pytest.mark.parametrize("kinds", PAIRS, ids=["-".join(pair) for pair in PAIRS])
async def test_the_service_learns_who_calls(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    if "official" in kinds:
        require_official()
    echo = EchoBackend()
    async with running(echo):
        ports = {cell: free_port() for cell in CELLS}
        proxies = [
            tcp_proxy(
                f"{version}-{plain}",
                echo.port,
                port,
                transport={
                    "proxyProtocolVersion": version,
                    "useEncryption": not plain,
                    "useCompression": not plain,
                },
            )
            for (version, plain), port in ports.items()
        ]
        async with tunnel(tmp_path, proxies, kinds=kinds):
            for (version, _), port in ports.items():
                async with calling(port) as caller:
                    await caller.send(b"hello")
                    # The service echoes what it was told, then what was sent.
                    told = b""
                    while (found := proxyproto.decode(told) if told else None) is None:
                        told += await caller.exactly(1)
                    header, size = found
                    assert told.startswith(b"PROXY ") == (version == "v1")
                    assert size == len(told)
                    assert header.source == caller.writer.get_extra_info("sockname")
                    assert header.destination == ("127.0.0.1", port)
                    assert await caller.exactly(5) == b"hello"
