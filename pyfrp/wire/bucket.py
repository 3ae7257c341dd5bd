"""A limited number of bytes per second for all connections of a proxy, without I/O.

Source of rate and burst: frp `client/proxy/proxy.go`, `server/proxy/proxy.go` (`rate.NewLimiter`):
one bucket for all connections of a proxy and for both directions, which holds one second's bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

# Whoever waits is looked at no more often than this: a wake-up per packet would cost more than the
# bytes do, and nobody notices a hundredth of a second.
SLICE_S = 0.01
# What one waiter is given at least before the next has its turn, in bytes; smaller writes cost
# more than they carry.
LEAST_BYTES = 1024
TURNS = 4  # Waiters that have their turn in one slice, where `LEAST_BYTES` allows.


class Waiter(Protocol):
    """One direction of a connection, with bytes that there was no credit for."""

    held: int

    def release(self, size: int) -> None:
        """Send `size` of the bytes that are held. With more to send: `join` again."""
        ...


class Bucket:
    """Gives out credit, to those who wait for it in turn.

    What `take` does not grant is held, and its holder joins; the owner calls `serve` at the time
    that `wake_at` names. As long as somebody waits, nobody else takes anything.

    Args:
        rate: Bytes per second, at least 1. As much may go out at once after a second of rest.
        now: Monotonic seconds, as in all calls.
    """

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self._credit = float(rate)
        self._counted_at = now
        self._turn = min(rate, max(LEAST_BYTES, int(rate * SLICE_S / TURNS)))
        # Its order is that of joining. A plain dict would look at each key that was deleted before
        # the first one.
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()

    def __len__(self) -> int:
        """Those who wait."""
        return len(self._waiting)

    def take(self, size: int, now: float) -> int:
        """Take credit for `size` bytes; returns for how many there is any, which may be 0."""
        if self._waiting:
            return 0
        self._count(now)
        if size > self._credit:
            size = int(self._credit) if self._credit >= self._turn else 0
        self._credit -= size
        return size

    def join(self, waiter: Waiter) -> None:
        """Wait, behind the others. One that waits already keeps its place."""
        self._waiting[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer."""
        self._waiting.pop(waiter, None)

    def serve(self, now: float) -> None:
        """Give out what there is: in turn, and to each its share."""
        self._count(now)
        waiting = self._waiting
        if not waiting:
            return
        share = max(self._turn, int(self._credit) // len(waiting))
        while waiting:
            waiter = next(iter(waiting))
            if self._credit < min(waiter.held, self._turn):
                return
            del waiting[waiter]
            size = min(waiter.held, share, int(self._credit))
            self._credit -= size
            waiter.release(size)

    def wake_at(self, now: float) -> float | None:
        """When to call `serve`; None while nobody waits."""
        if not self._waiting:
            return None
        self._count(now)
        missing = min(next(iter(self._waiting)).held, self._turn) - self._credit
        return now + max(SLICE_S, missing / self.rate)

    def _count(self, now: float) -> None:
        """Add the credit of the time since the last count."""
        self._credit = min(self._credit + (now - self._counted_at) * self.rate, float(self.rate))
        self._counted_at = now
