"""A plugin at work on a connection whose user is played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pyfrp.config import client_from_dict
from pyfrp.net.bridge import Bridge, Carried
from pyfrp.plugins import make_plugin
from pyfrp.plugins.base import Plugin, Visit
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, memory_pair, turns
from tests.unit.server.scene import Log

LIMIT_S = 10.0


def plugin(**table: Any) -> Plugin:
    """The plugin of a client's file."""
    proxy = {"name": "p", "type": "tcp", "remotePort": 1, "plugin": table}
    cfg = client_from_dict({"serverAddr": "127.0.0.1", "proxies": [proxy]})
    options = cfg.proxies[0].plugin
    assert options is not None
    return make_plugin(options)


class User:
    """The far side of a work connection, and what became of it on this side."""

    def __init__(self, made: Plugin, early: bytes = b"") -> None:
        self.end, self.work = memory_pair()
        self.work.pause_reading()
        self.reader: Reader = self.end.get_protocol()
        self.bridges: dict[Carried, None] = {}
        self.log = Log()
        self.closed = 0
        visit = Visit(self.work, early, Bridge, self, self.log)
        self.task = asyncio.get_running_loop().create_task(made.serve(visit))

    def bridge_closed(self, bridge: Carried) -> None:
        del self.bridges[bridge]
        self.closed += 1

    @property
    def got(self) -> bytes:
        return bytes(self.reader.data)

    async def says(self, data: bytes, answer: bytes | None = None) -> None:
        """Send; with `answer`, wait for exactly that to be the next that comes."""
        self.end.write(data)
        if answer is not None:
            await self.hears(answer)

    async def hears(self, answer: bytes) -> None:
        await self.reader.until_data(len(answer))
        assert self.got == answer
        self.reader.data.clear()

    async def hears_end(self) -> bytes:
        """Wait for the end of the connection; what came before it."""
        await until(lambda: self.reader.ends or self.reader.lost, "the end", LIMIT_S)
        return self.got

    async def done(self) -> None:
        await within(self.task, LIMIT_S, "the plugin to be done with the connection")


@asynccontextmanager
async def user(made: Plugin, early: bytes = b"") -> AsyncIterator[User]:
    """One user; at the end nothing is left of the connection."""
    made_user = User(made, early)
    try:
        yield made_user
    finally:
        made_user.end.abort()
        if not made_user.task.done():
            made_user.task.cancel()
        await asyncio.wait([made_user.task])
        await turns()
        for bridge in list(made_user.bridges):
            bridge.abort()
        await until(lambda: not made_user.bridges, "the bridges to close")
    if not made_user.task.cancelled():
        made_user.task.result()
    assert made_user.work.is_closing()
