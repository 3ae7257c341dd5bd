"""Chunked bodies: where they end, what is refused, and that splits change nothing."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfrp.wire.http1 import (
    LAST_CHUNK,
    MAX_CHUNK_LINE_BYTES,
    MAX_EXTENSION_BYTES,
    MAX_TRAILER_BYTES,
    BadHead,
    ChunkedBody,
    ChunkedDecoder,
    encode_chunk,
)

HELLO = encode_chunk(b"hello")

# (what it is, the body, its payload, its trailers)
GOOD: list[tuple[str, bytes, bytes, list[tuple[bytes, bytes]]]] = [
    ("empty", LAST_CHUNK, b"", []),
    ("one chunk", HELLO + LAST_CHUNK, b"hello", []),
    ("three chunks", HELLO * 3 + LAST_CHUNK, b"hello" * 3, []),
    ("capital digits", b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", []),
    ("small digits", b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789", []),
    ("leading zeros", b"0005\r\nhello\r\n000\r\n\r\n", b"hello", []),
    ("fifteen digits", b"000000000000005\r\nhello\r\n0\r\n\r\n", b"hello", []),
    ("payload that looks like framing", b"7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n\r\n", []),
    ("extension", b"5;a=b\r\nhello\r\n0;c\r\n\r\n", b"hello", []),
    ("quoted extension", b'5;a="b;c"\r\nhello\r\n0\r\n\r\n', b"hello", []),
    ("empty extension", b"5;\r\nhello\r\n0\r\n\r\n", b"hello", []),
    (
        "longest extension",
        b"5;" + b"a" * (MAX_CHUNK_LINE_BYTES - 2) + b"\r\nhello\r\n0\r\n\r\n",
        b"hello",
        [],
    ),
    ("trailers", HELLO + b"0\r\nA: b\r\nc:\t d \r\n\r\n", b"hello", [(b"a", b"b"), (b"c", b"d")]),
    ("empty trailer value", b"0\r\nA:\r\n\r\n", b"", [(b"a", b"")]),
    ("large chunk", encode_chunk(bytes(70000)) + LAST_CHUNK, bytes(70000), []),
]

BAD: list[tuple[str, bytes]] = [
    ("no size", b"\r\nhello\r\n0\r\n\r\n"),
    ("other letters", b"g\r\nhello\r\n0\r\n\r\n"),
    ("0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("negative", b"-5\r\nhello\r\n0\r\n\r\n"),
    ("plus", b"+5\r\nhello\r\n0\r\n\r\n"),
    ("underscore", b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    ("space before size", b" 5\r\nhello\r\n0\r\n\r\n"),
    ("space after size", b"5 \r\nhello\r\n0\r\n\r\n"),
    ("space before extension", b"5 ;a\r\nhello\r\n0\r\n\r\n"),
    ("tab after size", b"5\t\r\nhello\r\n0\r\n\r\n"),
    ("sixteen digits", b"0000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("overflow", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("many digits", b"f" * 1000),
    ("point", b"5.0\r\nhello\r\n0\r\n\r\n"),
    ("comma", b"5,5\r\nhello\r\n0\r\n\r\n"),
    ("quotes", b'"5"\r\nhello\r\n0\r\n\r\n'),
    ("LF after size", b"5\nhello\r\n0\r\n\r\n"),
    ("CR after size", b"5\rhello\r\n0\r\n\r\n"),
    ("CR CR LF after size", b"5\r\r\nhello\r\n0\r\n\r\n"),
    ("NUL in size", b"5\0\r\nhello\r\n0\r\n\r\n"),
    ("LF in extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("CR in extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("NUL in extension", b"5;\0\r\nhello\r\n0\r\n\r\n"),
    ("long extension", b"5;" + b"a" * MAX_CHUNK_LINE_BYTES + b"\r\nhello\r\n0\r\n\r\n"),
    ("endless extension", b"5;" + b"a" * 100000),
    ("LF after data", b"5\r\nhello\n0\r\n\r\n"),
    ("no CRLF after data", b"5\r\nhello0\r\n\r\n"),
    ("CR and other after data", b"5\r\nhello\rX0\r\n\r\n"),
    ("too much data", b"5\r\nhello!\r\n0\r\n\r\n"),
    ("too little data", b"5\r\nhell\r\n0\r\n\r\n"),
    ("LF at the end", b"0\r\n\n"),
    ("LF LF at the end", b"0\n\n"),
    ("CR at the end", b"0\r\n\rX"),
    ("trailer without colon", b"0\r\nabc\r\n\r\n"),
    ("trailer without name", b"0\r\n: b\r\n\r\n"),
    ("trailer with space before colon", b"0\r\nA : b\r\n\r\n"),
    ("folded trailer", b"0\r\nA: b\r\n c\r\n\r\n"),
    ("LF in trailer", b"0\r\nA: b\nC: d\r\n\r\n"),
    ("CR in trailer", b"0\r\nA: b\rC: d\r\n\r\n"),
    ("NUL in trailer", b"0\r\nA: \0\r\n\r\n"),
    ("bad name of trailer", b"0\r\nA(: b\r\n\r\n"),
    ("a request as trailer", b"0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("Content-Length as trailer", b"0\r\nContent-Length: 5\r\n\r\n"),
    ("Transfer-Encoding as trailer", b"0\r\ntransfer-ENCODING: chunked\r\n\r\n"),
    ("Host as trailer", b"0\r\nHost: a\r\n\r\n"),
    ("Authorization as trailer", b"0\r\nAuthorization: Basic YTpi\r\n\r\n"),
    ("X-Forwarded-For as trailer", b"0\r\nX-Forwarded-For: 1\r\n\r\n"),
    ("Set-Cookie as trailer", b"0\r\nSet-Cookie: a\r\n\r\n"),
    ("long trailer", b"0\r\nA: " + b"b" * MAX_TRAILER_BYTES + b"\r\n\r\n"),
    ("many trailers", b"0\r\n" + b"A: b\r\n" * (MAX_TRAILER_BYTES // 6 + 1) + b"\r\n"),
    ("endless trailer", b"0\r\nA: " + b"b" * 100000),
]


def feed_in(parts: list[bytes]) -> tuple[bytes, int, list[tuple[bytes, bytes]], bool]:
    """Walk and decode parts, compare the two, and return payload, consumed, trailers, done."""
    body, decoder = ChunkedBody(), ChunkedDecoder()
    payload, used = b"", 0
    for part in parts:
        count = body.feed(part)
        got, same = decoder.feed(part)
        assert count == same
        assert body.done == decoder.done
        assert count == len(part) or body.done
        payload += got
        used += count
    assert body.trailers == decoder.trailers
    return payload, used, body.trailers, body.done


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(
    ("data", "payload", "trailers"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD]
)
@pytest.mark.parametrize("rest", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\r\n"])
def test_body_ends_where_its_last_chunk_does(
    data: bytes, payload: bytes, trailers: list[tuple[bytes, bytes]], rest: bytes
) -> None:
    expected = (payload, len(data), trailers, True)
    whole = data + rest
    assert feed_in([whole]) == expected
    assert feed_in(bytewise(whole)) == expected
    for at in range(min(len(whole), 600)):
        assert feed_in([whole[:at], whole[at:]]) == expected


@pytest.mark.parametrize("data", [b[1] for b in BAD], ids=[b[0] for b in BAD])
def test_malformed_framing_is_refused(data: bytes) -> None:
    for parts in ([data], bytewise(data), [data[:1], data[1:]], [data[:3], data[3:]]):
        with pytest.raises(BadHead) as caught:
            feed_in(parts)
        assert caught.value.status == 400


@pytest.mark.parametrize("data", [b[1] for b in BAD], ids=[b[0] for b in BAD])
def test_part_that_is_passed_on_never_ends_a_line_early(data: bytes) -> None:
    """A next hop that takes a bare LF as the end of a line must not see one before the refusal."""
    body = ChunkedBody()
    passed = b""
    try:
        for byte in bytewise(data):
            body.feed(byte)
            passed += byte
    except BadHead:
        pass  # What was passed on before it is what counts here.
    assert len(passed) < len(data)
    assert re.search(rb"(?<!\r)\n", passed) is None


def test_body_is_not_done_before_its_end() -> None:
    data = HELLO + b"0\r\nA: b\r\n\r\n"
    for size in range(len(data)):
        assert feed_in([data[:size]])[3] is False


def test_nothing_belongs_to_a_body_that_is_done() -> None:
    body = ChunkedBody()
    assert body.feed(LAST_CHUNK) == 5
    assert body.feed(b"GET") == 0
    assert body.feed(b"") == 0
    assert ChunkedDecoder().feed(b"") == (b"", 0)


def test_refusal_of_a_response_is_a_bad_gateway() -> None:
    with pytest.raises(BadHead) as caught:
        ChunkedBody(502).feed(b"x")
    assert caught.value.status == 502


def test_extensions_may_not_outgrow_the_payload_by_much() -> None:
    extension = b";" + b"a" * 199
    small = b"1" + extension + b"\r\nx\r\n"
    body = ChunkedBody()
    allowed = MAX_EXTENSION_BYTES // 199
    body.feed(small * allowed)
    with pytest.raises(BadHead, match="extensions"):
        body.feed(small * 2)


def test_signed_chunks_may_go_on_for_ever() -> None:
    signed = b"400;signature=" + b"a" * 64 + b"\r\n" + bytes(1024) + b"\r\n"
    body = ChunkedBody()
    for _ in range(1000):
        assert body.feed(signed) == len(signed)


def test_many_sizes_do_not_stay_in_memory() -> None:
    from pyfrp.wire import http_body

    decoder = ChunkedDecoder()
    for number in range(6000):
        decoder.feed(b"%015x\r\n%b\r\n" % (number % 7 + 1, b"x" * (number % 7 + 1)))
    body = ChunkedBody()
    for number in range(1, 6000):
        body.feed(encode_chunk(bytes(number)))
    assert len(http_body._known_sizes) <= http_body._MAX_KNOWN_SIZES


def oracle(data: bytes) -> tuple[bytes, int] | None:
    """Read a whole chunked body without state; None if it is not a good and complete one."""
    payload, at = b"", 0
    while True:
        line = re.match(rb"([0-9a-fA-F]{1,15})(;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n", data[at:])
        if line is None or line.end() > MAX_CHUNK_LINE_BYTES + 2:
            return None
        at += line.end()
        size = int(line[1], 16)
        if size == 0:
            break
        if data[at + size : at + size + 2] != b"\r\n":
            return None
        payload += data[at : at + size]
        at += size + 2
    while data[at : at + 2] != b"\r\n":
        line = re.match(rb"([!#-'*+.0-9A-Z^-z|~-]+):[^\x00-\x08\x0a-\x1f\x7f]*\r\n", data[at:])
        if line is None:
            return None
        at += line.end()
    return payload, at + 2


pieces = st.lists(
    st.one_of(
        st.binary(max_size=40).filter(bool).map(encode_chunk),
        st.binary(max_size=40).filter(bool).map(encode_chunk),
        st.sampled_from(
            [LAST_CHUNK, b"0\r\n", b"A: b\r\n", b"\r\n", b"5;a=b\r\nhello\r\n", b"0;x\r\n"]
        ),
        st.sampled_from([b"\n", b"\r", b";", b"0", b"5\r\n", b"-", b" ", b"x: \xff\r\n", b"\0"]),
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(pieces, st.lists(st.integers(0, 400), max_size=8))
def test_walker_and_decoder_agree_with_an_independent_reader_at_every_split(
    data: bytes, cuts: list[int]
) -> None:
    edges = [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
    parts = [data[a:b] for a, b in pairwise(edges)]
    expected = oracle(data)
    try:
        payload, used, _, done = feed_in(parts)
    except BadHead:
        assert expected is None
        return
    if expected is None:
        assert not done
    else:
        assert (payload, used, done) == (*expected, True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6))
def test_encoded_chunks_decode_to_what_went_in(chunks: list[bytes]) -> None:
    data = b"".join(map(encode_chunk, chunks)) + LAST_CHUNK
    assert feed_in([data]) == (b"".join(chunks), len(data), [], True)
    assert feed_in(bytewise(data)) == (b"".join(chunks), len(data), [], True)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_walker_raises_nothing_but_bad_head(one: bytes, two: bytes) -> None:
    body = ChunkedBody()
    try:
        assert 0 <= body.feed(one) <= len(one)
        assert 0 <= body.feed(two) <= len(two)
    except BadHead:
        pass  # The only way to refuse.
