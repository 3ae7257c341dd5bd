"""KCP sessions on a network that loses, repeats and reorders, on a virtual clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfrp.wire import kcp
from pyfrp.wire.kcp import (
    ACK,
    ASK_WINDOW,
    MAX_DATAGRAM,
    MAX_SEGMENT_DATA,
    PUSH,
    TELL_WINDOW,
    Segment,
)
from pyfrp.wire.kcp_session import (
    ACK_DELAY_S,
    ACK_EVERY,
    ACK_FULL,
    GATHER_AFTER,
    GATHER_BYTES,
    GATHER_S,
    LEAST_ROOM,
    KcpSession,
)

CONV = 1
DELAY_S = 0.01


class Net:
    """Two sessions and the datagrams between them."""

    def __init__(self, *, loss=0.0, twice=0.0, jitter=0.0, seed=0, window=64, room=10_000):
        self.now = 0.0
        self.dice = random.Random(seed)
        self.loss, self.twice, self.jitter, self.room = loss, twice, jitter, room
        self.got = [bytearray(), bytearray()]
        self.ends = [
            KcpSession(
                CONV, on_data=self.got[side].extend, now=0.0, window=window, send_window=window
            )
            for side in (0, 1)
        ]
        self.on_way: list[tuple[float, int, int, bytes]] = []
        self.count = 0
        self.datagrams = [0, 0]

    def send(self):
        for side, end in enumerate(self.ends):
            # A receiver's socket has room for so many at a time.
            for datagram in end.take_output(self.now)[: self.room]:
                self.datagrams[side] += 1
                for _ in range(1 + (self.dice.random() < self.twice)):
                    if self.dice.random() >= self.loss:
                        self.count += 1
                        when = self.now + DELAY_S + self.dice.random() * self.jitter
                        self.on_way.append((when, self.count, 1 - side, datagram))

    def run(self, limit_s=60.0, until=lambda: False):
        """Let time pass until nothing is left to do."""
        end_at = self.now + limit_s
        while not until():
            self.send()
            times = [when for when, *_ in self.on_way]
            times += [when for end in self.ends if (when := end.deadline()) is not None]
            if not times or min(times) > end_at:
                return
            self.now = max(self.now, min(times))
            due = sorted(item for item in self.on_way if item[0] <= self.now)
            self.on_way = [item for item in self.on_way if item[0] > self.now]
            for _, _, side, datagram in due:
                self.ends[side].feed([datagram], self.now)
            for end in self.ends:
                when = end.deadline()
                if when is not None and when <= self.now:
                    end.wake(self.now)


def segments(datagrams) -> list[Segment]:
    return [s for d in datagrams for s in kcp.decode_segments(kcp.decode_datagram(d).body)]


@given(
    st.floats(0, 0.4),
    st.floats(0, 0.5),
    st.floats(0, 0.2),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=9000)), max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_every_byte_arrives_once_and_in_order(loss, twice, jitter, seed, writes):
    net = Net(loss=loss, twice=twice, jitter=jitter, seed=seed, window=16)
    sent = [bytearray(), bytearray()]
    for side, data in writes:
        net.ends[side].write(data)
        sent[1 - side] += data
        net.run(0.05)
    net.run(600.0)
    assert net.got == sent
    assert all(end.idle for end in net.ends)


def test_a_quiet_session_sends_nothing_and_wants_no_time():
    net = Net()
    assert net.ends[0].take_output(0.0) == []
    assert net.ends[0].deadline() is None
    net.ends[0].write(b"hello")
    net.run()
    assert net.got[1] == b"hello"
    assert net.datagrams == [1, 1]
    assert net.ends[0].deadline() is None or net.ends[0].idle


def test_small_writes_of_a_turn_share_a_segment():
    end = KcpSession(CONV, on_data=print, now=0.0)
    for _ in range(100):
        end.write(b"word ")
    (datagram,) = end.take_output(0.0)
    assert [s.data for s in segments([datagram])] == [b"word " * 100]
    assert end.unsent == 0


def test_datagrams_are_no_longer_than_official_peers_take():
    end = KcpSession(CONV, on_data=print, now=0.0)
    end.write(bytes(10 * MAX_SEGMENT_DATA))
    assert {len(d) for d in end.take_output(0.0)} == {1358}


def test_a_large_transfer_survives_a_receiver_with_little_room():
    net = Net(window=1024, room=90)
    data = random.Random(1).randbytes(3_000_000)
    net.ends[0].write(data)
    net.run(120.0)
    assert net.got[1] == data
    # Little of it was sent in vain.
    assert net.datagrams[0] < 1.5 * len(data) / MAX_SEGMENT_DATA


def test_a_reader_that_stops_bounds_the_sender_and_is_asked():
    net = Net(window=32)
    net.ends[1].hold()
    net.ends[0].write(bytes(100 * MAX_SEGMENT_DATA))
    net.run(3.0)
    assert net.got[1] == b""
    assert len(net.ends[1]._ready) == 32
    assert net.ends[0].unsent == 68 * MAX_SEGMENT_DATA
    asked = []
    feed = net.ends[1].feed

    def watched(datagram, now):
        asked.extend(s for s in segments(datagram) if s.cmd == ASK_WINDOW)
        feed(datagram, now)

    net.ends[1].feed = watched
    net.run(30.0)
    assert len(asked) in (2, 3)  # After 7 s, 10.5 s more, and so on.
    net.ends[1].release()
    net.run(1.0)
    assert len(net.got[1]) == 100 * MAX_SEGMENT_DATA


def test_a_reader_may_stop_while_it_is_given_bytes():
    net = Net()
    end = net.ends[1]
    end._on_data = lambda data: (net.got[1].extend(data), end.hold())
    net.ends[0].write(b"first")
    net.run(1.0)
    net.ends[0].write(b"second")
    net.run(1.0)
    assert net.got[1] == b"first"
    end.release()
    assert net.got[1] == b"firstsecond"


def test_a_question_for_the_window_is_answered():
    end = KcpSession(CONV, on_data=print, now=0.0, window=50)
    ask = kcp.encode_data(0, kcp.encode_segments([Segment(CONV, ASK_WINDOW, wnd=9)]))
    end.feed([ask], 0.0)
    (told,) = segments(end.take_output(0.0))
    assert (told.cmd, told.wnd) == (TELL_WINDOW, 50)


def test_what_was_overtaken_twice_is_sent_again_before_its_time():
    end = KcpSession(CONV, on_data=print, now=0.0)
    end.write(bytes(4 * MAX_SEGMENT_DATA))
    sent = segments(end.take_output(0.0))
    assert [s.sn for s in sent] == [0, 1, 2, 3]

    def acknowledge(number):
        ack = Segment(CONV, ACK, wnd=99, ts=sent[number].ts, sn=number)
        end.feed([kcp.encode_data(0, kcp.encode_segments([ack]))], 0.01)
        return [s.sn for s in segments(end.take_output(0.01)) if s.cmd == PUSH]

    assert acknowledge(1) == []
    assert acknowledge(2) == [0]
    assert acknowledge(3) == []


@pytest.mark.parametrize(
    ("skew", "expected"), [(0, [0.2, 0.3, 0.4, 0.5, 0.6]), (77, [0.2, 0.4, 0.8, 1.6, 3.2])]
)
def test_repetitions_wait_longer_each_time(skew, expected):
    """Twice as long where the peer may be one in whose name another began."""
    end = KcpSession(CONV, on_data=print, now=0.0, skew=skew)
    end.write(b"x")
    end.take_output(0.0)
    waits = []
    now = 0.0
    for _ in range(5):
        when = end.deadline()
        assert when is not None
        waits.append(round(when - now, 3))
        now = when
        end.wake(now)
        assert len(end.take_output(now)) == 1
    assert waits == expected


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"garbage",
        bytes(MAX_DATAGRAM + 1),
        kcp.encode_data(0, b"garbage"),
        kcp.encode_parity(0, bytes(100)),
        kcp.encode_data(0, kcp.encode_segments([Segment(2, PUSH, data=b"other")])),
        kcp.encode_data(0, kcp.encode_segments([Segment(CONV, PUSH, sn=1024, data=b"far")])),
    ],
)
def test_what_makes_no_sense_is_ignored(datagram):
    got = []
    end = KcpSession(CONV, on_data=got.append, now=0.0)
    end.feed([datagram], 0.0)
    assert got == []
    assert end.take_output(0.0) == []


def test_datagrams_without_a_header_are_understood():
    got = []
    end = KcpSession(CONV, on_data=got.append, now=0.0)
    end.feed([kcp.encode_segments([Segment(CONV, PUSH, data=b"plain")])], 0.0)
    assert got == [b"plain"]


def test_numbers_go_on_past_32_bits():
    net = Net(loss=0.2, seed=5)
    start = 2**32 - 3
    for end in net.ends:
        end._next = end._first = end._wanted = start
    data = bytes(range(256)) * 100
    net.ends[0].write(data)
    net.run(60.0)
    assert net.got[1] == data
    assert net.ends[1]._wanted > 2**32


@given(
    st.lists(
        st.binary(max_size=200)
        | st.builds(
            lambda *args: kcp.encode_data(0, kcp.encode_segments([Segment(CONV, *args)])),
            st.sampled_from([PUSH, ACK, ASK_WINDOW, TELL_WINDOW]),
            st.integers(0, 255),
            st.integers(0, 65535),
            st.integers(0, 2**32 - 1),
            st.integers(0, 20) | st.integers(0, 2**32 - 1),
            st.integers(0, 20) | st.integers(0, 2**32 - 1),
            st.binary(max_size=20),
        ),
        max_size=30,
    )
)
def test_no_datagram_breaks_a_session(datagrams):
    end = KcpSession(CONV, on_data=lambda data: None, now=0.0, window=16, send_window=16)
    end.write(bytes(5000))
    for number, datagram in enumerate(datagrams):
        now = number / 100
        end.feed([datagram], now)
        end.take_output(now)
        end.wake(now)
        assert len(end._early) + len(end._ready) <= 16
        assert len(end._sent) <= 16


def test_an_end_is_told_behind_what_was_written():
    net = Net()
    near, far = net.ends
    far.hold()
    near.write(b"last words")
    near.finish()
    net.run(1.0)
    assert not far.ended  # There is something to read.
    far.release()
    assert net.got[1] == b"last words"
    assert far.ended
    assert not far.reset


def test_an_end_waits_for_what_was_lost():
    end = KcpSession(CONV, on_data=print, now=0.0)
    other = KcpSession(CONV, on_data=lambda data: None, now=0.0)
    end.write(bytes(2 * MAX_SEGMENT_DATA))
    end.finish()
    first, *rest = end.take_output(0.0)
    other.feed(rest, 0.0)
    assert not other.ended
    other.feed([first], 0.0)
    assert other.ended


def test_a_farewell_ends_at_once():
    end = KcpSession(CONV, on_data=print, now=0.0)
    end.feed([KcpSession(CONV, on_data=print, now=0.0).farewell()], 0.0)
    assert end.reset
    other = KcpSession(CONV + 1, on_data=print, now=0.0)
    other.feed([end.farewell()], 0.0)
    assert not other.reset


def test_only_who_reads_our_clock_is_proven():
    end = KcpSession(CONV, on_data=print, now=0.0, skew=0x9ABCDEF0)
    end.write(b"x")
    (sent,) = segments(end.take_output(5.0))
    assert sent.ts == 0x9ABCDEF0 + 5000
    forged = Segment(CONV, ACK, wnd=9, ts=5000, sn=0)
    end.feed([kcp.encode_data(0, kcp.encode_segments([forged]))], 5.1)
    assert not end.proven
    end.write(b"y")
    (sent,) = segments(end.take_output(5.2))
    real = Segment(CONV, ACK, wnd=9, ts=sent.ts, sn=1)
    end.feed([kcp.encode_data(1, kcp.encode_segments([real]))], 5.3)
    assert end.proven


def test_a_peer_earns_room_by_what_it_brings():
    got = bytearray()
    end = KcpSession(CONV, on_data=got.extend, now=0.0)

    def push(number):
        segment = Segment(CONV, PUSH, sn=number, data=b"x")
        end.feed([kcp.encode_data(number, kcp.encode_segments([segment]))], 0.0)

    for number in range(1, 100):
        push(number)
    assert len(end._early) == LEAST_ROOM - 1
    push(0)
    assert len(got) == LEAST_ROOM
    for number in range(LEAST_ROOM + 1, 200):
        push(number)
    assert len(end._early) == 2 * LEAST_ROOM - 1
    end.hold()
    push(LEAST_ROOM)
    assert len(end._ready) == 2 * LEAST_ROOM
    for number in range(3 * LEAST_ROOM, 300):
        push(number)
    assert len(end._ready) + len(end._early) <= 2 * LEAST_ROOM


def test_a_stale_datagram_does_not_close_the_window():
    end = KcpSession(CONV, on_data=print, now=0.0)
    end.write(bytes(3 * MAX_SEGMENT_DATA))
    end.take_output(0.0)
    fresh = Segment(CONV, ACK, wnd=100, sn=2, una=3)
    stale = Segment(CONV, ACK, wnd=0, sn=0, una=1)
    for segment in (fresh, stale):
        end.feed([kcp.encode_data(0, kcp.encode_segments([segment]))], 0.0)
    assert end._far_window == 100


def test_what_was_sent_again_is_not_overtaken_by_what_left_before_it():
    end = KcpSession(CONV, on_data=print, now=0.0)
    end.write(bytes(10 * MAX_SEGMENT_DATA))
    sent = segments(end.take_output(0.0))
    again = []
    for number in range(1, 10):
        ack = Segment(CONV, ACK, wnd=99, ts=sent[number].ts, sn=number)
        end.feed([kcp.encode_data(0, kcp.encode_segments([ack]))], 0.1 + number / 100)
        pushes = segments(end.take_output(0.1 + number / 100))
        again += [s.sn for s in pushes if s.cmd == PUSH]
    assert again == [0]


def test_a_peer_that_forgot_us_is_asked_twice():
    end = KcpSession(CONV, on_data=print, now=0.0)
    end.write(b"x")
    end.take_output(0.0)

    def told(una):
        tell = Segment(CONV, TELL_WINDOW, wnd=99, una=una)
        end.feed([kcp.encode_data(0, kcp.encode_segments([tell]))], 0.0)
        return [s.cmd for s in segments(end.take_output(0.0))]

    assert told(1) == []
    assert told(0) == [ASK_WINDOW]  # It may have come late.
    assert told(1) == []
    assert told(0) == [ASK_WINDOW]
    assert not end.reset
    told(0)
    assert end.reset


def test_acknowledgements_wait_a_little_for_data_but_not_where_something_is_missing():
    def push(*numbers, data=b"x"):
        for number in numbers:
            segment = Segment(CONV, PUSH, wnd=99, sn=number, data=data)
            end.feed([kcp.encode_data(number, kcp.encode_segments([segment]))], 1.0)
        return [s.cmd for s in segments(end.take_output(1.0))]

    end = KcpSession(CONV, on_data=lambda data: None, now=1.0)
    assert push(0) == []
    end.write(b"answer")
    assert push() == [ACK, PUSH]
    assert push(1, 2) == []
    assert end.deadline() == 1.0 + ACK_DELAY_S
    end.wake(1.0 + ACK_DELAY_S)
    assert push() == [ACK]
    assert push(*range(3, 3 + ACK_EVERY)) == [ACK]
    first = 3 + ACK_EVERY
    last = first + ACK_EVERY // ACK_FULL - 1
    full = bytes(MAX_SEGMENT_DATA)
    assert push(*range(first, last), data=full) == []
    assert push(last, data=full) == [ACK]
    assert push(last + 9) == [ACK]
    assert push(last + 9) == [ACK]  # The last one did not arrive.


def streaming(now=1.0):
    """A session in which little data left as often as it may without a word from the peer."""
    end = KcpSession(CONV, on_data=lambda data: None, now=0.0)
    for _ in range(GATHER_AFTER + 1):
        end.write(b"token")
        assert pushed(end, now) == [b"token"]
    return end


def pushed(end, now):
    return [s.data for s in segments(end.take_output(now)) if s.cmd == PUSH]


def test_tokens_of_many_streams_gather():
    end = streaming()
    end.write(b"one")
    assert not end.gathers(1.0)  # It is for `take_output` to say.
    assert pushed(end, 1.0) == []
    assert end.gathers(1.001)
    assert not end.eager
    assert end.deadline() == pytest.approx(1.0 + 2 * GATHER_S)
    end.write(b"two")
    now = 1.0 + GATHER_S
    assert not end.gathers(now)
    assert pushed(end, now) == [b"onetwo"]
    end.write(b"three")
    assert pushed(end, now) == []
    now = end.deadline()
    assert now == pytest.approx(1.0 + 3 * GATHER_S)
    end.wake(now)
    assert pushed(end, now) == [b"three"]


def test_tokens_that_come_in_step_every_now_and_then_do_not_gather():
    end = streaming()
    for now in (1.05, 1.10, 1.15):
        for _ in range(GATHER_AFTER):
            end.write(b"token")
            assert pushed(end, now) == [b"token"]


def test_answers_do_not_gather():
    end = streaming()
    end.write(b"answer")
    assert pushed(end, 1.0) == []
    question = Segment(CONV, PUSH, wnd=99, data=b"question")
    end.feed([kcp.encode_data(0, kcp.encode_segments([question]))], 1.0)
    assert end.eager
    assert pushed(end, 1.0) == [b"answer"]


def test_much_data_does_not_gather():
    end = streaming()
    end.write(b"token")
    assert pushed(end, 1.0) == []
    end.write(bytes(GATHER_BYTES))
    assert not end.gathers(1.0)
    assert sum(map(len, pushed(end, 1.0))) == GATHER_BYTES + 5


def test_an_end_does_not_gather():
    end = streaming()
    end.write(b"last words")
    assert pushed(end, 1.0) == []
    end.finish()
    assert pushed(end, 1.0) == [b"last words"]


def test_what_gathers_at_a_closed_window_wants_no_time():
    """Else its moment, once gone by, would be waited for again and again."""
    end = streaming()
    end.write(b"token")
    assert pushed(end, 1.0) == []
    full = Segment(CONV, ACK, wnd=0, sn=0, una=GATHER_AFTER + 1)
    end.feed([kcp.encode_data(0, kcp.encode_segments([full]))], 1.001)
    when = end.deadline()
    assert when == pytest.approx(1.0 + 2 * GATHER_S)
    end.wake(when)
    assert pushed(end, when) == []
    assert end.deadline() > when


def test_a_moment_missed_by_the_rounding_of_a_sum_is_not_missed():
    """A clock of milliseconds would wake us until the next one."""
    end = KcpSession(CONV, on_data=lambda data: None, now=0.0)
    word = Segment(CONV, PUSH, wnd=99, data=b"x")
    end.feed([kcp.encode_data(0, kcp.encode_segments([word]))], 1.0)
    end.wake(end.deadline() - 1e-12)
    assert [s.cmd for s in segments(end.take_output(1.0 + ACK_DELAY_S))] == [ACK]
