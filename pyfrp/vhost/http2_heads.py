"""Fields of HTTP/2 to heads of HTTP/1.1 and back.

A request becomes text, so nothing of it may read as more than what it was: whatever could end a
line, a name or the request line is refused here (RFC 9113, 8.2.1 and 8.3.1). What a well-formed
head means, and whether it is allowed, is for the readers of `pyfrp.wire.http1`, as for all others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyfrp.errors import BadHead
from pyfrp.wire.http1 import CHUNKED, ResponseHead

Fields = Iterable[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_WORD = re.compile(rb"[!-~]+")
_PATH = re.compile(rb"[!-~\x80-\xff]+")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
# What belongs to one connection of HTTP/1.1 (RFC 9113, 8.2.2).
_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
# Methods whose missing body is said aloud (RFC 9110, 8.6).
_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
_LENGTH = re.compile(rb"[0-9]{1,18}")


@dataclass(slots=True)
class RequestText:
    """A request as HTTP/1.1 sends it.

    Attributes:
        head: With its blank line.
        method: As sent.
        length: Bytes of the body that follows, or `CHUNKED`.
    """

    head: bytes
    method: bytes
    length: int


def request_text(fields: Fields, *, ended: bool) -> RequestText:
    """Write the head of a request.

    Args:
        fields: As they were decoded, pseudo fields and all.
        ended: Whether the stream ended with them: there is no body.

    Raises:
        BadHead: 400 for a malformed request; 501 for CONNECT, which is a tunnel.
    """
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    cookies: list[bytes] = []
    host = length = None
    for name, value in fields:
        if name[:1] == b":":
            if name not in _PSEUDO:
                raise BadHead("a pseudo field that requests do not have")
            if name in pseudo:
                raise BadHead(f"{name.decode()} is given twice")
            if lines or cookies or host is not None or length is not None:
                raise BadHead("a pseudo field after other fields")
            if (_PATH if name == b":path" else _WORD).fullmatch(value) is None:
                raise BadHead(f"{name.decode()} is empty, or has a byte that it may not have")
            pseudo[name] = value
            continue
        _check(name, value)
        if name in _CONNECTION:
            raise BadHead(f"the field {name.decode()} belongs to HTTP/1.1")
        if name == b"te" and value.lower() != b"trailers":
            raise BadHead("the field te has a value other than trailers")
        if name == b"cookie":
            cookies.append(value)
        elif name == b"host":
            if host is not None:
                raise BadHead("host is given twice")
            host = value
        elif name == b"content-length":
            if length is not None:
                raise BadHead("content-length is given twice")
            if _LENGTH.fullmatch(value) is None:
                raise BadHead("content-length is not a plain number")
            length = int(value)
        else:
            lines.append(b"%b: %b\r\n" % (name, value))
    method, target, authority = _read_pseudo(pseudo, host)
    if ended:
        if length:
            raise BadHead("a content-length without a body")
        body = b"content-length: 0\r\n" if length == 0 or method in _WITH_BODY else b""
        length = 0
    elif length is None:
        body = b"transfer-encoding: chunked\r\n"
        length = CHUNKED
    else:
        body = b"content-length: %d\r\n" % length
    if cookies:
        # Callers split them to compress them better (RFC 9113, 8.2.3).
        lines.append(b"cookie: %b\r\n" % b"; ".join(cookies))
    start = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, target, authority)
    return RequestText(b"".join((start, *lines, body, b"\r\n")), method, length)


def _read_pseudo(pseudo: dict[bytes, bytes], host: bytes | None) -> tuple[bytes, bytes, bytes]:
    """Return method, target and authority."""
    method = pseudo.get(b":method")
    if method is None:
        raise BadHead(":method is missing")
    if method == b"CONNECT":
        raise BadHead("CONNECT is not served over HTTP/2; use HTTP/1.1", 501)
    if b":protocol" in pseudo:
        raise BadHead(":protocol without CONNECT")
    if pseudo.get(b":scheme") not in (b"http", b"https"):
        raise BadHead(":scheme is neither http nor https")
    target = pseudo.get(b":path", b"")
    if target[:1] != b"/" and not (target == b"*" and method == b"OPTIONS"):
        raise BadHead(":path is missing, or is not a path")
    authority = pseudo.get(b":authority", host)
    if authority is None:
        raise BadHead(":authority is missing")
    if host is not None and host != authority:
        raise BadHead(":authority and host name different hosts")
    return method, target, authority


def trailer_text(fields: Fields) -> bytes:
    """Write the end of a chunked body with its trailers.

    Raises:
        BadHead: for malformed fields; which ones are allowed is for the reader of the body.
    """
    lines = [b"0\r\n"]
    for name, value in fields:
        _check(name, value)
        lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(b"\r\n")
    return b"".join(lines)


def _check(name: bytes, value: bytes) -> None:
    if _NAME.fullmatch(name) is None:
        raise BadHead("a field name that is no name in lower case")
    if _VALUE.fullmatch(value) is None:
        raise BadHead(f"the field {name[:64].decode()} has a value that fields may not have")


def accepts_json(fields: Fields) -> bool:
    """Whether an error body should be JSON, as `RequestHead.accepts_json`."""
    return any(
        name in (b"accept", b"content-type") and b"application/json" in value.lower()
        for name, value in fields
    )


def answer_fields(head: ResponseHead) -> list[tuple[bytes, bytes]]:
    """The fields of an answer, without what belongs to one connection of HTTP/1.1."""
    fields = [(b":status", b"%d" % head.status)]
    for line in head.raw[:-4].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name not in _CONNECTION:
            fields.append((name, value.strip(b" \t")))
    return fields


def trailer_fields(trailers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The trailers of a chunked answer."""
    return [(name, value) for name, value in trailers if name not in _CONNECTION]
