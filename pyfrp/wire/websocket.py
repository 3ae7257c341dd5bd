"""frp's websocket transport: its handshake, and frames as a stream of bytes.

No extensions, no subprotocol; text and binary frames carry bytes alike, because frp 0.65 sends
arbitrary bytes as text.

Source: RFC 6455; frp `pkg/util/net/websocket.go` and golang.org/x/net/websocket (headers and their
order, the mandatory Origin).
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pyfrp.errors import BadHead, FrameTooLarge, HandshakeError, RemoteWireError

PATH = "/~!frp"
MAX_HEAD = 8192
"""Longest handshake head that is read, in bytes."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_DATA = frozenset((TEXT, BINARY))
_CONTROL = frozenset((CLOSE, PING, PONG))
_MAX_CONTROL = 125

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


# --- handshake ---------------------------------------------------------------------------------


def new_key() -> str:
    """Return a random `Sec-WebSocket-Key`."""
    return base64.b64encode(os.urandom(16)).decode()


def accept_key(key: str) -> str:
    """Return the `Sec-WebSocket-Accept` that answers a key."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def encode_request(host: str, key: str) -> bytes:
    """Write the client's handshake.

    Args:
        host: `serverAddr:serverPort`; for wss the name in TLS, without a port.
        key: From `new_key`.
    """
    return (
        f"GET {PATH} HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\n"
        f"Origin: http://{host}\r\n"
        "Sec-WebSocket-Version: 13\r\n"
        "\r\n"
    ).encode()


def encode_response(key: str) -> bytes:
    """Write the server's handshake in answer to a key."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(key)}\r\n"
        "\r\n"
    ).encode()


