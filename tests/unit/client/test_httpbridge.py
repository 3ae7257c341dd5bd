"""When a bridge of an http proxy is between two requests, told from what it kept of them."""

from __future__ import annotations

import pytest

from pyfrp.client.proxies.httpbridge import KEPT_BYTES, HttpBridge
from pyfrp.net.bridge import Bridge
from tests.unit.net.ends import memory_pair, turns

GET = b"GET /v1/models HTTP/1.1\r\nHost: llm.test\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: llm.test\r\nContent-Length: 4\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: 1\n\n\r\n"
LAST = b"0\r\n\r\n"
LONG = b"1388\r\n" + bytes(5000) + b"\r\n"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
FRAME = b"\x81\x02hi"

Lines = list[tuple[str, bytes]]


def asked(*chunks: bytes) -> Lines:
    return [("server", chunk) for chunk in chunks]


def answered(*chunks: bytes) -> Lines:
    return [("service", chunk) for chunk in chunks]


class Scene:
    """A bridge in memory; `server` and `service` are the ends outside of it."""

    def __init__(self, bridge_type: type[Bridge] = HttpBridge) -> None:
        self.server, near = memory_pair()
        far, self.service = memory_pair()
        self.bridge = bridge_type(near, far)

    async def play(self, lines: Lines) -> None:
        for who, chunk in lines:
            getattr(self, who).write(chunk)
            await turns(4)


RESTING = {
    "nothing yet": [],
    "body with its head": asked(GET) + answered(SIZED + b"hello"),
    "body in pieces": asked(GET) + answered(SIZED, b"he", b"llo"),
    "empty body": asked(GET) + answered(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "no body after HEAD": asked(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n") + answered(SIZED),
    "no body in a 204": asked(GET) + answered(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "no body in a 304": asked(GET) + answered(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "chunks with their head": asked(GET) + answered(CHUNKED + EVENT + LAST),
    "no chunks": asked(GET) + answered(CHUNKED + LAST),
    "events, the end by itself": asked(GET) + answered(CHUNKED, EVENT, EVENT, LAST),
    "events, the end with the last": asked(GET) + answered(CHUNKED, EVENT, EVENT + LAST),
    "long chunks": asked(GET) + answered(CHUNKED, LONG + LAST),
    "a body after the go-ahead": asked(POST)
    + answered(b"HTTP/1.1 100 Continue\r\n\r\n")
    + asked(b"{\r\n}")
    + answered(SIZED + b"hello"),
    "second answer": asked(GET)
    + answered(SIZED + b"hello")
    + asked(POST, b"{\r\n}")
    + answered(CHUNKED, EVENT, LAST),
}

BUSY = {
    "request": asked(GET),
    "request in pieces": asked(POST, b"{\r\n"),
    "second request": asked(GET) + answered(SIZED + b"hello") + asked(GET),
    "head, and no token yet": asked(POST) + answered(CHUNKED),
    "first event": asked(POST) + answered(CHUNKED + EVENT),
    "some events": asked(POST) + answered(CHUNKED, EVENT, EVENT),
    "second answer begun": asked(GET)
    + answered(SIZED + b"hello")
    + asked(GET)
    + answered(CHUNKED, EVENT),
    "part of a body": asked(GET) + answered(SIZED, b"hell"),
    "more than a body": asked(GET) + answered(SIZED, b"hello!"),
    "until the connection ends": asked(GET) + answered(b"HTTP/1.1 200 OK\r\n\r\n", b"hello"),
    "data that ends almost like a body": asked(GET) + answered(CHUNKED, b"a\r\nvalue: 0\r\n\r\n"),
    "go-ahead": asked(POST) + answered(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "upgrade": asked(GET) + answered(UPGRADED),
    "upgraded, the service spoke": asked(GET) + answered(UPGRADED, FRAME),
    "upgraded, both spoke": asked(GET) + answered(UPGRADED) + asked(FRAME) + answered(FRAME),
    "head in pieces": asked(GET) + answered(SIZED[:20], SIZED[20:] + b"hello"),
    "head that is too long to keep": asked(GET)
    + answered(SIZED[:-2] + b"A: %b\r\n\r\n" % (b"a" * KEPT_BYTES) + b"hello"),
    "no HTTP": answered(b"220 hello\r\n"),
}


@pytest.mark.parametrize("lines", RESTING.values(), ids=RESTING.keys())
async def test_a_complete_answer_leaves_the_bridge_at_rest(lines):
    scene = Scene()
    await scene.play(lines)
    assert scene.bridge.at_rest()
    scene.bridge.abort()


@pytest.mark.parametrize("lines", BUSY.values(), ids=BUSY.keys())
async def test_a_bridge_whose_answer_may_be_unfinished_is_not_at_rest(lines):
    scene = Scene()
    await scene.play(lines)
    assert not scene.bridge.at_rest()
    scene.bridge.abort()


async def test_a_bridge_whose_answer_was_not_taken_yet_is_not_at_rest():
    scene = Scene()
    await scene.play(asked(GET))
    scene.server.pause_reading()
    await scene.play(answered(SIZED + b"hello"))
    assert not scene.bridge.at_rest()
    scene.server.resume_reading()
    await turns()
    assert scene.bridge.at_rest()
    scene.bridge.abort()


async def test_bytes_pass_and_are_counted_as_on_any_bridge():
    scene = Scene()
    await scene.play(RESTING["second answer"])
    question, answer = GET + POST + b"{\r\n}", SIZED + b"hello" + CHUNKED + EVENT + LAST
    assert scene.service.get_protocol().data == question
    assert scene.server.get_protocol().data == answer
    assert scene.bridge.near.received == len(question)
    assert scene.bridge.far.received == len(answer)
    scene.bridge.abort()


async def test_other_bridges_are_never_at_rest():
    """What silence means is known of HTTP only."""
    scene = Scene(Bridge)
    await scene.play(RESTING["body with its head"])
    assert not scene.bridge.at_rest()
    scene.bridge.abort()


async def test_closing_ends_both_sides_in_order():
    scene = Scene()
    await scene.play(RESTING["body with its head"])
    scene.bridge.close()
    await turns()
    for end in (scene.server, scene.service):
        assert end.get_protocol().events == ["data", "eof"]
