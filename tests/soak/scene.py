"""The tunnel under test: an API and a client in the office, a server that moves, ways to ask."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyfrp.vhost.upstream import IDLE_S
from tests.soak.surroundings import NAME, PASSWORD, PROXY, USER, NameServer
from tests.soak.surroundings import Proxy as OfficeProxy
from tests.support.backends import Exchange, HttpBackend, sse
from tests.support.http import Caller, fetch
from tests.support.ports import free_port
from tests.support.processes import (
    SERVER_READY,
    Config,
    Figures,
    Program,
    client_config,
    http_proxy,
    merged,
    server_config,
)
from tests.support.services import running
from tests.support.waiting import all_of, until

HOMES = ("127.0.53.11", "127.0.53.12")
DOMAIN = "llm.test"
EVENTS = 40
EVENT_S = 0.05
CUTS_IDLE_S = 8
"""The proxy cuts tunnels that are silent for so long."""
KEEPALIVE_S = 3
"""So often does the tunnel say something: the defaults' 30 s against a proxy's usual minutes."""
BIND_PORT = 8443
REST_FDS = 30
"""Fewer descriptors than this are open in a process that nobody uses."""


@dataclass
class Scene:
    """Everything that runs."""

    directory: Path
    api: HttpBackend
    names: NameServer
    proxy: OfficeProxy
    client: Program
    servers: list[Program] = field(default_factory=list)
    at: int = 0

    @property
    def server(self) -> Program:
        return self.servers[self.at]

    @property
    def http_port(self) -> int:
        return int(self.server.config["vhostHTTPPort"])

    async def start_server(self) -> None:
        mark = self.server.mark()
        self.server.start()
        await self.server.logged(SERVER_READY, offset=mark)

    async def move(self) -> None:
        """Bring the server up at its other address, and let the name follow."""
        self.at = 1 - self.at
        if self.server.is_running():
            self.server.kill()
        await self.start_server()
        self.names.move(HOMES[self.at])

    async def at_rest(self) -> tuple[Figures, Figures]:
        """Figures of the server and the client when idle connections have had their time.

        Raises:
            AssertionError: when connections are left after it.
        """

        def rested() -> tuple[Figures, Figures] | None:
            both = self.server.figures(), self.client.figures()
            return both if all(one.fds < REST_FDS for one in both) else None

        return await until(rested, "idle connections to end", 2 * IDLE_S, 0.5)

    # -- callers -------------------------------------------------------------------------------

    async def answered(self) -> bool:
        """Whether a request is answered as it should be right now."""
        try:
            answer = await fetch(self.http_port, "/hello", DOMAIN)
        except (AssertionError, OSError):
            return False
        return (answer.status, answer.body) == (200, b"hello")

    async def recovery(self, limit_s: float) -> float:
        """Seconds until a request is answered again.

        Raises:
            AssertionError: when none is within `limit_s`.
        """
        started = time.monotonic()
        while not await self.answered():
            if time.monotonic() - started > limit_s:
                raise AssertionError(
                    f"no request was answered for {limit_s:g} s; the client's log ends with:\n"
                    f"{self.client.tail(25)}"
                )
            await asyncio.sleep(0.1)
        return time.monotonic() - started

    async def load(self, *, requests: int, streams: int) -> None:
        """Requests and streams side by side, each of which must be right."""

        async def ask() -> None:
            answer = await fetch(self.http_port, "/hello", DOMAIN)
            assert (answer.status, answer.body) == (200, b"hello"), answer

        async def listen() -> None:
            answer = await fetch(self.http_port, "/tokens", DOMAIN)
            assert answer.body == b"".join(map(sse, range(EVENTS))), "a stream is not whole"

        await all_of([*(ask() for _ in range(requests)), *(listen() for _ in range(streams))])

    async def left_open(self) -> Caller:
        """A stream that is on its way, whose caller the event will hit."""
        caller = await Caller.open(self.http_port)
        await caller.send(f"GET /tokens HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n".encode())
        return caller


async def _tokens(x: Exchange) -> None:
    await x.start_chunked()
    for number in range(EVENTS):
        await x.chunk(sse(number))
        await asyncio.sleep(EVENT_S)
    await x.end_chunks()


def _server(directory: Path, number: int, more: Config) -> Program:
    base: Config = {
        "bindAddr": HOMES[number],
        "bindPort": BIND_PORT,
        "proxyBindAddr": "127.0.0.1",
        "transport": {"tcpMuxKeepaliveInterval": KEEPALIVE_S},
    }
    config = server_config(merged(base, more))
    return Program("ours", "server", config, directory, name=f"server-{number}")


@asynccontextmanager
async def running_scene(
    directory: Path, *, protocol: str, server: Config, client: Config
) -> AsyncIterator[Scene]:
    """Start everything, and end it on leaving.

    Args:
        protocol: The client's `transport.protocol`.
        server, client: Laid over the configurations.
    """
    proxy = OfficeProxy(directory, free_port(), cuts_idle_s=CUTS_IDLE_S)
    base: Config = {
        "serverAddr": NAME,
        "loginFailExit": False,
        "transport": {
            "protocol": protocol,
            "proxyURL": f"http://{USER}:{PASSWORD}@{PROXY}:{proxy.port}",
            "tcpMuxKeepaliveInterval": KEEPALIVE_S,
        },
    }
    api = HttpBackend()
    api.on("/tokens", _tokens)
    wanted = [http_proxy("llm-api", api.port, DOMAIN)]
    config = client_config(BIND_PORT, wanted, merged(base, client))
    scene = Scene(
        directory,
        api,
        NameServer(directory),
        proxy,
        Program("ours", "client", config, directory, name="client"),
        [_server(directory, number, server) for number in range(len(HOMES))],
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(api))
        stack.callback(scene.names.stop)
        await scene.names.start(HOMES[0])
        stack.callback(scene.proxy.kill)
        await scene.proxy.start()
        for program in (*scene.servers, scene.client):
            stack.callback(_end, program)
        await scene.start_server()
        scene.client.start()
        yield scene


def _end(program: Program) -> None:
    program.signal(signal.SIGCONT)
    program.kill()


def words(figures: Figures) -> dict[str, Any]:
    return {"rss_mib": round(figures.rss_kib / 1024, 1), "fds": figures.fds}
