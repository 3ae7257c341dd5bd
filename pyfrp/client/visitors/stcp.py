"""Visitors of type stcp: a local port whose users reach the service of another client."""

from __future__ import annotations

import asyncio

from pyfrp.client.visitors.base import ClientVisitor, Session
from pyfrp.errors import DialError, LinkError, RefusedError, WireError
from pyfrp.net.bridge import join_user
from pyfrp.net.endpoint import Endpoint, format_address, peer_address, tune
from pyfrp.net.held import Held
from pyfrp.net.listen import Listener, listen
from pyfrp.net.sockets import bind_error

KEEPALIVE_S = 7200.0  # Of users' connections, as on a server's ports.


class STCPVisitor(ClientVisitor):
    """Source: frp `client/visitor/stcp.go`."""

    _session: Session | None = None
    _listener: Listener | None = None

    async def start(self, session: Session) -> None:
        cfg = self.cfg
        if cfg.bind_port > 0:
            try:
                self._listener = await listen(
                    lambda: Held(self._come),
                    cfg.bind_addr,
                    cfg.bind_port,
                    keepalive_s=KEEPALIVE_S,
                )
            except OSError as exc:
                raise DialError(bind_error(cfg.bind_addr, cfg.bind_port, exc)) from exc
        self._session = session

    def stop(self) -> None:
        self._session = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _come(self, user: asyncio.Transport, held: Held) -> None:
        tune(user)
        self.accept(user, held)

    def accept(self, user: Endpoint, held: Held) -> None:
        session = self._session
        if session is None:  # Accepted in the turn in which the listener was closed.
            user.abort()
            return
        session.spawn(self._serve(session, user, held), name=f"user of {self.name}")

    def turn_away(self, session: Session, user: Endpoint, held: Held) -> None:
        """Let go a user who cannot be served."""
        user.abort()

    async def _serve(self, session: Session, user: Endpoint, held: Held) -> None:
        address = format_address(peer_address(user))
        self.log.debug(f"get a user connection [{address}]")
        try:
            visit, early = await self.visit(session)
        except (LinkError, WireError, RefusedError) as exc:
            self.log.warning(f"start new visitor connection error: {exc}", user=address)
            self.turn_away(session, user, held)
            return
        except BaseException:
            user.abort()
            raise
        join_user(user, held, visit, early, session)
