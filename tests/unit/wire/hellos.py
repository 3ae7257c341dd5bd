"""ClientHellos: by hand, with every field open to abuse, and by the TLS library."""

from __future__ import annotations

import ssl


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, value)


def names(*pairs: tuple[int, bytes]) -> bytes:
    """A server_name extension with these kinds and names."""
    entries = b"".join(bytes((kind,)) + vector(2, name) for kind, name in pairs)
    return extension(0, vector(2, entries))


def sni(name: str | bytes) -> bytes:
    return names((0, name.encode() if isinstance(name, str) else name))


def body(
    *extensions: bytes,
    session: bytes = b"",
    suites: bytes = b"\x13\x01\x13\x02",
    compression: bytes = b"\x00",
    listed: bool = True,
) -> bytes:
    """The body of a ClientHello; `listed`: with a list of extensions at all."""
    front = b"\x03\x03" + bytes(range(32)) + vector(1, session)
    front += vector(2, suites) + vector(1, compression)
    return front + (vector(2, b"".join(extensions)) if listed else b"")


def message(content: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + vector(3, content)


def records(handshake: bytes, size: int = 1 << 14) -> bytes:
    """Handshake bytes in records of at most `size`."""
    pieces = [handshake[at : at + size] for at in range(0, len(handshake), size)]
    return b"".join(b"\x16\x03\x01" + vector(2, piece) for piece in pieces)


def alpn(*protocols: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in protocols)))


def hello(name: str | bytes, *more: bytes) -> bytes:
    """A plain hello for a name; `more` are extensions."""
    return records(message(body(extension(10, b"\x00\x02\x00\x1d"), sni(name), *more)))


def library_hello(name: str | None, version: ssl.TLSVersion | None = None) -> bytes:
    """What the TLS library of this Python says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if version is not None:
        context.minimum_version = context.maximum_version = version
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(inward, outward, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outward.read()
