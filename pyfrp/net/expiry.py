"""Certificates that end soon: told in time, to an operator who does not look every day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

SOON_S = 30 * 86400.0
EVERY_S = 86400.0


class Lifetime(NamedTuple):
    """The end of a certificate in use.

    Attributes:
        what: Which one, as the subject of a sentence.
        ends: In Unix time.
        ours: It is renewed on this machine, which must then load it anew.
    """

    what: str
    ends: float
    ours: bool = True

    def warning(self, now: float) -> str:
        """What to tell an operator; "" while there is time."""
        left = self.ends - now
        if left > SOON_S:
            return ""
        day = _day(self.ends)
        renew = "renew it and restart" if self.ours else "it must be renewed there"
        if left > 0:
            days = int(left // 86400)
            when = f"in {days} days" if days > 1 else "within two days"
            return f"{self.what} ends on {day}, {when}: {renew}"
        return (
            f"{self.what} expired on {day}, whoever verifies it refuses it: {renew}, or see that "
            f"this machine's clock is right (it says {_day(now)})"
        )


class ExpiryWatch:
    """Warns of certificates within their last 30 days: when they are added, and then daily.

    `start` and `stop` bound the daily look; what is added twice counts once.

    Args:
        warn: Called with a sentence.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._watched: dict[str, Lifetime] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, lifetimes: Iterable[Lifetime]) -> None:
        """Watch these; one with the same `what` takes the place of the former."""
        for lifetime in lifetimes:
            if self._watched.get(lifetime.what) != lifetime:
                self._watched[lifetime.what] = lifetime
                self._tell(lifetime)

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        for lifetime in self._watched.values():
            self._tell(lifetime)
        self.start()

    def _tell(self, lifetime: Lifetime) -> None:
        warning = lifetime.warning(time.time())
        if warning:
            self._warn(warning)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
