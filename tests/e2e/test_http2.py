"""HTTP/2 with prior knowledge at the vhost port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.backends import Exchange, Gate, sse
from tests.support.http2 import http2
from tests.support.office import DOMAIN, Office, office
from tests.support.processes import Kind
from tests.support.services import pattern, pattern_hash, peer_left
from tests.support.waiting import all_of, until, within

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


async def test_an_unused_stream_window_holds_no_memory_of_the_server(scene: Office) -> None:
    """Sixty streams that nobody reads cost their marks, not their answers."""
    async with http2(scene.http_port) as caller:
        caller.grant_credit = False
        before = scene.pair.server.figures().rss_kib
        streams = [caller.request(f"/bytes?n={64 * MIB}", DOMAIN) for _ in range(60)]
        for stream in streams:
            await caller.head(stream)
        assert await scene.works()
        assert scene.pair.server.figures().rss_kib - before < 64 * 1024


async def test_a_caller_that_resets_before_the_first_byte_ends_the_backend_connection(
    scene: Office,
) -> None:
    exchanges: list[Exchange] = []

    async def script(x: Exchange) -> None:
        exchanges.append(x)
        await x.gone.wait()

    scene.api.on("/prefill", script)
    async with http2(scene.http_port) as caller:
        stream = caller.request("/prefill", DOMAIN)
        await until(lambda: exchanges, "the request at the backend")
        caller.cancel(stream)
        await peer_left(exchanges[0].pipe, 1.0, "the backend connection to end")
    async with http2(scene.http_port) as caller:
        for _ in range(3):
            caller.request("/prefill", DOMAIN)
        await until(lambda: len(exchanges) == 4, "the requests at the backend")
    for x in exchanges[1:]:
        await peer_left(x.pipe, 1.0, "the backend connections of a lost caller to end")


async def test_trailers_come_through_both_ways_behind_an_interim_answer(scene: Office) -> None:
    exchanges: list[Exchange] = []

    async def script(x: Exchange) -> None:
        exchanges.append(x)
        await x.start("103 Early Hints", [("Link", "</a>")])
        await x.body()
        await x.start_chunked("text/plain")
        await x.chunk(b"body")
        await x.send(b"0\r\nX-Sum: 42\r\n\r\n")

    scene.api.on("/trailers", script)
    async with http2(scene.http_port) as caller:
        stream = caller.request("/trailers", DOMAIN, "POST", end=False)
        await caller.send(stream, b"body")
        caller.link.send_headers(stream, [("x-up", "1")], end_stream=True)
        caller.flush()
        answer = await caller.answer(stream)
        assert (answer.body, answer.trailers) == (b"body", {"x-sum": "42"})
    assert exchanges[0].trailers == [("x-up", "1")]


async def test_an_early_answer_ends_an_upload_and_not_the_connection(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        x.keep = False
        await x.reply(b"too large", "413 Content Too Large")

    scene.api.on("/upload", script)
    async with http2(scene.http_port) as caller:
        fields = [("content-length", str(64 * MIB))]
        stream = caller.request("/upload", DOMAIN, "POST", fields, end=False)
        await caller.send(stream, bytes(40_000))
        answer = await caller.answer(stream)
        assert (answer.headers[":status"], answer.body) == ("413", b"too large")
        assert (await caller.answer(caller.request("/hello", DOMAIN))).body == b"hello"


# --- clients that people use --------------------------------------------------------------


def curl_speaks_http2() -> bool:
    curl = shutil.which("curl")
    if curl is None:
        return False
    about = subprocess.run([curl, "--version"], capture_output=True, text=True, check=True).stdout
    return " HTTP2" in about


async def call(scene: Office, path: str, upload: Path | None = None) -> tuple[int, bytes]:
    """Status and body of a request: by curl, or where it lacks HTTP/2, by our own caller."""
    if not curl_speaks_http2():
        async with http2(scene.http_port) as caller:
            stream = caller.request(path, DOMAIN, "POST" if upload else "GET", end=not upload)
            if upload:
                await caller.send(stream, upload.read_bytes(), end=True)
            answer = await caller.answer(stream)
            return int(answer.headers[":status"]), bytes(answer.body)
    options = [
        "-sS",
        "--http2-prior-knowledge",
        "-H",
        f"Host: {DOMAIN}",
        "-w",
        "%{stderr}%{http_version} %{http_code}",
    ]
    if upload:
        options += ["--data-binary", f"@{upload}", "-H", "Content-Type: application/octet-stream"]
    process = await asyncio.create_subprocess_exec(
        "curl",
        *options,
        f"http://127.0.0.1:{scene.http_port}{path}",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    body, about = await within(process.communicate(), 60, "curl to end")
    version, status = about.decode().split()
    assert version == "2"
    return int(status), body


async def test_curl_gets_and_is_refused(scene: Office) -> None:
    assert await call(scene, "/hello") == (200, b"hello")
    status, body = await call(scene, "/events?n=20")
    assert (status, body) == (200, b"".join(sse(n) for n in range(20)))
    assert (await call(scene, "/no-such-handler"))[0] == 418


async def test_curl_sends_8_mib_and_fetches_16(scene: Office, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"".join(pattern(8 * MIB)))
    status, body = await call(scene, "/hash", upload)
    assert status == 200
    assert json.loads(body) == {"size": 8 * MIB, "sha256": pattern_hash(8 * MIB)}
    status, body = await call(scene, f"/bytes?n={16 * MIB}")
    assert status == 200
    assert hashlib.sha256(body).hexdigest() == pattern_hash(16 * MIB)


def client(scene: Office) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        http1=False,
        http2=True,
        base_url=f"http://127.0.0.1:{scene.http_port}",
        headers={"Host": DOMAIN, "Accept": "application/json"},
        timeout=20,
    )


async def test_httpx_sees_each_event_before_the_next_is_sent_on_streams_side_by_side(
    scene: Office,
) -> None:
    gates = [Gate() for _ in range(6)]

    async def script(x: Exchange) -> None:
        gate = gates[int(x.request.query["s"])]
        assert json.loads(await x.body()) == {"stream": True}
        await x.start_chunked()
        for number in range(20):
            await x.chunk(sse(number))
            await gate.passed(number)
        await x.end_chunks()

    async def follow(http: httpx.AsyncClient, index: int) -> None:
        async with http.stream("POST", f"/chat?s={index}", json={"stream": True}) as answer:
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
            number = 0
            async for part in answer.aiter_raw():
                assert part == sse(number)
                gates[index].received(number)
                number += 1
            assert number == 20

    scene.api.on("/chat", script)
    async with client(scene) as http:
        await http.get("/hello")
        await all_of(follow(http, index) for index in range(6))


async def test_httpx_leaving_in_the_middle_stops_the_backend(scene: Office) -> None:
    exchanges: list[Exchange] = []

    async def script(x: Exchange) -> None:
        exchanges.append(x)
        await x.start_chunked()
        await x.chunk(sse(0))
        await x.gone.wait()

    scene.api.on("/chat", script)
    # A stream that is left alone stays open in httpx; its connection tells.
    async with client(scene) as http, http.stream("GET", "/chat") as answer:
        async for part in answer.aiter_raw():
            assert part == sse(0)
            break
    await peer_left(exchanges[0].pipe, 1.0, "the backend connection to end")


async def test_errors_of_the_proxy_are_json_for_callers_that_ask_for_it(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    async with office(tmp_path, kinds=kinds) as scene:

        async def script(x: Exchange) -> None:
            x.keep = False

        scene.api.on("/dead", script)
        async with client(scene) as http:
            unknown = await http.get("/hello", headers={"Host": "nobody.test"})
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
            dead = await http.get("/dead")
            assert (dead.status_code, dead.json()["error"]["code"]) == (502, "bad_gateway")
            scene.pair.client.kill()
            await until_away(http)
            away = await http.get("/hello")
            assert (away.status_code, away.json()["error"]["type"]) == (503, "server_error")
            assert away.headers["retry-after"]


async def until_away(http: httpx.AsyncClient) -> None:
    """Wait until the server knows that its client is gone."""
    async with asyncio.timeout(15):
        while (await http.get("/hello")).status_code == 200:
            await asyncio.sleep(0.05)


async def test_a_server_that_ends_lets_open_streams_finish(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    async with office(tmp_path, kinds=kinds) as scene:
        gate = Gate()

        async def script(x: Exchange) -> None:
            await x.start_chunked()
            for number in range(3):
                await x.chunk(sse(number))
                await gate.passed(number)
            await x.end_chunks()

        scene.api.on("/chat", script)
        async with (
            http2(scene.http_port) as idle,
            client(scene) as http,
            http.stream("GET", "/chat") as answer,
        ):
            assert (await idle.answer(idle.request("/hello", DOMAIN))).ended
            scene.pair.server.signal(signal.SIGTERM)
            await until(lambda: idle.closed and idle.gone_away == 0, "the idle caller's end")
            number = 0
            async for part in answer.aiter_raw():
                assert part == sse(number)
                gate.received(number)
                number += 1
            assert number == 3
            assert await scene.pair.server.exited(5) == 0
