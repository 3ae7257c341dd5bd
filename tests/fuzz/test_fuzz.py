"""Each target for a moment, with the other tests; `make fuzz` runs them for longer."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from tests.fuzz.engine import Failure, Mutator, Target, cut, fuzz, once
from tests.fuzz.targets import TARGETS

SECONDS = float(os.environ.get("PYFRP_FUZZ_SECONDS", "1"))


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_makes_a_decoder_fail(name):
    report = fuzz(TARGETS[name], SECONDS, random.SystemRandom().randrange(2**32))
    assert report.runs >= len(TARGETS[name].seeds)
    assert report.behaviours


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_starts_from_input_that_is_understood(name):
    target = TARGETS[name]
    assert target.seeds
    assert [once(target, seed, 7) for seed in target.seeds]


# -- the engine itself --------------------------------------------------------------------------


def bomb(data, rng):
    if b"\xde\xad" in data:
        raise KeyError("bomb")
    return len(data) // 10


def test_a_failure_is_found_shrunk_and_told():
    target = Target("bomb", bomb, [b"x" * 50, b"\xde" + b"y" * 50], [b"\xad"])
    with pytest.raises(Failure) as caught:
        fuzz(target, 20.0, seed=1)
    assert caught.value.data == b"\xde\xad"
    assert "KeyError" in str(caught.value)
    assert "--input dead bomb" in str(caught.value)


def test_a_failure_in_a_callback_of_the_loop_is_found():
    async def later(data, rng):
        asyncio.get_running_loop().call_soon(bomb, data, rng)
        await asyncio.sleep(0)

    with pytest.raises(Failure):
        fuzz(Target("later", later, [b"\xde\xad"]), 0.0, seed=1)


def test_the_same_seed_varies_in_the_same_way():
    target = Target("t", bomb, [b"hello"], [b"token"])
    made = [
        [Mutator(target, random.Random(5)).vary(b"hello", [b"hello"]) for _ in range(3)]
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_cutting_loses_and_adds_nothing():
    rng = random.Random(3)
    for size in (0, 1, 2, 10, 5000):
        data = rng.randbytes(size)
        for _ in range(50):
            pieces = cut(data, rng)
            assert b"".join(pieces) == data
            assert all(pieces)
