"""Every transport between our programs and the official ones, with what it carries.

One table: a transport with its TLS and mux, and the pairs that speak it. A transport is added with
a line in `TRANSPORTS`. Each pair carries requests, events that must arrive one by one, a megabyte
in both directions, a tcp connection and datagrams.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import main_job
from tests.support.datagrams import EchoUdp
from tests.support.http import calling
from tests.support.office import DOMAIN, office
from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    Config,
    Kind,
    Program,
    client_config,
    merged,
    require_official,
    tcp_proxy,
)
from tests.support.services import BLOCK
from tests.support.waiting import all_of
from tests.unit.net.tls_pair import server_context

pytestmark = [pytest.mark.e2e]

KINDS: tuple[Kind, ...] = ("ours", "official")
ALL_PAIRS = tuple(itertools.product(KINDS, KINDS))
OURS = (("ours", "ours"),)
TLS: dict[str, Config] = {
    "tls-off": {"enable": False},
    "tls-on": {"enable": True, "disableCustomTLSFirstByte": True},
    "tls-0x17": {"enable": True, "disableCustomTLSFirstByte": False},
}


@dataclass(frozen=True)
class Transport:
    """A row: one way between a client and its server.

    Args:
        protocol: `transport.protocol`.
        tls: Key of `TLS`.
        tcp_mux: Whether links carry a mux.
        pairs: The pairs of server and client that speak it.
        server: Laid over the server's configuration.
        client: Laid over the client's.
    """

    protocol: str
    tls: str
    tcp_mux: bool = True
    pairs: tuple[tuple[Kind, Kind], ...] = ALL_PAIRS
    server: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.protocol}:{self.tls}:{'mux' if self.tcp_mux else 'nomux'}"


TRANSPORTS = (
    *(Transport("websocket", tls) for tls in TLS),
    *(Transport("websocket", tls, tcp_mux=False) for tls in ("tls-off", "tls-0x17")),
    # frps does not speak wss; with a web server in front see `tests/real/test_nginx_wss.py`.
    Transport("wss", "tls-on", pairs=OURS),
    Transport("wss", "tls-on", tcp_mux=False, pairs=OURS),
)
CASES = [
    pytest.param(
        transport,
        kinds,
        id=f"{kinds[0]}-server:{kinds[1]}-client:{transport}",
        marks=[pytest.mark.interop] if "official" in kinds else [],
    )
    for transport in TRANSPORTS
    for kinds in transport.pairs
]


@pytest.mark.parametrize(("transport", "kinds"), CASES)
async def test_every_pair_carries_everything_over_every_transport(
    transport: Transport, kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    if "official" in kinds:
        require_official()
    link: Config = {"transport": {"tcpMux": transport.tcp_mux}}
    way: Config = {"transport": {"protocol": transport.protocol, "tls": TLS[transport.tls]}}
    udp_port = free_port()
    async with await EchoUdp().start() as echo:
        dns = {
            "name": "dns",
            "type": "udp",
            "localIP": HOST,
            "localPort": echo.port,
            "remotePort": udp_port,
        }
        async with office(
            tmp_path,
            kinds=kinds,
            server=merged(link, transport.server),
            client=merged(merged(link, way), transport.client),
            proxies=[dns],
        ) as scene:
            await all_of(
                [
                    main_job.small_requests(scene.http_port, DOMAIN),
                    main_job.events_one_by_one(scene.http_port, DOMAIN, scene.api),
                    main_job.megabyte_up(scene.http_port, DOMAIN),
                    main_job.megabyte_down(scene.http_port, DOMAIN),
                    main_job.echoes(scene.echo_port),
                    main_job.datagrams(udp_port),
                ],
                limit_s=30,
            )
            assert not scene.api.complaints


# --- one port for all -----------------------------------------------------------------------

CLIENTS: dict[str, tuple[Kind, Config]] = {
    "plain": ("ours", {"tls": TLS["tls-off"]}),
    "tls": ("ours", {"tls": TLS["tls-on"]}),
    "official-tls": ("official", {"tls": TLS["tls-on"]}),
    "official-0x17": ("official", {"tls": TLS["tls-0x17"]}),
    "official-websocket": ("official", {"protocol": "websocket", "tls": TLS["tls-0x17"]}),
    "wss": ("ours", {"protocol": "wss"}),
}


@pytest.mark.interop
async def test_one_port_carries_clients_of_every_kind_and_users_of_http_and_https(
    tmp_path: Path,
) -> None:
    require_official()
    port, https_port = free_port(), free_port()
    shared = {"bindPort": port, "vhostHTTPPort": port, "vhostHTTPSPort": port}
    site = {
        "name": "site",
        "type": "https",
        "localIP": HOST,
        "localPort": https_port,
        "customDomains": ["site.test"],
    }

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"the site")
        writer.close()

    async with (
        await asyncio.start_server(answer, HOST, https_port, ssl=server_context()),
        office(tmp_path, server=shared, proxies=[site]) as scene,
    ):
        clients = []
        try:
            remote = {name: free_port() for name in CLIENTS}
            for name, (kind, way) in CLIENTS.items():
                proxies = [tcp_proxy(name, scene.echo.port, remote[name])]
                config = client_config(port, proxies, {"transport": way})
                clients.append(Program(kind, "client", config, tmp_path, name=name).start())
            for client in clients:
                await client.logged("start proxy success")

            async def echoed(number: int) -> None:
                async with calling(number) as caller:
                    await caller.send(BLOCK[:100_000])
                    assert await caller.exactly(100_000) == BLOCK[:100_000]

            async def visited(name: str, *protocols: str) -> bytes:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                if protocols:
                    context.set_alpn_protocols(list(protocols))
                reader, writer = await asyncio.open_connection(
                    HOST, port, ssl=context, server_hostname=name
                )
                try:
                    return await reader.read()
                finally:
                    writer.close()

            await all_of(map(echoed, remote.values()))
            await main_job.small_requests(scene.http_port, DOMAIN)
            assert await visited("site.test") == await visited("site.test", "h2") == b"the site"
            with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
                await visited("other.test", "h2", "http/1.1")
        finally:
            for client in clients:
                client.kill()
