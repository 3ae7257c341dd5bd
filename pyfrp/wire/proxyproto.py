"""The PROXY protocol: a header that tells a local service who the real caller is.

Source: HAProxy `doc/proxy-protocol.txt`; frp `pkg/util/net/proxyprotocol.go` (what is written for
which kind of proxy).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

from pyfrp.errors import RemoteWireError

Address: TypeAlias = tuple[str, int]
"""IP address as text, and port."""

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_V1 = 107
"""Longest header in text, with its line end."""
MAX_V2 = 2048
"""Longest binary header that is read; the addresses take 36 bytes, the rest are extensions."""

_V2 = struct.Struct(">12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_FAMILIES = {0x11: (4, False), 0x21: (16, False), 0x12: (4, True), 0x22: (16, True)}


@dataclass(slots=True, frozen=True)
class ProxyHeader:
    """Who talks to whom; both None when the header tells nothing (UNKNOWN, LOCAL)."""

    source: Address | None
    destination: Address | None
    datagram: bool = False


def encode(version: str, source: Address, destination: Address, *, datagram: bool = False) -> bytes:
    """Write a header.

    Args:
        version: `v1` or `v2`, as in `transport.proxyProtocolVersion`.
        source: The caller.
        destination: Where the caller connected to.
        datagram: For a udp or sudp proxy. Text has no word for it and says UNKNOWN, as frp does.

    Raises:
        ValueError: an address that is none, or a port that no address has.
    """
    if version == "v1" and datagram:
        return b"PROXY UNKNOWN\r\n"
    near, far = _ip(source[0]), _ip(destination[0])
    if not (0 <= source[1] <= 65535 and 0 <= destination[1] <= 65535):
        raise ValueError("not a port")
    if near.version != far.version:
        near, far = _mapped(near), _mapped(far)
    if version == "v1":
        line = f"PROXY TCP{near.version} {near} {far} {source[1]} {destination[1]}\r\n"
        return line.encode()
    family = (0x10 if near.version == 4 else 0x20) | (2 if datagram else 1)
    body = near.packed + far.packed + struct.pack(">HH", source[1], destination[1])
    return _V2.pack(SIGNATURE, _PROXY, family, len(body)) + body


def decode(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Read the header at the start of `data`.

    Returns:
        The header and its length in bytes, or None while more bytes are needed.

    Raises:
        RemoteWireError: It is no header, or a malformed or over-long one.
    """
    if data.startswith(SIGNATURE[: len(data)]):
        return _decode_v2(data)
    if not data.startswith(b"PROXY "[: len(data)]):
        raise RemoteWireError("no PROXY header")
    end = data.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise RemoteWireError("PROXY header without an end")
        return None
    return _parse_v1(data[:end]), end + 2


def _parse_v1(line: bytes) -> ProxyHeader:
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return ProxyHeader(None, None)
    try:
        _, family, near, far, near_port, far_port = (word.decode("ascii") for word in words)
        kind = {"TCP4": IPv4Address, "TCP6": IPv6Address}[family]
        return ProxyHeader((str(kind(near)), _port(near_port)), (str(kind(far)), _port(far_port)))
    except (ValueError, KeyError) as exc:
        raise RemoteWireError("malformed PROXY header") from exc


def _port(text: str) -> int:
    port = int(text) if text.isdigit() else -1
    if not 0 <= port <= 65535:
        raise ValueError(text)
    return port


def _decode_v2(data: bytes) -> tuple[ProxyHeader, int] | None:
    if len(data) < _V2.size:
        return None
    _, command, family, length = _V2.unpack_from(data)
    end = _V2.size + length
    if command not in (_LOCAL, _PROXY):
        raise RemoteWireError(f"PROXY header with version and command 0x{command:02x}")
    if end > MAX_V2:
        raise RemoteWireError(f"PROXY header of {end} bytes")
    if len(data) < end:
        return None
    known = _FAMILIES.get(family)
    if command == _LOCAL or known is None:
        # A health check of the proxy itself, or a family that we do not know: nothing is told.
        return ProxyHeader(None, None), end
    size, datagram = known
    if length < 2 * size + 4:
        raise RemoteWireError("PROXY header too short for its addresses")
    body = data[_V2.size : end]
    near, far = ip_address(body[:size]), ip_address(body[size : 2 * size])
    near_port, far_port = struct.unpack_from(">HH", body, 2 * size)
    return ProxyHeader((str(near), near_port), (str(far), far_port), datagram), end


def _ip(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped  # A caller over IPv4 at a dual-stack listener.
    return address


def _mapped(address: IPv4Address | IPv6Address) -> IPv6Address:
    """Lift an address of a mixed pair to IPv6: a header has one family."""
    if isinstance(address, IPv6Address):
        return address
    return IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
