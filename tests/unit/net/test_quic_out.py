"""What two connections send each other, packet by packet, and without a clock of their own."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

pytest.importorskip("aioquic", reason="QUIC is optional, and not installed here")

from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfrp.net.quic_connection import Connection
from pyfrp.net.quic_out import ACK_PACKETS, ACK_SOON_PACKETS, packed
from pyfrp.net.quic_path import RUNGS
from pyfrp.net.quic_tls import DATAGRAM, peer_setup

ADDRESSES = ("192.0.2.1", 4711), ("192.0.2.2", 7000)


class Ends:
    """A client and a server that have shaken hands, a millisecond apart at each turn.

    Attributes:
        passes: Whether a datagram arrives.
        sent: Sizes of what each has sent, by `count`.
    """

    def __init__(self, largest: int = 0) -> None:
        self.now = 1000.0
        self.passes: Callable[[bytes], bool] = lambda data: True
        self.heard: dict[int, bytearray] = {}
        setups = [peer_setup(client=c, name="x", keepalive_s=10, idle_s=30) for c in (True, False)]
        self.client = Connection(setups[0], largest=largest)
        self.client.connect(ADDRESSES[1], now=self.now)
        first = self.client.datagrams_to_send(now=self.now)
        self.server = Connection(
            setups[1],
            largest=largest,
            original_destination_connection_id=first[0][0][6 : 6 + first[0][0][5]],
        )
        for data, _ in first:
            self.server.receive_datagram(data, ADDRESSES[0], now=self.now)
        for _ in range(10):
            self.turn()
        self.server.allow_streams(10_000)
        self.turn()

    def turn(self) -> tuple[list[int], list[int]]:
        """Let both send once; returns the sizes of what they sent."""
        self.now += 0.001
        sizes: list[list[int]] = []
        for near, far, source in (
            (self.client, self.server, ADDRESSES[0]),
            (self.server, self.client, ADDRESSES[1]),
        ):
            when = near.get_timer()
            if when is not None and when <= self.now:
                near.handle_timer(self.now)
            sent = near.datagrams_to_send(now=self.now)
            sizes.append([len(data) for data, _ in sent])
            for data, _ in sent:
                if self.passes(data):
                    far.receive_datagram(data, source, now=self.now)
            while (event := far.next_event()) is not None:
                if isinstance(event, StreamDataReceived):
                    self.heard.setdefault(event.stream_id, bytearray()).extend(event.data)
                    far.allow(event.stream_id, len(self.heard[event.stream_id]) + 1_000_000)
        return sizes[0], sizes[1]

    def open(self, count: int) -> list[int]:
        """Streams of the client's that both know."""
        numbers = []
        for _ in range(count):
            number = self.client.get_next_available_stream_id()
            self.client.send_stream_data(number, b"")
            self.client.announce(number)
            numbers.append(number)
            self.turn()
        self.rest()
        return numbers

    def until(self, done: Callable[[], bool]) -> None:
        """Take turns; many, for after losses, probes come ever more seldom."""
        for _ in range(20_000):
            if done():
                return
            self.turn()
        raise AssertionError("not within 20 s of their time")

    def rest(self, turns: int = 60) -> None:
        for _ in range(turns):
            self.turn()


