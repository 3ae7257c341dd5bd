from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadHead, FrameTooLarge, HandshakeError, RemoteWireError
from pyfrp.wire import websocket as ws
from tests.unit.wire.pieces import cut_at, places, three_ways

MASK = b"\x01\x80\xfe\x37"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
both = pytest.mark.parametrize("mask", [b"", MASK], ids=["server", "client"])


def read_all(pieces, *, masked: bool) -> tuple[bytes, list[ws.Control]]:
    decoder, plain, controls = ws.FrameDecoder(masked=masked), b"", []
    for piece in pieces:
        plain += decoder.decode(piece)
        controls += decoder.controls()
    return plain, controls


def raw(first: int, payload: bytes = b"", mask: bytes = b"") -> bytes:
    """A frame with a first byte of our choice."""
    return bytes([first]) + ws.encode_frame(payload, mask=mask)[1:]


# --- frames ------------------------------------------------------------------------------------


@three_ways
@both
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_payload_survives_any_cutting(cut, mask, size):
    plain = bytes(range(256)) * (size // 256 + 1)
    data = ws.encode_frame(plain[:size], mask=mask) + ws.encode_frame(b"next", mask=mask)
    assert read_all(cut(data), masked=bool(mask)) == (plain[:size] + b"next", [])


@given(
    st.lists(
        st.tuples(st.sampled_from([ws.TEXT, ws.BINARY, ws.PING, ws.PONG]), st.binary(max_size=125)),
        max_size=6,
    ),
    places,
)
@both
def test_any_mixture_of_frames_is_read_back(mask, frames, where):
    data = b"".join(ws.encode_frame(body, opcode=code, mask=mask) for code, body in frames)
    plain, controls = read_all(cut_at(data, where), masked=bool(mask))
    assert plain == b"".join(body for code, body in frames if code < 8)
    assert controls == [ws.Control(code, body) for code, body in frames if code >= 8]


@given(st.lists(st.binary(max_size=30), max_size=6), st.booleans())
def test_garbage_raises_remote_wire_error_or_nothing(pieces, masked):
    try:
        read_all(pieces, masked=masked)
    except RemoteWireError:
        pass


@given(st.binary(max_size=40), st.binary(min_size=4, max_size=4), st.integers(0, 9))
def test_mask_is_its_own_inverse_at_every_offset(data, mask, offset):
    masked = ws.apply_mask(data, mask, offset)
    assert masked == bytes(b ^ mask[(offset + i) % 4] for i, b in enumerate(data))
    assert ws.apply_mask(masked, mask, offset) == data


def test_text_of_any_bytes_is_taken():
    assert read_all([ws.encode_frame(b"\xff\xfe", opcode=ws.TEXT)], masked=False)[0] == b"\xff\xfe"


def test_fragments_are_joined_and_may_hold_control_frames():
    data = raw(0x02, b"a") + raw(0x89, b"p") + raw(0x00, b"b") + raw(0x80, b"c") + raw(0x82, b"d")
    assert read_all([data], masked=False) == (b"abcd", [ws.Control(ws.PING, b"p")])


def test_payload_is_given_on_before_its_frame_is_complete():
    decoder = ws.FrameDecoder(masked=False)
    assert decoder.decode(b"\x82\x7f" + struct.pack(">Q", 2**62) + b"start") == b"start"
    assert decoder.decode(b"more") == b"more"


def test_nothing_is_read_after_a_close_frame():
    decoder = ws.FrameDecoder(masked=False)
    data = ws.encode_frame(b"a") + raw(0x88, b"\x03\xe8bye") + b"\xff\xff\xff"
    assert decoder.decode(data) == b"a"
    assert decoder.closed
    assert decoder.controls() == [ws.Control(ws.CLOSE, b"\x03\xe8bye")]
    assert decoder.controls() == []
    assert decoder.decode(b"\xff\xff\xff") == b""


@pytest.mark.parametrize(
    ("data", "masked", "error"),
    [
        (raw(0xC2), False, "reserved bits"),
        (raw(0x83), False, "opcode 0x3"),
        (raw(0x8B), False, "opcode 0xb"),
        (raw(0x82, b"x", MASK), False, "masked websocket frame"),
        (raw(0x82, b"x"), True, "without a mask"),
        (raw(0x80, b"x"), False, "without a start"),
        (raw(0x02, b"x") + raw(0x82, b"y"), False, "inside a fragmented one"),
        (raw(0x09, b"x"), False, "fragmented or too long"),
        (raw(0x89, b"x" * 126), False, "fragmented or too long"),
        (b"\x82\x7f" + b"\xff" * 8, False, "negative length"),
    ],
)
@three_ways
def test_breach_of_the_rules_is_refused(cut, data, masked, error):
    with pytest.raises(RemoteWireError, match=error):
        read_all(cut(data), masked=masked)


def test_negative_length_is_too_large():
    with pytest.raises(FrameTooLarge):
        read_all([b"\x82\x7f" + b"\xff" * 8], masked=False)


# --- handshake ---------------------------------------------------------------------------------


def test_accept_key_agrees_with_the_rfc():
    assert ws.accept_key(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_handshakes_of_both_sides_fit():
    key = ws.new_key()
    request = ws.encode_request("frps.test:7000", key)
    assert ws.decode_request(request) == key
    ws.check_response(ws.encode_response(key), key)
    assert ws.new_key() != key


def test_end_of_the_head_is_found_and_its_length_bounded():
    request = ws.encode_request("h", KEY)
    for size in range(len(request)):
        assert ws.head_end(request[:size]) is None
    assert ws.head_end(request + b"frames") == len(request)
    with pytest.raises(BadHead) as caught:
        ws.head_end(b"GET /~!frp" + b"x" * ws.MAX_HEAD)
    assert caught.value.status == 431


REQUEST = ws.encode_request("h", KEY).decode()


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("GET", "POST", 400),
        ("/~!frp", "/~!frpx", 400),
        ("HTTP/1.1", "HTTP/1.0", 400),
        ("GET /~!frp HTTP/1.1", "GET", 400),
        ("Upgrade: websocket", "Upgrade: h2c", 400),
        ("Connection: Upgrade", "Connection: close", 400),
        ("Version: 13", "Version: 8", 400),
        (KEY, "short", 400),
        (KEY, "AAAA", 400),
        (f"Sec-WebSocket-Key: {KEY}\r\n", "", 400),
        ("Origin: http://h\r\n", "", 403),
        ("Origin: http://h", "Origin:", 403),
        ("Host: h", "Host h", 400),
        ("Host: h", ": h", 400),
        ("Host: h", "Host : h", 400),
        ("Host: h", "Host: h\r\nHost: i", 400),
        ("Host: h", "Host: \xff", 400),
    ],
)
def test_bad_request_is_refused_with_its_status(old, new, status):
    with pytest.raises(BadHead) as caught:
        ws.decode_request(REQUEST.replace(old, new).encode("latin-1"))
    assert caught.value.status == status


def test_tokens_match_in_any_case_and_order():
    head = REQUEST.replace("Connection: Upgrade", "connection: keep-alive, UPGRADE").encode()
    assert ws.decode_request(head) == KEY


@given(st.binary(max_size=200), st.booleans())
def test_garbage_head_raises_the_documented_errors(data, started):
    head = (b"GET /~!frp HTTP/1.1\r\n" if started else b"") + data
    with pytest.raises(BadHead):
        ws.decode_request(head)
    with pytest.raises(HandshakeError):
        ws.check_response(head, KEY)


RESPONSE = ws.encode_response(KEY).decode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("101 Switching Protocols", "200 OK"),
        ("HTTP/1.1", "ICY"),
        ("websocket", "h2c"),
        (ws.accept_key(KEY), ws.accept_key("other")),
        ("Sec-WebSocket-Accept", "X"),
        ("Upgrade: websocket", "\xff"),
    ],
)
def test_bad_response_is_a_failed_handshake(old, new):
    with pytest.raises(HandshakeError):
        ws.check_response(RESPONSE.replace(old, new).encode("latin-1"), KEY)
