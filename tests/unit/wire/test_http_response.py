"""Response heads: what is refused, what is tolerated, and what the caller gets to see."""

from __future__ import annotations

import pytest

from pyfrp.wire import http_response
from pyfrp.wire.http1 import (
    CHUNKED,
    MAX_HEAD_BYTES,
    UNTIL_CLOSE,
    BadHead,
    HeadEdit,
    next_response_head,
    parse_response_head,
    rewrite_response_head,
)

OK = b"HTTP/1.1 200 OK"
CL = b"Content-Length: 5"
TE = b"Transfer-Encoding: chunked"
DATE = b"Date: Mon, 01 Sep 2025 10:00:00 GMT"


def head(*fields: bytes, line: bytes = OK) -> bytes:
    return b"\r\n".join([line, *fields, b"", b""])


BAD: list[tuple[str, bytes]] = [
    ("length and coding", head(CL, TE)),
    ("coding and length", head(TE, CL)),
    ("different lengths", head(CL, b"Content-Length: 6")),
    ("equal lengths, written differently", head(CL, b"Content-Length: 05")),
    ("list of lengths", head(b"Content-Length: 5, 5")),
    ("negative length", head(b"Content-Length: -5")),
    ("length with plus", head(b"Content-Length: +5")),
    ("hexadecimal length", head(b"Content-Length: 0x5")),
    ("empty length", head(b"Content-Length:")),
    ("length beyond 64 bits", head(b"Content-Length: 18446744073709551621")),
    ("bad length on 204", head(b"Content-Length: x", line=b"HTTP/1.1 204 No Content")),
    ("unknown coding", head(b"Transfer-Encoding: gzip")),
    ("gzip under chunked", head(b"Transfer-Encoding: gzip, chunked")),
    ("chunked twice", head(b"Transfer-Encoding: chunked, chunked")),
    ("chunked in two lines", head(TE, TE)),
    ("empty coding", head(b"Transfer-Encoding: ")),
    ("coding in HTTP/1.0", head(TE, line=b"HTTP/1.0 200 OK")),
    ("bare LF", b"HTTP/1.1 200 OK\nContent-Length: 5\n\n"),
    ("bare LF after a field", b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 5\r\n\r\n"),
    ("bare CR", head(b"A: b\rContent-Length: 5")),
    ("NUL", head(b"A: \0")),
    ("control byte", head(b"A: \x01")),
    ("NUL in the reason", head(line=b"HTTP/1.1 200 O\0K")),
    ("folded line", head(b"A: b", b" c")),
    ("space before colon", head(b"Content-Length : 5")),
    ("no colon", head(b"Content-Length 5")),
    ("empty name", head(b": b")),
    ("first line folded", head(b" A: b")),
    ("HTTP/2.0", head(line=b"HTTP/2.0 200 OK")),
    ("HTTP/1.2", head(line=b"HTTP/1.2 200 OK")),
    ("HTTP/1.10", head(line=b"HTTP/1.10 200 OK")),
    ("other protocol", head(line=b"ICY 200 OK")),
    ("two-digit status", head(line=b"HTTP/1.1 20 OK")),
    ("four-digit status", head(line=b"HTTP/1.1 2000 OK")),
    ("status below 100", head(line=b"HTTP/1.1 099 OK")),
    ("status of letters", head(line=b"HTTP/1.1 abc OK")),
    ("negative status", head(line=b"HTTP/1.1 -20 OK")),
    ("no space after status", head(line=b"HTTP/1.1 200OK")),
    ("two spaces before status", head(line=b"HTTP/1.1  200 OK")),
    ("space before version", head(line=b" HTTP/1.1 200 OK")),
    ("no status", head(line=b"HTTP/1.1")),
    ("a request", head(line=b"GET / HTTP/1.1")),
    ("nothing", b""),
    ("only the end", b"\r\n\r\n"),
    ("empty line first", b"\r\n" + head(CL)),
    ("no end", head(CL)[:-2]),
    ("bytes after the end", head(CL) + b"x"),
    ("101 without upgrade", head(line=b"HTTP/1.1 101 Switching Protocols")),
    ("101 without protocol", head(b"Connection: upgrade", line=b"HTTP/1.1 101 x")),
    ("101 not naming upgrade", head(b"Upgrade: websocket", line=b"HTTP/1.1 101 x")),
    ("too large", head(b"A: " + b"b" * MAX_HEAD_BYTES)),
]


@pytest.mark.parametrize("data", [b[1] for b in BAD], ids=[b[0] for b in BAD])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"CONNECT"])
def test_malformed_response_is_a_bad_gateway(data: bytes, method: bytes) -> None:
    with pytest.raises(BadHead) as caught:
        parse_response_head(data, method)
    assert caught.value.status == 502


