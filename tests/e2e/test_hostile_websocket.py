"""Websockets on the control port that no honest client opens or fills.

Each test runs beside a legitimate client whose requests go on all the while. None of them may
fail, and the server may not grow beyond the bound that `tests.support.attack` states: 64 MiB,
whatever comes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.attack import Attacked, many
from tests.support.frpwire import SYN, Peer, frame, login_message, mux_data
from tests.support.processes import HOST, TOKEN
from tests.support.waiting import all_of
from tests.unit.net.tls_pair import client_context

pytestmark = [
    pytest.mark.clock,
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("_under_watch"),
    # What is in a websocket makes no difference to it.
    pytest.mark.parametrize("target", [True], ids=["mux"], indirect=True, scope="module"),
]

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3.
GOOD = {
    "Host": "frps.test",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Origin": "http://frps.test",
    "Sec-WebSocket-Version": "13",
}
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def opening(line: str = "GET /~!frp HTTP/1.1", **changes: str | None) -> bytes:
    """A handshake; `changes` by header, with _ for -, None to leave it out."""
    headers = dict(GOOD) | {name.replace("_", "-"): value for name, value in changes.items()}
    rows = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([line, *rows, "", ""]).encode("latin-1")


def masked(payload: bytes, first: int = 0x80 | BINARY, mask: bytes = b"") -> bytes:
    """A frame as a client sends it, of a codec of its own."""
    mask = mask or os.urandom(4)
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack(">BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack(">BBQ", first, 0x80 | 127, size)
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return head + mask + body


@asynccontextmanager
async def connected(
    target: Attacked, *, tls: bool = False
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the control port."""
    reader, writer = await asyncio.open_connection(
        HOST, target.port, ssl=client_context() if tls else None
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        try:
            await writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass  # It has ended.


@asynccontextmanager
async def opened(
    target: Attacked, *, tls: bool = False
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A websocket on it."""
    async with connected(target, tls=tls) as (reader, writer):
        writer.write(opening())
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert f"Sec-WebSocket-Accept: {ACCEPT}\r\n".encode() in head
        yield reader, writer


async def everything(reader: asyncio.StreamReader, limit_s: float = 15.0) -> bytes:
    """What the server says until it closes."""
    said = b""
    try:
        async with asyncio.timeout(limit_s):
            while data := await reader.read(65536):
                said += data
    except TimeoutError:
        raise AssertionError(f"the connection was kept; it said {said[:200]!r}") from None
    except (OSError, ssl.SSLError):
        pass  # A reset is an end as well.
    return said


BAD_OPENINGS = {
    "another path": (opening("GET /~!frpx HTTP/1.1"), b"400"),
    "another HTTP": (opening("GET /~!frp HTTP/3.0"), b"400"),
    "no HTTP": (b"GET /~!frp\r\n\r\n", b"400"),
    "no upgrade": (opening(Upgrade=None), b"400"),
    "another upgrade": (opening(Upgrade="h2c"), b"400"),
    "no connection": (opening(Connection=None), b"400"),
    "no key": (opening(Sec_WebSocket_Key=None), b"400"),
    "a short key": (opening(Sec_WebSocket_Key="AAAA"), b"400"),
    "a long key": (opening(Sec_WebSocket_Key="A" * 4000), b"400"),
    "no version": (opening(Sec_WebSocket_Version=None), b"400"),
    "another version": (opening(Sec_WebSocket_Version="8"), b"400"),
    "no origin": (opening(Origin=None), b"403"),
    "a space before the colon": (opening(**{"X ": "y"}), b"400"),
    "no colon": (opening().replace(b"Host: ", b"Host "), b"400"),
    "a long header": (opening(X="a" * 100_000), b"431"),
    "many headers": (opening(**{f"X{n}": "a" * 90 for n in range(1000)}), b"431"),
    "NULs": (b"GET /~!frp" + bytes(20_000), b"431"),
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_bad_handshakes_are_answered_and_closed(target: Attacked, tls: bool) -> None:
    async def one(name: str) -> None:
        data, status = BAD_OPENINGS[name]
        async with connected(target, tls=tls) as (reader, writer):
            writer.write(data)
            said = await everything(reader)
            # With a lot unread the answer may be lost in the reset that follows.
            assert said[9:12] == status or (len(data) > 9000 and not said), name

    await all_of((one(name) for name in BAD_OPENINGS), limit_s=30)


BAD_FRAMES = {
    "reserved bits": masked(b"x", 0x80 | 0x40 | BINARY),
    "all reserved bits": masked(b"x", 0xF0 | BINARY),
    "an unknown opcode": masked(b"x", 0x83),
    "an unknown control": masked(b"x", 0x8B),
    "no mask": b"\x82\x01x",
    "a fragment of nothing": masked(b"x", 0x80),
    "a frame within a fragmented one": masked(b"x", BINARY) + masked(b"y"),
    "a fragmented ping": masked(b"x", PING),
    "a long ping": b"\x89\xfe\x00\x7e" + bytes(130),
    "a negative length": b"\x82\xff" + b"\xff" * 8 + bytes(4),
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_bad_frames_end_their_own_websocket(target: Attacked, tls: bool) -> None:
    async def one(name: str, before: bytes) -> None:
        async with opened(target, tls=tls) as (reader, writer):
            writer.write(before + BAD_FRAMES[name])
            assert (await everything(reader)).endswith(b"\x88\x02\x03\xea"), name

    starts = (b"", masked(mux_data(1, frame("o", login_message(TOKEN))[:20], SYN)))
    await all_of((one(*case) for case in itertools.product(BAD_FRAMES, starts)), limit_s=30)


async def test_random_bytes_in_place_of_frames(target: Attacked) -> None:
    async def one(data: bytes, cut: bool) -> None:
        async with opened(target) as (reader, writer):
            writer.write(data)
            if cut:
                writer.write_eof()
            await everything(reader)

    jobs = [one(os.urandom(size), cut) for size in (1, 3, 9, 200, 5000) for cut in [True] * 12]
    jobs += [one(masked(os.urandom(size)), True) for size in (1, 9, 200, 70_000) for _ in range(5)]
    await many(jobs)


FLOODS = {
    "pings": masked(b"x" * 125, 0x80 | PING, b"mask") * 400,
    "empty pings": masked(b"", 0x80 | PING) * 8000,
    "empty fragments": masked(b"", BINARY) + masked(b"", 0x00) * 8000,
    "empty frames": masked(b"") * 8000,
    "frames of one byte": masked(b"o", mask=b"mask") * 7000,
    "one huge frame": b"\x82\xff" + (2**62).to_bytes(8, "big") + bytes(4) + bytes(48_000),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_floods_cost_nobody_else(target: Attacked, name: str) -> None:
    """As fast as the server reads them, by three clients that read nothing."""

    async def one() -> None:
        async with opened(target) as (_, writer):
            data = FLOODS[name]
            try:
                async with asyncio.timeout(0.4):
                    while True:
                        writer.write(data)
                        await writer.drain()
                        if name == "empty fragments":
                            data = masked(b"", 0x00) * 8000
                        elif name == "one huge frame":
                            data = bytes(48_000)
            except (TimeoutError, OSError):
                pass  # It may be closed, or not read.

    await all_of([one() for _ in range(3)])


class FramedWriter:
    """Writes each piece as fragments with pings between them."""

    def __init__(self, writer: asyncio.StreamWriter, size: int) -> None:
        self.transport = writer.transport
        self.wait_closed = writer.wait_closed
        self._writer = writer
        self._size = size

    def write(self, data: bytes) -> None:
        starts = range(0, len(data), self._size)
        for number, at in enumerate(starts):
            last = 0x80 if number == len(starts) - 1 else 0
            self._writer.write(masked(data[at : at + self._size], last | (0 if number else TEXT)))
            self._writer.write(masked(b"still there?", 0x80 | PING))


class FramedReader:
    """Reads the payload of whole frames."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.pongs = 0

    async def read(self, _: int) -> bytes:
        while True:
            first, size = await self._reader.readexactly(2)
            assert size < 126
            data = await self._reader.readexactly(size)
            if first == 0x82:
                return data
            assert (first, data) == (0x8A, b"still there?")
            self.pongs += 1


async def test_a_login_in_fragments_with_pings_between_is_a_login(target: Attacked) -> None:
    async with opened(target, tls=True) as (reader, writer):
        framed = FramedReader(reader)
        ends: Any = framed, FramedWriter(writer, 3)
        peer = Peer(*ends, muxed=True)
        assert (await peer.login(TOKEN)).get("run_id")
        assert framed.pongs >= 1
        # And with it the others' frames still end their own websocket only.
        async with opened(target) as (other, there):
            there.write(b"\xff")
            there.write_eof()
            await everything(other)
        assert not (await peer.ask("h", {}, "4")).get("error")


async def test_a_mux_is_judged_within_a_websocket_too(target: Attacked) -> None:
    async with opened(target) as (reader, writer):
        writer.write(masked(b"\x07" + mux_data(1, b"o")[1:]))
        assert (await everything(reader))[:1] == b"\x82"  # Its go-away.
