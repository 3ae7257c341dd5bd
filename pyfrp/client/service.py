"""The client: logs in, serves, and comes back for ever.

Source of the delays: frp `client/service.go` (`keepControllerWorking`, `loopLoginUntilSuccess`).
"""

from __future__ import annotations

import asyncio
import platform
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from pyfrp.auth import make_authenticator
from pyfrp.client.connector import Connector
from pyfrp.client.control import Control
from pyfrp.client.proxies import PROXY_TYPES
from pyfrp.client.proxies.base import ClientProxy
from pyfrp.client.route import Route, make_route
from pyfrp.client.transports import connect
from pyfrp.client.transports.proxied import Cuts, blaming
from pyfrp.config.names import wire_name
from pyfrp.errors import (
    HandshakeError,
    LinkError,
    LoginRefused,
    PyfrpError,
    RefusedError,
    WireError,
)
from pyfrp.log import get_logger
from pyfrp.nathole.options import PeerOptions
from pyfrp.net.certs import not_after
from pyfrp.net.conn import MessageConn
from pyfrp.net.datagrams import packet_size
from pyfrp.net.expiry import ExpiryWatch, Lifetime
from pyfrp.net.handshake import client_hello, encrypt_control, hear_hello
from pyfrp.version import FRP_VERSION
from pyfrp.wire.messages import Login, LoginResp
from pyfrp.wire.version import V1, load_version

if TYPE_CHECKING:
    from pyfrp.client.ladder import Ladder
    from pyfrp.client.visitors.base import ClientVisitor
    from pyfrp.config import ClientConfig
    from pyfrp.config.client import ClientTransport
    from pyfrp.wire.version import Hello

Proof: TypeAlias = tuple[str, int]
"""`privilege_key` and `timestamp` of a Login."""

LOGIN_S = 10.0  # For LoginResp (frp `client/service.go`).
FIRST_RETRY_S = 2.0
FIRST_CAP_S = 10.0  # Longest wait before the first login ...
LATER_CAP_S = 20.0  # ... and after it.
# A proxy that refuses our credentials (407) for so many times in a row is asked rarely: directories
# lock an account after five to ten wrong passwords, and somebody has to change something anyway.
UNKNOWN_USER, UNKNOWN_TRIES, UNKNOWN_PAUSE_S = 407, 3, 600.0
# Sessions that end soon after a login: two quick returns a minute, then a growing wait.
QUICK_RETRIES = 2
QUICK_S = (0.2, 0.3)
QUICK_WINDOW_S = 60.0

GO_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class LoginFailed(PyfrpError):
    """The first login failed and `loginFailExit` is on."""


