"""The little HTTP/1.1 that the sample API speaks: requests in, JSON and events out.

Source of the rules: RFC 9112. Whatever is ambiguous is refused and ends the connection.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

# A head or a chunk line longer than this is no client of ours.
HEAD_LIMIT_BYTES = 64 * 1024
# Generous for prompts, small enough that a handful of callers cannot fill the memory.
BODY_LIMIT_BYTES = 16 * 1024 * 1024
# How much of the next request may pile up while an answer is being made.
AHEAD_LIMIT_BYTES = 256 * 1024
# How long a kept connection may be idle, and how long a request may take to arrive.
REQUEST_TIMEOUT_S = 75.0
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
}


class ApiError(Exception):
    """An answer in OpenAI's error shape.

    Args:
        status: HTTP status.
        message: For the person who reads it.
        code: OpenAI's machine-readable word, if there is one.
        close: True when the connection cannot carry another request.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.close = close

    def body(self) -> dict[str, object]:
        """Return the JSON object of the answer."""
        return {
            "error": {
                "message": self.message,
                "type": "invalid_request_error",
                "param": None,
                "code": self.code,
            }
        }


class CallerLeftError(Exception):
    """The caller closed its connection; nobody reads what follows."""


@dataclass(slots=True)
class Request:
    """One request: `target` without the query, header names in lower case."""

    method: str
    target: str
    version: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open after the answer (RFC 9112, section 9.3)."""
        wish = self.headers.get("connection", "").lower()
        return "keep-alive" in wish if self.version == "HTTP/1.0" else "close" not in wish


class Connection:
    """Reads requests from one connection and writes answers to it, in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.early = bytearray()  # received, not yet parsed

    # -- receiving

    async def fill(self) -> bool:
        """Wait for more bytes; False at the end of the stream.

        Raises:
            CallerLeftError: the caller reset the connection.
        """
        try:
            data = await self.reader.read(65536)
        except OSError:
            raise CallerLeftError from None
        self.early += data
        return bool(data)

    async def until(self, mark: bytes, status: int) -> bytes:
        """Take the bytes up to and with `mark`; `status` is the answer when there are too many."""
        start = 0
        while (at := self.early.find(mark, start)) < 0:
            if len(self.early) > HEAD_LIMIT_BYTES:
                raise ApiError(status, "The head is too large.", close=True)
            start = max(0, len(self.early) - len(mark) + 1)
            if not await self.fill():
                raise CallerLeftError
        return self.take(at + len(mark))

    async def exactly(self, count: int) -> bytes:
        """Take `count` bytes."""
        while len(self.early) < count:
            if not await self.fill():
                raise CallerLeftError
        return self.take(count)

    def take(self, count: int) -> bytes:
        """Remove the first `count` bytes from what came early."""
        data = bytes(self.early[:count])
        del self.early[:count]
        return data

    async def read_request(self) -> Request | None:
        """Read one request with its body; None when the caller has no more."""
        while not self.early.strip(b"\r\n"):  # blank lines before a request are allowed
            if len(self.early) > HEAD_LIMIT_BYTES:
                raise ApiError(400, "Only blank lines came.")
            if not await self.fill():
                return None
        head = (await self.until(b"\r\n\r\n", 431)).decode("latin-1").strip("\r\n")
        line, *fields = head.split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):
            raise ApiError(400, "The request line is malformed.")
        headers: dict[str, str] = {}
        for text in fields:
            name, colon, value = text.partition(":")
            if not colon or not name or name != name.strip():
                raise ApiError(400, "A header line is malformed.")
            headers[name.lower()] = value.strip()
        request = Request(words[0], words[1].partition("?")[0], words[2], headers)
        if "continue" in headers.get("expect", "").lower():
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.body = await self.read_body(headers)
        return request

    async def read_body(self, headers: dict[str, str]) -> bytes:
        """Read a request's body, of known length or chunked."""
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
                raise ApiError(400, "The length of the body is ambiguous.")
            return await self.read_chunked()
        text = headers.get("content-length", "0")
        if not (text.isascii() and text.isdigit()):
            raise ApiError(400, "The Content-Length is not a number.")
        length = int(text)
        if length > BODY_LIMIT_BYTES:
            raise ApiError(413, f"The body is over {BODY_LIMIT_BYTES} bytes.")
        return await self.exactly(length)

    async def read_chunked(self) -> bytes:
        """Read a chunked body and drop its trailers."""
        body = bytearray()
        while True:
            size_text = (await self.until(b"\r\n", 400)).partition(b";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                raise ApiError(400, "A chunk size is malformed.") from None
            if size < 0 or len(body) + size > BODY_LIMIT_BYTES:
                raise ApiError(413, f"The body is over {BODY_LIMIT_BYTES} bytes.")
            if size == 0:
                while await self.until(b"\r\n", 431) != b"\r\n":
                    pass  # a trailer line
                return bytes(body)
            body += await self.exactly(size)
            if await self.exactly(2) != b"\r\n":
                raise ApiError(400, "A chunk is longer than its size.")

    async def watch(self) -> None:
        """Wait, while an answer is made, until the caller leaves.

        Raises:
            CallerLeftError: the caller closed, which ends the work of the surrounding group.
        """
        while len(self.early) <= AHEAD_LIMIT_BYTES:
            if not await self.fill():
                raise CallerLeftError
        await asyncio.get_running_loop().create_future()  # far ahead: it is cancelled when done

    # -- sending

    async def send(self, data: bytes) -> None:
        """Write, and wait while the caller is slow.

        Raises:
            CallerLeftError: the connection is gone.
        """
        if self.writer.is_closing():
            raise CallerLeftError
        self.writer.write(data)
        try:
            await self.writer.drain()
        except OSError:
            raise CallerLeftError from None

    async def send_json(
        self, status: int, body: object, *, keep_alive: bool, head: bool = False
    ) -> None:
        """Answer with one JSON object; `head` leaves the body out, as for HEAD."""
        data = json.dumps(body).encode()
        fields = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
        ]
        if status == 401:
            fields.append("WWW-Authenticate: Bearer")
        fields.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
        await self.send("\r\n".join([*fields, "", ""]).encode() + (b"" if head else data))
