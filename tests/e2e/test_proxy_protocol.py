"""What `transport.proxyProtocolVersion` makes either client tell the local service."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pyfrp.wire import proxyproto
from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.http import calling
from tests.support.meeting import secret_proxy, visitor
from tests.support.ports import free_port
from tests.support.processes import HOST, PAIRS, Kind, merged, require_official, tcp_proxy, tunnel
from tests.support.services import EchoBackend, running

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

CELLS = [(version, plain) for version, plain in itertools.product(("v1", "v2"), (True, False))]


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
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


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
async def test_a_udp_service_learns_who_sends(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    """Once, ahead of a user's first datagram; frp 0.65 repeats it before each, frp 0.67 does not.

    The words of v1 have no name for datagrams.
    """
    if "official" in kinds:
        require_official()
    async with await EchoUdp().start() as echo:
        ports = {version: free_port() for version in ("v1", "v2")}
        base = {"localIP": HOST, "localPort": echo.port}
        proxies = [
            {
                **base,
                "name": version,
                "type": "udp",
                "remotePort": port,
                "transport": {"proxyProtocolVersion": version},
            }
            for version, port in ports.items()
        ]
        told = {"proxyProtocolVersion": "v2"}
        proxies.append(merged(secret_proxy("sudp", "secret", transport=told), base))
        visitors = [visitor("sudp", "v", "secret", serverUser="")]
        ports["secret"] = visitors[0]["bindPort"]
        # A client may visit its own proxies.
        more = {"visitors": visitors}
        async with tunnel(tmp_path, proxies, kinds=kinds, client=more) as pair:
            await pair.client.logged("start visitor success")
            for version, port in ports.items():
                with UdpUser(port) as user:
                    await _told_who_sends(user, echo, version, again=kinds[1] == "official")


async def _told_who_sends(user: UdpUser, echo: EchoUdp, version: str, *, again: bool) -> None:
    for number in range(3):
        # The service echoes what it was told, too.
        user.send(b"hello")
        got = await user.receive()
        if number and not again:
            assert got == b"hello"
            continue
        found = proxyproto.decode(got)
        assert found is not None
        header, size = found
        assert got[size:] == b"hello"
        if version == "v1":
            assert got[:size] == b"PROXY UNKNOWN\r\n"
        else:
            assert header.datagram
            assert header.source == user.address
            assert header.destination == (HOST, echo.port)
