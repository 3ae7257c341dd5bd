"""The table of request heads that are refused, and with which status."""

from __future__ import annotations

import pytest

from pyfrp.wire.http1 import (
    MAX_HEAD_BYTES,
    MAX_HEADER_COUNT,
    MAX_TARGET_BYTES,
    BadHead,
    next_request_head,
    parse_request_head,
)

H = b"Host: llm.local\r\n"


def head(
    *fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: llm.local"
) -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def post(*fields: bytes) -> bytes:
    return head(*fields, line=b"POST / HTTP/1.1")


CL = b"Content-Length: 5"
TE = b"Transfer-Encoding: chunked"

# (what it is, the head, the status of the refusal)
BAD: list[tuple[str, bytes, int]] = [
    # Framing
    ("length and coding", post(CL, TE), 400),
    ("coding and length", post(TE, CL), 400),
    ("length 0 and coding", post(b"Content-Length: 0", TE), 400),
    ("two lengths", post(CL, b"Content-Length: 6"), 400),
    ("two equal lengths", post(CL, CL), 400),
    ("two lengths in other cases", post(CL, b"content-LENGTH: 5"), 400),
    ("list of lengths", post(b"Content-Length: 5, 5"), 400),
    ("list of different lengths", post(b"Content-Length: 5, 6"), 400),
    ("length with plus", post(b"Content-Length: +5"), 400),
    ("negative length", post(b"Content-Length: -5"), 400),
    ("hexadecimal length", post(b"Content-Length: 0x5"), 400),
    ("hexadecimal digits in length", post(b"Content-Length: 1f"), 400),
    ("length with underscore", post(b"Content-Length: 1_0"), 400),
    ("length with point", post(b"Content-Length: 5.0"), 400),
    ("length with inner space", post(b"Content-Length: 1 0"), 400),
    ("empty length", post(b"Content-Length:"), 400),
    ("blank length", post(b"Content-Length:  \t "), 400),
    ("length beyond 64 bits", post(b"Content-Length: 18446744073709551621"), 400),
    ("length of 19 digits", post(b"Content-Length: 1000000000000000000"), 400),
    ("length in quotes", post(b'Content-Length: "5"'), 400),
    ("length with a superscript", post(b"Content-Length: \xb25"), 400),
    ("unknown coding", post(b"Transfer-Encoding: gzip"), 501),
    ("coding identity", post(b"Transfer-Encoding: identity"), 501),
    ("gzip under chunked", post(b"Transfer-Encoding: gzip, chunked"), 501),
    ("chunked under gzip", post(b"Transfer-Encoding: chunked, gzip"), 400),
    ("chunked twice", post(b"Transfer-Encoding: chunked, chunked"), 400),
    ("chunked in two lines", post(TE, TE), 400),
    ("codings in two lines", post(b"Transfer-Encoding: gzip", TE), 400),
    ("coding and empty line of it", post(TE, b"Transfer-Encoding:"), 400),
    ("empty coding", post(b"Transfer-Encoding:"), 400),
    ("coding with empty element", post(b"Transfer-Encoding: chunked,"), 400),
    ("coding with leading comma", post(b"Transfer-Encoding: ,chunked"), 400),
    ("chunked with parameter", post(b"Transfer-Encoding: chunked;q=1"), 400),
    ("chunked in quotes", post(b'Transfer-Encoding: "chunked"'), 400),
    ("misspelt chunked", post(b"Transfer-Encoding: xchunked"), 501),
    ("chunked with vertical tab", post(b"Transfer-Encoding: \x0bchunked"), 400),
    ("chunked after no-break space", post(b"Transfer-Encoding: \xa0chunked"), 400),
    ("coding in HTTP/1.0", head(TE, line=b"POST / HTTP/1.0"), 400),
    ("coding with space before colon", post(b"Transfer-Encoding : chunked"), 400),
    ("length with tab before colon", post(b"Content-Length\t: 5"), 400),
    # Bytes
    ("bare LF after the request line", b"GET / HTTP/1.1\n" + H + b"\r\n", 400),
    ("bare LF after a field", b"GET / HTTP/1.1\r\nHost: llm.local\nA: b\r\n\r\n", 400),
    ("LF LF as the end", b"GET / HTTP/1.1\r\nHost: llm.local\n\n", 400),
    ("CR LF LF as the end", b"GET / HTTP/1.1\r\nHost: llm.local\r\n\n", 400),
    ("bare CR in a value", head(b"A: b\rc"), 400),
    ("bare CR before a field", head(b"A: b\rContent-Length: 5"), 400),
    ("bare CR in a name", head(b"A\rb: c"), 400),
    ("bare CR in the target", head(line=b"GET /\rx HTTP/1.1"), 400),
    ("CR CR LF", b"GET / HTTP/1.1\r\r\n" + H + b"\r\n", 400),
    ("NUL in a value", head(b"A: b\0c"), 400),
    ("NUL in a name", head(b"A\0: b"), 400),
    ("NUL in the target", head(line=b"GET /\0 HTTP/1.1"), 400),
    ("NUL in the method", head(line=b"G\0T / HTTP/1.1"), 400),
    ("escape in a value", head(b"A: \x1b[2J"), 400),
    ("backspace in a value", head(b"A: b\x08"), 400),
    ("DEL in a value", head(b"A: b\x7f"), 400),
    ("form feed in a value", head(b"A: b\x0cc"), 400),
    # Field lines
    ("folded line", head(b"A: b", b" c"), 400),
    ("folded line by tab", head(b"A: b", b"\tc: d"), 400),
    ("folded Host", b"GET / HTTP/1.1\r\nHost:\r\n llm.local\r\n\r\n", 400),
    ("first line folded", b"GET / HTTP/1.1\r\n " + H + b"\r\n", 400),
    ("first line of white space", b"GET / HTTP/1.1\r\n \r\n" + H + b"\r\n", 400),
    ("space before colon", head(b"A : b"), 400),
    ("space before Host's colon", head(host=b"Host : llm.local"), 400),
    ("empty name", head(b": b"), 400),
    ("no colon", head(b"abc"), 400),
    ("no colon, known name", head(b"Content-Length 5"), 400),
    ("space in a name", head(b"A b: c"), 400),
    ("parentheses in a name", head(b"A(b): c"), 400),
    ("slash in a name", head(b"A/b: c"), 400),
    ("quotes in a name", head(b'"A": c'), 400),
    ("non-ASCII name", head("É: c".encode()), 400),
    ("at sign in a name", head(b"a@b: c"), 400),
    ("bytes after the end", head() + b"x", 400),
    ("a second head", head() + head(), 400),
    ("no end", head()[:-2], 400),
    ("no fields and no end", b"GET / HTTP/1.1\r\n", 400),
    ("nothing", b"", 400),
    ("only the end", b"\r\n\r\n", 400),
    # Request line
    ("empty line first", b"\r\n" + head(), 400),
    ("HTTP/0.9", head(line=b"GET /"), 400),
    ("method alone", head(line=b"GET"), 400),
    ("no target", head(line=b"GET HTTP/1.1"), 400),
    ("empty target", head(line=b"GET  HTTP/1.1"), 400),
    ("two spaces before target", head(line=b"GET  / HTTP/1.1"), 400),
    ("two spaces before version", head(line=b"GET /  HTTP/1.1"), 400),
    ("space after version", head(line=b"GET / HTTP/1.1 "), 400),
    ("space before method", head(line=b" GET / HTTP/1.1"), 400),
    ("tabs", head(line=b"GET\t/\tHTTP/1.1"), 400),
    ("space in the target", head(line=b"GET /a b HTTP/1.1"), 400),
    ("tab in the target", head(line=b"GET /a\tb HTTP/1.1"), 400),
    ("HTTP/1.10", head(line=b"GET / HTTP/1.10"), 400),
    ("HTTP/1.", head(line=b"GET / HTTP/1."), 400),
    ("HTTP/1", head(line=b"GET / HTTP/1"), 400),
    ("HTTP/01.1", head(line=b"GET / HTTP/01.1"), 400),
    ("HTTP/+1.1", head(line=b"GET / HTTP/+1.1"), 400),
    ("http/1.1", head(line=b"GET / http/1.1"), 400),
    ("HTTPS/1.1", head(line=b"GET / HTTPS/1.1"), 400),
    ("ICY", head(line=b"GET / ICY/1.1"), 400),
    ("HTTP/1.2", head(line=b"GET / HTTP/1.2"), 505),
    ("HTTP/2.0", head(line=b"GET / HTTP/2.0"), 505),
    ("HTTP/3.1", head(line=b"GET / HTTP/3.1"), 505),
    ("HTTP/0.9 in full", head(line=b"GET / HTTP/0.9"), 505),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\n", 505),
    ("method with brackets", head(line=b"G(T / HTTP/1.1"), 400),
    ("method with colon", head(line=b"GET: / HTTP/1.1"), 400),
    ("non-ASCII method", head(line="GÉT / HTTP/1.1".encode()), 400),
    ("empty method", head(line=b" / HTTP/1.1"), 400),
    ("long method", head(line=b"A" * 33 + b" / HTTP/1.1"), 400),
    # Target
    ("fragment", head(line=b"GET /#a HTTP/1.1"), 400),
    ("fragment after query", head(line=b"GET /?a#b HTTP/1.1"), 400),
    ("non-ASCII host in a target", head(line="GET http://llmé.local/ HTTP/1.1".encode()), 400),
    ("non-ASCII relative target", head(line="GET é HTTP/1.1".encode()), 400),
    ("relative target", head(line=b"GET index.html HTTP/1.1"), 400),
    ("query alone", head(line=b"GET ?a HTTP/1.1"), 400),
    ("asterisk for GET", head(line=b"GET * HTTP/1.1"), 400),
    ("asterisk and more", head(line=b"OPTIONS *a HTTP/1.1"), 400),
    ("authority for GET", head(line=b"GET llm.local:80 HTTP/1.1"), 400),
    ("other host in target", head(line=b"GET http://other.local/ HTTP/1.1"), 400),
    ("other port in target", head(line=b"GET http://llm.local:81/ HTTP/1.1"), 400),
    ("path for HTTP/1.0 without Host", head(host=b"", line=b"GET /a HTTP/1.0"), 400),
    ("asterisk without Host", head(host=b"", line=b"OPTIONS * HTTP/1.0"), 400),
    ("no host at all, HTTP/1.0", head(host=b"", line=b"GET http:/// HTTP/1.0"), 400),
    ("user in target, no Host", head(host=b"", line=b"GET http://a@b/ HTTP/1.0"), 400),
    ("CONNECT without Host", head(host=b"", line=b"CONNECT llm.local:80 HTTP/1.1"), 400),
    ("CONNECT to other port", head(host=b"Host: a:80", line=b"CONNECT a:81 HTTP/1.1"), 400),
    ("user in target", head(line=b"GET http://a@llm.local/ HTTP/1.1"), 400),
    ("user and password in target", head(line=b"GET http://a:b@llm.local/ HTTP/1.1"), 400),
    ("no host in target", head(line=b"GET http:/// HTTP/1.1"), 400),
    ("https target", head(line=b"GET https://llm.local/ HTTP/1.1"), 400),
    ("ftp target", head(line=b"GET ftp://llm.local/ HTTP/1.1"), 400),
    ("file target", head(line=b"GET file:///etc/passwd HTTP/1.1"), 400),
    ("scheme without slashes", head(line=b"GET http:llm.local/ HTTP/1.1"), 400),
    ("backslashes in target", head(line=b"GET http:\\\\llm.local/ HTTP/1.1"), 400),
    ("backslash in authority", head(line=b"GET http://llm.local\\@other/ HTTP/1.1"), 400),
    ("cut percent escape", head(line=b"GET /a% HTTP/1.1"), 400),
    ("cut percent escape, one digit", head(line=b"GET /a%4 HTTP/1.1"), 400),
    ("percent escape of other letters", head(line=b"GET /%zz HTTP/1.1"), 400),
    ("percent escape with sign", head(line=b"GET /%+1 HTTP/1.1"), 400),
    ("CONNECT with path", head(line=b"CONNECT / HTTP/1.1"), 400),
    ("CONNECT without port", head(line=b"CONNECT llm.local HTTP/1.1"), 400),
    ("CONNECT with empty port", head(line=b"CONNECT llm.local: HTTP/1.1"), 400),
    ("CONNECT with address", head(line=b"CONNECT http://llm.local:80 HTTP/1.1"), 400),
    ("CONNECT to other host", head(line=b"CONNECT other:80 HTTP/1.1"), 400),
    ("CONNECT with user", head(line=b"CONNECT a@llm.local:80 HTTP/1.1"), 400),
    ("CONNECT with length", head(CL, line=b"CONNECT llm.local:80 HTTP/1.1"), 400),
    ("CONNECT with coding", head(TE, line=b"CONNECT llm.local:80 HTTP/1.1"), 400),
    # Host
    ("no Host", head(host=b""), 400),
    ("no Host but another field", head(b"A: b", host=b""), 400),
    ("no Host, HTTP/1.0", head(host=b"", line=b"GET / HTTP/1.0"), 400),
    ("no Host, absolute target", head(host=b"", line=b"GET http://llm.local/ HTTP/1.1"), 400),
    ("two Hosts", head(b"Host: other"), 400),
    ("two equal Hosts", head(b"Host: llm.local"), 400),
    ("two Hosts in other cases", head(b"hOST: llm.local"), 400),
    ("empty Host", head(host=b"Host:"), 400),
    ("blank Host", head(host=b"Host:  "), 400),
    ("port alone", head(host=b"Host: :80"), 400),
    ("list of hosts", head(host=b"Host: a, b"), 400),
    ("hosts with space", head(host=b"Host: a b"), 400),
    ("user in Host", head(host=b"Host: a@b"), 400),
    ("path in Host", head(host=b"Host: a/b"), 400),
    ("query in Host", head(host=b"Host: a?b"), 400),
    ("address in Host", head(host=b"Host: http://llm.local"), 400),
    ("backslash in Host", head(host=b"Host: a\\b"), 400),
    ("percent in Host", head(host=b"Host: a%2eb"), 400),
    ("non-ASCII Host", head(host="Host: llmé.local".encode()), 400),
    ("port of letters", head(host=b"Host: a:http"), 400),
    ("negative port", head(host=b"Host: a:-80"), 400),
    ("port 65536", head(host=b"Host: a:65536"), 400),
    ("long port", head(host=b"Host: a:000080"), 400),
    ("two ports", head(host=b"Host: a:80:81"), 400),
    ("bare IPv6", head(host=b"Host: ::1"), 400),
    ("open bracket", head(host=b"Host: [::1"), 400),
    ("name in brackets", head(host=b"Host: [llm]"), 400),
    ("IPv4 in brackets", head(host=b"Host: [127.0.0.1]"), 400),
    ("bytes after bracket", head(host=b"Host: [::1]a"), 400),
    ("zone in brackets", head(host=b"Host: [fe80::1%25eth0]"), 400),
    ("leading dot", head(host=b"Host: .local"), 400),
    ("two dots", head(host=b"Host: llm..local"), 400),
    ("two trailing dots", head(host=b"Host: llm.local.."), 400),
    ("dot", head(host=b"Host: ."), 400),
    ("wildcard", head(host=b"Host: *"), 400),
    ("long Host", head(host=b"Host: " + b"a" * 300), 400),
    # Others that decide something
    ("two credentials", head(b"Authorization: Basic YTpi", b"Authorization: Basic YTpj"), 400),
    ("two proxy credentials", head(*[b"Proxy-Authorization: Basic YTpi"] * 2), 400),
    ("Connection names Host", head(b"Connection: host"), 400),
    ("Connection names Content-Length", post(CL, b"Connection: close, Content-Length"), 400),
    ("Connection names Expect", post(CL, b"Connection: expect"), 400),
    ("Connection with space", head(b"Connection: keep alive"), 400),
    ("Connection with semicolon", head(b"Connection: close; x"), 400),
    ("Connection in quotes", head(b'Connection: "close"'), 400),
    ("Connection with many options", head(b"Connection: " + b"a," * 100), 400),
    ("many codings", post(b"Transfer-Encoding: " + b"gzip," * 100 + b"chunked"), 400),
    ("unknown expectation", post(CL, b"Expect: 200-ok"), 417),
    ("expectation with more", post(CL, b"Expect: 100-continue, x"), 417),
    ("two expectations", post(CL, b"Expect: 100-continue", b"Expect: 100-continue"), 400),
    # Limits
    ("many fields", head(*[b"A: b"] * MAX_HEADER_COUNT), 431),
    ("large field", head(b"A: " + b"b" * MAX_HEAD_BYTES), 431),
    ("large target", head(line=b"GET /" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1"), 414),
    ("huge target", head(line=b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1"), 414),
]


@pytest.mark.parametrize(("data", "status"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_malformed_or_ambiguous_head_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(BadHead) as caught:
        parse_request_head(data)
    assert caught.value.status == status
    assert str(caught.value).isascii()


@pytest.mark.parametrize("data", [b[1] for b in BAD], ids=[b[0] for b in BAD])
def test_connection_never_gets_a_bad_head(data: bytes) -> None:
    """Read from a stream, what a bad head leaves behind it may be waited for, but not served."""
    sizes = range(len(data) + 1) if len(data) < 1000 else (len(data),)
    for size in sizes:
        try:
            parsed = next_request_head(data[:size])
        except BadHead:
            return
        assert parsed is None or len(parsed.raw) < len(data)
    # Not refused while it came in: its end is missing, or it has another head behind it.
    assert data.count(b"\r\n\r\n") != 1 or not data.endswith(b"\r\n\r\n")


def test_table_of_bad_heads_names_each_case_once() -> None:
    assert len({name for name, _, _ in BAD}) == len(BAD) >= 80
