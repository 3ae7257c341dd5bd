"""Heads and bodies of HTTP/1, held against llhttp where both accept."""

from __future__ import annotations

import random
from typing import Any

import httptools

from pyfrp.errors import BadHead
from pyfrp.wire import http1, http_request, http_response
from tests.fuzz.engine import Behaviour, Target, cut

HOST = b"llm.test"


def _outcome(exc: BadHead) -> tuple[int, str]:
    return exc.status, "".join(c for c in str(exc) if not c.isdigit())[:50]


# -- request heads ------------------------------------------------------------------------------


class _Listener:
    """What llhttp makes of a request."""

    def __init__(self) -> None:
        self.url = b""
        self.complete = 0
        self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete += 1


def _head(data: bytes, pieces: list[bytes], read: Any) -> tuple[Any, Any]:
    """Read a head from pieces, as a connection does; the head or the complaint."""
    buffer = b""
    for piece in pieces:
        seen = len(buffer)
        buffer += piece
        try:
            head = read(buffer, seen)
        except BadHead as exc:
            return None, _outcome(exc)
        if head is not None:
            return head, None
    return None, None


def _request(data: bytes, rng: random.Random) -> Behaviour:
    def read(buffer: bytes, seen: int) -> Any:
        return http1.next_request_head(buffer, None, seen)

    head, fault = _head(data, [data], read)
    again, other_fault = _head(data, cut(data, rng), read)
    assert (head is None) == (again is None), "the result depends on how the bytes were cut"
    if head is None:
        # Parts of a head may be refused for another reason, or only once all of it is there.
        assert fault is not None or other_fault is None
        return fault
    assert again.raw == head.raw
    # The fast reader and the general one agree.
    general = http_request._parse_general(head.raw)
    for name in ("method", "target", "minor", "host", "path", "user", "password", "length"):
        assert getattr(general, name) == getattr(head, name), name
    assert general.keep_alive == head.keep_alive
    assert general.upgrade == head.upgrade
    out = http1.rewrite_request_head(head, None, b"203.0.113.9")
    assert out == http1.rewrite_request_head(general, None, b"203.0.113.9")
    # What goes on is one head, for us and for the next hop.
    assert out.count(b"\r\n\r\n") == 1
    assert b"\n" not in out.replace(b"\r\n", b"")
    twice = http1.parse_request_head(out)
    assert (twice.method, twice.target, twice.length) == (head.method, head.target, head.length)
    assert twice.host == head.host
    _llhttp_agrees(out, head)
    return head.method[:8], head.minor, min(head.length, 2), bool(head.upgrade), head.keep_alive


def _llhttp_agrees(out: bytes, head: http1.RequestHead) -> None:
    """llhttp finds the same end of the message, when it knows the method at all."""
    listener = _Listener()
    parser = httptools.HttpRequestParser(listener)
    body = b"" if not head.length else b"0\r\n\r\n" if head.length == http1.CHUNKED else b"x"
    try:
        parser.feed_data(out + body)
    except httptools.HttpParserUpgrade:
        return
    except httptools.HttpParserError:
        return  # Stricter than we, about methods and targets; it refuses and does not misread.
    assert listener.url == head.target
    if head.length <= 0:
        assert listener.complete == 1
    else:
        assert listener.complete == (head.length == 1)


# -- response heads -----------------------------------------------------------------------------


def _response(data: bytes, rng: random.Random) -> Behaviour:
    method = rng.choice((b"GET", b"HEAD", b"CONNECT", b"POST"))

    def read(buffer: bytes, seen: int) -> Any:
        return http1.next_response_head(buffer, method, None, seen)

    head, fault = _head(data, [data], read)
    again, other_fault = _head(data, cut(data, rng), read)
    assert (head is None) == (again is None), "the result depends on how the bytes were cut"
    if head is None:
        assert fault is not None or other_fault is None
        if fault is not None:
            assert fault[0] == 502
        return fault
    general = http_response._parse_general(head.raw, method)
    for name in ("status", "minor", "length", "keep_alive", "upgrade"):
        assert getattr(general, name) == getattr(head, name), name
    for minor in (0, 1):
        out = http1.rewrite_response_head(
            head,
            None,
            keep_alive=bool(minor),
            caller_minor=minor,
            dechunk=head.length == http1.CHUNKED and not minor,
            date=b"Thu, 01 Jan 1970 00:00:00 GMT",
        )
        assert out.count(b"\r\n\r\n") == 1
        twice = http1.parse_response_head(out, method)
        assert twice.status == head.status
        if minor:
            assert twice.length == head.length
    return head.status // 100, min(head.length, 1), head.minor, head.keep_alive, method


