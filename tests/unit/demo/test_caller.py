"""The caller that measures: it notes every token, and tells a cut answer from a whole one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pyfrp.demo.caller import Caller, CutShortError, Figures
from pyfrp.demo.llm_api import TEXT, SampleApi


@pytest.fixture
async def port() -> AsyncIterator[int]:
    api = SampleApi(rate=0)
    yield await api.start()
    await api.close()


async def canned(answer: bytes) -> asyncio.Server:
    """A server that gives `answer` to whatever comes, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def test_stream_notes_every_token_and_shows_it_when_asked(port):
    caller = Caller("127.0.0.1", port, "llm.local")
    figures = Figures()
    shown: list[str] = []
    await caller.stream("hello", 12, figures, shown.append)
    assert len(figures.token_times) == len(figures.delays_s) == 12
    assert figures.first_token_s > 0
    assert figures.tokens_per_s > 0
    assert min(figures.delays_s) >= 0
    assert len(shown) == 12
    assert TEXT.startswith("".join(shown))
    assert (await caller.get("/v1/models"))[0] == 200
    caller.close()


def test_rate_of_one_token_is_no_figure():
    assert Figures(token_times=[1.0]).tokens_per_s == 0.0


EVENT = b'data: {"choices": [{"delta": {"content": "a"}}], "sent_at": 0}\n\n'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 6\r\n\r\nasleep",
            "HTTP 503: asleep",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVENT), EVENT),
            "1 of 3 tokens",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "0 of 3 tokens"),
    ],
)
async def test_answer_that_is_no_whole_stream_is_told(answer, words):
    server = await canned(answer)
    caller = Caller("127.0.0.1", server.sockets[0].getsockname()[1], "llm.local")
    with pytest.raises(CutShortError, match=words):
        await caller.stream("hello", 3, Figures())
    caller.close()
    server.close()
    await server.wait_closed()


async def test_connection_that_ends_inside_a_chunk_is_an_early_end():
    server = await canned(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf")
    caller = Caller("127.0.0.1", server.sockets[0].getsockname()[1], "llm.local")
    with pytest.raises(asyncio.IncompleteReadError):
        await caller.stream("hello", 3, Figures())
    caller.close()
    server.close()
    await server.wait_closed()
