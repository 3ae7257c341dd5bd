"""Waiting for conditions, always with a limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

# How long anything that should be prompt may take on a machine that is busy with other things.
PATIENCE_S = 15.0
STEP_S = 0.01


async def until(
    condition: Callable[[], T | None],
    what: str,
    limit_s: float = PATIENCE_S,
    step_s: float = STEP_S,
) -> T:
    """Wait until `condition()` is true and return what it gave.

    Raises:
        AssertionError: when it is still false after `limit_s`; the text names `what`.
    """
    deadline = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        await asyncio.sleep(step_s)


async def until_async(
    condition: Callable[[], Awaitable[T | None]],
    what: str,
    limit_s: float = PATIENCE_S,
    step_s: float = 0.05,
) -> T:
    """Like `until`, for a condition that has to be awaited itself."""
    deadline = time.monotonic() + limit_s
    while True:
        found = await condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        await asyncio.sleep(step_s)


async def within(awaitable: Awaitable[T], limit_s: float, what: str) -> T:
    """Await with a limit; running out of time is a failed assertion that names `what`."""
    try:
        async with asyncio.timeout(limit_s):
            return await awaitable
    except TimeoutError:
        raise AssertionError(f"not within {limit_s:g} s: {what}") from None


async def all_of(jobs: Iterable[Coroutine[Any, Any, T]], limit_s: float = 60.0) -> list[T]:
    """Run jobs side by side; the first failure cancels the rest and is raised as it was."""
    try:
        async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except TimeoutError:
        raise AssertionError(f"the jobs did not all end within {limit_s:g} s") from None
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from failures
    return [task.result() for task in tasks]
