"""Frames of datagrams, written without the detour over a record: one is made per datagram."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable
from functools import lru_cache

from pyfrp.wire import framing
from pyfrp.wire.messages import Message, UDPAddr, UDPPacket, encode_body

Frame = Callable[[type[Message], bytes], bytes]


@lru_cache(maxsize=1024)  # Users send many datagrams each; a flood of addresses must not add up.
def user_part(ip: str, port: int, zone: str) -> bytes:
    """What a frame says of the user whose datagram it carries."""
    return b'"r":' + encode_body(UDPAddr(ip=ip, port=port, zone=zone))


def encode_packet(content: bytes, user: bytes, frame: Frame = framing.frame) -> bytes:
    """The frame of a `UDPPacket`, byte for byte as the version's `encode` writes it.

    By timeit this takes 1.3 us for 64 bytes and 10 us for 7000, `encode` of a record 7 and 63.

    Args:
        user: From `user_part`; empty for a datagram of nobody.
        frame: Of the connection's version.

    Raises:
        LocalWireError: the datagram is too long for a message.
    """
    if content:
        text = b2a_base64(content, newline=False)
        body = b'{"c":"%b",%b}' % (text, user) if user else b'{"c":"%b"}' % text
    else:
        body = b"{%b}" % user
    return frame(UDPPacket, body)
