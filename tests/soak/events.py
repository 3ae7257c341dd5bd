"""What happens to a tunnel in months, in minutes: each event, and how soon all must be well again.

The times count from the moment at which the cause is gone: a proxy that listens again, a server
that is up. They come from the client's own delays (frp: 2, 4, 8, 16, then 20 s between attempts,
each up to a tenth longer) and from how soon silence is noticed.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.soak.scene import CUTS_IDLE_S, KEEPALIVE_S, Scene

PING_S = 10.0
"""How long the mux waits for an answer before it gives a link up."""
CAP_S = 22.0
"""The longest time between two attempts to log in."""


@dataclass(frozen=True)
class Event:
    """Something that happens.

    Args:
        name: For the table.
        happen: Makes it happen, and returns when its cause is gone.
        limit_s: Within this time requests must be answered again.
        same_link: Whether the link must have lasted.
    """

    name: str
    happen: Callable[[Scene, random.Random], Awaitable[None]]
    limit_s: float
    same_link: bool = False


async def _streams(scene: Scene, chance: random.Random) -> None:
    await scene.load(requests=50, streams=chance.randint(5, 40))


async def _idle(scene: Scene, chance: random.Random) -> None:
    """Nobody calls, for longer than the proxy lets a silent tunnel live."""
    await asyncio.sleep(chance.uniform(1.5, 3) * CUTS_IDLE_S)


async def _proxy_restarts(scene: Scene, chance: random.Random) -> None:
    callers = [await scene.left_open() for _ in range(3)]
    scene.proxy.kill()
    await asyncio.sleep(chance.choice((0, 1, 5, 15)))
    await scene.proxy.start()
    for caller in callers:
        await caller.close()


async def _proxy_refuses(scene: Scene, chance: random.Random) -> None:
    """Somebody changes its rules, and changes them back."""
    scene.proxy.kill()
    await scene.proxy.start(allowed=False)
    mark = scene.client.mark()
    await scene.client.logged(r"(?i)connect to server error: .*\b403\b", 60, offset=mark)
    await asyncio.sleep(chance.uniform(0, 8))
    scene.proxy.kill()
    await scene.proxy.start()


async def _server_restarts(scene: Scene, chance: random.Random) -> None:
    await scene.server.terminate(45)
    await asyncio.sleep(chance.choice((0, 2, 10)))
    await scene.start_server()


async def _server_dies(scene: Scene, chance: random.Random) -> None:
    callers = [await scene.left_open() for _ in range(3)]
    scene.server.kill()
    await asyncio.sleep(chance.choice((0, 1, 5)))
    await scene.start_server()
    for caller in callers:
        await caller.close()


async def _client_dies(scene: Scene, chance: random.Random) -> None:
    """It comes back under a run id of its own, while the server may still have the old one."""
    scene.client.kill()
    await asyncio.sleep(chance.choice((0, 1, 5)))
    scene.client.start()


async def _client_restarts(scene: Scene, chance: random.Random) -> None:
    await scene.client.terminate(45)
    scene.client.start()


async def _home_moves(scene: Scene, chance: random.Random) -> None:
    """The server has a new address, and the old one answers no more."""
    old = scene.server
    old.kill()
    await scene.move()


async def _home_moves_silently(scene: Scene, chance: random.Random) -> None:
    """The same, but nobody tells: what is sent to the old address vanishes."""
    old = scene.server
    old.signal(signal.SIGSTOP)
    await scene.move()
    await asyncio.sleep(KEEPALIVE_S + PING_S)
    old.signal(signal.SIGCONT)
    old.kill()


async def _callers_leave(scene: Scene, chance: random.Random) -> None:
    """In the middle of their answers."""
    callers = [await scene.left_open() for _ in range(3)]
    for caller in callers:
        await caller.reset()
    await asyncio.sleep(chance.uniform(0, 1))


EVENTS = (
    Event("streams and requests", _streams, 1.0, same_link=True),
    Event("nobody calls", _idle, 1.0, same_link=True),
    Event("callers leave", _callers_leave, 1.0, same_link=True),
    Event("proxy restarts", _proxy_restarts, CAP_S),
    Event("proxy refuses for a while", _proxy_refuses, CAP_S),
    Event("server restarts", _server_restarts, CAP_S),
    Event("server is killed", _server_dies, CAP_S),
    Event("client restarts", _client_restarts, 10.0),
    Event("client is killed", _client_dies, 10.0),
    Event("server's address changes", _home_moves, CAP_S),
    Event("address changes unnoticed", _home_moves_silently, CAP_S),
)
