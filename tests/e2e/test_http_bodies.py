"""Bodies, and callers and services that end them early, break them or say too much."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.support.backends import Exchange, Gate, sse
from tests.support.http import Caller, Cut, request
from tests.support.office import Office
from tests.support.services import Pipe, ScriptBackend, pattern, pattern_hash, running
from tests.support.waiting import all_of, until, within

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _fresh_records(fresh: Office) -> None:
    """Every test counts requests from zero."""


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


@pytest.mark.parametrize("late", [False, True], ids=["with-the-head", "later"])
async def test_bad_chunks_in_an_answer_do_not_look_complete(scene: Office, late: bool) -> None:
    gate = Gate()

    async def script(x: Exchange) -> None:
        x.keep = False
        bad = b"5\r\nhello\r\nZZ\r\nworld\r\n0\r\n\r\n"
        if late:
            await x.start_chunked()
            await gate.passed(0)
            await x.send(bad)
        else:
            fields = b"Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"
            await x.send(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + bad)

    scene.api.on("/bad-chunks", script)
    async with scene.calling() as caller:
        await caller.send(request("/bad-chunks"))
        try:
            head = await caller.begin()
            gate.received(0)
            await caller.rest()
        except Cut:
            return
        # Known to be broken before anything went out.
        assert not late
        assert head.status == 502


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
