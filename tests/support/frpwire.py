"""A small frp peer of its own, for saying things that no honest program says.

It shares no code with pyfrp, so that a mistake in ours cannot hide here. Source of the forms: frp
`pkg/msg/msg.go`, golib `msg/json` and `crypto`, and the yamux specification.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES

HOST = "127.0.0.1"
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: str, body: Any) -> bytes:
    """A control message; `body` is an object, or bytes that are sent as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return kind.encode() + struct.pack(">q", len(data)) + data


def mux(kind: int, flags: int, stream: int, length: int, version: int = 0) -> bytes:
    """The header of a yamux frame."""
    return struct.pack(">BBHII", version, kind, flags, stream & 0xFFFFFFFF, length & 0xFFFFFFFF)


def mux_data(stream: int, data: bytes, flags: int = 0) -> bytes:
    return mux(DATA, flags, stream, len(data)) + data


def auth_key(token: str, timestamp: int) -> str:
    return hashlib.md5(f"{token}{timestamp}".encode(), usedforsecurity=False).hexdigest()


def login_message(token: str, *, at: int | None = None, **more: Any) -> dict[str, Any]:
    """The body of a proper Login, with changes."""
    timestamp = int(time.time()) if at is None else at
    return {
        "version": "0.65.0",
        "os": "linux",
        "arch": "amd64",
        "privilege_key": auth_key(token, timestamp),
        "timestamp": timestamp,
        "client_spec": {},
        "pool_count": 0,
        **more,
    }


class Crypt:
    """Both directions of the control connection's cipher."""

    def __init__(self, token: str) -> None:
        self.key = hashlib.pbkdf2_hmac("sha1", token.encode(), b"frp", 64, 16)
        self._out: Any = None
        self._in: Any = None
        self._iv = b""

    def seal(self, data: bytes) -> bytes:
        if self._out is None:
            iv = os.urandom(16)
            self._out = Cipher(AES(self.key), CFB(iv)).encryptor()
            return iv + bytes(self._out.update(data))
        return bytes(self._out.update(data))

    def open(self, data: bytes) -> bytes:
        if self._in is None:
            self._iv += data
            if len(self._iv) < 16:
                return b""
            data = self._iv[16:]
            self._in = Cipher(AES(self.key), CFB(self._iv[:16])).decryptor()
        return bytes(self._in.update(data))


@dataclass
class Peer:
    """One connection to a bind port; with `mux` it speaks on stream 1 of a session."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    muxed: bool
    crypt: Crypt | None = None
    run_id: str = ""
    _frames: bytearray = field(default_factory=bytearray)
    _stream: bytearray = field(default_factory=bytearray)
    _plain: bytearray = field(default_factory=bytearray)
    _opened: bool = False
    _ended: bool = False

    @classmethod
    async def open(
        cls, port: int, *, muxed: bool = True, tls: bool = False, first_byte: bool = False
    ) -> Peer:
        if tls and not first_byte:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
        else:
            reader, writer = await asyncio.open_connection(HOST, port)
        return cls(reader, writer, muxed)

    # --- bytes ------------------------------------------------------------------------

    def raw(self, data: bytes) -> None:
        """Bytes of the connection itself."""
        self.writer.write(data)

    def say(self, data: bytes) -> None:
        """Bytes of the conversation: on stream 1 with mux."""
        if not self.muxed:
            self.raw(data)
            return
        flags = 0 if self._opened else SYN
        self._opened = True
        for start in range(0, len(data), 60_000):
            self.raw(mux_data(1, data[start : start + 60_000], flags))
            flags = 0

    def tell(self, kind: str, body: Any) -> None:
        """A message, sealed once logged in."""
        data = frame(kind, body)
        self.say(self.crypt.seal(data) if self.crypt else data)

    async def _more(self) -> None:
        """Take bytes from the connection, peeling off the mux; answers pings."""
        if self._ended:
            raise ConnectionError("the stream was closed")
        data = await self.reader.read(65536)
        if not data:
            raise ConnectionError("closed")
        if not self.muxed:
            self._stream += data
            return
        self._frames += data
        while len(self._frames) >= 12:
            _, kind, flags, stream, length = struct.unpack(">BBHII", self._frames[:12])
            size = length if kind == DATA else 0
            if len(self._frames) < 12 + size:
                return
            if kind == DATA and stream == 1:
                self._stream += self._frames[12 : 12 + size]
            elif kind == PING and flags & SYN:
                self.raw(mux(PING, ACK, 0, length))
            del self._frames[: 12 + size]
            if stream == 1 and flags & (FIN | RST):
                self._ended = True

    async def hear(self, limit_s: float = 10.0) -> tuple[str, dict[str, Any]]:
        """The next message.

        Raises:
            ConnectionError: when the connection or the stream is closed instead.
        """
        async with asyncio.timeout(limit_s):
            while True:
                if self._stream and self.crypt:
                    self._plain += self.crypt.open(bytes(self._stream))
                    self._stream.clear()
                source = self._plain if self.crypt else self._stream
                if len(source) >= 9:
                    size = struct.unpack(">q", source[1:9])[0]
                    if len(source) >= 9 + size:
                        kind, body = chr(source[0]), json.loads(source[9 : 9 + size])
                        del source[: 9 + size]
                        return kind, body
                await self._more()

    async def login(self, token: str, **more: Any) -> dict[str, Any]:
        """Log in; returns the body of the LoginResp."""
        self.tell("o", login_message(token, **more))
        kind, body = await self.hear()
        assert kind == "1", kind
        if not body.get("error"):
            self.run_id = body["run_id"]
            self.crypt = Crypt(token)
        return body

    async def ask(self, kind: str, body: Any, answer: str, limit_s: float = 10.0) -> dict[str, Any]:
        """Send a message and wait for one of kind `answer`, passing over others."""
        self.tell(kind, body)
        while True:
            heard, found = await self.hear(limit_s)
            if heard == answer:
                return found

    async def closed(self, limit_s: float = 5.0) -> bool:
        """Wait for the far end to close the connection or the stream."""
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    await self._more()
        except TimeoutError:
            return False
        except (ConnectionError, ssl.SSLError):
            return True

    async def close(self) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass  # Whatever ended it, it has ended.


@asynccontextmanager
async def peering(port: int, **options: Any) -> AsyncIterator[Peer]:
    """A peer that is closed on leaving."""
    peer = await Peer.open(port, **options)
    try:
        yield peer
    finally:
        await peer.close()
