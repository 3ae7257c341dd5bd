"""Groups: who shares a door, whose turn it is, and when the door closes."""

from __future__ import annotations

import asyncio
import functools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from pyfrp.errors import RefusedError
from pyfrp.server.groups import DOUBT_S, Door, Group, Groups
from pyfrp.wire.messages import NewProxy


def made(*members):
    """A group, and a clock that the test moves."""
    now = [0.0]
    group = Group(lambda: now[0])
    group.members.extend(members)
    return group, now


def wanted(group="g", key="k", proxy_type="tcp"):
    return NewProxy(proxy_name="p", proxy_type=proxy_type, group=group, group_key=key)


class Doors:
    """Opens doors and keeps which are open."""

    def __init__(self):
        self.open = []
        self.opened = 0
        self.refusal = None
        self.wait = None

    async def __call__(self, group):
        if self.wait is not None:
            await self.wait.wait()
        if self.refusal is not None:
            raise self.refusal
        self.opened += 1
        self.open.append(group)
        return Door(lambda: self.open.remove(group), port=6000 + self.opened)


# -- turns --------------------------------------------------------------------------------------


def test_members_take_turns_and_the_second_begins_as_with_frp():
    group, _ = made("a", "b", "c")
    assert [group.pick() for _ in range(7)] == ["b", "c", "a", "b", "c", "a", "b"]


def test_nobody_is_picked_twice_for_one_user():
    group, _ = made("a", "b", "c")
    tried = ()
    for _ in range(3):
        tried += (group.pick(tried),)
    assert sorted(tried) == ["a", "b", "c"]
    assert group.pick(tried) is None


def test_an_empty_group_has_nobody():
    group, _ = made()
    assert group.pick() is None


def test_a_member_that_failed_is_passed_over_for_a_while():
    group, now = made("a", "b")
    assert group.doubt("a")
    assert not group.doubt("a")
    assert {group.pick() for _ in range(6)} == {"b"}
    now[0] += DOUBT_S
    assert {group.pick() for _ in range(6)} == {"a", "b"}
    assert not group._doubted


def test_members_that_all_failed_are_picked_all_the_same():
    group, _ = made("a", "b")
    group.doubt("a")
    group.doubt("b")
    assert {group.pick() for _ in range(6)} == {"a", "b"}
    assert group.pick(("a",)) == "b"


def test_a_doubt_goes_with_its_member():
    group, _ = made("a", "b")
    group.doubt("a")
    group.remove("a")
    assert not group.doubt("a")  # The failure of one who has left.
    assert not group._doubted


# -- joining ------------------------------------------------------------------------------------


async def test_the_first_opens_the_door_and_the_last_closes_it():
    doors, groups = Doors(), Groups(lambda: 0.0)
    first, second = [await groups.join(wanted(), m, doors, 1) for m in "ab"]
    assert first.group is second.group
    assert first.door is second.door
    assert doors.opened == 1
    first.leave()
    assert len(doors.open) == len(groups) == 1
    second.leave()
    assert not doors.open
    assert not len(groups)


async def test_without_a_group_everybody_has_a_door_of_his_own():
    doors, groups = Doors(), Groups(lambda: 0.0)
    entrances = [await groups.join(wanted(""), m, doors, 1) for m in "ab"]
    assert len(doors.open) == 2
    assert not len(groups)
    for entrance in entrances:
        entrance.leave()
    assert not doors.open


async def test_terms_are_looked_at_before_the_key():
    doors, groups = Doors(), Groups(lambda: 0.0)
    await groups.join(wanted(), "a", doors, 1)
    for key, terms, text in [
        ("x", 2, "group params invalid"),
        ("x", 1, "group auth failed"),
        ("\ud800", 1, "group auth failed"),
        ("k", 1, None),
        ("k", 1, "group proxy repeated"),
    ]:
        if text is None:
            await groups.join(wanted(key=key), "b", doors, terms)
            continue
        with pytest.raises(RefusedError, match=f"^{text}$"):
            await groups.join(wanted(key=key), "b", doors, terms)
    with pytest.raises(RefusedError, match=r"^other words$"):
        await groups.join(wanted(), "c", doors, 2, mismatch="other words")
    assert doors.opened == 1


