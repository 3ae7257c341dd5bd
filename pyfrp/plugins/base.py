"""What every plugin of a client is: it serves users in place of a local service."""

from __future__ import annotations

import time
from typing import Any

from pyfrp.net.bridge import Bridge, Keeper
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.held import Held

LOGGED_FAILURES = 20  # A second, of one plugin; more of the same tells nothing new.


class Visit:
    """A user's connection, on its way to a plugin.

    Args:
        work: The work connection, paused, with its payload's cipher and compression taken off.
        early: Bytes already read from it.
        bridge_type: What to join it with another endpoint by.
        keeper: Owner of what becomes of it.
        log: Bound to the proxy.
        source: The user's address as the server told it; ("", 0) if it did not.
        header: What tells a local service who the user is, before any byte of the user's.
    """

    def __init__(
        self,
        work: Endpoint,
        early: bytes,
        bridge_type: type[Bridge],
        keeper: Keeper,
        log: Any,
        source: tuple[str, int] = ("", 0),
        header: bytes = b"",
    ) -> None:
        self.work = work
        self.early = early
        self.keeper = keeper
        self.log = log
        self.source = source
        self.header = header
        self._bridge_type = bridge_type

    def join(
        self,
        far: Endpoint,
        held: Held,
        *,
        work: Endpoint | None = None,
        early: bytes = b"",
        ended: bool = False,
    ) -> None:
        """Bridge the user with a fresh connection.

        Args:
            work, early, ended: The work connection after a conversation on it, what was read from
                it and is for `far`, and whether its EOF came. Without them: as it was.
        """
        keeper = self.keeper
        # After a conversation the bytes are whatever the user agreed on with the target.
        bridge_type = self._bridge_type if work is None else Bridge
        bridge = bridge_type(
            work or self.work,
            far,
            early=early if work is not None else self.early,
            near_ended=ended,
            far_early=held.early,
            far_ended=held.ended,
            on_close=keeper.bridge_closed,
        )
        keeper.bridges[bridge] = None


class LogLimit:
    """So many lines a second: a dead backend and a busy user must not fill the disk."""

    def __init__(self, lines: int = LOGGED_FAILURES) -> None:
        self._lines = lines
        self._second = 0
        self._logged = 0

    def allows(self) -> bool:
        """Whether there is room for one more line within this second; it counts as written."""
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._logged = 0
        self._logged += 1
        return self._logged <= self._lines


class Plugin:
    """One `plugin` table. A subclass is a file of this package and a line in its `__init__`.

    Args:
        options: The table.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    def warnings(self) -> list[str]:
        """What an operator should know when the proxy starts, and what does not keep it from it."""
        return []

    def rest(self) -> None:
        """The session has ended: let go of whatever is kept for the next user."""

    async def serve(self, visit: Visit) -> None:
        """Serve one user; whoever waits for this closes the connection if it fails.

        Runs until the connection is handed on (`Visit.join`) or closed. When it is cancelled the
        work connection must not stay open.
        """
        raise NotImplementedError
