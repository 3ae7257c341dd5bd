"""What a caller's HTTP/2 frames are worth, before the state machine spends time on them.

A frame of nine bytes may cost as much as one of sixteen thousand. So the heads of frames are read
here first: those that bring nothing are counted, those that mean nothing to a server are dropped,
and the rest is handed on in whole frames, a bounded number at a time. The state machine itself
would take frames of up to 16 MiB before it complains about their length.

No I/O; the time is an argument. Source of the rules: RFC 9113.
"""

from __future__ import annotations

from collections.abc import Container
from enum import IntEnum

from pyfrp.errors import RemoteWireError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
# SETTINGS_MAX_FRAME_SIZE is left at its default: larger frames only delay other streams.
MAX_FRAME_BYTES = 16384
# A request's fields, compressed, HEADERS and all its CONTINUATIONs together.
MAX_BLOCK_BYTES = 65536
# Frames per turn of the loop; whatever a caller sends at once, others get their turn in between.
# A request that is refused at once costs 0.3 ms, a frame of an upload a tenth of that.
FRAMES_PER_TURN = 32

# What a caller may cost without bringing anything. Chatty libraries stay far below: a PING and two
# WINDOW_UPDATEs for each DATA frame are earned back by that frame. A person who leaves a page with
# a hundred open streams may cancel them all at once.
CALM = 1000.0
CALM_PER_S = 100.0
RESET_COST = 4
EARNED = 3  # By each frame of an answer.


class Frame(IntEnum):
    """Frame types that a server understands (RFC 9113, 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(IntEnum):
    """Why a stream or connection ends (RFC 9113, 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    ENHANCE_YOUR_CALM = 11


END_STREAM = ACK = 1
END_HEADERS = 4


class Http2Error(RemoteWireError):
    """The caller broke a rule that costs it its connection.

    Args:
        reason: What it did.
        code: For the GOAWAY frame.
    """

    def __init__(self, reason: str, code: Code) -> None:
        self.code = code
        super().__init__(reason)


def goaway(last_stream: int, code: Code) -> bytes:
    """A GOAWAY frame: streams up to `last_stream` were looked at, later ones were not."""
    payload = last_stream.to_bytes(4, "big") + code.to_bytes(4, "big")
    return b"\0\0\x08" + bytes((Frame.GOAWAY,)) + bytes(5) + payload


class FrameGate:
    """Everything that one caller sends, up to what the state machine should see.

    `feed` bytes as they come, then `take` until it gives nothing.

    Args:
        now: Monotonic seconds.
        open_streams: The ids of the streams that are served at the moment.

    Attributes:
        goaway: The code of the caller's GOAWAY once it came: no new streams follow.
        highest: The highest stream id of a HEADERS frame; to be kept by the owner.
    """

    __slots__ = (
        "_at",
        "_block",
        "_block_stream",
        "_calm",
        "_data",
        "_open",
        "_settled",
        "_started",
        "goaway",
        "highest",
    )

    def __init__(self, now: float, open_streams: Container[int]) -> None:
        self.goaway: int | None = None
        self.highest = 0
        self._open = open_streams
        self._data = b""
        self._started = False  # The preface has come.
        self._settled = False  # And the SETTINGS frame that must follow it.
        self._block_stream = 0  # Whose field block goes on in a CONTINUATION.
        self._block = 0
        self._calm = CALM
        self._at = now

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._data = self._data + data if self._data else data

    @property
    def ready(self) -> bool:
        """Whether `take` has something to look at."""
        data = self._data
        if not self._started:
            return len(data) >= len(PREFACE)
        return len(data) >= HEAD_BYTES and len(data) >= HEAD_BYTES + int.from_bytes(data[:3], "big")

    def take(self, now: float) -> bytes:
        """The next frames for the state machine, at most `FRAMES_PER_TURN`; b"" for none.

        Raises:
            Http2Error: for what costs a caller its connection.
        """
        self._calm = min(CALM, self._calm + (now - self._at) * CALM_PER_S)
        self._at = now
        data = self._data
        size = len(data)
        start = at = 0
        if not self._started:
            if data[: len(PREFACE)] != PREFACE[:size]:
                raise Http2Error("the connection preface is malformed", Code.PROTOCOL_ERROR)
            if size < len(PREFACE):
                return b""
            self._started = True
            at = len(PREFACE)
        runs: list[bytes] = []
        for _ in range(FRAMES_PER_TURN):
            if size - at < HEAD_BYTES:
                break
            length = int.from_bytes(data[at : at + 3], "big")
            if length > MAX_FRAME_BYTES:
                raise Http2Error(
                    f"a frame of more than {MAX_FRAME_BYTES} bytes", Code.FRAME_SIZE_ERROR
                )
            end = at + HEAD_BYTES + length
            if end > size:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
            kind = data[at + 3]
            if self._admit(kind, data[at + 4], stream, length):
                at = end
                continue
            if kind == Frame.GOAWAY:
                self.goaway = int.from_bytes(data[at + 13 : at + 17], "big")
            runs.append(data[start:at])
            start = at = end
        runs.append(data[start:at])
        self._data = data[at:]
        return runs[0] if len(runs) == 1 else b"".join(runs)

    def charge(self, cost: float = 1) -> None:
        """Count something that cost us and brought nothing.

        Raises:
            Http2Error: when it is too much.
        """
        self._calm -= cost
        if self._calm < 0:
            raise Http2Error(
                "too many frames or requests that bring nothing", Code.ENHANCE_YOUR_CALM
            )

    def earn(self, frames: int) -> None:
        """Count frames of an answer, which the caller may acknowledge."""
        self._calm = min(CALM, self._calm + EARNED * frames)

    def _admit(self, kind: int, flags: int, stream: int, length: int) -> bool:
        """Whether the state machine needs this frame."""
        if not self._settled:
            if kind != Frame.SETTINGS or flags & ACK:
                raise Http2Error("the first frame is not SETTINGS", Code.PROTOCOL_ERROR)
            self._settled = True
        if self._block_stream and (kind != Frame.CONTINUATION or stream != self._block_stream):
            raise Http2Error("another frame within a field block", Code.PROTOCOL_ERROR)
        if kind == Frame.DATA:
            # Data for a stream that was answered early may be on its way, but not without end.
            late = stream <= self.highest and stream not in self._open
            if late or (not length and not flags & END_STREAM):
                self.charge()
        elif kind in (Frame.HEADERS, Frame.CONTINUATION):
            self._block = length + (self._block if kind == Frame.CONTINUATION else 0)
            self._block_stream = 0 if flags & END_HEADERS else stream
            if self._block > MAX_BLOCK_BYTES:
                raise Http2Error("a field block that is too large", Code.ENHANCE_YOUR_CALM)
        elif kind == Frame.WINDOW_UPDATE:
            self.charge()
        elif kind == Frame.RST_STREAM:
            self.charge(RESET_COST)
        elif kind == Frame.SETTINGS:
            self.charge(1 + length // 64)
        elif kind == Frame.PING:
            if not flags & ACK:
                self.charge()
        elif kind == Frame.GOAWAY:
            # The state machine would not send the rest of our answers after it.
            if stream or length < 8:
                raise Http2Error("a malformed GOAWAY frame", Code.PROTOCOL_ERROR)
            return False
        elif kind != Frame.PUSH_PROMISE:
            # Priorities are out of use (RFC 9113, 5.3.2), and unknown frames are to be ignored.
            self.charge(1 + length // 1024)
            return False
        return True
