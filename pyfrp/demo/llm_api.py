"""A sample of an OpenAI-compatible API: no model, a canned text, real HTTP.

It stands in for the LLM API at the far end of a tunnel, in `pyfrp demo` and for first tries:

    python -m pyfrp.demo.llm_api --port 4000

What it answers says that it is a sample. What it does on the wire is what a real server does:
keep-alive, chunked bodies, one server-sent event per token at a steady rate, a final usage event,
errors in OpenAI's shape, and an end to the work as soon as the caller has left, before the first
token too. `GET /stats` counts those.

Source of the shapes: the OpenAI API reference, "Chat", "Completions" and "Models".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import itertools
import json
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from pyfrp.demo.http1 import (
    REQUEST_TIMEOUT_S,
    ApiError,
    CallerLeftError,
    Connection,
    Request,
)

MODEL = "pyfrp-sample"
TEXT = (
    "This is a canned sample, not a language model: it shows that each token crosses the tunnel "
    "as soon as it is made. The caller speaks to the public server, the server sends the request "
    "down the one link that the client keeps open, and the client hands it to this small API on "
    "its own side. Nothing waits for the end of the answer on the way."
)

# Without `max_tokens` the text is told once; with it, the text goes round, up to this.
TOKENS_LIMIT = 100_000


@dataclass(slots=True)
class Stats:
    """What `GET /stats` shows: counts since the start, and what is open now."""

    connections: int = 0
    requests: int = 0
    completed: int = 0
    caller_left: int = 0
    tokens: int = 0
    generating: int = 0


@dataclass(slots=True)
class Prompt:
    """What a completion request asks for, checked."""

    chat: bool
    stream: bool
    max_tokens: int | None
    include_usage: bool
    prompt_tokens: int
    id: str
    created: int


def tokens_of(max_tokens: int | None) -> Iterator[str]:
    """Yield the pieces of the canned text: once, or round and round up to `max_tokens`."""
    words = [f" {word}" for word in TEXT.split()]
    if max_tokens is None:
        source: Iterator[str] = iter(words)
    else:
        source = itertools.islice(itertools.cycle(words), min(max_tokens, TOKENS_LIMIT))
    for index, word in enumerate(source):
        yield word.lstrip() if index == 0 else word


class SampleApi:
    """The API itself; one instance per listening port.

    Args:
        rate: Tokens per second of each answer; 0 for as fast as they are taken.
        prefill_s: Seconds of "thinking" before the first token of each answer.
        api_key: When set, requests need it as a bearer token, as with a real service.
    """

    def __init__(self, *, rate: float = 50.0, prefill_s: float = 0.0, api_key: str = "") -> None:
        self.rate = rate
        self.prefill_s = prefill_s
        self.api_key = api_key
        self.stats = Stats()
        self._ids = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen, and return the port. Callers end it with `close`.

        Raises:
            OSError: the address is taken or not ours.
        """
        self._server = await asyncio.start_server(self._serve, host, port, backlog=1024)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop every connection; returns when all are gone."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        task = asyncio.current_task()
        assert task is not None  # start_server runs each connection as a task
        self._serving.add(task)
        self.stats.connections += 1
        try:
            await Conversation(self, reader, writer).run()
        except asyncio.CancelledError:
            pass  # Only `close` cancels; Python 3.11 reports a cancelled connection as an error.
        except (OSError, CallerLeftError, TimeoutError):
            pass  # The caller is gone or idle; there is nobody to tell.
        finally:
            self._serving.discard(task)
            writer.close()

    def completion_id(self, chat: bool) -> str:
        """Return the next id of an answer, unlike any other of this instance."""
        return f"{'chatcmpl' if chat else 'cmpl'}-sample-{next(self._ids)}"


