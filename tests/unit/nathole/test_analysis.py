from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.nathole import analysis
from pyfrp.nathole.analysis import RECEIVER, SENDER, Analyzer, Behavior, ways_for
from pyfrp.nathole.nat import BOTH_CHANGED, EASY, HARD, NO_CHANGE, PORT_CHANGED, Nat

HOUR = 3600.0


def easy(*, public: bool = False) -> Nat:
    return Nat(EASY, NO_CHANGE, 0, public)


def hard(spread: int = 1) -> Nat:
    return Nat(HARD, PORT_CHANGED if spread else BOTH_CHANGED, spread, False)


def modes(client: Nat, visitor: Nat) -> list[int]:
    """The modes of a list, each once, in order."""
    return list(dict.fromkeys(way.mode for way in ways_for(client, visitor)))


@pytest.mark.parametrize(
    ("client", "visitor", "expected"),
    [
        (easy(), easy(), [0]),
        (hard(1), easy(), [1, 2, 0]),
        (easy(), hard(5), [1, 2, 0]),
        (hard(0), easy(), [2, 1, 0]),
        (easy(), hard(6), [2, 1, 0]),
        (hard(1), hard(2), [3, 4]),
        (hard(1), hard(0), [4]),
        (hard(0), hard(9), [0, 1, 3]),
    ],
)
def test_kinds_of_nat_decide_what_is_tried(client, visitor, expected):
    assert modes(client, visitor) == expected
    assert modes(visitor, client) == expected


def test_whoever_is_public_receives():
    first = {way.index: way.score for way in ways_for(easy(public=True), easy())}
    assert first[0] == 0  # The proxy's side sends.
    assert first[1] == 1
    second = {way.index: way.score for way in ways_for(easy(), easy(public=True))}
    assert (second[0], second[1]) == (1, 0)


def test_each_try_costs_a_point_so_that_the_next_way_gets_its_turn():
    analyzer = Analyzer(HOUR)
    tried = [analyzer.choose("k", easy(), easy(), 0.0).index for _ in range(20)]
    assert tried == [*range(10), *range(10)]


def test_what_worked_is_tried_again_first():
    analyzer = Analyzer(HOUR)
    choices = [analyzer.choose("k", easy(), easy(), 0.0) for _ in range(3)]
    analyzer.worked(choices[2], 0.0)
    # Two points up: one try later it is at zero, as those that were not tried, and before them.
    assert [analyzer.choose("k", easy(), easy(), 0.0).index for _ in range(3)] == [2, 2, 3]
    for _ in range(50):
        analyzer.worked(choices[0], 0.0)
    again = [analyzer.choose("k", easy(), easy(), 0.0).index for _ in range(10)]
    assert again == [0] * 10  # No more than ten points.


def test_pairs_of_networks_do_not_share_their_scores():
    analyzer = Analyzer(HOUR)
    assert analyzer.choose("a", easy(), easy(), 0.0).index == 0
    assert analyzer.choose("b", easy(), easy(), 0.0).index == 0


def test_unused_pairs_are_forgotten():
    analyzer = Analyzer(HOUR)
    choice = analyzer.choose("a", easy(), easy(), 0.0)
    analyzer.choose("b", easy(), easy(), HOUR)
    assert len(analyzer) == 2
    analyzer.choose("b", easy(), easy(), HOUR + 1)
    assert len(analyzer) == 1
    analyzer.worked(choice, HOUR + 1)  # Comes late, and means nothing.
    assert analyzer.choose("a", easy(), easy(), HOUR + 1).index == 0


def test_pairs_are_bounded(monkeypatch):
    monkeypatch.setattr(analysis, "MAX_PAIRS", 3)
    analyzer = Analyzer(HOUR)
    for key in "abcad":
        analyzer.choose(key, easy(), easy(), 0.0)
    assert list(analyzer._records) == ["c", "a", "d"]


@pytest.mark.parametrize(
    ("client", "visitor", "role"),
    [
        (hard(1), easy(), SENDER),  # Mode 1: the hard one sends.
        (easy(), hard(1), RECEIVER),
        (hard(0), easy(), RECEIVER),  # Mode 2: the hard one receives.
        (easy(), hard(0), SENDER),
        (hard(1), hard(0), SENDER),  # Mode 4: the one that can be guessed sends.
        (hard(0), hard(1), RECEIVER),
    ],
)
def test_roles_follow_the_nats(client, visitor, role):
    choice = Analyzer(HOUR).choose("k", client, visitor, 0.0)
    assert choice.client.role == role
    assert choice.visitor.role != role


NATS = st.builds(
    Nat,
    st.sampled_from([EASY, HARD]),
    st.just(PORT_CHANGED),
    st.integers(0, 9),
    st.booleans(),
)


@given(NATS, NATS, st.lists(st.booleans(), max_size=60))
def test_there_is_always_a_way_with_a_sender_and_a_receiver(client, visitor, outcomes):
    analyzer = Analyzer(HOUR)
    for worked in outcomes or [True]:
        choice = analyzer.choose("k", client, visitor, 0.0)
        assert {choice.client.role, choice.visitor.role} == {SENDER, RECEIVER}
        if worked:
            analyzer.worked(choice, 0.0)
    assert all(way.score <= analysis.BEST_SCORE for way in analyzer._records["k"].ways)


def test_only_receivers_hide_their_datagrams():
    for mode in analysis.MODES:
        for pair in mode:
            assert {side.role for side in pair} == {SENDER, RECEIVER}
            for side in pair:
                assert isinstance(side, Behavior)
                assert not (side.role == SENDER and (side.ttl or side.listen_ports))
                assert not (side.role == RECEIVER and (side.delay_ms or side.random_ports))
