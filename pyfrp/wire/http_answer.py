"""The proxy's own answers, complete with head and body."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from datetime import UTC, datetime

from pyfrp.wire.http_grammar import FIELD_LINE

# `http.HTTPStatus` would cost a millisecond at start.
PHRASES = {
    200: "OK",
    206: "Partial Content",
    301: "Moved Permanently",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    412: "Precondition Failed",
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    417: "Expectation Failed",
    421: "Misdirected Request",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>body{{width:36em;margin:3em auto;font-family:sans-serif}}</style>
</head>
<body>
<h1>{title}</h1>
<p>{reason}</p>
<hr>
<p>pyfrp</p>
</body>
</html>
"""


def http_date(now: float) -> bytes:
    """Return seconds since the epoch as the text of a Date field (RFC 9110 5.6.7)."""
    # strftime would use the words of the process's locale.
    t = datetime.fromtimestamp(now, UTC)
    return f"{_DAYS[t.weekday()]}, {t:%d} {_MONTHS[t.month - 1]} {t:%Y %H:%M:%S} GMT".encode()


def error_response(
    status: int,
    reason: str,
    *,
    json: bool,
    keep_alive: bool,
    head_only: bool,
    extra: Sequence[tuple[str, str]] = (),
    date: bytes = b"",
    page: bytes | None = None,
    page_type: str = "text/html; charset=utf-8",
) -> bytes:
    """Return a complete HTTP/1.1 answer for a request that the proxy turns down.

    Args:
        status: 400 to 599.
        reason: A sentence for the caller; it is escaped as the body's type needs.
        json: Answer in the error shape of OpenAI's API, else with a page.
        keep_alive: Whether the caller's connection stays open.
        head_only: For HEAD: the head as it would be, without the body.
        extra: Further fields, e.g. `("Retry-After", "5")`.
        date: The text of Date (`http_date`); b"" leaves it out.
        page: The whole body in place of the built-in page; not used for `json`.
        page_type: The Content-Type of `page`.

    Raises:
        ValueError: for `extra` fields that would break the head.
    """
    phrase = PHRASES.get(status, "Error")
    if json:
        body = _json_error(status, phrase, reason)
        content_type = "application/json"
    elif page is not None:
        body = page
        content_type = page_type
    else:
        title = f"{status} {phrase}"
        body = _PAGE.format(title=title, reason=reason.translate(_ESCAPES)).encode()
        content_type = "text/html; charset=utf-8"
    lines = [f"HTTP/1.1 {status} {phrase}".encode()]
    for name, value in (
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Connection", "keep-alive" if keep_alive else "close"),
        *extra,
    ):
        line = f"{name}: {value}".encode()
        match = FIELD_LINE.fullmatch(line)
        if match is None or len(match[1]) != len(name):
            raise ValueError(f"not a header that can be sent: {name!r}")
        lines.append(line)
    if date:
        lines.append(b"Date: " + date)
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head_only else body)


def _json_error(status: int, phrase: str, reason: str) -> bytes:
    """Return an error body as OpenAI's API has it; its SDKs show `message` and tell by `type`."""
    if status >= 500:
        kind = "server_error"
    elif status in (401, 403, 407):
        kind = "authentication_error"
    elif status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error"
    code = phrase.lower().replace(" ", "_")
    error = {"message": reason, "type": kind, "code": code, "param": None}
    return jsonlib.dumps({"error": error}).encode()
