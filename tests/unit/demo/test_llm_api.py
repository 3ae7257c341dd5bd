"""The sample API: shapes, HTTP framing, and that work stops when the caller leaves."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from pyfrp.demo.llm_api import MODEL, TEXT, SampleApi, tokens_of
from tests.support.waiting import until

LIMIT_S = 10.0


class Caller:
    """A caller that sees the bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), LIMIT_S)).decode()
        line, *fields = text.strip().split("\r\n")
        pairs = (field.split(": ", 1) for field in fields)
        return int(line.split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await asyncio.wait_for(
                self.reader.readexactly(int(headers["content-length"])), LIMIT_S
            )
        body = b""
        while size := int(await asyncio.wait_for(self.reader.readline(), LIMIT_S), 16):
            body += await asyncio.wait_for(self.reader.readexactly(size), LIMIT_S)
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def json(self) -> tuple[int, dict[str, object]]:
        status, headers = await self.head()
        assert headers["content-type"] == "application/json"
        answer = json.loads(await self.body(headers))
        assert isinstance(answer, dict)
        return status, answer

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # The API closed first, with bytes of ours unread; closed is what we want.


Dial = Callable[[SampleApi], Awaitable[Caller]]


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    """Connect to an API, which is started at its first caller; all ends with the test."""
    ports: dict[int, int] = {}
    apis: list[SampleApi] = []
    callers: list[Caller] = []

    async def connect(api: SampleApi) -> Caller:
        if id(api) not in ports:
            apis.append(api)
            ports[id(api)] = await api.start()
        caller = Caller(*await asyncio.open_connection("127.0.0.1", ports[id(api)]))
        callers.append(caller)
        return caller

    yield connect
    for caller in callers:
        await caller.close()
    for api in apis:
        await asyncio.wait_for(api.close(), LIMIT_S)


def fast() -> SampleApi:
    return SampleApi(rate=0)


def post(path: str, asked: object, *fields: str) -> bytes:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(head).encode() + body


def chat(**more: object) -> bytes:
    asked: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    return post("/v1/chat/completions", asked | more)


def events_of(body: bytes) -> list[dict[str, object]]:
    parts = body.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_text_is_told_once_or_up_to_the_number_asked_for():
    assert "".join(tokens_of(None)) == TEXT
    assert len(list(tokens_of(3))) == 3
    assert len(list(tokens_of(500))) == 500


async def test_models_lists_the_one_model(dial):
    caller = await dial(fast())
    await caller.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    status, answer = await caller.json()
    assert status == 200
    assert [model["id"] for model in answer["data"]] == [MODEL]


async def test_answer_that_is_not_streamed_carries_text_and_usage(dial):
    caller = await dial(fast())
    await caller.send(chat())
    status, answer = await caller.json()
    assert status == 200
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(TEXT.split())


async def test_stream_is_role_then_tokens_then_finish_usage_and_done(dial):
    caller = await dial(fast())
    await caller.send(chat(stream=True, max_tokens=5, stream_options={"include_usage": True}))
    status, headers = await caller.head()
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    role, *tokens, finish, usage = events_of(await caller.body(headers))
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(token["choices"][0]["delta"]["content"] for token in tokens)
    assert len(tokens) == 5
    assert TEXT.startswith(text)
    assert finish["choices"][0] == {"index": 0, "finish_reason": "length", "delta": {}}
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert len({event["id"] for event in (role, *tokens, finish, usage)}) == 1


async def test_plain_completion_is_served_streamed_and_not(dial):
    caller = await dial(fast())
    asked = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
    await caller.send(post("/v1/completions", asked))
    _, answer = await caller.json()
    assert answer["object"] == "text_completion"
    await caller.send(post("/v1/completions", asked | {"stream": True}))
    _, headers = await caller.head()
    events = events_of(await caller.body(headers))
    streamed = "".join(event["choices"][0]["text"] for event in events)
    assert streamed == answer["choices"][0]["text"]


async def test_tokens_leave_one_by_one_at_the_rate(dial):
    caller = await dial(SampleApi(rate=100))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await caller.send(chat(stream=True, max_tokens=20))
    _, headers = await caller.head()
    events = events_of(await caller.body(headers))
    sent = [event["sent_at"] for event in events]
    assert sent == sorted(sent)
    assert sent[-1] - sent[0] > 0.15  # 19 gaps of 10 ms, some slack for the clock
    assert loop.time() - began < LIMIT_S


async def test_connection_carries_many_requests_also_pipelined(dial):
    api = fast()
    caller = await dial(api)
    await caller.send(chat(max_tokens=2) + chat(max_tokens=3) + chat(stream=True, max_tokens=1))
    counts = []
    for _ in range(2):
        _, answer = await caller.json()
        counts.append(answer["usage"]["completion_tokens"])
    assert counts == [2, 3]
    _, headers = await caller.head()
    assert len(events_of(await caller.body(headers))) == 3
    assert api.stats.connections == 1
    assert api.stats.requests == 3


async def test_request_may_come_chunked_and_byte_by_byte(dial):
    caller = await dial(fast())
    whole = chat(max_tokens=2)
    body = whole.partition(b"\r\n\r\n")[2]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%s\r\n" % (10, body[:10]) + b"%x;a=b\r\n%s\r\n" % (len(body) - 10, body[10:])
    for at in range(0, len(message := head + chunks + b"0\r\nX-Trailer: 1\r\n\r\n")):
        await caller.send(message[at : at + 1])
    status, _ = await caller.json()
    assert status == 200


async def test_expect_is_answered_before_the_body_is_sent(dial):
    caller = await dial(fast())
    whole = chat(max_tokens=1)
    head, _, body = whole.partition(b"\r\n\r\n")
    await caller.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await caller.send(body)
    assert (await caller.json())[0] == 200


async def test_http_1_0_stream_ends_with_the_connection(dial):
    caller = await dial(fast())
    await caller.send(chat(stream=True, max_tokens=2).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    _, headers = await caller.head()
    assert "transfer-encoding" not in headers
    assert len(events_of(await asyncio.wait_for(caller.reader.read(), LIMIT_S))) == 4


@pytest.mark.parametrize("prefill_s", [0.0, 3600.0], ids=["mid-stream", "before the first token"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
async def test_work_stops_when_the_caller_leaves(dial, prefill_s, stream, reset):
    api = SampleApi(rate=200, prefill_s=prefill_s)
    caller = await dial(api)
    await caller.send(chat(stream=stream, max_tokens=100_000))
    await until(
        lambda: api.stats.generating == 1 and (api.stats.tokens > 3 or prefill_s > 0),
        "the answer is being made",
    )
    if reset:
        caller.writer.transport.abort()
    await caller.close()
    await until(lambda: api.stats.generating == 0, "the work has stopped")
    assert api.stats.caller_left == 1
    assert api.stats.completed == 0


async def test_stats_are_served(dial):
    caller = await dial(fast())
    await caller.send(chat(max_tokens=7))
    await caller.json()
    await caller.send(b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
    _, answer = await caller.json()
    assert answer == {
        "connections": 1,
        "requests": 2,
        "completed": 1,
        "caller_left": 0,
        "tokens": 7,
        "generating": 0,
    }


async def test_head_gets_the_head_alone(dial):
    caller = await dial(fast())
    await caller.send(b"HEAD /health HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n")
    status, headers = await caller.head()
    assert status == 200
    assert int(headers["content-length"]) > 0
    assert await caller.json() == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("message", "status", "words"),
    [
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404, "no /nowhere"),
        (b"GET /v1/models/gpt HTTP/1.1\r\n\r\n", 404, "gpt"),
        (b"DELETE /v1/models HTTP/1.1\r\n\r\n", 405, "GET"),
        (b"GET /v1/completions HTTP/1.1\r\n\r\n", 405, "POST"),
        (post("/v1/chat/completions", b"{"), 400, "not JSON"),
        (post("/v1/chat/completions", b"[" * 100_000), 400, "not JSON"),
        (post("/v1/chat/completions", []), 400, "object"),
        (post("/v1/chat/completions", {}), 400, "model"),
        (post("/v1/chat/completions", {"model": "gpt", "messages": [1]}), 404, "only pyfrp-sample"),
        (post("/v1/chat/completions", {"model": MODEL}), 400, "messages"),
        (post("/v1/chat/completions", {"model": MODEL, "messages": []}), 400, "messages"),
        (post("/v1/completions", {"model": MODEL}), 400, "prompt"),
        (chat(max_tokens=0), 400, "max_tokens"),
        (chat(max_tokens=True), 400, "max_tokens"),
    ],
)
async def test_refusal_is_openais_error_and_keeps_the_connection(dial, message, status, words):
    caller = await dial(fast())
    await caller.send(message)
    code, answer = await caller.json()
    assert code == status
    assert words in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"
    await caller.send(b"GET /health HTTP/1.1\r\n\r\n")
    assert await caller.json() == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000, 431),
        (b"\r\n" * 40_000, 400),
    ],
)
async def test_malformed_request_is_refused_and_the_connection_ends(dial, message, status):
    caller = await dial(fast())
    await caller.send(message)
    code, headers = await caller.head()
    assert code == status
    assert headers["connection"] == "close"


