"""Request heads: what odd ones are read as, and what the next hop gets.

What is refused is in `test_http_bad_heads.py`.
"""

from __future__ import annotations

import pytest

from pyfrp.wire import http_request
from pyfrp.wire.http1 import (
    CHUNKED,
    MAX_HEAD_BYTES,
    MAX_HEADER_COUNT,
    MAX_TARGET_BYTES,
    BadHead,
    Forwarding,
    HeadEdit,
    RequestHead,
    check_partial_head,
    find_head_end,
    next_request_head,
    parse_request_head,
    rewrite_request_head,
    skip_empty_line,
)

IP = b"203.0.113.9"
H = b"Host: llm.local\r\n"


def head(
    *fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: llm.local"
) -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def post(*fields: bytes) -> bytes:
    return head(*fields, line=b"POST / HTTP/1.1")


CL = b"Content-Length: 5"
TE = b"Transfer-Encoding: chunked"

# (what it is, the head, what it is read as)
ODD: list[tuple[str, bytes, dict[str, object]]] = [
    ("lower-case method", head(line=b"get / HTTP/1.1"), {"method": b"get"}),
    ("unknown method", head(line=b"X-Y.Z! / HTTP/1.1"), {"method": b"X-Y.Z!"}),
    ("method with a C", head(line=b"COPY /a HTTP/1.1"), {"method": b"COPY", "path": "/a"}),
    ("empty value", head(b"A:"), {"length": 0}),
    ("value of white space", head(b"A: \t "), {}),
    ("obs-text in a value", head(b"A: \xe9\xff"), {}),
    ("tab in a value", head(b"A: b\tc"), {}),
    ("colon in a value", head(b"A: b:c::"), {}),
    ("name of one letter", head(b"a: b"), {}),
    ("name of odd letters", head(b"!#$%&'*+-.^_`|~9: b"), {}),
    ("names that begin like known ones", head(b"Hosts: a", b"Content-Lengths: b", b"X-F: c"), {}),
    ("two-letter names", head(b"te2: a", b"up: a", b"co: a"), {}),
    ("repeated harmless field", head(b"Cookie: a=b", b"Cookie: c=d"), {}),
    ("lower-case names", head(host=b"host: llm.local"), {"host": "llm.local"}),
    ("Host without space", head(host=b"Host:llm.local"), {"authority": "llm.local"}),
    ("Host in white space", head(host=b"Host: \t llm.local \t"), {"authority": "llm.local"}),
    ("Host last", b"GET / HTTP/1.1\r\nA: b\r\n" + H + b"\r\n", {"host": "llm.local"}),
    ("upper-case Host", head(host=b"Host: LLM.Local"), {"authority": "LLM.Local"}),
    ("Host with port", head(host=b"Host: llm.local:8081"), {"authority": "llm.local:8081"}),
    ("Host with empty port", head(host=b"Host: llm.local:"), {"host": "llm.local"}),
    ("Host with dot", head(host=b"Host: LLM.local.:80"), {"host": "llm.local"}),
    ("Host with underscore", head(host=b"Host: my_llm-1"), {"host": "my_llm-1"}),
    ("IPv4", head(host=b"Host: 127.0.0.1:80"), {"host": "127.0.0.1"}),
    ("IPv6", head(host=b"Host: [::1]"), {"host": "::1", "authority": "[::1]"}),
    ("IPv6 with port", head(host=b"Host: [FE80::A]:80"), {"host": "fe80::a"}),
    ("IPv6 with IPv4", head(host=b"Host: [::ffff:1.2.3.4]"), {"host": "::ffff:1.2.3.4"}),
    ("HTTP/1.0", head(line=b"GET / HTTP/1.0"), {"minor": 0, "keep_alive": False}),
    (
        "HTTP/1.0 kept",
        head(b"Connection: Keep-Alive", line=b"GET / HTTP/1.0"),
        {"minor": 0, "keep_alive": True},
    ),
    ("close", head(b"Connection: close"), {"keep_alive": False}),
    ("upper-case close", head(b"CONNECTION: CLOSE"), {"keep_alive": False}),
    ("close among others", head(b"Connection: x, close"), {"keep_alive": False}),
    ("close and keep-alive", head(b"Connection: keep-alive, close"), {"keep_alive": False}),
    ("close in a second line", head(b"Connection: a", b"Connection: close"), {"keep_alive": False}),
    ("Connection with empty elements", head(b"Connection: ,, close ,"), {"keep_alive": False}),
    ("empty Connection", head(b"Connection:"), {"keep_alive": True}),
    ("keep-alive", head(b"Connection: keep-alive"), {"keep_alive": True}),
    ("length 0", post(b"Content-Length: 0"), {"length": 0}),
    ("length with zeros", post(b"Content-Length: 0005"), {"length": 5}),
    ("length in white space", post(b"Content-Length:\t5\t"), {"length": 5}),
    ("length without space", post(b"content-length:5"), {"length": 5}),
    ("longest length", post(b"Content-Length: " + b"9" * 18), {"length": 10**18 - 1}),
    ("length on GET", head(CL), {"length": 5}),
    ("chunked", post(TE), {"length": CHUNKED}),
    ("chunked in capitals", post(b"TRANSFER-ENCODING:\tCHUNKED "), {"length": CHUNKED}),
    ("query", head(line=b"GET /a?b=%zz&c=/d HTTP/1.1"), {"path": "/a"}),
    ("empty query", head(line=b"GET /a? HTTP/1.1"), {"path": "/a"}),
    ("escapes", head(line=b"GET /a%20b%2Fc%3f HTTP/1.1"), {"path": "/a b/c?"}),
    ("escaped UTF-8", head(line=b"GET /%ED%95%9C HTTP/1.1"), {"path": "/한"}),
    (
        "UTF-8 as it is",
        head(line="GET /한?q=글 HTTP/1.1".encode()),
        {"path": "/한", "target": b"/%ED%95%9C?q=%EA%B8%80"},
    ),
    (
        "UTF-8 among escapes",
        head(line="GET /%ED%95%9C/é HTTP/1.1".encode()),
        {"path": "/한/é", "target": b"/%ED%95%9C/%C3%A9"},
    ),
    ("junk as it is", head(line=b"GET /\xff HTTP/1.1"), {"path": "/\ufffd", "target": b"/%FF"}),
    ("escaped junk", head(line=b"GET /%ff HTTP/1.1"), {"path": "/\ufffd"}),
    ("two slashes", head(line=b"GET //other.local/a HTTP/1.1"), {"path": "//other.local/a"}),
    ("dots", head(line=b"GET /a/../b HTTP/1.1"), {"path": "/a/../b"}),
    ("odd letters in path", head(line=b'GET /a"<>\\^`{|}[] HTTP/1.1'), {"path": '/a"<>\\^`{|}[]'}),
    ("OPTIONS *", head(line=b"OPTIONS * HTTP/1.1"), {"path": "*", "target": b"*"}),
    ("absolute", head(line=b"GET http://llm.local/a?b HTTP/1.1"), {"path": "/a"}),
    ("absolute, port 80", head(line=b"GET http://LLM.local.:80/ HTTP/1.1"), {"path": "/"}),
    ("absolute, capitals", head(line=b"GET HTTP://llm.local/ HTTP/1.1"), {"path": "/"}),
    ("absolute, no path", head(line=b"GET http://llm.local HTTP/1.1"), {"path": "/"}),
    ("absolute, query only", head(line=b"GET http://llm.local?a HTTP/1.1"), {"path": "/"}),
    (
        "absolute, IPv6",
        head(line=b"GET http://[::1]/ HTTP/1.1", host=b"Host: [::1]"),
        {"host": "::1"},
    ),
    ("CONNECT", head(line=b"CONNECT llm.local:80 HTTP/1.1"), {"path": "", "host": "llm.local"}),
    ("CONNECT, no port in Host", head(line=b"CONNECT llm.local:443 HTTP/1.1"), {"path": ""}),
    (
        "CONNECT without Host, HTTP/1.0",
        head(line=b"CONNECT llm.local:443 HTTP/1.0", host=b""),
        {"host": "llm.local", "authority": "llm.local:443"},
    ),
    (
        "absolute without Host, HTTP/1.0",
        head(line=b"GET http://llm.local:81/a HTTP/1.0", host=b""),
        {"host": "llm.local", "authority": "llm.local:81", "path": "/a"},
    ),
    (
        "CONNECT with length 0",
        head(b"Content-Length: 0", line=b"CONNECT llm.local:80 HTTP/1.1"),
        {"length": 0},
    ),
    ("expectation", post(CL, b"Expect: 100-Continue"), {"expects_continue": True}),
    ("expectation, chunked", post(TE, b"Expect: 100-continue"), {"expects_continue": True}),
    ("expectation, no body", head(b"Expect: 100-continue"), {"expects_continue": False}),
    (
        "expectation, HTTP/1.0",
        head(CL, b"Expect: 100-continue", line=b"POST / HTTP/1.0"),
        {"expects_continue": False},
    ),
    ("Basic", head(b"Authorization: Basic YTpi"), {"user": "a", "password": "b"}),
    ("Basic in capitals", head(b"authorization: BASIC   YTpi"), {"user": "a", "password": "b"}),
    ("Basic, no password", head(b"Authorization: Basic YTo="), {"user": "a", "password": ""}),
    ("Basic, colons", head(b"Authorization: Basic YTpiOmM="), {"user": "a", "password": "b:c"}),
    ("Basic, UTF-8", head(b"Authorization: Basic 7ZWcOu2VnA=="), {"user": "한", "password": "한"}),
    ("Basic, no colon", head(b"Authorization: Basic YWI="), {"user": "", "password": ""}),
    ("Basic, junk", head(b"Authorization: Basic %%%"), {"user": ""}),
    ("Basic, bad padding", head(b"Authorization: Basic YTpi="), {"user": ""}),
    ("Basic, not UTF-8", head(b"Authorization: Basic /zr/"), {"user": ""}),
    ("Basic, empty", head(b"Authorization: Basic"), {"user": ""}),
    ("Bearer", head(b"Authorization: Bearer YTpi"), {"user": "", "password": ""}),
    ("other scheme with Ba", head(b"Authorization: Bacon YTpi"), {"user": ""}),
    ("empty credentials", head(b"Authorization:"), {"user": ""}),
    ("proxy credentials are not for paths", head(b"Proxy-Authorization: Basic YTpi"), {"user": ""}),
    (
        "proxy credentials, absolute",
        head(
            b"Authorization: Basic YTpi",
            b"Proxy-Authorization: Basic Yzpk",
            line=b"GET http://llm.local/ HTTP/1.1",
        ),
        {"user": "c", "password": "d"},
    ),
    (
        "credentials, absolute",
        head(b"Authorization: Basic YTpi", line=b"GET http://llm.local/ HTTP/1.1"),
        {"user": "a", "password": "b"},
    ),
    (
        "upgrade",
        head(b"Connection: Upgrade", b"Upgrade: websocket"),
        {"upgrade": b"websocket", "keep_alive": True},
    ),
    (
        "upgrade in lists",
        head(b"connection: keep-alive, upgrade", b"upgrade: a/1, b"),
        {"upgrade": b"a/1, b"},
    ),
    ("upgrade not named", head(b"Upgrade: websocket"), {"upgrade": b""}),
    ("upgrade without protocol", head(b"Connection: upgrade"), {"upgrade": b""}),
    ("h2c", head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), {"upgrade": b""}),
    ("h2c in list", head(b"Connection: Upgrade", b"Upgrade: websocket, H2C"), {"upgrade": b""}),
    (
        "upgrade to a choice of too many",
        head(b"Connection: Upgrade", b"Upgrade: a" + b", a" * 40),
        {"upgrade": b""},
    ),
    ("upgrade with body", post(CL, b"Connection: Upgrade", b"Upgrade: x"), {"upgrade": b""}),
    (
        "upgrade, HTTP/1.0",
        head(b"Connection: Upgrade", b"Upgrade: x", line=b"GET / HTTP/1.0"),
        {"upgrade": b""},
    ),
    ("most fields", head(*[b"A: b"] * (MAX_HEADER_COUNT - 1)), {}),
    ("longest method", head(line=b"A" * 32 + b" / HTTP/1.1"), {"method": b"A" * 32}),
    (
        "longest target",
        head(line=b"GET /" + b"a" * (MAX_TARGET_BYTES - 1) + b" HTTP/1.1"),
        {"path": "/" + "a" * (MAX_TARGET_BYTES - 1)},
    ),
]


