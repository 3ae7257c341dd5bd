"""Proxies of Debian: squid, tinyproxy, dante, microsocks, and stunnel in front of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.real.tools import daemon, directory_of, listening, output
from tests.support.http import HOST
from tests.support.ports import free_port
from tests.support.proxies import REALM, authority_pem, certificate_pem

USER, PASSWORD = "us@er", "p:w/%"
ENCODED = "us%40er:p%3Aw%2F%25"
REALM_NAME = "OFFICE.TEST"
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
async def squid(schemes: Sequence[str] = (), keytab: Path | None = None) -> AsyncIterator[Running]:
    """squid, with a port that speaks TLS beside the usual one.

    Args:
        schemes: How callers must log in; not at all without.
        keytab: For "negotiate": the keys of the proxy's service.
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
        if keytab is not None:
            ours = directory / "keytab"
            ours.write_bytes(keytab.read_bytes())
            programs["negotiate"] = f"negotiate_kerberos_auth -k {ours} -s GSS_C_NO_NAME"
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
            if scheme in ("basic", "digest"):
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


@dataclass
class Realm:
    """A Kerberos realm, in which the proxies of this machine have a service.

    Attributes:
        env: For programs that shall use it; `user` has a ticket in it.
        keytab: Of HTTP/localhost.
    """

    env: dict[str, str]
    keytab: Path


@asynccontextmanager
async def realm() -> AsyncIterator[Realm]:
    """A key distribution centre with one user."""
    with directory_of("proxy") as directory:
        async with _realm(directory) as found:
            yield found


@asynccontextmanager
async def _realm(directory: Path) -> AsyncIterator[Realm]:
    port, config, profile = free_port(), directory / "krb5.conf", directory / "kdc.conf"
    config.write_text(
        f"[libdefaults]\ndefault_realm = {REALM_NAME}\ndns_lookup_kdc = false\nrdns = false\n"
        "dns_canonicalize_hostname = false\n"
        f"[realms]\n{REALM_NAME} = {{\n kdc = {HOST}:{port}\n}}\n"
        f"[domain_realm]\nlocalhost = {REALM_NAME}\n"
    )
    profile.write_text(
        f"[realms]\n{REALM_NAME} = {{\n database_name = {directory}/principal\n"
        f" key_stash_file = {directory}/stash\n kdc_listen = {HOST}:{port}\n"
        f" kdc_tcp_listen = {HOST}:{port}\n acl_file = {directory}/acl\n}}\n"
    )
    env = {
        "KRB5_CONFIG": str(config),
        "KRB5_KDC_PROFILE": str(profile),
        "KRB5CCNAME": f"FILE:{directory}/tickets",
        "KRB5RCACHEDIR": str(directory),
    }
    keytab = directory / "service.keytab"
    with environment(env):
        await output("kdb5_util", "create", "-s", "-r", REALM_NAME, "-P", "master")
        for command in (
            "addprinc -pw s3cret user",
            "addprinc -randkey HTTP/localhost",
            f"ktadd -k {keytab} HTTP/localhost",
        ):
            await output("kadmin.local", "-q", command)
        log = directory / "kdc.log"
        async with daemon("krb5kdc", "-n", log=log, ready=listening(port)):
            # It asks for the password on its input, which is closed here.
            users = directory / "user.keytab"
            await output("kadmin.local", "-q", f"ktadd -norandkey -k {users} user")
            await output("kinit", "-k", "-t", users, "user")
            yield Realm(env, keytab)


@contextmanager
def environment(more: dict[str, str]) -> Iterator[None]:
    """Give the programs that are started meanwhile more variables."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
