"""What a yamux peer may not do: each violation ends the session with a go-away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import MuxError, RemoteWireError
from pyfrp.wire.yamux import ACK, DATA, FIN, GO_AWAY, INITIAL_WINDOW, PING, RST, SYN, WINDOW_UPDATE
from tests.unit.wire.pieces import cut_at, places, three_ways
from tests.unit.wire.yamux_pair import (
    KIB,
    Clock,
    Frame,
    Side,
    credit,
    data_frame,
    exchange,
    fin,
    frames_of,
    go_away,
    linked,
    open_pair,
    ping,
    raw,
    syn,
)

# What each bad sequence is, the bytes, and a part of what the operator is told.
VIOLATIONS = {
    "version 1": (raw(0x01000000, 1, 0), "version or frame type"),
    "version 255": (raw(0xFF010001, 1, 0), "version or frame type"),
    "frame type 4": (raw(0x00040000, 0, 0), "version or frame type"),
    "frame type 255": (raw(0x00FF0000, 0, 0), "version or frame type"),
    "unknown flag on data": (data_frame(1, b"x", 0x10), "unknown flags"),
    "unknown flag on an update": (raw(WINDOW_UPDATE | 0x8000, 1, 0), "unknown flags"),
    "unknown flag on a ping": (raw(PING | 0x20 | SYN, 0, 0), "unknown flags"),
    "a stream opened twice": (syn(1) + syn(1), "opened twice"),
    "a stream opened twice by data": (syn(1) + data_frame(1, b"x", SYN), "opened twice"),
    "stream 0 opened": (syn(0), "not the peer's"),
    "stream 0 opened by data": (data_frame(0, b"", SYN), "not the peer's"),
    "one of our numbers opened": (syn(2), "not the peer's"),
    "more data than the window": (
        syn(1) + data_frame(1, bytes(INITIAL_WINDOW + 1)),
        "more data than its window",
    ),
    "a frame longer than the window, announced": (
        syn(1) + raw(DATA, 1, INITIAL_WINDOW + 1),
        "more data than its window",
    ),
    "a length of 4 GiB": (syn(1) + raw(DATA, 1, 0xFFFFFFFF), "more data than its window"),
    "data after the end": (syn(1) + fin(1) + data_frame(1, b"x"), "data after its end"),
    "data announced after the end": (syn(1) + fin(1) + raw(DATA, 1, 5), "data after its end"),
    "an end after the end": (syn(1) + fin(1) + fin(1), "ended after ended"),
    "an end on data after the end": (
        syn(1) + fin(1) + data_frame(1, b"", FIN),
        "ended after ended",
    ),
    "a window beyond 32 bits": (syn(1) + credit(1, 0xFFFFFFFF), "beyond 32 bits"),
    "a window beyond 32 bits in steps": (
        syn(1) + credit(1, 0x80000000) + credit(1, 0x80000000),
        "beyond 32 bits",
    ),
    "a window beyond 32 bits on opening": (syn(1, 0xFFFFFFFF), "beyond 32 bits"),
    "a ping on a stream": (raw(PING | SYN, 1, 0), "ping on a stream"),
    "a ping without a meaning": (ping(0, 0), "neither asks nor answers"),
    "a ping with FIN only": (ping(0, FIN), "neither asks nor answers"),
    "a go-away on a stream": (raw(GO_AWAY, 3, 0), "go-away on a stream"),
    "a go-away for a protocol error": (go_away(1), "code 1"),
    "a go-away for an internal error": (go_away(2), "code 2"),
    "a go-away with an unknown code": (go_away(77), "code 77"),
}


@three_ways
@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_ends_the_session_with_a_go_away(name, cut):
    data, told = VIOLATIONS[name]
    side = Side(client=False, clock=Clock())

    def run():
        for piece in cut(data):
            side.feed(piece)

    with pytest.raises(MuxError, match=told) as caught:
        run()
    assert caught.value.code == 1
    assert side.frames()[-1] == Frame(3, 0, 0, 1)


def test_a_client_accepts_no_opens():
    client = Side(client=True, clock=Clock(), on_stream=None)
    with pytest.raises(MuxError, match="not the peer's"):
        client.feed(syn(2))


def test_a_window_is_overrun_by_many_frames_as_by_one():
    side = Side(client=False, clock=Clock())
    side.feed(syn(1))
    side.accepted[0].hold()
    frame = data_frame(1, bytes(64 * KIB))
    side.feed(frame * 4)
    assert side.accepted[0].held_size == INITIAL_WINDOW
    with pytest.raises(MuxError, match="more data"):
        side.feed(data_frame(1, b"x"))


def test_the_window_is_exact_to_the_byte():
    side = Side(client=False, clock=Clock())
    side.feed(syn(1))
    side.accepted[0].hold()
    side.feed(data_frame(1, bytes(INITIAL_WINDOW)))
    with pytest.raises(MuxError, match="more data"):
        side.feed(raw(DATA, 1, 1))


def test_what_was_good_before_the_violation_has_been_delivered():
    side = Side(client=False, clock=Clock())
    with pytest.raises(MuxError):
        side.feed(syn(1) + data_frame(1, b"good") + ping(0, 0) + data_frame(1, b"never"))
    assert side.accepted[0].received == b"good"


def test_the_go_away_leaves_behind_what_was_queued_before():
    near, far = linked()
    stream, _ = open_pair(near, far)
    with pytest.raises(MuxError):
        near.feed(ping(5) + ping(0, 0))
    stream.write(b"x")
    # Control frames keep their order; data would come after them.
    assert [(f.kind, f.length) for f in near.frames()] == [(2, 5), (3, 1), (0, 1)]


def test_the_window_may_reach_its_last_legal_value():
    side = Side(client=False, clock=Clock())
    side.feed(syn(1) + credit(1, 0xFFFFFFFF - INITIAL_WINDOW))
    assert side.accepted[0]._send_window == 0xFFFFFFFF


def test_a_go_away_without_an_error_is_no_violation():
    side = Side(client=False, clock=Clock())
    side.feed(go_away(0) + go_away(0))
    assert side.session.going_away


def test_ping_replies_that_nobody_asked_for_are_ignored():
    side = Side(client=False, clock=Clock())
    side.feed(ping(9, ACK) * 3)
    assert side.take() == b""


# -- anything at all ----------------------------------------------------------------------------

# Mostly plausible frames, so that more than the first check is reached.
plausible = st.lists(
    st.one_of(
        st.builds(
            lambda kind, flags, stream, length, body: (
                raw(kind << 16 | flags, stream, length) + body
            ),
            st.sampled_from([0, 0, 1, 1, 1, 2, 3]),
            st.sampled_from([0, SYN, ACK, FIN, RST, SYN | ACK, SYN | FIN, ACK | RST, 0x10]),
            st.integers(0, 6),
            st.one_of(st.integers(0, 20), st.sampled_from([INITIAL_WINDOW, 2**31, 2**32 - 1])),
            st.binary(max_size=20),
        ),
        st.builds(data_frame, st.integers(0, 6), st.binary(max_size=30)),
        st.builds(syn, st.sampled_from([1, 3, 5, 7])),
        st.binary(max_size=13),
    ),
    max_size=30,
).map(b"".join)


def run(data, where):
    """Feed bytes; what came of it: deliveries, the answer, the fault."""
    side = Side(client=False, clock=Clock())
    side.session.open()
    fault = None
    try:
        for piece in filter(None, cut_at(data, where)):
            side.feed(piece)
    except RemoteWireError as exc:
        fault = str(exc)
    streams = [(s.id, s.received, s.ends, s.resets) for s in side.accepted]
    return streams, fault


@given(plausible, places)
def test_any_bytes_are_understood_or_refused_and_never_crash(data, where):
    _, fault = run(data, where)
    assert fault is None or fault


@given(plausible, places)
def test_how_bytes_are_cut_changes_nothing(data, where):
    whole_streams, whole_fault = run(data, [])
    streams, fault = run(data, where)
    assert fault == whole_fault
    assert streams == whole_streams


@given(plausible)
def test_what_we_answer_to_anything_is_well_formed(data):
    side = Side(client=False, clock=Clock())
    side.on_accept = lambda stream: (stream.write(b"hello"), stream.end())
    try:
        side.feed(data)
    except MuxError:
        pass  # Its go-away is part of the answer.
    for frame in frames_of(side.take()):
        assert frame.kind in (0, 1, 2, 3)
        assert frame.flags in (0, SYN, ACK, FIN, RST)


def test_two_sessions_that_think_they_are_the_client_refuse_each_other():
    clock = Clock()
    near, far = (Side(client=True, clock=clock) for _ in range(2))
    near.open()
    with pytest.raises(MuxError, match="not the peer's"):
        exchange(near, far)