@pytest.mark.parametrize(("data", "expected"), [o[1:] for o in ODD], ids=[o[0] for o in ODD])
def test_odd_but_legal_head_passes(data: bytes, expected: dict[str, object]) -> None:
    parsed = parse_request_head(data)
    assert {name: getattr(parsed, name) for name in expected} == expected
    assert parsed.raw == data


def visible(parsed: RequestHead) -> dict[str, object]:
    ways = ("cuts", "rewritten", "rewritten_for")
    return {name: getattr(parsed, name) for name in parsed.__slots__ if name not in ways}


@pytest.mark.parametrize("data", [o[1] for o in ODD], ids=[o[0] for o in ODD])
def test_both_readers_agree(data: bytes) -> None:
    short, general = parse_request_head(data), http_request._parse_general(data)
    assert visible(short) == visible(general)
    rewritten = rewrite_request_head(short, None, IP)
    # Where the lines that are kept stand may differ, what they say may not.
    assert sorted(rewritten.split(b"\r\n")) == sorted(
        rewrite_request_head(general, None, IP).split(b"\r\n")
    )


def rewrite(data: bytes, edit: HeadEdit | None = None) -> bytes:
    return rewrite_request_head(parse_request_head(data), edit, IP)


def fields_of(data: bytes) -> list[bytes]:
    assert data.endswith(b"\r\n\r\n")
    return data[:-4].split(b"\r\n")[1:]


