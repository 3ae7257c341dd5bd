"""The proxy's own answers: complete, escaped, and in the shape that the caller reads."""

from __future__ import annotations

import json

import pytest

from pyfrp.wire.http1 import error_response, http_date, parse_response_head


def split(answer: bytes) -> tuple[list[bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


def test_page_is_complete_and_escaped() -> None:
    answer = error_response(
        404,
        "no <script>'\"&</script> here",
        json=False,
        keep_alive=True,
        head_only=False,
        date=http_date(0),
    )
    lines, body = split(answer)
    assert lines == [
        b"HTTP/1.1 404 Not Found",
        b"Content-Type: text/html; charset=utf-8",
        b"Content-Length: %d" % len(body),
        b"Connection: keep-alive",
        b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
    ]
    assert b"no &lt;script&gt;&#39;&quot;&amp;&lt;/script&gt; here" in body
    assert b"<script>" not in body


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", "bad_request"),
        (401, "authentication_error", "unauthorized"),
        (404, "invalid_request_error", "not_found"),
        (429, "rate_limit_error", "too_many_requests"),
        (502, "server_error", "bad_gateway"),
        (503, "server_error", "service_unavailable"),
        (599, "server_error", "error"),
    ],
)
def test_json_has_the_shape_of_openai_errors(status: int, kind: str, code: str) -> None:
    reason = 'a "quoted"\n<reason> 한'
    answer = error_response(status, reason, json=True, keep_alive=False, head_only=False)
    lines, body = split(answer)
    assert b"Content-Type: application/json" in lines
    assert b"Connection: close" in lines
    assert json.loads(body) == {
        "error": {"message": reason, "type": kind, "code": code, "param": None}
    }


def test_answer_to_head_has_the_head_only() -> None:
    full = error_response(502, "x", json=True, keep_alive=True, head_only=False)
    head = error_response(502, "x", json=True, keep_alive=True, head_only=True)
    assert full.startswith(head)
    assert head.endswith(b"\r\n\r\n")
    assert len(full) - len(head) == parse_response_head(head, b"GET").length


def test_extra_fields_are_sent() -> None:
    answer = error_response(
        503, "x", json=False, keep_alive=True, head_only=False, extra=[("Retry-After", "5")]
    )
    assert b"Retry-After: 5" in split(answer)[0]


@pytest.mark.parametrize("extra", [("A", "b\r\nC: d"), ("A:B", "c"), ("", "b"), ("A", "\0")])
def test_extra_fields_cannot_break_the_head(extra: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="not a header"):
        error_response(503, "x", json=False, keep_alive=True, head_only=False, extra=[extra])


def test_own_page_replaces_the_built_in_one_but_not_json() -> None:
    answer = error_response(
        404, "x", json=False, keep_alive=True, head_only=False, page=b"own", page_type="text/plain"
    )
    lines, body = split(answer)
    assert body == b"own"
    assert b"Content-Type: text/plain" in lines
    answer = error_response(404, "x", json=True, keep_alive=True, head_only=False, page=b"own")
    assert json.loads(split(answer)[1])["error"]["message"] == "x"


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (0, b"Thu, 01 Jan 1970 00:00:00 GMT"),
        (784111777.9, b"Sun, 06 Nov 1994 08:49:37 GMT"),
        (1709210096, b"Thu, 29 Feb 2024 12:34:56 GMT"),
    ],
)
def test_date_is_in_the_one_form_that_may_be_sent(now: float, text: bytes) -> None:
    assert http_date(now) == text
