"""Streams of a yamux session: opening, data, both kinds of end, and the captures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import LocalWireError
from pyfrp.wire import yamux
from pyfrp.wire.yamux import ACK, FIN, OPEN_LIMIT, RST, SYN, WINDOW_UPDATE
from tests.unit.wire.pieces import cut_at, places, three_ways
from tests.unit.wire.yamux_pair import (
    KIB,
    Clock,
    Frame,
    Side,
    ack,
    data_frame,
    exchange,
    fin,
    frames_of,
    go_away,
    linked,
    open_pair,
    pattern,
    ping,
    raw,
    rst,
    syn,
)
from tests.vectors.load import vectors

UPDATE = WINDOW_UPDATE >> 16


# -- captures of the official programs ----------------------------------------------------------


def captured(direction):
    frames = [f for f in vectors()["yamux_session"]["frames"] if f["dir"] == direction]
    return frames, b"".join(bytes.fromhex(f["hex"]) for f in frames)


@three_ways
@pytest.mark.parametrize("direction", ["c2s", "s2c"])
def test_a_captured_session_is_read_as_its_frames_say(direction, cut):
    frames, data = captured(direction)
    side = Side(client=direction == "s2c", clock=Clock())
    if direction == "s2c":
        for _ in range(3):
            side.open()
        side.take()
    for piece in cut(data):
        side.feed(piece)
    bodies = {}
    for frame in frames:
        if frame["type"] == "data":
            body = bytes.fromhex(frame["hex"])[12:]
            bodies[frame["stream"]] = bodies.get(frame["stream"], b"") + body
    streams = dict(side.session.streams)
    if direction == "c2s":
        assert [s.id for s in side.accepted] == [1, 3, 5]
        streams = {s.id: s for s in side.accepted}
    assert {i: s.received for i, s in streams.items() if s.received} == bodies


def test_a_captured_open_grants_its_credit():
    _, data = captured("c2s")
    side = Side(client=False, clock=Clock())
    side.feed(data[:12])
    stream = side.accepted[0]
    stream.write(bytes(7 * 1024 * KIB))
    sent = sum(f.length for f in side.frames() if f.kind == 0)
    # The initial window and what the SYN brought along: 6 MiB in all.
    assert sent == 6 * 1024 * KIB


@pytest.mark.parametrize("direction", ["c2s", "s2c"])
def test_captured_frames_are_encoded_byte_for_byte(direction):
    kinds = {"data": 0, "window_update": 1, "ping": 2, "go_away": 3}
    frames, data = captured(direction)
    again = b"".join(
        raw(kinds[f["type"]] << 16 | f["flags"], f["stream"], f["length"])
        + bytes.fromhex(f["hex"])[12:]
        for f in frames
    )
    assert again == data
    assert [(f.kind, f.flags, f.stream, f.length) for f in frames_of(data)] == [
        (kinds[f["type"]], f["flags"], f["stream"], f["length"]) for f in frames
    ]


def test_our_streams_carry_what_the_capture_carries():
    """The same bodies written by us reach a session of ours in the same order."""
    frames, _ = captured("c2s")
    near, far = linked()
    streams = {}
    for frame in frames:
        if frame["flags"] & SYN:
            streams[frame["stream"]] = near.open()
            assert streams[frame["stream"]].id == frame["stream"]
        elif frame["type"] == "data":
            streams[frame["stream"]].write(bytes.fromhex(frame["hex"])[12:])
    exchange(near, far)
    for number, stream in streams.items():
        bodies = [
            bytes.fromhex(f["hex"])[12:]
            for f in frames
            if f["stream"] == number and f["type"] == "data"
        ]
        assert far.session.streams[stream.id].received == b"".join(bodies)


def test_a_ping_is_answered_as_in_the_vector():
    vector = vectors()["yamux_ping"]
    side = Side(client=False, clock=Clock())
    side.feed(bytes.fromhex(vector["request"]))
    assert side.take() == bytes.fromhex(vector["reply"])


def test_our_first_ping_is_the_vectors_and_its_reply_ends_the_wait():
    vector = vectors()["yamux_ping"]
    side = Side(client=True, clock=Clock(), keepalive=30.0)
    side.clock.now += 30
    side.session.wake(side.clock.now)
    assert side.take() == bytes.fromhex(vector["request"])
    side.feed(bytes.fromhex(vector["reply"]))
    side.clock.now += 29
    side.session.wake(side.clock.now)
    assert side.take() == b""


# -- opening ------------------------------------------------------------------------------------


def test_ids_are_odd_for_the_client_and_even_for_the_server():
    near, far = linked()
    assert [near.open().id for _ in range(3)] == [1, 3, 5]
    assert [far.open().id for _ in range(3)] == [2, 4, 6]
    exchange(near, far)
    assert [s.id for s in far.accepted] == [1, 3, 5]
    assert [s.id for s in near.accepted] == [2, 4, 6]


def test_an_open_is_told_before_its_data_and_acknowledged_at_once():
    near, far = linked()
    seen = []
    far.on_accept = lambda stream: seen.append((stream.id, stream.received))
    near.open().write(b"hello")
    far.feed(near.take())
    assert seen == [(1, b"")]
    assert far.accepted[0].received == b"hello"
    assert Frame(UPDATE, ACK, 1, 0) in far.frames()


def test_syn_and_ack_may_come_on_data_frames():
    server = Side(client=False, clock=Clock())
    server.feed(data_frame(1, b"first", SYN))
    assert server.accepted[0].received == b"first"

    client = Side(client=True, clock=Clock())
    streams = [client.open() for _ in range(OPEN_LIMIT + 1)]
    client.frames()
    client.feed(data_frame(1, b"yes", ACK))
    assert streams[0].received == b"yes"
    assert [f.stream for f in client.frames() if f.flags & SYN] == [streams[-1].id]


def test_opens_may_arrive_out_of_order():
    """Go takes the number first and sends the SYN later, so concurrent opens overtake each other.

    yamux `session.go`, `OpenStream`: between the compare-and-swap and `sendWindowUpdate` another
    goroutine may do both.
    """
    server = Side(client=False, clock=Clock())
    server.feed(syn(5) + data_frame(5, b"five") + syn(3) + data_frame(3, b"three") + syn(1))
    assert [(s.id, s.received) for s in server.accepted] == [(5, b"five"), (3, b"three"), (1, b"")]


def test_the_number_of_a_stream_that_is_gone_may_be_opened_again():
    """As Go has it; only a number that is alive is taken."""
    server = Side(client=False, clock=Clock())
    server.feed(syn(1) + rst(1) + syn(1))
    assert len(server.accepted) == 2
    assert server.accepted[0].resets == 1
    assert server.session.streams == {1: server.accepted[1]}


def test_at_most_256_opens_wait_for_their_acknowledgement():
    near, _ = linked()
    streams = [near.open() for _ in range(OPEN_LIMIT + 10)]
    for stream in streams:
        stream.write(b"%d" % stream.id)
    first = near.frames()
    assert sum(bool(f.flags & SYN) for f in first) == OPEN_LIMIT
    # Nothing of a stream may precede its SYN.
    assert {f.stream for f in first} == {s.id for s in streams[:OPEN_LIMIT]}
    near.feed(ack(1) + ack(3))
    assert [f.stream for f in near.frames() if f.flags & SYN] == [
        s.id for s in streams[OPEN_LIMIT : OPEN_LIMIT + 2]
    ]


def test_waiting_opens_all_leave_once_the_peer_keeps_up():
    near, far = linked()
    streams = [near.open() for _ in range(3 * OPEN_LIMIT)]
    for stream in streams:
        stream.write(b"x")
        stream.end()
    exchange(near, far)
    assert len(far.accepted) == 3 * OPEN_LIMIT
    assert all(s.received == b"x" and s.ends == 1 for s in far.accepted)


def test_an_open_that_waits_and_is_reset_leaves_no_trace_and_gives_its_place_away():
    near, _ = linked()
    for _ in range(OPEN_LIMIT):
        near.open()
    given_up, next_one = near.open(), near.open()
    near.frames()
    given_up.reset()
    assert near.frames() == []  # No RST for a stream that the peer never saw.
    near.feed(ack(1))
    assert [f.stream for f in near.frames()] == [next_one.id]


def test_a_reset_before_its_syn_sends_nothing_at_all():
    near, _ = linked()
    stream = near.open()
    stream.write(b"lost")
    stream.reset()
    assert near.frames() == []
    assert near.session.streams == {}


@pytest.mark.parametrize("end", [rst, None])
def test_an_unacknowledged_stream_that_ends_frees_its_place(end):
    near, _ = linked()
    streams = [near.open() for _ in range(OPEN_LIMIT + 1)]
    near.frames()
    if end is None:
        streams[0].reset()
    else:
        near.feed(end(streams[0].id))
    assert [f.stream for f in near.frames() if f.flags & SYN] == [streams[-1].id]


def test_a_second_ack_of_a_stream_is_not_counted():
    near, _ = linked()
    streams = [near.open() for _ in range(OPEN_LIMIT + 2)]
    near.frames()
    near.feed(ack(1) + ack(1))
    assert [f.stream for f in near.frames() if f.flags & SYN] == [streams[OPEN_LIMIT].id]


def test_no_stream_is_opened_after_the_peer_goes_away():
    near, far = linked()
    stream, other = open_pair(near, far)
    near.feed(go_away(0))
    with pytest.raises(LocalWireError):
        near.open()
    # What is open goes on.
    stream.write(b"still here")
    exchange(near, far)
    assert other.received == b"still here"


def test_no_stream_is_opened_on_a_closed_session():
    near, _ = linked()
    near.session.close()
    with pytest.raises(LocalWireError):
        near.open()


def test_the_last_stream_number_is_used_and_no_number_twice():
    near, _ = linked()
    near.session._next_id = 0xFFFFFFFF
    assert near.open().id == 0xFFFFFFFF
    with pytest.raises(LocalWireError):
        near.open()


# -- data ---------------------------------------------------------------------------------------


@three_ways
def test_bytes_arrive_in_order_however_the_link_cuts_them(cut):
    near, far = linked()
    streams = [near.open() for _ in range(4)]
    for turn in range(6):
        for stream in streams:
            stream.write(pattern(stream.id, turn * 500, 500))
        exchange(near, far, cut)
    for stream in streams:
        assert far.session.streams[stream.id].received == pattern(stream.id, 0, 3000)


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=60)), max_size=20), places)
def test_bytes_arrive_in_order_at_every_split(writes, where):
    near, far = linked()
    streams = [near.open() for _ in range(4)]
    sent = [b""] * 4
    for which, data in writes:
        streams[which].write(data)
        sent[which] += data
    exchange(near, far, lambda data: cut_at(data, where))
    assert [far.session.streams[s.id].received for s in streams] == sent


def test_chunks_written_in_one_turn_leave_in_one_frame():
    near, _ = linked()
    stream = near.open()
    for piece in (b"a", b"bc", b"", b"def"):
        stream.write(piece)
    assert [f.body for f in near.frames() if f.kind == 0] == [b"abcdef"]


def test_output_is_asked_for_once_a_turn():
    near, _ = linked()
    streams = [near.open() for _ in range(5)]
    for stream in streams:
        stream.write(b"x")
    near.feed(ping(1))
    assert near.wanted_output == 1
    near.take()
    streams[0].write(b"y")
    assert near.wanted_output == 2


def test_nothing_to_send_is_no_output():
    near, _ = linked()
    assert near.take() == b""
    near.open().write(b"")
    near.take()
    assert near.take() == b""


def test_data_for_a_stream_that_is_gone_is_skipped_with_its_body():
    near, far = linked()
    stream, other = open_pair(near, far)
    stream.write(b"late" * 1000)
    data = near.take()
    other.reset()
    for piece in (data[:100], data[100:]):
        far.feed(piece)
    follower = near.open()
    follower.write(b"next")
    far.feed(near.take())
    assert far.session.streams[follower.id].received == b"next"


def test_frames_for_streams_that_are_gone_are_ignored():
    server = Side(client=False, clock=Clock())
    server.feed(fin(7) + rst(9) + ack(11) + raw(WINDOW_UPDATE, 13, 5) + data_frame(15, b"x", FIN))
    assert server.accepted == []
    assert server.take() == b""


# -- the two ends -------------------------------------------------------------------------------


def test_each_direction_ends_by_itself():
    near, far = linked()
    stream, other = open_pair(near, far)
    stream.write(b"question")
    stream.end()
    exchange(near, far)
    assert (other.received, other.ends) == (b"question", 1)
    assert stream.id in near.session.streams
    other.write(b"answer")
    other.end()
    exchange(near, far)
    assert (stream.received, stream.ends) == (b"answer", 1)
    assert near.session.streams == far.session.streams == {}


def test_the_end_waits_for_everything_written_before():
    near, far = linked()
    stream, other = open_pair(near, far)
    data = pattern(1, 0, 900 * KIB)
    stream.write(data)
    stream.end()
    assert not stream.writable
    exchange(near, far)
    assert other.received == data
    assert other.ends == 1


def test_fin_is_sent_once_however_often_it_is_asked_for():
    near, far = linked()
    stream, _ = open_pair(near, far)
    stream.end()
    stream.end()
    frames = near.frames()
    stream.end()
    frames += near.frames()
    assert [f for f in frames if f.flags & FIN] == [Frame(UPDATE, FIN, stream.id, 0)]


def test_an_open_and_its_end_may_leave_together():
    near, far = linked()
    near.open().end()
    exchange(near, far)
    assert far.accepted[0].ends == 1


def test_writes_after_the_end_are_dropped():
    near, far = linked()
    stream, other = open_pair(near, far)
    stream.write(b"kept")
    stream.end()
    stream.write(b"dropped")
    exchange(near, far)
    assert other.received == b"kept"


def test_fin_on_a_data_frame_counts_after_its_body():
    server = Side(client=False, clock=Clock())
    frame = data_frame(1, b"all of it", FIN)
    server.feed(syn(1) + frame[:-4])
    stream = server.accepted[0]
    assert stream.ends == 0
    server.feed(frame[-4:])
    assert (stream.received, stream.ends) == (b"all of it", 1)


def test_fin_may_come_on_an_empty_data_frame_and_with_a_window_update():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1) + data_frame(1, b"", FIN) + syn(3) + raw(WINDOW_UPDATE | FIN, 3, 10))
    assert [s.ends for s in server.accepted] == [1, 1]


def test_an_empty_data_frame_changes_nothing():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1) + data_frame(1, b"") + data_frame(1, b"x"))
    assert server.accepted[0].received == b"x"


def test_a_reset_kills_both_directions_at_once():
    near, far = linked()
    stream, other = open_pair(near, far)
    stream.write(b"never sent")
    other.write(b"on its way")
    stream.reset()
    exchange(near, far)
    assert (other.received, other.resets, other.ends) == (b"", 1, 0)
    # Whoever resets needs no telling, and hears nothing more.
    assert (stream.received, stream.resets, stream.ends) == (b"", 0, 0)
    assert near.session.streams == far.session.streams == {}


def test_a_reset_is_sent_once():
    near, far = linked()
    stream, _ = open_pair(near, far)
    stream.reset()
    stream.reset()
    assert near.frames() == [Frame(UPDATE, RST, stream.id, 0)]


def test_a_stream_that_ended_both_ways_may_still_be_reset():
    near, far = linked()
    stream, other = open_pair(near, far)
    stream.end()
    other.end()
    exchange(near, far)
    stream.reset()
    exchange(near, far)
    assert (stream.resets, other.resets) == (0, 0)
    assert near.session._grown == near.session._unacked == 0


def test_writes_and_ends_after_a_reset_do_nothing():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.reset()
    exchange(near, far)
    assert stream.resets == 1
    stream.write(b"x")
    stream.end()
    stream.reset()
    assert near.frames() == []
    assert stream.pending == 0
    assert not stream.writable


def test_a_reset_on_a_data_frame_skips_its_body():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1) + data_frame(1, b"\xff" * 30, RST) + syn(3) + data_frame(3, b"fine"))
    assert (server.accepted[0].received, server.accepted[0].resets) == (b"", 1)
    assert server.accepted[1].received == b"fine"


def test_a_stream_may_be_reset_between_the_parts_of_a_frame():
    near, far = linked()
    stream, other = open_pair(near, far)
    stream.write(b"abcdef")
    data = near.take()
    far.feed(data[:15])
    other.reset()
    far.feed(data[15:])
    assert other.received == b"abc"
    assert far.session.streams == {}


def test_a_stream_may_be_reset_within_its_own_callback():
    near, far = linked()
    stream, other = open_pair(near, far)
    other.hook = lambda s, _: s.reset()
    stream.write(b"one")
    first = near.take()
    stream.write(b"two")
    far.feed(first + near.take())
    assert other.chunks == [b"one"]
    exchange(near, far)
    assert stream.resets == 1


# -- the end of the session ---------------------------------------------------------------------


def test_closing_resets_every_stream_once():
    near, far = linked()
    streams = [near.open() for _ in range(3)]
    exchange(near, far)
    near.session.close()
    near.session.close()
    assert [s.resets for s in streams] == [1, 1, 1]
    assert near.session.streams == {}
    for stream in streams:
        stream.write(b"x")
        stream.end()
        stream.reset()
    assert near.take() == b""


def test_a_session_closed_within_a_callback_accepts_nothing_of_the_same_bytes():
    server = Side(client=False, clock=Clock())
    server.feed(syn(1))
    server.accepted[0].hook = lambda s, _: s.session.close()
    server.feed(data_frame(1, b"bye") + syn(3) + data_frame(3, b"x") + data_frame(1, b"y"))
    assert len(server.accepted) == 1
    assert server.session.streams == {}


def test_moves_that_nobody_may_make_are_our_own_fault():
    near, far = linked()
    stream, _ = open_pair(near, far)
    stream.end()
    near.frames()
    with pytest.raises(LocalWireError):
        stream._move_send(yamux.Half.ENDING)


def test_the_stream_base_leaves_its_callbacks_to_its_owner():
    near, _ = linked()
    stream = yamux.Stream(near.session, 99)
    for call in (stream.on_end, stream.on_reset, stream.on_full, stream.on_drained):
        with pytest.raises(NotImplementedError):
            call()
    with pytest.raises(NotImplementedError):
        stream.on_data(b"x")