FORWARDED = [b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-Host: llm.local"]
PROTO = b"X-Forwarded-Proto: http"


def test_rewritten_head_tells_who_called() -> None:
    data = head(b"A: b", line=b"GET /x?y HTTP/1.1")
    assert rewrite(data) == (
        b"GET /x?y HTTP/1.1\r\nHost: llm.local\r\nA: b\r\n"
        b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Host: llm.local\r\n"
        b"X-Forwarded-Proto: http\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ([b"Connection: keep-alive"], []),
        ([b"connection: close", b"A: b"], [b"A: b"]),
        ([b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive"], []),
        ([b"Proxy-Authorization: Basic YTpi", b"Proxy-Authenticate: x"], []),
        ([b"Authorization: Basic YTpi"], [b"Authorization: Basic YTpi"]),
        ([b"Connection: x-a, close", b"X-A: 1", b"x-a: 2", b"X-B: 3"], [b"X-B: 3"]),
        ([b"Connection: x-a", b"Connection: x-b", b"X-A: 1", b"X-B: 2"], []),
        ([b"Connection: transfer-encoding", TE], [TE]),
        ([b"TE: trailers, deflate;q=0.5", b"Connection: TE"], []),
        ([b"TE: trailers", b"Connection: TE"], [b"TE: trailers"]),
        ([b"TE: deflate"], []),
        ([b"Trailer: Digest"], []),
        ([b"Trailer: Digest", TE], [b"Trailer: Digest", TE]),
        ([b"Transfer-Encoding:chunked"], [b"transfer-encoding: chunked"]),
        ([b"Content-Length:\t 5"], [b"content-length: 5"]),
        ([b"Upgrade: websocket"], []),
        (
            [b"Upgrade: websocket", b"Connection: keep-alive, Upgrade"],
            [b"Connection: Upgrade", b"Upgrade: websocket"],
        ),
        (
            [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"],
            [],
        ),
        ([b"Forwarded: for=1.2.3.4", b"X-Forwarded-Host: evil"], []),
        ([b"X-Forwarded-Proto: https"], []),
        ([b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http"], []),
        ([b"X-Forwarded-Port: 81", b"X-Real-IP: 1"], [b"X-Forwarded-Port: 81", b"X-Real-IP: 1"]),
        ([CL, b"Expect: 100-continue"], [CL, b"Expect: 100-continue"]),
    ],
)
def test_only_what_is_for_the_next_hop_goes_on(sent: list[bytes], kept: list[bytes]) -> None:
    assert sorted(fields_of(rewrite(post(*sent)))) == sorted(
        [b"Host: llm.local", *kept, *FORWARDED, PROTO]
    )


@pytest.mark.parametrize(
    ("sent", "result"),
    [
        ([b"X-Forwarded-For: 1.1.1.1"], b"1.1.1.1, 203.0.113.9"),
        (
            [b"x-forwarded-for: 1.1.1.1", b"X-Forwarded-For:2.2.2.2"],
            b"1.1.1.1, 2.2.2.2, 203.0.113.9",
        ),
        ([b"X-Forwarded-For: 1.1.1.1, "], b"1.1.1.1, 203.0.113.9"),
        ([b"X-Forwarded-For:"], b"203.0.113.9"),
        ([b"X-Forwarded-For: 1.1.1.1", b"Connection: close"], b"1.1.1.1, 203.0.113.9"),
        (
            [b"X-Forwarded-Proto: https", b"X-Forwarded-Host: x", b"X-Forwarded-For: 1.1.1.1"],
            b"1.1.1.1, 203.0.113.9",
        ),
    ],
)
def test_forwarded_for_is_appended_to(sent: list[bytes], result: bytes) -> None:
    fields = fields_of(rewrite(head(*sent)))
    assert sorted(fields) == sorted(
        [b"Host: llm.local", b"X-Forwarded-For: " + result, FORWARDED[1], PROTO]
    )


@pytest.mark.parametrize(
    ("forwarding", "ip", "told"),
    [
        (Forwarding.HTTP, b"", [b"X-Forwarded-For: 1.1.1.1", FORWARDED[1], PROTO]),
        (
            Forwarding.HTTPS,
            IP,
            [b"X-Forwarded-For: 1.1.1.1, " + IP, FORWARDED[1], b"X-Forwarded-Proto: https"],
        ),
        (Forwarding.KEPT, IP, [b"x-forwarded-for: 1.1.1.1", b"X-Forwarded-Host:x"]),
        (Forwarding.DROPPED, IP, []),
    ],
)
def test_an_edit_says_what_the_next_hop_learns_of_the_caller(
    forwarding: Forwarding, ip: bytes, told: list[bytes]
) -> None:
    sent = (b"x-forwarded-for: 1.1.1.1", b"X-Forwarded-Host:x", b"Forwarded: for=1.1.1.1")
    edit = HeadEdit(None, {}, forwarding=forwarding)
    out = rewrite_request_head(parse_request_head(head(*sent)), edit, ip)
    assert fields_of(out) == [b"Host: llm.local", *told]


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"GET http://llm.local/a?b HTTP/1.1", b"/a?b"),
        (b"GET HTTP://llm.local?b HTTP/1.1", b"/?b"),
        (b"GET http://llm.local HTTP/1.1", b"/"),
        (b"OPTIONS http://llm.local HTTP/1.1", b"*"),
        (b"GET /http://llm.local/ HTTP/1.1", b"/http://llm.local/"),
        (b"GET /?http://a HTTP/1.1", b"/?http://a"),
    ],
)
@pytest.mark.parametrize("host", [None, b"b.test:8"])
def test_an_edit_for_a_server_has_paths_for_targets(
    line: bytes, target: bytes, host: bytes | None
) -> None:
    edit = HeadEdit(host, {}, origin_form=True)
    out = rewrite_request_head(parse_request_head(head(line=line)), edit, IP)
    method = line.partition(b" ")[0]
    named = host or b"llm.local"
    assert out.startswith(b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, named))


def test_a_caller_without_an_address_is_not_made_up() -> None:
    out = rewrite_request_head(parse_request_head(head()), None, b"")
    assert fields_of(out) == [b"Host: llm.local", FORWARDED[1], PROTO]


def test_http_1_0_request_goes_on_as_1_1_without_expectation() -> None:
    data = head(CL, b"Expect: 100-continue", line=b"POST /HTTP/1.0 HTTP/1.0")
    out = rewrite(data)
    assert out.startswith(b"POST /HTTP/1.0 HTTP/1.1\r\n")
    assert b"Expect" not in out


def test_host_rewrite_replaces_host_and_keeps_the_original_for_the_record() -> None:
    edit = HeadEdit(b"127.0.0.1:4000", {})
    fields = fields_of(rewrite(head(host=b"host: \tLLM.local:80 "), edit))
    assert fields[0] == b"host: 127.0.0.1:4000"
    assert b"X-Forwarded-Host: LLM.local:80" in fields


def test_host_rewrite_reaches_absolute_targets() -> None:
    data = head(line=b"GET http://llm.local:80/a?b HTTP/1.1")
    assert rewrite(data).startswith(b"GET http://llm.local:80/a?b HTTP/1.1\r\n")
    assert rewrite(data, HeadEdit(b"new", {})).startswith(
        b"GET http://new/a?b HTTP/1.1\r\nHost: new\r\n"
    )


def test_the_next_hop_gets_a_target_of_plain_ascii() -> None:
    out = rewrite(head(b"A: \xe9", line="GET /한/%20?q=글 HTTP/1.0".encode()))
    assert out.startswith(b"GET /%ED%95%9C/%20?q=%EA%B8%80 HTTP/1.1\r\n")
    assert b"\r\nA: \xe9\r\n" in out
    edit = HeadEdit(b"new.local", {}, origin_form=True)
    out = rewrite(head(line="GET http://llm.local/é HTTP/1.1".encode()), edit)
    assert out.startswith(b"GET /%C3%A9 HTTP/1.1\r\n")
    assert b"\r\nHost: new.local\r\n" in out


def test_connect_passes_as_it_is() -> None:
    data = head(b"Proxy-Authorization: Basic YTpi", line=b"CONNECT llm.local:80 HTTP/1.1")
    assert rewrite(data, HeadEdit(b"new", {"A": "b"})) == data
    assert rewrite(data.replace(b"1.1", b"1.0")) == data


def test_host_is_added_where_an_old_client_left_it_in_the_target() -> None:
    assert rewrite(b"CONNECT a:443 HTTP/1.0\r\nA: b\r\n\r\n") == (
        b"CONNECT a:443 HTTP/1.1\r\nA: b\r\nHost: a:443\r\n\r\n"
    )
    out = rewrite(b"GET http://a:81/ HTTP/1.0\r\n\r\n", HeadEdit(b"new", {}))
    assert out.startswith(b"GET http://new/ HTTP/1.1\r\n")
    assert out.count(b"\r\nHost: new\r\n") == 1
    assert b"X-Forwarded-Host: a:81\r\n" in out


def test_configured_headers_replace_what_was_sent_and_come_last() -> None:
    edit = HeadEdit(None, {"X-A": "one", "x-forwarded-for": "none", "Empty": ""})
    out = rewrite(head(b"x-a: 1", b"X-A: 2", b"X-AB: 3", b"Empty: x"), edit)
    assert fields_of(out) == [
        b"Host: llm.local",
        b"X-AB: 3",
        FORWARDED[1],
        PROTO,
        b"X-A: one",
        b"x-forwarded-for: none",
        b"Empty: ",
    ]


def test_last_spelling_of_a_configured_header_counts() -> None:
    assert HeadEdit(None, {"X-A": "1", "x-a": "2"}).lines == b"x-a: 2\r\n"


def test_framing_and_hop_headers_cannot_be_configured_but_are_reported() -> None:
    edit = HeadEdit(None, {"Content-Length": "1", "CONNECTION": "x", "Host": "y", "A": "b"})
    assert edit.ignored == ("Content-Length", "CONNECTION", "Host")
    assert edit.lines == b"A: b\r\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A", "b\r\nC: d"),
        ("A", "b\nc"),
        ("A", "b\0"),
        ("A\r\nB", "c"),
        ("A:", "b"),
        ("A:B", "c"),
        ("", "b"),
        ("A B", "c"),
        ("É", "c"),
    ],
)
def test_configured_headers_cannot_break_the_head(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="not a header"):
        HeadEdit(None, {name: value})


