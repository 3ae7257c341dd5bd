"""The client that finds its way out, and says why not: real programs, real refusals.

The office of these tests reaches its server only as each test says; the proxies are those of
`tests/support/proxies.py`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.dns import zone_of
from tests.support.office import Office, office
from tests.support.ports import black_hole, free_port
from tests.support.processes import HOST, LOGIN_DONE, Kind, Program, client_config, merged
from tests.support.proxies import HOSTILE, HttpProxy, Inside, SocksProxy, is_http
from tests.support.services import Backend, Pipe, running
from tests.support.waiting import until_async

pytestmark = [pytest.mark.e2e]

AUTO = {"protocol": "auto", "auto": {"rungTimeout": 1}}


@asynccontextmanager
async def office_behind(
    directory: Path,
    proxy: HttpProxy | SocksProxy,
    *,
    port: int,
    bind_port: int,
    server: Kind = "ours",
    scheme: str = "http",
    transport: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Office]:
    """An office whose server is at `bind_port` for the proxy, and at `port` for everybody else."""
    proxy.names[HOST] = (HOST, bind_port)
    async with running(proxy):
        url = f"{scheme}://{HOST}:{proxy.port}"
        async with office(
            directory,
            kinds=(server, "ours"),
            server={"bindPort": bind_port},
            client={"serverPort": port, "transport": merged(AUTO, transport)},
            env={"HTTPS_PROXY": url} if env is None else dict.fromkeys(env, url),
        ) as scene:
            yield scene


def chosen(scene: Office) -> str:
    """The line that says which way was taken; there is one for each login."""
    return re.findall(r"connected by .*", scene.pair.client.log())[-1].strip()


async def said_by_a_client_alone(
    directory: Path, port: int, proxy_port: int, **transport: Any
) -> str:
    """What a client says in its last words, when it finds no way."""
    config = client_config(port, [], {"transport": merged(AUTO, transport)})
    client = Program("ours", "client", config, directory)
    client.env = {"HTTPS_PROXY": f"http://{HOST}:{proxy_port}"}
    try:
        client.start()
        assert await client.exited() == 1
        return client.log()
    finally:
        client.kill()


# --- ways that work ----------------------------------------------------------------------------


async def test_the_direct_way_is_taken_where_it_is_open(tmp_path: Path) -> None:
    async with office(tmp_path, client={"transport": AUTO}) as scene:
        assert await scene.works()
        assert chosen(scene) == "connected by tcp"


async def test_a_ladder_may_begin_with_udp(tmp_path: Path) -> None:
    port = free_port()
    auto = {"ladder": ["quic", "tcp"]}
    async with office(
        tmp_path,
        server={"bindPort": port, "quicBindPort": port},
        client={"transport": merged(AUTO, {"auto": auto})},
    ) as scene:
        assert await scene.works()
        assert chosen(scene) == "connected by quic"


async def test_a_proxy_of_the_environment_is_found_where_the_server_refuses(tmp_path: Path) -> None:
    proxy, port = HttpProxy(), free_port()
    async with office_behind(tmp_path, proxy, port=port, bind_port=free_port()) as scene:
        assert await scene.works()
        assert chosen(scene) == (
            f"connected by tcp through http://{HOST}:{proxy.port}; failed before: tcp, wss, "
            f"websocket: dial tcp {HOST}:{port}: connection refused"
        )


async def test_a_black_hole_costs_the_limit_of_one_step(tmp_path: Path) -> None:
    proxy = SocksProxy()
    with black_hole() as port:
        async with office_behind(
            tmp_path,
            proxy,
            port=port,
            bind_port=free_port(),
            scheme="socks5",
            env={"all_proxy": ""},
        ) as scene:
            assert await scene.works()
            assert chosen(scene) == (
                f"connected by tcp through socks5://{HOST}:{proxy.port}; failed before: tcp, wss, "
                f"websocket: dial tcp {HOST}:{port}: no answer within 1 s"
            )


@pytest.mark.parametrize(
    ("server", "silent"),
    [
        pytest.param("ours", False, id="cuts"),
        pytest.param("ours", True, id="holds"),
        pytest.param("official", False, id="cuts-official", marks=pytest.mark.interop),
    ],
)
async def test_what_gets_through_a_proxy_for_http_alone_is_found_and_remembered(
    server: Kind, silent: bool, tmp_path: Path
) -> None:
    proxy = HttpProxy(inside=Inside(lets=is_http, silent=silent))
    async with office_behind(
        tmp_path, proxy, port=free_port(), bind_port=free_port(), server=server
    ) as scene:
        assert await scene.works()
        way = f"websocket through http://{HOST}:{proxy.port}"
        assert chosen(scene).startswith(
            f"connected by {way}; failed before: (1) tcp, wss, websocket: "
        )
        assert proxy.tunnels == 3
        # The proxy cuts the link: the way that worked is the first one now.
        mark = scene.pair.client.mark()
        for pipe in proxy.pipes:
            pipe.transport.abort()
        await scene.pair.client.logged(LOGIN_DONE, offset=mark)
        await until_async(scene.works, "the API to be served again")
        assert chosen(scene) == f"connected by {way}"
        assert proxy.tunnels == 4


class Inspector(HttpProxy):
    """Opens what is TLS, and lets through what is HTTP: inside TLS, and by itself."""

    async def carry(self, pipe: Pipe, host: str, far: Any) -> None:
        # A hello that is read cannot be opened any more, so by the order of the ladder.
        self.inside = Inside(lets=is_http, intercepts=self.tunnels < 2)
        await super().carry(pipe, host, far)


async def test_tls_within_a_websocket_passes_where_tls_is_opened(tmp_path: Path) -> None:
    proxy, bind_port = Inspector(), free_port()
    async with office(tmp_path / "first", server={"bindPort": bind_port}) as scene:
        match = await scene.pair.server.logged(r"tls certificate.*?((?:[0-9A-F]{2}:){31}\w\w)")
        pin = f"sha256:{match[1]}"
    port = free_port()
    async with office_behind(
        tmp_path / "second",
        proxy,
        port=port,
        bind_port=bind_port,
        transport={"tls": {"pinnedSHA256": [pin]}},
    ) as scene:
        assert await scene.works()
        line = chosen(scene)
    through = f"through http://{HOST}:{proxy.port}"
    assert line.startswith(f"connected by websocket {through}; failed before: ")
    assert re.search(
        rf"\(2\) tcp, wss {through}: the certificate at {HOST}:{port} is not a pinned one \(got "
        r"sha256:[0-9A-F:]{95}, issued by CN=Office Inspection CA\); either something on the way "
        r"opens TLS, probably a corporate proxy: ",
        line,
    )


async def test_a_refused_login_ends_the_search(tmp_path: Path) -> None:
    async with office(
        tmp_path, client={"transport": AUTO, "loginFailExit": False, "proxies": []}
    ) as scene:
        wrong = Program(
            "ours",
            "client",
            client_config(
                scene.pair.bind_port,
                [],
                {"transport": AUTO, "auth": {"token": "wrong"}},
            ),
            tmp_path,
            name="wrong",
        )
        try:
            assert await wrong.start().exited() == 1
        finally:
            wrong.kill()
        assert "connected by tcp\n" in wrong.log()
        assert "login to the server failed: token in login doesn't match token" in wrong.log()


# --- no way ------------------------------------------------------------------------------------


DEAD_ENDS = {
    "403": (
        "the proxy {proxy} refuses a tunnel to {server} (403 Forbidden): have its administrators "
        "allow CONNECT to {server}, or let the server listen on port 443",
        "the proxy is the way out of this network: do what is said there of it",
    ),
    "407-basic": (
        "the proxy {proxy} asks for a user and a password (407, it offers Basic): write them into "
        "HTTPS_PROXY in the environment, as in http://USER:PASSWORD@{proxy}",
        "the proxy is the way out of this network: do what is said there of it",
    ),
    "login-page": (
        "the proxy {proxy} answers CONNECT to {server} with a web page instead of a tunnel",
        "the proxy is the way out of this network: do what is said there of it",
    ),
    "hangs": (
        "the proxy {proxy} takes the connection and does not answer the request for {server} "
        "within 1 s",
        "the proxy is the way out of this network: do what is said there of it",
    ),
    "hangs-tunnel": (
        "(2) tcp, wss through http://{proxy}: no TLS answer from {server} within 1 s; is it an frp "
        "server",
        "connections to {server} stand and what is said on them does not get through",
    ),
}


@pytest.mark.parametrize("kind", DEAD_ENDS)
async def test_a_dead_end_names_each_way_and_the_next_step(kind: str, tmp_path: Path) -> None:
    proxy: Backend = HOSTILE[kind]()
    port = free_port()
    async with running(proxy):
        text = await said_by_a_client_alone(tmp_path, port, proxy.port)
    places = {"proxy": f"{HOST}:{proxy.port}", "server": f"{HOST}:{port}"}
    why, step = (words.format(**places) for words in DEAD_ENDS[kind])
    start = (
        f"no way to {HOST}:{port} was found: (1) tcp, wss, websocket: dial tcp {HOST}:{port}: "
        "connection refused; "
    )
    assert start in text
    assert why in text
    assert f"; next step: {step}" in text


async def test_a_pinned_client_tells_of_a_proxy_that_opens_all_tls(tmp_path: Path) -> None:
    proxy, bind_port, port = HOSTILE["opens-tls"](), free_port(), free_port()
    assert isinstance(proxy, HttpProxy)
    proxy.names[HOST] = (HOST, bind_port)
    async with running(proxy), office(tmp_path, server={"bindPort": bind_port}):
        text = await said_by_a_client_alone(
            tmp_path, port, proxy.port, tls={"pinnedSHA256": ["00" * 32]}
        )
    assert "issued by CN=Office Inspection CA); either something on the way opens TLS" in text
    assert "next step: connections stand, but do not show the server's certificate" in text


async def test_without_auto_a_black_hole_costs_the_dial_timeout(tmp_path: Path) -> None:
    with black_hole() as port:
        config = client_config(port, [], {"transport": {"dialServerTimeout": 1}})
        client = Program("ours", "client", config, tmp_path)
        try:
            assert await client.start().exited(5) == 1
        finally:
            client.kill()
    assert f"dial tcp {HOST}:{port}: no answer within 1 s" in client.log()


# --- where the server is -----------------------------------------------------------------------


async def test_a_server_that_moves_is_found_by_its_name(tmp_path: Path) -> None:
    """Its address changes in the DNS that `dnsServer` names, and the client follows."""
    async with zone_of({"frps.test": [HOST]}) as zone:
        client = {"serverAddr": "frps.test", "dnsServer": f"{HOST}:{zone.port}"}
        async with office(tmp_path, client=client) as scene:
            assert await scene.works()
            server, mark = scene.pair.server, scene.pair.client.mark()
            server.kill()
            # The old address answers to nobody, the new one comes first.
            zone.names["frps.test"] = ["127.0.0.2", "127.0.0.9"]
            server.config["bindAddr"] = "127.0.0.2"
            server.config["proxyBindAddr"] = HOST
            server.start()
            await scene.pair.client.logged(LOGIN_DONE, offset=mark)
            await until_async(scene.works, "the API to be served again")


async def test_a_name_that_the_dns_server_does_not_know_is_told_with_both(tmp_path: Path) -> None:
    async with zone_of({}) as zone:
        config = client_config(
            7000, [], {"serverAddr": "frps.test", "dnsServer": f"{HOST}:{zone.port}"}
        )
        client = Program("ours", "client", config, tmp_path)
        try:
            assert await client.start().exited() == 1
        finally:
            client.kill()
        assert f"lookup frps.test on {HOST}:{zone.port}: no such host" in client.log()


@pytest.mark.parametrize("protocol", ["tcp", "websocket"])
async def test_the_server_sees_the_address_that_a_client_is_told_to_use(
    protocol: str, tmp_path: Path
) -> None:
    transport = {"protocol": protocol, "connectServerLocalIP": "127.0.0.2"}
    async with office(tmp_path, client={"transport": transport}) as scene:
        assert await scene.works()
        await scene.pair.server.logged(r"client login info: ip \[127\.0\.0\.2:\d+\]")
