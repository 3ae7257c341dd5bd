"""Datagrams between a visitor and a proxy that speak different versions."""

from __future__ import annotations

import pytest

from pyfrp.errors import BadMessage
from pyfrp.net.datagrams import Complaints
from pyfrp.net.translated import translated
from pyfrp.wire.messages import Ping, Pong, UDPAddr, UDPPacket
from pyfrp.wire.v2 import V2
from pyfrp.wire.version import V1
from tests.unit.net.ends import Reader, memory_pair, turns
from tests.unit.wire.pieces import three_ways

ways = pytest.mark.parametrize(("theirs", "ours"), [(V1, V2), (V2, V1)], ids=["v1-v2", "v2-v1"])
PACKETS = [
    UDPPacket(content=b"hello", remote_addr=UDPAddr(ip="192.0.2.7", port=4711)),
    UDPPacket(content=b"", remote_addr=UDPAddr(ip="fe80::1", port=9, zone="lo")),
    UDPPacket(content=bytes(7000)),
]


def bridged(theirs, ours, early=b""):
    """The server's side of a visitor's connection, a reader on it, the visitor's end, complaints"""
    near, far = memory_pair()
    near.pause_reading()
    said = []
    made = translated(near, early, theirs, ours, complaints=Complaints(said.append))
    reader = Reader()
    made.set_protocol(reader)
    return made, reader, far, said


def read(version, data):
    decoder = version.decoder()
    decoder.feed(bytes(data))
    found = []
    while (msg := decoder.next()) is not None:
        found.append(msg)
    assert decoder.leftover() == b""
    return found


@ways
@three_ways
async def test_datagrams_of_a_visitor_are_written_again(cut, theirs, ours):
    data = b"".join(map(theirs.encode, PACKETS))
    made, reader, far, said = bridged(theirs, ours, early=data[:30])
    made.resume_reading()
    for piece in cut(data[30:]):
        far.write(piece)
    await turns()
    assert read(ours, reader.data) == PACKETS
    assert not said


@ways
@three_ways
async def test_datagrams_of_a_proxy_are_written_again(cut, theirs, ours):
    made, _, far, said = bridged(theirs, ours)
    for piece in cut(b"".join(map(ours.encode, PACKETS))):
        made.write(piece)
    await turns()
    assert read(theirs, far.get_protocol().data) == PACKETS
    assert not said


@ways
async def test_pings_go_to_the_visitor_and_never_to_the_proxy(theirs, ours):
    made, reader, far, _ = bridged(theirs, ours)
    made.resume_reading()
    made.write(ours.encode(Ping()))
    far.write(theirs.encode(Ping()) + theirs.encode(PACKETS[0]))
    await turns()
    assert read(theirs, far.get_protocol().data) == [Ping()]
    assert read(ours, reader.data) == PACKETS[:1]


async def test_a_datagram_that_one_version_cannot_carry_is_lost_alone():
    made, reader, far, said = bridged(V2, V1)
    made.resume_reading()
    big = UDPPacket(content=bytes(20_000))
    far.write(b"".join(map(V2.encode, (PACKETS[0], big, big, PACKETS[1]))))
    await turns()
    assert read(V1, reader.data) == PACKETS[:2]
    (text,) = said
    assert "a datagram was dropped: UDPPacket of 26676 bytes" in text


@ways
@pytest.mark.parametrize("kind", ["other message", "garbage"])
async def test_a_visitor_that_says_something_else_is_cut(theirs, ours, kind):
    made, reader, far, _ = bridged(theirs, ours)
    made.resume_reading()
    far.write(theirs.encode(Pong()) if kind == "other message" else b"\xff" * 20)
    await turns()
    assert isinstance(reader.lost[0], BadMessage)
    assert made.is_closing()
    assert far.get_protocol() is None


@ways
@pytest.mark.parametrize("kind", ["other message", "garbage"])
async def test_a_proxy_that_says_something_else_is_cut(theirs, ours, kind):
    made, reader, _, _ = bridged(theirs, ours)
    made.resume_reading()
    made.write(ours.encode(Pong()) if kind == "other message" else b"\xff" * 20)
    await turns()
    assert reader.lost
    assert made.is_closing()


@ways
async def test_the_end_of_either_side_is_carried(theirs, ours):
    made, reader, far, _ = bridged(theirs, ours)
    made.resume_reading()
    far.write(theirs.encode(PACKETS[0]))
    far.write_eof()
    await turns()
    assert reader.ends == 1
    made.write(ours.encode(PACKETS[0]))
    made.write_eof()
    await turns()
    assert read(theirs, far.get_protocol().data) == PACKETS[:1]
    assert far.get_protocol().ends == 1
    far.abort()
    await turns()
