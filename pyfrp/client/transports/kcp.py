"""KCP over UDP, with TLS on it or without.

Source: frp `client/connector.go` (golib `net/kcp.go` dials); windows from there.
"""

from __future__ import annotations

import asyncio
import secrets
import socket

from pyfrp.client.connector import Connector, OnError, over
from pyfrp.client.route import Route
from pyfrp.client.transports.steps import secure
from pyfrp.errors import DialError, LookupFailed
from pyfrp.net.datagrams import connect_udp
from pyfrp.net.dial import first_that_answers
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.kcp import KcpEndpoint
from pyfrp.net.sockets import explain, widen
from pyfrp.net.trains import TrainSocket

SEND_WINDOW, WINDOW = 128, 512
# Silence after which the server is asked: routers forget idle UDP after half a minute, and one that
# was started again is noticed so.
KEEPALIVE_S = 10.0
# For what a client says at its end, as frpc waits (`cmd/frpc/sub/root.go`, handleTermSignal).
SETTLE_S = 0.5
HINT = "is it the server's kcpBindPort, and does anything on the way drop UDP?"


class KcpConnector:
    """Connections over KCP: streams of one session, or a session each."""

    def __init__(self, connector: Connector, dialler: Dialler) -> None:
        self._connector = connector
        self._dialler = dialler

    async def open(self) -> tuple[Endpoint, bytes]:
        return await self._connector.open()

    def heard(self) -> float:
        return self._connector.heard()

    async def settle(self) -> None:
        await self._dialler.settle()

    async def close(self) -> None:
        await self._connector.close()
        self._dialler.close()


class Dialler:
    """Makes the sessions of one login.

    The first asks which of the server's addresses answers: nothing else would tell before TLS or
    the login waited in vain. The others go there at once.
    """

    def __init__(self) -> None:
        self._address: tuple[str, int] | None = None
        self._sessions: set[KcpEndpoint] = set()

    async def dial(self, route: Route) -> tuple[Endpoint, bytes]:
        """A session, paused, with TLS on it if the route says so. Raises LinkError."""
        if self._address is None:
            endpoint = await self._reach(route)
        else:
            endpoint = await self._open(route, self._address)
        if route.tls is None:
            return endpoint, b""
        return await secure(route, route.tls, endpoint, b"", first_byte=route.tls_first_byte), b""

    async def settle(self) -> None:
        """Let what was written arrive, for a moment: UDP sends nothing after the end."""
        async with asyncio.TaskGroup() as group:
            for session in self._sessions:
                group.create_task(session.settle(SETTLE_S), name="settle")

    def close(self) -> None:
        for session in list(self._sessions):
            session.abort()

    async def _reach(self, route: Route) -> KcpEndpoint:
        """A session with the first of the server's addresses that answers.

        Raises:
            DialError: naming every address and what happened there.
        """

        async def ask(address: tuple[str, int], limit_s: float) -> KcpEndpoint:
            endpoint = await self._ask(route, address, limit_s)
            self._address = address
            return endpoint

        try:
            return await first_that_answers(route.host, route.port, route.dial_timeout_s, ask)
        except LookupFailed:
            raise
        except DialError as exc:
            raise DialError(f"dial udp {exc}; {HINT}", exc.errno) from None

    async def _ask(self, route: Route, address: tuple[str, int], limit_s: float) -> KcpEndpoint:
        """A session with a server that answers. Raises DialError."""
        endpoint = await self._open(route, address)
        try:
            async with asyncio.timeout(limit_s):
                await endpoint.answered()
        except TimeoutError:
            endpoint.abort()
            raise DialError(f"no answer within {round(limit_s, 1):g} s") from None
        except OSError as exc:
            raise DialError(explain(exc)) from exc
        except BaseException:
            endpoint.abort()
            raise
        return endpoint

    async def _open(self, route: Route, address: tuple[str, int]) -> KcpEndpoint:
        """A session with whoever is there. Raises DialError."""
        try:
            sock = connect_udp(address, local_ip=route.local_ip)
            widen(sock)
            outlet = _Socket(sock, self._sessions)
            info = {"sockname": outlet.address, "peername": address}
            session = outlet.session = KcpEndpoint(
                outlet,
                conv=secrets.randbits(32),
                info=info,
                send_window=SEND_WINDOW,
                window=WINDOW,
                skew=secrets.randbits(32),
                keepalive_s=KEEPALIVE_S,
                refused_s=0.0,
            )
            await outlet.attach()
        except OSError as exc:
            raise DialError(explain(exc)) from exc
        self._sessions.add(session)
        return session


class _Socket(TrainSocket):
    """The socket of one session, which is among `sessions` until it is closed."""

    session: KcpEndpoint

    def __init__(self, sock: socket.socket, sessions: set[KcpEndpoint]) -> None:
        super().__init__(
            sock,
            on_datagrams=lambda datagrams, _: self.session.datagrams_received(datagrams),
            on_error=lambda exc: self.session.error_received(exc),
        )
        self._sessions = sessions

    def close(self) -> None:
        super().close()
        self._sessions.discard(self.session)


async def connect(route: Route, on_error: OnError) -> Connector:
    """Reach the server, and begin the session that a mux runs on, if there is one.

    Raises:
        LinkError: with the reason in words.
    """
    dialler = Dialler()
    try:
        return KcpConnector(await over(dialler.dial)(route, on_error), dialler)
    except BaseException:
        dialler.close()
        raise
