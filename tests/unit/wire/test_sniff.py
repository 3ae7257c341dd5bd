from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.wire.sniff import WEBSOCKET_START, Kind, classify

HERE = {"http_here": True, "https_here": True}
AWAY = {"http_here": False, "https_here": False}
METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"]


def decide(data: bytes, **where) -> tuple[Kind | None, int]:
    """Feed byte by byte; return the kind and how many bytes it took."""
    for size in range(len(data) + 1):
        kind = classify(data[:size], **where)
        if kind is not None:
            return kind, size
    return None, len(data)


@pytest.mark.parametrize("where", [HERE, AWAY], ids=["shared", "alone"])
def test_websocket_needs_its_ten_bytes_and_wins_over_http(where):
    assert decide(b"GET /~!frp HTTP/1.1\r\n", **where) == (Kind.WEBSOCKET, 10)


@pytest.mark.parametrize("where", [HERE, AWAY], ids=["shared", "alone"])
def test_frp_tls_byte_is_told_by_one_byte(where):
    assert decide(b"\x17\x16\x03\x01", **where) == (Kind.TLS_AFTER_BYTE, 1)


def test_client_hello_is_https_only_where_the_port_is_shared():
    assert decide(b"\x16\x03\x01", http_here=False, https_here=True) == (Kind.HTTPS, 1)
    assert decide(b"\x16\x03\x01", http_here=True, https_here=False) == (Kind.TLS, 1)


@pytest.mark.parametrize("method", METHODS)
def test_request_is_http_only_where_the_port_is_shared(method):
    request = method + b" /v1/models HTTP/1.1\r\n"
    assert decide(request, **HERE)[0] is Kind.HTTP
    assert decide(request, **AWAY)[0] is Kind.PLAIN


def test_request_for_a_path_is_told_as_soon_as_it_is_not_the_websocket():
    assert decide(b"GET /v1/models", **HERE) == (Kind.HTTP, 6)
    assert decide(b"POST /", **HERE) == (Kind.HTTP, 3)


@pytest.mark.parametrize("first", [b"o", b"w", b"v", b"F", b"\x00", b"\xff", b"S"])
def test_other_bytes_are_plain_at_once(first):
    assert decide(first, **HERE) == (Kind.PLAIN, 1)


def test_no_bytes_decide_nothing():
    assert classify(b"", **HERE) is None


@given(st.binary(min_size=10, max_size=40), st.booleans(), st.booleans())
def test_ten_bytes_always_decide(data, http_here, https_here):
    assert classify(data, http_here=http_here, https_here=https_here) is not None


@given(st.binary(max_size=12) | st.integers(0, 10).map(lambda n: WEBSOCKET_START[:n] + b"x"))
def test_an_early_answer_is_the_same_with_more_bytes(data):
    for size in range(len(data)):
        early = classify(data[:size], **HERE)
        assert early in (None, classify(data, **HERE))


@given(st.binary(max_size=9))
def test_waits_only_while_the_answer_is_open(data):
    if classify(data, **HERE) is not None:
        return
    answers = {
        classify(data + more, **HERE) for more in (b"\xff" * 10, WEBSOCKET_START[len(data) :])
    }
    answers |= {classify(method, **HERE) for method in METHODS if method.startswith(data)}
    assert len(answers) > 1
