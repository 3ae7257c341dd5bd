"""Proxies of type https in every pairing with the official programs: TLS passes by its name."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.processes import HOST, PAIRS, Config, Kind, merged, require_official, tunnel
from tests.support.services import BLOCK
from tests.support.waiting import PATIENCE_S, all_of, within
from tests.unit.net.tls_pair import client_context, server_context
from tests.unit.wire.hellos import hello, library_hello

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

ALERT = b"\x15\x03\x03\x00\x02\x02\x70"
# Each proxy's names, and what users ask for to reach it.
ROUTES = {
    "plain": (["a.test"], ["a.test", "A.Test"]),
    "wild": (["*.w.test"], ["x.w.test", "x.y.w.test"]),
    "sub": ([], ["mine.sub.test"]),
}


def https_proxy(name: str, port: int, domains: list[str], **more: Any) -> Config:
    base = {"name": name, "type": "https", "localIP": HOST, "localPort": port}
    return merged(base, {"customDomains": domains} if domains else {}) | more


@asynccontextmanager
async def services(names: list[str]) -> AsyncIterator[dict[str, int]]:
    """TLS services on ports of their own: each says its name and the hash of what it gets."""
    servers: dict[str, asyncio.Server] = {}
    busy: set[asyncio.Task[Any]] = set()

    def service(name: str) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            busy.add(task)
            try:
                data = await reader.readexactly(len(BLOCK))
                digest = hashlib.sha256(data).hexdigest()
                writer.write(f"{name} {digest}\n".encode() + data)
                await writer.drain()
                await reader.read()
            except (OSError, asyncio.IncompleteReadError):
                pass  # Callers who give up are the test's to judge.
            finally:
                writer.close()
                busy.discard(task)

        return serve

    try:
        for name in names:
            servers[name] = await asyncio.start_server(
                service(name), HOST, free_port(), ssl=server_context()
            )
        yield {name: s.sockets[0].getsockname()[1] for name, s in servers.items()}
    finally:
        for server in servers.values():
            server.close()
        for task in list(busy):
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


async def reached(port: int, asked: str) -> str:
    """The name of the service that a user reaches; a megabyte goes there and back unchanged."""
    reader, writer = await asyncio.open_connection(
        HOST, port, ssl=client_context(), server_hostname=asked
    )
    try:
        tls = writer.get_extra_info("ssl_object")
        assert tls.version() == "TLSv1.3"
        writer.write(BLOCK)
        name, digest = (await reader.readline()).decode().split()
        assert digest == hashlib.sha256(BLOCK).hexdigest()
        assert await reader.readexactly(len(BLOCK)) == BLOCK
        return name
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass  # An end without close_notify is the services' way.


async def told(port: int, data: bytes, *, end: bool = False) -> bytes:
    """Everything that a user gets who says `data`; a reset is as good an end."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        return await within(reader.read(), PATIENCE_S, "the end of the connection")
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def route(port: int, name: str, asked: str) -> None:
    assert await within(reached(port, asked), PATIENCE_S, f"{asked} to be served") == name


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
async def test_tls_reaches_the_service_that_its_name_asks_for(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    require_official()
    port = free_port()
    async with services(list(ROUTES)) as ports:
        proxies = [
            https_proxy("plain", ports["plain"], ["a.test"]),
            https_proxy(
                "wild",
                ports["wild"],
                ["*.w.test"],
                transport={"useEncryption": True, "useCompression": True},
            ),
            https_proxy("sub", ports["sub"], [], subdomain="mine"),
        ]
        server: Config = {"vhostHTTPSPort": port, "subDomainHost": "sub.test"}
        async with tunnel(tmp_path, proxies, kinds=kinds, server=server):
            await all_of(
                [route(port, name, asked) for name, (_, all_) in ROUTES.items() for asked in all_],
                limit_s=30,
            )
            assert await told(port, library_hello("nope.test")) == ALERT
            assert await told(port, library_hello(None)) == ALERT
            assert await told(port, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n") == b""
            assert await told(port, hello("a.test.")) == b""
            assert await told(port, hello("a.test")[:30], end=True) == b""


@pytest.mark.parametrize("kinds", PAIRS[:3], ids="-".join)
async def test_one_port_serves_clients_http_and_https(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    """Clients tell their TLS from that of users by frp's first byte."""
    require_official()
    port = free_port()
    async with (
        services(["any"]) as ports,
        tunnel(
            tmp_path,
            [https_proxy("any", ports["any"], ["*"])],
            kinds=kinds,
            server={"bindPort": port, "vhostHTTPPort": port, "vhostHTTPSPort": port},
            client={"transport": {"tls": {"disableCustomTLSFirstByte": False}}},
        ),
    ):
        await route(port, "any", "whatever.example")
        answer = await told(port, b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        assert b" 404 " in answer.split(b"\r\n")[0]
