"""One request in, at most one request out: generated heads before two other parsers.

The referees are what common Python servers read requests with: llhttp (httptools) and h11. What
they refuse does no harm; what they accept must begin, end and say what it does for us.
"""

from __future__ import annotations

from collections.abc import Callable

import h11
import httptools
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pyfrp.wire import http_request
from pyfrp.wire.http1 import (
    CHUNKED,
    LAST_CHUNK,
    BadHead,
    HeadEdit,
    RequestHead,
    encode_chunk,
    next_request_head,
    next_response_head,
    parse_request_head,
    parse_response_head,
    rewrite_request_head,
    rewrite_response_head,
)
from pyfrp.wire.http_grammar import escape_target

IP = b"203.0.113.9"
NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
HOP_BY_HOP = {b"connection", b"keep-alive", b"upgrade", b"proxy-connection", b"proxy-authorization"}

Seen = list[tuple[bytes, bytes, bytes]]  # method, target and body of each request


class _Referee:
    """Callbacks of httptools."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.url = b""
        self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.seen.append((self.parser.get_method(), self.url, self.body))


def ask_llhttp(data: bytes) -> Seen | None:
    """Return the requests that llhttp finds, or None if it refuses or switches protocols."""
    referee = _Referee()
    try:
        referee.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return referee.seen


def ask_h11(data: bytes) -> Seen | None:
    """Return the requests that h11 finds, or None if it refuses or switches protocols."""
    seen: Seen = []
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    request, body = None, b""
    try:
        while True:
            event = server.next_event()
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                seen.append((request.method, request.target, body))
                server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                server.send(h11.EndOfMessage())
                server.start_next_cycle()
            else:
                return seen if event is h11.NEED_DATA else None
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return None


def body_for(head: RequestHead) -> tuple[bytes, bytes]:
    """Return a body that the head announces: as sent, and what it means."""
    if head.length == CHUNKED:
        return encode_chunk(b"hello\r\n") + LAST_CHUNK, b"hello\r\n"
    return b"G" * head.length, b"G" * head.length


# --- generated heads ------------------------------------------------------------------------

names = st.sampled_from(
    [
        b"Content-Length",
        b"content-length",
        b"Transfer-Encoding",
        b"TRANSFER-ENCODING",
        b"Content-Length ",
        b"Connection",
        b"Host",
        b"Expect",
        b"Upgrade",
        b"TE",
        b"Trailer",
        b"Keep-Alive",
        b"Proxy-Connection",
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"Forwarded",
        b"Authorization",
        b"A",
        b"X-A",
        b"Content_Length",
        b" Content-Length",
        b"",
    ]
)
values = st.one_of(
    st.sampled_from(
        [
            b"5",
            b"0",
            b"3",
            b"05",
            b"+5",
            b"5,5",
            b"5 ",
            b"0x5",
            b"chunked",
            b"Chunked",
            b"chunked, chunked",
            b"gzip, chunked",
            b"identity",
            b"\tchunked",
            b"\x0bchunked",
            b"close",
            b"keep-alive",
            b"upgrade",
            b"close, x-a",
            b"content-length",
            b"transfer-encoding",
            b"websocket",
            b"h2c",
            b"100-continue",
            b"trailers",
            b"llm.local",
            b"a\r\n b",
            b"a\nContent-Length: 7",
            b"a\rb",
            b"Basic YTpi",
            b"",
        ]
    ),
    st.binary(max_size=6),
)
separators = st.sampled_from([b": ", b": ", b": ", b":", b":\t", b" : ", b""])
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n"])
lines = st.sampled_from(
    [b"POST /a HTTP/1.1"] * 6
    + [
        b"GET /a?b=%zz HTTP/1.1",
        b"POST /a%20b HTTP/1.1",
        b"POST http://llm.local/a HTTP/1.1",
        b"POST /a HTTP/1.0",
        b"HEAD / HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT llm.local:80 HTTP/1.1",
        b"POST /a HTTP/1.1 ",
        b"POST  /a HTTP/1.1",
    ]
)
hosts = st.sampled_from([b"Host: llm.local\r\n"] * 6 + [b"", b"host:llm.local \r\n"])
# Fields that are good by themselves, so that many of the heads made of them are.
good_fields = st.sampled_from(
    [
        b"Content-Length: 5",
        b"content-length:\t0",
        b"Transfer-Encoding: chunked",
        b"TRANSFER-ENCODING:Chunked",
        b"Connection: close",
        b"connection: keep-alive",
        b"Connection: Upgrade, x-a",
        b"Connection: TE, trailer, transfer-encoding",
        b"Upgrade: websocket",
        b"Keep-Alive: timeout=5",
        b"Expect: 100-continue",
        b"TE: trailers",
        b"Trailer: Digest",
        b"Proxy-Connection: keep-alive",
        b"Proxy-Authorization: Basic YTpi",
        b"Authorization: Basic Yzpk",
        b"Authorization: Bearer abc",
        b"X-Forwarded-For: 1.1.1.1, 2.2.2.2",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host:x",
        b"x-forwarded-port: 1",
        b"Forwarded: for=1",
        b"X-A: 1",
        b"Hosts: content-length",
        b"A:",
        b"Content-Type: application/json",
    ]
)


@st.composite
def wild_heads(draw: st.DrawFn) -> bytes:
    data = draw(lines) + draw(ends) + draw(hosts)
    for _ in range(draw(st.integers(0, 5))):
        data += draw(names) + draw(separators) + draw(values) + draw(ends)
    data += draw(ends)
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 1)) :]
    return data


@st.composite
def tame_heads(draw: st.DrawFn) -> bytes:
    fields = draw(st.lists(good_fields, max_size=7))
    fields.insert(draw(st.integers(0, len(fields))), b"Host: llm.local")
    return b"\r\n".join([draw(lines), *fields, b"", b""])


heads = st.one_of(tame_heads(), tame_heads(), wild_heads())


def read(data: bytes) -> RequestHead:
    """Parse a head, or tell hypothesis to try another one."""
    try:
        return parse_request_head(data)
    except BadHead:
        assume(False)
        raise


def refusal(parse: Callable[..., object], *args: bytes) -> int:
    """Return the status of a refusal, 0 if there is none."""
    try:
        parse(*args)
    except BadHead as exc:
        return exc.status
    return 0


EDITS = (None, HeadEdit(b"127.0.0.1:4000", {"X-A": "set", "Trailer": "x"}))


@settings(max_examples=400, deadline=None)
@given(heads)
def test_parser_raises_nothing_but_bad_head(data: bytes) -> None:
    response = data.replace(b"POST /a HTTP/1.1", b"HTTP/1.1 200 OK", 1)
    assert refusal(parse_request_head, data) in (0, 400, 414, 417, 431, 501, 505)
    assert refusal(next_request_head, data) in (0, 400, 414, 417, 431, 501, 505)
    assert refusal(parse_response_head, response, b"GET") in (0, 502)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_parsers_take_any_bytes(data: bytes) -> None:
    assert refusal(parse_request_head, data) >= 0
    assert refusal(next_request_head, data) >= 0
    assert refusal(parse_response_head, data, b"GET") >= 0
    assert refusal(next_response_head, data, b"GET") >= 0


@settings(max_examples=400, deadline=None)
@given(heads, st.sampled_from(EDITS))
def test_one_request_in_is_one_request_out(data: bytes, edit: HeadEdit | None) -> None:
    head = read(data)
    assume(head.length < 10000)
    out = rewrite_request_head(head, edit, IP)
    sent, meant = body_for(head)
    again = parse_request_head(out)
    # The upgrades that stay in are checked by the table; the referees stop at them.
    for ask in (ask_llhttp, ask_h11):
        seen = ask(out + sent + NEXT)
        if seen is not None:
            assert seen == [(head.method, again.target, meant), (b"GET", b"/next", b"")]


@settings(max_examples=400, deadline=None)
@given(heads)
def test_what_others_take_as_two_requests_is_not_one_for_us(data: bytes) -> None:
    head = read(data)
    assume(head.length < 10000 and head.method != b"CONNECT")
    sent, meant = body_for(head)
    for ask in (ask_llhttp, ask_h11):
        seen = ask(data + sent + NEXT)
        if seen is not None and head.keep_alive:
            seen = [(method, escape_target(target), body) for method, target, body in seen]
            assert seen == [(head.method, head.target, meant), (b"GET", b"/next", b"")]


@settings(max_examples=400, deadline=None)
@given(heads, st.sampled_from(EDITS))
def test_rewritten_head_says_the_same_and_has_nothing_of_the_hop(
    data: bytes, edit: HeadEdit | None
) -> None:
    head = read(data)
    out = rewrite_request_head(head, edit, IP)
    again = parse_request_head(out)
    assert (again.method, again.path, again.length) == (head.method, head.path, head.length)
    assert (again.minor, again.upgrade) == (1, head.upgrade)
    if edit is None:
        assert (again.target, again.host) == (head.target, head.host)
        # Credentials for this proxy stay here; those for the next hop may show behind them.
        assert again.user == head.user or b"proxy-authorization" in data.lower()
    found = [line.partition(b":")[0].lower() for line in out[:-4].split(b"\r\n")[1:]]
    if head.method == b"CONNECT":
        assert out == data.replace(b" HTTP/1.0", b" HTTP/1.1", 1)
        return
    if not head.upgrade:
        assert not HOP_BY_HOP & set(found)
    assert again.keep_alive
    for once in (b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"):
        assert found.count(once) == 1
    assert found.count(b"content-length") + found.count(b"transfer-encoding") <= 1


@settings(max_examples=300, deadline=None)
@given(heads)
def test_rewriting_twice_changes_only_who_forwarded(data: bytes) -> None:
    once = rewrite_request_head(read(data), None, IP)
    twice = rewrite_request_head(parse_request_head(once), None, IP)

    def rest(head: bytes) -> list[bytes]:
        # The order may change, because lines that are set move to the end.
        return sorted(
            line.lower() for line in head.split(b"\r\n") if not line.startswith(b"X-Forwarded-For:")
        )

    assert rest(once) == rest(twice)
    assert b", 203.0.113.9\r\n" in twice or once.startswith(b"CONNECT ")


@settings(max_examples=400, deadline=None)
@given(heads)
def test_short_reader_takes_only_what_the_general_one_does(data: bytes) -> None:
    if http_request._COMMON.fullmatch(data) is None:
        return
    if status := refusal(http_request._parse_general, data):
        assert refusal(parse_request_head, data) == status
        return
    general = http_request._parse_general(data)
    short = parse_request_head(data)
    for name in RequestHead.__slots__:
        if name not in ("cuts", "rewritten", "rewritten_for"):
            assert getattr(short, name) == getattr(general, name), name
    assert sorted(rewrite_request_head(short, None, IP).split(b"\r\n")) == sorted(
        rewrite_request_head(general, None, IP).split(b"\r\n")
    )


@settings(max_examples=400, deadline=None)
@given(heads, st.sampled_from([b"200 OK", b"204", b"304 ", b"404 Not Found"]))
def test_rewritten_response_has_the_length_that_was_read(data: bytes, status: bytes) -> None:
    line = data.find(b"\r\n")
    data = b"HTTP/1.1 " + status + data[line:]
    try:
        head = parse_response_head(data, b"GET")
    except BadHead:
        assume(False)
    out = rewrite_response_head(head, None, keep_alive=True, caller_minor=1)
    again = parse_response_head(out, b"GET")
    assert (again.status, again.length) == (head.status, head.length)
    assert rewrite_response_head(again, None, keep_alive=True, caller_minor=1) == out
