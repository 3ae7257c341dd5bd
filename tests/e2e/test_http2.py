"""HTTP/2 with prior knowledge at the vhost port."""

from __future__ import annotations

import pytest

from tests.support.backends import Exchange, Gate, pattern, pattern_hash, peer_left, sse
from tests.support.http2 import http2
from tests.support.office import DOMAIN, Office
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _fresh_records(fresh: Office) -> None:
    """Every test counts requests from zero."""


async def test_a_request_is_routed_by_its_authority(scene: Office) -> None:
    async with http2(scene.http_port) as caller:
        stream = caller.request("/hello?x=1", f"{DOMAIN}:{scene.http_port}")
        answer = await caller.answer(stream)
        assert (answer.headers[":status"], answer.body) == ("200", b"hello")
        assert "connection" not in answer.headers
        assert "transfer-encoding" not in answer.headers
    seen = scene.api.requests[0]
    assert (seen.method, seen.target, seen.version) == ("GET", "/hello?x=1", "HTTP/1.1")
    assert (seen.get("host") or "").partition(":")[0] == DOMAIN
    assert seen.get("x-forwarded-for") == "127.0.0.1"


async def test_an_unknown_authority_gets_404(scene: Office) -> None:
    async with http2(scene.http_port) as caller:
        answer = await caller.answer(caller.request("/hello", "nobody.test"))
        assert answer.headers[":status"] == "404"
        answer = await caller.answer(caller.request("/hello", DOMAIN))
        assert answer.headers[":status"] == "200"
    assert len(scene.api.requests) == 1


async def test_streams_of_one_connection_run_side_by_side(scene: Office) -> None:
    gates = [Gate() for _ in range(8)]

    async def script(x: Exchange) -> None:
        gate = gates[int(x.request.query["s"])]
        await x.start_chunked()
        for number in range(5):
            await x.chunk(sse(number))
            await gate.passed(number)
        await x.end_chunks()

    scene.api.on("/gated", script)
    async with http2(scene.http_port) as caller:
        streams = [caller.request(f"/gated?s={index}", DOMAIN) for index in range(8)]
        for number in range(5):
            expected = b"".join(sse(n) for n in range(number + 1))
            for stream, gate in zip(streams, gates, strict=True):
                while bytes(caller.streams[stream].body) != expected:
                    await caller.wait()
                gate.received(number)
        for stream in streams:
            assert (await caller.answer(stream)).ended


async def test_bodies_pass_in_both_directions(scene: Office) -> None:
    size = 3 * MIB
    async with http2(scene.http_port) as caller:
        stream = caller.request("/hash", DOMAIN, "POST", end=False)
        for piece in pattern(size):
            await caller.send(stream, piece)
        await caller.send(stream, b"", end=True)
        answer = await caller.answer(stream)
        assert pattern_hash(size).encode() in answer.body
        stream = caller.request(f"/bytes?n={size}", DOMAIN)
        answer = await caller.answer(stream)
        assert bytes(answer.body) == b"".join(pattern(size))
        assert answer.headers["content-length"] == str(size)


async def test_a_body_of_known_length_and_its_fields_arrive(scene: Office) -> None:
    async with http2(scene.http_port) as caller:
        fields = [("content-length", "4"), ("cookie", "a=1"), ("cookie", "b=2"), ("x-a", "b")]
        stream = caller.request("/echo", DOMAIN, "POST", fields, end=False)
        await caller.send(stream, b"body", end=True)
        assert (await caller.answer(stream)).body == b"body"
    seen = scene.api.requests[0]
    assert seen.get("x-a") == "b"
    assert "; ".join(seen.all("cookie")) == "a=1; b=2"


async def test_a_reset_stream_ends_its_backend_connection_and_no_other(scene: Office) -> None:
    exchanges: list[Exchange] = []

    async def script(x: Exchange) -> None:
        exchanges.append(x)
        await x.start_chunked()
        await x.chunk(sse(0))
        await x.gone.wait()

    scene.api.on("/generate", script)
    async with http2(scene.http_port) as caller:
        stream = caller.request("/generate", DOMAIN, "POST", [("content-length", "0")])
        await caller.head(stream)
        await until(lambda: exchanges, "the request at the backend")
        caller.cancel(stream)
        await peer_left(exchanges[0].pipe, 1.0, "the backend connection to end")
        assert (await caller.answer(caller.request("/hello", DOMAIN))).body == b"hello"


async def test_head_and_empty_answers_have_no_body(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        await x.start("204 No Content")

    scene.api.on("/empty", script)
    async with http2(scene.http_port) as caller:
        answer = await caller.answer(caller.request("/hello", DOMAIN, "HEAD"))
        assert (answer.headers[":status"], answer.headers["content-length"]) == ("200", "5")
        assert not answer.body
        answer = await caller.answer(caller.request("/empty", DOMAIN))
        assert (answer.headers[":status"], bytes(answer.body)) == ("204", b"")


async def test_a_broken_answer_resets_its_stream_only(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        await x.start("200 OK", [("Content-Length", "1000")])
        await x.send(b"x" * 10)
        x.keep = False

    scene.api.on("/breaks", script)
    async with http2(scene.http_port) as caller:
        answer = await caller.answer(caller.request("/breaks", DOMAIN))
        assert answer.reset is not None
        assert not answer.ended
        assert (await caller.answer(caller.request("/hello", DOMAIN))).body == b"hello"


async def test_many_streams_on_many_connections(scene: Office) -> None:
    async def one() -> None:
        async with http2(scene.http_port) as caller:
            for _ in range(3):
                streams = [caller.request("/events?n=5", DOMAIN) for _ in range(20)]
                for stream in streams:
                    answer = await caller.answer(stream)
                    assert bytes(answer.body) == b"".join(sse(n) for n in range(5))

    await all_of(one() for _ in range(10))


async def test_a_reader_without_credit_stops_only_itself(scene: Office) -> None:
    async with http2(scene.http_port) as caller:
        caller.grant_credit = False
        stream = caller.request(f"/bytes?n={16 * MIB}", DOMAIN)
        await caller.head(stream)
        await until(lambda: len(caller.streams[stream].body) >= 60_000, "the window to be used up")
        assert await scene.works()
        async with http2(scene.http_port) as other:
            assert (await other.answer(other.request("/hello", DOMAIN))).body == b"hello"
