"""The KCP port of a server under floods, while its clients are served."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyfrp.wire import kcp
from pyfrp.wire.kcp import ACK, ASK_WINDOW, PUSH, TELL_WINDOW, Segment
from tests.e2e.test_transports_kcp import over_kcp
from tests.support.lossy import losing
from tests.support.office import Office, office
from tests.support.processes import HOST, Program, client_config, http_proxy

pytestmark = pytest.mark.e2e

FLOOD_S = 1.0
SOURCES = 400
GROWTH_KIB = 64 * 1024
OPENED = struct.pack(">BBHII", 0, 1, 1, 1, 0)  # A first stream of a mux, on which nothing comes.


def datagram(conv: int, cmd: int, seqid: int = 0, **more: int | bytes) -> bytes:
    segment = Segment(conv, cmd, **more)  # type: ignore[arg-type]  # numbers, and `data`
    return kcp.encode_data(seqid, kcp.encode_segments([segment]))


def noise(dice: random.Random) -> bytes:
    return dice.randbytes(dice.choice((0, 7, 24, 200, 1400)))


def beginnings(dice: random.Random) -> bytes:
    """Firsts of clients that never go on, or leave a gap and fill the window behind it."""
    sn = dice.choice((0, 0, *range(2, 70)))
    return datagram(7, PUSH, sn, sn=sn, data=bytes(1200) if sn else OPENED)


def absurdities(dice: random.Random) -> bytes:
    numbers = (0, 1, 2**16, 2**31, 2**32 - 1)
    return datagram(
        0,
        dice.choice((PUSH, ACK, ASK_WINDOW, TELL_WINDOW)),
        dice.choice(numbers),
        sn=dice.choice(numbers),
        una=dice.choice(numbers),
        wnd=dice.choice((0, 65535)),
        ts=dice.choice(numbers),
        data=bytes(dice.choice((0, 1300))),
    )


def parity(dice: random.Random) -> bytes:
    return kcp.encode_parity(dice.randrange(50), dice.randbytes(1300))


FLOODS = [noise, beginnings, absurdities, parity]


def sources(stack: ExitStack, port: int) -> Iterator[socket.socket]:
    for number in range(SOURCES):
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.setblocking(False)
        sock.bind((f"127.1.{number // 200}.{1 + number % 200}", 0))
        sock.connect((HOST, port))
        yield sock


async def flood(scene: Office, make: Callable[[random.Random], bytes]) -> int:
    """Send from everywhere for a moment; how often a caller was served meanwhile."""
    dice = random.Random(1)
    works = 0
    with ExitStack() as stack:
        users = list(sources(stack, scene.pair.bind_port))
        ends_at = time.monotonic() + FLOOD_S
        while time.monotonic() < ends_at:
            for _ in range(100):
                try:
                    dice.choice(users).send(make(dice))
                except OSError:
                    pass  # The kernel's buffer is full: that is what a flood is.
            if works * 0.1 < FLOOD_S - (ends_at - time.monotonic()):
                assert await scene.works()
                works += 1
            await asyncio.sleep(0)
    return works


async def test_floods_take_little_memory_and_nobodys_service(tmp_path: Path) -> None:
    async with office(tmp_path, **over_kcp()) as scene:
        server = scene.pair.server
        assert await scene.works()
        before = server.figures()
        server.reset_peak()
        for make in FLOODS:
            assert await flood(scene, make) >= 3, make.__name__
        after = server.figures()
        assert after.peak_kib - before.rss_kib < GROWTH_KIB
        assert after.fds <= before.fds
        # A new client gets in.
        port = scene.pair.bind_port
        proxies = [http_proxy("late", scene.api.port, "late.test")]
        transport = {"transport": {"protocol": "kcp"}}
        late = Program(
            "ours", "client", client_config(port, proxies, transport), tmp_path, name="late"
        )
        try:
            late.start()
            await late.logged("start proxy success")
        finally:
            late.kill()
        assert "internal error" not in server.log()


async def test_a_recorded_session_cannot_be_played_again(tmp_path: Path) -> None:
    """Neither from elsewhere, nor in the client's own name while it is there."""
    how = over_kcp()
    port = how["server"]["bindPort"]
    async with losing(port, loss=0.0) as relay:
        relay.record = []
        how["client"]["serverPort"] = relay.port
        async with office(tmp_path, **how) as scene:
            assert await scene.works()
            replay, relay.record = relay.record, None
            assert len(replay) > 3
            (far,) = relay.far.values()
            with ExitStack() as stack:
                users = sources(stack, port)
                for sock in (far, *(next(users) for _ in range(10))):
                    for data in replay:
                        sock.send(data)
                    assert await scene.works()
            log = scene.pair.server.log()
            assert log.count("client login info") == 1
            assert "client exit success" not in log
            assert "internal error" not in log
