"""Ways to cut the same bytes, because a decoder must not care how they arrive."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import strategies as st

Cut = Callable[[bytes], list[bytes]]


def _whole(data: bytes) -> list[bytes]:
    return [data]


def _bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def _random(data: bytes) -> list[bytes]:
    rng = random.Random(len(data))
    cuts = [0, *sorted(rng.randrange(len(data) + 1) for _ in range(5)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


three_ways = pytest.mark.parametrize(
    "cut", [_whole, _bytewise, _random], ids=["whole", "bytewise", "random"]
)
"""Runs a test three times, with `cut` cutting bytes in three ways."""


def cut_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut `data` at `places` (taken modulo its length plus one)."""
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


places = st.lists(st.integers(0, 2**16), max_size=8)
"""Where to cut, for `cut_at`."""
