"""The gate before the state machine: whole frames, counted, at a bounded rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.vhost.http2_frames import (
    CALM,
    CALM_PER_S,
    EARNED,
    FRAMES_PER_TURN,
    MAX_FRAME_BYTES,
    PREFACE,
    Code,
    FrameGate,
    Http2Error,
    goaway,
)
from tests.unit.vhost.http2_scene import frame
from tests.unit.wire.pieces import cut_at, places

SETTINGS = frame(4)
PING = frame(6, bytes(8))


def gate(*streams: int) -> FrameGate:
    """A gate behind the preface."""
    made = FrameGate(0.0, set(streams))
    made.feed(PREFACE + SETTINGS)
    assert made.take(0.0) == PREFACE + SETTINGS
    return made


def drain(made: FrameGate, now: float = 0.0) -> bytes:
    out = []
    while made.ready:
        out.append(made.take(now))
    return b"".join(out)


frames = st.lists(
    st.builds(
        frame,
        st.sampled_from([0, 3, 4, 6, 8]),
        st.binary(min_size=1, max_size=40),
        st.just(0),
        st.just(7),
    ),
    max_size=80,
)


@given(frames, places)
def test_frames_pass_whole_and_unchanged_however_they_come(
    sent: list[bytes], at: list[int]
) -> None:
    made = FrameGate(0.0, {7})
    data = PREFACE + SETTINGS + b"".join(sent)
    starts = {len(PREFACE)}
    for one in (SETTINGS, *sent):
        starts.add(max(starts) + len(one))
    passed = b""
    for piece in cut_at(data, at):
        made.feed(piece)
        while made.ready:
            passed += made.take(0.0)
            assert not passed or len(passed) in starts
    assert passed == data
    assert not made.take(0.0)


def test_a_turn_has_a_bounded_number_of_frames() -> None:
    made = gate()
    made.feed(PING * (FRAMES_PER_TURN + 5) + PING[:5])
    assert made.take(0.0) == PING * FRAMES_PER_TURN
    assert made.ready
    assert made.take(0.0) == PING * 5
    assert not made.ready


def test_a_frame_that_would_be_too_long_is_refused_at_its_head() -> None:
    made = gate()
    made.feed((MAX_FRAME_BYTES + 1).to_bytes(3, "big") + bytes(6))
    with pytest.raises(Http2Error) as raised:
        made.take(0.0)
    assert raised.value.code is Code.FRAME_SIZE_ERROR


@pytest.mark.parametrize("kind", [2, 10, 12, 16, 200])
def test_frames_that_mean_nothing_to_a_server_are_dropped(kind: int) -> None:
    made = gate()
    made.feed(PING + frame(kind, bytes(5), stream=1) + PING)
    assert drain(made) == PING * 2


def test_the_callers_goodbye_is_noted_and_not_passed_on() -> None:
    made = gate()
    made.feed(PING + frame(7, bytes(7) + b"\x0bdebug") + PING)
    assert made.goaway is None
    assert drain(made) == PING * 2
    assert made.goaway == Code.ENHANCE_YOUR_CALM


def test_patience_comes_back_with_time_and_with_answers() -> None:
    made = gate()
    for _ in range(int(CALM) - 1):
        made.charge()
    made.earn(10)
    for _ in range(10 * EARNED):
        made.charge()
    made.feed(PING)
    made.take(1.0)
    for _ in range(int(CALM_PER_S) - 1):
        made.charge()
    with pytest.raises(Http2Error) as raised:
        made.charge(2)
    assert raised.value.code is Code.ENHANCE_YOUR_CALM


def test_patience_is_not_saved_up() -> None:
    made = gate()
    made.earn(10**6)
    made.take(10.0**6)
    with pytest.raises(Http2Error):
        made.charge(CALM + 1)


def test_acknowledgements_and_useful_data_cost_nothing() -> None:
    made = gate(1)
    useful = frame(6, bytes(8), flags=1) + frame(0, b"x", stream=1) + frame(0, flags=1, stream=1)
    made.feed(useful * 5000)
    assert drain(made) == useful * 5000


def test_goaway_names_the_last_stream_and_the_code() -> None:
    assert goaway(7, Code.REFUSED_STREAM) == frame(7, b"\0\0\0\7\0\0\0\7")
