"""frp's stream cipher: AES-128-CFB under a key derived from a password.

Each direction is a random IV of 16 bytes in the clear, then one continuous CFB stream. There is
no integrity protection: what decrypts to nonsense shows only in the layer above.

Source: golib `crypto/encode.go` and `crypto/decode.go`; the salt "frp" is set in frp's
`server/service.go` and `client/service.go`.
"""

from __future__ import annotations

import os
from functools import cache, lru_cache
from hashlib import pbkdf2_hmac
from typing import TYPE_CHECKING

from pyfrp.errors import BadMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.ciphers import CipherContext

IV_SIZE = 16


@lru_cache(maxsize=64)
def derive_key(secret: str) -> bytes:
    """Derive a cipher key (PBKDF2-HMAC-SHA1, 64 rounds, salt "frp").

    Args:
        secret: `auth.token`, or the `secretKey` of a visitor's proxy; may be empty.

    Returns:
        16 bytes, for AES-128.
    """
    return pbkdf2_hmac("sha1", secret.encode(errors="surrogateescape"), b"frp", 64, 16)


@cache
def _library() -> tuple[Callable[..., CipherContext], Callable[..., CipherContext]]:
    """Import the cipher when the first one is made: it costs a start 10 ms, and not all need it.

    Returns:
        Makers of an encryptor and a decryptor from key and IV.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES

    try:
        from cryptography.hazmat.decrepit.ciphers.modes import CFB
    except ImportError:  # older versions have it in the old place only
        from cryptography.hazmat.primitives.ciphers.modes import CFB

    def encryptor(key: bytes, iv: bytes) -> CipherContext:
        return Cipher(AES(key), CFB(iv)).encryptor()

    def decryptor(key: bytes, iv: bytes) -> CipherContext:
        return Cipher(AES(key), CFB(iv)).decryptor()

    return encryptor, decryptor


def load_cipher() -> None:
    """Import the cipher now, rather than while the first peer waits for it."""
    _library()


class Encryptor:
    """One outgoing direction.

    Args:
        key: From `derive_key`.
        iv: 16 bytes; random if not given, which only tests do otherwise.
    """

    __slots__ = ("_iv", "_update")

    def __init__(self, key: bytes, iv: bytes | None = None) -> None:
        self._iv = iv or os.urandom(IV_SIZE)
        self._update = _library()[0](key, self._iv).update

    def encrypt(self, data: bytes) -> bytes:
        """Return what to send for `data`. The first bytes of a direction bring the IV along."""
        if not self._iv or not data:
            return self._update(data)
        iv, self._iv = self._iv, b""
        return iv + self._update(data)


class Decryptor:
    """One incoming direction. Its IV comes with the peer's first bytes, in any pieces."""

    __slots__ = ("_iv", "_key", "_update")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._iv = b""
        self._update: Callable[[bytes], bytes] | None = None

    def decrypt(self, data: bytes) -> bytes:
        """Return the plain bytes that `data` completes; empty while the IV is not all there."""
        if self._update is not None:
            return self._update(data)
        iv = self._iv + data
        if len(iv) < IV_SIZE:
            self._iv = iv
            return b""
        self._update = _library()[1](self._key, iv[:IV_SIZE]).update
        return self._update(iv[IV_SIZE:])


def seal(key: bytes, plain: bytes, iv: bytes | None = None) -> bytes:
    """Encrypt one datagram: IV, then ciphertext."""
    iv = iv or os.urandom(IV_SIZE)
    return iv + _library()[0](key, iv).update(plain)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Decrypt one datagram. A wrong key gives nonsense, not an error.

    Raises:
        BadMessage: Too short to hold an IV.
    """
    if len(sealed) < IV_SIZE:
        raise BadMessage(f"sealed datagram of {len(sealed)} bytes has no room for its IV")
    return _library()[1](key, sealed[:IV_SIZE]).update(sealed[IV_SIZE:])
