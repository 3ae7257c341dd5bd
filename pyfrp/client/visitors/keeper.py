"""The visitors of a session: started, tried again, and found by name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from pyfrp.client.visitors.base import ClientVisitor, Session
from pyfrp.errors import LinkError
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.held import Held

RETRY_S = 10.0  # A visitor that could not start is tried again (frp `visitor_manager.go`).


class Visitors:
    """Keeps the visitors of a client started while its session lasts.

    Args:
        visitors: The client's; they are stopped with this.
        session: What they may use.
    """

    def __init__(self, visitors: Iterable[ClientVisitor], session: Session) -> None:
        self._visitors = {visitor.name: visitor for visitor in visitors}
        self._session = session
        self._closed = False

    async def run(self) -> None:
        """Start all; ends when all are started. One that fails does not hold up the others."""
        waiting = list(self._visitors.values())
        while not self._closed:
            waiting = [visitor for visitor in waiting if not await self._start(visitor)]
            if not waiting:
                return
            await asyncio.sleep(RETRY_S)

    async def _start(self, visitor: ClientVisitor) -> bool:
        try:
            await visitor.start(self._session)
        except LinkError as exc:
            visitor.log.warning(f"start error: {exc}")
            return False
        if self._closed:  # While it started.
            visitor.stop()
        else:
            visitor.log.info("start visitor success")
        return True

    def hand_over(self, name: str, user: Endpoint, held: Held) -> None:
        """Let the visitor `name` serve a user; one that nobody can serve is let go."""
        visitor = None if self._closed else self._visitors.get(name)
        if visitor is None:
            user.abort()
        else:
            visitor.accept(user, held)

    def close(self) -> None:
        """Take no more users. Idempotent."""
        self._closed = True
        for visitor in self._visitors.values():
            visitor.stop()
