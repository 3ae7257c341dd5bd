"""Decoders of the wire layer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pyfrp.errors import BadMessage, HandshakeError, LocalWireError, MuxError, RemoteWireError
from pyfrp.wire import framing, kcp, proxyproto, snappy, sniff, stun, v2, v2crypto, websocket
from pyfrp.wire import messages as m
from pyfrp.wire.cfb import Decryptor, Encryptor, derive_key, unseal
from pyfrp.wire.clienthello import MAX_HELLO_BYTES, MAX_NAME_BYTES, HelloReader
from pyfrp.wire.http1 import MAX_HEAD_BYTES
from pyfrp.wire.httpconnect import ConnectReader
from pyfrp.wire.socks5 import Handshake, Socks5Error
from pyfrp.wire.yamux import INITIAL_WINDOW, MAX_WINDOW, OPEN_LIMIT, WINDOW_BUDGET
from tests.fuzz.engine import Behaviour, Target, cut
from tests.unit.wire.hellos import body, extension, hello, library_hello, message, records, sni
from tests.unit.wire.yamux_pair import (
    Clock,
    Side,
    credit,
    data_frame,
    fin,
    frames_of,
    go_away,
    ping,
    raw,
    rst,
    syn,
)
from tests.vectors.load import vectors

KEY = derive_key("token")
MAX_SOCKS_BYTES = 513  # The longest message: user and password of 255 bytes each.


def hexes(name: str, *keys: str) -> list[bytes]:
    return [bytes.fromhex(vectors()[name][key]) for key in keys if key in vectors()[name]]


def pieces_agree(whole: Any, cut_up: Any) -> None:
    assert whole == cut_up, "the result depends on how the bytes were cut"


# -- yamux --------------------------------------------------------------------------------------


def _yamux(data: bytes, rng: random.Random) -> Behaviour:
    client = rng.random() < 0.3
    writes = rng.random() < 0.5
    holds = rng.randrange(4)

    def run(pieces: Sequence[bytes]) -> tuple[Any, str, set[Any]]:
        side = Side(client=client, clock=Clock())
        kinds: set[Any] = set()
        ours = [side.open() for _ in range(3)]
        side.take()

        def greet(stream: Any) -> None:
            if writes:
                stream.write(b"hello" * 100)
            if stream.id % 8 == holds:
                stream.hold()

        side.on_accept = greet
        fault = ""
        try:
            for piece in pieces:
                side.feed(piece)
        except MuxError as exc:
            fault = str(exc)
            kinds.add("".join(c for c in fault if not c.isdigit())[:60])
        streams = [*ours, *side.accepted]
        held = sum(stream.held_size for stream in streams)
        assert held <= len(streams) * INITIAL_WINDOW + WINDOW_BUDGET + MAX_WINDOW
        assert side.session._unacked <= OPEN_LIMIT
        for frame in frames_of(side.take()):
            kinds.add((frame.kind, frame.flags))
        seen = [(s.id, s.received, s.held_size, s.ends, s.resets) for s in streams]
        kinds |= {(bool(s.received), bool(s.held_size), s.ends, s.resets) for s in streams}
        side.session.close()
        return seen, fault, kinds

    whole = run([data] if data else [])
    in_pieces = run(cut(data, rng))
    pieces_agree(whole[:2], in_pieces[:2])
    return frozenset(whole[2])


def _yamux_seeds() -> list[bytes]:
    frames = vectors()["yamux_session"]["frames"]
    return [
        *(
            b"".join(bytes.fromhex(f["hex"]) for f in frames if f["dir"] == d)
            for d in ("c2s", "s2c")
        ),
        syn(1) + data_frame(1, b"hello") + credit(1, 1000) + fin(1),
        syn(1) + syn(3) + data_frame(3, b"x" * 1000, 4) + rst(1) + ping(1) + go_away(0),
        data_frame(1, b"x", 1) + data_frame(1, b"y", 2) + data_frame(1, b"z", 8),
        syn(8) + data_frame(8, b"held" * 50) + fin(8) + raw(0, 8, 0),
    ]


# -- messages and frames ------------------------------------------------------------------------


def _drain(feed: Callable[[bytes], None], take: Callable[[], Any], pieces: Sequence[bytes]) -> Any:
    """Everything a decoder gives, and the words of its complaint."""
    found = []
    try:
        for piece in pieces:
            feed(piece)
            while (made := take()) is not None:
                found.append(made)
    except RemoteWireError as exc:
        return found, f"{type(exc).__name__}: {exc}"
    return found, ""


def _frames(data: bytes, rng: random.Random) -> Behaviour:
    whole = framing.FrameDecoder()
    result = _drain(whole.feed, whole.next, [data])
    parts = framing.FrameDecoder()
    pieces_agree(result, _drain(parts.feed, parts.next, cut(data, rng)))
    for msg in result[0]:
        _again(msg)
    if not result[1]:
        # What is left is one unfinished frame.
        assert len(whole.leftover()) < 9 + framing.MAX_BODY
    return (
        tuple(type(msg).__name__ for msg in result[0][:4]),
        "".join(c for c in result[1] if c.isalpha())[:50],
    )


def _again(msg: m.Message) -> None:
    """A message that was read can be written, and reads the same."""
    body = m.encode_body(msg)
    assert m.decode_body(type(msg), body) == msg
    assert len(repr(msg)) < 200_000
    try:
        framing.encode(msg)
    except LocalWireError:
        assert len(body) > framing.MAX_BODY


def _messages(data: bytes, rng: random.Random) -> Behaviour:
    outcome = []
    for cls in m.CLASSES.values():
        try:
            msg = m.decode_body(cls, data)
        except BadMessage:
            outcome.append(False)
        else:
            outcome.append(True)
            _again(msg)
    return tuple(outcome)


def _v2_frames(data: bytes, rng: random.Random) -> Behaviour:
    whole, parts = v2.FrameDecoder(), v2.FrameDecoder()
    result = _drain(whole.feed, whole.next, [data])
    pieces_agree(result, _drain(parts.feed, parts.next, cut(data, rng)))
    kinds = []
    for kind, payload in result[0]:
        try:
            _again(v2.decode_message(payload))
            kinds.append((kind, True))
        except BadMessage:
            kinds.append((kind, False))
    return tuple(kinds[:4]), result[1][:20]


# -- ciphers and compression --------------------------------------------------------------------


def _decode(decode: Callable[[bytes], bytes], pieces: Sequence[bytes]) -> tuple[bytes, str]:
    plain = b""
    try:
        for piece in pieces:
            plain += decode(piece)
    except RemoteWireError as exc:
        return plain, type(exc).__name__
    return plain, ""


def _cfb(data: bytes, rng: random.Random) -> Behaviour:
    whole = Decryptor(KEY).decrypt(data)
    assert len(whole) == max(0, len(data) - 16)
    parts = Decryptor(KEY)
    assert b"".join(parts.decrypt(piece) for piece in cut(data, rng)) == whole
    if len(data) >= 16:
        assert Encryptor(KEY, data[:16]).encrypt(whole) == data or not whole
        assert unseal(KEY, data) == whole
    return len(data) >= 16, len(data) > 16


def _snappy(data: bytes, rng: random.Random) -> Behaviour:
    plain, fault = _decode(snappy.SnappyReader().decompress, [data])
    reader = snappy.SnappyReader()
    parts, parts_fault = _decode(reader.decompress, cut(data, rng))
    assert fault == parts_fault, "the result depends on how the bytes were cut"
    if not fault:
        assert parts == plain
    assert len(reader._held) <= 80 * 1024
    assert len(parts) <= 25 * len(data) + 65536
    return bool(plain), fault, min(len(plain), 3)


def _opener(data: bytes, rng: random.Random) -> Behaviour:
    key = bytes(32)
    plain, fault = _decode(v2crypto.Opener(key, "aes-256-gcm").open, [data])
    _, parts_fault = _decode(v2crypto.Opener(key, "aes-256-gcm").open, cut(data, rng))
    assert fault == parts_fault
    return bool(plain), fault


# -- first bytes, and small formats -------------------------------------------------------------


def _sniff(data: bytes, rng: random.Random) -> Behaviour:
    found = []
    for http in (False, True):
        for https in (False, True):
            decided = None
            for size in range(len(data[:40]) + 1):
                kind = sniff.classify(data[:size], http_here=http, https_here=https)
                if decided is not None:
                    assert kind is decided, "more bytes changed the answer"
                decided = kind
                assert kind is not None or size < 10
            found.append(decided)
    return tuple(found)


def _hello(data: bytes, rng: random.Random) -> Behaviour:
    def run(pieces: Sequence[bytes]) -> tuple[str | None, str]:
        reader = HelloReader()
        try:
            for piece in pieces:
                hello = reader.feed(piece)
                if hello is not None:
                    return hello.name, ""
        except RemoteWireError as exc:
            return None, str(exc)
        assert len(reader.raw) < MAX_HELLO_BYTES
        return None, ""

    whole = run([data] if data else [])
    pieces_agree(whole, run(cut(data, rng)))
    name, fault = whole
    assert name is None or (name.isascii() and len(name) <= MAX_NAME_BYTES)
    return name is None, bool(name), "".join(c for c in fault if c.isalpha())[:40]


def _connect(data: bytes, rng: random.Random) -> Behaviour:
    def run(pieces: Sequence[bytes]) -> tuple[Any, bool]:
        reader = ConnectReader()
        try:
            for piece in pieces:
                asked = reader.feed(piece)
                if asked is not None:
                    assert 0 < asked.size <= len(reader.raw)
                    return asked, False
        except RemoteWireError:
            return None, True
        assert len(reader.raw) <= MAX_HEAD_BYTES
        return None, False

    whole = run([data] if data else [])
    pieces_agree(whole[0], run(cut(data, rng))[0])
    asked = whole[0]
    return whole[1], asked is None, asked is not None and bool(asked.user)


def _socks(data: bytes, rng: random.Random) -> Behaviour:
    secret = ("u", "s3cret") if rng.random() < 0.5 else ("", "")

    def run(pieces: Sequence[bytes]) -> tuple[Any, ...]:
        handshake = Handshake(*secret)
        out = b""
        try:
            for piece in pieces:
                out += handshake.feed(piece)
        except Socks5Error as exc:
            return out + exc.answer, str(exc), exc.denied, None, b""
        target, left = handshake.target, handshake.leftover()
        assert target is not None or len(left) <= MAX_SOCKS_BYTES
        if target is not None:
            assert 0 <= target.port < 65536
            assert target.host.isascii()
            assert target.host.isprintable()
        return out, "", False, target, left

    whole = run([data] if data else [])
    pieces_agree(whole, run(cut(data, rng)))
    out, fault, denied, target, left = whole
    assert "s3cret" not in fault
    words = "".join(c for c in fault if not c.isdigit())
    return out[:4], words, denied, target is not None, bool(left)


def _guarded(decode: Callable[[bytes], Any]) -> Callable[[bytes, random.Random], Behaviour]:
    """A decoder of one datagram or head: it gives something, or complains properly."""

    def run(data: bytes, rng: random.Random) -> Behaviour:
        try:
            return type(decode(data)).__name__
        except RemoteWireError as exc:
            return "".join(c for c in str(exc) if c.isalpha())[:40]

    return run


WEBSOCKET_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
MOST_HELD = 14 + 125
"""What a decoder of frames may keep: a head, or most of a control frame."""


def _websocket_answer(data: bytes, rng: random.Random) -> Behaviour:
    """An answer to a handshake of ours is taken, or turned down in one printable line."""
    try:
        websocket.check_response(data, WEBSOCKET_KEY)
        return "taken"
    except HandshakeError as exc:
        text = str(exc)
    assert text.isprintable()
    assert len(text) < 600
    return text[:36], text.count(": ") > 0


def _websocket(data: bytes, rng: random.Random) -> Behaviour:
    masked = rng.random() < 0.5
    whole, parts = websocket.FrameDecoder(masked=masked), websocket.FrameDecoder(masked=masked)
    plain, fault = _decode(whole.decode, [data])
    cut_plain, cut_fault = _decode(parts.decode, cut(data, rng))
    assert fault == cut_fault
    if not fault:
        assert plain == cut_plain
        assert (whole.ping, whole.closed) == (parts.ping, parts.closed)
    assert len(whole._held) < MOST_HELD
    return bool(plain), fault, whole.closed is not None, whole.ping is not None


JSON_TOKENS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"true",
    b"1e9",
    b"-1",
    b"9223372036854775808",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    *(f'"{key}":'.encode() for key in m.NewProxy._readers),
    *(f'"{key}":'.encode() for key in m.Login._readers),
]
MESSAGES = [
    m.Login(version="0.65.0", run_id="r", privilege_key="k", timestamp=1, metas={"a": "b"}),
    m.NewProxy(proxy_name="web", proxy_type="http", custom_domains=["a.test"], headers={"X": "y"}),
    m.StartWorkConn(proxy_name="web", src_addr="127.0.0.1", src_port=1),
    m.UDPPacket(content=b"\x00\x01", remote_addr=m.UDPAddr(ip="127.0.0.1", port=1)),
    m.NatHoleResp(sid="s", candidate_addrs=["1.2.3.4:5"], detect_behavior=m.DetectBehavior(ttl=7)),
    m.Ping(timestamp=5),
    m.ReqWorkConn(),
]
PACKED = snappy.SnappyWriter().compress(b"hello " * 100) + b"\x01\x07\x00\x00" + bytes(7)

TARGETS = [
    Target("yamux", _yamux, _yamux_seeds(), [syn(1), syn(3), fin(1), rst(1), raw(0, 1, 0)]),
    Target(
        "frames",
        _frames,
        [b"".join(map(framing.encode, MESSAGES)), *map(framing.encode, MESSAGES)],
        [*JSON_TOKENS, *(bytes((kind,)) for kind in m.CLASSES)],
    ),
    Target("messages", _messages, [m.encode_body(msg) for msg in MESSAGES], JSON_TOKENS),
    Target("cfb", _cfb, [bytes(16) + b"x" * 40, b""]),
    Target(
        "snappy", _snappy, [PACKED, snappy.IDENTIFIER], [snappy.IDENTIFIER, b"\xfe\x01\x00\x00"]
    ),
    Target(
        "sniff",
        _sniff,
        [b"GET /~!frp HTTP/1.1", b"POST / HTTP/1.1", b"\x16\x03\x01", b"\x17\x16\x03", b"o\x00"],
        [b"GET ", b"PRI * HTTP/2.0", b"\x16", b"\x17", sniff.WEBSOCKET_START],
    ),
    Target(
        "client-hello",
        _hello,
        [
            hello("a.test"),
            library_hello("chat.example.com"),
            records(message(body(extension(10, b""), sni("a.test"))), 20),
        ],
        [sni("b.test"), extension(21, b""), b"\x16\x03\x01", b"\x00\x00"],
    ),
    Target(
        "http-connect",
        _connect,
        [
            b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\npayload",
            b"CONNECT a.test:80 HTTP/1.0\r\nProxy-Authorization: Basic dTpw\r\n\r\n",
        ],
        [b"Host: b.test\r\n", b"CONNECT ", b"\r\n", b"Proxy-Authorization: Basic dTpw\r\n"],
    ),
    Target(
        "socks5",
        _socks,
        [
            b"\x05\x01\x00\x05\x01\x00\x03\x06a.test\x00\x50ahead",
            b"\x05\x02\x00\x02\x01\x01u\x06s3cret\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
            b"\x05\x01\x00\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50",
        ],
        [b"\x05\x01\x00", b"\x05\x01\x02", b"\x01\x01u\x06s3cret", b"\x05\x02\x00\x01"],
    ),
    Target(
        "v2-frames",
        _v2_frames,
        [b"".join(map(v2.encode, MESSAGES)), *map(v2.encode, MESSAGES)],
        JSON_TOKENS,
    ),
    Target(
        "v2-records",
        _opener,
        [v2crypto.Sealer(bytes(32), "aes-256-gcm").seal(b"hello" * 20), bytes(40)],
    ),
    Target(
        "kcp",
        _guarded(lambda data: [kcp.decode_segments(kcp.decode_datagram(data).body)]),
        [kcp.encode_data(1, kcp.encode_segments([kcp.Segment(1, 81, 0, 9, 1, 0, 0, b"hello")]))],
    ),
    Target(
        "stun",
        _guarded(stun.decode_response),
        hexes("stun_binding", "response"),
        [b"\x21\x12\xa4\x42", b"\x00\x20\x00\x08"],
    ),
    Target("stun-request", _guarded(stun.decode_request), [stun.encode_request(bytes(12))]),
    Target(
        "proxy-protocol",
        _guarded(proxyproto.decode),
        [
            proxyproto.encode(version, ("192.0.2.1", 1), ("192.0.2.2", 2))
            for version in ("v1", "v2")
        ],
        [proxyproto.SIGNATURE, b"PROXY TCP4 ", b"UNKNOWN", b"\r\n"],
    ),
    Target(
        "websocket",
        _websocket,
        [
            websocket.encode_frame(b"hello"),
            websocket.encode_frame(b"hello" * 100, mask=b"mask"),
            websocket.encode_frame(b"x" * 70_000, mask=b"mask")[:300],
        ],
        [b"\x81\x7e", b"\x82\xff", b"\x88\x00", b"\x89\x80"],
    ),
    Target(
        "websocket-head",
        _guarded(websocket.decode_request),
        [websocket.encode_request("frps.test:7000", websocket.new_key())],
        [b"\r\n", b"Upgrade: websocket\r\n", b"Sec-WebSocket-Key: "],
    ),
    Target(
        "websocket-answer",
        _websocket_answer,
        [
            websocket.encode_response(WEBSOCKET_KEY),
            websocket.encode_refusal(403, "no"),
            b"HTTP/1.1 302 Found\r\nLocation: https://login.test/\r\nVia: 1.1 proxy\r\n\r\n",
            b"\x15\x03\x03\x00\x02\x02\x70",
        ],
        [b"\r\n", b" 200 ", b" 407 ", b"HTTP/1.0", b"Server: \x1b[2J\r\n", b"Location: "],
    ),
]
