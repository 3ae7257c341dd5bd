"""When a process gives way to what wakes it, and when no longer."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.net import moderation
from pyfrp.net.moderation import FEW, MANY, Moderation, WakeupModeration, wakeups
from tests.support.waiting import until

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the policy")


@pytest.mark.parametrize(
    ("rates", "decisions"),
    [
        ([0, MANY - 1], [False, False]),
        ([MANY], [True]),
        ([MANY, FEW], [True, True]),
        ([MANY, FEW - 1], [True, False]),
        ([MANY, FEW - 1, MANY - 1, MANY], [True, False, False, True]),
    ],
)
def test_many_wakeups_begin_it_and_few_end_it(rates: list[float], decisions: list[bool]):
    count, now = 1000, 50.0
    decided = Moderation(count, now)
    before = False
    for rate, decision in zip(rates, decisions, strict=True):
        count, now = count + int(rate * 2), now + 2.0
        assert decided.look(count, now) is (decision != before)
        assert decided.giving_way is decision
        before = decision


def test_two_looks_at_the_same_moment_are_one():
    decided = Moderation(0, 1.0)
    assert not decided.look(10_000, 1.0)
    assert not decided.giving_way
    assert decided.look(10_000, 2.0), "what came before the moment counts after it"


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 100)), max_size=50))
def test_a_change_is_told_once_and_only_a_change(steps: list[tuple[int, float]]):
    decided = Moderation(0, 0.0)
    count, now = 0, 0.0
    for more, elapsed in steps:
        before = decided.giving_way
        count, now = count + more, now + elapsed
        assert decided.look(count, now) == (decided.giving_way != before)


class Woken:
    """A thread that is woken as often as the test says, and the policies it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refused: bool = False) -> None:
        monkeypatch.setattr(moderation, "EVERY_S", 0.001)
        self.more = 0
        self.policies: list[int] = []
        self.looks = 0
        self._count = 0
        self._refused = refused
        self.moderation = WakeupModeration(self._counted, self._set)

    def _counted(self) -> int:
        self.looks += 1
        self._count += self.more
        return self._count

    def _set(self, policy: int) -> None:
        self.policies.append(policy)
        if self._refused:
            raise PermissionError("a container's rule")


@linux
async def test_the_policy_follows_the_wakeups(monkeypatch: pytest.MonkeyPatch):
    woken = Woken(monkeypatch)
    try:
        await until(lambda: woken.looks > 2, "some looks")
        assert woken.policies == []
        woken.more = 10_000
        await until(lambda: woken.policies == [os.SCHED_BATCH], "the way given")
        woken.more = 0
        await until(lambda: woken.policies == [os.SCHED_BATCH, os.SCHED_OTHER], "the way taken")
    finally:
        woken.moderation.close()


@linux
async def test_a_refused_policy_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    woken = Woken(monkeypatch, refused=True)
    woken.more = 10_000
    await until(lambda: woken.policies, "the try")
    assert woken.moderation._timer is None
    assert woken.policies == [os.SCHED_BATCH]


@linux
async def test_a_policy_of_the_administrator_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_IDLE)
    woken = Woken(monkeypatch)
    assert woken.moderation._timer is None
    assert woken.looks == 0


async def test_a_system_without_the_policy_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "SCHED_BATCH", raising=False)
    woken = Woken(monkeypatch)
    assert woken.moderation._timer is None
    woken.moderation.close()


@linux
async def test_wakeups_are_counted():
    before = wakeups()
    await until(lambda: wakeups() > before + 3, "this thread to have slept a few times")
