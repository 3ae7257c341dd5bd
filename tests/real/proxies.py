"""Proxies of Debian: squid, tinyproxy, dante, microsocks, and stunnel in front of one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.real.tools import daemon, directory_of, listening, output
from tests.support.http import HOST
from tests.support.ports import free_port
from tests.support.proxies import REALM, authority_pem, certificate_pem

USER, PASSWORD = "us@er", "p:w/%"
ENCODED = "us%40er:p%3Aw%2F%25"
_HELPERS = "/usr/lib/squid"


@dataclass
class Running:
    """A proxy that serves.

    Attributes:
        place: `host:port`.
        tls_place: Of its port that speaks TLS; "" without.
        log: Where it says what it does.
    """

    place: str
    log: Path
    tls_place: str = ""

    def url(self, scheme: str = "http", credentials: str = "") -> str:
        place = self.tls_place if scheme == "https" else self.place
        return f"{scheme}://{credentials}{'@' if credentials else ''}{place}"

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@asynccontextmanager
async def squid(schemes: Sequence[str] = ()) -> AsyncIterator[Running]:
    """squid, with a port that speaks TLS beside the usual one.

    Args:
        schemes: How callers must log in; not at all without.
    """
    port, tls_port = free_port(), free_port()
    with directory_of("proxy") as directory:
        certificate = directory / "pair.pem"
        certificate.write_bytes(certificate_pem(HOST) + authority_pem())
        secrets = directory / "secrets"
        hashed = (await output("openssl", "passwd", "-apr1", PASSWORD)).strip()
        secrets.write_text(f"{USER}:{hashed}\n")
        digests = directory / "digests"
        ha1 = hashlib.md5(f"{USER}:{REALM}:{PASSWORD}".encode()).hexdigest()
        digests.write_text(f"{USER}:{REALM}:{ha1}\n")
        programs = {
            "basic": f"basic_ncsa_auth {secrets}",
            "digest": f"digest_file_auth -c {digests}",
            "ntlm": "ntlm_fake_auth",
        }
        log = directory / "access.log"
        lines = [
            f"http_port {HOST}:{port}",
            f"https_port {HOST}:{tls_port} tls-cert={certificate}",
            "pid_filename none",
            "cache deny all",
            "shutdown_lifetime 0 seconds",
            "visible_hostname proxy.test",
            f"coredump_dir {directory}",
            f"cache_log {directory}/cache.log",
            f"access_log stdio:{log}",
            # The one with the log; the pinger needs rights that a container may not have.
            "pinger_enable off",
        ]
        for scheme in schemes:
            lines.append(f"auth_param {scheme} program {_HELPERS}/{programs[scheme]}")
            lines.append(f"auth_param {scheme} children 2 startup=1 idle=1")
            if scheme != "ntlm":
                lines.append(f"auth_param {scheme} realm {REALM}")
        if schemes:
            lines += ["acl known proxy_auth REQUIRED", "http_access deny !known"]
        lines.append("http_access allow all")
        config = directory / "squid.conf"
        config.write_text("\n".join(lines) + "\n")
        log.touch()
        for path in directory.iterdir():
            path.chmod(0o666)
        ready = listening(port)
        async with daemon("squid", "-N", "-f", config, log=directory / "squid.out", ready=ready):
            yield Running(f"{HOST}:{port}", log, f"{HOST}:{tls_port}")


@asynccontextmanager
async def tinyproxy(
    directory: Path, *, password: bool, ports: Sequence[int]
) -> AsyncIterator[Running]:
    """tinyproxy, which connects to `ports` only; its users have plain passwords."""
    port, log = free_port(), directory / "tinyproxy.log"
    lines = [f"Port {port}", f"Listen {HOST}", "Timeout 60", "LogLevel Connect"]
    lines += [f"ConnectPort {number}" for number in ports]
    if password:
        lines.append("BasicAuth user secret")
    config = directory / "tinyproxy.conf"
    config.write_text("\n".join(lines) + "\n")
    async with daemon("tinyproxy", "-d", "-c", config, log=log, ready=listening(port)):
        yield Running(f"{HOST}:{port}", log)


@asynccontextmanager
async def stunnel(directory: Path, place: str) -> AsyncIterator[str]:
    """TLS in front of a proxy; gives its place."""
    port, log = free_port(), directory / "stunnel.log"
    certificate = directory / "stunnel.pem"
    certificate.write_bytes(certificate_pem(HOST) + authority_pem())
    certificate.chmod(0o600)
    config = directory / "stunnel.conf"
    config.write_text(
        f"foreground = yes\npid =\ncert = {certificate}\n"
        f"[proxy]\naccept = {HOST}:{port}\nconnect = {place}\n"
    )
    async with daemon("stunnel4", config, log=log, ready=listening(port)):
        yield f"{HOST}:{port}"


@asynccontextmanager
async def microsocks(directory: Path, *, password: bool) -> AsyncIterator[Running]:
    """microsocks, with or without a user."""
    port, log = free_port(), directory / "microsocks.log"
    words = ["microsocks", "-i", HOST, "-p", str(port)]
    if password:
        words += ["-u", USER, "-P", PASSWORD]
    async with daemon(*words, log=log, ready=listening(port)):
        yield Running(f"{HOST}:{port}", log)


@asynccontextmanager
async def dante(directory: Path) -> AsyncIterator[Running]:
    """Dante's server, which lets everybody in."""
    port, log = free_port(), directory / "danted.log"
    config = directory / "danted.conf"
    config.write_text(
        f"logoutput: stdout\ninternal: {HOST} port = {port}\nexternal: {HOST}\n"
        "clientmethod: none\nsocksmethod: none\nuser.unprivileged: nobody\n"
        "client pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }\n"
        "socks pass { from: 127.0.0.0/8 to: 0.0.0.0/0 log: connect }\n"
    )
    async with daemon("danted", "-f", config, log=log, ready=listening(port)):
        yield Running(f"{HOST}:{port}", log)
