"""How large the datagrams of a connection may be: found out by trying, from what passes everywhere.

A larger one costs hardly more than a small one. Those beyond the base must not be cut on their way,
so they need a socket that forbids it; what is too large for the path is then lost. Half a dozen
lost in a row, and none arrived, bring back the base: the path has changed.

Source: RFC 8899; RFC 9000, 14.3 and 14.4.
"""

from __future__ import annotations

# Ethernet with a tunnel's header to spare, jumbo frames, loopback: a payload of IPv6 and UDP each.
RUNGS = (1_452, 8_952, 16_300)
# Full datagrams sent before the first try: short exchanges are not worth one.
BEFORE = 32
TRIES = 3
MOST_LOST = 6
_MOST_RETURNS = 16  # To the base; the pauses double until there.


class PathSize:
    """One connection's search.

    Args:
        base: Bytes that pass every usual path.
        largest: Bytes to try at most.

    Attributes:
        size: Bytes of a full datagram at present.
    """

    def __init__(self, base: int, largest: int) -> None:
        self.size = base
        self._base = base
        self._rungs = [rung for rung in RUNGS if base < rung <= largest]
        self._next = 0  # The rung to try.
        self._tries = 0
        self._returns = 0
        self._waits = BEFORE
        self._trying = False
        self._lost = 0

    def bound(self, largest: int) -> None:
        """The peer takes no more than this."""
        self._rungs = [rung for rung in self._rungs if rung <= largest]

    def to_try(self, sent: int) -> int:
        """What size to try now; 0 for none. Call `tried` when its fate is known.

        Args:
            sent: Full datagrams that have just been sent.
        """
        self._waits -= sent
        if self._trying or self._waits > 0 or self._next >= len(self._rungs):
            return 0
        self._trying = True
        return self._rungs[self._next]

    def tried(self, size: int, *, arrived: bool) -> None:
        """A try has arrived, or was lost."""
        self._trying = False
        if self._next >= len(self._rungs) or size != self._rungs[self._next]:
            return  # Of a time before the path changed.
        if arrived:
            self.size, self._lost = size, 0
        else:
            self._tries += 1
            if self._tries < TRIES:
                return
            del self._rungs[self._next :]
        self._next += 1
        self._tries = 0

    def went(self, size: int, *, arrived: bool) -> bool:
        """A full datagram has arrived, or was lost; whether the base is back for that."""
        if size != self.size:
            return False
        self._lost = 0 if arrived else self._lost + 1
        return self._lost >= MOST_LOST and self.give_up()

    def give_up(self) -> bool:
        """Return to the base, as on a new path; whether that changes anything."""
        if self.size == self._base:
            return False
        self.size, self._lost = self._base, 0
        self._next = self._tries = 0
        self._returns += 1
        self._waits = BEFORE << min(self._returns, _MOST_RETURNS)
        return True
