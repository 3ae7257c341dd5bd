"""Windows, held streams, and who may send when: what bounds memory and keeps a link fair."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfrp.errors import MuxError
from pyfrp.wire.yamux import (
    ACK,
    BATCH,
    BURST,
    FIN,
    INITIAL_WINDOW,
    MAX_WINDOW,
    RECORD,
    SHORT,
    SLICE,
    SYN,
    WINDOW_BUDGET,
)
from tests.unit.wire.pieces import three_ways
from tests.unit.wire.yamux_pair import (
    KIB,
    MIB,
    Clock,
    Side,
    credit,
    data_frame,
    exchange,
    frames_of,
    linked,
    open_pair,
    pattern,
    ping,
    syn,
)


def grants(frames, stream_id):
    return [f.length for f in frames if f.kind == 1 and f.stream == stream_id and not f.flags]


def send(near, far, stream, size, *, chunk=32 * KIB):
    """Write and exchange in pieces, so that the reader keeps up."""
    start = len(far.session.streams[stream.id].received)
    for at in range(0, size, chunk):
        stream.write(pattern(stream.id, start + at, min(chunk, size - at)))
        exchange(near, far)


# -- views and pieces ---------------------------------------------------------------------------


@given(sizes=st.lists(st.sampled_from([1, 12, 4096, 40_000, 70_000]), min_size=1, max_size=6))
@settings(max_examples=40)
def test_views_are_read_like_bytes_and_not_kept(sizes):
    far = Side(client=False, clock=Clock())
    far.feed(syn(1) + syn(3))
    wire = b"".join(
        data_frame(number, pattern(number, 0, size))
        for number, size in zip([1, 3] * 3, sizes, strict=False)
    )
    buffer = bytearray(50_000)
    for at in range(0, len(wire), len(buffer)):
        piece = wire[at : at + len(buffer)]
        buffer[: len(piece)] = piece
        far.feed(memoryview(buffer)[: len(piece)])
        buffer[:] = bytes(len(buffer))
    for number, of_it in ((1, sizes[::2]), (3, sizes[1::2])):
        expected = b"".join(pattern(number, 0, size) for size in of_it)
        assert bytes(far.session.streams[number].received) == expected


def test_a_long_body_leaves_in_one_frame_and_is_not_copied():
    near, far = linked()
    stream, end = open_pair(near, far)
    data = pattern(1, 0, BATCH)
    stream.write(data)
    first, rest = near.session.take_output()
    assert isinstance(rest, memoryview)
    assert rest.obj is data
    assert len(first) == RECORD  # The header, and what fills a TLS record with it.
    far.feed(first + rest)
    assert end.received == data


def test_streams_that_share_the_link_have_turns_in_pieces_too():
    near, far = linked()
    pairs = [open_pair(near, far) for _ in range(3)]
    for stream, _ in pairs:
        stream.write(pattern(stream.id, 0, BATCH // 2))
    output = near.session.take_output()
    assert not isinstance(output, bytes)
    frames = frames_of(b"".join(output))
    assert [frame.length for frame in frames] == [SLICE] * 4
    assert [frame.stream for frame in frames] == [pairs[n % 3][0].id for n in range(4)]


# -- the sender ---------------------------------------------------------------------------------


def test_a_sender_stops_at_the_window_and_goes_on_with_credit():
    near, _ = linked()
    stream = near.open()
    data = pattern(1, 0, INITIAL_WINDOW + 100)
    stream.write(data)
    sent = b"".join(f.body for f in near.frames())
    assert sent == data[:INITIAL_WINDOW]
    assert stream.pending == 100
    near.feed(credit(stream.id, 40))
    assert b"".join(f.body for f in near.frames()) == data[INITIAL_WINDOW:][:40]
    near.feed(credit(stream.id, 1000))
    assert b"".join(f.body for f in near.frames()) == data[INITIAL_WINDOW + 40 :]
    assert stream.pending == 0


def test_writes_into_a_closed_window_wait_together_and_in_order():
    near, _ = linked()
    stream = near.open()
    stream.write(bytes(INITIAL_WINDOW))
    near.frames()
    for piece in (b"one", b"two"):
        stream.write(piece)
        assert near.frames() == []
    near.feed(credit(stream.id, 100))
    assert [f.body for f in near.frames()] == [b"onetwo"]


def test_credit_for_a_stream_with_nothing_to_send_wakes_nobody():
    near, _ = linked()
    stream = near.open()
    near.take()
    calls = near.wanted_output
    near.feed(credit(stream.id, 1000))
    assert near.wanted_output == calls


def test_credit_that_comes_with_an_ack_counts():
    near, _ = linked()
    stream = near.open()
    stream.write(bytes(INITIAL_WINDOW + 500))
    near.frames()
    near.feed(credit(stream.id, 500)[:3] + bytes([ACK]) + credit(stream.id, 500)[4:])
    assert sum(f.length for f in near.frames()) == 500


def test_the_source_is_told_to_pause_above_the_high_water_and_to_go_on_when_all_is_out():
    near, far = linked()
    stream, other = open_pair(near, far)
    stream.write(bytes(SLICE))
    assert stream.full == 0
    stream.write(b"x")
    assert stream.full == 1
    exchange(near, far)
    assert stream.pending == 0
    assert stream.drained >= 1
    assert len(other.received) == SLICE + 1


def test_the_end_is_sent_only_when_credit_let_everything_out():
    near, _ = linked()
    stream = near.open()
    stream.write(bytes(INITIAL_WINDOW + 1))
    stream.end()
    assert not any(f.flags & FIN for f in near.frames())
    near.feed(credit(stream.id, 1))
    frames = near.frames()
    assert [f.length for f in frames if f.kind == 0] == [1]
    assert frames[-1].flags == FIN


# -- the receiver -------------------------------------------------------------------------------


def test_credit_is_given_once_half_of_the_window_is_consumed():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    server.take()
    server.feed(data_frame(1, bytes(INITIAL_WINDOW // 2 - 1)))
    assert server.frames() == []
    server.feed(data_frame(1, b"x"))
    # All that was consumed, and the growth of the window on top.
    assert grants(server.frames(), 1) == [INITIAL_WINDOW // 2 + INITIAL_WINDOW]


def test_a_frame_as_long_as_the_window_earns_credit_midway():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    server.take()
    frame = data_frame(1, pattern(1, 0, INITIAL_WINDOW))
    server.feed(frame[: 12 + INITIAL_WINDOW // 2])
    assert server.accepted[0].received == frame[12 : 12 + INITIAL_WINDOW // 2]
    assert grants(server.frames(), 1)
    server.feed(frame[12 + INITIAL_WINDOW // 2 :])
    assert server.accepted[0].received == frame[12:]


def test_the_window_of_a_fast_reader_grows_to_frps_and_no_further():
    near, far = linked()
    stream, other = open_pair(near, far)
    send(near, far, stream, 40 * MIB, chunk=256 * KIB)
    assert other._window == MAX_WINDOW
    # A sender that ran ahead could never send more than that.
    assert stream._send_window <= MAX_WINDOW
    assert other.received[-1000:] == pattern(stream.id, 40 * MIB - 1000, 1000)


def test_windows_of_all_streams_together_stay_within_the_budget():
    near, far = linked(budget=1 * MIB)
    pairs = [open_pair(near, far) for _ in range(6)]
    for stream, _ in pairs:
        send(near, far, stream, 8 * MIB, chunk=256 * KIB)
    grown = sum(other._window - INITIAL_WINDOW for _, other in pairs)
    assert grown == far.session._grown
    # One doubling may begin below the mark and end above it.
    assert 1 * MIB <= grown < 2 * MIB
    for stream, _ in pairs:
        stream.reset()
    exchange(near, far)
    assert far.session._grown == 0
    # What is given back can be granted again.
    stream, other = open_pair(near, far)
    send(near, far, stream, 1 * MIB, chunk=256 * KIB)
    assert other._window > INITIAL_WINDOW


def test_the_default_budget_bounds_what_a_link_can_make_us_hold():
    assert WINDOW_BUDGET + MAX_WINDOW // 2 <= 40 * MIB


# -- held streams -------------------------------------------------------------------------------


def test_a_reader_that_stops_bounds_the_sender():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hold()
    stream.write(bytes(1024 * KIB))
    exchange(near, far)
    assert other.held_size == INITIAL_WINDOW
    assert stream.pending == 1024 * KIB - INITIAL_WINDOW
    assert other.chunks == []


@three_ways
def test_nothing_is_lost_or_reordered_by_holding_and_releasing(cut):
    near, far = linked()
    stream, other = open_pair(near, far)
    size = 0
    for turn in range(12):
        if turn % 3 == 0:
            other.hold()
        elif turn % 3 == 2:
            other.release()
        stream.write(pattern(1, size, 700))
        size += 700
        exchange(near, far, cut)
    other.release()
    exchange(near, far)
    assert other.received == pattern(1, 0, size)


def test_release_gives_the_credit_of_what_was_held():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hold()
    data = pattern(1, 0, 600 * KIB)
    stream.write(data)
    exchange(near, far)
    other.release()
    exchange(near, far)
    assert other.received == data
    assert other.held_size == 0


def test_a_held_stream_gets_no_credit_even_when_half_was_consumed():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    stream = server.accepted[0]
    stream.hold()
    server.take()
    server.feed(data_frame(1, bytes(INITIAL_WINDOW)))
    assert server.frames() == []


def test_a_stream_that_is_held_while_it_takes_its_last_chunk_does_not_grow():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    stream = server.accepted[0]
    stream.hook = lambda s, _: s.hold()
    server.feed(data_frame(1, bytes(INITIAL_WINDOW // 2)))
    assert stream._window == INITIAL_WINDOW
    assert grants(server.frames(), 1) == [INITIAL_WINDOW // 2]


def test_other_streams_go_on_while_one_is_held():
    near, far = linked()
    stuck, held = open_pair(near, far)
    busy, other = open_pair(near, far)
    held.hold()
    stuck.write(bytes(2 * MIB))
    send(near, far, busy, 4 * MIB)
    assert len(other.received) == 4 * MIB
    assert held.held_size == INITIAL_WINDOW


def test_a_grown_window_shrinks_when_its_reader_stops():
    near, far = linked()
    stream, other = open_pair(near, far)
    send(near, far, stream, 16 * MIB, chunk=256 * KIB)
    assert other._window == MAX_WINDOW
    other.hold()
    stream.write(bytes(20 * MIB))
    exchange(near, far)
    # What was granted may still come; after that, the small window counts.
    assert other.held_size <= MAX_WINDOW
    assert other._window == INITIAL_WINDOW
    assert far.session._grown == 0
    held = other.held_size
    before = stream._send_window
    other.hook = lambda s, _: s.hold()
    while other.held_size > INITIAL_WINDOW // 2 + BATCH:
        other.release()
    assert near.take() == far.take() == b""
    assert held > INITIAL_WINDOW
    assert stream._send_window == before == 0
    other.hook = None
    other.release()
    exchange(near, far)
    assert len(other.received) == 36 * MIB


def test_a_stream_held_again_while_it_is_released_keeps_the_rest():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hold()
    for piece in (b"one", b"two", b"three"):
        stream.write(piece)
        exchange(near, far)
    other.hook = lambda s, _: s.hold()
    other.release()
    assert other.chunks == [b"one"]
    assert other.held_size == 8
    other.hook = None
    other.release()
    assert other.chunks == [b"one", b"two", b"three"]


def test_a_reader_that_takes_a_part_earns_credit_for_that_part_only():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    stream = server.accepted[0]
    stream.hold()
    for _ in range(16):
        server.feed(data_frame(1, bytes(16 * KIB)))
    server.take()
    taken = []

    def stop_at_ten(s, chunk):
        taken.append(chunk)
        if len(taken) == 10:
            s.hold()

    stream.hook = stop_at_ten
    stream.release()
    assert stream.held_size == 6 * 16 * KIB
    assert grants(server.frames(), 1) == [10 * 16 * KIB]


@pytest.mark.parametrize("cut", [0, 1, 11, 12, 13, 5000, 20_000, 40_000])
def test_long_bodies_of_one_stream_that_come_together_are_delivered_in_one_piece(cut):
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    chunks = []
    server.accepted[0].hook = lambda _, chunk: chunks.append(chunk)
    body = pattern(1, 0, 40 * KIB)
    frames = b"".join(
        data_frame(1, body[at : at + 16 * KIB]) for at in range(0, len(body), 16 * KIB)
    )
    server.feed(frames[:cut])
    server.feed(frames[cut:])
    assert b"".join(chunks) == body
    assert len(chunks) <= 2


def test_a_frame_of_another_kind_or_stream_ends_a_piece():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1) + syn(3))
    happened = []
    for stream in server.accepted:
        stream.hook = lambda s, chunk: happened.append((s.id, len(chunk)))
    long = bytes(8 * KIB)
    server.feed(
        data_frame(1, long)
        + data_frame(1, long)
        + data_frame(3, long)
        + data_frame(1, long)
        + credit(1, 5)
        + data_frame(1, long)
        + data_frame(1, b"short")
        + data_frame(1, long, FIN)
    )
    assert happened == [(1, 16 * KIB), (3, 8 * KIB), (1, 8 * KIB), (1, 8 * KIB + 5), (1, 8 * KIB)]
    assert server.accepted[0].ends == 1


def test_bodies_that_come_together_may_not_exceed_the_window_together():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    server.accepted[0].hold()
    third = data_frame(1, bytes(INITIAL_WINDOW // 3 + 1))
    with pytest.raises(MuxError, match="more data than its window"):
        server.feed(third * 3)
    assert server.accepted[0].held_size == 2 * (INITIAL_WINDOW // 3 + 1)


def test_a_release_within_a_release_keeps_the_order_and_ends_once():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hold()
    for piece in (b"one", b"two", b"three"):
        stream.write(piece)
        exchange(near, far)
    stream.end()
    exchange(near, far)

    def again(s, chunk):
        if chunk == b"one":
            s.hold()
            s.release()

    other.hook = again
    other.release()
    assert other.chunks == [b"one", b"two", b"three"]
    assert other.ends == 1


def test_holding_and_releasing_within_a_chunk_grants_once():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    server.take()

    def again(s, _):
        s.hold()
        s.release()

    server.accepted[0].hook = again
    server.feed(data_frame(1, bytes(INITIAL_WINDOW // 2)))
    granted = grants(server.frames(), 1)
    assert sum(granted) == INITIAL_WINDOW // 2 + INITIAL_WINDOW
    assert server.accepted[0]._window == 2 * INITIAL_WINDOW


def test_the_end_waits_behind_held_bytes():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hold()
    stream.write(b"last words")
    stream.end()
    exchange(near, far)
    assert other.ends == 0
    other.release()
    assert (other.received, other.ends) == (b"last words", 1)


def test_the_end_waits_until_a_held_stream_is_released_even_with_nothing_before_it():
    """A reader that is changed while the stream is held would otherwise never hear of it."""
    near, far = linked()
    far.on_accept = lambda stream: stream.hold()
    stream = near.open()
    stream.end()
    exchange(near, far)
    other = far.accepted[0]
    assert other.ends == 0
    other.release()
    assert other.ends == 1
    other.hold()
    other.release()
    assert other.ends == 1


def test_a_stream_held_again_by_its_last_chunk_still_waits_with_its_end():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hold()
    stream.write(b"last")
    stream.end()
    exchange(near, far)
    other.hook = lambda s, _: s.hold()
    other.release()
    assert (other.chunks, other.ends) == ([b"last"], 0)
    other.release()
    assert other.ends == 1


def test_a_reset_discards_what_is_held():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hold()
    stream.write(b"held")
    exchange(near, far)
    stream.reset()
    exchange(near, far)
    assert (other.resets, other.held_size) == (1, 0)
    other.release()
    assert other.chunks == []


def test_a_stream_reset_while_it_is_released_delivers_no_more():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hold()
    for piece in (b"one", b"two"):
        stream.write(piece)
        exchange(near, far)
    other.hook = lambda s, _: s.reset()
    other.release()
    assert other.chunks == [b"one"]
    assert far.session.streams == {}


def test_releasing_a_stream_that_is_not_held_does_nothing():
    near, far = linked()
    _, other = open_pair(near, far)
    other.release()
    assert (other.chunks, other.ends) == ([], 0)
    assert far.take() == b""


# -- the link -----------------------------------------------------------------------------------


def test_control_frames_leave_ahead_of_data():
    near, far = linked()
    stream, _ = open_pair(near, far)
    stream.write(bytes(SLICE))
    near.feed(ping(7))
    kinds = [f.kind for f in near.frames()]
    assert kinds == [2, 0]


def test_a_saturated_link_takes_control_frames_and_nothing_else():
    near, far = linked()
    stream, other = open_pair(near, far)
    unopened = near.open()
    stream.write(bytes(1000))
    stream.end()
    near.feed(ping(7) + syn(2))
    frames = []
    data = near.take(saturated=True)
    while data:
        far.feed(data)
        frames.append(data)
        data = near.take(saturated=True)
    assert len(frames) == 1
    assert other.received == b""
    assert stream.pending == 1000
    exchange(near, far)
    assert (other.received, other.ends) == (bytes(1000), 1)
    assert unopened.id in far.session.streams


def test_the_first_overtakes_the_others_also_on_a_saturated_link():
    near, far = linked()
    streams = [open_pair(near, far)[0] for _ in range(3)]
    first = near.session.first = streams[2]
    for stream in streams:
        stream.write(b"token")
    frames = frames_of(near.take(saturated=True))
    assert [(frame.stream, frame.body) for frame in frames] == [(first.id, b"token")]
    first.write(b"more")
    assert [f.stream for f in near.frames()] == [first.id, streams[0].id, streams[1].id]
    first.write(bytes(INITIAL_WINDOW + 1))
    while near.take(saturated=True):
        pass
    assert first.pending == 10  # So far as its window goes.


def test_on_a_slow_link_a_token_does_not_wait_for_a_slice_of_each_download():
    near, far = linked()
    streams = [open_pair(near, far)[0] for _ in range(5)]
    *bulk, token, end = streams
    near.session.batch = SLICE
    for stream in bulk:
        stream.write(bytes(2 * SLICE))
    token.write(b"token")
    end.end()
    # Those that have little go first, and beside them one slice of the others, in turn.
    assert [f.stream for f in frames_of(near.take())] == [token.id, end.id, bulk[0].id]
    assert [f.stream for f in frames_of(near.take())] == [bulk[1].id]
    token.write(bytes(SHORT))
    assert [f.stream for f in frames_of(near.take())] == [bulk[2].id]
    token.write(b"token")
    assert [f.stream for f in frames_of(near.take())] == [bulk[0].id]


def test_many_short_ones_do_not_stop_a_download_on_a_slow_link():
    near, far = linked()
    bulk, *shorts = [open_pair(near, far)[0] for _ in range(40)]
    near.session.batch = SLICE
    bulk.write(bytes(3 * SLICE))
    for left in (2, 1, 0):
        for stream in shorts:
            stream.write(bytes(SHORT - 1))
        assert [f.stream for f in frames_of(near.take())] == [*(s.id for s in shorts), bulk.id]
        assert bulk.pending == left * SLICE


def test_every_source_pauses_after_one_more_chunk_on_a_saturated_link():
    near, far = linked()
    streams = [open_pair(near, far)[0] for _ in range(5)]
    near.session.high_water = 0
    for stream in streams:
        stream.write(b"x")
    assert [s.full for s in streams] == [1] * 5


def test_streams_take_turns_by_the_slice():
    near, far = linked()
    streams = [open_pair(near, far)[0] for _ in range(3)]
    for stream in streams:
        stream.write(bytes(3 * SLICE))
    turns = [f.stream for f in near.frames() if f.kind == 0]
    ids = [s.id for s in streams]
    assert turns == ids * 3


def test_a_short_stream_waits_for_one_slice_of_each_long_one_at_most():
    near, far = linked()
    bulk = [open_pair(near, far)[0] for _ in range(3)]
    for stream in bulk:
        stream.write(bytes(200 * KIB))
    short, _ = near.open(), None
    short.write(b"token")
    frames = near.frames()
    place = next(i for i, f in enumerate(frames) if f.stream == short.id and f.kind == 0)
    assert sum(f.length for f in frames[:place] if f.kind == 0) <= len(bulk) * SLICE


def test_one_output_is_bounded_and_the_rest_is_asked_for_again():
    near, far = linked()
    streams = [open_pair(near, far)[0] for _ in range(30)]
    for stream in streams:
        stream.write(bytes(SLICE))
    calls = near.wanted_output
    sizes = []
    while data := near.take():
        sizes.append(len(data))
        assert len(data) <= BATCH + SLICE + 64 * len(streams)
    assert sum(sizes) == 30 * (SLICE + 12)
    assert len(sizes) > 1
    assert near.wanted_output == calls + len(sizes) - 1


def test_a_slice_never_exceeds_the_window():
    near, far = linked()
    far.on_accept = lambda s: s.hold()
    stream = near.open()
    stream.write(bytes(INITIAL_WINDOW - 10))
    exchange(near, far)
    stream.write(bytes(100))
    assert [f.length for f in near.frames() if f.kind == 0] == [10]


def test_the_syn_comes_right_before_the_streams_own_data():
    near, _ = linked()
    for _ in range(3):
        near.open().write(b"x")
    frames = near.frames()
    assert [(f.stream, bool(f.flags & SYN)) for f in frames] == [
        (1, True),
        (1, False),
        (3, True),
        (3, False),
        (5, True),
        (5, False),
    ]


@pytest.mark.parametrize("chunk", [1, 1000, SLICE, 300 * KIB])
def test_a_large_transfer_arrives_whole_in_both_directions_at_once(chunk):
    near, far = linked()
    stream, other = open_pair(near, far)
    total = min(chunk * 300, 3 * MIB)
    for at in range(0, total, chunk):
        stream.write(pattern(1, at, chunk))
        other.write(pattern(2, at, chunk))
        if at % (7 * chunk) == 0:
            exchange(near, far)
    exchange(near, far)
    assert other.received[:total] == pattern(1, 0, len(other.received))[:total]
    assert stream.received[:total] == pattern(2, 0, len(stream.received))[:total]
    assert len(other.received) == len(stream.received) >= total


def test_a_burst_of_streams_is_told_at_once_and_each_turn_anew():
    bursts = []
    near, far = linked(on_burst=lambda: bursts.append(near.take()))
    streams = [open_pair(near, far)[0] for _ in range(2 * BURST)]
    for stream in streams:
        stream.write(b"token")
    # The first to write only asks for output; the last of each burst has it taken.
    assert [len(data) for data in bursts] == [BURST * 17, BURST * 17]
    assert near.take() == b""


def test_no_burst_is_told_while_the_owner_has_put_it_off():
    bursts = []
    near, far = linked(on_burst=lambda: bursts.append(1))
    near.session.burst = 10**9
    streams = [open_pair(near, far)[0] for _ in range(2 * BURST)]
    for stream in streams:
        stream.write(b"token")
    assert bursts == []
