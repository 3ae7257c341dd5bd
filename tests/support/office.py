"""The usual scene: services in an office, a client beside them, a server elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import leaks
from tests.support.backends import HttpBackend
from tests.support.http import Answer, Caller, calling, fetch
from tests.support.ports import free_port
from tests.support.processes import Config, Kind, Tunnel, http_proxy, tcp_proxy, tunnel
from tests.support.relay import Relay, relaying
from tests.support.services import EchoBackend, running

DOMAIN = "llm.test"


@dataclass
class Office:
    """A running pair with an HTTP service at `DOMAIN` and an echo service at `echo_port`."""

    api: HttpBackend
    echo: EchoBackend
    pair: Tunnel
    echo_port: int
    relay: Relay | None = None
    _callers: list[Caller] = field(default_factory=list)

    @property
    def http_port(self) -> int:
        return self.pair.http_port

    async def get(self, path: str = "/hello", host: str = DOMAIN, **more: Any) -> Answer:
        """One request on a connection of its own."""
        return await fetch(self.http_port, path, host, **more)

    async def caller(self, **options: Any) -> Caller:
        """A connection to the HTTP port; closed with the scene if not before."""
        caller = await Caller.open(self.http_port, **options)
        self._callers.append(caller)
        return caller

    def drop_callers(self) -> None:
        """End the connections that a failed test left open."""
        for caller in self._callers:
            caller.writer.transport.abort()
        self._callers.clear()

    def calling(self, **options: Any) -> Any:
        """A connection to the HTTP port for an `async with`."""
        return calling(self.http_port, **options)

    async def works(self) -> bool:
        """Tell whether a request is answered as it should be right now."""
        try:
            answer = await self.get()
        except (AssertionError, OSError):
            return False
        return (answer.status, answer.body) == (200, b"hello")


@asynccontextmanager
async def office(
    directory: Path,
    *,
    kinds: tuple[Kind, Kind] = ("ours", "ours"),
    server: Mapping[str, Any] | None = None,
    client: Mapping[str, Any] | None = None,
    proxies: Sequence[Config] = (),
    relayed: bool = False,
    thin: bool = False,
    shared: bool = False,
    observed: bool = False,
    env: Mapping[str, str] | None = None,
    api_port: int | None = None,
) -> AsyncIterator[Office]:
    """Run backends and a pair of programs.

    Args:
        directory: For the programs' files.
        kinds: Which server and which client.
        server: Laid over the server's configuration.
        client: Laid over the client's configuration.
        proxies: More proxies beside the two usual ones.
        relayed: Put a relay between client and server.
        thin: Give the relay small buffers.
        shared: The scene outlives a test, so its sockets are not leaks.
        observed: Let both programs tell their insides.
        env: Additions to the environment of both programs.
        api_port: Where the HTTP service listens, if that must be known before.
    """
    api, echo = HttpBackend(api_port), EchoBackend()
    echo_port = free_port()
    wanted = [
        http_proxy("llm-api", api.port, DOMAIN),
        tcp_proxy("echo", echo.port, echo_port),
        *proxies,
    ]
    if shared:
        leaks.share(api)
        leaks.share(echo)
    try:
        async with running(api, echo):
            if not relayed:
                async with tunnel(
                    directory,
                    wanted,
                    kinds=kinds,
                    server=server,
                    client=client,
                    observed=observed,
                    env=env,
                ) as pair:
                    scene = Office(api, echo, pair, echo_port)
                    try:
                        yield scene
                    finally:
                        scene.drop_callers()
                return
            bind_port = free_port()
            server = {**(server or {}), "bindPort": bind_port}
            async with (
                relaying(bind_port, thin=thin) as relay,
                tunnel(
                    directory,
                    wanted,
                    kinds=kinds,
                    server=server,
                    client=client,
                    through=relay.port,
                    observed=observed,
                    env=env,
                ) as pair,
            ):
                scene = Office(api, echo, pair, echo_port, relay)
                try:
                    yield scene
                finally:
                    scene.drop_callers()
    finally:
        if shared:
            leaks.unshare(api)
            leaks.unshare(echo)