class Client:
    """`await run()` serves until `stop`; with `loginFailExit` it raises LoginFailed.

    Args:
        cfg: Completed, filtered and checked.
        on_login: Called after each successful login.
        on_wait: Called before the login is likely to take far longer than usual, with the seconds.

    Raises:
        ConfigError: for certificate files that cannot be used.
    """

    def __init__(
        self,
        cfg: ClientConfig,
        *,
        on_login: Callable[[], None] | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        self.cfg = cfg
        self.log: Any = get_logger()
        self._on_login = on_login
        self._on_wait = on_wait
        self._auth = make_authenticator(cfg.auth)
        self._expiry = ExpiryWatch(self.log.warning)
        self._route = make_route(cfg, self._seen)
        if self._route.tls is not None:
            self._expiry.add(self._route.tls.lifetimes)
        self._used = self._route
        self._ladder = self._make_ladder()
        self._proxies = [self._make(proxy) for proxy in cfg.proxies]
        self._visitors = self._make_visitors()
        self._run_id = ""
        self._shown = b""
        self._control: Control | None = None
        self._trying: asyncio.Task[Control] | None = None
        self._stopping = asyncio.Event()
        self._cuts = Cuts()

    def _make(self, proxy: Any) -> ClientProxy:
        name = wire_name(self.cfg.user, proxy.name)
        size = packet_size(self.cfg.udp_packet_size)
        return PROXY_TYPES[proxy.type](proxy, name, self.cfg.auth.token, packet_size=size)

    def _make_ladder(self) -> Ladder | None:
        if self._route.protocol != "auto":
            return None
        from pyfrp.client.ladder import Ladder  # loaded where it is used

        return Ladder(self.cfg, self._route, self.log)

    def _seen(self, der: bytes) -> None:
        """The server has shown its certificate."""
        if der == self._shown:
            return
        self._shown = der
        try:
            ends = not_after(der)
        except (ValueError, IndexError):
            return  # OpenSSL takes it, and how long it lives is not worth a connection.
        self._expiry.add([Lifetime("the server's certificate", ends, ours=False)])

    def _make_visitors(self) -> list[ClientVisitor]:
        if not self.cfg.visitors:
            return []
        from pyfrp.client.visitors import VISITOR_TYPES  # most files have none: not at start-up

        user, size = self.cfg.user, packet_size(self.cfg.udp_packet_size)
        return [
            VISITOR_TYPES[visitor.type](
                visitor, wire_name(user, visitor.name), self.log, packet_size=size
            )
            for visitor in self.cfg.visitors
        ]

    async def run(self) -> None:
        """Stay connected until `stop` is called.

        Raises:
            LoginFailed: see the class.
        """
        self._expiry.start()
        try:
            await self._serve()
        finally:
            self._expiry.stop()

    async def _serve(self) -> None:
        quick_until = 0.0
        quick = 0
        delay = 1.0
        while not self._stopping.is_set():
            control = await self._log_in()
            if control is None:
                return
            self._control = control
            if self._stopping.is_set():
                control.end(LinkError("stopped"))  # Asked to while it logged in.
            names = " ".join(proxy.name for proxy in self._proxies)
            log = self.log.bind(run_id=self._run_id)
            log.info(f"proxy added: [{names}]")
            if self._visitors:
                names = " ".join(visitor.name for visitor in self._visitors)
                log.info(f"visitor added: [{names}]")
            since = time.monotonic()
            cause = await self._serve_session(control)
            self._control = None
            if self._ladder is not None:
                self._ladder.ended(time.monotonic() - since)
            if self._stopping.is_set():
                return
            self.log.warning(f"session with the server ended: {cause}, connecting again")
            now = time.monotonic()
            hint = self._cuts.hint(self._used, cause, control.silent_s, now - since)
            if hint:
                self.log.warning(hint)
            if now > quick_until:
                quick_until = now + QUICK_WINDOW_S
                quick = 0
                delay = 1.0
                continue  # The first return is at once.
            quick += 1
            if quick <= QUICK_RETRIES:
                await self._pause(random.uniform(*QUICK_S))
            else:
                await self._pause(delay * random.uniform(1.0, 1.1))
                delay = min(delay * 2, LATER_CAP_S)

    async def _serve_session(self, control: Control) -> PyfrpError:
        """Serve until the session ends; returns why."""
        try:
            return await control.run()
        except Exception as exc:  # Whatever it is, the next session may be spared it.
            self.report(exc, "the session")
            return LinkError("internal error")

    async def stop(self, grace_s: float) -> None:
        """Take no new users, let those who are connected finish, end `run`."""
        self._stopping.set()
        if self._trying is not None:
            self._trying.cancel()
        control = self._control
        if control is None:
            return
        try:
            async with asyncio.timeout(grace_s):
                await control.drain()
        except TimeoutError:
            self.log.warning(
                "shutdown grace period is over, cutting what is still open",
                connections=len(control.bridges),
            )
        control.end(LinkError("stopped"))

    def report(self, exc: BaseException, what: str) -> None:
        """An exception nobody foresaw: say so, and go on with everything else."""
        self.log.error(f"internal error in {what}: {type(exc).__name__}: {exc}", exc_info=exc)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass  # Time to go on.

    async def _log_in(self) -> Control | None:
        """Try until a login succeeds; None when stopped meanwhile."""
        first = not self._run_id
        cap = FIRST_CAP_S if first else LATER_CAP_S
        delay = FIRST_RETRY_S
        unknown = 0  # How often in a row a proxy did not take us for somebody.
        while not self._stopping.is_set():
            self.log.info("try to connect to server...")
            if first and self._ladder is not None:
                self._expect(self._ladder.climb_s)
            try:
                control = await self._try_unless_stopped()
            except PyfrpError as exc:
                self.log.warning(f"connect to server error: {exc}")
                unknown = unknown + 1 if getattr(exc, "status", 0) == UNKNOWN_USER else 0
                if first and self.cfg.login_fail_exit:
                    raise LoginFailed(str(exc)) from exc
            except Exception as exc:
                if first and self.cfg.login_fail_exit:
                    raise
                self.report(exc, "the login")  # The next one may be spared it.
            else:
                if control is not None and self._on_login is not None:
                    self._on_login()
                return control
            delay *= random.uniform(1.0, 1.1)
            pause_s = min(delay, cap)
            if unknown >= UNKNOWN_TRIES:
                pause_s = UNKNOWN_PAUSE_S
                self.log.warning(
                    f"the next try is in {pause_s:g} s: many wrong passwords lock an account"
                )
                self._expect(pause_s)
            await self._pause(pause_s)
            delay = min(delay * 2, cap)
        return None

    def _expect(self, seconds: float) -> None:
        if seconds and self._on_wait is not None:
            self._on_wait(seconds)

    async def _try_unless_stopped(self) -> Control | None:
        """Try once. A try has many steps, each with seconds to wait: `stop` cancels it."""
        trying = asyncio.get_running_loop().create_task(self._try_login(), name="login")
        self._trying = trying
        try:
            return await trying
        except asyncio.CancelledError:
            us = asyncio.current_task()
            if not self._stopping.is_set() or us is None or us.cancelling():
                raise
            return None
        finally:
            self._trying = None

    async def _try_login(self) -> Control:
        if self._ladder is not None:
            return await self._ladder.climb(self._prove, self._attempt)
        proof = await self._prove()
        with blaming(self._route):
            return await self._attempt(self._route, LOGIN_S, proof)

    async def _prove(self) -> Proof:
        """What to show at a login.

        Not on the connection's time, nor on that of a way: a server waits ten seconds for a login,
        and who gives out what is shown may take as long.
        """
        return await self._auth.login_fields(time.time())

    async def _attempt(self, route: Route, login_s: float, proof: Proof) -> Control:
        """Log in by one route, with so many seconds for the answer."""
        connector = await connect(route, self.report)
        try:
            control = await self._converse(connector, route, proof, login_s)
        except BaseException:
            await connector.close()
            raise
        self._used = route
        return control

    async def _converse(
        self, connector: Connector, route: Route, proof: Proof, login_s: float
    ) -> Control:
        cfg = self.cfg
        endpoint, early = await connector.open()
        version = load_version(cfg.transport.wire_protocol)
        conn = MessageConn(endpoint, early=early, version=version)
        try:
            hello = () if version is V1 else (_hello(route),)
            key, timestamp = proof
            conn.begin(
                *hello,
                Login(
                    version=FRP_VERSION,
                    os=platform.system().lower(),
                    arch=GO_MACHINES.get(platform.machine().lower(), platform.machine()),
                    user=cfg.user,
                    privilege_key=key,
                    timestamp=timestamp,
                    run_id=self._run_id,
                    client_id=cfg.client_id,
                    metas=dict(cfg.metadatas),
                    pool_count=cfg.transport.pool_count,
                ),
            )
            try:
                async with asyncio.timeout(login_s):
                    for ours in hello:
                        await hear_hello(conn, ours)
                    answer = await conn.read()
            except TimeoutError:
                raise HandshakeError(
                    f"no answer to the login within {login_s:g} s; "
                    "do transport.tcpMux and transport.tls agree on both sides?",
                    unanswered=True,
                ) from None
            except RefusedError as exc:
                raise HandshakeError(f"the server refused our hello: {exc}") from exc
            except (LinkError, WireError) as exc:
                raise HandshakeError(
                    f"{exc} before the login was answered; {_doubts(conn)}",
                    unanswered=isinstance(exc, LinkError),
                ) from exc
            if not isinstance(answer, LoginResp):
                raise HandshakeError(f"the server answered the login with {type(answer).__name__}")
            if answer.error:
                self.log.error(answer.error)
                self._auth.refused()
                raise LoginRefused(answer.error)
        except BaseException:
            conn.abort()
            raise
        self._run_id = answer.run_id
        self.log.bind(run_id=answer.run_id).info(
            f"login to server success, get run id [{answer.run_id}]"
        )
        encrypt_control(conn, cfg.auth.token, server=False)
        return Control(
            conn,
            connector,
            run_id=answer.run_id,
            auth=self._auth,
            proxies=self._proxies,
            interval_s=_interval(cfg.transport),
            timeout_s=float(cfg.transport.heartbeat_timeout),
            log=self.log,
            report=self.report,
            visitors=self._visitors,
            peer_options=PeerOptions(
                stun_server=cfg.nat_hole_stun_server,
                quic_keepalive_s=float(cfg.transport.quic.keepalive_period),
                quic_idle_s=float(cfg.transport.quic.max_idle_timeout),
            ),
        )


def _hello(route: Route) -> Hello:
    return client_hello(
        transport=route.protocol,
        tls=route.tls is not None or route.protocol == "quic",
        tcp_mux=route.tcp_mux,
    )


def _doubts(conn: MessageConn) -> str:
    """What may be wrong where a server closes instead of answering."""
    doubts = (
        "do transport.tcpMux and transport.tls agree on both sides, and is this the server's "
        "bindPort?"
    )
    if conn.version is V1 or conn.agreement is not None:
        return doubts
    return (
        "the server does not speak wire protocol v2 (frp before 0.69?): set "
        f'transport.wireProtocol = "v1"; if it does, {doubts}'
    )


def _interval(transport: ClientTransport) -> float:
    """Seconds between heartbeats; 0 or less for none.

    A file that sets only `heartbeatTimeout`, commonly on both sides, has no interval where tcpMux
    is on, and an official server with that file drops a client that never pings. So a timeout asks
    for heartbeats.
    """
    if transport.heartbeat_interval <= 0 < transport.heartbeat_timeout:
        return min(30.0, transport.heartbeat_timeout / 3)
    return float(transport.heartbeat_interval)
