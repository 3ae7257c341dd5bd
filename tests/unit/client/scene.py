"""A client's session whose server is played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pyfrp.auth.token import TokenAuth
from pyfrp.client.control import Control
from pyfrp.client.proxies import PROXY_TYPES
from pyfrp.client.visitors import VISITOR_TYPES
from pyfrp.config import client_from_dict
from pyfrp.errors import PyfrpError
from pyfrp.net.conn import MessageConn
from pyfrp.net.endpoint import Endpoint
from pyfrp.wire.messages import Message, NewProxy, NewProxyResp, NewWorkConn, ReqWorkConn
from tests.support.waiting import until, within
from tests.unit.net.ends import MemoryEnd, memory_pair, turns
from tests.unit.server.scene import Log

TOKEN = "spec-token"
LIMIT_S = 10.0


class MemoryConnector:
    """Opens connections to the test."""

    def __init__(self) -> None:
        self.opened: list[MemoryEnd] = []
        self.refusal: PyfrpError | None = None
        self.closed = 0
        self.when = 0.0

    async def open(self) -> tuple[Endpoint, bytes]:
        if self.refusal is not None:
            raise self.refusal
        ours, theirs = memory_pair()
        ours.pause_reading()
        theirs.pause_reading()
        self.opened.append(theirs)
        return ours, b""

    def heard(self) -> float:
        return self.when

    async def settle(self) -> None:
        pass

    async def close(self) -> None:
        self.closed += 1


class Session:
    """A running control, and the server's side of its connection."""

    def __init__(self, proxies: list[dict[str, Any]], settings: dict[str, Any]) -> None:
        visitors = settings.pop("visitors", [])
        cfg = client_from_dict(
            {"serverAddr": "127.0.0.1", "user": "bob", "proxies": proxies, "visitors": visitors}
        )
        self.log = Log()
        self.errors: list[BaseException] = []
        self.connector = MemoryConnector()
        self.near, self.far = memory_pair()
        self.near.pause_reading()
        self.far.pause_reading()
        self.server = MessageConn(self.far)
        size = settings.pop("packet_size", 1500)
        self.proxies = [
            PROXY_TYPES[p.type](p, p.name, TOKEN, packet_size=size) for p in cfg.proxies
        ]
        self.visitors = [
            VISITOR_TYPES[v.type](v, f"bob.{v.name}", self.log, packet_size=size)
            for v in cfg.visitors
        ]
        scopes = settings.pop("scopes", ())
        self.control = Control(
            MessageConn(self.near),
            self.connector,
            run_id="run-1",
            auth=settings.pop("auth", None) or TokenAuth(TOKEN, frozenset(scopes)),
            proxies=self.proxies,
            interval_s=settings.pop("interval_s", 0.0),
            timeout_s=settings.pop("timeout_s", 0.0),
            log=self.log,
            report=lambda exc, what: self.errors.append(exc),
            visitors=self.visitors,
        )
        assert not settings
        self.task: asyncio.Task[PyfrpError] | None = None

    async def read(self) -> Message:
        return await within(self.server.read(), LIMIT_S, "a message of the client")

    async def accept(self, *names: str) -> None:
        """Accept the proxies that the client asks for."""
        for _ in names:
            msg = await self.read()
            assert isinstance(msg, NewProxy)
            assert msg.proxy_name in names
            self.server.write(NewProxyResp(proxy_name=msg.proxy_name, remote_addr=":1"))
        await turns()

    async def request(self) -> MessageConn:
        """Ask for a work connection; the server's end, its NewWorkConn read."""
        count = len(self.connector.opened)
        self.server.write(ReqWorkConn())
        await until(lambda: len(self.connector.opened) > count, "a work connection")
        conn = MessageConn(self.connector.opened[count])
        msg = await within(conn.read(), LIMIT_S, "NewWorkConn")
        assert isinstance(msg, NewWorkConn)
        self.introduced = msg
        return conn

    async def over(self) -> PyfrpError:
        """Wait for the end of the session; its cause."""
        assert self.task is not None
        return await within(self.task, LIMIT_S, "the end of the session")


@asynccontextmanager
async def session(*proxies: dict[str, Any], **settings: Any) -> AsyncIterator[Session]:
    """A session; at the end nothing of it is left, and nothing unforeseen happened."""
    made = Session(list(proxies), settings)
    made.task = asyncio.get_running_loop().create_task(made.control.run())
    try:
        yield made
    finally:
        made.server.abort()
        try:
            await within(made.task, LIMIT_S, "the end of the session")
        finally:
            for end in [*made.connector.opened, made.near, made.far]:
                end.abort()
            await turns()
    assert not len(made.control._scope)
    await until(lambda: not made.control.bridges, "the bridges to close")
    assert made.connector.closed == 1
    assert made.errors == []


def tcp(name: str, port: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "tcp", "localPort": port, "remotePort": 6000, **more}


def http(name: str, port: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "http", "localPort": port, "customDomains": ["a.test"], **more}


def udp(name: str, port: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "udp", "localPort": port, "remotePort": 6000, **more}
