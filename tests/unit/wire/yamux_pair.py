"""Two yamux sessions in memory, a clock that tests turn, and raw frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyfrp.wire.yamux import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_SIZE,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    Session,
    Stream,
)

KIB = 1024
MIB = 1024 * KIB

# A period that is no divisor of any window or slice, so that moved bytes show.
_BLOCK = bytes((i * i + 7 * i) % 251 for i in range(65_521))


def pattern(seed: int, start: int, size: int) -> bytes:
    """Bytes `start` to `start + size` of an endless stream that differs for each seed."""
    at = (seed * 7919 + start) % len(_BLOCK)
    repeats = (at + size) // len(_BLOCK) + 1
    return (_BLOCK * repeats)[at : at + size]


class Recorder(Stream):
    """A stream that notes what happens to it; hooks may be set to act within a callback."""

    __slots__ = ("chunks", "drained", "ends", "full", "hook", "resets")

    def __init__(self, session: Session[Any], stream_id: int) -> None:
        super().__init__(session, stream_id)
        self.chunks: list[bytes] = []
        self.ends = 0
        self.resets = 0
        self.full = 0
        self.drained = 0
        self.hook: Callable[[Recorder, bytes], None] | None = None

    @property
    def received(self) -> bytes:
        return b"".join(self.chunks)

    def on_data(self, chunk: bytes) -> None:
        assert chunk
        assert type(chunk) is bytes
        assert not self.ends, "data after the end"
        assert not self.resets, "data after a reset"
        self.chunks.append(chunk)
        if self.hook is not None:
            self.hook(self, chunk)

    def on_end(self) -> None:
        assert not self.resets
        self.ends += 1

    def on_reset(self) -> None:
        self.resets += 1

    def on_full(self) -> None:
        self.full += 1

    def on_drained(self) -> None:
        self.drained += 1


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0


class Side:
    """One session with its streams, as a test sees it."""

    def __init__(self, *, client: bool, clock: Clock, **settings: Any) -> None:
        self.clock = clock
        self.accepted: list[Recorder] = []
        self.on_accept: Callable[[Recorder], None] | None = None
        self.wanted_output = 0
        settings.setdefault("on_stream", self._accept)
        self.session: Session[Recorder] = Session(
            client=client,
            make_stream=Recorder,
            on_output=self._output,
            now=clock.now,
            **settings,
        )

    def _accept(self, stream: Recorder) -> None:
        self.accepted.append(stream)
        if self.on_accept is not None:
            self.on_accept(stream)

    def _output(self) -> None:
        self.wanted_output += 1

    def open(self) -> Recorder:
        return self.session.open()

    def feed(self, data: bytes) -> None:
        self.session.feed(data, self.clock.now)

    def take(self, *, saturated: bool = False) -> bytes:
        output = self.session.take_output(saturated=saturated)
        return output if isinstance(output, bytes) else b"".join(output)

    def frames(self) -> list[Frame]:
        """Take everything that may leave, as frames."""
        found: list[Frame] = []
        while data := self.take():
            found += frames_of(data)
        return found


def linked(**settings: Any) -> tuple[Side, Side]:
    """A client and a server session on one clock; `exchange` carries their bytes."""
    clock = Clock()
    return (
        Side(client=True, clock=clock, **settings),
        Side(client=False, clock=clock, **settings),
    )


def exchange(
    near: Side, far: Side, cut: Callable[[bytes], list[bytes]] = lambda data: [data]
) -> None:
    """Carry bytes both ways until neither side has any left."""
    busy = True
    while busy:
        busy = False
        for source, sink in ((near, far), (far, near)):
            while data := source.take():
                busy = True
                for piece in cut(data):
                    if piece:
                        sink.feed(piece)


def open_pair(near: Side, far: Side) -> tuple[Recorder, Recorder]:
    """Open a stream from `near`; both of its ends, acknowledged."""
    stream = near.open()
    exchange(near, far)
    return stream, far.session.streams[stream.id]


@dataclass(frozen=True)
class Frame:
    """One frame as read by the tests, not by the session."""

    kind: int
    flags: int
    stream: int
    length: int
    body: bytes = b""


def iter_frames(data: bytes) -> Iterator[Frame]:
    """Cut bytes into frames; the last must be whole."""
    at = 0
    while at < len(data):
        version_type_flags, stream, length = HEADER.unpack_from(data, at)
        kind, flags = version_type_flags >> 16, version_type_flags & 0xFFFF
        at += HEADER_SIZE
        body = data[at : at + length] if kind == 0 else b""
        at += len(body)
        assert kind or len(body) == length
        yield Frame(kind, flags, stream, length, body)


def frames_of(data: bytes) -> list[Frame]:
    return list(iter_frames(data))


# -- raw frames ---------------------------------------------------------------------------------


def raw(word: int, stream: int, length: int) -> bytes:
    return HEADER.pack(word, stream, length)


def data_frame(stream: int, body: bytes, flags: int = 0) -> bytes:
    return raw(DATA | flags, stream, len(body)) + body


def syn(stream: int, delta: int = 0) -> bytes:
    return raw(WINDOW_UPDATE | SYN, stream, delta)


def ack(stream: int, delta: int = 0) -> bytes:
    return raw(WINDOW_UPDATE | ACK, stream, delta)


def fin(stream: int) -> bytes:
    return raw(WINDOW_UPDATE | FIN, stream, 0)


def rst(stream: int) -> bytes:
    return raw(WINDOW_UPDATE | RST, stream, 0)


def credit(stream: int, delta: int) -> bytes:
    return raw(WINDOW_UPDATE, stream, delta)


def ping(number: int, flags: int = SYN) -> bytes:
    return raw(PING | flags, 0, number)


def go_away(code: int) -> bytes:
    return raw(GO_AWAY, 0, code)
