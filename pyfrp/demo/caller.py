"""A caller for the sample API: lists, streams, and notes when each token came.

The standard library's streams alone, so that what it measures is the way and not a client library.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from pyfrp.demo.llm_api import MODEL


class CutShortError(Exception):
    """An answer that is not what the sample API sends; the text says how."""


@dataclass
class Figures:
    """What one streamed answer showed. Times in seconds."""

    first_token_s: float = 0.0
    token_times: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Rate between the first and the last token; 0 for fewer than two."""
        times = self.token_times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


class Caller:
    """A small HTTP client on one kept connection.

    Args:
        host: Address to connect to.
        port: Port to connect to.
        name: The Host header.
    """

    def __init__(self, host: str, port: int, name: str) -> None:
        self.host = host
        self.port = port
        self.name = name
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bool]:
        """Send a request and read the head of the answer.

        Returns:
            The status, and whether the body is chunked; the caller must read the body next.

        Raises:
            OSError, EOFError: the connection failed or ended early.
        """
        if self.reader is None or self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.name}\r\nAccept: application/json\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"\r\n" + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        self.length = 0
        for line in lines:
            name, _, value = line.partition(":")
            if name == "content-length":
                self.length = int(value)
        return int(lines[0].split(" ")[1]), "transfer-encoding: chunked" in lines

    async def pieces(self, chunked: bool) -> AsyncIterator[bytes]:
        """Yield the body of the answer as it comes."""
        assert self.reader is not None  # request() connected
        if not chunked:
            yield await self.reader.readexactly(self.length)
            return
        while True:
            size = int((await self.reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            data = await self.reader.readexactly(size + 2)
            if size == 0:
                return
            yield data[:-2]

    async def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET."""
        status, chunked = await self.request("GET", path)
        return status, b"".join([piece async for piece in self.pieces(chunked)])

    async def stream(
        self,
        prompt: str,
        tokens: int,
        figures: Figures,
        show: Callable[[str], object] | None = None,
    ) -> None:
        """Make a streamed chat completion and fill `figures`; `show` gets each token as it comes.

        Raises:
            CutShortError: the answer is not what the sample API sends.
        """
        asked = {
            "model": MODEL,
            "stream": True,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": prompt}],
        }
        began = time.monotonic()
        path = "/v1/chat/completions"
        status, chunked = await self.request("POST", path, json.dumps(asked).encode())
        pending = b""
        done = False
        async for piece in self.pieces(chunked):
            pending += piece
            *events, pending = pending.split(b"\n\n")
            if status != 200:
                continue
            for event in events:
                data = event.removeprefix(b"data: ")
                if data == b"[DONE]":
                    done = True
                    continue
                now = time.monotonic()
                chunk = json.loads(data)
                text = chunk["choices"][0]["delta"].get("content")
                if not text:
                    continue  # the role at the start, the reason at the end
                if not figures.token_times:
                    figures.first_token_s = now - began
                figures.token_times.append(now)
                figures.delays_s.append(now - chunk["sent_at"])
                if show is not None:
                    show(text)
        if status != 200:
            said = pending.decode("utf-8", "replace")[:300]
            raise CutShortError(f"the chat completion was answered with HTTP {status}: {said}")
        if not done or len(figures.token_times) != tokens:
            count = len(figures.token_times)
            raise CutShortError(f"the stream was cut: {count} of {tokens} tokens came")

    def close(self) -> None:
        """Drop the connection."""
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None
