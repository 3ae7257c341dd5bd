"""Where the body of a message ends, told piece by piece and without keeping any.

Each kind has `feed(data)`, which returns what of `data` is to be passed on, and then `done`, and
`rest`: the bytes beyond the end, which belong to the next message or to nobody. Source: RFC 9112,
section 6.3.
"""

from __future__ import annotations

from typing import Protocol

from pyfrp.wire.http1 import CHUNKED, UNTIL_CLOSE, ChunkedBody, ChunkedDecoder


class Body(Protocol):
    """A body on its way through."""

    done: bool
    rest: bytes

    def feed(self, data: bytes) -> bytes:
        """What to pass on. Raises BadHead for framing that cannot be followed."""
        ...


class SizedBody:
    """A body of known length."""

    __slots__ = ("_left", "done", "rest")

    def __init__(self, size: int) -> None:
        self._left = size
        self.done = not size
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data
        self.done = True
        if left:
            self.rest = data[left:]
            data = data[:left]
        self._left = 0
        return data


class ChunksAsTheyAre:
    """A chunked body for somebody who reads chunks: checked, and passed on unchanged."""

    __slots__ = ("_walker", "done", "rest")

    def __init__(self, status: int) -> None:
        self._walker = ChunkedBody(status)
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        walker = self._walker
        used = walker.feed(data)
        if walker.done:
            self.done = True
            if used < len(data):
                self.rest = data[used:]
                return data[:used]
        return data


class ChunksUnwrapped:
    """A chunked body for somebody who does not read chunks (HTTP/1.0)."""

    __slots__ = ("_decoder", "done", "rest")

    def __init__(self, status: int) -> None:
        self._decoder = ChunkedDecoder(status)
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        payload, used = self._decoder.feed(data)
        self.done = self._decoder.done
        self.rest = data[used:]
        return payload


class OpenBody:
    """A body that ends with its connection."""

    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        return data


def body_of(length: int, *, status: int, unwrap: bool = False) -> Body:
    """The body of a message whose head says `length`.

    Args:
        length: Bytes, CHUNKED or UNTIL_CLOSE.
        status: Of the answer to bad framing: 400 for a caller's, 502 for an upstream's.
        unwrap: Whether chunks are to be taken apart.
    """
    if length == CHUNKED:
        return ChunksUnwrapped(status) if unwrap else ChunksAsTheyAre(status)
    return OpenBody() if length == UNTIL_CLOSE else SizedBody(length)
