"""Cancelling a coroutine at each point where it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Interrupted(Generic[T]):
    """Awaits a coroutine, and cancels its task at one of the points where it waits.

    Args:
        at: At which, counted from 1.
        late: Only when what it waits for has come, and the task has not gone on yet.

    Attributes:
        points: How many have been met.
    """

    def __init__(self, coro: Coroutine[Any, Any, T], at: int, *, late: bool) -> None:
        self.points = 0
        self._coro = coro
        self._at = at
        self._late = late

    def start(self) -> asyncio.Task[T]:
        """The task."""

        async def wait() -> T:
            return await self

        return asyncio.get_running_loop().create_task(wait())

    def __await__(self) -> Generator[Any, None, T]:
        task = asyncio.current_task()
        assert task is not None
        inner = self._coro.__await__()
        step: Callable[[], Any] = partial(inner.send, None)
        while True:
            try:
                waits_for = step()
            except StopIteration as stop:
                return cast("T", stop.value)
            self.points += 1
            if self.points == self._at:
                if self._late and waits_for is not None:
                    waits_for.add_done_callback(lambda _: task.cancel())
                else:
                    asyncio.get_running_loop().call_soon(task.cancel)
            try:
                yield waits_for
            except BaseException as exc:
                step = partial(inner.throw, exc)
            else:
                step = partial(inner.send, None)
