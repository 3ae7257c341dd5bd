"""Real proxies on the way out: our client reaches our server and the official one through each."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.real.proxies import (
    ENCODED,
    Running,
    dante,
    environment,
    microsocks,
    realm,
    squid,
    stunnel,
    tinyproxy,
)
from tests.support.backends import sse
from tests.support.http import calling
from tests.support.office import Office, office
from tests.support.ports import free_port
from tests.support.processes import Config, Kind, tunnel
from tests.support.proxies import authority_pem
from tests.support.services import BLOCK
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.real, pytest.mark.interop]

NAME = "localhost"
SERVERS: tuple[Kind, ...] = ("ours", "official")
NO_MUX: Config = {"tcpMux": False}
NTLM = "CORP%5Cuser:secret"
# The proxy, the scheme of its URL, the credentials, what else is set for the link.
WAYS: dict[str, tuple[str, str, str, Config]] = {
    "squid": ("squid", "http", "", {}),
    "squid-basic": ("squid basic", "http", ENCODED, NO_MUX),
    "squid-digest": ("squid digest", "http", ENCODED, NO_MUX),
    "squid-ntlm": ("squid ntlm", "http", NTLM, NO_MUX),
    "squid-ntlm-scheme": ("squid ntlm", "ntlm", NTLM, {}),
    "squid-all": ("squid ntlm digest basic", "http", ENCODED, {}),
    "squid-https": ("squid", "https", "", {}),
    "squid-https-digest": ("squid digest basic", "https", ENCODED, NO_MUX),
    "tinyproxy": ("tinyproxy", "http", "", NO_MUX),
    "tinyproxy-basic": ("tinyproxy basic", "http", "user:secret", NO_MUX),
    "tinyproxy-stunnel": ("tinyproxy stunnel", "https", "", {}),
    "microsocks": ("microsocks", "socks5", "", NO_MUX),
    "microsocks-password": ("microsocks password", "socks5", ENCODED, NO_MUX),
    "dante": ("dante", "socks5h", "", NO_MUX),
}


@asynccontextmanager
async def proxy(what: str, directory: Path, port: int) -> AsyncIterator[Running]:
    name, *options = what.split()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if name == "squid":
            found = await enter(squid(options))
        elif name == "tinyproxy":
            found = await enter(tinyproxy(directory, password="basic" in options, ports=[port]))
            if "stunnel" in options:
                found.tls_place = await enter(stunnel(directory, found.place))
        elif name == "microsocks":
            found = await enter(microsocks(directory, password=bool(options)))
        else:
            found = await enter(dante(directory))
        yield found


async def _main_job(scene: Office) -> None:
    for _ in range(3):
        answer = await scene.get()
        assert (answer.status, answer.body) == (200, b"hello")
    assert (await scene.get("/events?n=3")).body == sse(0) + sse(1) + sse(2)
    async with calling(scene.echo_port) as user:

        async def back() -> bytes:
            return await user.exactly(len(BLOCK))

        _, echoed = await all_of([user.send(BLOCK), back()])
        assert echoed == BLOCK


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("way", WAYS)
async def test_the_main_job_works_through(way: str, server: Kind, tmp_path: Path) -> None:
    what, scheme, credentials, link = WAYS[way]
    port = free_port()
    ca = tmp_path / "office-ca.pem"
    ca.write_bytes(authority_pem())
    async with (
        proxy(what, tmp_path, port) as found,
        office(
            tmp_path,
            kinds=(server, "ours"),
            server={"bindPort": port, "transport": link},
            client={
                "serverAddr": NAME,
                "transport": {**link, "proxyURL": found.url(scheme, credentials)},
            },
            env={"SSL_CERT_FILE": str(ca)},
        ) as scene,
    ):
        await _main_job(scene)
        scene.pair.client.kill()  # squid logs a tunnel when it ends.
        await until(lambda: str(port) in found.said(), f"{found.log} to name the server")


def needs_kerberos() -> None:
    """Skip where there is no Kerberos: the extra needs a compiler, and the realm three packages."""
    pytest.importorskip("gssapi", reason="needs pyfrp-tunnel[kerberos] (libkrb5-dev, gcc)")
    if shutil.which("krb5kdc", path="/usr/sbin") is None:
        pytest.skip("needs krb5-kdc, krb5-admin-server and krb5-user")


@pytest.mark.parametrize(
    ("credentials", "ticket"), [("", True), ("user:s3cret", False)], ids=["ticket", "password"]
)
async def test_the_main_job_works_with_kerberos(
    credentials: str, ticket: bool, tmp_path: Path
) -> None:
    needs_kerberos()
    port = free_port()
    async with realm() as office_realm:
        with environment(office_realm.env):
            async with squid(["negotiate"], office_realm.keytab) as found:
                env = dict(office_realm.env)
                if not ticket:
                    env["KRB5CCNAME"] = f"FILE:{tmp_path}/none"
                url = found.url("http", credentials).replace("127.0.0.1", "localhost")
                async with office(
                    tmp_path,
                    server={"bindPort": port},
                    client={"serverAddr": NAME, "transport": {"proxyURL": url}},
                    env=env,
                ) as scene:
                    await _main_job(scene)


async def test_a_missing_ticket_is_told(tmp_path: Path) -> None:
    needs_kerberos()
    async with realm() as office_realm:
        with environment(office_realm.env):
            async with squid(["negotiate"], office_realm.keytab) as found:
                url = found.url().replace("127.0.0.1", "localhost")
                async with tunnel(
                    tmp_path,
                    [],
                    client={"serverAddr": NAME, "transport": {"proxyURL": url}},
                    env={**office_realm.env, "KRB5CCNAME": f"FILE:{tmp_path}/none"},
                    ready=False,
                ) as pair:
                    line = await pair.client.logged("connect to server error: .*")
                    assert "and there is no ticket for HTTP/localhost (" in line[0]
                    assert "): get one with kinit, or write a user and a password" in line[0]


WORDS = {
    "nobody": (
        "squid digest basic",
        "http",
        "",
        "asks for a user and a password (407, it offers Digest, Basic): write them into "
        "transport.proxyURL, as in http://USER:PASSWORD@PLACE",
    ),
    "wrong-digest": (
        "squid digest basic",
        "http",
        "user:wrong",
        "does not accept the user and the password of transport.proxyURL (407, Digest): check both",
    ),
    "wrong-basic": (
        "squid basic",
        "http",
        "user:wrong",
        "does not accept the user and the password of transport.proxyURL (407, Basic): check both",
    ),
    "server-down": ("squid", "http", "", "cannot reach localhost:BIND (503 Service Unavailable)"),
    "tinyproxy-nobody": (
        "tinyproxy basic",
        "http",
        "",
        "asks for a user and a password (407, it offers Basic): write them",
    ),
    "tinyproxy-port": (
        "tinyproxy port",
        "http",
        "",
        "refuses a tunnel to localhost:BIND (403 Access violation): have its administrators allow",
    ),
    "tinyproxy-down": ("tinyproxy", "http", "", "failed to make a tunnel to localhost:BIND (500"),
    "socks-nobody": ("microsocks password", "socks5", "", "asks for a user and a password"),
    "socks-wrong": (
        "microsocks password",
        "socks5",
        "user:wrong",
        "does not accept the user and the password of transport.proxyURL: check both",
    ),
    "socks-down": ("microsocks", "socks5", "", "cannot reach localhost:BIND (reply 5: connection"),
    "dante-down": ("dante", "socks5", "", "cannot reach localhost:BIND (reply 5: connection"),
    "dante-as-http": ("dante", "http", "", "closed the connection without an answer to the"),
    "squid-as-socks": (
        "squid",
        "socks5",
        "",
        "takes the connection and does not answer the request",
    ),
}


@pytest.mark.parametrize("name", WORDS)
async def test_a_refusal_is_told_in_words(name: str, tmp_path: Path) -> None:
    what, scheme, credentials, words = WORDS[name]
    port = free_port()
    allowed = free_port() if what == "tinyproxy port" else port
    async with proxy(what, tmp_path, allowed) as found:
        link = {"proxyURL": found.url(scheme, credentials), "dialServerTimeout": 5}
        async with tunnel(
            tmp_path,
            [],
            server={"bindPort": free_port()},
            client={"serverAddr": NAME, "serverPort": port, "transport": link},
            ready=False,
        ) as pair:
            said = words.replace("PLACE", found.place).replace("BIND", str(port))
            line = await pair.client.logged("connect to server error: .*")
            assert f"the proxy {found.place} {said}" in line[0], line[0]