@pytest.mark.parametrize("host", [b"a\r\nB: c", b"a b", b"", b"a@b", b"a/b"])
def test_configured_host_must_be_a_host(host: bytes) -> None:
    with pytest.raises(ValueError, match="not a host"):
        HeadEdit(host, {})


def test_rewriting_again_for_another_route_or_caller_is_not_answered_from_memory() -> None:
    parsed = parse_request_head(head())
    edit = HeadEdit(b"new", {})
    first = rewrite_request_head(parsed, None, IP)
    assert rewrite_request_head(parsed, None, IP) is first
    assert b"Host: new" in rewrite_request_head(parsed, edit, IP)
    assert b"For: 192.0.2.1\r\n" in rewrite_request_head(parsed, edit, b"192.0.2.1")
    assert rewrite_request_head(parsed, None, IP) == first


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ([b"Accept: application/json"], True),
        ([b"accept: text/html, APPLICATION/JSON;q=0.5"], True),
        ([b"Content-Type:application/json"], True),
        ([b"Accept: */*"], False),
        ([b"X-Accept: application/json"], False),
        ([], False),
    ],
)
def test_callers_of_an_api_get_json_errors(fields: list[bytes], wanted: bool) -> None:
    assert parse_request_head(head(*fields)).accepts_json is wanted


