"""nginx behind the tunnel: sites found by the name in the TLS greeting, and who calls them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.tools import output, run
from tests.real.web import CURL, Site, curl, curl_fails, nginx
from tests.support.ports import free_port
from tests.support.processes import HOST, Config, Kind, http_proxy, merged, tcp_proxy, tunnel

pytestmark = pytest.mark.real

CALLER = "127.0.0.77"
"""An address of loopback that nothing else in the test calls from."""


def https_proxy(site: Site, **more: object) -> Config:
    base: Config = {"name": site.name, "type": "https", "localPort": site.port}
    return merged(base, {"customDomains": [site.name], **more})


async def test_browsers_reach_each_site_by_its_name(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    sites, port = [Site("a.test", tls=True), Site("b.test", tls=True)], free_port()
    proxies = [https_proxy(site, transport={"useEncryption": True}) for site in sites]
    async with (
        nginx(tmp_path / "web", sites) as web,
        tunnel(tmp_path, proxies, kinds=kinds, server={"vhostHTTPSPort": port}),
    ):
        for site in sites:
            there = ("--resolve", f"{site.name}:{port}:{HOST}", "--cacert", web.certificate(site))
            url = f"https://{site.name}:{port}"
            told = ("--output", "/dev/null", "--write-out", "%header{x-site} %{http_version}")
            assert await curl(*there, *told, f"{url}/hello") == f"{site.name} 2"
            old = (*there, "--tls-max", "1.2", "--http1.1")
            assert await curl(*old, *told, f"{url}/hello") == f"{site.name} 1.1"
            await web.fetch_big(*there, f"{url}/big")
            # As a page with its pictures: many requests at once on one connection.
            target = tmp_path / site.name
            many = ("--parallel", "--parallel-max", "40", "--create-dirs", "--output")
            await output("curl", *CURL, *there, *many, f"{target}/f#1", f"{url}/f[0-39]")
            assert all(
                (target / f"f{number}").read_text() == f"file {number}\n" * 500
                for number in range(40)
            )
            shown = await run(
                *("openssl", "s_client", "-connect", f"{HOST}:{port}", "-servername", site.name),
                *("-alpn", "h2,http/1.1", "-CAfile", web.certificate(site), "-brief"),
                limit_s=10,
            )
            assert "Verification: OK" in shown.err, shown
            assert f"CN = {site.name}" in shown.err, shown
        await curl_fails(
            "--insecure", "--resolve", f"c.test:{port}:{HOST}", f"https://c.test:{port}"
        )


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_nginx_logs_the_address_of_the_caller(
    version: str, kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    plain, tls = Site("plain.test", told=True), Site("tls.test", tls=True, told=True)
    told = {"transport": {"proxyProtocolVersion": version}}
    remote, https = free_port(), free_port()
    proxies = [
        tcp_proxy("tcp", plain.port, remote, **told),
        https_proxy(tls, **told),
        http_proxy("http", plain.port, "plain.test", **told),
    ]
    async with (
        nginx(tmp_path / "web", [plain, tls]) as web,
        tunnel(tmp_path, proxies, kinds=kinds, server={"vhostHTTPSPort": https}) as pair,
    ):
        caller = ("--interface", CALLER)
        trusted = ("--cacert", web.certificate(tls), "--resolve", f"tls.test:{https}:{HOST}")
        asked = {
            "/f1": f"http://{HOST}:{remote}",
            "/f2": f"https://tls.test:{https}",
            "/f3": f"http://plain.test:{pair.http_port}",
        }
        named = ("--resolve", f"plain.test:{pair.http_port}:{HOST}")
        for path, url in asked.items():
            assert (await curl(*caller, *trusted, *named, f"{url}{path}")).startswith("file ")
        lines = web.log()
        for path in asked:
            (line,) = [line for line in lines if line.endswith(f" 200 {path}")]
            assert line.startswith(f"remote={CALLER} "), line


async def test_nginx_is_told_the_caller_of_a_web_site(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    site = Site("plain.test")
    proxies = [http_proxy("http", site.port, site.name)]
    async with nginx(tmp_path / "web", [site]) as web, tunnel(tmp_path, proxies, kinds=kinds) as p:
        there = ("--resolve", f"{site.name}:{p.http_port}:{HOST}")
        assert await curl("--interface", CALLER, *there, f"http://{site.name}:{p.http_port}/hello")
        (line,) = [line for line in web.log() if line.endswith(" /hello")]
        assert f"remote={HOST} forwarded={CALLER} " in line
