"""A process that is woken often gives way to what wakes it, as network cards moderate interrupts.

A service that sends tokens one by one wakes the client with the first of them. Where no core is
free Linux then takes the core from the service at once, so that each token is a turn of its own:
two switches, a read, a record, and a wake-up of the server. Under `SCHED_BATCH` whoever is woken
waits until the other pauses or has had its share, and finds together what came since. `make bench`,
rows `sse-200` and `sse-1000`, tells what that saves.

Where all cores are busy with other work, however, a token can wait for the scheduler's slice, a few
milliseconds. So the policy is in force only while wake-ups are many; a client with few streams is
scheduled as ever. Where a core is free, whoever is woken runs there at once under either policy.

Source: sched(7), "SCHED_BATCH"; getrusage(2), `ru_nvcsw`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

EVERY_S = 0.5
MANY = 800.0
"""Wake-ups per second from which on the process gives way; 200 streams of 20 tokens make 2300."""
FEW = 400.0
"""Wake-ups per second below which it no longer does: they are fewer once it gives way."""


class Moderation:
    """The decision: from a count of wake-ups that only grows, whether to give way."""

    def __init__(self, count: int, now: float) -> None:
        self.giving_way = False
        self._count = count
        self._looked_at = now

    def look(self, count: int, now: float) -> bool:
        """Take note of a count and its time in seconds; returns whether the decision changed."""
        elapsed = now - self._looked_at
        if elapsed <= 0:
            return False
        rate = (count - self._count) / elapsed
        self._count, self._looked_at = count, now
        before = self.giving_way
        self.giving_way = rate >= (FEW if before else MANY)
        return self.giving_way != before


class WakeupModeration:
    """Looks twice a second how often this thread was woken, and sets its policy by that.

    A policy that the process was started with, such as `CPUSchedulingPolicy=` of a unit, is left
    as it is. So is everything where there is no such policy (macOS, Windows) or none may be set.

    Args:
        count: How often the thread has been woken since its start.
        set_policy: Has it scheduled by this policy from now on; raises OSError.
    """

    def __init__(
        self,
        count: Callable[[], int] | None = None,
        set_policy: Callable[[int], None] | None = None,
    ) -> None:
        self._count = count or wakeups
        self._set_policy = set_policy or _set_policy
        self._timer: asyncio.TimerHandle | None = None
        if not _is_ours_to_set():
            return
        self._loop = asyncio.get_running_loop()
        self._moderation = Moderation(self._count(), self._loop.time())
        self._timer = self._loop.call_later(EVERY_S, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self._loop.call_later(EVERY_S, self._look)
        if not self._moderation.look(self._count(), self._loop.time()):
            return
        try:
            self._set_policy(os.SCHED_BATCH if self._moderation.giving_way else os.SCHED_OTHER)
        except OSError:
            self.close()  # A container may forbid it; it will not change its mind.


def wakeups() -> int:
    """How often this thread has gone to sleep, which is how often it was woken. Linux only."""
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _is_ours_to_set() -> bool:
    if not hasattr(os, "SCHED_BATCH"):
        return False
    try:
        return os.sched_getscheduler(0) == os.SCHED_OTHER
    except OSError:
        return False


def _set_policy(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))
