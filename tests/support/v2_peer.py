"""A small peer of wire protocol v2, of either role, for checking ours and for lying to it.

Written from the specification of the protocol, with other means than pyfrp's and no code of it:
HKDF is the library's, HChaCha20 comes out of the library's ChaCha20, and each frame goes out as two
records, as Go programs write it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.support.frpwire import HOST, login_message

MAGIC = bytes.fromhex("46525000020d0a")
CLIENT_HELLO, SERVER_HELLO, MESSAGE = 1, 2, 16
ALGORITHMS = ("aes-256-gcm", "xchacha20-poly1305")
NAMES = [
    "Login",
    "LoginResp",
    "NewProxy",
    "NewProxyResp",
    "CloseProxy",
    "NewWorkConn",
    "ReqWorkConn",
    "StartWorkConn",
    "NewVisitorConn",
    "NewVisitorConnResp",
    "Ping",
    "Pong",
    "UDPPacket",
    "NatHoleVisitor",
    "NatHoleClient",
    "NatHoleResp",
    "NatHoleSid",
    "NatHoleReport",
]


# --- frames -------------------------------------------------------------------------------


def frame(kind: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">HHI", kind, flags, len(payload)) + payload


def message(name: str, body: Any) -> bytes:
    """A message; `body` is an object, or bytes that are sent as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return frame(MESSAGE, struct.pack(">H", NAMES.index(name) + 1) + data)


def offer(
    random: bytes, algorithms: Sequence[str] = ALGORITHMS, codecs: Sequence[str] = ("json",)
) -> bytes:
    """The payload of a ClientHello."""
    crypto = {"algorithms": list(algorithms), "clientRandom": base64.b64encode(random).decode()}
    capabilities = {"message": {"codecs": list(codecs)}, "crypto": crypto}
    bootstrap = {"transport": "tcp", "tls": False, "tcpMux": False}
    return json.dumps({"bootstrap": bootstrap, "capabilities": capabilities}).encode()


def choice(algorithm: str, random: bytes) -> bytes:
    """The payload of a ServerHello."""
    crypto = {"algorithm": algorithm, "serverRandom": base64.b64encode(random).decode()}
    return json.dumps({"selected": {"message": {"codec": "json"}, "crypto": crypto}}).encode()


# --- keys and records ---------------------------------------------------------------------


def transcript(client: bytes, server: bytes) -> bytes:
    """The hash of both hellos' payloads."""
    text = b"frp wire v2 crypto transcript"
    text += b"\0client hello\0" + len(client).to_bytes(8, "big") + client
    text += b"\0server hello\0" + len(server).to_bytes(8, "big") + server
    return hashlib.sha256(text).digest()


def key(token: str, digest: bytes, algorithm: str, direction: str) -> bytes:
    info = f"frp wire v2 control aead {algorithm} {direction}".encode()
    return HKDF(SHA256(), 32, digest, info).derive(token.encode())


def hchacha20(key_: bytes, nonce: bytes) -> bytes:
    """HChaCha20 is a block of ChaCha20 without its last step, which this takes back."""
    block = Cipher(ChaCha20(key_, nonce), mode=None).encryptor().update(bytes(64))
    words = struct.unpack("<16I", block)
    start = struct.unpack("<4I", b"expand 32-byte k"), struct.unpack("<4I", nonce)
    parts = zip(words[:4] + words[12:], start[0] + start[1], strict=True)
    return struct.pack("<8I", *((word - added) % 2**32 for word, added in parts))


@dataclass
class Records:
    """One direction of a sealed connection.

    Attributes:
        nonce: The stream's; taken from the first bytes where they are read.
        count: Records so far.
    """

    key: bytes
    algorithm: str
    nonce: bytes = b""
    count: int = 0

    @property
    def nonce_size(self) -> int:
        return 12 if self.algorithm == "aes-256-gcm" else 24

    def _cipher(self) -> tuple[AESGCM | ChaCha20Poly1305, bytes]:
        number = int.from_bytes(self.nonce, "big") + self.count
        nonce = number.to_bytes(self.nonce_size, "big")
        if self.algorithm == "aes-256-gcm":
            return AESGCM(self.key), nonce
        return ChaCha20Poly1305(hchacha20(self.key, nonce[:16])), bytes(4) + nonce[16:]

    def seal(self, plain: bytes) -> bytes:
        """One record, after the nonce if it is the first."""
        opening = b""
        if not self.nonce:
            opening = self.nonce = os.urandom(self.nonce_size)
        length = struct.pack(">I", len(plain) + 16)
        cipher, nonce = self._cipher()
        self.count += 1
        return opening + length + cipher.encrypt(nonce, plain, self.nonce + length)

    def open(self, length: bytes, sealed: bytes) -> bytes:
        cipher, nonce = self._cipher()
        self.count += 1
        return cipher.decrypt(nonce, sealed, self.nonce + length)


# --- a connection -------------------------------------------------------------------------