async def test_each_type_has_names_of_its_own():
    doors, groups = Doors(), Groups(lambda: 0.0)
    await groups.join(wanted(), "a", doors, 1)
    await groups.join(wanted(proxy_type="https", key="other"), "b", doors, 2)
    assert doors.opened == len(groups) == 2


async def test_a_door_that_does_not_open_leaves_the_name_to_the_next():
    doors, groups = Doors(), Groups(lambda: 0.0)
    doors.refusal = RefusedError("port unavailable")
    with pytest.raises(RefusedError, match=r"^port unavailable$"):
        await groups.join(wanted(key="theirs"), "a", doors, 1)
    assert not len(groups)
    doors.refusal = None
    await groups.join(wanted(key="ours"), "b", doors, 2)


async def test_who_comes_while_the_door_opens_waits_and_shares_it():
    doors, groups = Doors(), Groups(lambda: 0.0)
    doors.wait = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        joining = [tasks.create_task(groups.join(wanted(), m, doors, 1)) for m in "abc"]
        await asyncio.sleep(0)
        joining[1].cancel()  # His client is lost meanwhile.
        doors.wait.set()
    assert doors.opened == 1
    assert joining[0].result().group.members == ["a", "c"]


# -- any order of events ------------------------------------------------------------------------


def now_done(coro):
    """The result of a coroutine that waits for nothing."""
    try:
        coro.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Comings(RuleBasedStateMachine):
    """Joins, leaves, picks and doubts against a plain model."""

    entrances = Bundle("entrances")

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.groups = Groups(lambda: self.now)
        self.model = {}  # (type, group) -> (terms, key, members in order)
        self.doors = {}  # Door number -> its group
        self.count = 0
        self.doubts = {}  # Member -> until

    async def open(self, number, group):
        self.doors[number] = group
        return Door(functools.partial(self.doors.pop, number), number)

    @rule(
        target=entrances,
        kind=st.sampled_from(["tcp", "http"]),
        name=st.sampled_from(["", "g", "h"]),
        key=st.sampled_from(["k", "l"]),
        terms=st.integers(1, 2),
    )
    def join(self, kind, name, key, terms):
        self.count += 1
        member = self.count
        known = self.model.get((kind, name)) if name else None
        coro = self.groups.join(
            wanted(name, key, kind), member, functools.partial(self.open, member), terms
        )
        if known is not None and (known[0] != terms or known[1] != key):
            text = "group params invalid" if known[0] != terms else "group auth failed"
            with pytest.raises(RefusedError, match=text):
                now_done(coro)
            return multiple()
        entrance = now_done(coro)
        if known is None:
            assert self.doors[member] is entrance.group  # It opened a door.
            known = (terms, key, [])
            if name:
                self.model[kind, name] = known
        else:
            assert member not in self.doors
        known[2].append(member)
        return entrance, member, (kind, name), known[2]

    @rule(entry=consumes(entrances))
    def leave(self, entry):
        entrance, member, name, members = entry
        entrance.leave()
        members.remove(member)
        if not members:
            assert entrance.door.port not in self.doors
            self.model.pop(name, None) if name[1] else None
        else:
            assert entrance.door.port in self.doors

    @rule(entry=entrances)
    def doubt(self, entry):
        entry[0].group.doubt(entry[1])
        self.doubts[entry[1]] = self.now + DOUBT_S

    @rule(seconds=st.floats(0, 2 * DOUBT_S))
    def wait(self, seconds):
        self.now += seconds

    @rule(entry=entrances, data=st.data())
    def pick(self, entry, data):
        entrance, _, _, members = entry
        tried = data.draw(st.lists(st.sampled_from(members), unique=True))
        picked = entrance.group.pick(tuple(tried))
        left = [m for m in members if m not in tried]
        good = [m for m in left if self.doubts.get(m, 0.0) <= self.now]
        assert (picked in (good or left)) if left else picked is None

    @rule(entry=entrances)
    def take_turns(self, entry):
        entrance, _, _, members = entry
        good = {m for m in members if self.doubts.get(m, 0.0) <= self.now} or set(members)
        assert {entrance.group.pick() for _ in members} == good

    @invariant()
    def everybody_has_one_place(self):
        assert len(self.groups) == len(self.model)
        for _, _, members in self.model.values():
            assert members
            assert [g.members for g in self.doors.values()].count(members) == 1


Comings.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestComings = Comings.TestCase
