"""QUIC between our programs and the official ones, in every pairing.

Each row runs a pair with one way to trust each other, and proxies of three types.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aioquic", reason="QUIC is optional, and not installed here")

from tests.support import main_job
from tests.support.authority import Authority
from tests.support.backends import HttpBackend
from tests.support.datagrams import EchoUdp
from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    Config,
    Kind,
    http_proxy,
    require_official,
    tcp_proxy,
    tunnel,
)
from tests.support.services import EchoBackend, running
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.e2e]

DOMAIN = "llm.test"
AT_ONCE = 20


def quic(
    port: int,
    *,
    server_tls: Mapping[str, Any] | None = None,
    client_tls: Mapping[str, Any] | None = None,
    idle_s: int = 30,
    alive_s: int = 10,
) -> tuple[Config, Config]:
    """What makes a pair speak QUIC: additions for the server and for the client."""
    tuning = {"maxIdleTimeout": idle_s, "keepalivePeriod": alive_s}
    server = {"quicBindPort": port, "transport": {"quic": tuning, "tls": dict(server_tls or {})}}
    client = {
        "serverPort": port,
        "transport": {"protocol": "quic", "quic": tuning, "tls": dict(client_tls or {})},
    }
    return server, client


def trusting(way: str, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`transport.tls` of the server and of the client."""
    if way == "default":
        return {}, {}
    if way == "off":
        return {}, {"enable": False}
    authority = Authority(directory)
    shown = authority.pair("server", "frps.test")
    server = {"certFile": str(shown.cert), "keyFile": str(shown.key)}
    client = {"trustedCaFile": str(authority.file), "serverName": "frps.test"}
    if way == "mutual":
        own = authority.pair("client")
        server["trustedCaFile"] = str(authority.file)
        client |= {"certFile": str(own.cert), "keyFile": str(own.key)}
    return server, client


ROWS: list[Any] = [
    pytest.param(
        (server, client),
        way,
        id=f"{server}-server:{client}-client:{way}",
        marks=[pytest.mark.interop] if "official" in (server, client) else [],
    )
    for server in ("ours", "official")
    for client in ("ours", "official")
    for way in ("default", "verified", "mutual", "off")
    # What the official programs do among themselves shows that the rows are right.
    if way != "off" or (server, client) == ("official", "ours")
    if way != "verified" or (server, client) != ("official", "official")
]


@pytest.mark.parametrize(("kinds", "way"), ROWS)
async def test_every_pair_carries_every_type(
    kinds: tuple[Kind, Kind], way: str, tmp_path: Path
) -> None:
    if "official" in kinds:
        require_official()
    port, tcp_port, udp_port = free_port(), free_port(), free_port()
    server_tls, client_tls = trusting(way, tmp_path)
    server, client = quic(port, server_tls=server_tls, client_tls=client_tls)
    http, echo = HttpBackend(), EchoBackend()
    async with running(http, echo), await EchoUdp().start() as datagrams:
        proxies = [
            http_proxy("web", http.port, DOMAIN),
            tcp_proxy("tcp", echo.port, tcp_port),
            {
                "name": "udp",
                "type": "udp",
                "localIP": HOST,
                "localPort": datagrams.port,
                "remotePort": udp_port,
            },
        ]
        async with tunnel(tmp_path, proxies, kinds=kinds, server=server, client=client) as pair:
            jobs = [
                main_job.events_one_by_one(pair.http_port, DOMAIN, http),
                main_job.echoes(tcp_port),
                main_job.datagrams(udp_port),
            ]
            jobs += [main_job.small_requests(pair.http_port, DOMAIN) for _ in range(AT_ONCE)]
            await all_of(jobs, limit_s=30)
            if kinds[0] == "ours":
                assert await pair.server.logged(rf"frps quic listen on {HOST}:{port}")
        assert not http.complaints


