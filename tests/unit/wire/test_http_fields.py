"""Requests of a forward proxy: where they go, and what of their head goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadHead
from pyfrp.wire.http1 import next_request_head, parse_request_head
from pyfrp.wire.http_fields import fields_of, forward_head, place_of


def head(target: bytes, *lines: bytes, method: bytes = b"GET", version: bytes = b"1.1"):
    first = b"%b %b HTTP/%b" % (method, target, version)
    return parse_request_head(b"\r\n".join([first, *lines, b"", b""]))


@pytest.mark.parametrize(
    ("target", "place", "line"),
    [
        (b"http://a.test/x?y", ("a.test", 80), b"GET /x?y HTTP/1.1\r\nHost: a.test\r\n"),
        (b"HTTP://a.test", ("a.test", 80), b"GET / HTTP/1.1\r\nHost: a.test\r\n"),
        (b"http://a.test?q", ("a.test", 80), b"GET /?q HTTP/1.1\r\nHost: a.test\r\n"),
        (b"http://A.test:81/", ("a.test", 81), b"GET / HTTP/1.1\r\nHost: A.test:81\r\n"),
        (b"http://a.test/\xe9", ("a.test", 80), b"GET /%E9 HTTP/1.1\r\nHost: a.test\r\n"),
        (b"http://[::1]/", ("::1", 80), b"GET / HTTP/1.1\r\nHost: [::1]\r\n"),
        (b"http://[::1]:8/http://x/", ("::1", 8), b"GET /http://x/ HTTP/1.1\r\nHost: [::1]:8\r\n"),
    ],
)
def test_a_target_becomes_a_place_and_a_path(target, place, line):
    authority = target.split(b"/")[2].partition(b"?")[0]
    found, out = forward_head(head(target, b"Host: " + authority))
    assert found == place
    assert out == line + b"Connection: close\r\n\r\n"


def test_what_concerns_only_one_hop_stays_here():
    made = head(
        b"http://a.test/",
        b"Host: a.test",
        b"Proxy-Authorization: Basic eDp5",
        b"Proxy-Connection: keep-alive",
        b"Connection: keep-alive, x-hop, upgrade",
        b"X-Hop: 1",
        b"Keep-Alive: 5",
        b"TE: trailers",
        b"Trailer: x",
        b"Upgrade: h2c",
        b"X-Forwarded-For: 1.2.3.4",
        b"Authorization: Basic b3JpZ2lu",
        b"Accept:  */*",
    )
    assert forward_head(made)[1] == (
        b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 1.2.3.4\r\n"
        b"Authorization: Basic b3JpZ2lu\r\nAccept:  */*\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("lines", "framing"),
    [
        ([b"Content-Length:   5 "], b"Content-Length: 5\r\n"),
        ([b"Content-Length: 0"], b"Content-Length: 0\r\n"),
        ([b"Transfer-Encoding:  Chunked"], b"Transfer-Encoding: chunked\r\n"),
        (
            [b"Trailer: x", b"Transfer-Encoding: chunked"],
            b"Trailer: x\r\nTransfer-Encoding: chunked\r\n",
        ),
    ],
)
def test_a_body_is_framed_once_and_plainly(lines, framing):
    made = head(b"http://a.test/", b"Host: a.test", *lines, method=b"POST")
    _, out = forward_head(made)
    assert out == b"POST / HTTP/1.1\r\nHost: a.test\r\n" + framing + b"Connection: close\r\n\r\n"


def test_old_clients_send_no_host():
    _, out = forward_head(head(b"http://a.test/", version=b"1.0"))
    assert out == b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("target", [b"/", b"http://a.test:0/"])
def test_what_has_no_place_is_refused(target):
    with pytest.raises(BadHead):
        forward_head(head(target, b"Host: a.test:0" if b":0" in target else b"Host: a.test"))


def test_a_tunnel_needs_a_port():
    assert place_of(b"[::1]:443") == ("::1", 443)
    for target in (b"a.test", b"[::1]", b"a.test:0", b"a.test:99999", b"a b:1"):
        with pytest.raises(BadHead):
            place_of(target)


def test_fields_are_found_by_their_names_in_any_case():
    made = head(b"/", b"Host: a", b"RANGE: x ", b"range:y", b"A: Range: z")
    assert fields_of(made)[b"range"] == [b"x", b"y"]


NAMES = st.sampled_from(
    [b"X-A", b"Connection", b"Proxy-Authorization", b"TE", b"Content-Length", b"Accept"]
)
VALUES = st.sampled_from([b"1", b"", b"close", b"x-a, te", b"a\tb", b"\xff", b"Host", b" 7 "])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.sampled_from([b"", b"/p?q", b"?"]))
def test_what_goes_on_is_a_good_head_with_the_same_framing(pairs, rest):
    lines = [b"%b:%b" % pair for pair in pairs]
    try:
        made = head(b"http://a.test" + rest, b"Host: a.test", *lines)
    except BadHead:
        return
    _, out = forward_head(made)
    again = next_request_head(out)
    assert again is not None
    assert (again.raw, again.length, again.host) == (out, made.length, "a.test")
    assert not again.keep_alive
    assert b"proxy-authorization" not in fields_of(again)