def head_end(data: bytes) -> int | None:
    """Return where the head at the start of `data` ends, or None while it is not all there.

    Raises:
        BadHead: It is longer than `MAX_HEAD`.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end >= 0:
        return end + 4
    if len(data) >= MAX_HEAD:
        raise BadHead("websocket handshake too long", 431)
    return None


def decode_request(head: bytes) -> str:
    """Check a client's handshake; return its key.

    Raises:
        BadHead: With the status to answer: 400, or 403 for a missing Origin as frps does.
    """
    line, headers = _head(head)
    words = line.split(" ")
    if len(words) != 3 or words[0] != "GET" or words[1] != PATH or words[2] != "HTTP/1.1":
        raise BadHead("no websocket request")
    if not _has_token(headers, "upgrade", "websocket") or not _has_token(
        headers, "connection", "upgrade"
    ):
        raise BadHead("request without an upgrade to websocket")
    if headers.get("sec-websocket-version") != "13":
        raise BadHead("unknown version of websocket")
    key = headers.get("sec-websocket-key", "")
    try:
        size = len(base64.b64decode(key, validate=True))
    except ValueError:
        size = 0
    if size != 16:
        raise BadHead("bad websocket key")
    if not headers.get("origin"):
        raise BadHead("websocket request without an origin", 403)
    return key


def check_response(head: bytes, key: str) -> None:
    """Check a server's handshake.

    Raises:
        HandshakeError: It is no websocket, or not the answer to our key.
    """
    try:
        line, headers = _head(head)
    except BadHead as exc:
        raise HandshakeError("the server's answer to the websocket handshake is no HTTP") from exc
    words = line.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or words[1] != "101":
        raise HandshakeError(f"the server does not switch to websocket: {line[:100]!r}")
    if not _has_token(headers, "upgrade", "websocket"):
        raise HandshakeError("the server switches to something else than websocket")
    if headers.get("sec-websocket-accept") != accept_key(key):
        raise HandshakeError("the server's websocket handshake does not answer ours")


def _head(head: bytes) -> tuple[str, dict[str, str]]:
    try:
        line, *rows = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    except UnicodeDecodeError as exc:
        raise BadHead("websocket handshake is not ASCII") from exc
    headers: dict[str, str] = {}
    for row in rows:
        name, colon, value = row.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip() or name in headers:
            raise BadHead("malformed header in the websocket handshake")
        headers[name] = value.strip(" \t")
    return line, headers


def _has_token(headers: dict[str, str], name: str, token: str) -> bool:
    return token in (part.strip().lower() for part in headers.get(name, "").split(","))


# --- frames ------------------------------------------------------------------------------------


def encode_frame(payload: bytes, *, opcode: int = BINARY, mask: bytes = b"") -> bytes:
    """Write one whole frame.

    Args:
        payload: Any bytes.
        opcode: BINARY, unless a peer must see something else.
        mask: Four random bytes on a client; nothing on a server.
    """
    size, masked = len(payload), 0x80 if mask else 0
    if size <= 125:
        head = bytes((0x80 | opcode, masked | size))
    elif size <= 0xFFFF:
        head = struct.pack(">BBH", 0x80 | opcode, masked | 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, masked | 127, size)
    return head + mask + apply_mask(payload, mask) if mask else head + payload


def apply_mask(data: bytes, mask: bytes, offset: int = 0) -> bytes:
    """Put a mask on, or take it off; `offset` bytes of the payload came before."""
    size = len(data)
    offset %= 4
    pad = (mask[offset:] + mask[:offset]) * (size // 4 + 1)
    # As one large number each: a hundred times faster than byte by byte.
    mixed = int.from_bytes(data, "little") ^ int.from_bytes(pad[:size], "little")
    return mixed.to_bytes(size, "little")


@dataclass(slots=True, frozen=True)
class Control:
    """A control frame: CLOSE (then nothing follows), PING (to be answered) or PONG."""

    opcode: int
    payload: bytes


class FrameDecoder:
    """Turns the frames of one direction into a stream of bytes and control frames.

    Payloads are given on as they come, never collected: a frame may be 2^63 bytes long.

    Args:
        masked: Whether the peer must mask: True on a server.
    """

    __slots__ = ("_control", "_held", "_left", "_mask", "_masked", "_offset", "_open", "closed")

    def __init__(self, *, masked: bool) -> None:
        self._masked = masked
        self._held = bytearray()
        self._left = 0
        self._mask = b""
        self._offset = 0
        self._open = False
        self._control: list[Control] = []
        self.closed = False
        """A close frame came; what follows it is ignored."""

    def decode(self, data: bytes) -> bytes:
        """Return the payload bytes in `data`; control frames wait in `controls`.

        Raises:
            FrameTooLarge: A length that no frame may have.
            RemoteWireError: Another breach of RFC 6455: reserved bits or opcodes, a wrong masking,
                a fragment without a start, a control frame that is fragmented.
        """
        out: list[bytes] = []
        if self._held:
            self._held += data
            data = bytes(self._held)
            self._held.clear()
        at, total = 0, len(data)
        while at < total and not self.closed:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._mask:
                    out.append(apply_mask(piece, self._mask, self._offset))
                    self._offset = (self._offset + len(piece)) % 4
                else:
                    out.append(piece)
                continue
            used = self._begin(data, at)
            if not used:
                self._held += data[at:]
                break
            at += used
        return b"".join(out)

    def controls(self) -> Sequence[Control]:
        """Take the control frames that came since the last call."""
        taken, self._control = self._control, []
        return taken

    def _begin(self, data: bytes, at: int) -> int:
        """Read a head at `at`, and all of a control frame; return the bytes used, or 0."""
        room = len(data) - at
        if room < 2:
            return 0
        first, second = data[at], data[at + 1]
        opcode, final = first & 0x0F, bool(first & 0x80)
        self._check(first, second)
        size, used = second & 0x7F, 2
        if size == 126:
            used, shape = 4, ">H"
        elif size == 127:
            used, shape = 10, ">Q"
        mask_at = used
        if self._masked:
            used += 4
        if room < used:
            return 0
        if size > _MAX_CONTROL:
            (size,) = struct.unpack_from(shape, data, at + 2)
            if size >> 63:
                raise FrameTooLarge("websocket frame of a negative length")
        mask = data[at + mask_at : at + used]
        if opcode in _CONTROL:
            if room < used + size:
                return 0
            payload = data[at + used : at + used + size]
            self._control.append(Control(opcode, apply_mask(payload, mask) if mask else payload))
            self.closed = opcode == CLOSE
            return used + size
        self._open = not final
        self._left, self._mask, self._offset = size, mask, 0
        return used

    def _check(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise RemoteWireError("websocket frame with reserved bits")
        if bool(second & 0x80) != self._masked:
            raise RemoteWireError(
                "websocket frame without a mask" if self._masked else "masked websocket frame"
            )
        if opcode in _CONTROL:
            if not first & 0x80 or second & 0x7F > _MAX_CONTROL:
                raise RemoteWireError("websocket control frame that is fragmented or too long")
        elif opcode == CONTINUATION:
            if not self._open:
                raise RemoteWireError("websocket fragment without a start")
        elif opcode not in _DATA:
            raise RemoteWireError(f"websocket opcode 0x{opcode:x}")
        elif self._open:
            raise RemoteWireError("websocket frame inside a fragmented one")
