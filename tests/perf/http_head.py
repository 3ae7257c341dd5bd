"""Microseconds that a head costs: `python -m tests.perf.http_head` in the project's root.

"cold" reads a head that was not seen before on its connection, "repeat" one that equals the head
before, which is what a kept connection mostly carries. CPU time, best of many short runs, so that
a busy machine disturbs little.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from time import process_time

from pyfrp.wire import http_request
from pyfrp.wire.http1 import (
    ChunkedBody,
    HeadEdit,
    encode_chunk,
    next_request_head,
    next_response_head,
    parse_request_head,
    parse_response_head,
    rewrite_request_head,
    rewrite_response_head,
)


def _head(*lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode()


REQUESTS = {
    "curl GET": _head(
        "GET /v1/models HTTP/1.1", "Host: llm.local", "User-Agent: curl/8.5.0", "Accept: */*"
    ),
    "browser GET": _head(
        "GET /docs/index.html?lang=en HTTP/1.1",
        "Host: llm.example.com:8081",
        "Connection: keep-alive",
        'sec-ch-ua: "Chromium";v="128", "Not;A=Brand";v="24", "Google Chrome";v="128"',
        "sec-ch-ua-mobile: ?0",
        'sec-ch-ua-platform: "Linux"',
        "Upgrade-Insecure-Requests: 1",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/128.0.0.0 Safari/537.36",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
        "image/apng,*/*;q=0.8",
        "Sec-Fetch-Site: none",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept-Language: en-US,en;q=0.9,ko;q=0.8",
        "Cookie: session=0123456789abcdef0123456789abcdef; theme=dark",
    ),
    "openai-SDK POST": _head(
        "POST /v1/chat/completions HTTP/1.1",
        "Host: llm.local",
        "Accept-Encoding: gzip, deflate",
        "Connection: keep-alive",
        "Accept: application/json",
        "Content-Type: application/json",
        "User-Agent: OpenAI/Python 1.99.1",
        "X-Stainless-Lang: python",
        "X-Stainless-Package-Version: 1.99.1",
        "X-Stainless-OS: Linux",
        "X-Stainless-Arch: x64",
        "X-Stainless-Runtime: CPython",
        "X-Stainless-Runtime-Version: 3.11.9",
        "Authorization: Bearer sk-0123456789abcdef0123456789abcdef",
        "X-Stainless-Async: false",
        "x-stainless-retry-count: 0",
        "x-stainless-read-timeout: 600",
        "Content-Length: 172",
    ),
    "behind nginx POST": _head(
        "POST /v1/chat/completions HTTP/1.1",
        "Host: llm.example.com",
        "X-Real-IP: 203.0.113.9",
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-Proto: https",
        "Connection: close",
        "Content-Length: 172",
        "User-Agent: curl/8.5.0",
        "Accept: */*",
        "Content-Type: application/json",
        "Authorization: Bearer sk-0123456789abcdef0123456789abcdef",
    ),
    "websocket GET": _head(
        "GET /ws HTTP/1.1",
        "Host: llm.local",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ),
}
RESPONSES = {
    "uvicorn JSON": _head(
        "HTTP/1.1 200 OK",
        "date: Mon, 01 Sep 2025 10:00:00 GMT",
        "server: uvicorn",
        "content-length: 1744",
        "content-type: application/json",
    ),
    "LiteLLM SSE": _head(
        "HTTP/1.1 200 OK",
        "date: Mon, 01 Sep 2025 10:00:00 GMT",
        "server: uvicorn",
        "x-litellm-call-id: 6f0f0d6e-7e3a-4a55-8f3b-6d2b3d2f1a11",
        "x-litellm-model-id: 0123456789abcdef0123456789abcdef",
        "x-litellm-version: 1.74.0",
        "x-litellm-response-duration-ms: 812.4",
        "cache-control: no-cache",
        "content-type: text/event-stream; charset=utf-8",
        "transfer-encoding: chunked",
    ),
    "llama.cpp JSON": _head(
        "HTTP/1.1 200 OK",
        "Server: llama.cpp",
        "Access-Control-Allow-Origin: ",
        "Content-Length: 1744",
        "Content-Type: application/json; charset=utf-8",
        "Keep-Alive: timeout=5, max=100",
    ),
}


def microseconds(call: Callable[[], object], number: int = 2000, rounds: int = 40) -> float:
    """Return the CPU time of one call: the best round's mean."""
    return min(timeit.repeat(call, number=number, repeat=rounds, timer=process_time)) / number * 1e6


def main() -> None:
    print("| request head | bytes | parse | parse + rewrite | repeat | general reader |")
    print("|---|---|---|---|---|---|")
    for name, data in REQUESTS.items():

        def cold(data: bytes = data) -> bytes:
            return rewrite_request_head(parse_request_head(data), None, b"203.0.113.9")

        last = parse_request_head(data)

        def repeat(data: bytes = data, last: http_request.RequestHead = last) -> bytes:
            head = next_request_head(data, last)
            assert head is not None
            return rewrite_request_head(head, None, b"203.0.113.9")

        def general(data: bytes = data) -> object:
            return http_request._parse_general(data)

        def parse(data: bytes = data) -> object:
            return parse_request_head(data)

        row = " | ".join(f"{microseconds(f):.2f}" for f in (parse, cold, repeat, general))
        print(f"| {name} | {len(data)} | {row} |")

    print()
    print("| response head | bytes | parse | parse + rewrite | and a set header |")
    print("|---|---|---|---|---|")
    edit = HeadEdit(None, {"X-Served-By": "pyfrp"})
    for name, data in RESPONSES.items():

        def parse_one(data: bytes = data) -> object:
            return next_response_head(data, b"POST")

        def whole(data: bytes = data) -> bytes:
            head = parse_response_head(data, b"POST")
            return rewrite_response_head(head, None, keep_alive=True, caller_minor=1)

        def edited(data: bytes = data) -> bytes:
            head = parse_response_head(data, b"POST")
            return rewrite_response_head(head, edit, keep_alive=True, caller_minor=1)

        row = " | ".join(f"{microseconds(f):.2f}" for f in (parse_one, whole, edited))
        print(f"| {name} | {len(data)} | {row} |")

    print()
    print("| chunked body, one feed | microseconds |")
    print("|---|---|")
    token = encode_chunk(b"data: " + b"x" * 180 + b"\n\n")
    walker = ChunkedBody()
    print(f"| one whole chunk of 188 bytes | {microseconds(lambda: walker.feed(token)):.2f} |")
    print(f"| eight of them | {microseconds(lambda: walker.feed(token * 8)):.2f} |")
    within = ChunkedBody()
    within.feed(b"fffffffffffffff\r\n")
    part = bytes(16384)
    print(f"| 16 KiB within a chunk | {microseconds(lambda: within.feed(part)):.2f} |")


if __name__ == "__main__":
    main()
