"""Parity: made as official peers make it, used to make what was lost, and not believed blindly."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfrp.wire import kcp
from pyfrp.wire.kcp import DATA_SHARDS, GROUP, PUSH, Segment
from pyfrp.wire.kcp_fec import KEPT, MAX_FAULTS, STALE_S, WRAP, Protection, Recovery, recover
from pyfrp.wire.kcp_session import KcpSession
from tests.unit.wire.test_kcp_session import Net

CONV = 7


def body(number: int, size: int = 40) -> bytes:
    data = random.Random(number).randbytes(size)
    return kcp.encode_segments([Segment(CONV, PUSH, sn=number, data=data)])


def stream(count: int, *, skipped=(), official=False) -> list[tuple[int, bytes]]:
    """Numbered datagrams with parity.

    Args:
        skipped: Groups without it.
        official: Whether numbers do not advance then, as with kcp-go 5.6.13.
    """
    made: list[tuple[int, bytes]] = []
    seqid = 0
    group: list[bytes] = []
    for number in range(count):
        datagram = kcp.encode_data(seqid, body(number, 20 + number % 30))
        made.append((seqid, datagram))
        group.append(datagram)
        seqid += 1
        if len(group) == DATA_SHARDS:
            if number // DATA_SHARDS not in skipped:
                for at, shard in enumerate(kcp.parity([data[6:] for data in group])):
                    made.append((seqid + at, kcp.encode_parity(seqid + at, shard)))
                seqid += 3
            elif not official:
                seqid += 3
            group = []
    return made


def received(recovery: Recovery, datagrams) -> list[bytes]:
    return [made for seqid, data in datagrams for made in recovery.note(seqid, data)]


@given(st.sets(st.integers(0, GROUP - 1), max_size=3))
def test_any_three_of_a_group_may_be_lost(lost):
    datagrams = [item for item in stream(20) if item[0] - GROUP not in lost]
    made = received(Recovery(CONV), datagrams)
    assert sorted(made) == sorted(body(10 + n, 20 + (10 + n) % 30) for n in lost if n < 10)


def test_four_of_a_group_are_too_many():
    datagrams = [item for item in stream(10) if item[0] not in (1, 4, 8, 11)]
    assert received(Recovery(CONV), datagrams) == []


@given(st.booleans(), st.sets(st.integers(0, 29)), st.integers(0, 2**32), st.floats(0.02, 0.4))
@settings(max_examples=150, deadline=None)
def test_nothing_is_made_that_was_not_sent(official, skipped, seed, loss):
    """Members of different groups would make what looks right: equal bytes are equal in parity."""
    dice = random.Random(seed)
    datagrams = stream(300, skipped=skipped, official=official)
    sent = {kcp.decode_datagram(data).body for _, data in datagrams if data[4] == 0xF1}
    kept = [item for item in datagrams if dice.random() >= loss]
    for at in range(len(kept) - 1):
        if dice.random() < 0.1:
            kept[at], kept[at + 1] = kept[at + 1], kept[at]
    assert set(received(Recovery(CONV), kept)) <= sent


@pytest.mark.parametrize("official", [True, False])
def test_groups_without_parity_do_not_confuse_those_after(official):
    datagrams = stream(60, skipped={1, 3}, official=official)
    wanted = [number for number, (_, data) in enumerate(datagrams) if data[4] == 0xF1]
    for place in (2, 9):
        # One of each group that has parity.
        lost = {wanted[group * 10 + place] for group in (0, 2, 4, 5)}
        kept = [item for at, item in enumerate(datagrams) if at not in lost]
        made = received(Recovery(CONV), kept)
        assert sorted(made) == sorted(
            body(group * 10 + place, 20 + (group * 10 + place) % 30) for group in (0, 2, 4, 5)
        )


def test_what_comes_late_completes_a_group():
    datagrams = stream(20)
    late = [datagrams[14], datagrams[15]]  # 13 to 22 are data, 23 to 25 parity.
    lost = datagrams[17]
    kept = [item for item in datagrams if item not in (*late, lost, datagrams[23], datagrams[24])]
    recovery = Recovery(CONV)
    # Where groups end is known from the first.
    assert received(recovery, [item for item in datagrams[:13] if item[0] != 3]) != []
    assert received(recovery, kept[13:]) == []
    assert recovery.note(*late[0]) == []
    assert recovery.note(*late[1]) == [kcp.decode_datagram(lost[1]).body]


def test_parity_of_others_is_not_believed_and_given_up():
    recovery = Recovery(CONV)
    tries = 0
    for group in range(40):
        begin = group * GROUP
        for place in range(9):
            recovery.note(begin + place, kcp.encode_data(begin + place, body(place)))
        before = recovery._faults
        shard = random.Random(group).randbytes(60)
        assert recovery.note(begin + 10, kcp.encode_parity(begin + 10, shard)) == []
        tries += recovery._faults > before
    assert recovery._faults == MAX_FAULTS
    assert tries <= MAX_FAULTS


@given(st.lists(st.tuples(st.integers(0, 80) | st.integers(0, 2**32 - 1), st.booleans())))
@settings(max_examples=50)
def test_little_is_kept_whatever_comes(numbers):
    recovery = Recovery(CONV)
    for seqid, is_data in numbers:
        make = kcp.encode_data if is_data else kcp.encode_parity
        recovery.note(seqid, make(seqid, body(1)))
        assert len(recovery._kept) <= KEPT


def test_parity_is_made_of_groups_that_are_fresh_and_wanted():
    protection = Protection()

    def group(start, step=0.0, wanted=True):
        found = []
        for at in range(DATA_SHARDS):
            datagram = kcp.encode_data(protection.seqid, body(at))
            found += protection.add(datagram, start + at * step, wanted=wanted)
        return [kcp.decode_datagram(data).seqid for data in found]

    assert group(1.0) == [10, 11, 12]
    assert group(2.0, wanted=False) == []
    assert group(3.0, step=STALE_S) == []
    assert group(9.0) == [49, 50, 51]  # Numbers advance all the same.
    protection.seqid = WRAP - GROUP
    assert group(10.0) == [WRAP - 3, WRAP - 2, WRAP - 1]
    assert protection.seqid == 0


def test_made_shards_are_those_that_were_lost():
    shards = [kcp.data_shard(body(n, 30 + n)) for n in range(DATA_SHARDS)]
    whole = [*shards, *kcp.parity(shards)]
    for lost in itertools.combinations(range(GROUP), 3):
        known = [None if at in lost else shard for at, shard in enumerate(whole)]
        made = recover(known)
        assert sorted(made) == [at for at in lost if at < DATA_SHARDS]
        for at, shard in made.items():
            assert shard.rstrip(b"\0") == shards[at].rstrip(b"\0")


# -- in a session --------------------------------------------------------------------------------


def test_a_session_needs_no_repetition_where_parity_suffices():
    got = bytearray()
    near = KcpSession(1, on_data=lambda data: None, now=0.0)
    far = KcpSession(1, on_data=got.extend, now=0.0)
    near._lost = 1.0  # Datagrams were lost of late.
    data = random.Random(3).randbytes(40 * kcp.MAX_SEGMENT_DATA)
    near.write(data)
    datagrams = near.take_output(0.0)
    assert len(datagrams) == 52
    # Three of each group, some of them parity.
    kept = [d for at, d in enumerate(datagrams) if at % GROUP not in (0, 5, 11)]
    far.feed(kept, 0.01)
    assert got == data
    near.feed(far.take_output(0.01), 0.02)
    assert near.idle


def test_parity_is_made_once_datagrams_get_lost():
    def kinds(net):
        made = []
        sends = net.ends[0].take_output

        def watched(now):
            datagrams = sends(now)
            made.extend(kcp.decode_datagram(d).kind for d in datagrams)
            return datagrams

        net.ends[0].take_output = watched
        data = random.Random(5).randbytes(1_000_000)
        net.ends[0].write(data)
        net.run(60.0)
        assert net.got[1] == data
        return made.count(kcp.PARITY) / len(made)

    assert kinds(Net(window=128)) == 0
    assert 0.15 < kinds(Net(window=128, loss=0.05)) < 0.25
