"""The clients that people really use, through the vhost."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import openai
import pytest
import pytest_asyncio
import websockets

from tests.support.backends import Exchange
from tests.support.office import DOMAIN, Office
from tests.support.processes import HOST
from tests.support.services import BLOCK, Pipe
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

WORDS = ["안녕", "하세요", ", ", "this ", "is ", "a ", "stream", "."]


async def _models(x: Exchange) -> None:
    listed = [{"id": "sample", "object": "model", "created": 1, "owned_by": "test"}]
    await x.reply_json({"object": "list", "data": listed})


def _chunk(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    body = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "sample",
        "choices": [choice],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def _chat(x: Exchange) -> None:
    asked = json.loads(await x.body())
    if x.request.get("authorization") != "Bearer sk-test":
        await x.reply_json({"error": {"message": "wrong key", "code": 401}}, "401 Unauthorized")
    elif asked.get("stream"):
        await x.start_chunked("text/event-stream; charset=utf-8")
        for word in WORDS:
            await x.chunk(_chunk(word))
            await asyncio.sleep(0.005)
        await x.chunk(_chunk("", "stop") + b"data: [DONE]\n\n")
        await x.end_chunks()
    else:
        message = {"role": "assistant", "content": "".join(WORDS)}
        body = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "sample",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9},
        }
        await x.reply_json(body)


@pytest.fixture(autouse=True)
def _llm(fresh: Office) -> None:
    """An API that speaks enough of OpenAI's for its SDK."""
    fresh.api.on("/v1/models", _models)
    fresh.api.on("/v1/chat/completions", _chat)


# --- the SDK ------------------------------------------------------------------------------

ASK: Any = [{"role": "user", "content": "hello"}]


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(scene: Office) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key="sk-test",
        base_url=f"http://{HOST}:{scene.http_port}/v1",
        default_headers={"Host": DOMAIN},
        max_retries=0,
        timeout=10,
    ) as client:
        yield client


async def test_the_openai_sdk_lists_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["sample"]


async def test_the_openai_sdk_completes(sdk: openai.AsyncOpenAI) -> None:
    done = await sdk.chat.completions.create(model="sample", messages=ASK)
    assert done.choices[0].message.content == "".join(WORDS)
    assert done.usage.total_tokens == 9


async def test_the_openai_sdk_streams_side_by_side(sdk: openai.AsyncOpenAI) -> None:
    async def one() -> None:
        stream = await sdk.chat.completions.create(model="sample", messages=ASK, stream=True)
        words = [chunk.choices[0].delta.content async for chunk in stream]
        assert words == [*WORDS, ""]

    await all_of(one() for _ in range(20))


async def test_the_openai_sdk_may_stop_listening(sdk: openai.AsyncOpenAI, scene: Office) -> None:
    async def endless(x: Exchange) -> None:
        await x.start_chunked()
        while not x.gone.is_set():
            await x.chunk(_chunk("more "))
            await asyncio.sleep(0.01)
        x.keep = False

    scene.api.on("/v1/chat/completions", endless)
    stream = await sdk.chat.completions.create(model="sample", messages=ASK, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await until(lambda: not [p for p in scene.api.live if p.eof], "the backend to be told", 2)


async def test_the_openai_sdk_understands_our_own_errors(scene: Office) -> None:
    async with openai.AsyncOpenAI(
        api_key="sk-test",
        base_url=f"http://{HOST}:{scene.http_port}/v1",
        default_headers={"Host": "nobody.test"},
        max_retries=0,
    ) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.list()
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["message"]


async def test_the_openai_sdk_sees_the_apis_own_errors(scene: Office) -> None:
    async with openai.AsyncOpenAI(
        api_key="sk-wrong",
        base_url=f"http://{HOST}:{scene.http_port}/v1",
        default_headers={"Host": DOMAIN},
        max_retries=0,
    ) as client:
        with pytest.raises(openai.AuthenticationError, match="wrong key"):
            await client.chat.completions.create(model="sample", messages=ASK)


# --- HTTP libraries -----------------------------------------------------------------------


async def test_httpx_with_kept_connections(scene: Office) -> None:
    base = f"http://{HOST}:{scene.http_port}"
    async with httpx.AsyncClient(base_url=base, headers={"Host": DOMAIN}, timeout=10) as client:
        for _ in range(5):
            answer = await client.get("/hello")
            assert (answer.status_code, answer.text) == (200, "hello")
        assert (await client.post("/echo", content=BLOCK)).content == BLOCK

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, 300_000, 10_000):
                yield BLOCK[start : start + 10_000]

        assert (await client.post("/echo", content=pieces())).content == BLOCK[:300_000]
        async with client.stream("GET", "/events?n=20") as stream:
            lines = [line async for line in stream.aiter_lines() if line.startswith("data")]
        assert lines == [f"data: event {number}" for number in range(20)]
        answers = await all_of(client.get("/hello") for _ in range(50))
        assert {answer.text for answer in answers} == {"hello"}


