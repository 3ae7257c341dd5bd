"""One login at a server: it lives and dies as a unit.

Source of the conversation: frp `client/control.go`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from pyfrp.auth import Authenticator
from pyfrp.client.connector import Connector
from pyfrp.client.proxies.base import ClientProxy, Phase
from pyfrp.errors import (
    AuthError,
    HandshakeError,
    IdleTimeout,
    LinkError,
    LocalWireError,
    PeerClosed,
    PyfrpError,
    RefusedError,
    WireError,
)
from pyfrp.nathole.options import PeerOptions
from pyfrp.net.bridge import Carried
from pyfrp.net.conn import MessageConn
from pyfrp.net.datagrams import Complaints
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.held import Held
from pyfrp.net.mux import MuxStream
from pyfrp.net.scope import Scope
from pyfrp.wire.messages import (
    CloseProxy,
    Message,
    NatHoleClient,
    NatHoleReport,
    NatHoleResp,
    NatHoleVisitor,
    NewProxyResp,
    NewWorkConn,
    Ping,
    Pong,
    ReqWorkConn,
    StartWorkConn,
)

if TYPE_CHECKING:
    from pyfrp.client.visitors.base import ClientVisitor
    from pyfrp.client.visitors.keeper import Visitors

# After a heartbeat for which there was nothing to show (frp `client/control.go`, heartbeatWorker).
FIRST_RETRY_S = 1.0
DRAIN_S = 10.0  # How long the server may not read the control connection.
# A bridge at rest that carried nothing for this long is closed while draining. A request that the
# server sent before it read our CloseProxy has come by then, unless the link is very slow.
REST_S = 2.0
SAMPLE_S = 0.5  # How often draining looks: the data path only counts, reading a clock costs more.
MEETING_S = 5.0  # For NatHoleResp (frp `client/visitor/xtcp.go`).
# Work connections on their way at once; a server that asks for more is answered later, in order.
MAX_OPENING = 256


class Control:
    """A session with the server.

    Args:
        conn: The control connection, logged in and ciphered.
        connector: Opens work and visitor connections.
        interval_s, timeout_s: Heartbeat; 0 or less for none.

    Attributes:
        silent_s: For how long nothing had come when the session ended.
    """

    def __init__(
        self,
        conn: MessageConn,
        connector: Connector,
        *,
        run_id: str,
        auth: Authenticator,
        proxies: Iterable[ClientProxy],
        interval_s: float,
        timeout_s: float,
        log: Any,
        report: Callable[[BaseException, str], None],
        visitors: Iterable[ClientVisitor] = (),
        peer_options: PeerOptions | None = None,
    ) -> None:
        self.bridges: dict[Carried, None] = {}
        self.version = conn.version
        self._conn = conn
        self._connector = connector
        self.run_id = run_id
        self._auth = auth
        self._proxies = {proxy.name: proxy for proxy in proxies}
        self._interval_s = interval_s
        self._timeout_s = timeout_s if interval_s > 0 else 0.0
        self._log = log.bind(run_id=run_id)
        self._complaints = Complaints(self._log.warning)
        self.report = report
        self.peer_options = peer_options or PeerOptions()
        self._asked: dict[str, asyncio.Future[NatHoleResp]] = {}
        self._scope = Scope(report)
        self._visitors = self._keep(visitors)
        self._clock = asyncio.get_running_loop().time
        self._changed = asyncio.Event()
        self._quiet = asyncio.Event()
        self._opening = asyncio.Semaphore(MAX_OPENING)
        self._heard = self._clock()
        self._cause: PyfrpError | None = None
        self.silent_s = 0.0
        self._stopping = False
        conn.on_activity = self._touch
        if isinstance(conn.endpoint, MuxStream):
            conn.endpoint.go_first()

    def _keep(self, visitors: Iterable[ClientVisitor]) -> Visitors | None:
        visitors = tuple(visitors)
        if not visitors:
            return None
        from pyfrp.client.visitors.keeper import Visitors  # most files have none: not at start-up

        return Visitors(visitors, self)

    async def run(self) -> PyfrpError:
        """Serve until the session ends; returns why. Everything of it is gone afterwards."""
        for proxy in self._proxies.values():
            proxy.reset(self._log)
            if proxy.health is not None:
                watch = proxy.health.run(self._changed.set, proxy.log)
                self._scope.spawn(watch, name=f"health of {proxy.name}")
        self._scope.spawn(self._tend(), name="proxies")
        if self._interval_s > 0:
            self._scope.spawn(self._beat(), name="heartbeat")
        if self._visitors is not None:
            self._scope.spawn(self._visitors.run(), name="visitors")
        try:
            while True:
                self._handle(await self._conn.read())
        except (LinkError, WireError) as exc:
            self.silent_s = self._clock() - max(self._heard, self._connector.heard())
            return self._cause or exc
        finally:
            if self._visitors is not None:
                self._visitors.close()
            self._conn.abort()
            await self._connector.close()
            await self._scope.close()
            for bridge in list(self.bridges):
                bridge.abort()
            for proxy in self._proxies.values():
                proxy.rest()

    def end(self, cause: PyfrpError) -> None:
        """End the session; `run` returns `cause`."""
        self._cause = self._cause or cause
        self._conn.abort()

    async def drain(self) -> None:
        """Have the server send no new users, and wait for those who are connected.

        Connections that carry nothing any more are closed: an official server keeps those of http
        proxies for further requests, for a minute (frp `pkg/util/vhost/http.go`, IdleConnTimeout).
        """
        self._stopping = True
        if self._visitors is not None:
            self._visitors.close()
        for proxy in self._proxies.values():
            if proxy.phase in (Phase.RUNNING, Phase.WAIT_START):
                self._conn.write(CloseProxy(proxy_name=proxy.name))
            proxy.phase = Phase.CLOSED
        seen: dict[Carried, tuple[int, float]] = {}
        while self.bridges and not self._conn.ended:
            self._close_resting(seen)
            self._quiet.clear()
            try:
                async with asyncio.timeout(SAMPLE_S):
                    await self._quiet.wait()
            except TimeoutError:
                pass  # Time to look again.
        await self._connector.settle()

    def _close_resting(self, seen: dict[Carried, tuple[int, float]]) -> None:
        """Close the bridges whose rest has lasted.

        Args:
            seen: How many bytes each had carried when it was first seen with so many, and when.
        """
        now = self._clock()
        for bridge in list(self.bridges):
            carried = bridge.carried()
            before, since = seen.get(bridge, (-1, now))
            if carried != before:
                seen[bridge] = (carried, now)
            elif now - since >= REST_S and bridge.at_rest():
                bridge.close()

    def bridge_closed(self, bridge: Carried) -> None:
        self.bridges.pop(bridge, None)
        if not self.bridges:
            self._quiet.set()

    def _touch(self) -> None:
        self._heard = self._clock()

    # -- connections to the server -------------------------------------------------------------

    async def introduce(self, first: Message) -> MessageConn:
        """Open a connection to the server and begin it with `first`.

        Raises:
            LinkError, LocalWireError: when there is no connection, or no room for the message.
        """
        async with self._opening:
            try:
                endpoint, early = await self._connector.open()
            except PeerClosed as exc:
                # The link opens no more streams, so this session serves nobody any more.
                self.end(exc)
                raise
            conn = MessageConn(endpoint, early=early, version=self.version)
            try:
                conn.begin(first)
            except LocalWireError:
                conn.abort()
                raise
            return conn

    def spawn(self, coro: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run a task that ends with the session."""
        self._scope.spawn(coro, name=name)

    def hand_over(self, name: str, user: Endpoint, held: Held) -> None:
        """Let the visitor of this name serve a user that another one cannot."""
        if self._visitors is not None:
            self._visitors.hand_over(name, user, held)
        else:
            user.abort()

    # -- control messages ----------------------------------------------------------------------

    async def ask(self, msg: NatHoleVisitor | NatHoleClient) -> NatHoleResp:
        """Ask the server about a meeting; the answer has the question's transaction id.

        Raises:
            HandshakeError: when it does not answer.
            RefusedError: with its words.
        """
        answer: asyncio.Future[NatHoleResp] = asyncio.get_running_loop().create_future()
        self._asked[msg.transaction_id] = answer
        try:
            self._conn.write(msg)
            async with asyncio.timeout(MEETING_S):
                resp = await answer
        except TimeoutError:
            raise HandshakeError(f"no answer of the server within {MEETING_S:g} s") from None
        finally:
            del self._asked[msg.transaction_id]
        if resp.error:
            raise RefusedError(resp.error)
        return resp

    def tell(self, msg: NatHoleReport) -> None:
        """Tell the server how a meeting went."""
        self._conn.write(msg)

    def _handle(self, msg: object) -> None:
        if isinstance(msg, ReqWorkConn):
            self._scope.spawn(self._work(), name="work connection")
        elif isinstance(msg, NewProxyResp):
            proxy = self._proxies.get(msg.proxy_name)
            if proxy is not None:
                proxy.answered(msg.remote_addr, msg.error, self._clock())
                self._changed.set()
        elif isinstance(msg, NatHoleResp):
            asked = self._asked.get(msg.transaction_id)
            if asked is not None and not asked.done():
                asked.set_result(msg)
        elif isinstance(msg, Pong):
            if msg.error:
                self._log.error(f"pong message contains error: {msg.error}")
                self._auth.refused()
                self.end(LinkError(f"heartbeat refused: {msg.error}"))
            else:
                self._log.debug("receive heartbeat from server")
        else:
            self._log.debug("ignored a message", type=type(msg).__name__)

    async def _tend(self) -> None:
        """Register proxies, again when the server refused them or did not answer."""
        while True:
            now = self._clock()
            for proxy in self._proxies.values():
                if proxy.due(now) > now:
                    continue
                if proxy.withdraw():
                    self._conn.write(CloseProxy(proxy_name=proxy.name))
                else:
                    self._register(proxy, now)
            try:
                async with asyncio.timeout(DRAIN_S):
                    await self._conn.drain()
            except TimeoutError:
                self.end(IdleTimeout("the server does not read its control connection"))
                return
            except LinkError:
                return  # `run` meets the same end.
            next_due = min((proxy.due(now) for proxy in self._proxies.values()), default=now + 60)
            self._changed.clear()
            try:
                async with asyncio.timeout(min(next_due - now, 60.0)):
                    await self._changed.wait()
            except TimeoutError:
                pass  # Something is due.

    def _register(self, proxy: ClientProxy, now: float) -> None:
        proxy.requested(now)
        try:
            self._conn.write(proxy.request())
        except LocalWireError as exc:
            proxy.answered("", f"its definition is too long for the protocol: {exc}", now)

    async def _beat(self) -> None:
        """Ping at once and then every interval; end a session that has gone silent."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                key, timestamp = await self._auth.ping_fields(time.time())
            except AuthError as exc:
                self._log.warning(
                    f"error during ping authentication: {exc}, skip sending ping message"
                )
                self._touch()  # Nothing was asked, so that no answer is missing.
                await asyncio.sleep(min(retry_s, self._interval_s))
                retry_s *= 2
                continue
            retry_s = FIRST_RETRY_S
            self._log.debug("send heartbeat to server")
            asked = self._clock()
            self._conn.write(Ping(privilege_key=key, timestamp=timestamp))
            await asyncio.sleep(self._interval_s)
            heard = max(self._heard, self._connector.heard())
            silent = self._clock() - heard
            # What has answered the last ping is alive, also where the timeout is no longer than
            # the interval: the next ping is only due.
            if 0 < self._timeout_s < silent and heard < asked:
                self._log.warning("heartbeat timeout")
                self.end(IdleTimeout(f"nothing came from the server for {silent:.0f} s"))
                return

    # -- work connections ----------------------------------------------------------------------

    async def _work(self) -> None:
        """Offer a work connection and serve what it is started for."""
        conn: MessageConn | None = None
        try:
            key, timestamp = await self._auth.work_conn_fields(time.time())
            conn = await self.introduce(
                NewWorkConn(run_id=self.run_id, privilege_key=key, timestamp=timestamp)
            )
            start = await conn.read()
            if not isinstance(start, StartWorkConn):
                raise LinkError(f"expected StartWorkConn, got {type(start).__name__}")
            if start.error:
                self._log.error(f"StartWorkConn contains error: {start.error}")
                self._auth.refused()
                conn.close()
                return
            endpoint, early = conn.detach()
        except AuthError as exc:
            self._log.warning(f"error during NewWorkConn authentication: {exc}")
            return
        except (LinkError, WireError) as exc:
            if conn is not None:
                self._log.debug(f"work connection closed before its use: {exc}")
                conn.abort()
            elif not isinstance(exc, PeerClosed):  # Else the session ends, and says so.
                self._complaints.tell("dial", f"start new connection to server error: {exc}")
            return
        except BaseException:
            if conn is not None:
                conn.abort()
            raise
        proxy = self._proxies.get(start.proxy_name)
        # While draining, this is a user who came before the server read our CloseProxy.
        if proxy is None or not (proxy.phase is Phase.RUNNING or self._stopping):
            endpoint.close()
            return
        await proxy.serve(endpoint, early, start, self)
