from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import (
    BadMessage,
    FrameTooLarge,
    LocalWireError,
    RefusedError,
    RemoteWireError,
)
from pyfrp.wire import framing, v2
from pyfrp.wire import messages as m
from pyfrp.wire.gojson import decode_body, encode_body
from pyfrp.wire.version import Hello
from tests.unit.wire.pieces import cut_at, places, three_ways

RANDOM = bytes(range(32))
HELLO = v2.client_hello(RANDOM, transport="tcp", tls=True, tcp_mux=True, algorithms=v2.ALGORITHMS)


def read_all(pieces):
    decoder, found = v2.FrameDecoder(), []
    for piece in pieces:
        decoder.feed(piece)
        while (frame := decoder.next()) is not None:
            found.append(frame)
    return found, decoder.leftover()


@three_ways
def test_frames_come_out_in_order_however_they_arrive(cut):
    frames = [(1, b"{}"), (16, b""), (2, b"x" * 3000)]
    data = b"".join(v2.encode_frame(*frame) for frame in frames)
    assert read_all(cut(data + b"tail")) == (frames, b"tail")


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_garbage_raises_remote_wire_error_or_nothing(pieces):
    try:
        read_all(pieces)
    except RemoteWireError:
        pass


@given(st.binary(max_size=60), places)
def test_garbage_in_a_valid_frame_raises_bad_message_or_nothing(payload, where):
    ((kind, got),), _ = read_all(cut_at(v2.encode_frame(v2.MESSAGE, payload), where))
    assert (kind, got) == (v2.MESSAGE, payload)
    try:
        v2.decode_message(got)
    except BadMessage:
        pass


@pytest.mark.parametrize("cls", m.TYPE_BYTES)
def test_each_message_has_an_id_and_the_body_of_v1(cls):
    frame = v2.encode(cls())
    assert v2.decode_message(frame[8:]) == cls()
    assert frame[10:] == framing.encode(cls())[9:]
    assert struct.unpack_from(">H", frame, 8) == (v2.IDS[cls],)


def test_ids_are_one_to_eighteen():
    assert sorted(v2.IDS.values()) == list(range(1, 19))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (struct.pack(">HHI", 3, 0, 0), BadMessage),
        (struct.pack(">HHI", 16, 1, 0), BadMessage),
        (struct.pack(">HHI", 16, 0, 65537), FrameTooLarge),
        (b"oops 1234", BadMessage),
    ],
)
def test_bad_frame_is_refused_by_its_header(data, error):
    with pytest.raises(error):
        read_all([data])


@pytest.mark.parametrize(
    "payload", [b"", b"\x00", b"\x00\x00{}", b"\x00\x13{}", b"\x00\x07[]", b"\x00\x0b"]
)
def test_bad_message_is_refused(payload):
    with pytest.raises(BadMessage):
        v2.decode_message(payload)


def test_payload_of_the_largest_size_passes_and_one_more_byte_does_not():
    assert read_all([v2.encode_frame(16, bytes(65536))])[0] == [(16, bytes(65536))]
    with pytest.raises(LocalWireError, match="65537 bytes"):
        v2.encode_frame(16, bytes(65537))


def test_hello_beyond_its_limit_is_refused_by_its_header():
    assert read_all([v2.encode_frame(1, bytes(v2.MAX_HELLO))])[0] == [(1, bytes(v2.MAX_HELLO))]
    for kind in (v2.CLIENT_HELLO, v2.SERVER_HELLO):
        with pytest.raises(FrameTooLarge, match=f"payload of {v2.MAX_HELLO + 1} bytes"):
            read_all([struct.pack(">HHI", kind, 0, v2.MAX_HELLO + 1)])


def test_message_of_the_largest_size_passes_and_one_more_byte_does_not():
    spare = v2.MAX_PAYLOAD - 2 - len(encode_body(m.Ping(privilege_key="x"))) + 1
    msg = m.Ping(privilege_key="x" * spare)
    assert len(v2.encode(msg)) == 8 + v2.MAX_PAYLOAD
    assert messages([v2.encode(msg)]) == [msg]
    msg.privilege_key += "x"
    with pytest.raises(LocalWireError, match=r"Ping of 65535 bytes: .* at most 65534"):
        v2.encode(msg)


