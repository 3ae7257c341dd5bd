"""Tasks with an owner."""

from __future__ import annotations

import asyncio

from pyfrp.net.scope import Scope
from tests.support.waiting import until, within
from tests.unit.net.ends import turns


def failing_scope():
    failures = []
    return Scope(lambda exc, name: failures.append((str(exc), name))), failures


async def test_a_failing_task_is_reported_once_and_hurts_no_neighbour():
    scope, failures = failing_scope()
    done = []

    async def fail():
        raise ValueError("broken")

    async def work():
        await turns(5)
        done.append(1)

    scope.spawn(fail(), name="the failing one")
    scope.spawn(work(), name="its neighbour")
    assert len(scope) == 2
    await until(lambda: not len(scope), "the tasks to end")
    assert failures == [("broken", "the failing one")]
    assert done == [1]
    await scope.close()


async def test_closing_cancels_and_waits_for_all():
    scope, failures = failing_scope()
    cleaned = []

    async def work(number):
        try:
            await asyncio.Event().wait()
        finally:
            await turns(number)
            cleaned.append(number)

    for number in range(3):
        scope.spawn(work(number), name=f"task {number}")
    await turns(2)
    await within(scope.close(), 5, "the scope to close")
    assert sorted(cleaned) == [0, 1, 2]
    assert len(scope) == 0
    assert failures == []


async def test_a_closed_scope_starts_nothing_and_warns_of_nothing():
    scope, _ = failing_scope()
    await scope.close()
    started = []

    async def work():
        started.append(1)

    scope.spawn(work(), name="too late")
    await turns()
    assert started == []
    assert len(scope) == 0


async def test_a_task_may_close_its_own_scope():
    scope, failures = failing_scope()
    seen = []

    async def close():
        await scope.close()
        seen.append("closed")

    scope.spawn(close(), name="closer")
    scope.spawn(asyncio.Event().wait(), name="other")
    await until(lambda: not len(scope), "the scope to end")
    # It was cancelled like the rest, at its next suspension or not at all.
    assert seen in ([], ["closed"])
    assert failures == []


async def test_a_task_that_fails_while_it_is_cancelled_is_reported():
    scope, failures = failing_scope()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("on the way out")

    scope.spawn(work(), name="sore loser")
    await turns(2)
    await scope.close()
    await turns(2)
    assert failures == [("on the way out", "sore loser")]


async def test_tasks_have_their_names():
    scope, _ = failing_scope()
    names = []

    async def work():
        names.append(asyncio.current_task().get_name())

    scope.spawn(work(), name="link 7")
    await until(lambda: names, "the task to run")
    assert names == ["link 7"]


async def test_cancelling_without_waiting_takes_no_new_tasks():
    scope, _ = failing_scope()
    scope.spawn(asyncio.Event().wait(), name="waiting")
    scope.cancel()
    scope.spawn(asyncio.Event().wait(), name="late")
    await until(lambda: not len(scope), "the tasks to end")
