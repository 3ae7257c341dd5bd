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
import re
from collections.abc import Callable, Sequence
from struct import Struct

from pyfrp.errors import BadHead, FrameTooLarge, HandshakeError, RemoteWireError

PATH = "/~!frp"
MAX_HEAD = 8192
"""Longest handshake head that is read, in bytes."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_DATA = frozenset((TEXT, BINARY))
_CONTROL = frozenset((CLOSE, PING, PONG))
_MAX_CONTROL = 125

_SHORT, _LONG = Struct(">H"), Struct(">Q")
_SHORT_HEAD, _LONG_HEAD = Struct(">BBH"), Struct(">BBQ")

_PHRASES = {400: "Bad Request", 403: "Forbidden", 431: "Request Header Fields Too Large"}
_STATUS = re.compile(r"[1-9][0-9]{2}")
_TLS_STARTS = (b"\x15\x03", b"\x16\x03")
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

    Headers that are not a websocket's own are passed over, whatever they are: proxies on the way
    add theirs, nginx also speaks HTTP/1.0.

    Raises:
        BadHead: With the status to answer: 400, or 403 for a missing Origin as frps does.
    """
    line, headers = _head(head)
    words = line.split(" ")
    path = words[1].partition("?")[0] if len(words) == 3 else ""
    if words[0] != "GET" or path != PATH or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadHead("no websocket request")
    if not _has_token(headers, "upgrade", "websocket") or not _has_token(
        headers, "connection", "upgrade"
    ):
        raise BadHead(
            "request without an upgrade to websocket; a proxy on the way has to pass on the "
            "headers Upgrade and Connection"
        )
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


def encode_refusal(status: int, reason: str) -> bytes:
    """Write the server's answer to a handshake that `decode_request` refused."""
    body = f"{reason}\n".encode()
    return (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Sec-WebSocket-Version: 13\r\n"
        "Connection: close\r\n"
        "\r\n"
    ).encode() + body


_TRY = {
    400: 'either the port speaks TLS and wants transport.protocol = "wss", or it takes no '
    "websockets",
    401: "something on the way asks for a password; if it is a proxy, name it in "
    "transport.proxyURL with user:password@",
    403: 'something on the way forbids it; try transport.protocol = "wss", which it cannot read',
    404: f"a web server answers that does not know {PATH}; have it pass that path on to frps",
    405: f"a web server answers that does not know {PATH}; have it pass that path on to frps",
    407: "a proxy on the way asks for a password; name it in transport.proxyURL with "
    "user:password@",
    502: "a reverse proxy answers that does not reach frps; check that frps runs and that the "
    "proxy passes requests on to its bindPort",
    504: "a reverse proxy answers that has to wait for frps for too long; check that it passes "
    "requests on to its bindPort",
}
_TRY[503] = _TRY[502]
_TRY_PAGE = (
    "that is a page, perhaps a login page or a block page of something on the way; "
    "a reverse proxy in front of frps has to pass on the headers Upgrade and Connection"
)
_TRY_REDIRECT = 'use that address; for https:// set transport.protocol = "wss" and its port'


def check_response(head: bytes, key: str) -> None:
    """Check a server's handshake.

    Raises:
        HandshakeError: It is no websocket, or not the answer to our key. The text says who
            answers what, and what to try.
    """
    if head.startswith(_TLS_STARTS):
        raise HandshakeError('the server speaks TLS on this port; use transport.protocol = "wss"')
    try:
        line, headers = _head(head)
    except BadHead as exc:
        raise HandshakeError("the server's answer to the websocket handshake is no HTTP") from exc
    words = line.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not _STATUS.fullmatch(words[1]):
        raise HandshakeError("the server's answer to the websocket handshake is no HTTP")
    if words[1] != "101":
        raise HandshakeError(_refusal(int(words[1]), " ".join(words[1:]), headers))
    if not _has_token(headers, "upgrade", "websocket"):
        raise HandshakeError("the server switches to something else than websocket")
    if headers.get("sec-websocket-accept") != accept_key(key):
        raise HandshakeError("the server's websocket handshake does not answer ours")


def _refusal(status: int, reason: str, headers: dict[str, str]) -> str:
    """What came in place of a 101, from whom, and what to try."""
    culprit = headers.get("via") or headers.get("server")
    text = f"the websocket handshake was answered with {_shown(reason)}"
    if culprit:
        text += f" by {_shown(culprit)}"
    hint = _TRY.get(status, "")
    if 200 <= status < 300:
        hint = _TRY_PAGE
    elif 300 <= status < 400:
        where = _shown(headers.get("location", ""))
        text += f" to {where}" if where else ""
        hint = _TRY_REDIRECT if where else _TRY_PAGE
    return f"{text}: {hint}" if hint else text


def _shown(text: str) -> str:
    """A peer's words, fit for a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:100])


def _head(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line, and the headers by lower-case name; those of one name are joined."""
    # Whatever bytes a proxy puts into a header of its own, they are not ours to judge.
    line, *rows = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    headers: dict[str, str] = {}
    for row in rows:
        name, colon, value = row.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip():
            raise BadHead("malformed header in the websocket handshake")
        value = value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
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
    head = _head_of(opcode, len(payload), mask)
    return head + (_xor(payload, mask) if mask else payload)