async def test_httpx_decodes_what_the_service_compressed(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        assert "gzip" in (x.request.get("accept-encoding") or "")
        await x.reply(gzip.compress(b"packed" * 1000), headers=[("Content-Encoding", "gzip")])

    scene.api.on("/packed", script)
    async with httpx.AsyncClient(headers={"Host": DOMAIN}, timeout=10) as client:
        answer = await client.get(f"http://{HOST}:{scene.http_port}/packed")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.content == b"packed" * 1000


async def test_aiohttp_with_kept_connections(scene: Office) -> None:
    base = f"http://{HOST}:{scene.http_port}"
    async with aiohttp.ClientSession(base, headers={"Host": DOMAIN}) as client:
        for _ in range(5):
            async with client.get("/hello") as answer:
                assert (answer.status, await answer.text()) == (200, "hello")
        async with client.post("/echo", data=BLOCK) as answer:
            assert await answer.read() == BLOCK

        async def one() -> None:
            async with client.get("/events?n=10") as answer:
                assert (await answer.text()).count("data: event") == 10

        await all_of(one() for _ in range(50))
        async with client.post("/echo", data=b"x" * 1000, expect100=False) as answer:
            assert await answer.read() == b"x" * 1000


# --- websockets ---------------------------------------------------------------------------


async def _relay_websocket(x: Exchange, port: int) -> None:
    """Hand the request to a real websocket server on `port`, byte for byte."""
    near = await x.take_over()
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(x.request.raw)

        async def back() -> None:
            while data := await reader.read(65536):
                await near.send(data)
            near.write_eof()

        async def forth(pipe: Pipe) -> None:
            while data := await pipe.read_some():
                writer.write(data)
            writer.write_eof()

        await asyncio.gather(back(), forth(near))
    finally:
        writer.close()


async def test_a_websocket_client_talks_through_the_http_proxy(scene: Office) -> None:
    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with websockets.serve(echo, HOST, 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        scene.api.on("/ws", lambda x: _relay_websocket(x, port))

        async def one(index: int) -> None:
            async with websockets.connect(
                f"ws://{DOMAIN}/ws", host=HOST, port=scene.http_port, proxy=None
            ) as client:
                for number in range(10):
                    text = f"{index}/{number} 안녕"
                    await client.send(text)
                    assert await client.recv() == text
                await client.send(BLOCK[:200_000])
                assert await client.recv() == BLOCK[:200_000]
                pong = await client.ping()
                async with asyncio.timeout(5):
                    await pong

        await all_of(one(index) for index in range(10))


# --- curl ---------------------------------------------------------------------------------


async def curl(scene: Office, path: str, *options: str, data: bytes | None = None) -> str:
    """Run curl as the README does and return its output."""
    found = shutil.which("curl")
    if found is None:
        pytest.skip("there is no curl on this machine")
    process = await asyncio.create_subprocess_exec(
        found,
        "-sS",
        "--max-time",
        "20",
        "-H",
        f"Host: {DOMAIN}",
        *options,
        f"http://{HOST}:{scene.http_port}{path}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(data)
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_curl_gets_posts_and_streams(scene: Office) -> None:
    assert await curl(scene, "/hello") == "hello"
    assert await curl(scene, "/hello", "--http1.0") == "hello"
    head = await curl(scene, "/hello", "-I")
    assert head.startswith("HTTP/1.1 200")
    assert "content-length: 5" in head.lower()
    assert (await curl(scene, "/events?n=10", "-N")).count("data: event") == 10
    body = BLOCK[:300_000].hex()
    for options in (["--data-binary", "@-"], ["-H", "Transfer-Encoding: chunked", "-d", "@-"]):
        assert await curl(scene, "/echo", *options, data=body.encode()) == body
    again = f"http://{HOST}:{scene.http_port}/hello"
    out = await curl(scene, "/hello", "-w", "%{num_connects}", again)
    assert out == "hello1hello0"


async def test_curl_speaks_http2_with_prior_knowledge(scene: Office) -> None:
    # A Host field is no authority; curl makes one of it.
    options = ["--http2-prior-knowledge", "-w", " over %{http_version}"]
    features = await curl(scene, "/hello", "--version")
    if "HTTP2" not in features:
        pytest.skip("this curl has no HTTP/2")
    assert await curl(scene, "/hello", *options) == "hello over 2"
    assert (await curl(scene, "/events?n=10", *options)).count("data: event") == 10
