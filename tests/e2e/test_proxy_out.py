"""Clients that reach their server through a proxy: ours, and the official one beside them.

The server's name is known to the proxy alone, so nothing can get there by another way.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import HttpBackend, sse
from tests.support.http import calling
from tests.support.office import DOMAIN, Office, office
from tests.support.ports import free_port
from tests.support.processes import Config, Kind, http_proxy, tunnel
from tests.support.proxies import (
    HttpProxy,
    Inside,
    SocksProxy,
    authority_pem,
    intercepting_context,
    is_http,
    is_tls,
    is_web,
)
from tests.support.services import BLOCK, running
from tests.support.waiting import until

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

NAME = "frps.test"
USERS = {"us@er": "p:w", "CORP\\user": "p w"}
NO_TLS: Config = {"tls": {"enable": False}}
NO_MUX: Config = {"tcpMux": False}

# Each way out: the proxy, its URL with PORT for the port, and what else is set for the link.
WAYS: dict[str, tuple[Any, str, Config]] = {
    "http": (lambda: HttpProxy(), "http://127.0.0.1:PORT", {}),
    "basic": (lambda: HttpProxy(users=USERS), "http://us%40er:p%3Aw@127.0.0.1:PORT", NO_MUX),
    "digest": (
        lambda: HttpProxy(users=USERS, schemes=["digest", "digest-sha256", "basic"]),
        "http://us%40er:p%3Aw@127.0.0.1:PORT",
        {**NO_TLS, **NO_MUX},
    ),
    "ntlm": (
        lambda: HttpProxy(users=USERS, schemes=["ntlm"]),
        "http://CORP%5Cuser:p%20w@127.0.0.1:PORT",
        NO_MUX,
    ),
    "ntlm-frp": (
        lambda: HttpProxy(users=USERS, schemes=["negotiate"]),
        "ntlm://CORP%5Cuser:p%20w@127.0.0.1:PORT",
        {},
    ),
    "https": (
        lambda: HttpProxy(users=USERS, tls=intercepting_context("127.0.0.1")),
        "https://us%40er:p%3Aw@127.0.0.1:PORT",
        {},
    ),
    "socks5": (lambda: SocksProxy(), "socks5://127.0.0.1:PORT", NO_TLS),
    "socks5-password": (
        lambda: SocksProxy(users=USERS),
        "socks5://us%40er:p%3Aw@127.0.0.1:PORT",
        NO_MUX,
    ),
}
WAYS |= {
    "wss-digest": (
        lambda: HttpProxy(users=USERS, schemes=["digest"], inside=Inside(lets=is_tls)),
        WAYS["basic"][1],
        {"protocol": "wss", **NO_MUX},
    ),
    # TLS that is opened on the way, with HTTP alone let through.
    "wss-opened": (
        lambda: HttpProxy(inside=Inside(lets=is_http, intercepts=True)),
        WAYS["http"][1],
        {"protocol": "wss"},
    ),
    "websocket-http-only": (
        lambda: HttpProxy(inside=Inside(lets=is_http)),
        WAYS["http"][1],
        {"protocol": "websocket"},
    ),
    "websocket-socks5": (lambda: SocksProxy(), WAYS["socks5"][1], {"protocol": "websocket"}),
}
ROWS: list[tuple[str, Kind, Kind]] = [
    *((way, "ours", "ours") for way in WAYS),
    *((way, "official", "ours") for way in ("basic", "digest", "https", "socks5-password")),
    ("websocket-http-only", "official", "ours"),
    # The official client shows that these proxies are as real ones are.
    *((way, "ours", "official") for way in ("http", "basic", "ntlm-frp", "socks5-password")),
    ("websocket-http-only", "ours", "official"),
]


async def _main_job(scene: Office) -> None:
    answer = await scene.get()
    assert (answer.status, answer.body) == (200, b"hello")
    answer = await scene.get("/events?n=3")
    assert answer.body == sse(0) + sse(1) + sse(2)
    async with calling(scene.echo_port) as user:
        await user.echoed(BLOCK)


@pytest.mark.parametrize(("way", "server", "client"), ROWS, ids=map("-".join, ROWS))
async def test_the_main_job_works_through_a_proxy(
    way: str, server: Kind, client: Kind, tmp_path: Path
) -> None:
    make, url, link = WAYS[way]
    proxy, port = make(), free_port()
    proxy.names[NAME] = ("127.0.0.1", port)
    ca = tmp_path / "office-ca.pem"
    ca.write_bytes(authority_pem())
    transport = {**link, "proxyURL": url.replace("PORT", str(proxy.port))}
    shared = {key: value for key, value in link.items() if key == "tcpMux"}
    async with (
        running(proxy),
        office(
            tmp_path,
            kinds=(server, client),
            server={"bindPort": port, "transport": shared},
            client={"serverAddr": NAME, "transport": transport},
            env={"SSL_CERT_FILE": str(ca)},
        ) as scene,
    ):
        await _main_job(scene)
        assert proxy.open
        log = scene.pair.client.log()
    assert not any(secret in log for secret in ("p:w", "p%3Aw", "p w", "p%20w"))


async def test_the_variable_of_frp_names_a_proxy(tmp_path: Path) -> None:
    proxy, port = HttpProxy(), free_port()
    proxy.names[NAME] = ("127.0.0.1", port)
    async with (
        running(proxy),
        office(
            tmp_path,
            server={"bindPort": port},
            client={"serverAddr": NAME},
            env={"http_proxy": f"http://127.0.0.1:{proxy.port}"},
        ) as scene,
    ):
        assert await scene.works()
    assert proxy.tunnels


CUTS = {
    "tls": (
        Inside(lets=is_http),
        {},
        "the peer closed the connection during the TLS handshake (through the proxy PLACE); if the "
        "server is there, the proxy lets CONNECT through and cuts TLS that is not HTTPS: try "
        'transport.protocol = "wss"',
    ),
    "plain": (
        Inside(lets=is_web),
        NO_TLS,
        "the proxy lets CONNECT through and cuts what is neither TLS nor HTTP: try "
        'transport.protocol = "wss"',
    ),
    "silent": (
        Inside(lets=is_http, silent=True),
        {"dialServerTimeout": 1},
        "no TLS answer from frps.test:BIND within 1 s; is it an frp server, and does anything on "
        "the way hold TLS back? (through the proxy PLACE); if the server is there, the proxy lets "
        'CONNECT through and cuts TLS that is not HTTPS: try transport.protocol = "wss"',
    ),
}


@pytest.mark.parametrize("name", CUTS)
async def test_a_proxy_that_looks_into_tunnels_is_named(name: str, tmp_path: Path) -> None:
    inside, link, words = CUTS[name]
    port = free_port()
    proxy = HttpProxy(inside=inside, names={NAME: ("127.0.0.1", port)})
    place = f"127.0.0.1:{proxy.port}"
    async with (
        running(proxy),
        tunnel(
            tmp_path,
            [],
            server={"bindPort": port},
            client={
                "serverAddr": NAME,
                "transport": {**link, "proxyURL": f"http://user:hunter2@{place}"},
            },
            ready=False,
        ) as pair,
    ):
        said = words.replace("PLACE", place).replace("BIND", str(port))
        await pair.client.logged(re.escape(said))
        assert "hunter2" not in pair.client.log()


async def test_a_proxy_that_cuts_what_is_idle_is_named(tmp_path: Path) -> None:
    api, port = HttpBackend(), free_port()
    proxy = HttpProxy(inside=Inside(idle_s=6.0), names={NAME: ("127.0.0.1", port)})
    link = {"proxyURL": f"http://127.0.0.1:{proxy.port}", "tcpMuxKeepaliveInterval": 60}
    async with (
        running(api, proxy),
        tunnel(
            tmp_path,
            [http_proxy("llm-api", api.port, DOMAIN)],
            server={"bindPort": port, "transport": {"tcpMuxKeepaliveInterval": 60}},
            client={"serverAddr": NAME, "transport": link},
        ) as pair,
    ):
        words = (
            f"nothing had come for [67] s; if this repeats, the proxy 127.0.0.1:{proxy.port} cuts "
            "what is idle: set transport.tcpMuxKeepaliveInterval = 3"
        )
        await pair.client.logged(words)
        await until(lambda: proxy.tunnels > 1, "the client to come back")
