"""A service as those in Python are: an ASGI application under uvicorn, a task for each stream.

vLLM and LiteLLM are built so. A model that batches its requests makes a token for each of them in
every step; then the web server sends them one by one, with all of its own work between two.
The lighter backend does the same almost at once.

    /sse?every_ms=50    an event stream without end, one event at each step, which are 50 ms apart
    anything else       a short answer

The time in an event is that of its step, not the one at which the service came to send it: a tunnel
that takes the processor from the service would seem the faster for it.

Run as `python -m benchmarks.app`: writes its port as one line and ends when its standard input is
closed, so it cannot outlive the harness.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
import time
from typing import Any
from urllib.parse import parse_qs

import uvicorn

from benchmarks.backend import EVENT_AFTER, EVENT_BEFORE

# uvicorn puts the head and the end of a chunk around it.
_BEFORE, _AFTER = EVENT_BEFORE.split(b"\r\n", 1)[1], EVENT_AFTER.removesuffix(b"\r\n")


class Model:
    """Makes a token for each of its requests, whenever so many milliseconds have passed."""

    def __init__(self, every_ms: int) -> None:
        self.requests: set[asyncio.Queue[int]] = set()
        self._every_s = every_ms / 1e3
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            due += self._every_s
            await asyncio.sleep(due - clock())
            now = time.monotonic_ns()
            for request in self.requests:
                request.put_nowait(now)


_models: dict[int, Model] = {}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application. Streams end with their task, when the caller leaves."""
    if scope["path"] != "/sse":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"sample"})
        return
    every_ms = int(parse_qs(scope["query_string"].decode("ascii"))["every_ms"][0])
    if every_ms not in _models:
        _models[every_ms] = Model(every_ms)
    requests = _models[every_ms].requests
    kind = (b"content-type", b"text/event-stream")
    await send({"type": "http.response.start", "status": 200, "headers": [kind]})
    await send({"type": "http.response.body", "body": b": hello\n\n", "more_body": True})
    tokens: asyncio.Queue[int] = asyncio.Queue()
    requests.add(tokens)
    left = asyncio.ensure_future(_until_left(receive))
    left.add_done_callback(lambda _: tokens.put_nowait(0))
    try:
        while step := await tokens.get():
            body = b"%s%019d%s" % (_BEFORE, step, _AFTER)
            await send({"type": "http.response.body", "body": body, "more_body": True})
    finally:
        requests.remove(tokens)
        left.cancel()


async def _until_left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_end_with_input, daemon=True).start()
    gc.disable()  # As in the lighter backend.
    config = uvicorn.Config(application, log_level="error", access_log=False, lifespan="off")
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