@pytest.mark.parametrize("kind", ["ours", pytest.param("official", marks=pytest.mark.interop)])
async def test_a_server_that_was_killed_is_found_again(kind: Kind, tmp_path: Path) -> None:
    """Ours tells a client that it has forgotten him; else its silence tells."""
    if kind == "official":
        require_official()
    server, client = quic(free_port(), idle_s=4, alive_s=1)
    client["loginFailExit"] = False
    http = HttpBackend()
    async with (
        running(http),
        tunnel(
            tmp_path,
            [http_proxy("web", http.port, DOMAIN)],
            kinds=(kind, "ours"),
            server=server,
            client=client,
        ) as pair,
    ):
        await main_job.small_requests(pair.http_port, DOMAIN)
        at = pair.client.mark()
        pair.server.kill()
        pair.server.start()
        await pair.client_ready(20, offset=at)
        await main_job.small_requests(pair.http_port, DOMAIN)
        if kind == "ours":
            assert "the peer has forgotten it" in pair.client.log(at)


@pytest.mark.parametrize("kind", ["ours", pytest.param("official", marks=pytest.mark.interop)])
async def test_a_client_that_ends_takes_its_proxies_along(kind: Kind, tmp_path: Path) -> None:
    if kind == "official":
        require_official()
    server, client = quic(free_port())
    http = HttpBackend()
    async with (
        running(http),
        tunnel(
            tmp_path,
            [http_proxy("web", http.port, DOMAIN)],
            kinds=(kind, "ours"),
            server=server,
            client=client,
        ) as pair,
    ):
        pair.client.signal(signal.SIGTERM)
        await pair.server.logged("client exit success", 5)
        await until(lambda: not pair.client.is_running(), "the client to end", 5)


REFUSALS = {
    "nobody": (
        {},
        {},
        r"dial quic 127\.0\.0\.1:\d+: connection refused; is this quicBindPort of the server\?",
    ),
    "stranger": (
        {"own": "ca", "trusted": "ca"},
        {"trusted": "other", "name": "frps.test"},
        "the peer's certificate is not trusted",
    ),
    "name": (
        {"own": "ca"},
        {"trusted": "ca", "name": "other.test"},
        "the peer's certificate is not for other.test; check transport.tls.serverName",
    ),
    "anonymous": ({"own": "ca", "trusted": "ca"}, {}, "a client certificate is required"),
    "unknown client": (
        {"own": "ca", "trusted": "ca"},
        {"own": "other"},
        "it does not trust our certificate|it refuses our certificate",
    ),
}


@pytest.mark.parametrize("kind", ["ours", pytest.param("official", marks=pytest.mark.interop)])
@pytest.mark.parametrize("case", REFUSALS)
async def test_what_is_wrong_is_told_in_words(case: str, kind: Kind, tmp_path: Path) -> None:
    if kind == "official":
        require_official()
    server_wants, client_wants, words = REFUSALS[case]
    authorities = {name: Authority(tmp_path, name) for name in ("ca", "other")}

    def files(role: str, wanted: Mapping[str, str]) -> dict[str, str]:
        made = {}
        if "own" in wanted:
            shown = authorities[wanted["own"]].pair(role, "frps.test")
            made = {"certFile": str(shown.cert), "keyFile": str(shown.key)}
        if "trusted" in wanted:
            made["trustedCaFile"] = str(authorities[wanted["trusted"]].file)
        if "name" in wanted:
            made["serverName"] = wanted["name"]
        return made

    server, client = quic(
        free_port(),
        server_tls=files("server", server_wants),
        client_tls=files("client", client_wants),
    )
    client["loginFailExit"] = False
    if case == "nobody":
        client["serverPort"] = free_port()
    async with tunnel(
        tmp_path, [], kinds=(kind, "ours"), server=server, client=client, ready=False
    ) as pair:
        pair.client.kill()  # It shall not come before the server is there.
        await pair.server_ready()
        pair.client.start()
        await pair.client.logged(f"connect to server error: .*({words})", 10)