# (what it is, method, head, status, length, keep_alive)
GOOD: list[tuple[str, bytes, bytes, int, int, bool]] = [
    ("length", b"GET", head(CL), 200, 5, True),
    ("length without space", b"GET", head(b"content-length:5"), 200, 5, True),
    ("length in white space", b"GET", head(b"Content-Length: \t5 "), 200, 5, True),
    ("equal lengths", b"GET", head(CL, b"content-length: 5"), 200, 5, True),
    ("chunked", b"GET", head(TE), 200, CHUNKED, True),
    ("chunked in capitals", b"GET", head(b"TRANSFER-ENCODING: CHUNKED"), 200, CHUNKED, True),
    ("until close", b"GET", head(), 200, UNTIL_CLOSE, False),
    ("until close, kept", b"GET", head(b"Connection: keep-alive"), 200, UNTIL_CLOSE, False),
    ("close", b"GET", head(CL, b"Connection: close"), 200, 5, False),
    ("close among others", b"GET", head(CL, b"Connection: a, Close"), 200, 5, False),
    ("close and keep-alive", b"GET", head(CL, b"Connection: keep-alive, close"), 200, 5, False),
    ("unreadable Connection", b"GET", head(CL, b"Connection: a b"), 200, 5, True),
    ("keep-alive parameters", b"GET", head(CL, b"Keep-Alive: timeout=5, max=100"), 200, 5, True),
    ("HTTP/1.0", b"GET", head(CL, line=b"HTTP/1.0 200 OK"), 200, 5, False),
    (
        "HTTP/1.0 kept",
        b"GET",
        head(CL, b"Connection: keep-alive", line=b"HTTP/1.0 200 OK"),
        200,
        5,
        True,
    ),
    ("no reason", b"GET", head(CL, line=b"HTTP/1.1 200"), 200, 5, True),
    ("empty reason", b"GET", head(CL, line=b"HTTP/1.1 200 "), 200, 5, True),
    ("reason beyond ASCII", b"GET", head(CL, line=b"HTTP/1.1 200 \xe9"), 200, 5, True),
    ("no reason and no fields", b"GET", head(line=b"HTTP/1.1 204"), 204, 0, True),
    ("status 999", b"GET", head(CL, line=b"HTTP/1.1 999 x"), 999, 5, True),
    ("HEAD", b"HEAD", head(CL), 200, 0, True),
    ("HEAD, chunked", b"HEAD", head(TE), 200, 0, True),
    ("HEAD, no length", b"HEAD", head(), 200, 0, True),
    ("204", b"GET", head(line=b"HTTP/1.1 204 No Content"), 204, 0, True),
    ("204 with length", b"GET", head(CL, line=b"HTTP/1.1 204 No Content"), 204, 0, True),
    ("204 chunked", b"GET", head(TE, line=b"HTTP/1.1 204 No Content"), 204, 0, True),
    ("304 with length", b"GET", head(CL, line=b"HTTP/1.1 304 Not Modified"), 304, 0, True),
    ("304 with close", b"GET", head(b"Connection: close", line=b"HTTP/1.1 304 x"), 304, 0, False),
    ("205 with length", b"GET", head(b"Content-Length: 0", line=b"HTTP/1.1 205 x"), 205, 0, True),
    ("100", b"POST", head(line=b"HTTP/1.1 100 Continue"), 100, 0, True),
    ("103", b"GET", head(b"Link: </a>", line=b"HTTP/1.1 103 Early Hints"), 103, 0, True),
    ("CONNECT", b"CONNECT", head(), 200, UNTIL_CLOSE, False),
    ("CONNECT with length", b"CONNECT", head(CL), 200, UNTIL_CLOSE, False),
    ("CONNECT refused", b"CONNECT", head(CL, line=b"HTTP/1.1 403 x"), 403, 5, True),
    ("many fields", b"GET", head(CL, *[b"Set-Cookie: a"] * 500), 200, 5, True),
]


