"""Visitors of type xtcp: a local port whose users reach another client's service past the server.

There is one tunnel for all users. It is made when the first of them comes, or ahead with
`keepTunnelOpen`; a user for whom none can be had in time is handed to the visitor `fallbackTo`.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from pyfrp.auth.token import auth_key
from pyfrp.client.visitors.base import Session
from pyfrp.client.visitors.stcp import STCPVisitor
from pyfrp.errors import DialError, LinkError, RefusedError, WireError
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.held import Held
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import NatHoleVisitor

if TYPE_CHECKING:
    from pyfrp.config.visitors import XTCPVisitorConfig
    from pyfrp.nathole.tunnel import Tunnel

PATIENCE_S = 20.0  # Of a user, for a tunnel, where there is nobody to fall back to.
ATTEMPTS_S = 10.0  # Attempts start at most this often.
LEAST_INTERVAL_S = 1.0  # Between looks at whether there is a tunnel, whatever the file says.


class Allowance:
    """A number of attempts an hour: all of them may be used at once, and come back one by one."""

    def __init__(self, an_hour: int, now: float) -> None:
        self._most = float(an_hour)
        self._left = self._most
        self._at = now

    def wait(self, now: float) -> float:
        """Use one up; returns the seconds to wait before it."""
        if self._most <= 0:
            return 0.0  # As with frp, where no limit makes sense.
        self._left = min(self._most, self._left + (now - self._at) * self._most / 3600)
        self._at = now
        self._left -= 1
        return max(0.0, -self._left * 3600 / self._most)


class XTCPVisitor(STCPVisitor):
    """Source: frp `client/visitor/xtcp.go`."""

    cfg: XTCPVisitorConfig

    def __init__(self, cfg: XTCPVisitorConfig, name: str, log: Any, *, packet_size: int) -> None:
        super().__init__(cfg, name, log, packet_size=packet_size)
        self._secret = derive_key(cfg.secret_key)
        self._tunnel: Tunnel | None = None
        self._users = 0  # Those who wait for a tunnel.
        self._wanted = asyncio.Event()
        self._made = asyncio.Event()

    async def start(self, session: Session) -> None:
        await super().start(session)
        self._tunnel = None
        self._made.clear()
        self._wanted.clear()
        session.spawn(self._dig(session), name=f"tunnel of {self.name}")
        if self.cfg.keep_tunnel_open:
            session.spawn(self._keep_open(session), name=f"tunnel of {self.name} kept open")

    # -- users ---------------------------------------------------------------------------------

    async def visit(self, session: Session) -> tuple[Endpoint, bytes]:
        """Open a stream of the tunnel, once there is one.

        Raises:
            LinkError: when there is none in time.
        """
        cfg = self.cfg
        limit_s = cfg.fallback_timeout_ms / 1000 if cfg.fallback_to else PATIENCE_S
        self._users += 1
        try:
            async with asyncio.timeout(min(limit_s, PATIENCE_S)):
                while self._tunnel is None:
                    self._made.clear()
                    self._wanted.set()
                    await self._made.wait()
            stream = self._tunnel.open()
        except TimeoutError:
            raise DialError("open tunnel timeout") from None
        finally:
            self._users -= 1
        key = self._secret if cfg.transport.use_encryption else None
        return wrap_payload(stream, b"", key=key, compress=cfg.transport.use_compression)

    def turn_away(self, session: Session, user: Endpoint, held: Held) -> None:
        name = self.cfg.fallback_to
        if not name:
            user.abort()
            return
        # The user's name stands before both.
        name = self.name.removesuffix(self.cfg.name) + name
        self.log.debug(f"try to transfer connection to visitor: {name}")
        session.hand_over(name, user, held)

    # -- the tunnel ----------------------------------------------------------------------------

    async def _dig(self, session: Session) -> None:
        """Make a tunnel whenever one is wanted, and let it go when it ends."""
        loop = asyncio.get_running_loop()
        next_at = 0.0
        while True:
            await self._wanted.wait()
            await asyncio.sleep(next_at - loop.time())
            self._wanted.clear()
            if self._session is not session:  # Stopped.
                return
            if not self._users and not self.cfg.keep_tunnel_open:
                continue  # Whoever wanted it is gone.
            next_at = loop.time() + ATTEMPTS_S
            try:
                tunnel = await self._make(session)
            except (LinkError, RefusedError, WireError) as exc:
                self.log.warning(f"make hole error: {exc}")
                if self._users:
                    self._wanted.set()
                continue
            self._tunnel = tunnel
            self._made.set()
            try:
                cause = await asyncio.shield(tunnel.ended)
            finally:
                self._tunnel = None
                tunnel.close()
            self.log.info(f"the tunnel ended: {cause}")

    async def _make(self, session: Session) -> Tunnel:
        from pyfrp.nathole.discovery import prepare
        from pyfrp.nathole.punch import punch
        from pyfrp.nathole.tunnel import make_tunnel

        cfg = self.cfg
        await session.ask(
            NatHoleVisitor(
                transaction_id=os.urandom(13).hex(), proxy_name=self.target, pre_check=True
            )
        )
        ready = await prepare(
            session.peer_options.stun_server,
            assisted=not cfg.nat_traversal.disable_assisted_addrs,
        )
        self.log.info(f"nathole prepare success, {ready}")
        now = int(time.time())
        transaction = os.urandom(13).hex()
        try:
            answer = await session.ask(
                NatHoleVisitor(
                    transaction_id=transaction,
                    proxy_name=self.target,
                    protocol=cfg.protocol,
                    sign_key=auth_key(cfg.secret_key, now),
                    timestamp=now,
                    mapped_addrs=ready.mapped,
                    assisted_addrs=ready.assisted,
                )
            )
        except BaseException:
            ready.outlet.close()
            raise
        hole = await punch(ready.outlet, answer, self._secret, transaction, session.report)
        self.log.info(f"establishing nat hole connection successful, sid [{answer.sid}]")
        return await make_tunnel(
            hole, cfg.protocol, session.peer_options, on_stream=None, report=session.report
        )

    async def _keep_open(self, session: Session) -> None:
        """Want a tunnel at once, and again when it is found to be gone."""
        loop = asyncio.get_running_loop()
        allowance = Allowance(self.cfg.max_retries_an_hour, loop.time())
        self._wanted.set()
        while self._session is session:
            await asyncio.sleep(max(self.cfg.min_retry_interval, LEAST_INTERVAL_S))
            if self._tunnel is None:
                await asyncio.sleep(allowance.wait(loop.time()))
                self._wanted.set()