def encode_pieces(
    pieces: Sequence[bytes | memoryview], *, mask: bytes = b""
) -> list[bytes | memoryview]:
    """Write one whole binary frame of a payload in pieces, of which only the first is copied twice.

    Args:
        pieces: At least one.
        mask: As for `encode_frame`.
    """
    out = list(pieces)
    if mask:
        offset = 0
        for index, piece in enumerate(pieces):
            out[index] = apply_mask(piece, mask, offset)
            offset += len(piece)
    out[0] = _head_of(BINARY, sum(map(len, pieces)), mask) + out[0]
    return out


def _head_of(opcode: int, size: int, mask: bytes) -> bytes:
    masked = 0x80 if mask else 0
    if size <= 125:
        head = bytes((0x80 | opcode, masked | size))
    elif size <= 0xFFFF:
        head = _SHORT_HEAD.pack(0x80 | opcode, masked | 126, size)
    else:
        head = _LONG_HEAD.pack(0x80 | opcode, masked | 127, size)
    return head + mask


def apply_mask(data: bytes | memoryview, mask: bytes, offset: int = 0) -> bytes:
    """Put a mask on, or take it off; `offset` bytes of the payload came before."""
    offset %= 4
    if offset:
        mask = mask[offset:] + mask[:offset]
    return _xor(data, mask)


def xor(data: bytes | memoryview, mask: bytes) -> bytes:
    """The mask in Python alone, for where there is no compiled one.

    As one large number each: 2 ns a byte, where the compiled one takes 0.03 ns; splitting into
    four for `bytes.translate` saves a quarter of it from 16 KiB on and costs as much below 1 KiB
    (`tests/perf/websocket_mask.py`).
    """
    size = len(data)
    words, rest = divmod(size, 4)
    pad = mask * words + mask[:rest]
    mixed = int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")
    return mixed.to_bytes(size, "little")


def _compiled() -> Callable[[bytes | memoryview, bytes], bytes]:
    """The fastest way to XOR that is installed."""
    try:
        # Masks are the one thing here whose cost goes with the bytes: all of a tunnel over TLS
        # takes 2 ns of CPU for each (`make bench`, row up).
        from websockets.speedups import apply_mask
    except ImportError:
        return xor
    return apply_mask


_xor = _compiled()


class FrameDecoder:
    """Turns the frames of one direction into a stream of bytes.

    Payloads are given on as they come, never collected: a frame may be 2^63 bytes long.

    Args:
        masked: Whether the peer must mask: True on a server.

    Attributes:
        ping: The payload of the last ping that was not taken with `take_ping`. Only that one has
            to be answered (RFC 6455, 5.5.3), so that a flood of them leaves nothing here.
        closed: The payload of the close frame that came; what follows it is ignored.
    """

    __slots__ = ("_held", "_left", "_mask", "_masked", "_offset", "_open", "closed", "ping")

    def __init__(self, *, masked: bool) -> None:
        self._masked = masked
        self._held = b""
        self._left = 0
        self._mask = b""
        self._offset = 0
        self._open = False
        self.ping: bytes | None = None
        self.closed: bytes | None = None

    def decode(self, data: bytes | memoryview) -> bytes:
        """Return the payload bytes in `data`; of a view nothing is kept.

        Raises:
            FrameTooLarge: A length that no frame may have.
            RemoteWireError: Another breach of RFC 6455: reserved bits or opcodes, a wrong masking,
                a fragment without a start, a control frame that is fragmented.
        """
        out: list[bytes] = []
        if self._held:
            data, self._held = self._held + data, b""
        at, total = 0, len(data)
        view = memoryview(data)
        while at < total and self.closed is None:
            left = self._left
            if left:
                end = min(at + left, total)
                size = end - at
                self._left = left - size
                if self._mask:
                    out.append(apply_mask(view[at:end], self._mask, self._offset))
                    self._offset += size
                else:
                    out.append(bytes(view[at:end]))
                at = end
                continue
            used = self._begin(view, at)
            if not used:
                self._held = bytes(view[at:])
                break
            at += used
        return out[0] if len(out) == 1 else b"".join(out)

    def take_ping(self) -> bytes:
        """What to answer with a pong, once `ping` is there."""
        taken, self.ping = self.ping or b"", None
        return taken

    def _begin(self, data: memoryview, at: int) -> int:
        """Read a head at `at`, and all of a control frame; return the bytes used, or 0."""
        room = len(data) - at
        if room < 2:
            return 0
        first, second = data[at], data[at + 1]
        opcode = first & 0x0F
        self._check(first, second)
        size, used = second & 0x7F, 2
        if size == 126:
            used, shape = 4, _SHORT
        elif size == 127:
            used, shape = 10, _LONG
        mask_at = used
        if self._masked:
            used += 4
        if room < used:
            return 0
        if size > _MAX_CONTROL:
            (size,) = shape.unpack_from(data, at + 2)
            if size >> 63:
                raise FrameTooLarge("websocket frame of a negative length")
        mask = bytes(data[at + mask_at : at + used])
        if opcode in _CONTROL:
            if room < used + size:
                return 0
            payload = bytes(data[at + used : at + used + size])
            if opcode != PONG:  # We ask for none.
                payload = apply_mask(payload, mask) if mask else payload
                if opcode == PING:
                    self.ping = payload
                else:
                    self.closed = payload
            return used + size
        self._open = not first & 0x80
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