# --- messages and hellos in one stream ---------------------------------------------------------

GREETING = Hello(kind=v2.CLIENT_HELLO, payload=b"any bytes")


def messages(pieces):
    decoder, found = v2.MessageDecoder(), []
    for piece in pieces:
        decoder.feed(piece)
        while (msg := decoder.next()) is not None:
            found.append(msg)
    assert decoder.leftover() == b""
    return found


@three_ways
def test_hello_and_messages_are_read_in_order(cut):
    sent = [GREETING, m.Login(user="a"), m.Ping(), m.NewProxy(proxy_name="p")]
    assert messages(cut(b"".join(map(v2.encode, sent)))) == sent


def test_a_hello_comes_first_or_never():
    for first in (GREETING, m.Ping()):
        with pytest.raises(BadMessage, match=r"^a hello where a message should be$"):
            messages([v2.encode(first), v2.encode(GREETING)])


def test_a_message_that_is_none_uses_up_the_place_of_the_hello():
    decoder = v2.MessageDecoder()
    decoder.feed(v2.encode_frame(v2.MESSAGE, b"\0\0{}") + v2.encode(GREETING))
    with pytest.raises(BadMessage, match="unknown message id 0"):
        decoder.next()
    with pytest.raises(BadMessage, match="a hello where"):
        decoder.next()


# --- hellos ------------------------------------------------------------------------------------


def hello(**crypto) -> v2.ClientHello:
    msg = decode_body(v2.ClientHello, encode_body(HELLO))
    for name, value in crypto.items():
        setattr(msg.capabilities.crypto, name, value)
    return msg


def test_false_and_empty_members_are_left_out():
    plain = v2.client_hello(RANDOM, transport="", tls=False, tcp_mux=False, algorithms=())
    assert b'"bootstrap":{}' in encode_body(plain)


def test_server_takes_the_first_algorithm_that_it_knows():
    msg = hello(algorithms=["rot13", "xchacha20-poly1305", "aes-256-gcm"])
    answer = v2.server_hello(msg, RANDOM)
    assert answer.selected.crypto.algorithm == "xchacha20-poly1305"
    assert v2.check_server_hello(answer, msg) == "xchacha20-poly1305"


@pytest.mark.parametrize(
    ("msg", "words"),
    [
        (v2.ClientHello(), "unsupported message codec"),
        (hello(client_random=b"short"), "invalid crypto client random length 5, want 32"),
        (hello(algorithms=["rot13"]), "no supported crypto algorithm"),
        (hello(algorithms=[]), "no supported crypto algorithm"),
    ],
)
def test_hello_that_fits_nothing_is_refused_with_frps_words(msg, words):
    with pytest.raises(RefusedError, match=f"^{words}$"):
        v2.server_hello(msg, RANDOM)
    sent = v2.refusal(words)
    assert encode_body(sent).startswith(b'{"selected":{"message":{"codec":"json"},"crypto":{}}')
    with pytest.raises(RefusedError, match=f"^{words}$"):
        v2.check_server_hello(sent, HELLO)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"selected":{"message":{"codec":"json"}}}',
        b'{"selected":{"message":{"codec":"json"},"crypto":{"algorithm":"rot13"}}}',
        b'{"selected":{"message":{"codec":"json"},"crypto":{"algorithm":"aes-256-gcm"}}}',
    ],
)
def test_choice_that_was_not_offered_is_a_breach(body):
    with pytest.raises(RemoteWireError):
        v2.check_server_hello(decode_body(v2.ServerHello, body), HELLO)


@given(st.binary(max_size=100))
def test_garbage_is_no_hello(data):
    for cls in (v2.ClientHello, v2.ServerHello):
        try:
            decode_body(cls, data)
        except BadMessage:
            pass