def test_next_head_is_found_before_body_and_further_requests() -> None:
    first, second = post(CL, b"A: %41"), head(line=b"GET /second HTTP/1.1")
    data = first + b"01234" + second
    one = next_request_head(data)
    assert one is not None
    assert one.raw == first
    rest = data[len(one.raw) + one.length :]
    two = next_request_head(rest, one)
    assert two is not None
    assert two.raw == second
    assert two.path == "/second"


def test_repeated_head_is_not_read_again() -> None:
    data = head(b"A: b")
    one = next_request_head(data)
    assert next_request_head(data + data, one) is one
    other = next_request_head(head(b"A: c"), one)
    assert other is not one


@pytest.mark.parametrize("data", [post(CL, b"A: b"), post(CL, b"A: b", b"TE: trailers")])
def test_trickling_head_is_complete_at_its_last_byte(data: bytes) -> None:
    for size in range(len(data)):
        assert next_request_head(data[:size], start=max(0, size - 1)) is None
    last = next_request_head(data, start=len(data) - 1)
    assert last is not None
    assert last.raw == data


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/1.1\n", 400),
        (b"GET / HTTP/1.1\r\nA: \0", 400),
        (b"GET / HTTP/1.1\r\nA: b\rc", 400),
        (b"\n", 400),
        (b"a" * (MAX_HEAD_BYTES + 1), 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_HEAD_BYTES, 431),
    ],
)
def test_unfinished_head_that_cannot_become_good_is_refused_at_once(
    data: bytes, status: int
) -> None:
    with pytest.raises(BadHead) as caught:
        check_partial_head(data)
    assert caught.value.status == status
    with pytest.raises(BadHead):
        next_request_head(data)