class Conversation(Connection):
    """The requests and answers of one connection of the API."""

    def __init__(
        self, api: SampleApi, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(reader, writer)
        self.api = api

    async def run(self) -> None:
        """Answer until the caller leaves, or asks for or deserves the end."""
        while True:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    request = await self.read_request()
            except ApiError as exc:
                await self.send_json(exc.status, exc.body(), keep_alive=False)
                return
            if request is None:
                return
            self.api.stats.requests += 1
            keep_alive = request.keep_alive
            try:
                await self.answer(request)
            except ApiError as exc:
                keep_alive = keep_alive and not exc.close
                head = request.method == "HEAD"
                await self.send_json(exc.status, exc.body(), keep_alive=keep_alive, head=head)
            if not keep_alive:
                return

    async def answer(self, request: Request) -> None:
        """Answer one request.

        Raises:
            ApiError: it is refused; nothing has been sent.
        """
        routes = {
            "/": ("GET", self.about),
            "/health": ("GET", self.health),
            "/stats": ("GET", self.statistics),
            "/v1/models": ("GET", self.models),
            f"/v1/models/{MODEL}": ("GET", self.model),
        }
        target = request.target
        if target in ("/v1/chat/completions", "/v1/completions"):
            if request.method != "POST":
                raise ApiError(405, f"{target} takes POST.")
            self.authorise(request)
            await self.complete(request, self.read_prompt(request))
            return
        if target not in routes:
            code = "model_not_found" if target.startswith("/v1/models/") else None
            raise ApiError(404, f"There is no {target} here.", code=code)
        method, body = routes[target]
        if request.method not in (method, "HEAD"):
            raise ApiError(405, f"{target} takes {method}.")
        if target.startswith("/v1/"):
            self.authorise(request)
        head = request.method == "HEAD"
        await self.send_json(200, body(), keep_alive=request.keep_alive, head=head)

    def authorise(self, request: Request) -> None:
        """Check the bearer token when one is wanted."""
        if not self.api.api_key:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.api.api_key}".encode()):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    def about(self) -> object:
        """Tell a person with a browser what this is."""
        return {"about": "A sample API of pyfrp with a canned text.", "models": "/v1/models"}

    def health(self) -> object:
        """Tell a monitor that this is up."""
        return {"status": "ok"}

    def statistics(self) -> object:
        """Show the counters."""
        stats = self.api.stats
        return {name: getattr(stats, name) for name in Stats.__slots__}

    def model(self) -> object:
        """Describe the one model."""
        return {"id": MODEL, "object": "model", "created": 0, "owned_by": "pyfrp"}

    def models(self) -> object:
        """List the one model."""
        return {"object": "list", "data": [self.model()]}

    def read_prompt(self, request: Request) -> Prompt:
        """Check the JSON of a completion request.

        Raises:
            ApiError: 400 or 404, saying which field is wrong.
        """
        chat = request.target == "/v1/chat/completions"
        try:
            asked = json.loads(request.body)
        except (ValueError, RecursionError):
            raise ApiError(400, "The body is not JSON.") from None
        if not isinstance(asked, dict):
            raise ApiError(400, "The body is not a JSON object.")
        model = asked.get("model")
        if not isinstance(model, str):
            raise ApiError(400, "The field model is missing.")
        if model != MODEL:
            text = f"The model is not here; this sample has only {MODEL}."
            raise ApiError(404, text, code="model_not_found")
        subject = asked.get("messages" if chat else "prompt")
        if not isinstance(subject, list if chat else (str, list)) or (chat and not subject):
            raise ApiError(400, f"The field {'messages' if chat else 'prompt'} is missing.")
        limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ApiError(400, "The field max_tokens is not a positive number.")
        options = asked.get("stream_options")
        return Prompt(
            chat=chat,
            stream=asked.get("stream") is True,
            max_tokens=limit,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            # Words stand in for tokens; the sample has no tokenizer.
            prompt_tokens=len(json.dumps(subject).split()),
            id=self.api.completion_id(chat),
            created=int(time.time()),
        )

    async def complete(self, request: Request, prompt: Prompt) -> None:
        """Make the answer, and stop as soon as nobody reads it."""
        stats = self.api.stats
        stats.generating += 1
        left = False
        try:
            # The watcher's exception cancels the work, and the other way round.
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self.watch())
                if prompt.stream:
                    await self.send_stream(request, prompt)
                else:
                    await self.send_whole(request, prompt)
                watcher.cancel()
            stats.completed += 1
        except* CallerLeftError:
            stats.caller_left += 1
            left = True
        finally:
            stats.generating -= 1
        if left:
            raise CallerLeftError

    async def generate(self, prompt: Prompt) -> AsyncGenerator[str, None]:
        """Yield the tokens at the configured rate, on an even beat rather than with even gaps."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self.api.prefill_s
        step = 1 / self.api.rate if self.api.rate > 0 else 0.0
        for token in tokens_of(prompt.max_tokens):
            await asyncio.sleep(max(0.0, due - loop.time()))
            due += step
            self.api.stats.tokens += 1
            yield token

    async def send_whole(self, request: Request, prompt: Prompt) -> None:
        """Answer without streaming."""
        pieces = [piece async for piece in self.generate(prompt)]
        text = "".join(pieces)
        choice: dict[str, object] = {"index": 0, "finish_reason": finish_reason(prompt)}
        if prompt.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        answer = envelope(prompt, "chat.completion" if prompt.chat else "text_completion")
        answer |= {"choices": [choice], "usage": usage(prompt, len(pieces))}
        await self.send_json(200, answer, keep_alive=request.keep_alive)

    async def send_stream(self, request: Request, prompt: Prompt) -> None:
        """Answer with one server-sent event per token, each sent as soon as it is made."""
        chunked = request.version == "HTTP/1.1"  # an HTTP/1.0 caller reads to the end instead
        fields = [
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream; charset=utf-8",
            "Cache-Control: no-cache",
        ]
        if chunked:
            fields.append("Transfer-Encoding: chunked")
        keep_alive = request.keep_alive and chunked
        fields.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
        await self.send("\r\n".join([*fields, "", ""]).encode())

        async def event(data: str) -> None:
            body = f"data: {data}\n\n".encode()
            await self.send(b"%x\r\n%s\r\n" % (len(body), body) if chunked else body)

        def chunk(delta: dict[str, object], finish: str | None = None) -> str:
            choice: dict[str, object] = {"index": 0, "finish_reason": finish}
            if prompt.chat:
                choice["delta"] = delta
            else:
                choice["text"] = delta.get("content", "")
            answer = envelope(prompt, kind)
            answer["choices"] = [choice]
            # Not OpenAI's: lets a caller on the same machine see how long the way took.
            answer["sent_at"] = time.monotonic()
            return json.dumps(answer)

        kind = "chat.completion.chunk" if prompt.chat else "text_completion"
        count = 0
        if prompt.chat:
            await event(chunk({"role": "assistant", "content": ""}))
        async with contextlib.aclosing(self.generate(prompt)) as pieces:
            async for piece in pieces:
                count += 1
                await event(chunk({"content": piece}))
        await event(chunk({}, finish_reason(prompt)))
        if prompt.include_usage:
            answer = envelope(prompt, kind)
            await event(json.dumps(answer | {"choices": [], "usage": usage(prompt, count)}))
        await event("[DONE]")
        if chunked:
            await self.send(b"0\r\n\r\n")


def envelope(prompt: Prompt, kind: str) -> dict[str, object]:
    """Return the fields that every answer and chunk begins with."""
    return {"id": prompt.id, "object": kind, "created": prompt.created, "model": MODEL}


def finish_reason(prompt: Prompt) -> str:
    """Return why the text ends: told once, or cut at the number of tokens asked for."""
    return "stop" if prompt.max_tokens is None else "length"


def usage(prompt: Prompt, completion_tokens: int) -> dict[str, int]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt.prompt_tokens + completion_tokens,
    }


async def serve(args: argparse.Namespace) -> None:
    """Run one API until cancelled."""
    api = SampleApi(rate=args.rate, prefill_s=args.prefill, api_key=args.api_key)
    port = await api.start(args.host, args.port)
    print(
        f"sample API (canned text, no model) on http://{args.host}:{port}/v1, model {MODEL}",
        flush=True,
    )
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await api.close()


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m pyfrp.demo.llm_api`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pyfrp.demo.llm_api",
        description="A sample OpenAI-compatible API with a canned text.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=4000, help="0 for a free one (default: 4000)")
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second; 0: no limit")
    parser.add_argument("--prefill", type=float, default=0.0, help="seconds before the first token")
    parser.add_argument("--api-key", default="", help="ask callers for this bearer token")
    args = parser.parse_args(argv)
    try:
        asyncio.run(serve(args))
    except KeyboardInterrupt:
        return 0
    except (OSError, OverflowError) as exc:
        print(f"cannot listen on {args.host}:{args.port}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