def no_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when aioquic's own code writes a packet of a connection's life."""

    def write(self, builder, network_path, now):
        raise AssertionError("the usual way")

    monkeypatch.setattr(QuicConnection, "_write_application", write)


def test_streams_at_rest_are_not_gone_through(monkeypatch):
    ends = Ends()
    numbers = ends.open(150)
    assert ends.client._streams_queue == [] == ends.server._streams_queue
    assert len(ends.client._streams) == len(ends.server._streams) == 150
    no_usual_way(monkeypatch)
    ends.client.send_stream_data(numbers[7], b"word")
    assert len(ends.client._streams_queue) == 1
    ends.rest()
    assert ends.heard == {numbers[7]: b"word"}
    assert ends.client._streams_queue == []


def test_streams_that_have_ended_one_way_are_at_rest_and_forgotten_in_the_end():
    ends = Ends()
    numbers = ends.open(20)
    for number in numbers:
        ends.client.send_stream_data(number, b"question", end_stream=True)
    ends.rest()
    assert ends.client._streams_queue == [] == ends.server._streams_queue
    for number in numbers:
        ends.server.send_stream_data(number, b"answer", end_stream=True)
    ends.rest()
    assert not ends.client._streams
    assert not ends.server._streams
    assert not ends.client._queued
    assert not ends.server._queued


def test_small_pieces_of_many_streams_share_a_packet(monkeypatch):
    ends = Ends()
    numbers = ends.open(100)
    no_usual_way(monkeypatch)
    for number in numbers:
        ends.client.send_stream_data(number, b"token %d" % number)
    sent, _ = ends.turn()
    assert len(sent) == 2
    assert ends.heard == {number: b"token %d" % number for number in numbers}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_pieces_of_every_size_arrive(data):
    ends = Ends(largest=data.draw(st.sampled_from([0, 65_000])))
    numbers = ends.open(3)
    wrote: dict[int, bytes] = {}
    dice = random.Random(data.draw(st.integers(0, 9)))
    loss = data.draw(st.sampled_from([0.0, 0.1]))
    ends.passes = lambda sent: dice.random() >= loss
    near_full = st.integers(DATAGRAM - 120, DATAGRAM + 20)
    sizes = st.one_of(st.integers(1, 200), near_full, st.integers(1, 60_000))
    for _ in range(data.draw(st.integers(1, 12))):
        number = data.draw(st.sampled_from(numbers))
        piece = dice.randbytes(data.draw(sizes))
        ends.client.send_stream_data(number, piece)
        wrote[number] = wrote.get(number, b"") + piece
        if data.draw(st.booleans()):
            ends.turn()
    ends.until(lambda: ends.heard == wrote)
    ends.passes = lambda sent: True
    ends.until(lambda: not ends.client._loss.bytes_in_flight)


def test_a_window_narrower_than_a_datagram_holds_nothing_up_for_ever():
    """As one is that was narrow when larger datagrams were found to pass."""
    ends = Ends(largest=65_000)
    (number,) = ends.open(1)
    wrote = bytes(2_000_000)
    ends.client.send_stream_data(number, wrote)
    ends.rest(100)
    assert ends.client._max_datagram_size == RUNGS[-1]
    control = ends.client._loss._cc
    ends.client.send_stream_data(number, wrote)
    control.congestion_window = control.ssthresh = control._W_est = 1000
    ends.rest(400)
    assert len(ends.heard[number]) == 2 * len(wrote)
    assert control.bytes_in_flight == 0


def under_way():
    """A connection past its first packets, and its one stream."""
    ends = Ends()
    (number,) = ends.open(1)
    for _ in range(ACK_SOON_PACKETS + 10):
        ends.client.send_stream_data(number, b"token")
        ends.turn()
    return ends, number


def test_a_long_answer_of_small_pieces_is_acknowledged_rarely():
    ends, number = under_way()
    acks = 0
    for _ in range(400):
        ends.client.send_stream_data(number, b"token")
        acks += len(ends.turn()[1])
    assert 400 // ACK_PACKETS <= acks <= 400 // 15  # 20 ms
    ends.rest()
    assert ends.client._loss.bytes_in_flight == 0


def test_a_lost_packet_is_noticed_at_once():
    ends, number = under_way()
    ends.passes = lambda data: False
    ends.client.send_stream_data(number, b"lost")
    ends.turn()
    ends.passes = lambda data: True
    acks = 0
    for _ in range(4):
        ends.client.send_stream_data(number, b"token")
        acks += len(ends.turn()[1])
    assert acks >= 2
    ends.rest(5)
    assert b"lost" in ends.heard[number]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_said_of_a_stream_is_said_again_when_it_is_lost(seed):
    ends = Ends()
    numbers = ends.open(60)
    dice = random.Random(seed)
    ends.passes = lambda data: dice.random() > 0.3
    for number in numbers:
        kind = number // 4 % 4
        if kind < 2:
            ends.client.send_stream_data(number, b"question", end_stream=kind == 1)
            ends.server.send_stream_data(number, b"answer", end_stream=True)
        if kind == 2:
            ends.client.reset_stream(number, 0)
            ends.server.reset_stream(number, 0)
        if kind == 0:
            ends.server.stop_stream(number, 0)
        if kind == 3:
            ends.client.allow(number, 2_000_000)
        ends.turn()
    ends.rest(500)
    ends.passes = lambda data: True
    ends.rest(5000)
    left = {number for number in numbers if number // 4 % 4 == 3}
    assert set(ends.client._streams) == left == set(ends.server._streams)
    assert {ends.server._streams[one].max_stream_data_remote for one in left} == {2_000_000}
    assert ends.client._streams_queue == [] == ends.server._streams_queue


def test_acknowledgements_that_nobody_acknowledges_do_not_pile_up():
    ends = Ends()
    (number,) = ends.open(1)
    for _ in range(6000):
        ends.client.send_stream_data(number, bytes(1000))
        ends.turn()
    assert len(ends.server._space.sent_packets) < 200


def test_datagrams_grow_to_what_the_path_carries():
    ends = Ends(largest=65_000)
    (number,) = ends.open(1)
    ends.passes = lambda data: len(data) <= 9_000
    sizes = set()
    for _ in range(600):
        ends.client.send_stream_data(number, bytes(60_000))
        sizes |= set(ends.turn()[0])
    assert {DATAGRAM, *RUNGS} <= sizes
    assert ends.client._max_datagram_size == RUNGS[1]
    assert ends.server._max_datagram_size == DATAGRAM
    assert ends.client._loss._cc.congestion_window >= 2 * RUNGS[1]


@pytest.mark.parametrize("small", [True, False])
def test_a_path_that_carries_less_than_before_is_no_black_hole(small):
    """Whether or not smaller packets still come through in between."""
    ends = Ends(largest=65_000)
    numbers = ends.open(2)
    for _ in range(200):
        ends.client.send_stream_data(numbers[0], bytes(60_000))
        ends.turn()
    assert ends.client._max_datagram_size == RUNGS[-1]
    ends.passes = lambda data: len(data) <= 1400
    wrote = 200 * 60_000 + 500_000
    ends.client.send_stream_data(numbers[0], bytes(500_000))
    for turn in range(6_000):
        if small and turn % 10 == 0:
            ends.client.send_stream_data(numbers[1], b"word")
        ends.turn()
        if len(ends.heard[numbers[0]]) == wrote:
            break
    assert len(ends.heard[numbers[0]]) == wrote
    assert ends.client._max_datagram_size == DATAGRAM


def test_a_peer_that_takes_no_more_gets_no_more(monkeypatch):
    """As official ones do not."""
    ends = Ends(largest=65_000)
    ends.client._sizes.bound(1452)
    (number,) = ends.open(1)
    sizes = set()
    for _ in range(200):
        ends.client.send_stream_data(number, bytes(60_000))
        sizes |= set(ends.turn()[0])
    assert max(sizes) == 1452


@given(st.integers(0, (1 << 62) - 1))
def test_numbers_are_packed(number):
    data = packed(number)
    assert len(data) == 1 << (data[0] >> 6)
    assert int.from_bytes(data, "big") & (1 << (8 * len(data) - 2)) - 1 == number