async def test_api_key_is_asked_for_where_it_is_set(dial):
    caller = await dial(SampleApi(rate=0, api_key="sample-key"))
    await caller.send(b"GET /v1/models HTTP/1.1\r\n\r\n")
    status, headers = await caller.head()
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert "invalid_api_key" in (await caller.body(headers)).decode()
    await caller.send(b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer sample-key\r\n\r\n")
    assert (await caller.json())[0] == 200


async def test_close_ends_answers_that_are_being_made(dial):
    api = SampleApi(rate=1)
    caller = await dial(api)
    await caller.send(chat(stream=True, max_tokens=1000))
    await caller.head()
    await asyncio.wait_for(api.close(), LIMIT_S)
    rest = await asyncio.wait_for(caller.reader.read(), LIMIT_S)
    assert not re.search(rb"\r\n0\r\n\r\n$", rest)  # cut, and it can be told


async def test_openai_sdk_lists_completes_and_streams(dial):
    from openai import AsyncOpenAI

    api = fast()
    caller = await dial(api)
    port = caller.writer.get_extra_info("peername")[1]
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        assert [model.id async for model in await client.models.list()] == [MODEL]
        messages = [{"role": "user", "content": "hello"}]
        whole = await client.chat.completions.create(model=MODEL, messages=messages)
        assert whole.choices[0].message.content == TEXT
        text = ""
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        assert text == TEXT
