"""HTTP/1 through the vhost as a careful caller and a careful backend see it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from tests.support.backends import (
    Exchange,
    Gate,
    Pipe,
    ScriptBackend,
    pattern,
    pattern_hash,
    running,
    sse,
)
from tests.support.http import BadAnswer, Caller, Cut, request
from tests.support.office import DOMAIN, Office
from tests.support.waiting import all_of, until, within

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


# --- callers that stop sending ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["short", "streamed", "large"])
async def test_a_caller_that_half_closes_after_its_request_gets_its_answer(
    scene: Office, kind: str
) -> None:
    async def streamed(x: Exchange) -> None:
        await x.start_chunked()
        for number in range(10):
            await x.chunk(sse(number))
            await asyncio.sleep(0.01)
        await x.end_chunks()

    scene.api.on("/streamed", streamed)
    path, expected = {
        "short": ("/hello", b"hello"),
        "streamed": ("/streamed", b"".join(sse(number) for number in range(10))),
        "large": (f"/bytes?n={3 * MIB}", b"".join(pattern(3 * MIB))),
    }[kind]
    async with scene.calling() as caller:
        await caller.send(request(path))
        caller.half_close()
        answer = await caller.answer()
        assert (answer.status, answer.body == expected) == (200, True)
        assert await caller.at_end(3)


async def test_a_caller_that_half_closes_inside_its_body_gets_no_good_answer(
    scene: Office,
) -> None:
    async with scene.calling() as caller:
        head = request("/hash", method="POST", headers=[("Content-Length", "100")])
        await caller.send(head + b"only this")
        caller.half_close()
        raw = await caller.everything()
        assert not raw.startswith(b"HTTP/1.1 2")


async def test_half_close_is_carried_through_a_tcp_proxy(scene: Office) -> None:
    """Also when the end of input comes before the local connection stands."""

    async def one(index: int) -> None:
        text = b"all I have to say: %d" % index
        caller = await Caller.open(scene.echo_port)
        try:
            await caller.send(text)
            await asyncio.sleep(index % 4 * 0.003)
            caller.half_close()
            assert await caller.everything() == text
        finally:
            await caller.close()

    await all_of(one(index) for index in range(60))


async def test_a_service_that_half_closes_first_still_hears_the_rest(scene: Office) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def script(pipe: Pipe) -> None:
        await pipe.send(b"that is all from me")
        pipe.write_eof()
        data = b""
        while piece := await pipe.read_some():
            data += piece
        heard.set_result(data)

    backend = ScriptBackend(script, scene.echo.port)
    await scene.echo.refuse()
    try:
        async with running(backend):
            caller = await Caller.open(scene.echo_port)
            try:
                assert await caller.everything() == b"that is all from me"
                await caller.send(b"and this from me")
                caller.half_close()
                assert await within(heard, 3, "the rest") == b"and this from me"
            finally:
                await caller.close()
    finally:
        await scene.echo.start()


# --- large bodies -------------------------------------------------------------------------


async def test_64_mib_up_arrive_as_they_were_sent(scene: Office) -> None:
    size = 64 * MIB
    async with scene.calling(limit_s=60) as caller:
        await caller.send(request("/hash", method="POST", headers=[("Content-Length", str(size))]))
        for piece in pattern(size):
            await caller.send(piece)
        assert (await caller.answer()).json() == {"size": size, "sha256": pattern_hash(size)}


async def test_a_chunked_upload_arrives_as_it_was_sent(scene: Office) -> None:
    size = 8 * MIB
    async with scene.calling(limit_s=60) as caller:
        head = request("/hash", method="POST", headers=[("Transfer-Encoding", "chunked")])
        await caller.send(head)
        for piece in pattern(size):
            await caller.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await caller.send(b"0\r\n\r\n")
        assert (await caller.answer()).json() == {"size": size, "sha256": pattern_hash(size)}


async def test_256_mib_down_arrive_as_they_were_sent(scene: Office) -> None:
    size = 256 * MIB
    async with scene.calling(limit_s=60) as caller:
        await caller.send(request(f"/bytes?n={size}"))
        assert (await caller.begin()).status == 200
        assert await caller.rest_hash() == (size, pattern_hash(size))


async def test_an_early_refusal_reaches_a_caller_that_is_still_uploading(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        await x.pipe.read_exactly(1000)
        x.keep = False
        await x.start("413 Too Large", [("Content-Length", "7"), ("Connection", "close")])
        await x.send(b"too big")
        x.pipe.write_eof()
        # What a careful server does: end the answer, then drain for a moment.
        try:
            async with asyncio.timeout(1.0):
                while await x.pipe.read_some():
                    pass
        except TimeoutError:
            pass
        x.taken_over = True

    scene.api.on("/refuse", script)
    size = 16 * MIB
    async with scene.calling() as caller:
        head = [("Content-Length", str(size))]
        await caller.send(request("/refuse", method="POST", headers=head))

        async def upload() -> None:
            try:
                for piece in pattern(size):
                    await caller.send(piece)
            except OSError:
                pass  # The server may close on us once its answer is out.

        sending = asyncio.get_running_loop().create_task(upload())
        try:
            answer = await caller.answer()
            assert (answer.status, answer.body) == (413, b"too big")
        finally:
            await sending
    assert await scene.works()


async def test_an_early_answer_on_a_kept_backend_does_not_mix_up_requests(scene: Office) -> None:
    """The rest of a body must not be taken for a request, by anybody."""

    async def script(x: Exchange) -> None:
        await x.reply(b"early", "403 Forbidden")
        await x.body()

    scene.api.on("/early", script)
    inner = request("/smuggled")
    for _ in range(5):
        async with scene.calling() as caller:
            head = [("Content-Length", str(len(inner) * 3))]
            await caller.send(request("/early", method="POST", headers=head))
            assert (await caller.answer()).status == 403
            try:
                await caller.send(inner * 3)
                await caller.send(request("/hello/after"))
                await caller.everything()
            except OSError:
                pass  # Closing on us is a fine answer to the rest of the body.
            except AssertionError:
                pass  # So is keeping the connection: then there is no end to wait for.
    await all_of(scene.get() for _ in range(5))
    assert not scene.api.seen("/smuggled")


# --- what the backend may not do ----------------------------------------------------------

BROKEN_ANSWERS = {
    "no http at all": b"SSH-2.0-OpenSSH\r\n\r\n",
    "empty": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "length is a word": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
    "NUL in a field": b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 5\r\n\r\nhello",
    "status is a word": b"HTTP/1.1 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no colon": b"HTTP/1.1 200 OK\r\nContent-Length 5\r\n\r\nhello",
    "101 nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_ANSWERS)
async def test_a_broken_answer_becomes_502(scene: Office, name: str) -> None:
    async def script(x: Exchange) -> None:
        x.keep = False
        await x.send(BROKEN_ANSWERS[name])

    scene.api.on("/broken", script)
    async with scene.calling() as caller:
        answer = await caller.get("/broken")
        assert answer.status == 502
    assert await scene.works()


async def test_an_answer_with_both_framings_is_not_passed_on_with_both(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        x.keep = False
        await x.start("200 OK", [("Content-Length", "5"), ("Transfer-Encoding", "chunked")])
        await x.chunk(b"hello")
        await x.end_chunks()

    scene.api.on("/both", script)
    async with scene.calling() as caller:
        try:
            answer = await caller.get("/both")
        except Cut:
            return
        assert answer.status == 502 or answer.body == b"hello"


async def test_bad_chunks_in_an_answer_do_not_look_complete(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        x.keep = False
        await x.start_chunked()
        await x.send(b"5\r\nhello\r\nZZ\r\nworld\r\n0\r\n\r\n")

    scene.api.on("/bad-chunks", script)
    async with scene.calling() as caller:
        await caller.send(request("/bad-chunks"))
        with pytest.raises((Cut, BadAnswer)):
            await caller.answer()


async def test_bytes_behind_an_answer_never_become_the_next_one(scene: Office) -> None:
    """A backend that says too much loses its connection, not the next caller his answer."""

    async def script(x: Exchange) -> None:
        await x.reply(b"short")
        await x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")

    scene.api.on("/talkative", script)
    for _ in range(10):
        answer = await scene.get("/talkative")
        assert answer.body == b"short"
        assert (await scene.get()).body == b"hello"


# --- concurrency --------------------------------------------------------------------------


async def test_answers_never_go_to_the_wrong_caller(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        body = await x.body()
        await asyncio.sleep(int(x.request.query["n"]) % 7 * 0.001)
        await x.reply(x.request.target.encode() + b"|" + body)

    scene.api.on("/who", script)
    numbers = itertools.count()

    async def caller() -> None:
        async with scene.calling() as one:
            for _ in range(20):
                number = next(numbers)
                body = b"%d" % number * (number % 50)
                await one.send(request(f"/who?n={number}", method="POST", body=body))
                expected = f"/who?n={number}|".encode() + body
                assert (await one.answer()).body == expected

    await all_of(caller() for _ in range(60))
    assert len(scene.api.seen("/who")) == 60 * 20
    await until(lambda: len(scene.api.live) <= 100, "the idle pool to be bounded")
