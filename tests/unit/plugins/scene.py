"""A plugin at work on a connection whose user is played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pyfrp.config import client_from_dict
from pyfrp.net.bridge import Bridge, Carried
from pyfrp.net.certs import client_context
from pyfrp.net.tls import TlsEndpoint, upgrade
from pyfrp.plugins import make_plugin
from pyfrp.plugins.base import Plugin, Visit
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, memory_pair, turns
from tests.unit.server.scene import Log

LIMIT_S = 10.0
SOURCE = ("198.51.100.3", 40000)  # Where users come from, as the server tells.


def plugin(**table: Any) -> Plugin:
    """The plugin of a client's file."""
    proxy = {"name": "p", "type": "tcp", "remotePort": 1, "plugin": table}
    cfg = client_from_dict({"serverAddr": "127.0.0.1", "proxies": [proxy]})
    options = cfg.proxies[0].plugin
    assert options is not None
    return make_plugin(options)


class User:
    """The far side of a work connection, and what became of it on this side."""

    def __init__(self, made: Plugin, early: bytes = b"", header: bytes = b"") -> None:
        self.end, self.work = memory_pair()
        self.work.pause_reading()
        self.reader: Reader = self.end.get_protocol()
        self.bridges: dict[Carried, None] = {}
        self.log = Log()
        self.closed = 0
        visit = Visit(self.work, early, Bridge, self, self.log, SOURCE, header)
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


class TlsUser:
    """A user with TLS on its side of the work connection."""

    def __init__(self, tls: TlsEndpoint) -> None:
        self.tls = tls
        self.reader = Reader()
        tls.set_protocol(self.reader)
        tls.resume_reading()

    @classmethod
    async def open(cls, u: User, name: str | None = None, protocols: Sequence[str] = ()) -> TlsUser:
        """Do the handshake.

        Raises:
            HandshakeError: when it fails.
        """
        context = client_context("", "", "", "")
        if protocols:
            context.set_alpn_protocols(list(protocols))
        made = upgrade(u.end, context, server_side=False, server_name=name)
        return cls(await within(made, LIMIT_S, "the handshake"))

    async def hears(self, end: bytes) -> bytes:
        """Wait until what came ends in `end`; returns all of it."""
        await until(lambda: self.reader.data.endswith(end), f"{end!r}", LIMIT_S)
        data = bytes(self.reader.data)
        self.reader.data.clear()
        return data


@asynccontextmanager
async def user(made: Plugin, early: bytes = b"", header: bytes = b"") -> AsyncIterator[User]:
    """One user; at the end nothing is left of the connection."""
    made_user = User(made, early, header)
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
