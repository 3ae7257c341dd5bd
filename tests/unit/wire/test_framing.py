from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadMessage, FrameTooLarge, LocalWireError, RemoteWireError
from pyfrp.wire import framing
from pyfrp.wire import messages as m
from tests.unit.wire.pieces import cut_at, places, three_ways

SOME = [m.Ping(timestamp=5), m.ReqWorkConn(), m.NewWorkConn(run_id="r" * 300), m.Pong(error="e")]


def drain(decoder):
    found = []
    while (msg := decoder.next()) is not None:
        found.append(msg)
    return found


def header(kind, length):
    return struct.pack(">cq", kind, length)


@three_ways
def test_messages_come_out_in_order_however_they_arrive(cut):
    decoder = framing.FrameDecoder()
    found = []
    for piece in cut(b"".join(map(framing.encode, SOME))):
        decoder.feed(piece)
        found += drain(decoder)
    assert found == SOME
    assert decoder.leftover() == b""


@given(st.integers(0, 40), places, st.binary(max_size=40))
def test_leftover_is_exact_at_every_split(taken, where, payload):
    data = framing.encode(m.LoginResp(run_id="x" * taken)) + payload
    decoder = framing.FrameDecoder()
    pieces = cut_at(data, where)
    for at, piece in enumerate(pieces):
        decoder.feed(piece)
        msg = decoder.next()
        if msg is not None:
            assert msg == m.LoginResp(run_id="x" * taken)
            assert decoder.leftover() + b"".join(pieces[at + 1 :]) == payload
            assert decoder.leftover() == b""
            return
    pytest.fail("the message never came")


def test_leftover_of_an_unfinished_frame_is_all_of_it():
    decoder = framing.FrameDecoder()
    data = framing.encode(m.Ping(timestamp=1))[:-1]
    decoder.feed(data)
    assert decoder.next() is None
    assert decoder.leftover() == data
    assert decoder.next() is None


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_garbage_raises_remote_wire_error_or_nothing(pieces):
    decoder = framing.FrameDecoder()
    try:
        for piece in pieces:
            decoder.feed(piece)
            drain(decoder)
    except RemoteWireError:
        pass


@given(st.sampled_from(sorted(m.CLASSES)), st.binary(max_size=60), places)
def test_garbage_in_a_valid_frame_raises_bad_message_or_nothing(kind, body, where):
    decoder = framing.FrameDecoder()
    try:
        for piece in cut_at(header(bytes([kind]), len(body)) + body, where):
            decoder.feed(piece)
            drain(decoder)
    except BadMessage:
        return
    assert decoder.leftover() == b""


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(m.CLASSES)))
def test_unknown_type_is_told_at_the_first_byte(kind):
    decoder = framing.FrameDecoder()
    decoder.feed(bytes([kind]))
    with pytest.raises(BadMessage, match=f"0x{kind:02x}"):
        decoder.next()


def test_unknown_type_is_told_with_the_whole_header_too():
    decoder = framing.FrameDecoder()
    decoder.feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(BadMessage, match="0x47"):
        decoder.next()


@pytest.mark.parametrize("length", [10241, 2**31, 2**63 - 1, -1, -(2**63)])
def test_length_beyond_the_limit_is_refused_before_the_body_comes(length):
    decoder = framing.FrameDecoder()
    decoder.feed(header(b"o", length))
    with pytest.raises(FrameTooLarge, match=f"Login announces a body of {length} bytes"):
        decoder.next()


def test_body_of_the_largest_size_is_read():
    body = b'{"error":"' + b"e" * (framing.MAX_BODY - 12) + b'"}'
    decoder = framing.FrameDecoder()
    decoder.feed(header(b"4", len(body)) + body)
    assert decoder.next() == m.Pong(error="e" * (framing.MAX_BODY - 12))


def test_error_repeats_until_the_caller_gives_up():
    decoder = framing.FrameDecoder()
    decoder.feed(header(b"4", 2) + b"[]")
    for _ in range(2):
        with pytest.raises(BadMessage):
            decoder.next()


def test_message_that_a_peer_would_refuse_is_not_encoded():
    fits = m.NewProxy(sk="s" * (framing.MAX_BODY - len('{"sk":""}')))
    assert len(framing.encode(fits)) == 9 + framing.MAX_BODY
    with pytest.raises(LocalWireError, match="NewProxy of 10241 bytes"):
        framing.encode(m.NewProxy(sk=fits.sk + "s"))
