"""A timer for protocols without I/O, which say anew after each step when they want to be woken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `on_time` at the moment that was set last, or sooner.

    It is set far more often than it goes off. So a moment that moves away costs nothing: the timer
    fires early, and whoever is woken sets it again.
    """

    def __init__(self, on_time: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_time = on_time
        self._timer: asyncio.TimerHandle | None = None
        self._when = 0.0  # uvloop's handles do not tell it where it is now.

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, when: float | None) -> None:
        """Args: when: In the loop's time; None for never."""
        if self._timer is not None:
            if when is not None and self._when <= when:
                return
            self._timer.cancel()
        self._timer = None
        if when is not None:
            self._when = when
            self._timer = self._loop.call_at(when, self._fire)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._on_time()
