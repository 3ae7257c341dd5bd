"""A bridge that can tell afterwards whether the last HTTP/1 answer on it is complete.

It reads nothing on the way: its legs only keep the ends of what passes, and those are read when
somebody asks, which is while the client drains.
"""

from __future__ import annotations

from typing import ClassVar

from pyfrp.net.bridge import Bridge, ByteLeg, Leg
from pyfrp.net.endpoint import Endpoint

# What a leg may keep of a chunk. An answer with a longer head counts as unfinished.
KEPT_BYTES = 4096
_TAIL = slice(-7, None)  # A body's last chunk and the CRLF before it.


class HttpLeg(ByteLeg):
    """A leg that keeps the ends of its last turn: of the chunks between two of the other leg.

    Attributes:
        speaking: Whether the last chunk of both legs was this one's.
        opening: The start of the turn's first chunk, where an answer has its head.
        before: How much was received before the turn.
        tail: The last chunk, or the last bytes of a long one.
    """

    __slots__ = ("before", "opening", "speaking", "tail")

    far: HttpLeg

    def __init__(self, near: Endpoint, bridge: Bridge) -> None:
        super().__init__(near, bridge)
        self.speaking = False
        self.opening = self.tail = b""
        self.before = 0

    def data_received(self, data: bytes) -> None:
        # The lines of `Leg` are repeated because a call of it costs more than what is added: by
        # timeit 25 ns to its 110 for a token, 70 for a long chunk.
        if not self.speaking:
            self.speaking = True
            self.far.speaking = False
            self.opening = data[:KEPT_BYTES]
            self.before = self.received
        size = len(data)
        # To keep a short chunk is cheaper than to cut it.
        self.tail = data if size <= KEPT_BYTES else data[_TAIL]
        self.received += size
        self.far.near.write(data)


class HttpBridge(Bridge):
    """A bridge between a server (`near`), which asks, and a service (`far`), which answers."""

    __slots__ = ()

    leg_type: ClassVar[type[Leg]] = HttpLeg
    near: HttpLeg
    far: HttpLeg

    def at_rest(self) -> bool:
        """Whether no request is under way, as far as the bytes that were kept can tell.

        Silence alone does not tell: a model is silent while it reads a long prompt, often after
        the head of its answer. So the answer must be evidently complete. One that ends with its
        connection, or whose head or last chunk came in pieces, counts as unfinished.
        """
        near, far = self.near, self.far
        if near.near.get_write_buffer_size():
            return False  # The server has not taken all of the answer.
        if not far.speaking:
            # Unused: Go's transport may open one and take another that became free meanwhile.
            return not near.speaking
        # Rare; these modules are loaded by clients that drain and by no other.
        from pyfrp.wire.http1 import CHUNKED, LAST_CHUNK, UNTIL_CLOSE, BadHead, next_response_head

        try:
            head = next_response_head(far.opening, near.opening.partition(b" ")[0])
        except BadHead:
            return False
        if head is None or head.status < 200 or head.length == UNTIL_CLOSE:
            return False  # A 101, too: what follows it is not HTTP.
        if head.length == CHUNKED:
            # The CRLF before it tells it from data that ends in "0\r\n". A line of data that is
            # nothing but "0", and last before a long silence, is still taken for it.
            return far.tail == LAST_CHUNK or far.tail.endswith(b"\r\n" + LAST_CHUNK)
        return far.received - far.before == len(head.raw) + head.length
