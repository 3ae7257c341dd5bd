"""Says when a process runs out of file descriptors: libuv drops whom it accepts without a word.

Source: libuv `src/unix/stream.c`, `uv__emfile_trick`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

EVERY_S = 5.0
REPEAT_S = 60.0
FEW = 0.9
"""Share of the limit from which on few are left."""


def lowest_free() -> int | None:
    """The number that the next descriptor will have; None when there is no more.

    The system takes the lowest, so that about as many are in use.
    """
    try:
        number = os.open(os.devnull, os.O_RDONLY)
    except OSError as exc:
        # ENFILE: the whole system has no more.
        return None if exc.errno in (errno.EMFILE, errno.ENFILE) else 0
    os.close(number)
    return number


class DescriptorWatch:
    """Looks every few seconds, and says when few are left, none, or enough again.

    Args:
        limit: Tells how many the process may have at the moment.
        warn, inform: Write a line.
        probe: As `lowest_free`.
    """

    def __init__(
        self,
        limit: Callable[[], int],
        *,
        warn: Callable[[str], None],
        inform: Callable[[str], None],
        probe: Callable[[], int | None] = lowest_free,
    ) -> None:
        self._limit = limit
        self._warn = warn
        self._inform = inform
        self._probe = probe
        self._loop = asyncio.get_running_loop()
        self._state = ""
        self._told_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(EVERY_S, self._look)
        free, limit = self._probe(), self._limit()
        if free is None:
            state = f"no file descriptors are left of {limit}: new connections are dropped"
        elif free >= limit * FEW:
            state = f"nearly all of the {limit} file descriptors are in use"
        else:
            state = ""
        now = self._loop.time()
        if state and (state != self._state or now >= self._told_at + REPEAT_S):
            self._told_at = now
            self._warn(f"{state}; give it more with LimitNOFILE= in the unit, or `ulimit -n`")
        elif self._state and not state:
            self._inform("there are enough file descriptors again")
        self._state = state
