"""Which remote ports proxies may have, have, and had."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import RefusedError
from pyfrp.server import ports as module
from pyfrp.server.ports import KEEP_S, RANDOM_TRIES, PortManager


def test_a_given_port_is_the_only_candidate():
    assert PortManager([]).candidates("a", 6000, 0) == [6000]


def test_a_port_that_is_taken_is_refused_in_frps_words():
    ports = PortManager([])
    ports.take("a", 6000)
    with pytest.raises(RefusedError, match=r"^port already used$"):
        ports.candidates("b", 6000, 0)
    ports.release("a", 6000, 0)
    assert ports.candidates("b", 6000, 0) == [6000]


@pytest.mark.parametrize("port", [5999, 6011, 7000, -1, 65536, 2**31, 2**63 - 1, -(2**63)])
def test_a_port_outside_of_the_allowed_is_refused_in_frps_words(port):
    ports = PortManager([(6000, 6010), (7001, 7001)])
    with pytest.raises(RefusedError, match=r"^port not allowed$"):
        ports.candidates("a", port, 0)


@pytest.mark.parametrize("port", [6000, 6005, 6010, 7001])
def test_ranges_include_both_ends(port):
    assert PortManager([(6000, 6010), (7001, 7001)]).candidates("a", port, 0) == [port]


@pytest.mark.parametrize("port", [-1, 65536, 2**40])
def test_no_range_allows_no_port_beyond_tcps(port):
    with pytest.raises(RefusedError):
        PortManager([]).candidates("a", port, 0)


def test_a_random_port_is_free_allowed_and_one_of_several():
    ports = PortManager([(6000, 6009)])
    for port in range(6000, 6005):
        ports.take("x", port)
    found = ports.candidates("a", 0, 0)
    assert found
    assert len(found) == len(set(found)) <= RANDOM_TRIES + 1
    assert set(found) <= set(range(6005, 6010))


def test_no_port_left_is_refused_in_frps_words():
    ports = PortManager([(6000, 6001)])
    ports.take("x", 6000)
    ports.take("y", 6001)
    with pytest.raises(RefusedError, match=r"^no available port$"):
        ports.candidates("a", 0, 0)


def test_a_name_gets_its_random_port_again_for_a_day():
    ports = PortManager([])
    ports.take("a", 6000)
    ports.release("a", 6000, 100)
    assert ports.candidates("a", 0, 100 + KEEP_S)[0] == 6000
    random.seed(1)
    assert ports.candidates("a", 0, 101 + KEEP_S)[0] != 6000
    # Not when somebody else has it, nor for another name.
    ports.take("b", 6000)
    assert 6000 not in ports.candidates("a", 0, 100)


def test_only_so_many_names_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    ports = PortManager([])
    for number in range(10):
        ports.take(f"p{number}", 6000 + number)
        ports.release(f"p{number}", 6000 + number, 0)
    assert len(ports._remembered) == 3
    assert ports._used == {}
    assert ports.candidates("p9", 0, 1)[0] == 6009


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20)), max_size=4),
    st.lists(st.integers(1, 120), max_size=60),
)
def test_candidates_are_always_allowed_and_free(ranges, taken):
    allowed = [(low, low + more) for low, more in ranges]
    ports = PortManager(allowed)
    for port in taken:
        ports.take("x", port)
    legal = {p for low, high in allowed for p in range(low, high + 1)} or set(range(1, 65536))
    try:
        found = ports.candidates("a", 0, 0)
    except RefusedError:
        assert len(legal - set(taken)) <= len(legal) // 2
    else:
        assert set(found) <= legal - set(taken)