@dataclass
class V2Peer:
    """One connection, on which this end speaks as either role."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    outward: Records | None = None
    inward: Records | None = None
    run_id: str = ""
    _plain: bytearray = field(default_factory=bytearray)

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    def tell(self, name: str, body: Any) -> None:
        """A message: as it is, or in two records once there are keys."""
        data = message(name, body)
        if self.outward is None:
            self.raw(data)
        else:
            self.raw(self.outward.seal(data[:8]) + self.outward.seal(data[8:]))

    async def _take(self, size: int) -> bytes:
        if self.inward is None:
            return await self.reader.readexactly(size)
        while len(self._plain) < size:
            if not self.inward.nonce:
                self.inward.nonce = await self.reader.readexactly(self.inward.nonce_size)
            length = await self.reader.readexactly(4)
            sealed = await self.reader.readexactly(struct.unpack(">I", length)[0])
            self._plain += self.inward.open(length, sealed)
        taken = bytes(self._plain[:size])
        del self._plain[:size]
        return taken

    async def hear_frame(self, limit_s: float = 10.0) -> tuple[int, bytes]:
        """Type and payload of the next frame; raises EOFError or OSError at the end."""
        async with asyncio.timeout(limit_s):
            kind, flags, length = struct.unpack(">HHI", await self._take(8))
            assert flags == 0
            return kind, await self._take(length)

    async def hear(self, limit_s: float = 10.0) -> tuple[str, dict[str, Any]]:
        """The next message."""
        kind, payload = await self.hear_frame(limit_s)
        assert kind == MESSAGE, (kind, payload)
        return NAMES[struct.unpack(">H", payload[:2])[0] - 1], json.loads(payload[2:])

    async def expect(self, name: str, limit_s: float = 10.0) -> dict[str, Any]:
        """The next message of this name; others are passed over."""
        while True:
            heard, body = await self.hear(limit_s)
            if heard == name:
                return body

    def _encrypt(self, role: str, token: str, algorithm: str, digest: bytes) -> None:
        ways = ["client-to-server", "server-to-client"]
        if role == "server":
            ways.reverse()
        self.outward, self.inward = (
            Records(key(token, digest, algorithm, way), algorithm) for way in ways
        )

    # -- as a client

    async def login(
        self,
        token: str,
        *,
        algorithms: Sequence[str] = ALGORITHMS,
        sealed_with: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Log in: the body of the LoginResp.

        Args:
            sealed_with: Stands in for the token where the keys are made.
        """
        hello = offer(os.urandom(32), algorithms)
        body = login_message(token, version="0.70.1", **more)
        self.raw(MAGIC + frame(CLIENT_HELLO, hello) + message("Login", body))
        kind, answer = await self.hear_frame()
        assert kind == SERVER_HELLO
        selected = json.loads(answer)["selected"]
        assert selected["message"] == {"codec": "json"}
        crypto = selected["crypto"]
        assert crypto["algorithm"] == next(a for a in algorithms if a in ALGORITHMS)
        assert len(base64.b64decode(crypto["serverRandom"], validate=True)) == 32
        name, resp = await self.hear()
        assert name == "LoginResp"
        if not resp.get("error"):
            self.run_id = resp["run_id"]
            secret = token if sealed_with is None else sealed_with
            self._encrypt("client", secret, crypto["algorithm"], transcript(hello, answer))
        return resp

    def begin(self, name: str, body: Any) -> None:
        """The first message of a work connection or a visitor's."""
        self.raw(MAGIC + message(name, body))

    # -- as a server

    async def greeted(self) -> tuple[bytes, dict[str, Any]]:
        """What a client sends first on a control connection: its hello's payload, its login."""
        assert await self.reader.readexactly(7) == MAGIC
        kind, hello = await self.hear_frame()
        assert kind == CLIENT_HELLO
        name, login = await self.hear()
        assert name == "Login"
        return hello, login

    async def welcome(
        self, token: str, *, algorithm: str = "", sealed_with: str | None = None
    ) -> dict[str, Any]:
        """Accept a client's login, whose body this returns.

        Args:
            algorithm: One that it offers; the first of these if empty.
        """
        hello, login = await self.greeted()
        algorithm = algorithm or json.loads(hello)["capabilities"]["crypto"]["algorithms"][0]
        answer = choice(algorithm, os.urandom(32))
        self.raw(frame(SERVER_HELLO, answer))
        self.raw(message("LoginResp", {"version": "0.70.1", "run_id": "run-of-the-test"}))
        secret = token if sealed_with is None else sealed_with
        self._encrypt("server", secret, algorithm, transcript(hello, answer))
        return login

    async def opened(self) -> tuple[str, dict[str, Any]]:
        """What a client begins a work connection or a visitor's with."""
        assert await self.reader.readexactly(7) == MAGIC
        return await self.hear()

    # -- ends

    async def closed(self, limit_s: float = 5.0) -> bool:
        """Wait for the far end to close the connection."""
        try:
            async with asyncio.timeout(limit_s):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except (ConnectionError, ssl.SSLError):
            pass  # Closed, and not gently.
        return True

    async def close(self) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass  # Whatever ended it, it has ended.


@asynccontextmanager
async def v2_peering(port: int) -> AsyncIterator[V2Peer]:
    """A peer at a server that runs without tcpMux, in the clear; closed on leaving."""
    peer = V2Peer(*await asyncio.open_connection(HOST, port))
    try:
        yield peer
    finally:
        await peer.close()


@asynccontextmanager
async def v2_server() -> AsyncIterator[tuple[int, asyncio.Queue[V2Peer]]]:
    """A port, and the connections that clients make to it."""
    came: asyncio.Queue[V2Peer] = asyncio.Queue()
    peers: list[V2Peer] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(V2Peer(reader, writer))
        came.put_nowait(peers[-1])

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1], came
    finally:
        server.close()
        for peer in peers:
            await peer.close()
