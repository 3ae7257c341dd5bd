"""The search for the largest datagram that a path carries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyfrp.net.quic_path import BEFORE, MOST_LOST, RUNGS, TRIES, PathSize

BASE = 1350


def climb(sizes: PathSize, limit: int) -> list[int]:
    """Send and try on a path that carries so much; what was tried."""
    tried = []
    for _ in range(10_000):
        size = sizes.to_try(BEFORE)
        if size:
            tried.append(size)
            sizes.tried(size, arrived=size <= limit)
    return tried


def test_it_climbs_to_what_the_path_carries():
    sizes = PathSize(BASE, 65_000)
    assert sizes.to_try(BEFORE - 1) == 0
    assert climb(sizes, 1472) == [RUNGS[0], *[RUNGS[1]] * TRIES]
    assert sizes.size == RUNGS[0]
    sizes = PathSize(BASE, 65_000)
    assert climb(sizes, 65_000) == [*RUNGS]
    assert sizes.size == RUNGS[-1]


def test_one_try_at_a_time_and_none_beyond_what_the_peer_takes():
    sizes = PathSize(BASE, 65_000)
    sizes.bound(1452)
    assert sizes.to_try(BEFORE) == 1452
    assert sizes.to_try(BEFORE) == 0
    sizes.tried(1452, arrived=True)
    assert climb(sizes, 65_000) == []
    assert climb(PathSize(BASE, 0), 65_000) == []


def test_a_few_losses_in_a_row_bring_back_the_base_and_it_climbs_again():
    sizes = PathSize(BASE, 65_000)
    climb(sizes, 65_000)
    for _ in range(100):
        assert not sizes.went(RUNGS[-1], arrived=False)
        assert not sizes.went(RUNGS[-1], arrived=True)
    gone = [sizes.went(RUNGS[-1], arrived=False) for _ in range(MOST_LOST)]
    assert gone == [False] * (MOST_LOST - 1) + [True]
    assert sizes.size == BASE
    assert not sizes.went(RUNGS[-1], arrived=False)  # Those that were on their way.
    assert climb(sizes, 9000) == [RUNGS[0], RUNGS[1], *[RUNGS[2]] * TRIES]
    assert sizes.size == RUNGS[1]


def test_a_try_of_before_the_path_changed_proves_nothing():
    sizes = PathSize(BASE, 65_000)
    sizes.tried(sizes.to_try(BEFORE), arrived=True)
    late = sizes.to_try(BEFORE)
    assert late == RUNGS[1]
    assert sizes.give_up()
    assert not sizes.give_up()
    sizes.tried(late, arrived=True)
    assert sizes.size == BASE


@given(st.integers(1200, 65_000), st.lists(st.sampled_from(["send", "arrive", "lose", "quit"])))
def test_it_never_stays_with_more_than_what_was_proved(largest, steps):
    sizes = PathSize(BASE, largest)
    waiting, proved = 0, {BASE}
    for step in steps * 5:
        if step == "send":
            size = sizes.to_try(BEFORE)
            assert not (size and waiting)
            waiting = size or waiting
        elif step == "quit":
            sizes.give_up()
        elif waiting:
            sizes.tried(waiting, arrived=step == "arrive")
            proved |= {waiting} if step == "arrive" else set()
            waiting = 0
        assert sizes.size in proved
        assert sizes.size <= max(BASE, largest)
