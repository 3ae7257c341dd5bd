from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadHead, FrameTooLarge, HandshakeError, RemoteWireError
from pyfrp.wire import websocket as ws
from tests.unit.wire.pieces import cut_at, places, three_ways

MASK = b"\x01\x80\xfe\x37"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
both = pytest.mark.parametrize("mask", [b"", MASK], ids=["server", "client"])


def read_all(pieces, *, masked: bool) -> tuple[bytes, bytes | None]:
    """The payload, and that of the last ping."""
    decoder, plain = ws.FrameDecoder(masked=masked), b""
    for piece in pieces:
        plain += decoder.decode(piece)
        assert len(decoder._held) < 14 + 125
    return plain, decoder.ping


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
    assert read_all(cut(data), masked=bool(mask)) == (plain[:size] + b"next", None)


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
    plain, ping = read_all(cut_at(data, where), masked=bool(mask))
    assert plain == b"".join(body for code, body in frames if code < 8)
    pings = [body for code, body in frames if code == ws.PING]
    assert ping == (pings[-1] if pings else None)


@given(st.lists(st.binary(max_size=30), max_size=6), st.booleans())
def test_garbage_raises_remote_wire_error_or_nothing(pieces, masked):
    try:
        read_all(pieces, masked=masked)
    except RemoteWireError:
        pass


@given(st.binary(max_size=40), st.binary(min_size=4, max_size=4), st.integers(0, 9))
def test_mask_is_its_own_inverse_at_every_offset(data, mask, offset):
    assert ws.xor(memoryview(data), mask) == ws.apply_mask(data, mask)
    masked = ws.apply_mask(data, mask, offset)
    assert masked == bytes(b ^ mask[(offset + i) % 4] for i, b in enumerate(data))
    assert ws.apply_mask(masked, mask, offset) == data


def test_masks_need_no_compiled_module(monkeypatch):
    pytest.importorskip("websockets.speedups")
    assert ws._compiled() is not ws.xor
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    assert ws._compiled() is ws.xor


def test_text_of_any_bytes_is_taken():
    assert read_all([ws.encode_frame(b"\xff\xfe", opcode=ws.TEXT)], masked=False)[0] == b"\xff\xfe"


@given(
    pieces=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    mask=st.one_of(st.just(b""), st.binary(min_size=4, max_size=4)),
    cut=st.integers(1, 400),
)
def test_a_frame_in_pieces_is_the_same_frame_and_views_are_read_like_bytes(pieces, mask, cut):
    whole = ws.encode_frame(b"".join(pieces), mask=mask)
    wire = b"".join(ws.encode_pieces([memoryview(piece) for piece in pieces], mask=mask))
    assert wire == whole
    decoder = ws.FrameDecoder(masked=bool(mask))
    buffer = bytearray(cut)
    read = b""
    for at in range(0, len(wire), cut):
        piece = wire[at : at + cut]
        buffer[: len(piece)] = piece
        read += decoder.decode(memoryview(buffer)[: len(piece)])
        buffer[:] = bytes(cut)
    assert read == b"".join(pieces)


def test_fragments_are_joined_and_may_hold_control_frames():
    data = raw(0x02, b"a") + raw(0x89, b"p") + raw(0x00, b"b") + raw(0x80, b"c") + raw(0x82, b"d")
    assert read_all([data], masked=False) == (b"abcd", b"p")


def test_payload_is_given_on_before_its_frame_is_complete():
    decoder = ws.FrameDecoder(masked=False)
    assert decoder.decode(b"\x82\x7f" + struct.pack(">Q", 2**62) + b"start") == b"start"
    assert decoder.decode(b"more") == b"more"


def test_nothing_is_read_after_a_close_frame():
    decoder = ws.FrameDecoder(masked=False)
    data = ws.encode_frame(b"a") + raw(0x88, b"\x03\xe8bye") + b"\xff\xff\xff"
    assert decoder.decode(data) == b"a"
    assert decoder.closed == b"\x03\xe8bye"
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