@pytest.mark.parametrize(
    ("method", "data", "status", "length", "keep_alive"),
    [g[1:] for g in GOOD],
    ids=[g[0] for g in GOOD],
)
def test_response_head_is_read(
    method: bytes, data: bytes, status: int, length: int, keep_alive: bool
) -> None:
    for parsed in (
        parse_response_head(data, method),
        next_response_head(data + b"body", method),
        http_response._parse_general(data, method),
    ):
        assert parsed is not None
        assert (parsed.status, parsed.length, parsed.keep_alive) == (status, length, keep_alive)
        assert parsed.raw == data
        assert parsed.upgrade == b""


@pytest.mark.parametrize(("method", "data"), [g[1:3] for g in GOOD], ids=[g[0] for g in GOOD])
def test_both_readers_agree(method: bytes, data: bytes) -> None:
    one, other = parse_response_head(data, method), http_response._parse_general(data, method)
    assert rewrite_response_head(one, None, keep_alive=True, caller_minor=1) == (
        rewrite_response_head(other, None, keep_alive=True, caller_minor=1)
    )


def rewrite(data: bytes, method: bytes = b"GET", edit: HeadEdit | None = None) -> bytes:
    parsed = parse_response_head(data, method)
    return rewrite_response_head(parsed, edit, keep_alive=True, caller_minor=1)


def test_plain_response_passes_untouched() -> None:
    data = head(DATE, b"Server: uvicorn", CL)
    assert rewrite(data) is data


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ([CL, b"Connection: keep-alive"], [CL]),
        ([CL, b"Connection: close"], [CL]),
        ([b"Keep-Alive: timeout=5", CL], [CL]),
        ([b"Connection: keep-alive", CL, b"Keep-Alive: timeout=5"], [CL]),
        ([b"Keep-Alive: timeout=5", b"Connection: keep-alive", CL], [CL]),
        ([CL, b"Connection: x-a, content-length", b"X-A: 1", b"X-B: 2"], [CL, b"X-B: 2"]),
        (
            [CL, b"Upgrade: h2c", b"Proxy-Authenticate: Basic", b"Proxy-Status: a"],
            [CL, b"Proxy-Status: a"],
        ),
        ([CL, b"content-length: 5"], [CL]),
        ([b"Content-Length:5"], [b"content-length: 5"]),
        ([b"Transfer-Encoding:  Chunked"], [b"transfer-encoding: Chunked"]),
        ([TE, b"Trailer: A"], [TE, b"Trailer: A"]),
        ([CL, b"Trailer: A"], [CL]),
        ([CL, b"TE: a"], [CL]),
    ],
)
def test_only_what_is_for_the_caller_goes_on(sent: list[bytes], seen: list[bytes]) -> None:
    assert rewrite(head(*sent)) == head(*seen)


@pytest.mark.parametrize("line", [b"HTTP/1.1 204 No Content", b"HTTP/1.1 103 Early Hints"])
def test_response_without_body_says_nothing_of_a_body(line: bytes) -> None:
    assert rewrite(head(b"A: b", CL, line=line)) == head(b"A: b", line=line)
    assert rewrite(head(b"A: b", TE, b"Trailer: x", line=line)) == head(b"A: b", line=line)


def test_tunnel_says_nothing_of_a_body() -> None:
    assert rewrite(head(b"A: b", b"Content-Length:0"), b"CONNECT") == head(b"A: b")


def test_head_and_304_keep_the_length_of_what_they_stand_for() -> None:
    assert rewrite(head(CL), b"HEAD") == head(CL)
    assert rewrite(head(CL, line=b"HTTP/1.1 304 x")) == head(CL, line=b"HTTP/1.1 304 x")


def test_interim_response_passes_as_it_is() -> None:
    data = head(b"Link: </a>", line=b"HTTP/1.1 103 Early Hints")
    parsed = parse_response_head(data, b"GET")
    edit = HeadEdit(None, {"A": "b"})
    out = rewrite_response_head(parsed, edit, keep_alive=False, caller_minor=1, date=b"now")
    assert out == data


