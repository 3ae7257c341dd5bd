"""nginx in front of the server: it passes websockets on, and ends the TLS of wss."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.real.web import Site, nginx
from tests.support.backends import HttpBackend
from tests.support.http import fetch
from tests.support.office import DOMAIN
from tests.support.ports import free_port
from tests.support.processes import Config, Kind, http_proxy, require_official, tunnel
from tests.support.services import BLOCK, running

pytestmark = pytest.mark.real

PAIRS = list(itertools.product(("ours", "official"), repeat=2))


@pytest.mark.parametrize(
    ("protocol", "tcp_mux"), [("wss", True), ("wss", False), ("websocket", True)]
)
@pytest.mark.parametrize("kinds", PAIRS, ids=[f"{a}-server:{b}-client" for a, b in PAIRS])
async def test_every_pair_speaks_through_nginx(
    kinds: tuple[Kind, Kind], protocol: str, tcp_mux: bool, tmp_path: Path
) -> None:
    if "official" in kinds:
        require_official()
    api, bind_port = HttpBackend(), free_port()
    site = Site("frps.test", tls=protocol == "wss", frps=bind_port)
    async with running(api), nginx(tmp_path / "web", [site]) as web:
        link: Config = {"transport": {"tcpMux": tcp_mux}}
        tls = {"serverName": site.name, "trustedCaFile": str(web.certificate(site))}
        way: Config = {"transport": {"tcpMux": tcp_mux, "protocol": protocol}}
        if protocol == "wss":
            way["transport"]["tls"] = tls
        async with tunnel(
            tmp_path,
            [http_proxy("llm-api", api.port, DOMAIN)],
            kinds=kinds,
            server={"bindPort": bind_port, **link},
            client=way,
            through=site.port,
        ) as pair:
            for _ in range(3):
                assert (await fetch(pair.http_port, "/hello", DOMAIN)).body == b"hello"
            answer = await fetch(pair.http_port, "/hash", DOMAIN, method="POST", body=BLOCK)
            assert answer.json()["size"] == len(BLOCK)
            answer = await fetch(pair.http_port, f"/bytes?n={len(BLOCK)}", DOMAIN)
            assert answer.body == BLOCK


@pytest.mark.parametrize(
    ("protocol", "frps", "words"),
    [
        ("wss", False, "404 Not Found by nginx"),
        ("wss", True, "502 Bad Gateway by nginx"),
        ("websocket", True, "400 Bad Request by nginx"),
    ],
)
async def test_what_nginx_answers_instead_is_told(
    protocol: str, frps: bool, words: str, tmp_path: Path
) -> None:
    """No such location, no server behind it, and plain HTTP where TLS is spoken."""
    site = Site("frps.test", tls=True, frps=free_port() if frps else 0)
    async with nginx(tmp_path / "web", [site]):
        way = {"transport": {"protocol": protocol}}
        async with tunnel(tmp_path, [], client=way, through=site.port, ready=False) as pair:
            await pair.client.logged(f"the websocket handshake was answered with {words}/[0-9.]+: ")
            assert await pair.client.exited() == 1
