"""curl with its `--proxy`: plugins as forward proxies, and the CONNECT multiplexer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.real.web import Site, curl, curl_fails, nginx
from tests.support.ports import free_port
from tests.support.processes import HOST, Config, Kind, tunnel

pytestmark = pytest.mark.real


def plugged(name: str, port: int, **plugin: Any) -> Config:
    return {"name": name, "type": "tcp", "remotePort": port, "plugin": plugin}


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
async def test_curl_reaches_the_office_through_a_plugin(
    scheme: str, kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    http, tls, port = Site("plain.test"), Site("tls.test", tls=True), free_port()
    plugin = {
        "http": {"type": "http_proxy", "httpUser": "joe", "httpPassword": "pass"},
        "socks5": {"type": "socks5", "username": "joe", "password": "pass"},
    }[scheme.removesuffix("h")]
    proxies = [plugged("forward", port, **plugin)]
    async with nginx(tmp_path / "web", [http, tls]) as web, tunnel(tmp_path, proxies, kinds=kinds):
        proxy = ("--proxy", f"{scheme}://joe:pass@{HOST}:{port}")
        trusted = ("--cacert", web.certificate(tls))
        for host in (HOST, "localhost") if scheme != "socks5" else (HOST,):
            assert await curl(*proxy, f"http://{host}:{http.port}/hello") == "hello"
            assert await curl(*proxy, *trusted, f"https://{host}:{tls.port}/hello") == "hello"
        await web.fetch_big(*proxy, f"http://{HOST}:{http.port}/big")
        await web.fetch_big(*proxy, *trusted, f"https://{HOST}:{tls.port}/big")

        wrong = ("--proxy", f"{scheme}://joe:guess@{HOST}:{port}")
        seen = len(web.log())
        await curl_fails(*wrong, f"http://{HOST}:{http.port}/hello")
        await curl_fails(*wrong, *trusted, f"https://{HOST}:{tls.port}/hello")
        dead = await curl_fails(*proxy, f"http://{HOST}:{free_port()}/hello")
        assert dead.err
        assert len(web.log()) == seen


async def test_curl_reaches_sites_by_connect(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    http, tls, port = Site("plain.test"), Site("tls.test", tls=True), free_port()
    proxies: list[Config] = [
        {
            "name": site.name,
            "type": "tcpmux",
            "multiplexer": "httpconnect",
            "localPort": site.port,
            "customDomains": [site.name],
            **more,
        }
        for site, more in ((http, {"httpUser": "joe", "httpPassword": "pass"}), (tls, {}))
    ]
    server = {"tcpmuxHTTPConnectPort": port}
    async with (
        nginx(tmp_path / "web", [http, tls]) as web,
        tunnel(tmp_path, proxies, kinds=kinds, server=server),
    ):
        proxy = ("--proxytunnel", "--proxy", f"http://{HOST}:{port}")
        known = (*proxy, "--proxy-user", "joe:pass")
        assert await curl(*known, "http://plain.test/hello") == "hello"
        await web.fetch_big(*known, "http://plain.test/big")
        # The name in the CONNECT finds the proxy, and the name in the greeting the site.
        trusted = (*proxy, "--cacert", web.certificate(tls))
        version = ("--write-out", " %{http_version}")
        assert await curl(*trusted, *version, "https://tls.test/hello") == "hello 2"
        await web.fetch_big(*trusted, "https://tls.test/big")
        assert " 407" in (await curl_fails(*proxy, "http://plain.test/hello")).err
        assert " 404" in (await curl_fails(*proxy, "http://other.test/hello")).err
