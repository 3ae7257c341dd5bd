"""HTTP/1 through the vhost as a careful caller and a careful backend see it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.support.backends import Exchange, Gate, sse
from tests.support.http import request
from tests.support.office import DOMAIN, Office
from tests.support.services import pattern, pattern_hash
from tests.support.waiting import within

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _fresh_records(fresh: Office) -> None:
    """Every test counts requests from zero."""


# --- connections that carry many requests -------------------------------------------------


async def test_a_kept_connection_carries_many_requests(scene: Office) -> None:
    async with scene.calling() as caller:
        for number in range(30):
            answer = await caller.get(f"/hello/{number}")
            assert (answer.status, answer.body) == (200, b"hello")
            assert (answer.get("connection") or "keep-alive").lower() == "keep-alive"
    assert [r.target for r in scene.api.requests] == [f"/hello/{n}" for n in range(30)]


async def test_connection_close_is_honoured(scene: Office) -> None:
    async with scene.calling() as caller:
        answer = await caller.get("/hello", headers=[("Connection", "close")])
        assert answer.status == 200
        assert (answer.get("connection") or "").lower() == "close"
        assert await caller.at_end(3)


async def test_a_backend_that_closes_after_each_answer_does_not_close_the_caller(
    scene: Office,
) -> None:
    async def script(x: Exchange) -> None:
        x.keep = False
        await x.reply(b"once")

    scene.api.on("/once", script)
    async with scene.calling() as caller:
        for _ in range(10):
            answer = await caller.get("/once")
            assert (answer.status, answer.body) == (200, b"once")


async def test_pipelined_requests_are_answered_in_order(scene: Office) -> None:
    count = 12

    async def script(x: Exchange) -> None:
        number = int(x.request.query["n"])
        body = await x.body()
        if number % 4 == 0:
            await x.start_chunked("text/plain")
            await x.chunk(b"c%d:" % number + body)
            await x.end_chunks()
        else:
            await x.reply(b"l%d:" % number + body)

    scene.api.on("/p", script)
    data = b""
    expected = []
    for number in range(count):
        body = b"b" * number if number % 2 else None
        data += request(f"/p?n={number}", method="POST" if body is not None else "GET", body=body)
        expected.append(b"%b%d:" % (b"l" if number % 4 else b"c", number) + (body or b""))
    async with scene.calling() as caller:
        await caller.send(data)
        assert [(await caller.answer()).body for _ in range(count)] == expected
    assert [int(r.query["n"]) for r in scene.api.seen("/p")] == list(range(count))


async def test_pipelining_behind_a_chunked_upload_keeps_the_messages_apart(scene: Office) -> None:
    upload = request("/echo/1", method="POST", headers=[("Transfer-Encoding", "chunked")])
    upload += b"3\r\nabc\r\nA;ext=1\r\n0123456789\r\n0\r\nX-Trailer: t\r\n\r\n"
    async with scene.calling() as caller:
        await caller.send(upload + request("/hello/2"))
        assert (await caller.answer()).body == b"abc0123456789"
        assert (await caller.answer()).body == b"hello"
    assert [r.target for r in scene.api.requests] == ["/echo/1", "/hello/2"]


async def test_a_pipelined_request_behind_connection_close_is_not_served(scene: Office) -> None:
    async with scene.calling() as caller:
        closing = request("/hello/1", headers=[("Connection", "close")])
        await caller.send(closing + request("/hello/2"))
        assert (await caller.answer()).status == 200
        assert await caller.at_end(3)
    assert [r.target for r in scene.api.requests] == ["/hello/1"]


async def test_idle_backend_connections_that_closed_are_never_used(scene: Office) -> None:
    """The backend closes its kept connections at will, the next request works regardless."""
    async with scene.calling() as caller:
        for _ in range(15):
            assert (await caller.get()).status == 200
            for pipe in scene.api.live:
                pipe.close()
    # And when the request meets the end of the connection under way:
    closing = Gate()

    async def abrupt(x: Exchange) -> None:
        await x.reply(b"fine")
        x.keep = False
        closing.received(0)

    scene.api.on("/abrupt", abrupt)
    async with scene.calling() as caller:
        for _ in range(30):
            answer = await caller.get("/abrupt")
            assert (answer.status, answer.body) == (200, b"fine")


# --- answers with their own rules ---------------------------------------------------------


async def test_head_gets_the_length_and_no_body(scene: Office) -> None:
    async with scene.calling() as caller:
        for _ in range(3):
            answer = await caller.get("/hello", method="HEAD")
            assert (answer.status, answer.body) == (200, b"")
            assert answer.get("content-length") == "5"
            assert (await caller.get("/hello")).body == b"hello"


async def test_head_of_a_chunked_answer_has_no_body(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        await x.start_chunked("text/plain")
        if x.request.method != "HEAD":
            await x.chunk(b"body")
            await x.end_chunks()

    scene.api.on("/chunked", script)
    async with scene.calling() as caller:
        assert (await caller.get("/chunked", method="HEAD")).body == b""
        assert (await caller.get("/chunked")).body == b"body"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("204 No Content", []),
        ("304 Not Modified", [("ETag", '"x"')]),
        ("304 Not Modified", [("ETag", '"x"'), ("Content-Length", "1234")]),
    ],
    ids=["204", "304", "304-with-length"],
)
async def test_answers_without_a_body_end_at_their_head(
    scene: Office, status: str, headers: Sequence[tuple[str, str]]
) -> None:
    async def script(x: Exchange) -> None:
        await x.start(status, headers)

    scene.api.on("/empty", script)
    async with scene.calling() as caller:
        for _ in range(3):
            answer = await caller.get("/empty")
            assert (answer.status, answer.body) == (int(status[:3]), b"")
            assert (await caller.get()).body == b"hello"


async def test_interim_answers_come_through_before_the_final_one(scene: Office) -> None:
    gate = Gate()

    async def script(x: Exchange) -> None:
        await x.start("103 Early Hints", [("Link", "</style.css>; rel=preload")])
        await gate.passed(0)
        await x.start("102 Processing")
        await gate.passed(1)
        await x.reply(b"final")

    scene.api.on("/hints", script)
    async with scene.calling() as caller:
        for _ in range(2):
            await caller.send(request("/hints"))
            first = await caller.read_head()
            assert (first.status, first.get("link")) == (103, "</style.css>; rel=preload")
            gate.received(0)
            assert (await caller.read_head()).status == 102
            gate.received(1)
            assert (await caller.answer()).body == b"final"
        assert (await caller.get()).body == b"hello"


async def test_expect_100_continue_is_answered_by_the_backend(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        assert (x.request.get("expect") or "").lower() == "100-continue"
        await x.start("100 Continue")
        await x.reply(await x.body())

    scene.api.on("/expect", script)
    async with scene.calling() as caller:
        head = [("Expect", "100-continue"), ("Content-Length", "4")]
        await caller.send(request("/expect", method="POST", headers=head))
        assert (await caller.read_head()).status == 100
        await caller.send(b"body")
        assert (await caller.answer()).body == b"body"
        assert (await caller.get()).body == b"hello"


async def test_a_refusal_comes_instead_of_100_continue(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        x.keep = False
        await x.start("413 Too Large", [("Content-Length", "3"), ("Connection", "close")])
        await x.send(b"big")
        x.pipe.close()

    scene.api.on("/expect", script)
    async with scene.calling() as caller:
        head = [("Expect", "100-continue"), ("Content-Length", "1000000")]
        await caller.send(request("/expect", method="POST", headers=head))
        answer = await caller.answer()
        assert (answer.status, answer.body, answer.interim) == (413, b"big", [])


async def test_trailers_pass_in_both_directions(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        body = await x.body()
        await x.start_chunked("text/plain", [("Trailer", "X-Sum")])
        await x.chunk(body)
        trailers = ",".join(f"{name}={value}" for name, value in x.trailers)
        await x.end_chunks([("X-Sum", trailers)])

    scene.api.on("/trailers", script)
    async with scene.calling() as caller:
        for _ in range(2):
            head = [("Transfer-Encoding", "chunked"), ("Trailer", "X-Check"), ("TE", "trailers")]
            await caller.send(request("/trailers", method="POST", headers=head))
            await caller.send(b"4\r\nbody\r\n0\r\nX-Check: 42\r\n\r\n")
            answer = await caller.answer()
            assert answer.body == b"body"
            assert answer.trailers == [("X-Sum", "X-Check=42")]


# --- HTTP/1.0 and answers that end with the connection ------------------------------------


async def test_http_1_0_gets_its_answer_and_the_end(scene: Office) -> None:
    async with scene.calling() as caller:
        await caller.send(f"GET /hello HTTP/1.0\r\nHost: {DOMAIN}\r\n\r\n".encode())
        answer = await caller.answer()
        assert (answer.status, answer.body) == (200, b"hello")
        assert await caller.at_end(3)


async def test_http_1_0_may_keep_its_connection(scene: Office) -> None:
    async with scene.calling() as caller:
        for _ in range(3):
            answer = await caller.get(version="1.0", headers=[("Connection", "keep-alive")])
            assert answer.body == b"hello"
            assert (answer.get("connection") or "").lower() == "keep-alive"


async def test_http_1_0_is_never_sent_chunks(scene: Office) -> None:
    async with scene.calling() as caller:
        await caller.send(request("/events?n=5", version="1.0"))
        head = await caller.begin()
        assert head.get("transfer-encoding") is None
        assert await caller.rest() == b"".join(sse(number) for number in range(5))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_that_ends_with_its_connection_arrives_whole(
    scene: Office, version: str
) -> None:
    async def script(x: Exchange) -> None:
        x.keep = False
        await x.start("200 OK", [("Content-Type", "text/plain")], version=version)
        for piece in pattern(300_000):
            await x.send(piece)

    scene.api.on("/until-close", script)
    async with scene.calling() as caller:
        await caller.send(request("/until-close"))
        assert (await caller.begin()).status == 200
        assert await caller.rest_hash() == (300_000, pattern_hash(300_000))


# --- upgrades -----------------------------------------------------------------------------

UPGRADE = [
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
]


async def _switch(x: Exchange) -> None:
    pipe = await x.take_over()
    head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    await pipe.send(head + b"welcome;")
    while data := await pipe.read_some():
        await pipe.send(data.upper())


async def test_an_upgrade_becomes_a_pipe_in_both_directions(scene: Office) -> None:
    scene.api.on("/ws", _switch)
    async with scene.calling() as caller:
        await caller.send(request("/ws", headers=UPGRADE))
        head = await caller.begin()
        assert head.status == 101
        assert (head.get("upgrade") or "").lower() == "websocket"
        assert "upgrade" in (head.get("connection") or "").lower()
        assert await caller.exactly(8) == b"welcome;"
        for number in range(10):
            text = f"message {number}\r\n\r\nGET / HTTP/1.1\r\n\r\n".encode()
            await caller.send(text)
            assert await caller.exactly(len(text)) == text.upper()
    seen = scene.api.seen("/ws")[0]
    assert (seen.get("upgrade") or "").lower() == "websocket"
    assert "upgrade" in (seen.get("connection") or "").lower()
    assert seen.get("sec-websocket-key") == UPGRADE[2][1]


async def test_bytes_sent_along_with_an_upgrade_are_not_lost(scene: Office) -> None:
    scene.api.on("/ws", _switch)
    async with scene.calling() as caller:
        await caller.send(request("/ws", headers=UPGRADE) + b"early")
        assert (await caller.begin()).status == 101
        assert await caller.exactly(13) == b"welcome;EARLY"


async def test_a_refused_upgrade_leaves_the_connection_usable(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        await x.reply(b"no", "426 Upgrade Required", [("Upgrade", "other")])

    scene.api.on("/ws", script)
    async with scene.calling() as caller:
        answer = await caller.get("/ws", headers=UPGRADE)
        assert (answer.status, answer.body) == (426, b"no")
        assert (await caller.get()).body == b"hello"


@pytest.mark.parametrize("who", ["caller", "backend"])
async def test_either_end_of_an_upgraded_connection_may_end_it(scene: Office, who: str) -> None:
    pipes = asyncio.Queue[Exchange]()

    async def script(x: Exchange) -> None:
        await x.start("101 Switching Protocols", UPGRADE[:2])
        pipe = await x.take_over()
        pipes.put_nowait(x)
        if who == "caller":
            await pipe.gone.wait()

    scene.api.on("/ws", script)
    async with scene.calling() as caller:
        await caller.send(request("/ws", headers=UPGRADE))
        assert (await caller.begin()).status == 101
        x = await within(pipes.get(), 5, "the upgrade")
        if who == "backend":
            assert await caller.at_end(2)
    await within(x.gone.wait(), 2, "the backend to see the end")


async def test_h2c_upgrades_are_not_honoured(scene: Office) -> None:
    headers = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
    ]
    async with scene.calling() as caller:
        answer = await caller.get("/hello", headers=headers)
        assert (answer.status, answer.body) == (200, b"hello")
    assert scene.api.requests[0].get("upgrade") is None