# -- chunks -------------------------------------------------------------------------------------


def _walk(pieces: list[bytes]) -> tuple[bytes, bool, int, Any]:
    """Payload, whether it ended, bytes used, and the complaint."""
    decoder = http1.ChunkedDecoder()
    payload, used = b"", 0
    for piece in pieces:
        try:
            more, took = decoder.feed(piece)
        except BadHead as exc:
            return payload, False, used, _outcome(exc)
        payload += more
        used += took
        if decoder.done:
            break
    return payload, decoder.done, used, None


def _chunks(data: bytes, rng: random.Random) -> Behaviour:
    whole = _walk([data])
    pieces = cut(data, rng)
    parts = _walk(pieces)
    assert whole[1] == parts[1], "the result depends on how the bytes were cut"
    assert (whole[3] is None) == (parts[3] is None)
    # The walker that changes nothing finds the same end.
    walker = http1.ChunkedBody()
    used = 0
    fault = None
    for piece in pieces:
        try:
            used += walker.feed(piece)
        except BadHead as exc:
            fault = _outcome(exc)
            break
        if walker.done:
            break
    assert walker.done == parts[1]
    assert (fault is None) == (parts[3] is None)
    if walker.done:
        assert used == parts[2] == whole[2]
        assert parts[0] == whole[0]
        listener = _Listener()
        parser = httptools.HttpRequestParser(listener)
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        try:
            parser.feed_data(head + data[:used])
        except httptools.HttpParserError:
            return "llhttp refuses"  # Extensions that it does not like; nothing is misread.
        assert listener.complete == 1
        assert listener.body == whole[0]
    return walker.done, fault, min(len(whole[0]), 3), min(len(walker.trailers), 2)


TOKENS = [
    b"\r\n",
    b"\n",
    b"\r",
    b": ",
    b" ",
    b"\t",
    b"\x00",
    b"Host: llm.test\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: keep-alive, Host\r\n",
    b"Expect: 100-continue\r\n",
    b"Authorization: Basic YTpi\r\n",
    b"X-Forwarded-For: 1.2.3.4\r\n",
    b"Trailer: X\r\nTE: trailers\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"http://llm.test/",
    b"%2e%2e",
    b"#",
]
REQUESTS = [
    b"GET /v1/models?x=1 HTTP/1.1\r\nHost: llm.test\r\nAccept: */*\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: llm.test:80\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
    b"POST / HTTP/1.1\r\nhost: [::1]:80\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"CONNECT llm.test:443 HTTP/1.1\r\nHost: llm.test:443\r\n\r\n",
    b"GET http://llm.test/a HTTP/1.0\r\nHost: llm.test\r\nConnection: keep-alive\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YTpi\r\nX-Forwarded-For: 1\r\n\r\n",
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 404\r\nServer: x\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nKeep-Alive: timeout=5\r\nTrailer: X\r\n\r\n",
]
CHUNKS = [
    b"5\r\nhello\r\n0\r\n\r\n",
    b"a;ext=1\r\n0123456789\r\n3\r\nabc\r\n0\r\nX-Trailer: 1\r\nY: 2\r\n\r\nnext",
    b"0000\r\n\r\n",
    b"1f4\r\n" + b"x" * 500 + b"\r\n0\r\n\r\n",
]

TARGETS = [
    Target("request-heads", _request, REQUESTS, TOKENS),
    Target("response-heads", _response, RESPONSES, TOKENS),
    Target(
        "chunks",
        _chunks,
        CHUNKS,
        [b"\r\n", b"0\r\n", b"\n", b";", b"f" * 15, b"f" * 16, b"-1", b" ", b"Host: x\r\n"],
    ),
]
