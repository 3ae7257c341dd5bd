"""Floods of everything, and every way to break yamux: the server stays up and small.

Each test runs beside a legitimate client whose requests go on all the while. None of them may
fail, and the server may not grow beyond the bound that `tests.support.attack` states.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest

from tests.support.attack import ABSURD, Attacked, many
from tests.support.frpwire import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SYN,
    WINDOW,
    Peer,
    frame,
    mux,
    mux_data,
)
from tests.support.processes import TOKEN
from tests.support.waiting import all_of

pytestmark = [
    pytest.mark.clock,
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("_under_watch"),
]


# --- work connections ---------------------------------------------------------------------


async def test_work_connections_of_nobody_are_closed(target: Attacked) -> None:
    async def one(run_id: Any) -> None:
        async with target.peer() as peer:
            peer.say(frame("w", {"run_id": run_id}))
            try:
                _, body = await peer.hear(5)
            except ConnectionError:
                return
            assert body.get("error")

    await many([one(value) for value in [*ABSURD, "0123456789abcdef"]])


async def test_unasked_work_connections_are_bounded(target: Attacked) -> None:
    async with target.peer() as control:
        await control.login(TOKEN, pool_count=1)
        if target.muxed:
            async with target.peer() as link:
                for number in range(300):
                    stream = 2 * number + 1
                    message = frame("w", {"run_id": control.run_id})
                    link.raw(mux_data(stream, message, SYN))
                await link.writer.drain()
                # Most of them are closed by the server.
                closed = set()
                async with asyncio.timeout(10):
                    while len(closed) < 250:
                        data = await link.reader.readexactly(12)
                        _, kind, flags, stream, length = struct.unpack(">BBHII", data)
                        if kind == DATA and length:
                            await link.reader.readexactly(length)
                        if flags & (FIN | RST):
                            closed.add(stream)
            return
        peers = [await Peer.open(target.port, muxed=False) for _ in range(100)]
        try:
            for peer in peers:
                peer.say(frame("w", {"run_id": control.run_id}))
            results = await asyncio.gather(*(peer.closed(3) for peer in peers))
            assert sum(results) >= 80
        finally:
            for peer in peers:
                await peer.close()


async def test_visitors_of_nobody_are_refused(target: Attacked) -> None:
    async def one(value: Any) -> None:
        async with target.peer() as peer:
            peer.say(frame("v", {"proxy_name": value, "run_id": value, "sign_key": value}))
            try:
                _, body = await peer.hear(5)
            except ConnectionError:
                return
            assert body.get("error")

    await many([one(value) for value in ABSURD])


# --- yamux --------------------------------------------------------------------------------

KIB = 1024
VIOLATIONS: dict[str, bytes] = {
    "version 1": mux(PING, SYN, 0, 0, version=1),
    "version 255": mux(DATA, SYN, 1, 0, version=255),
    "type 4": mux(4, 0, 1, 0),
    "type 255": mux(255, 0, 1, 0),
    "unknown flags": mux(WINDOW, 0xFFF0, 1, 0),
    "every flag": mux(WINDOW, 0xFFFF, 1, 0),
    "stream opened twice": mux(WINDOW, SYN, 1, 0) * 2,
    "even stream": mux(WINDOW, SYN, 2, 0),
    "stream 0 opened": mux(WINDOW, SYN, 0, 0),
    "data on stream 0": mux_data(0, b"data"),
    "data on an unknown stream": mux_data(77, b"data" * 100),
    "window for an unknown stream": mux(WINDOW, 0, 77, 1000),
    "fin on an unknown stream": mux(WINDOW, FIN, 77, 0),
    "two fins": mux(WINDOW, SYN, 1, 0) + mux(WINDOW, FIN, 1, 0) * 2,
    "data after fin": mux(WINDOW, SYN, 1, 0) + mux(WINDOW, FIN, 1, 0) + mux_data(1, b"data"),
    "data after rst": mux(WINDOW, SYN, 1, 0) + mux(WINDOW, RST, 1, 0) + mux_data(1, b"data"),
    "syn and fin": mux(WINDOW, SYN | FIN, 1, 0),
    "syn and rst": mux(WINDOW, SYN | RST, 1, 0),
    "syn and ack": mux(WINDOW, SYN | ACK, 1, 0),
    "ack of nothing": mux(WINDOW, ACK, 1, 0),
    "window overflow": mux(WINDOW, SYN, 1, 2**32 - 1) + mux(WINDOW, 0, 1, 2**32 - 1) * 4,
    "more than the window": mux(WINDOW, SYN, 1, 0) + mux(DATA, 0, 1, 2**31) + bytes(512 * KIB),
    "length of 4 GiB": mux(WINDOW, SYN, 1, 0) + mux(DATA, 0, 1, 2**32 - 1) + bytes(100),
    "pong nobody asked for": mux(PING, ACK, 0, 12345),
    "ping on a stream": mux(PING, SYN, 5, 1),
    "ping with both flags": mux(PING, SYN | ACK, 0, 1),
    "go away normal": mux(GO_AWAY, 0, 0, 0),
    "go away protocol error": mux(GO_AWAY, 0, 0, 1),
    "go away nonsense": mux(GO_AWAY, 0, 0, 2**32 - 1),
    "go away on a stream": mux(GO_AWAY, 0, 9, 0),
    "half a header": mux(PING, SYN, 0, 0)[:7],
    "half a body": mux(DATA, SYN, 1, 100) + b"half",
    "empty data frames": mux(WINDOW, SYN, 1, 0) + mux_data(1, b"") * 20_000,
    "window updates of 0": mux(WINDOW, SYN, 1, 0) + mux(WINDOW, 0, 1, 0) * 20_000,
}


@pytest.mark.parametrize("logged_in", [False, True], ids=["stranger", "client"])
async def test_every_kind_of_yamux_violation(target: Attacked, logged_in: bool) -> None:
    async def one(name: str, data: bytes) -> None:
        async with target.peer() as peer:
            if logged_in:
                await peer.login(TOKEN)
            peer.raw(data)
            try:
                async with asyncio.timeout(3):
                    await peer.writer.drain()
            except (TimeoutError, ConnectionError):
                return
            await peer.closed(0.3)

    await many([one(*entry) for entry in VIOLATIONS.items()], at_once=20)


async def test_session_errors_close_the_session(target: Attacked) -> None:
    if not target.muxed:
        return  # Without mux these bytes are just no frp; that is tested above.

    async def one(name: str) -> None:
        async with target.peer() as peer:
            await peer.login(TOKEN)
            peer.raw(VIOLATIONS[name])
            assert await peer.closed(), name

    await all_of(
        one(name)
        for name in (
            "version 1",
            "type 4",
            "stream opened twice",
            "go away protocol error",
            "more than the window",
            "length of 4 GiB",
        )
    )


async def test_a_flood_of_streams_is_bounded(target: Attacked) -> None:
    """Streams that never say anything, from a stranger and from a client."""
    for logged_in in (False, True):
        async with target.peer() as peer:
            if logged_in:
                await peer.login(TOKEN)
            try:
                for batch in range(40):
                    first = 1001 + batch * 1000
                    peer.raw(b"".join(mux(WINDOW, SYN, first + 2 * n, 0) for n in range(500)))
                    async with asyncio.timeout(2):
                        await peer.writer.drain()
            except (TimeoutError, ConnectionError):
                pass  # Not being read any more, or being closed, is the right answer.


async def test_a_flood_of_yamux_pings_without_reading_the_answers(target: Attacked) -> None:
    async with target.peer() as peer:
        try:
            for _ in range(100):
                peer.raw(mux(PING, SYN, 0, 1) * 5000)
                async with asyncio.timeout(2):
                    await peer.writer.drain()
        except (TimeoutError, ConnectionError):
            pass  # Not being read any more, or being closed, is the right answer.


# --- floods of connections ----------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"o", frame("o", b"{}")[:9], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03", b"\x17"],
    ids=["silent", "one-byte", "a-length", "half-a-hello", "marker"],
)
async def test_a_flood_of_half_open_connections(target: Attacked, data: bytes) -> None:
    writers = []
    try:
        for _ in range(10):
            opened = await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", target.port) for _ in range(100))
            )
            for _, writer in opened:
                writers.append(writer)
                writer.write(data)
        # The real caller goes on while they are there; so does a login.
        async with target.peer() as peer:
            assert not (await peer.login(TOKEN)).get("error")
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_a_flood_of_callers_that_never_finish_their_heads(target: Attacked) -> None:
    writers = []
    try:
        for _ in range(10):
            opened = await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", target.office.http_port) for _ in range(100))
            )
            for _, writer in opened:
                writers.append(writer)
                writer.write(b"GET / HTTP/1.1\r\nHost: llm.test\r\nX-A: ")
        assert await target.office.works()
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)
