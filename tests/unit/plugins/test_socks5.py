"""socks5: from the handshake to the bridge, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from pyfrp.errors import DialError
from pyfrp.plugins import socks5
from pyfrp.wire.socks5 import reply
from tests.support.services import EchoBackend, running
from tests.support.waiting import until
from tests.unit.plugins.scene import plugin, user

HELLO = b"\x05\x01\x00"
SECRET = {"username": "u", "password": "s3cret"}


def to(port: int, host: bytes = b"\x01\x7f\x00\x00\x01") -> bytes:
    return b"\x05\x01\x00" + host + port.to_bytes(2, "big")


def made(**options):
    return plugin(type="socks5", **options)


@pytest.mark.parametrize("host", [b"\x01\x7f\x00\x00\x01", b"\x03\x09localhost"])
async def test_bytes_sent_ahead_reach_the_target_and_ends_pass(host, loop_kind):
    echo = EchoBackend()
    async with running(echo), user(made(), early=b"\x05") as u:
        await u.says(b"\x01\x00" + to(echo.port, host) + b"ahead")
        got = await u.reader.until_data(12 + 5)
        assert got[:6] == b"\x05\x00\x05\x00\x00\x01"
        assert got[6:10] == b"\x7f\x00\x00\x01"
        assert got[12:] == b"ahead"
        await u.done()
        assert len(u.bridges) == 1
        u.reader.data.clear()
        await u.says(b"more", b"more")
        u.end.write_eof()
        assert await u.hears_end() == b""
        await until(lambda: u.closed, "the bridge to close")


async def test_a_caller_that_says_all_at_once_and_ends_gets_its_answer(loop_kind):
    echo = EchoBackend()
    async with running(echo), user(made()) as u:
        await u.says(HELLO + to(echo.port) + b"all")
        u.end.write_eof()
        assert (await u.hears_end()).endswith(b"all")


async def test_ipv6_targets_are_reached(loop_kind):
    if not socket.has_ipv6:
        pytest.skip("no IPv6")

    async def serve(reader, writer):
        writer.write(b"six")
        writer.close()

    try:
        server = await asyncio.start_server(serve, "::1", 0)
    except OSError:
        pytest.skip("no IPv6 loopback")
    port = server.sockets[0].getsockname()[1]
    async with user(made()) as u:
        await u.says(HELLO + to(port, b"\x04" + bytes(15) + b"\x01"))
        got = await u.hears_end()
        assert got[2:6] == b"\x05\x00\x00\x04"
        assert got.endswith(b"six")
    server.close()
    await server.wait_closed()


async def test_credentials_are_asked_for_and_checked(loop_kind):
    echo = EchoBackend()
    async with running(echo), user(made(**SECRET)) as u:
        await u.says(b"\x05\x02\x00\x02", b"\x05\x02")
        await u.says(b"\x01\x01u\x06s3cret", b"\x01\x00")
        await u.says(to(echo.port) + b"x")
        assert (await u.reader.until_data(11)).endswith(b"x")


async def test_wrong_credentials_are_answered_late_and_not_logged(monkeypatch):
    monkeypatch.setattr(socks5, "WRONG_PASSWORD_S", 0.0)
    async with user(made(**SECRET)) as u:
        await u.says(b"\x05\x01\x02\x01\x01u\x05wrong")
        assert await u.hears_end() == b"\x05\x02\x01\x01"
        await u.done()
        assert u.log.has("socks5: wrong user or password", "warning")
        said = " ".join(u.log.events())
        assert "s3cret" not in said
        assert "wrong " in said


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ECONNREFUSED, 5),
        (errno.ENETUNREACH, 3),
        (errno.EHOSTUNREACH, 4),
        (errno.ETIMEDOUT, 4),
        (0, 4),
    ],
)
async def test_a_target_that_is_not_reached_is_told_by_the_reply(number, code, monkeypatch):
    async def fails(host, port, *, timeout_s):
        raise DialError("dial tcp: no", number)

    monkeypatch.setattr(socks5, "dial_tcp", fails)
    async with user(made()) as u:
        await u.says(HELLO + to(80))
        assert await u.hears_end() == b"\x05\x00" + reply(code)
        await u.done()
        assert u.log.has("socks5: connect to 127.0.0.1:80 error: dial tcp: no", "warning")


async def test_a_refused_connection_is_reply_five(loop_kind):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with user(made()) as u:
            await u.says(HELLO + to(closed.getsockname()[1]))
            assert await u.hears_end() == b"\x05\x00" + reply(5)


@pytest.mark.parametrize("data", [b"", b"\x05", HELLO, HELLO + b"\x05\x01"])
async def test_a_slow_caller_is_closed_in_time(data, monkeypatch):
    monkeypatch.setattr(socks5, "HANDSHAKE_S", 0.05)
    async with user(made()) as u:
        await u.says(data)
        await u.hears_end()
        await u.done()
        assert u.log.has("socks5: no request within 0.05 s", "warning")


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_caller_that_leaves_early_leaves_nothing(how):
    async with user(made()) as u:
        await u.says(HELLO, b"\x05\x00")
        if how == "end":
            u.end.close()
        else:
            u.end.abort()
        await u.done()
        assert u.bridges == {}


async def test_a_session_that_ends_takes_the_handshake_with_it():
    async with user(made()) as u:
        await u.says(HELLO, b"\x05\x00")
        u.task.cancel()
        await until(lambda: u.task.done(), "the task")
        await until(lambda: u.reader.lost, "the connection")


async def test_a_caller_that_floods_ahead_is_held_back(monkeypatch):
    """What a caller sends before its target answers waits with the caller."""
    reached = asyncio.Event()

    async def never(host, port, *, timeout_s):
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(socks5, "dial_tcp", never)
    async with user(made()) as u:
        await u.says(HELLO + to(80))
        await reached.wait()
        for _ in range(64):
            u.end.write(bytes(16384))
        await until(lambda: u.end._choked and u.work.paused, "the caller to be told to wait")
        u.task.cancel()
