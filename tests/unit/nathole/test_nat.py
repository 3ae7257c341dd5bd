from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.nathole import nat

HOSTS = st.ip_addresses(v=4).map(str)
PORTS = st.integers(0, 65535)


@pytest.mark.parametrize(
    ("mapped", "kind", "behavior", "spread", "regular"),
    [
        (["1.1.1.1:5", "1.1.1.1:5"], nat.EASY, nat.NO_CHANGE, 0, False),
        (["1.1.1.1:5", "2.2.2.2:5"], nat.HARD, nat.IP_CHANGED, 0, False),
        (["1.1.1.1:5", "1.1.1.1:6"], nat.HARD, nat.PORT_CHANGED, 1, True),
        (["1.1.1.1:5", "1.1.1.1:10"], nat.HARD, nat.PORT_CHANGED, 5, True),
        (["1.1.1.1:5", "1.1.1.1:11"], nat.HARD, nat.PORT_CHANGED, 6, False),
        (["1.1.1.1:7", "1.1.1.1:5", "1.1.1.1:9"], nat.HARD, nat.PORT_CHANGED, 4, True),
        (["1.1.1.1:5", "2.2.2.2:6"], nat.HARD, nat.BOTH_CHANGED, 0, False),
        (["[::1]:5", "[::1]:5"], nat.EASY, nat.NO_CHANGE, 0, False),
    ],
)
def test_nat_is_told_by_what_changes(mapped, kind, behavior, spread, regular):
    found = nat.classify(mapped, [])
    assert (found.kind, found.behavior, found.spread) == (kind, behavior, spread)
    assert found.regular is regular


def test_nat_is_public_when_an_outer_address_is_the_machines_own():
    mapped = ["1.1.1.1:5", "2.2.2.2:5"]
    assert nat.classify(mapped, ["2.2.2.2"]).public
    assert not nat.classify(mapped, ["3.3.3.3"]).public


@pytest.mark.parametrize("mapped", [[], ["1.1.1.1:1"]])
def test_one_address_tells_nothing(mapped):
    with pytest.raises(ValueError, match=r"^not enough addresses$"):
        nat.classify(mapped, [])


@pytest.mark.parametrize(
    "address",
    ["", "1.2.3.4", ":5", "host:5", "1.2.3.4:x", "1.2.3.4:-1", "1.2.3.4:65536", "::1:5", "[::1]"],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="no IP address and port"):
        nat.split_address(address)
    assert nat.hosts_of([address, "9.9.9.9:9", "9.9.9.9:8"]) == ["9.9.9.9"]


@given(st.text(max_size=70))
def test_garbage_is_refused_with_a_short_text(address):
    try:
        nat.split_address(address)
    except ValueError as exc:
        said = str(exc)
    else:
        said = ""
    assert len(said) < 120


@given(st.lists(st.tuples(HOSTS, PORTS), min_size=2, max_size=6))
def test_easy_means_that_all_saw_the_same(pairs):
    found = nat.classify([f"{host}:{port}" for host, port in pairs], [])
    assert (found.kind == nat.EASY) == (len(set(pairs)) == 1)
    assert 0 <= found.spread <= 65535