def test_unfinished_head_may_end_anywhere() -> None:
    data = head(b"A: b")
    for size in range(len(data)):
        check_partial_head(data[:size])
        check_partial_head(data[:size], max(0, size - 1))


def test_bare_line_feed_is_seen_across_a_split() -> None:
    check_partial_head(b"GET / HTTP/1.1\r\nA: b")
    with pytest.raises(BadHead):
        check_partial_head(b"GET / HTTP/1.1\r\nA: b\n", 20)
    check_partial_head(b"GET / HTTP/1.1\r")
    check_partial_head(b"GET / HTTP/1.1\r\n", 15)
    with pytest.raises(BadHead):
        check_partial_head(b"GET / HTTP/1.1\rX", 14)


def test_end_of_head_is_found_across_a_split() -> None:
    data = head() + b"body"
    assert find_head_end(data) == len(data) - 4
    assert find_head_end(data, len(data) - 4 - 3) == -1
    assert find_head_end(data, len(data) - 4 - 4) == len(data) - 4
    assert find_head_end(b"") == -1


def test_one_empty_line_before_a_request_may_be_skipped() -> None:
    assert skip_empty_line(b"\r\n" + head()) == 2
    assert skip_empty_line(head()) == 0
    assert skip_empty_line(b"\r") == 0


def test_repr_holds_no_secret() -> None:
    data = head(b"Authorization: Bearer secret", line=b"GET /?key=secret HTTP/1.1")
    assert "secret" not in repr(parse_request_head(data))


def test_many_hosts_do_not_stay_in_memory() -> None:
    for number in range(3000):
        parse_request_head(head(host=b"Host: h%d" % number))
    from pyfrp.wire import http_grammar

    assert len(http_grammar._known_hosts) <= http_grammar._MAX_KNOWN_HOSTS
