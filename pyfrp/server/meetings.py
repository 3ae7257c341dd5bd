"""The meetings of xtcp visitors and proxies, on the server's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pyfrp.errors import RefusedError
from pyfrp.wire.messages import NatHoleClient, NatHoleReport, NatHoleVisitor

if TYPE_CHECKING:
    from pyfrp.nathole.meetings import Coordinator, Send


class Meetings:
    """A coordinator with a timer, a log, and the texts of frp's log; loaded when it is needed.

    Args:
        keep_s: How long is remembered what worked between which networks.
    """

    def __init__(self, keep_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._keep_s = keep_s
        self._made: Coordinator | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return 0 if self._made is None else len(self._made)

    @property
    def _coordinator(self) -> Coordinator:
        if self._made is None:
            from pyfrp.nathole.meetings import Coordinator  # few servers see any

            self._made = Coordinator(self._keep_s)
        return self._made

    def listen(
        self,
        name: str,
        *,
        secret_key: str,
        allow_users: Iterable[str],
        invite: Callable[[str], None],
    ) -> None:
        """Take visitors for a proxy. Raises RefusedError as `Coordinator.listen`."""
        self._coordinator.listen(
            name, secret_key=secret_key, allow_users=allow_users, invite=invite
        )

    def unlisten(self, name: str) -> None:
        """Take no more visitors for a proxy. Idempotent."""
        self._coordinator.unlisten(name)

    def visit(self, msg: NatHoleVisitor, user: str, send: Send, log: Any) -> None:
        """A visitor's message."""
        try:
            self._coordinator.visit(msg, user, send, self._loop.time())
        except RefusedError as exc:
            log.warning(f"handle visitorMsg error: {exc}")
        self._arm()

    def join(self, msg: NatHoleClient, send: Send, log: Any) -> None:
        """A message of a proxy's client."""
        said = self._coordinator.join(msg, send, self._loop.time())
        if said:
            log.debug(f"sid [{msg.sid}] {said}")
        self._arm()

    def report(self, msg: NatHoleReport, log: Any) -> None:
        """The outcome, as the proxy's client tells it."""
        tried = self._coordinator.report(msg, self._loop.time())
        if tried:
            word = str(msg.success).lower()
            log.info(f"sid [{msg.sid}] report make hole success: {word}, {tried}")
        self._arm()

    def close(self) -> None:
        """Forget every meeting."""
        if self._made is not None:
            self._made.close()
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        when = self._coordinator.deadline()
        self._timer = None if when is None else self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._coordinator.wake(self._loop.time())
        self._arm()
