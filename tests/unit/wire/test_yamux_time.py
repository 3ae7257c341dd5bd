"""Liveness and lingering, on a clock that the test turns."""

from __future__ import annotations

import pytest

from pyfrp.errors import MuxError
from pyfrp.wire.yamux import CLOSE_TIMEOUT, PING_TIMEOUT, RST
from tests.unit.wire.yamux_pair import Clock, Frame, Side, exchange, linked, open_pair, ping


def wake(side):
    side.session.wake(side.clock.now)


def test_a_silent_peer_is_pinged_after_the_keepalive_and_not_before():
    side = Side(client=True, clock=Clock(), keepalive=30.0)
    start = side.clock.now
    assert side.session.deadline() == start + 30
    side.clock.now = start + 29.9
    wake(side)
    assert side.frames() == []
    side.clock.now = start + 30
    wake(side)
    assert side.frames() == [Frame(2, 1, 0, 0)]
    assert side.session.deadline() == start + 30 + PING_TIMEOUT


def test_any_byte_puts_the_ping_off():
    side = Side(client=True, clock=Clock(), keepalive=30.0)
    side.clock.now += 20
    side.feed(b"\x00")
    side.clock.now += 20
    wake(side)
    assert side.frames() == []
    assert side.session.deadline() == side.clock.now + 10


def test_a_peer_that_does_not_answer_a_ping_is_dead():
    side = Side(client=True, clock=Clock(), keepalive=30.0)
    side.clock.now += 30
    wake(side)
    side.clock.now += PING_TIMEOUT - 0.1
    wake(side)
    side.clock.now += 0.1
    with pytest.raises(MuxError, match="no sign of life for 40 s"):
        wake(side)


def test_the_answer_to_a_ping_ends_the_wait():
    near, far = linked(keepalive=30.0)
    for _ in range(5):
        near.clock.now += 30
        wake(near)
        exchange(near, far)
        assert near.session.deadline() == near.clock.now + 30
    assert near.session._ping_id == 5


def test_any_byte_instead_of_the_answer_counts_as_life():
    """A reply may be stuck behind bulk data of the peer."""
    side = Side(client=True, clock=Clock(), keepalive=30.0)
    side.clock.now += 30
    wake(side)
    side.clock.now += 5
    side.feed(b"\x00\x01")
    side.clock.now += 5
    wake(side)
    # Pinged again only after another silence.
    side.clock.now += 24
    wake(side)
    assert len([f for f in side.frames() if f.kind == 2]) == 1
    side.clock.now += 1
    wake(side)
    assert len([f for f in side.frames() if f.kind == 2]) == 1


def test_pings_are_numbered_within_32_bits():
    side = Side(client=True, clock=Clock(), keepalive=30.0)
    side.session._ping_id = 0xFFFFFFFF
    numbers = []
    for _ in range(2):
        side.clock.now += 30
        wake(side)
        numbers += [f.length for f in side.frames()]
        side.feed(ping(numbers[-1], 2))
    assert numbers == [0xFFFFFFFF, 0]


def test_without_a_keepalive_nobody_is_pinged():
    side = Side(client=True, clock=Clock(), keepalive=0)
    assert side.session.deadline() is None
    side.clock.now += 100_000
    wake(side)
    assert side.frames() == []


def test_a_ping_passes_a_saturated_link():
    near, far = linked()
    stream, _ = open_pair(near, far)
    stream.write(bytes(1000))
    near.clock.now += 30
    wake(near)
    far.feed(near.take(saturated=True))
    assert [f.kind for f in far.frames()] == [2]


# -- lingering ----------------------------------------------------------------------------------


def closed_stream(near, far):
    """A stream that `near` has ended and does not read any more."""
    stream, other = open_pair(near, far)
    stream.end()
    near.session.linger(stream, near.clock.now)
    exchange(near, far)
    return stream, other


def test_a_closed_stream_is_reset_when_the_peer_never_ends_it():
    near, far = linked(keepalive=0)
    stream, other = closed_stream(near, far)
    assert near.session.deadline() == near.clock.now + CLOSE_TIMEOUT
    near.clock.now += CLOSE_TIMEOUT - 1
    wake(near)
    assert near.frames() == []
    near.clock.now += 1
    wake(near)
    exchange(near, far)
    assert other.resets == 1
    assert near.session.streams == far.session.streams == {}
    assert near.session.deadline() is None
    # Its owner may still wait for pending bytes to leave.
    assert stream.resets == 1


def test_a_closed_stream_that_the_peer_ends_in_time_is_not_reset():
    near, far = linked(keepalive=0)
    _, other = closed_stream(near, far)
    other.end()
    exchange(near, far)
    assert near.session.deadline() is None
    near.clock.now += CLOSE_TIMEOUT
    wake(near)
    assert near.frames() == []


def test_closed_streams_are_reset_in_their_order():
    near, far = linked(keepalive=0)
    first, _ = closed_stream(near, far)
    near.clock.now += 100
    second, _ = closed_stream(near, far)
    near.clock.now += CLOSE_TIMEOUT - 100
    wake(near)
    assert [(f.stream, f.flags) for f in near.frames()] == [(first.id, RST)]
    assert near.session.deadline() == near.clock.now + 100
    near.clock.now += 100
    wake(near)
    assert [(f.stream, f.flags) for f in near.frames()] == [(second.id, RST)]


def test_lingering_streams_that_are_reset_or_closed_are_forgotten():
    near, far = linked(keepalive=0)
    stream, _ = closed_stream(near, far)
    stream.reset()
    assert near.session.deadline() is None
    closed_stream(near, far)
    near.session.close()
    assert near.session.deadline() is None


def test_a_stream_that_lingers_after_it_was_forgotten_is_skipped():
    near, far = linked(keepalive=0)
    stream, other = open_pair(near, far)
    stream.end()
    other.end()
    exchange(near, far)
    near.session.linger(stream, near.clock.now)
    near.clock.now += CLOSE_TIMEOUT
    wake(near)
    assert near.frames() == []


def test_the_deadline_is_the_earliest_of_ping_and_lingering():
    near, far = linked(keepalive=30.0)
    closed_stream(near, far)
    assert near.session.deadline() == near.clock.now + 30
    near.clock.now += 30
    wake(near)
    assert near.session.deadline() == near.clock.now + PING_TIMEOUT
