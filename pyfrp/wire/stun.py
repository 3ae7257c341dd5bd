"""STUN, as far as NAT discovery needs it: a binding request and its answer.

Source: RFC 5389 (messages, attributes, the magic cookie); RFC 3489 and RFC 5780 (the server's
other address); frp `pkg/nathole/discovery.go` (which of them count).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeAlias

from pyfrp.errors import RemoteWireError

Address: TypeAlias = tuple[str, int]
"""IP address as text, and port."""

COOKIE = b"\x21\x12\xa4\x42"
TRANSACTION_SIZE = 12

_HEADER = struct.Struct(">HH4s12s")
_ATTRIBUTE = struct.Struct(">HH")
_REQUEST, _SUCCESS, _FAILURE = 0x0001, 0x0101, 0x0111
_MAPPED, _CHANGED, _XOR_MAPPED, _OTHER = 0x0001, 0x0005, 0x0020, 0x802C
_SIZES = {1: 4, 2: 16}


@dataclass(slots=True, frozen=True)
class Binding:
    """A successful answer."""

    transaction: bytes
    mapped: Address
    """Where the request came from, as the server saw it."""
    other: Address | None = None
    """Another address of the server, to ask a second time."""


def encode_request(transaction: bytes) -> bytes:
    """Write a binding request without attributes.

    Args:
        transaction: 12 random bytes, to match the answer by.
    """
    return _HEADER.pack(_REQUEST, 0, COOKIE, transaction)


def decode_request(data: bytes) -> bytes:
    """Read a binding request; return its transaction id.

    Raises:
        RemoteWireError: It is something else.
    """
    if len(data) < _HEADER.size:
        raise RemoteWireError("datagram too short for STUN")
    kind, _, cookie, transaction = _HEADER.unpack_from(data)
    if kind != _REQUEST or cookie != COOKIE:
        raise RemoteWireError("no STUN binding request")
    return bytes(transaction)


def encode_response(binding: Binding) -> bytes:
    """Write a successful answer, as a server would."""
    attributes = _attribute(_XOR_MAPPED, _xor(_pack(binding.mapped), binding.transaction))
    if binding.other is not None:
        attributes += _attribute(_OTHER, _pack(binding.other))
    return _HEADER.pack(_SUCCESS, len(attributes), COOKIE, binding.transaction) + attributes


def decode_response(data: bytes) -> Binding:
    """Read the answer to a binding request.

    The caller compares the transaction id: another one is an old or a forged answer.

    Raises:
        RemoteWireError: It is no STUN, tells of an error, or names no address.
    """
    if len(data) < _HEADER.size:
        raise RemoteWireError("datagram too short for STUN")
    kind, length, cookie, transaction = _HEADER.unpack_from(data)
    if cookie != COOKIE or length != len(data) - _HEADER.size:
        raise RemoteWireError("no STUN message")
    if kind == _FAILURE:
        raise RemoteWireError("the STUN server refused the request")
    if kind != _SUCCESS:
        raise RemoteWireError(f"STUN message of type 0x{kind:04x} instead of an answer")
    found = _attributes(data)
    if _XOR_MAPPED in found:
        mapped = _unpack(_xor(found[_XOR_MAPPED], transaction))
    elif _MAPPED in found:
        mapped = _unpack(found[_MAPPED])
    else:
        raise RemoteWireError("STUN answer without an address")
    other = found.get(_OTHER) or found.get(_CHANGED)
    return Binding(transaction, mapped, _unpack(other) if other else None)


def _attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes by type; of several of one type the first counts (RFC 5389, 15)."""
    found: dict[int, bytes] = {}
    at = _HEADER.size
    while at < len(data):
        if len(data) - at < _ATTRIBUTE.size:
            raise RemoteWireError("truncated STUN attribute")
        kind, length = _ATTRIBUTE.unpack_from(data, at)
        at += _ATTRIBUTE.size
        if len(data) - at < length:
            raise RemoteWireError("truncated STUN attribute")
        found.setdefault(kind, data[at : at + length])
        at += (length + 3) & ~3
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value


def _pack(address: Address) -> bytes:
    packed = ip_address(address[0]).packed
    return struct.pack(">BBH", 0, 1 if len(packed) == 4 else 2, address[1]) + packed


def _unpack(value: bytes) -> Address:
    if len(value) < 4 or len(value) != 4 + _SIZES.get(value[1], -4):
        raise RemoteWireError("malformed address in a STUN answer")
    return str(ip_address(value[4:])), int.from_bytes(value[2:4], "big")


def _xor(value: bytes, transaction: bytes) -> bytes:
    """Hide or show an address from middleboxes that rewrite addresses wherever they see them."""
    pad = COOKIE[:2] + COOKIE + transaction
    return value[:2] + bytes(a ^ b for a, b in zip(value[2:], pad, strict=False))
