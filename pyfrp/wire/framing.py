"""Frames of wire v1: a type byte, a 64-bit length, a JSON body.

Source: golib `msg/json/pack.go` and `msg/json/process.go` (layout, limit, order of checks).
"""

from __future__ import annotations

import struct

from pyfrp.errors import BadMessage, FrameTooLarge, LocalWireError
from pyfrp.wire.messages import CLASSES, TYPE_BYTES, Message, decode_body, encode_body

MAX_BODY = 10240
"""Longest body that official peers read, in bytes."""

_HEADER = struct.Struct(">Bq")


def encode(msg: Message) -> bytes:
    """Write a whole frame.

    Raises:
        LocalWireError: The body is longer than `MAX_BODY`, so that the peer would close the
            connection. The caller turns it into an answer to whoever supplied the content.
    """
    return frame(type(msg), encode_body(msg))


def frame(cls: type[Message], body: bytes) -> bytes:
    """Put the header on the body of a message of class `cls`. Raises as `encode`."""
    if len(body) > MAX_BODY:
        raise LocalWireError(
            f"{cls.__name__} of {len(body)} bytes: a peer accepts at most {MAX_BODY}"
        )
    return _HEADER.pack(TYPE_BYTES[cls], len(body)) + body


class FrameDecoder:
    """Cuts the bytes of one direction into messages.

    After each `feed`, call `next` until it returns None. Where messages end and something else
    begins (a cipher, a payload), take the rest with `leftover`. It holds what was fed and not yet
    returned, so that a caller who feeds only when `next` returned None holds at most one frame
    and one piece of input.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes from the peer."""
        self._held += data

    def next(self) -> Message | None:
        """Return the next message, or None when its bytes are not all there.

        Raises:
            BadMessage: An unknown type byte (told as soon as it is there) or a bad body.
            FrameTooLarge: A length outside 0..`MAX_BODY`.
            Either leaves the decoder where it was: the connection is beyond help.
        """
        held = self._held
        if len(held) < _HEADER.size:
            if held and held[0] not in CLASSES:
                raise BadMessage(f"unknown message type 0x{held[0]:02x}")
            return None
        kind, length = _HEADER.unpack_from(held)
        cls = CLASSES.get(kind)
        if cls is None:
            raise BadMessage(f"unknown message type 0x{kind:02x}")
        if not 0 <= length <= MAX_BODY:
            raise FrameTooLarge(f"{cls.__name__} announces a body of {length} bytes")
        end = _HEADER.size + length
        if len(held) < end:
            return None
        msg = decode_body(cls, bytes(held[_HEADER.size : end]))
        del held[:end]
        return msg

    def leftover(self) -> bytes:
        """Take the bytes after the last message returned; the decoder is empty then."""
        rest = bytes(self._held)
        self._held = bytearray()
        return rest
