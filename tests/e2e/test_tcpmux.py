"""Proxies of type tcpmux in every pairing with the official programs, with frp's very answers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.support.http import HOST as LOOPBACK
from tests.support.http import calling
from tests.support.ports import free_port
from tests.support.processes import PAIRS, Config, Kind, require_official, tunnel
from tests.support.services import BLOCK, EchoBackend, running
from tests.support.waiting import PATIENCE_S, all_of, within

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
UNAUTHORIZED = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
    b'Proxy-Authenticate: Basic realm="Restricted"\r\nContent-Length: 0\r\n\r\n'
)


def mux_proxy(name: str, port: int, **more: Any) -> Config:
    return {
        "name": name,
        "type": "tcpmux",
        "multiplexer": "httpconnect",
        "localIP": LOOPBACK,
        "localPort": port,
        **more,
    }


def connect(host: str, user: str = "") -> bytes:
    """A CONNECT; `user` is `name:password`."""
    lines = [f"CONNECT {host}:22 HTTP/1.1", f"Host: {host}:22"]
    if user:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


async def refused(port: int, data: bytes) -> bytes:
    """Everything that a user gets who says `data`."""
    async with calling(port) as caller:
        await caller.send(data)
        return await within(caller.reader.read(), PATIENCE_S, "the end of the connection")


async def echoed(port: int, opening: bytes, answer: bytes) -> None:
    """After the opening, a megabyte goes to the service and back."""
    async with calling(port) as caller:
        await caller.send(opening)
        assert await caller.exactly(len(answer)) == answer
        await caller.echoed(BLOCK)


@pytest.mark.parametrize("passthrough", [False, True], ids=["answered", "passed"])
@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
async def test_a_connect_reaches_the_service_of_its_host(
    kinds: tuple[Kind, Kind], passthrough: bool, tmp_path: Path
) -> None:
    require_official()
    port, echo = free_port(), EchoBackend()
    proxies = [
        mux_proxy("plain", echo.port, customDomains=["a.test", "*.w.test"]),
        mux_proxy("sub", echo.port, subdomain="mine", transport={"useEncryption": True}),
        mux_proxy("locked", echo.port, customDomains=["b.test"], httpUser="u", httpPassword="p"),
        mux_proxy("own", echo.port, customDomains=["c.test"], routeByHTTPUser="u"),
    ]
    server: Config = {
        "tcpmuxHTTPConnectPort": port,
        "tcpmuxPassthrough": passthrough,
        "subDomainHost": "sub.test",
    }
    served = [
        connect("A.test"),
        connect("x.w.test"),
        connect("mine.sub.test"),
        connect("b.test", "u:p"),
        connect("c.test", "u:x"),
    ]
    first = b"" if passthrough else OK
    async with running(echo), tunnel(tmp_path, proxies, kinds=kinds, server=server):
        # Passed on, the request comes back as the first of what the service echoes.
        await all_of(
            [echoed(port, data, data if passthrough else OK) for data in served], limit_s=30
        )
        for data in (connect("b.test"), connect("b.test", "u:x")):
            assert await refused(port, data) == first + UNAUTHORIZED
        for data in (connect("nope.test"), connect("c.test"), connect("c.test", "v:x")):
            head, _, page = (await refused(port, data)).partition(b"\r\n\r\n")
            assert head == (
                b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n"
                b"Content-Type: text/html\r\nServer: frp/0.65.0" % len(page)
            )
        assert await refused(port, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n") == b""
