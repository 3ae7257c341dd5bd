"""Bandwidth limits that a client keeps itself."""

from __future__ import annotations

import asyncio

import pytest

from pyfrp.wire.framing import encode
from pyfrp.wire.messages import StartWorkConn
from tests.support.datagrams import EchoUdp
from tests.support.services import EchoBackend, running
from tests.support.waiting import until
from tests.unit.client.scene import Session, session, tcp, udp
from tests.unit.client.test_udp import packet, user
from tests.unit.net.ends import MemoryEnd, Reader

LIMIT = {"transport": {"bandwidthLimit": "50KB"}}


async def start(s: Session, name: str) -> tuple[MemoryEnd, Reader]:
    conn = await s.request()
    conn.write(StartWorkConn(proxy_name=name))
    end, _ = conn.detach()
    reader = Reader()
    end.set_protocol(reader)
    end.resume_reading()
    return end, reader


@pytest.mark.parametrize("more", [{}, {"useEncryption": True}], ids=["plain", "encrypted"])
async def test_all_work_connections_of_a_proxy_share_its_limit(more):
    echo = EchoBackend()
    table = {"transport": {**LIMIT["transport"], **more}}
    async with running(echo), session(tcp("echo", echo.port, **table)) as s:
        await s.accept("echo")
        loop = asyncio.get_running_loop()
        ends = [await start(s, "echo") for _ in range(2)]
        began = loop.time()
        for end, _ in ends:
            end.write(bytes(16_000))
        for _, reader in ends:
            await reader.until_data(16_000)
        # Both ways, on the wire: 64 000 bytes and the vectors of the cipher.
        assert loop.time() - began >= (64_000 - 51_200) / 51_200 * 0.95
        for end, _ in ends:
            end.close()


async def test_a_plugins_connections_are_limited_too():
    echo = EchoBackend()
    table = tcp("proxy", 1, plugin={"type": "socks5"}, **LIMIT)
    del table["localPort"]
    async with running(echo), session(table) as s:
        await s.accept("proxy")
        end, reader = await start(s, "proxy")
        end.write(b"\x05\x01\x00")
        await reader.until_data(2)
        end.write(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + echo.port.to_bytes(2, "big"))
        await reader.until_data(12)
        limiter = s.proxies[0]._limiter
        assert limiter is not None
        end.write(bytes(60_000))
        await until(lambda: len(limiter._bucket), "bytes to wait")
        await reader.until_data(12 + 60_000)
        end.close()


async def test_a_limit_of_the_server_is_not_kept_here():
    table = tcp("a", 1, transport={"bandwidthLimit": "1KB", "bandwidthLimitMode": "server"})
    async with session(table, tcp("b", 1, transport={"bandwidthLimit": "0MB"}), tcp("c", 1)) as s:
        assert [made._limiter for made in s.proxies] == [None] * 3


async def test_datagrams_are_limited_as_they_are_on_the_wire():
    async with session(udp("dns", 1, **LIMIT)) as s:
        await s.accept("dns")
        end, _ = await start(s, "dns")
        await until(lambda: s.control.bridges, "the relay")
        limiter = s.proxies[0]._limiter
        assert limiter is not None
        # Not a whole message, so that nothing but the limit looks at it.
        end.write(b"u" + (9000).to_bytes(8, "big") + bytes(8000))
        await until(lambda: limiter._bucket._credit < 51_200 - 8000, "the bytes to be counted")
        end.abort()


async def test_all_visitors_of_a_sudp_proxy_share_its_limit():
    async with await EchoUdp().start() as echo:
        table = {**udp("dns", echo.port, **LIMIT), "type": "sudp", "secretKey": "s"}
        del table["remotePort"]
        async with session(table) as s:
            await s.accept("dns")
            loop = asyncio.get_running_loop()
            visitors = [await start(s, "dns") for _ in range(2)]
            began = loop.time()
            asked = encode(packet(bytes(1000), user())) * 12
            for end, _ in visitors:
                end.write(asked)
            for end, reader in visitors:
                # The answers name the user alike.
                await reader.until_data(len(asked))
                end.abort()
            assert loop.time() - began >= (4 * len(asked) - 51_200) / 51_200 * 0.95


async def test_a_session_that_ends_leaves_nobody_waiting():
    echo = EchoBackend()
    table = tcp("echo", echo.port, transport={"bandwidthLimit": "1KB"})
    async with running(echo), session(table) as s:
        await s.accept("echo")
        end, _ = await start(s, "echo")
        end.write(bytes(10_000))
        limiter = s.proxies[0]._limiter
        assert limiter is not None
        await until(lambda: len(limiter._bucket), "bytes to wait")
    assert not limiter._bucket
    assert limiter._timer is None
