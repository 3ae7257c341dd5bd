"""The encryption of a wire v2 control connection: key schedule and record layer.

Each direction is a random nonce, then records: length, ciphertext, tag. Records do not align with
frames. The end of a stream is not authenticated.

Source: frp `pkg/proto/wire` of 0.70; RFC 5869 (HKDF); draft-irtf-cfrg-xchacha-03.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pyfrp.errors import FrameTooLarge, LocalWireError, RemoteWireError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

MAX_PLAIN = 65536
"""Most plain bytes in a record."""
TAG_SIZE = 16
NONCE_SIZES = {"aes-256-gcm": 12, "xchacha20-poly1305": 24}
MAX_RECORDS = {"aes-256-gcm": 2**32, "xchacha20-poly1305": 2**64}

CLIENT_TO_SERVER, SERVER_TO_CLIENT = "client-to-server", "server-to-client"

_LENGTH = struct.Struct(">I")
_Cipher: TypeAlias = Callable[[bytes, bytes, bytes], bytes]
"""(nonce, data, associated data) -> sealed or opened data."""


def transcript_hash(client_payload: bytes, server_payload: bytes) -> bytes:
    """Hash the exact payloads of both hello frames, so that tampering with them shows."""
    digest = hashlib.sha256(b"frp wire v2 crypto transcript")
    for label, payload in ((b"client hello", client_payload), (b"server hello", server_payload)):
        digest.update(b"\0" + label + b"\0" + struct.pack(">Q", len(payload)) + payload)
    return digest.digest()


def control_key(token: str, transcript: bytes, algorithm: str, direction: str) -> bytes:
    """Derive the key of one direction (HKDF-SHA256, 32 bytes)."""
    info = f"frp wire v2 control aead {algorithm} {direction}".encode()
    secret = token.encode(errors="surrogateescape")
    pseudorandom = hmac.digest(transcript, secret, "sha256")
    return hmac.digest(pseudorandom, info + b"\x01", "sha256")


class Agreement(NamedTuple):
    """What two hellos come to: a cipher, and the hash of both."""

    algorithm: str
    transcript: bytes

    def key(self, token: str, direction: str) -> bytes:
        """The key of one direction; see `control_key`."""
        return control_key(token, self.transcript, self.algorithm, direction)


class Sealer:
    """One outgoing direction.

    Args:
        key: From `control_key`.
        algorithm: One of `NONCE_SIZES`.
        nonce: Random if not given, which only tests do otherwise.
    """

    __slots__ = ("_nonces", "_prefix", "_seal")

    def __init__(self, key: bytes, algorithm: str, nonce: bytes | None = None) -> None:
        nonce = nonce or os.urandom(NONCE_SIZES[algorithm])
        self._prefix = nonce
        self._nonces = _Nonces(nonce, MAX_RECORDS[algorithm])
        self._seal, _ = _ciphers(key, algorithm)

    def seal(self, data: bytes) -> bytes:
        """Return what to send for `data`, in as few records as possible.

        Raises:
            LocalWireError: The nonces are used up; the connection must end.
        """
        out: list[bytes] = []
        for at in range(0, len(data), MAX_PLAIN):
            piece = data[at : at + MAX_PLAIN]
            if self._prefix:
                out.append(self._prefix)
                self._prefix = b""
            nonce = self._nonces.next()
            if nonce is None:
                raise LocalWireError("no nonce is left on this connection")
            length = _LENGTH.pack(len(piece) + TAG_SIZE)
            out += (length, self._seal(nonce, piece, self._nonces.first + length))
        return b"".join(out)


class Opener:
    """One incoming direction. Holds at most one incomplete record."""

    __slots__ = ("_algorithm", "_held", "_nonces", "_open")

    def __init__(self, key: bytes, algorithm: str) -> None:
        self._algorithm = algorithm
        _, self._open = _ciphers(key, algorithm)
        self._nonces: _Nonces | None = None
        self._held = bytearray()

    def open(self, data: bytes) -> bytes:
        """Return the plain bytes of every record that `data` completes.

        Raises:
            FrameTooLarge: A record of an impossible length.
            RemoteWireError: A record that was not sealed with our key, or not in this place.
        """
        self._held += data
        held, at, out = self._held, 0, []
        if self._nonces is None:
            at = NONCE_SIZES[self._algorithm]
            if len(held) < at:
                return b""
            self._nonces = _Nonces(bytes(held[:at]), MAX_RECORDS[self._algorithm])
        while len(held) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, at)
            if not TAG_SIZE <= length <= MAX_PLAIN + TAG_SIZE:
                raise FrameTooLarge(f"sealed record of {length} bytes")
            start = at + _LENGTH.size
            if len(held) - start < length:
                break
            out.append(self._record(bytes(held[start : start + length]), bytes(held[at:start])))
            at = start + length
        del held[:at]
        return b"".join(out)

    def _record(self, sealed: bytes, length: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        assert self._nonces is not None
        nonce = self._nonces.next()
        if nonce is None:
            raise RemoteWireError("too many sealed records on one connection")
        try:
            return self._open(nonce, sealed, self._nonces.first + length)
        except InvalidTag as exc:
            raise RemoteWireError("sealed record does not open: wrong token or tampering") from exc


class _Nonces:
    """Counts up from the nonce of a stream, as one big-endian number."""

    __slots__ = ("_left", "_value", "first")

    def __init__(self, first: bytes, most: int) -> None:
        self.first = first
        self._value = int.from_bytes(first, "big")
        self._left = most

    def next(self) -> bytes | None:
        """Return the nonce of the next record; None when the numbers wrap or the key is worn."""
        size = len(self.first)
        if not self._left or self._value >> 8 * size:
            return None
        nonce = self._value.to_bytes(size, "big")
        self._value += 1
        self._left -= 1
        return nonce


def _ciphers(key: bytes, algorithm: str) -> tuple[_Cipher, _Cipher]:
    """Return the sealing and the opening function of a key."""
    if algorithm == "aes-256-gcm":
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        cipher = AESGCM(key)
        return cipher.encrypt, cipher.decrypt
    extended = _XChaCha(key)
    return extended.seal, extended.open


class _XChaCha:
    """XChaCha20-Poly1305: the first 16 bytes of a nonce make a key, and the rest is its nonce."""

    __slots__ = ("_cipher", "_key", "_start")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._start = b""
        self._cipher: ChaCha20Poly1305 | None = None

    def seal(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        return self._of(nonce).encrypt(b"\0\0\0\0" + nonce[16:], data, associated)

    def open(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        return self._of(nonce).decrypt(b"\0\0\0\0" + nonce[16:], data, associated)

    def _of(self, nonce: bytes) -> ChaCha20Poly1305:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        # Only the end of the nonce counts up, so this is done once for a stream, nearly always.
        if self._cipher is None or nonce[:16] != self._start:
            self._start = nonce[:16]
            self._cipher = ChaCha20Poly1305(hchacha20(self._key, self._start))
        return self._cipher


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """Derive a 32-byte key from a 32-byte key and 16 bytes of nonce.

    Source: draft-irtf-cfrg-xchacha-03, 2.2; RFC 8439, 2.1 (the quarter round).
    """
    s = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))
    for _ in range(10):
        for column in range(4):
            _quarter(s, column, column + 4, column + 8, column + 12)
        for first in range(4):
            _quarter(s, first, 4 + (first + 1) % 4, 8 + (first + 2) % 4, 12 + (first + 3) % 4)
    return struct.pack("<8I", *s[:4], *s[12:])


def _quarter(s: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) & 0xFFFFFFFF
        turned = s[z] ^ s[x]
        s[z] = (turned << by | turned >> 32 - by) & 0xFFFFFFFF
