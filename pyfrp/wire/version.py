"""The versions of the wire protocol: how the messages of a connection are written.

A connection speaks one version from its first byte to its last message. The client chooses; a
server tells by the first bytes.

Source: frp `pkg/proto/wire/wire.go` of 0.70 (`CheckMagic`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pyfrp.wire import framing
from pyfrp.wire.messages import Message

MAGIC = b"FRP\x00\x02\r\n"
"""What a client sends first on each connection of version 2. An older server closes at its first
byte, which is no type of message."""


class Hello(Message):
    """A hello of version 2 as it came: its exact bytes enter the keys. See `v2`.

    Attributes:
        kind: The type of the frame.
        payload: Its JSON.
    """

    kind: int = 0
    payload: bytes = b""


class Decoder(Protocol):
    """Cuts the bytes of one direction into messages, as `framing.FrameDecoder` does."""

    def feed(self, data: bytes) -> None: ...
    def next(self) -> Message | None: ...
    def leftover(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Version:
    """How messages are written.

    Attributes:
        name: As `transport.wireProtocol` has it.
        magic: What a client sends before its first message.
        encode: Writes a message; raises LocalWireError when no peer would read it.
        frame: Writes a message whose body is written already; raises alike.
        decoder: Makes what reads one direction, after the magic.
    """

    name: str
    magic: bytes
    encode: Callable[[Message], bytes]
    frame: Callable[[type[Message], bytes], bytes]
    decoder: Callable[[], Decoder]


V1 = Version("v1", b"", framing.encode, framing.frame, framing.FrameDecoder)


def load_version(name: str) -> Version:
    """The version that `transport.wireProtocol` names, `v1` or `v2`."""
    if name == V1.name:
        return V1
    from pyfrp.wire.v2 import V2  # not at start-up: most connections are of version 1

    return V2


class FirstDecoder:
    """Stands in for a decoder until the first bytes of a connection tell its version.

    They are waited for only while they leave it open, so that one byte of version 1 is enough.

    Args:
        on_known: Called once, from `feed`, with the version and its decoder, which has been fed
            everything but the magic and is to be used from then on.
    """

    __slots__ = ("_held", "_on_known")

    def __init__(self, on_known: Callable[[Version, Decoder], None]) -> None:
        self._on_known = on_known
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Add bytes from the peer. Raises nothing: what is wrong with them the decoder will say."""
        held = self._held = self._held + data
        if MAGIC.startswith(held) and held != MAGIC:
            return
        version = V1
        if held.startswith(MAGIC):
            version = load_version("v2")
            held = held[len(MAGIC) :]
        decoder = version.decoder()
        decoder.feed(held)
        self._held = b""
        self._on_known(version, decoder)

    def next(self) -> None:
        """Nothing, so far."""
        return

    def leftover(self) -> bytes:
        """Take what came so far."""
        held, self._held = self._held, b""
        return held
