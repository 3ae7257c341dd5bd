"""One login of one client: it lives and dies as a unit.

Source of the conversation: frp `server/control.go`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfrp.errors import AuthError, LinkError, LocalWireError, RefusedError, WireError
from pyfrp.net.conn import MessageConn
from pyfrp.net.mux import MuxStream
from pyfrp.net.scope import Scope
from pyfrp.server.proxies import PROXY_TYPES
from pyfrp.server.proxies.base import ServerProxy
from pyfrp.server.workpool import WorkPool
from pyfrp.wire.messages import (
    CloseProxy,
    Login,
    Message,
    NatHoleClient,
    NatHoleReport,
    NatHoleVisitor,
    NewProxy,
    NewProxyResp,
    Ping,
    Pong,
    ReqWorkConn,
)

if TYPE_CHECKING:
    from pyfrp.server.service import Server

MAX_PROXIES = 10_000  # Of one client; far beyond use, and still small in memory.
HEARTBEAT_CHECK_S = 1.0
DRAIN_S = 10.0  # How long a client may not read its control connection.


class Control:
    """A logged-in client: its proxies, its pool of work connections, its heartbeat.

    Args:
        conn: The control connection, right after LoginResp, already ciphered.
        drop_link: Drops the link below `conn`, and with it every stream of the client.
        heard: When the link last brought anything, in the server's monotonic seconds.
    """

    def __init__(
        self,
        server: Server,
        conn: MessageConn,
        login: Login,
        *,
        drop_link: Callable[[], None],
        heard: Callable[[], float],
    ) -> None:
        self.run_id = login.run_id
        self.user = login.user
        self.client_id = login.client_id
        self.log = server.log.bind(run_id=login.run_id)
        self._server = server
        self._conn = conn
        self._drop_link = drop_link
        self._heard = heard
        self._proxies: dict[str, ServerProxy] = {}
        self._ports = 0
        self._closed = False
        self._scope = Scope(server.report)
        if isinstance(conn.endpoint, MuxStream):
            conn.endpoint.go_first()
        limits = server.cfg.transport
        self.pool = WorkPool(
            max(0, min(login.pool_count, limits.max_pool_count)),
            request=self._request_work,
            timeout_s=server.cfg.user_conn_timeout,
            version=conn.version,
        )

    async def run(self) -> None:
        """Serve the client until it goes or is replaced; everything is released afterwards."""
        self.pool.fill()
        timeout = self._server.cfg.transport.heartbeat_timeout
        if timeout > 0:
            self._scope.spawn(self._watch(float(timeout)), name="heartbeat")
        try:
            while True:
                msg = await self._conn.read()
                await self._handle(msg)
                async with asyncio.timeout(DRAIN_S):
                    await self._conn.drain()
        except TimeoutError:
            self.log.warning("the client does not read its control connection, closing")
        except WireError as exc:
            self.log.warning(f"control connection closed: {exc}")
        except LinkError as exc:
            self.log.debug(f"control connection closed: {exc}")
        finally:
            self.close()
            await self._scope.close()
            self.log.info("client exit success")

    def close(self) -> None:
        """Release every name, port, route and connection, once; the link goes first."""
        if self._closed:
            return
        self._closed = True
        self._conn.abort()
        self._drop_link()
        self._server.forget(self)
        for name in list(self._proxies):
            self._close_proxy(name, lost=True)
        self.pool.close()
        self._scope.cancel()

    def replace(self, run_id: str) -> None:
        """A new login with this run id takes over."""
        self.log.info(f"replaced by client [{run_id}]")
        self.close()

    def _request_work(self) -> None:
        if not self._closed:
            self._conn.write(ReqWorkConn())

    async def _watch(self, timeout: float) -> None:
        """Close a control whose link brought nothing for too long; any byte counts as life."""
        clock = self._server.clock
        while True:
            silent = clock() - self._heard()
            if silent > timeout:
                self.log.warning("heartbeat timeout")
                self.close()
                return
            await asyncio.sleep(max(HEARTBEAT_CHECK_S, timeout - silent))

    async def _handle(self, msg: Message) -> None:
        if isinstance(msg, Ping):
            await self._ping(msg)
        elif isinstance(msg, NewProxy):
            await self._new_proxy(msg)
        elif isinstance(msg, CloseProxy):
            self._close_proxy(msg.proxy_name)
        elif isinstance(msg, NatHoleVisitor):
            self._server.meetings.visit(msg, self.user, self._tell, self.log)
        elif isinstance(msg, NatHoleClient):
            self._server.meetings.join(msg, self._tell, self.log)
        elif isinstance(msg, NatHoleReport):
            self._server.meetings.report(msg, self.log)
        else:
            self.log.debug("ignored a message", type=type(msg).__name__)

    async def _ping(self, msg: Ping) -> None:
        try:
            await self._server.verifier.verify_ping(msg, int(time.time()))
        except AuthError as exc:
            self.log.warning(f"received invalid ping: {exc}")
            self._conn.write(Pong(error=self._server.detail(str(exc), "invalid ping")))
            return
        self._conn.write(Pong())

    async def _new_proxy(self, wanted: NewProxy) -> None:
        name = wanted.proxy_name
        wanted.proxy_type = wanted.proxy_type or "tcp"
        log = self.log.bind(proxy=name)
        try:
            address = await self._start_proxy(wanted, log)
        except (RefusedError, LocalWireError) as exc:
            log.warning(f"new proxy [{name}] type [{wanted.proxy_type}] error: {exc}")
            summary = f"new proxy [{name}] error"
            self._answer(
                NewProxyResp(proxy_name=name, error=self._server.detail(str(exc), summary))
            )
            return
        log.info(f"new proxy [{name}] type [{wanted.proxy_type}] success")
        self._answer(NewProxyResp(proxy_name=name, remote_addr=address))

    def _tell(self, msg: Message) -> None:
        try:
            self._conn.write(msg)
        except LocalWireError as exc:
            self.log.warning(f"an answer was not sent: {exc}")  # Of what another client told.

    def _answer(self, resp: NewProxyResp) -> None:
        try:
            self._conn.write(resp)
        except LocalWireError:
            # Hundreds of domains make an answer that no client would read.
            resp.remote_addr = resp.remote_addr.partition(",")[0]
            resp.error = resp.error[:1000]
            self._conn.write(resp)

    async def _start_proxy(self, wanted: NewProxy, log: Any) -> str:
        kind = PROXY_TYPES.get(wanted.proxy_type)
        if kind is None:
            raise RefusedError(f"unknown proxy type: {wanted.proxy_type[:100]}")
        if not wanted.proxy_name:
            raise RefusedError("name should not be empty")
        if wanted.annotations:
            _check_annotations(wanted.annotations)
        server = self._server
        limit = server.cfg.max_ports_per_client
        if 0 < limit < self._ports + kind.counts_ports:
            raise RefusedError("exceed the max_ports_per_client")
        if len(self._proxies) >= MAX_PROXIES:
            raise RefusedError(f"more than {MAX_PROXIES} proxies of one client")
        proxy = kind(wanted, server, self.pool, log, self._scope, self.user)
        server.register(proxy)
        try:
            address = await proxy.start()
        except BaseException:
            server.unregister(proxy)
            raise
        if self._closed:
            proxy.close()
            server.unregister(proxy)
            raise RefusedError("the client is gone")
        self._proxies[proxy.name] = proxy
        self._ports += proxy.counts_ports
        return address

    def _close_proxy(self, name: str, *, lost: bool = False) -> None:
        proxy = self._proxies.pop(name, None)
        if proxy is None:
            return
        self._ports -= proxy.counts_ports
        proxy.close(lost=lost)
        self._server.unregister(proxy)
        proxy.log.info(f"close proxy [{name}] success")


def _check_annotations(annotations: dict[str, str]) -> None:
    from pyfrp.config.validate import annotation_problems  # Few clients send any.

    problems = "\n".join(problem.text for problem in annotation_problems(annotations))
    if problems:
        raise RefusedError(problems[:1000])
