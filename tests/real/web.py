"""nginx with sites of the test, and curl to ask it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.real.tools import Done, daemon, listening, output, run
from tests.support.ports import free_port
from tests.support.processes import HOST

BIG_BYTES = 32 * 1024 * 1024

_CONFIG = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
  log_format caller 'remote=$remote_addr forwarded=$http_x_forwarded_for $host $server_protocol '
                    '$status $uri';
  access_log {directory}/access.log caller;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  root {directory}/files;
{servers}
}}
"""
_SERVER = """\
  server {{
    listen {host}:{port}{options};
    add_header X-Site {name} always;
{more}
  }}
"""


@dataclass
class Site:
    """One site of nginx on a port of its own.

    Args:
        name: Its domain, and what it says about itself.
        tls: With a certificate for that domain, and HTTP/2.
        told: The caller's address comes in a PROXY header.
        frps: Port of an frp server whose websockets are passed on, 0 for none.
    """

    name: str
    tls: bool = False
    told: bool = False
    frps: int = 0
    port: int = field(default_factory=free_port)

    def config(self, directory: Path) -> str:
        options = (" ssl http2" if self.tls else "") + (" proxy_protocol" if self.told else "")
        lines = []
        if self.tls:
            lines += [f"ssl_certificate {directory}/{self.name}.pem;"]
            lines += [f"ssl_certificate_key {directory}/{self.name}.key;"]
        if self.told:
            lines += [f"set_real_ip_from {HOST};", "real_ip_header proxy_protocol;"]
        if self.frps:
            lines += ["location /~!frp {", f"  proxy_pass http://{HOST}:{self.frps};"]
            lines += ["  proxy_http_version 1.1;", "  proxy_set_header Upgrade $http_upgrade;"]
            lines += ['  proxy_set_header Connection "upgrade";', "}"]
        more = "\n".join(f"    {line}" for line in lines)
        return _SERVER.format(host=HOST, port=self.port, options=options, name=self.name, more=more)


@dataclass
class Web:
    """A running nginx."""

    directory: Path
    big_hash: str

    def log(self) -> list[str]:
        """Lines of the access log."""
        return (self.directory / "access.log").read_text().splitlines()

    def certificate(self, site: Site) -> Path:
        """What a caller must trust to reach a site."""
        return self.directory / f"{site.name}.pem"

    async def fetch_big(self, *words: str | Path) -> None:
        """Fetch the big file with curl; `words` say where from."""
        target = self.directory / "fetched"
        target.unlink(missing_ok=True)
        await output("curl", *CURL, "--output", target, *words)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        assert (target.stat().st_size, digest) == (BIG_BYTES, self.big_hash)


@asynccontextmanager
async def nginx(directory: Path, sites: Sequence[Site]) -> AsyncIterator[Web]:
    """Run nginx with sites; each has `/hello`, `/f0` to `/f39`, and `/big`."""
    directory.mkdir()
    files = directory / "files"
    files.mkdir()
    (files / "hello").write_text("hello")
    for number in range(40):
        (files / f"f{number}").write_text(f"file {number}\n" * 500)
    big = os.urandom(BIG_BYTES)
    (files / "big").write_bytes(big)
    for site in sites:
        if site.tls:
            key, certificate = directory / f"{site.name}.key", directory / f"{site.name}.pem"
            names = f"subjectAltName=DNS:{site.name},DNS:localhost,IP:{HOST}"
            await output(
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj"),
                *(f"/CN={site.name}", "-addext", names, "-keyout", key, "-out", certificate),
            )
    config = directory / "nginx.conf"
    servers = "".join(site.config(directory) for site in sites)
    config.write_text(_CONFIG.format(directory=directory, servers=servers))
    ready, log = listening(sites[0].port), directory / "nginx.log"
    async with daemon("nginx", "-e", "stderr", "-c", config, log=log, ready=ready):
        yield Web(directory, hashlib.sha256(big).hexdigest())


CURL = ("--disable", "--silent", "--show-error", "--fail", "--max-time", "20")


async def curl(*words: str | Path) -> str:
    """What curl fetches; it must succeed."""
    return await output("curl", *CURL, *words)


async def curl_fails(*words: str | Path) -> Done:
    """How curl fails."""
    done = await run("curl", *CURL, *words)
    assert done.code != 0, done.out
    return done
