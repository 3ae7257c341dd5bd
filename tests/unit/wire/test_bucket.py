"""Credit by the second: nobody exceeds it, and nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.wire.bucket import LEAST_BYTES, SLICE_S, Bucket

RATES = st.sampled_from([1, 7, 1000, 10_240, 1_048_576, 500_000_000])


class Source:
    """Somebody with bytes to send; notes when it could send how many."""

    def __init__(self, bucket: Bucket, turns: list[Source]) -> None:
        self.bucket = bucket
        self.turns = turns
        self.held = 0
        self.now = 0.0
        self.sent: list[tuple[float, int]] = []

    def send(self, size: int) -> None:
        granted = 0 if self.held else self.bucket.take(size, self.now)
        if granted:
            self.sent.append((self.now, granted))
        if granted < size:
            self.held += size - granted
            self.bucket.join(self)

    def release(self, size: int) -> None:
        assert 0 < size <= self.held
        self.held -= size
        self.sent.append((self.now, size))
        self.turns.append(self)
        if self.held:
            self.bucket.join(self)

    @property
    def total(self) -> int:
        return sum(size for _, size in self.sent)


class Scene:
    """A bucket, its users, and a clock."""

    def __init__(self, rate: int, users: int) -> None:
        self.rate = rate
        self.bucket = Bucket(rate, 0.0)
        self.turns: list[Source] = []  # Who was served, in order.
        self.users = [Source(self.bucket, self.turns) for _ in range(users)]
        self.now = 0.0

    def go_to(self, now: float) -> None:
        """Let time pass, and wake the bucket as it asks for."""
        while (due := self.bucket.wake_at(self.now)) is not None and due <= now:
            self._set(due)
            self.bucket.serve(due)
        self._set(now)

    def _set(self, now: float) -> None:
        self.now = now
        for user in self.users:
            user.now = now

    def sent(self) -> list[tuple[float, int]]:
        return sorted(item for user in self.users for item in user.sent)


def test_a_second_of_rest_gives_a_seconds_bytes_at_once():
    bucket = Bucket(1000, 5.0)
    assert bucket.take(1000, 5.0) == 1000
    assert bucket.take(1, 5.0) == 0
    assert bucket.take(1000, 6.0) == 1000
    # More than that is not saved up.
    assert bucket.take(4000, 66.0) == 1000


def test_credit_for_a_part_is_given_if_the_part_is_worth_it():
    bucket = Bucket(100_000, 0.0)
    assert bucket.take(99_000, 0.0) == 99_000
    assert bucket.take(1001, 0.0) == 0  # Less than LEAST_BYTES is left.
    assert bucket.take(1000, 0.0) == 1000
    assert bucket.take(5000, LEAST_BYTES / 100_000) == LEAST_BYTES


def test_nobody_overtakes_those_who_wait():
    scene = Scene(1000, 2)
    first, second = scene.users
    first.send(1500)
    assert (first.total, first.held) == (1000, 500)
    scene.go_to(0.3)
    second.send(1)
    assert second.held == 1
    scene.go_to(0.6)
    assert (first.held, second.held) == (0, 0)


def test_one_who_leaves_waits_no_longer():
    scene = Scene(1000, 2)
    first, second = scene.users
    for user in scene.users:
        user.send(1000)
    scene.bucket.leave(second)
    scene.bucket.leave(first)
    assert not scene.bucket
    assert scene.bucket.wake_at(0.0) is None
    scene.bucket.serve(3.0)
    assert second.sent == []


def test_wake_ups_are_as_rare_as_they_can_be():
    for rate in (1, 1000, 10**6, 10**9):
        scene = Scene(rate, 3)
        for user in scene.users:
            user.send(2 * rate)
        due = scene.bucket.wake_at(0.0)
        assert due is not None
        assert due >= SLICE_S


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("rate", [1000, 100_000, 10**8])
def test_all_of_the_rate_is_used_and_shared_fairly(rate, count):
    scene = Scene(rate, count)
    for user in scene.users:
        user.send(20 * rate)
    scene.go_to(10.0)
    totals = [user.total for user in scene.users]
    spare = max(LEAST_BYTES, rate * SLICE_S)
    assert abs(sum(totals) - 11 * rate) <= 2 * spare
    # The first one had the whole burst.
    later = [total - user.sent[0][1] for total, user in zip(totals[:1], scene.users, strict=False)]
    assert max([*later, *totals[1:]]) - min([*later, *totals[1:]]) <= 2 * spare


@given(
    RATES,
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(1, 300_000),
            st.sampled_from([0.0, 1e-6, 0.004, SLICE_S, 0.3, 3.0]),
        ),
        max_size=40,
    ),
)
def test_no_stretch_of_time_gets_more_than_the_rate_and_one_burst(rate, script):
    scene = Scene(rate, 5)
    for index, size, pause_s in script:
        scene.users[index].send(size)
        scene.go_to(scene.now + pause_s)
    sent = scene.sent()
    for start in range(len(sent)):
        total = 0
        for when, size in sent[start:]:
            total += size
            assert total <= rate + rate * (when - sent[start][0]) + 1e-6 * rate + 1


@given(RATES, st.lists(st.integers(1, 50_000), min_size=1, max_size=20))
def test_everybody_who_waits_has_a_turn_before_anybody_has_a_second(rate, sizes):
    scene = Scene(rate, len(sizes))
    assert scene.bucket.take(rate, 0.0) == rate
    for user, size in zip(scene.users, sizes, strict=True):
        user.send(size)
    while not all(user.sent for user in scene.users):
        due = scene.bucket.wake_at(scene.now)
        assert due is not None
        scene.go_to(due)
    assert scene.turns[: len(sizes)] == scene.users
    # Each turn is short, so that the last one comes soon.
    longest_s = max(LEAST_BYTES / rate, SLICE_S)
    assert scene.now <= len(sizes) * longest_s * 1.001 + SLICE_S


@given(RATES, st.lists(st.integers(1, 100_000), min_size=1, max_size=8))
def test_what_was_sent_once_goes_out_in_the_time_that_the_rate_needs(rate, sizes):
    scene = Scene(rate, len(sizes))
    assert scene.bucket.take(rate, 0.0) == rate
    sizes = [min(size, 50 * rate) for size in sizes]
    for user, size in zip(scene.users, sizes, strict=True):
        user.send(size)
    least_s = sum(sizes) / rate
    scene.go_to(least_s * 1.001 + (len(sizes) + 1) * SLICE_S)
    assert [user.total for user in scene.users] == sizes
    assert scene.sent()[-1][0] >= least_s * 0.999