def test_switching_protocols_keeps_its_two_fields() -> None:
    data = head(
        b"upgrade: websocket",
        b"connection: keep-alive, Upgrade",
        b"Sec-WebSocket-Accept: x",
        line=b"HTTP/1.1 101 Switching Protocols",
    )
    parsed = parse_response_head(data, b"GET")
    assert (parsed.upgrade, parsed.length, parsed.keep_alive) == (b"websocket", 0, False)
    out = rewrite_response_head(parsed, None, keep_alive=False, caller_minor=1)
    assert out == head(
        b"Sec-WebSocket-Accept: x",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        line=b"HTTP/1.1 101 Switching Protocols",
    )


def test_http_1_0_server_is_answered_for_in_1_1() -> None:
    assert rewrite(head(CL, line=b"HTTP/1.0 200 OK")) == head(CL)
    assert rewrite(head(CL, line=b"HTTP/1.0 200")) == head(CL, line=b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("keep_alive", "caller_minor", "line"),
    [
        (True, 1, []),
        (False, 1, [b"Connection: close"]),
        (True, 0, [b"Connection: keep-alive"]),
        (False, 0, [b"Connection: close"]),
    ],
)
def test_caller_is_told_what_becomes_of_its_connection(
    keep_alive: bool, caller_minor: int, line: list[bytes]
) -> None:
    for sent in ([CL], [b"Connection: close", CL], [b"Connection: keep-alive", CL]):
        parsed = parse_response_head(head(*sent), b"GET")
        out = rewrite_response_head(parsed, None, keep_alive=keep_alive, caller_minor=caller_minor)
        assert out == head(CL, *line)


def test_coding_is_taken_off_for_http_1_0_callers() -> None:
    parsed = parse_response_head(head(b"A: b", TE, b"Trailer: x", b"C: d"), b"GET")
    out = rewrite_response_head(parsed, None, keep_alive=False, caller_minor=0, dechunk=True)
    assert out == head(b"A: b", b"C: d", b"Connection: close")


def test_coding_can_be_put_on_where_the_server_ends_by_closing() -> None:
    parsed = parse_response_head(head(b"A: b"), b"GET")
    out = rewrite_response_head(parsed, None, keep_alive=True, caller_minor=1, enchunk=True)
    assert out == head(b"A: b", TE)


def test_date_is_added_where_the_server_sent_none() -> None:
    for sent, seen in (([CL], [CL, b"Date: now"]), ([DATE, CL], [DATE, CL])):
        parsed = parse_response_head(head(*sent), b"GET")
        out = rewrite_response_head(parsed, None, keep_alive=True, caller_minor=1, date=b"now")
        assert out == head(*seen)


def test_configured_headers_replace_what_the_server_sent() -> None:
    edit = HeadEdit(None, {"server": "pyfrp", "X-A": "1", "Content-Length": "9"})
    out = rewrite(head(b"Server: a", CL, b"SERVER: b", b"Servers: c"), edit=edit)
    assert out == head(CL, b"Servers: c", b"server: pyfrp", b"X-A: 1")


@pytest.mark.parametrize("data", [head(CL, b"A: b"), head(b"Content-Length:5", b"A: b")])
def test_trickling_head_is_complete_at_its_last_byte(data: bytes) -> None:
    for size in range(len(data)):
        assert next_response_head(data[:size], b"GET", start=max(0, size - 1)) is None
        assert next_response_head(data[:size], b"GET") is None
    last = next_response_head(data, b"GET", start=len(data) - 1)
    assert last is not None
    assert last.raw == data


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\n", b"\0", b"HTTP/1.1 200 OK\r\nA" + b"a" * MAX_HEAD_BYTES]
)
def test_unfinished_head_that_cannot_become_good_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(BadHead) as caught:
        next_response_head(data, b"GET")
    assert caught.value.status == 502


def test_repeated_head_is_not_read_again_for_the_same_method() -> None:
    data = head(CL)
    one = next_response_head(data, b"GET")
    assert next_response_head(data + b"01234", b"GET", one) is one
    other = next_response_head(data, b"HEAD", one)
    assert other is not None
    assert other.length == 0


def test_repr_holds_no_secret() -> None:
    assert "secret" not in repr(parse_response_head(head(b"Set-Cookie: secret"), b"GET"))