@pytest.mark.parametrize("unit", [raw(0x89, b"p"), raw(0x8A), raw(0x00), raw(0x02) + raw(0x80)])
def test_floods_of_frames_that_carry_nothing_leave_nothing(unit):
    decoder = ws.FrameDecoder(masked=False)
    assert decoder.decode(raw(0x02) if unit == raw(0x00) else b"") == b""
    assert decoder.decode(unit * 10_000) == b""
    assert decoder._held == b""
    assert decoder.ping in (None, b"p")


def test_a_ping_is_taken_once():
    decoder = ws.FrameDecoder(masked=True)
    decoder.decode(ws.encode_frame(b"a", opcode=ws.PING, mask=MASK) * 2)
    assert decoder.take_ping() == b"a"
    assert decoder.ping is None


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
        ("HTTP/1.1", "HTTP/2.0", 400),
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
        ("13\r\n", "13\r\nSec-WebSocket-Version: 13\r\n", 400),
    ],
)
def test_bad_request_is_refused_with_its_status(old, new, status):
    with pytest.raises(BadHead) as caught:
        ws.decode_request(REQUEST.replace(old, new).encode("latin-1"))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Connection: Upgrade", "connection: keep-alive, UPGRADE"),
        ("Connection: Upgrade", "Connection: keep-alive\r\nConnection: upgrade"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("/~!frp", "/~!frp?from=lb"),
        ("Host: h", "Host: h\r\nVia: 1.1 a\r\nVia: 1.1 b\r\nX-Forwarded-For: \xff"),
    ],
)
def test_what_proxies_make_of_a_request_is_taken(old, new):
    assert old in REQUEST
    assert ws.decode_request(REQUEST.replace(old, new).encode("latin-1")) == KEY


def test_a_refusal_is_an_answer_in_http():
    answer = ws.encode_refusal(403, "no origin")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert body == b"no origin\n"


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


def answer(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1")


BY = "the websocket handshake was answered with "


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            answer("403 Forbidden", "Server: squid/5.7"),
            BY + "403 Forbidden by squid/5.7: something on the way forbids it; "
            'try transport.protocol = "wss", which it cannot read',
        ),
        (
            answer("502 Bad Gateway", "Server: nginx/1.22.1"),
            BY + "502 Bad Gateway by nginx/1.22.1: a reverse proxy answers that does not reach "
            "frps; check that frps runs and that the proxy passes requests on to its bindPort",
        ),
        (
            answer("200 OK", "Content-Type: text/html"),
            BY + "200 OK: that is a page, perhaps a login page or a block page of something on the "
            "way; a reverse proxy in front of frps has to pass on the headers Upgrade and "
            "Connection",
        ),
        (
            answer("302 Found", "Location: https://login.test/", "Via: 1.1 gate"),
            BY + "302 Found by 1.1 gate to https://login.test/: use that address; for https:// set "
            'transport.protocol = "wss" and its port',
        ),
        (
            answer("404 Not Found"),
            BY + "404 Not Found: a web server answers that does not know /~!frp; have it pass "
            "that path on to frps",
        ),
        (
            answer("407 Proxy Authentication Required"),
            BY + "407 Proxy Authentication Required: a proxy on the way asks for a password; name "
            "it in transport.proxyURL with user:password@",
        ),
        (
            answer("400 Bad Request", "Server: nginx"),
            BY + "400 Bad Request by nginx: either the port speaks TLS and wants "
            'transport.protocol = "wss", or it takes no websockets',
        ),
        (answer("418 \x1b[2J" + "x" * 200), BY + "418 ?[2J" + "x" * 92),
        (
            b"\x15\x03\x01\x00\x02\x02\x46",
            'the server speaks TLS on this port; use transport.protocol = "wss"',
        ),
        (
            b"SSH-2.0-OpenSSH_9.2\r\n",
            "the server's answer to the websocket handshake is no HTTP",
        ),
    ],
)
def test_what_comes_in_place_of_a_websocket_is_explained(data, text):
    with pytest.raises(HandshakeError) as caught:
        ws.check_response(data, KEY)
    assert str(caught.value) == text
