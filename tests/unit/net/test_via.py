"""Dialling through proxies: good ones, and what is said of bad ones."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyfrp.config.outproxy import parse_proxy_url
from pyfrp.errors import ProxyError
from pyfrp.net.byteconn import ByteConn
from pyfrp.net.dial import dial_tcp
from pyfrp.net.held import Held
from pyfrp.net.outproxy import Proxy
from pyfrp.net.via import dial_via
from tests.support.ports import free_port
from tests.support.proxies import (
    HOSTILE,
    HttpProxy,
    SocksProxy,
    authority_pem,
    intercepting_context,
    page,
    saying,
)
from tests.support.services import Backend, EchoBackend, Pipe, ScriptBackend, running
from tests.support.waiting import within
from tests.unit.net.ends import memory_pair, turns

NAME = "frps.test"
USERS = {"user": "secret", "CORP\\user": "secret", "zoë": "p:w@/ä"}


def proxy_of(url: str) -> Proxy:
    return Proxy(*parse_proxy_url(url))


async def dial(proxy: Proxy, host: str = NAME, port: int = 7000, timeout_s: float = 10.0) -> Any:
    tcp = partial(dial_tcp, timeout_s=5.0, keepalive_s=60.0)
    return await dial_via(tcp, proxy, host, port, timeout_s=timeout_s)


async def echoed(proxy: Proxy, host: str = NAME, port: int = 7000) -> None:
    """A tunnel that carries bytes both ways."""
    endpoint, early = await dial(proxy, host, port)
    conn = ByteConn(endpoint, early=early)
    try:
        for size in (1, 70_000):
            conn.write(b"x" * size)
            assert await within(conn.exactly(size), 10, "the echo") == b"x" * size
    finally:
        conn.abort()


@asynccontextmanager
async def served(proxy: HttpProxy | SocksProxy) -> AsyncIterator[EchoBackend]:
    """A proxy that knows where `NAME` is, which nobody else does."""
    echo = EchoBackend()
    proxy.names[NAME] = ("127.0.0.1", echo.port)
    async with running(echo, proxy):
        yield echo


# -- tunnels ------------------------------------------------------------------------------------

LOGINS = {
    "open": ((), "http://127.0.0.1", [""]),
    "open-with-user": ((), "http://user:secret@127.0.0.1", [""]),
    "basic": (("basic",), "http://user:secret@127.0.0.1", ["", "basic"]),
    "basic-odd": (("basic",), "http://zo%C3%AB:p:w%40%2F%C3%A4@127.0.0.1", ["", "basic"]),
    "digest": (("digest",), "http://user:secret@127.0.0.1", ["", "digest"]),
    "digest-odd": (("digest",), "http://zo%C3%AB:p:w%40%2F%C3%A4@127.0.0.1", ["", "digest"]),
    "digest-sess": (("digest-sess",), "http://user:secret@127.0.0.1", ["", "digest"]),
    "digest-both": (("digest", "digest-sha256"), "http://user:secret@127.0.0.1", ["", "digest"]),
    "digest-some": (("digest-SHA-512-256", "digest"), "http://user:secret@127.0.0.1", None),
    "ntlm": (("ntlm",), "http://CORP\\user:secret@127.0.0.1", ["", "ntlm", "ntlm"]),
    "ntlm-no-domain": (("ntlm",), "http://user:secret@127.0.0.1", ["", "ntlm", "ntlm"]),
    "negotiate": (("negotiate",), "http://CORP%5Cuser:secret@127.0.0.1", None),
    "ntlm-scheme": (
        ("ntlm",),
        "ntlm://CORP\\user:secret@127.0.0.1",
        ["negotiate", "ntlm", "ntlm"],
    ),
    "ntlm-scheme-frp": (
        ("negotiate",),
        "ntlm://CORP\\user:secret@127.0.0.1",
        ["negotiate", "negotiate"],
    ),
    "strongest": (
        ("negotiate", "ntlm", "digest", "basic"),
        "http://user:secret@127.0.0.1",
        ["", "digest"],
    ),
    "stronger": (("negotiate", "ntlm", "basic"), "http://user:secret@127.0.0.1", None),
    "unknown-too": (("Scram", "basic"), "http://user:secret@127.0.0.1", ["", "basic"]),
}


@pytest.mark.parametrize("one_field", [False, True], ids=["fields", "one-field"])
@pytest.mark.parametrize("keeps", [True, False], ids=["keeps", "closes"])
@pytest.mark.parametrize("name", LOGINS)
async def test_every_way_to_log_in_makes_tunnels(name, keeps, one_field):
    schemes, url, said = LOGINS[name]
    proxy = HttpProxy(users=USERS if schemes else {}, schemes=schemes, one_field=one_field)
    proxy.keeps = keeps or bool({"ntlm", "negotiate"} & set(schemes))  # They are bound to one.
    async with served(proxy):
        way = proxy_of(f"{url}:{proxy.port}")
        await echoed(way)
        if said is not None:
            assert [asked.scheme for asked in proxy.asked] == said
        assert {asked.target for asked in proxy.asked} == {f"{NAME}:7000"}
        # What was learned is used: no further question.
        proxy.asked.clear()
        await echoed(way)
        assert "" not in [asked.scheme for asked in proxy.asked] or not schemes
        assert len(proxy.asked) == (2 if "ntlm" in way.memory.scheme + name else 1) or said is None


@pytest.mark.parametrize(
    ("scheme", "most"),
    [
        ("basic", 1),
        ("digest", 2),  # The first may have been about its nonce.
        ("ntlm", 2),  # One attempt takes two requests.
    ],
)
async def test_a_password_that_was_changed_is_tried_once(scheme, most):
    """Each wrong attempt counts towards locking the account, and a client tries for ever."""
    server = HttpProxy(users=dict(USERS), schemes=(scheme,))
    async with served(server):
        proxy = proxy_of(f"http://user:secret@127.0.0.1:{server.port}")
        await echoed(proxy)
        server.users["user"] = "changed"
        for _ in range(2):
            server.asked.clear()
            with pytest.raises(ProxyError, match="does not accept the user and the password"):
                await dial(proxy)
            assert len([asked for asked in server.asked if asked.authorization]) <= most
        server.users["user"] = "secret"
        await echoed(proxy)


async def test_a_stale_nonce_is_replaced():
    proxy = HttpProxy(users=USERS, schemes=["digest"], nonce_uses=1)
    async with served(proxy):
        way = proxy_of(f"http://user:secret@127.0.0.1:{proxy.port}")
        for _ in range(3):
            await echoed(way)
    assert [asked.scheme for asked in proxy.asked] == ["", *["digest"] * 5]


async def test_many_tunnels_at_once_share_what_was_learned():
    proxy = HttpProxy(users=USERS, schemes=["digest"])
    async with served(proxy):
        way = proxy_of(f"http://user:secret@127.0.0.1:{proxy.port}")
        await echoed(way)
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(echoed(way))
    assert proxy.tunnels == 21


async def test_the_request_is_frps():
    proxy = HttpProxy()
    async with served(proxy):
        await echoed(proxy_of(f"http://127.0.0.1:{proxy.port}"))
    assert proxy.asked[0].fields == {"host": f"{NAME}:7000", "user-agent": "Mozilla/5.0"}


async def test_an_ipv6_address_has_brackets():
    proxy = HttpProxy(names={})
    async with served(proxy) as echo:
        proxy.names["fd00::1"] = ("127.0.0.1", echo.port)
        await echoed(proxy_of(f"http://127.0.0.1:{proxy.port}"), "fd00::1")
    assert proxy.asked[0].target == "[fd00::1]:7000"


@pytest.fixture
def office_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "office-ca.pem"
    path.write_bytes(authority_pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


@pytest.mark.parametrize("schemes", [(), ("basic",), ("digest",), ("ntlm",)], ids=str)
@pytest.mark.parametrize("keeps", [True, False], ids=["keeps", "closes"])
async def test_tls_to_the_proxy(schemes, keeps, office_ca, loop_kind):
    proxy = HttpProxy(users=USERS if schemes else {}, schemes=schemes)
    proxy.keeps = keeps or "ntlm" in schemes
    proxy.tls = intercepting_context("127.0.0.1")
    async with served(proxy):
        await echoed(proxy_of(f"https://user:secret@127.0.0.1:{proxy.port}"))


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("users", [{}, USERS], ids=["open", "password"])
async def test_socks5_gets_the_name_unresolved(scheme, users, loop_kind):
    proxy = SocksProxy(users=users)
    async with served(proxy):
        await echoed(proxy_of(f"{scheme}://zo%C3%AB:p:w%40%2F%C3%A4@127.0.0.1:{proxy.port}"))
    assert proxy.asked == [(f"{NAME}:7000", 3)]
    assert proxy.methods == [b"\0\2"]


@pytest.mark.parametrize(("host", "kind"), [("127.0.0.1", 1), ("fd00::1", 4)])
async def test_socks5_gets_addresses_as_such(host, kind):
    proxy = SocksProxy()
    async with served(proxy) as echo:
        proxy.names["fd00::1"] = ("127.0.0.1", echo.port)
        await echoed(proxy_of(f"socks5://127.0.0.1:{proxy.port}"), host, echo.port)
        assert proxy.asked == [(f"{host}:{echo.port}", kind)]
    assert proxy.methods == [b"\0"]


async def test_bytes_behind_the_answer_are_kept():
    proxy = HttpProxy(script=saying(b"HTTP/1.1 200 OK\r\n\r\nearly", hangs=True))
    async with running(proxy):
        endpoint, early = await dial(proxy_of(f"http://127.0.0.1:{proxy.port}"))
        endpoint.abort()
    assert early == b"early"


async def test_an_empty_answer_that_calls_itself_a_page_is_a_tunnel():
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"
    proxy = HttpProxy(script=saying(answer, hangs=True))
    async with running(proxy):
        endpoint, early = await dial(proxy_of(f"http://127.0.0.1:{proxy.port}"))
        endpoint.abort()
    assert early == b""


async def test_a_refusal_in_chunks_keeps_its_connection():
    asked = 0

    async def script(pipe: Pipe, first: object) -> None:
        nonlocal asked
        await pipe.send(
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n0\r\n\r\n"
        )
        asked += 1
        head = await pipe.read_until(b"\r\n\r\n", 4096)
        assert b"\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in head
        await pipe.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await pipe.gone.wait()

    proxy = HttpProxy(script=script)
    async with running(proxy):
        endpoint, _ = await dial(proxy_of(f"http://user:secret@127.0.0.1:{proxy.port}"))
        endpoint.abort()
    assert (asked, proxy.opened) == (1, 1)


# -- what is said of bad ones -------------------------------------------------------------------

T = "frps.test:7000"
P = "the proxy 127.0.0.1:PORT"
CHECK = "check that the server runs there, that its firewall lets the proxy in, and that the proxy"
WORDS = {
    "403": f"{P} refuses a tunnel to {T} (403 Forbidden): have its administrators allow CONNECT to "
    f"{T}, or let the server listen on port 443, which most allow",
    "302": f"{P} sends us to a login page (302 Found, login.office.example): log in there with a "
    "browser on this machine, or have its administrators exempt it",
    "511": f"{P} sends us to a login page (511 Network Authentication Required): log in there with "
    "a browser on this machine, or have its administrators exempt it",
    "404": f"{P} does not make a tunnel to {T} (404 Not Found): is it a forward proxy and not a "
    "web server? check transport.proxyURL",
    "405": f"{P} does not make a tunnel to {T} (405 Method Not Allowed): is it a forward proxy and "
    "not a web server? check transport.proxyURL",
    "429": f"{P} turns down a tunnel to {T} (429 Too Many Requests): ask its administrators why",
    "500": f"{P} failed to make a tunnel to {T} (500 Internal Server Error): check that the "
    "server runs there and that its firewall lets the proxy in, else tell the proxy's "
    "administrators",
    "502": f"{P} cannot reach {T} (502 Bad Gateway): {CHECK} can resolve the name",
    "503": f"{P} cannot reach {T} (503 Service Unavailable): {CHECK} can resolve the name",
    "504": f"{P} cannot reach {T} (504 Gateway Timeout): {CHECK} can resolve the name",
    "407-basic": f"{P} asks for a user and a password (407, it offers Basic): write them into "
    "transport.proxyURL, as in http://USER:PASSWORD@127.0.0.1:PORT",
    "407-digest": f"{P} asks for a user and a password (407, it offers Digest): write them into "
    "transport.proxyURL, as in http://USER:PASSWORD@127.0.0.1:PORT",
    "407-ntlm": f"{P} asks for a user and a password (407, it offers NTLM): write them into "
    "transport.proxyURL, as in http://USER:PASSWORD@127.0.0.1:PORT",
    "407-negotiate": f"{P} asks for Kerberos (407, it offers Negotiate): install the package for "
    'it (pip install "pyfrp-tunnel[kerberos]") and get a ticket (kinit), or try a user and a '
    "password in transport.proxyURL, as in http://DOMAIN%5CUSER:PASSWORD@127.0.0.1:PORT",
    "407-all": f"{P} asks for a user and a password (407, it offers Negotiate, NTLM, Digest, Basic)"
    ": write them into transport.proxyURL, as in http://USER:PASSWORD@127.0.0.1:PORT",
    "407-unknown": f"{P} offers only scram-sha-256, Digest (407) in a form that cannot be done "
    "here: have its administrators offer Basic, Digest, NTLM or Negotiate, or exempt this machine",
    "407-bare": f"{P} asks for credentials (407) without saying of which kind: ask its "
    "administrators to exempt this machine",
    "hangs": f"{P} takes the connection and does not answer the request for {T} within 0.5 s: "
    "either it is no http proxy (check transport.proxyURL), or it waits for "
    f"{T} without result: check that address",
    "closes": f"{P} closed the connection without an answer to the request for {T}: is it a proxy "
    "of the kind http, and may this machine use it? check transport.proxyURL",
    "login-page": f"{P} answers CONNECT to {T} with a web page instead of a tunnel, probably to "
    "log in: open any page with a browser on this machine and log in there, or have its "
    "administrators exempt this machine",
    "garbage": f"{P} answers CONNECT with something else than HTTP (it is not HTTP): is it an HTTP "
    "proxy? check transport.proxyURL",
    "garbage-head": f"{P} answers CONNECT with something else than HTTP (a line of its head is not "
    "a field): is it an HTTP proxy? check transport.proxyURL",
    "endless-head": f"{P} answers CONNECT with something else than HTTP (its head is longer than "
    "65536 bytes): is it an HTTP proxy? check transport.proxyURL",
    "speaks-tls": f"{P} answers CONNECT with something else than HTTP (it is not HTTP): it speaks "
    "TLS: write https:// for its scheme",
    "speaks-socks": f"{P} answers CONNECT with something else than HTTP (it is not HTTP): it seems "
    "to be a SOCKS proxy: write socks5:// for its scheme",
}
WORDS["login-page-late"] = WORDS["login-page"]


async def complaint(proxy: Backend, url: str, *, timeout_s: float = 10.0, **more: Any) -> str:
    async with running(proxy):
        way = proxy_of(url.replace("PORT", str(proxy.port)))
        with pytest.raises(ProxyError) as caught:
            await dial(way, timeout_s=timeout_s, **more)
        return str(caught.value).replace(str(proxy.port), "PORT")


@pytest.mark.parametrize("name", WORDS)
async def test_what_is_said_of_a_hostile_proxy(name, monkeypatch):
    monkeypatch.setattr("pyfrp.net.proxyauth.has_kerberos", lambda: False)
    limit = 0.5 if name == "hangs" else 10.0
    assert await complaint(HOSTILE[name](), "http://127.0.0.1:PORT", timeout_s=limit) == WORDS[name]


def denied(scheme: str, hint: str = "") -> str:
    return (
        f"{P} does not accept the user and the password of transport.proxyURL (407, {scheme}): "
        f"check both, with special characters written as %XX{hint}"
    )


DOMAIN = ", and whether the user needs a domain: DOMAIN%5CUSER"
DENIED = {
    "407-basic": denied("Basic"),
    "407-digest": denied("Digest"),
    "407-ntlm": denied("NTLM", DOMAIN),
    "407-negotiate": denied("Negotiate", DOMAIN),
    "407-all": denied("Digest"),
    "407-unknown": WORDS["407-unknown"],
    "407-bare": WORDS["407-bare"],
}


@pytest.mark.parametrize("name", DENIED)
async def test_what_is_said_of_wrong_credentials(name, monkeypatch):
    monkeypatch.setattr("pyfrp.net.proxyauth.has_kerberos", lambda: False)
    proxy = HOSTILE[name]()
    assert isinstance(proxy, HttpProxy)
    assert await complaint(proxy, "http://user:wr0ng@127.0.0.1:PORT") == DENIED[name]
    # Every wrong attempt counts towards locking the account.
    assert len([asked for asked in proxy.asked if asked.scheme]) <= 2
    assert len([asked for asked in proxy.asked if asked.scheme in ("basic", "digest")]) <= 1


async def leave(pipe: Pipe) -> None:
    await pipe.read_some()


OTHERS = {
    "http-403-at-443": (
        HOSTILE["403"],
        "http://127.0.0.1:PORT",
        {"port": 443},
        f"{P} refuses a tunnel to frps.test:443 (403 Forbidden): have its administrators allow "
        "CONNECT to frps.test:443",
    ),
    "ntlm-wrong": (
        HOSTILE["407-ntlm"],
        "ntlm://CORP%5Cuser:wr0ng@127.0.0.1:PORT",
        {},
        denied("NTLM"),
    ),
    "ntlm-nobody": (
        HOSTILE["407-ntlm"],
        "ntlm://127.0.0.1:PORT",
        {},
        WORDS["407-ntlm"],
    ),
    "ntlm-not-offered": (
        HOSTILE["407-basic"],
        "ntlm://user:secret@127.0.0.1:PORT",
        {},
        f"{P} does not offer NTLM (407, it offers Basic): write http:// instead of ntlm://",
    ),
    "tls-refused": (
        lambda: ScriptBackend(leave),
        "https://127.0.0.1:PORT",
        {},
        f"TLS with {P} failed (the peer closed the connection during the TLS handshake): if it is "
        "a proxy without TLS, as most are, write http:// for its scheme",
    ),
    "ntlm-dropped": (
        lambda: HttpProxy(users=USERS, schemes=["ntlm"], keeps=False),
        "http://user:secret@127.0.0.1:PORT",
        {},
        f"{P} closed the connection in the middle of NTLM, which needs one: is there another proxy "
        "in front of it? ask its administrators for Basic or Digest",
    ),
    "basic-colon": (
        HOSTILE["407-basic"],
        "http://us%3Aer:secret@127.0.0.1:PORT",
        {},
        f"Basic with {P} failed: a user name with a colon cannot be sent by Basic; check "
        "transport.proxyURL",
    ),
    "host": (
        HOSTILE["403"],
        "http://127.0.0.1:PORT",
        {"host": "a b"},
        f"{P} cannot be asked for 'a b': it is not a host name",
    ),
    "tls-off": (
        HttpProxy,
        "https://127.0.0.1:PORT",
        {"timeout_s": 0.5},
        f"TLS with {P} failed (no answer within 0.5 s): if it is a proxy without TLS, as most are, "
        "write http:// for its scheme",
    ),
    "socks-password": (
        lambda: SocksProxy(users=USERS),
        "socks5://127.0.0.1:PORT",
        {},
        f"{P} asks for a user and a password: write them into transport.proxyURL, as in "
        "socks5://USER:PASSWORD@127.0.0.1:PORT",
    ),
    "socks-wrong": (
        lambda: SocksProxy(users=USERS),
        "socks5://user:wr0ng@127.0.0.1:PORT",
        {},
        f"{P} does not accept the user and the password of transport.proxyURL: check both, with "
        "special characters written as %XX",
    ),
    "socks-ruleset": (
        lambda: SocksProxy(code=2),
        "socks5://127.0.0.1:PORT",
        {},
        f"{P} refuses a connection to {T} (reply 2: not allowed by its rules): have its "
        f"administrators allow connections to {T}",
    ),
    "socks-refused": (
        lambda: SocksProxy(code=5),
        "socks5://127.0.0.1:PORT",
        {},
        f"{P} cannot reach {T} (reply 5: connection refused): {CHECK} can resolve the name",
    ),
    "socks-long-name": (
        SocksProxy,
        "socks5://127.0.0.1:PORT",
        {"host": "a" * 300},
        f"{P} cannot be asked for {'a' * 300}:7000: a SOCKS5 proxy takes names of 1 to 255 bytes",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
async def test_what_is_said_of_other_misfortunes(name, loop_kind):
    make, url, more, words = OTHERS[name]
    assert await complaint(make(), url, **more) == words


async def test_a_second_message_of_ntlm_that_is_none_is_told():
    async def script(pipe: Pipe, asked: object) -> None:
        await pipe.send(page("407 No", "Proxy-Authenticate: NTLM\r\n"))
        await pipe.read_until(b"\r\n\r\n", 4096)
        await pipe.send(page("407 No", "Proxy-Authenticate: NTLM TlRMTVNTUAACAAAA\r\n"))
        await pipe.gone.wait()

    said = await complaint(HttpProxy(script=script), "http://user:secret@127.0.0.1:PORT")
    assert said.startswith(f"NTLM with {P} failed: ")
    assert said.endswith("; check transport.proxyURL")


async def test_a_proxy_of_http_that_is_taken_for_socks_is_told():
    async def script(pipe: Pipe) -> None:
        await pipe.read_some()
        await pipe.send(page("400 Bad Request"))
        await pipe.gone.wait()

    said = await complaint(ScriptBackend(script), "socks5://127.0.0.1:PORT")
    assert said == (
        f"{P} does not answer in SOCKS5: it is an HTTP proxy: write http:// instead of socks5://"
    )


async def test_a_certificate_that_is_not_trusted_is_told():
    proxy = HttpProxy(tls=intercepting_context("127.0.0.1"))
    said = await complaint(proxy, "https://127.0.0.1:PORT")
    assert said == (
        f"{P} shows a certificate that this machine does not trust (self-signed certificate in "
        "certificate chain): add the authority that signed it to the system's, or name its file in "
        "the environment variable SSL_CERT_FILE, and write the proxy's host as the certificate "
        "has it"
    )


async def test_a_certificate_of_another_name_is_told(office_ca):
    proxy = HttpProxy(tls=intercepting_context("proxy.test"))
    said = await complaint(proxy, "https://127.0.0.1:PORT")
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in said


async def test_a_proxy_that_is_not_there_is_told():
    port = free_port()
    with pytest.raises(ProxyError) as caught:
        await dial(proxy_of(f"http://user:secret@127.0.0.1:{port}"))
    assert str(caught.value) == (
        f"the proxy 127.0.0.1:{port} cannot be reached: dial tcp 127.0.0.1:{port}: connection "
        "refused; check transport.proxyURL"
    )


async def test_a_proxy_that_resets_what_it_has_just_accepted_is_told():
    async def reset_at_once(host: str, port: int) -> Any:
        near, _ = memory_pair()
        near.abort()
        await turns()  # Before anybody reads it.
        return near, Held()

    with pytest.raises(
        ProxyError, match=r"TLS with the proxy .* failed \(the connection was closed"
    ):
        await dial_via(reset_at_once, proxy_of("https://127.0.0.1:1"), NAME, 7000, timeout_s=5.0)


async def test_a_tunnel_that_ends_at_once_is_told():
    async def script(pipe: Pipe, asked: object) -> None:
        pipe.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        pipe.write_eof()
        await pipe.gone.wait()

    said = await complaint(HttpProxy(script=script), "http://127.0.0.1:PORT")
    assert said == (
        f"{P} made a tunnel to {T} and closed it at once: check that the server runs there and "
        "that its firewall lets the proxy in"
    )


async def test_kerberos_servers_that_do_not_answer_are_not_the_proxys_fault(monkeypatch):
    held = threading.Event()
    monkeypatch.setattr("pyfrp.net.proxyauth.has_kerberos", lambda: True)
    monkeypatch.setattr("pyfrp.net.proxyauth._kerberos", lambda *_: held.wait(20))
    server = HttpProxy(users=USERS, schemes=("negotiate",))
    words = (
        r"asks for Kerberos \(407\), and its servers gave no ticket for HTTP/127\.0\.0\.1 "
        r"within 0\.2 s: check that this machine reaches those that /etc/krb5\.conf"
    )
    async with served(server):
        with pytest.raises(ProxyError, match=words):
            await dial(proxy_of(f"http://127.0.0.1:{server.port}"), timeout_s=0.2)
    held.set()


async def test_a_package_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "spnego", None)
    said = await complaint(HOSTILE["407-ntlm"](), "http://user:secret@127.0.0.1:PORT")
    assert said == (
        f"{P} asks for NTLM (407), for which the package pyspnego is missing: pip install pyspnego"
    )


def test_no_secret_is_shown():
    way = proxy_of("http://user:secret@127.0.0.1:3128")
    assert "secret" not in f"{way} {way!r}"
    assert "user" not in f"{way} {way!r}"
