"""Fields of HTTP/2 as heads of HTTP/1.1: nothing may read as more than it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyfrp.errors import BadHead
from pyfrp.vhost.http2_heads import (
    accepts_json,
    answer_fields,
    request_text,
    trailer_fields,
    trailer_text,
)
from pyfrp.wire.http1 import (
    CHUNKED,
    ChunkedBody,
    next_request_head,
    parse_request_head,
    parse_response_head,
)

Field = tuple[bytes, bytes]

START: list[Field] = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":authority", b"llm.test"),
    (b":path", b"/"),
]


def start(**changes: bytes | None) -> list[Field]:
    """The pseudo fields of a request, some changed or (None) left out."""
    new = {b":" + name.encode(): value for name, value in changes.items()}
    fields = [(name, new.get(name, value)) for name, value in START]
    return [(name, value) for name, value in fields if value is not None]


# -- requests ----------------------------------------------------------------------------------


def test_a_request_becomes_text() -> None:
    fields = [*start(path=b"/a?b"), (b"accept", b"*/*"), (b"x", b"")]
    text = request_text(fields, ended=True)
    assert text.head == b"GET /a?b HTTP/1.1\r\nhost: llm.test\r\naccept: */*\r\nx: \r\n\r\n"
    assert (text.method, text.length) == (b"GET", 0)


@pytest.mark.parametrize(
    ("method", "fields", "ended", "framing", "length"),
    [
        (b"GET", [], True, None, 0),
        (b"POST", [], True, b"content-length: 0", 0),
        (b"PUT", [], True, b"content-length: 0", 0),
        (b"GET", [(b"content-length", b"0")], True, b"content-length: 0", 0),
        (b"POST", [], False, b"transfer-encoding: chunked", CHUNKED),
        (b"GET", [], False, b"transfer-encoding: chunked", CHUNKED),
        (b"POST", [(b"content-length", b"007")], False, b"content-length: 7", 7),
        (b"POST", [(b"content-length", b"0")], False, b"content-length: 0", 0),
    ],
)
def test_a_body_is_framed_as_far_as_it_is_known(
    method: bytes, fields: list[Field], ended: bool, framing: bytes | None, length: int
) -> None:
    text = request_text([*start(method=method), *fields], ended=ended)
    assert text.length == length
    framed = [line for line in text.head.split(b"\r\n") if line[:1] in b"ct" and b"-" in line[:9]]
    assert framed == ([framing] if framing else [])
    assert parse_request_head(text.head).length == length


def test_a_path_beyond_ascii_is_as_good_as_with_http_1_1() -> None:
    text = request_text(start(path="/한?q=글".encode()), ended=True)
    assert parse_request_head(text.head).target == b"/%ED%95%9C?q=%EA%B8%80"


def test_split_cookies_are_joined() -> None:
    fields = [*START, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")]
    assert request_text(fields, ended=True).head.count(b"cookie") == 1
    assert b"\r\ncookie: a=1; b=2\r\n" in request_text(fields, ended=True).head


@pytest.mark.parametrize(
    "fields",
    [
        [*start(authority=None), (b"host", b"llm.test")],
        [*START, (b"host", b"llm.test")],
        start(scheme=b"https"),
        start(path=b"*", method=b"OPTIONS"),
        [*START, (b"te", b"trailers")],
        [*reversed(START)],
        [*START, (b"x", b"a \t b"), (b"y", "é".encode())],
    ],
)
def test_good_requests_name_one_host(fields: list[Field]) -> None:
    head = parse_request_head(request_text(fields, ended=True).head)
    assert head.host == "llm.test"


BAD: dict[str, Sequence[Field]] = {
    "no method": start(method=None),
    "no scheme": start(scheme=None),
    "no path": start(path=None),
    "no authority": start(authority=None),
    "empty method": start(method=b""),
    "empty path": start(path=b""),
    "empty authority": start(authority=b""),
    "unknown scheme": start(scheme=b"ftp"),
    "absolute path": start(path=b"http://evil/"),
    "path without slash": start(path=b"a"),
    "star for another method": start(path=b"*"),
    "space in path": start(path=b"/a b"),
    "version in path": start(path=b"/ HTTP/1.1\r\nhost: evil\r\n\r\n"),
    "lf in path": start(path=b"/\nx"),
    "nul in path": start(path=b"/\0"),
    "tab in path": start(path=b"/\t"),
    "space in method": start(method=b"GET /evil HTTP/1.1\r\nx: y\r\n\r\nGET"),
    "crlf in authority": start(authority=b"llm.test\r\nx: y"),
    "space in authority": start(authority=b"llm.test evil"),
    "method twice": [*START, (b":method", b"GET")],
    "path twice": [(b":path", b"/"), *START],
    "authority twice": [*START, (b":authority", b"llm.test")],
    "pseudo field after others": [START[0], (b"x", b"y"), *START[1:]],
    "pseudo field after cookie": [START[0], (b"cookie", b"y"), *START[1:]],
    "pseudo field after host": [START[0], (b"host", b"llm.test"), *START[1:]],
    "pseudo field after length": [START[0], (b"content-length", b"0"), *START[1:]],
    "status": [*START, (b":status", b"200")],
    "made-up pseudo field": [(b":x", b"y"), *START],
    "protocol": [*START, (b":protocol", b"websocket")],
    "another host": [*START, (b"host", b"evil")],
    "host twice": [*START, (b"host", b"llm.test"), (b"host", b"llm.test")],
    "connection": [*START, (b"connection", b"close")],
    "keep-alive": [*START, (b"keep-alive", b"1")],
    "proxy-connection": [*START, (b"proxy-connection", b"close")],
    "transfer-encoding": [*START, (b"transfer-encoding", b"chunked")],
    "upgrade": [*START, (b"upgrade", b"websocket")],
    "te": [*START, (b"te", b"gzip")],
    "te with more": [*START, (b"te", b"trailers, gzip")],
    "upper case": [*START, (b"X-A", b"b")],
    "empty name": [*START, (b"", b"b")],
    "colon in name": [*START, (b"a:b", b"c")],
    "space in name": [*START, (b"a b", b"c")],
    "space behind name": [*START, (b"transfer-encoding ", b"chunked")],
    "crlf in name": [*START, (b"a\r\nb", b"c")],
    "name beyond ascii": [*START, ("é".encode(), b"c")],
    "cr in value": [*START, (b"a", b"b\rc")],
    "lf in value": [*START, (b"a", b"b\nhost: evil")],
    "crlf in value": [*START, (b"a", b"b\r\nhost: evil")],
    "nul in value": [*START, (b"a", b"b\0c")],
    "del in value": [*START, (b"a", b"b\x7fc")],
    "space before value": [*START, (b"a", b" b")],
    "tab behind value": [*START, (b"a", b"b\t")],
    "only a space": [*START, (b"a", b" ")],
    "crlf in cookie": [*START, (b"cookie", b"a=1\r\nx: y")],
    "crlf in host": [*start(authority=None), (b"host", b"llm.test\r\nx: y")],
    "length without body": [*START, (b"content-length", b"5")],
    "length twice": [*START, (b"content-length", b"0"), (b"content-length", b"0")],
    "negative length": [*START, (b"content-length", b"-1")],
    "signed length": [*START, (b"content-length", b"+0")],
    "listed length": [*START, (b"content-length", b"0, 0")],
    "hexadecimal length": [*START, (b"content-length", b"0x0")],
    "empty length": [*START, (b"content-length", b"")],
    "endless length": [*START, (b"content-length", b"0" * 19)],
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_requests_are_refused(case: str) -> None:
    with pytest.raises(BadHead) as raised:
        request_text(BAD[case], ended=True)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "fields",
    [
        [(b":method", b"CONNECT"), (b":authority", b"llm.test:80")],
        [*start(method=b"CONNECT"), (b":protocol", b"websocket")],
    ],
)
def test_tunnels_are_refused_as_not_implemented(fields: list[Field]) -> None:
    with pytest.raises(BadHead) as raised:
        request_text(fields, ended=False)
    assert raised.value.status == 501


names = st.one_of(
    st.sampled_from([name for name, _ in START]),
    st.sampled_from([b"host", b"content-length", b"cookie", b"te", b"x-a", b"transfer-encoding"]),
    st.binary(max_size=6),
)
values = st.one_of(
    st.sampled_from([b"GET", b"http", b"llm.test", b"/", b"0", b"5", b"trailers", b"chunked"]),
    st.sampled_from([b"/ HTTP/1.1\r\n\r\n", b"a\r\nb: c", b"\r", b"\n", b"a b"]),
    st.binary(max_size=8),
)


@given(st.lists(st.tuples(names, values), max_size=4), st.booleans(), st.integers(0, 4))
@example([(b"x-a", b"a\r\n\r\nGET / HTTP/1.1\r\nhost: evil")], True, 4)
def test_what_is_not_refused_is_one_head_with_these_fields(
    more: list[Field], ended: bool, where: int
) -> None:
    fields = [*START[:where], *more, *START[where:]]
    try:
        text = request_text(fields, ended=ended)
    except BadHead:
        return
    assert text.head.count(b"\r\n\r\n") == 1
    assert text.head.endswith(b"\r\n\r\n")
    lines = text.head[:-4].split(b"\r\n")
    assert lines[0] == b"GET / HTTP/1.1"
    assert lines[1] == b"host: llm.test"
    plain = {name for name, _ in more if not name.startswith(b":")}
    assert {line.partition(b":")[0] for line in lines[2:]} <= plain | {b"transfer-encoding"}
    try:
        head = next_request_head(text.head + b"rest")
    except BadHead:
        return  # Its own rules are stricter still.
    assert head is not None
    assert head.raw == text.head
    assert head.length == text.length


# -- trailers and answers ----------------------------------------------------------------------


def test_trailers_end_a_chunked_body() -> None:
    text = trailer_text([(b"x-sum", b"1"), (b"y", b"")])
    assert text == b"0\r\nx-sum: 1\r\ny: \r\n\r\n"
    body = ChunkedBody()
    assert body.feed(text) == len(text)
    assert body.done


@pytest.mark.parametrize("field", [(b":status", b"1"), (b"A", b"b"), (b"a", b"b\r\n\r\nGET")])
def test_malformed_trailers_are_refused(field: Field) -> None:
    with pytest.raises(BadHead):
        trailer_text([field])


def test_an_answer_loses_what_belongs_to_its_connection() -> None:
    head = parse_response_head(
        b"HTTP/1.1 200 OK\r\nContent-Type:  text/plain \r\nConnection: close\r\nX-A:\r\n"
        b"Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a\r\n"
        b"Set-Cookie: b\r\n\r\n",
        b"GET",
    )
    assert answer_fields(head) == [
        (b":status", b"200"),
        (b"content-type", b"text/plain"),
        (b"x-a", b""),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
    ]


def test_an_answer_without_fields_has_its_status() -> None:
    head = parse_response_head(b"HTTP/1.1 204 No Content\r\n\r\n", b"GET")
    assert answer_fields(head) == [(b":status", b"204")]


def test_trailers_of_an_answer_lose_it_too() -> None:
    assert trailer_fields([(b"x", b"y"), (b"keep-alive", b"1")]) == [(b"x", b"y")]


@pytest.mark.parametrize(
    ("fields", "json"),
    [
        ([(b"accept", b"text/html, Application/JSON")], True),
        ([(b"content-type", b"application/json; charset=utf-8")], True),
        ([(b"accept", b"text/html")], False),
        ([(b"x", b"application/json")], False),
    ],
)
def test_callers_that_speak_json_are_answered_in_it(fields: list[Field], json: bool) -> None:
    assert accepts_json(fields) is json
