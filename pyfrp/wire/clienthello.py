"""What a TLS ClientHello asks for, read without being a party to the handshake.

Source: RFC 8446 4.1.2 and 5.1 (layout), RFC 6066 3 (the name). What is refused is what Go's
crypto/tls refuses (`handshake_messages.go`), with which frp reads it (`pkg/util/vhost/https.go`);
other extensions are passed over, as they are the backend's to judge.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyfrp.errors import BadHello

MAX_HELLO_BYTES = 16 * 1024
"""Bytes on the wire up to the hello's end. Real ones have some hundred, with post-quantum keys two
thousand, and a resumed session may bring some more; each waiting connection may hold this much."""

MAX_NAME_BYTES = 255
"""Longest host name there is (RFC 1035 2.3.4)."""

UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
"""The record of the fatal alert 112, as the official server sends it."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16  # RFC 7301, 3.1.
_HOST_NAME = 0
_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_MAX_RECORD = 1 << 14
_PRINTABLE = frozenset(range(0x21, 0x7F))


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client asks for.

    Attributes:
        name: The server's name in lower case, "" for a hello without one.
        alpn: Whether it offers protocols, as all browsers do, and frp's clients do not.
    """

    name: str
    alpn: bool = False


class HelloReader:
    """Finds what is asked for in the first bytes of a connection.

    Attributes:
        raw: Everything that was fed; to be passed on.
    """

    __slots__ = ("_at", "_left", "_message", "raw")

    def __init__(self) -> None:
        self.raw = bytearray()
        self._at = 0  # How much of `raw` was looked at.
        self._left = 0  # Bytes that the current record still has.
        self._message = bytearray()

    def feed(self, data: bytes) -> ClientHello | None:
        """Add bytes; not to be called again once it gave a hello.

        Returns:
            The hello, or None while it is incomplete.

        Raises:
            BadHello: for anything but a ClientHello within the limits. How the bytes were cut
                makes no difference.
        """
        raw = self.raw
        raw += data
        end = min(len(raw), MAX_HELLO_BYTES)
        while self._at < end:
            if not self._left and not self._begin_record(end):
                break
            take = min(self._left, end - self._at)
            self._message += raw[self._at : self._at + take]
            self._at += take
            self._left -= take
            body = self._whole_message()
            if body is not None:
                return _read(body)
        if len(raw) >= MAX_HELLO_BYTES:
            raise BadHello(f"no end of the TLS hello within {MAX_HELLO_BYTES} bytes")
        return None

    def _begin_record(self, end: int) -> bool:
        """Read a record's header; False while it is incomplete."""
        raw, at = self.raw, self._at
        if raw[at] != _HANDSHAKE:
            raise BadHello("not a TLS handshake")
        if end - at < _RECORD_HEADER:
            return False
        if raw[at + 1] != 3:
            raise BadHello("not a version of TLS")
        length = int.from_bytes(raw[at + 3 : at + 5], "big")
        if not 0 < length <= _MAX_RECORD:
            raise BadHello(f"a TLS record of {length} bytes")
        self._left = length
        self._at = at + _RECORD_HEADER
        return True

    def _whole_message(self) -> bytes | None:
        message = self._message
        if message and message[0] != _CLIENT_HELLO:
            raise BadHello("the TLS handshake does not begin with a ClientHello")
        if len(message) < _MESSAGE_HEADER:
            return None
        length = int.from_bytes(message[1:_MESSAGE_HEADER], "big")
        if length > MAX_HELLO_BYTES:
            raise BadHello(f"a TLS hello of {length} bytes; at most {MAX_HELLO_BYTES} are read")
        if len(message) < _MESSAGE_HEADER + length:
            return None
        return bytes(message[_MESSAGE_HEADER : _MESSAGE_HEADER + length])


class _Fields:
    """Takes fields off the front of a structure."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        start = self._at
        self._at = start + size
        if self._at > len(self._data):
            raise BadHello("a field of the TLS hello is cut short")
        return self._data[start : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """A vector whose length is written in `size` bytes before it."""
        return self.take(self.number(size))


def _read(body: bytes) -> ClientHello:
    """Read the body of a ClientHello."""
    hello = _Fields(body)
    hello.take(2 + 32)  # Version and random.
    if len(hello.vector(1)) > 32:
        raise BadHello("the session id of the TLS hello is too long")
    if len(hello.vector(2)) % 2:
        raise BadHello("the list of cipher suites in the TLS hello is malformed")
    hello.vector(1)  # Compression methods.
    if not hello:
        return ClientHello("")
    extensions = _Fields(hello.vector(2))
    if hello:
        raise BadHello("bytes after the end of the TLS hello")
    name = ""
    seen = set()
    while extensions:
        kind = extensions.number(2)
        value = extensions.vector(2)
        if kind in seen:
            raise BadHello(f"extension {kind} comes twice in the TLS hello")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _host_name(value)
    return ClientHello(name, _ALPN in seen)


def _host_name(value: bytes) -> str:
    """The host name in a server_name extension, or "" when it has names of other kinds only."""
    extension = _Fields(value)
    names = _Fields(extension.vector(2))
    if extension or not names:
        raise BadHello("the server name in the TLS hello is malformed")
    found = b""
    while names:
        kind = names.number(1)
        name = names.vector(2)
        if not name or (found and kind == _HOST_NAME):
            raise BadHello("the server name in the TLS hello is empty or comes twice")
        if kind == _HOST_NAME:
            found = name
    if len(found) > MAX_NAME_BYTES or found.endswith(b".") or not _PRINTABLE.issuperset(found):
        raise BadHello("the server name in the TLS hello is not a host name")
    return found.decode("ascii").lower()
