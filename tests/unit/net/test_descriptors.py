"""What is said of file descriptors that run out, and when."""

from __future__ import annotations

import os
import resource

import pytest

from pyfrp.net import descriptors
from pyfrp.net.descriptors import DescriptorWatch, lowest_free
from tests.support.waiting import until


class Watched:
    """A watch on a number that the test sets, and what it said."""

    def __init__(self) -> None:
        self.free: int | None = 10
        self.said: list[str] = []
        self.watch = DescriptorWatch(
            lambda: 100,
            warn=lambda text: self.said.append(f"W {text}"),
            inform=lambda text: self.said.append(f"I {text}"),
            probe=lambda: self.free,
        )

    def look(self, free: int | None) -> list[str]:
        """What it says when the lowest free descriptor is this one."""
        self.free = free
        self.said.clear()
        self.watch.close()  # The timer would look a second time.
        self.watch._look()
        return self.said


@pytest.fixture
async def watched():
    watched = Watched()
    yield watched
    watched.watch.close()


async def test_nothing_is_said_while_there_are_enough(watched: Watched):
    assert watched.look(89) == []


async def test_few_none_and_enough_again_are_said_once_each(watched: Watched):
    (few,) = watched.look(90)
    assert few.startswith("W nearly all of the 100 file descriptors are in use; ")
    assert watched.look(95) == []
    (none,) = watched.look(None)
    assert none.startswith("W no file descriptors are left of 100: new connections are dropped; ")
    assert "LimitNOFILE=" in none
    assert watched.look(None) == []
    assert watched.look(20) == ["I there are enough file descriptors again"]
    assert watched.look(20) == []


async def test_what_lasts_is_said_again(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(descriptors, "REPEAT_S", 0.0)
    assert watched.look(None) == watched.look(None) != []


async def test_it_looks_again_and_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(descriptors, "EVERY_S", 0.001)
    watched = Watched()
    watched.free = None
    try:
        await until(lambda: watched.said, "a warning")
        watched.free = 5
        await until(lambda: len(watched.said) == 2, "the word that it is over")
    finally:
        watched.watch.close()


def test_the_lowest_free_descriptor_is_found():
    number = lowest_free()
    assert number is not None
    assert number == lowest_free()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_none_is_found_at_the_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = lowest_free()
    assert number is not None
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        assert lowest_free() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
