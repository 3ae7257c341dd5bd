"""One stream of a yamux session: its two halves, its windows, what it holds and what it owes.

Belongs to `pyfrp.wire.yamux`, whose session calls into it and is called by it.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import Any, Final

from pyfrp.errors import LocalWireError, MuxError

# One 32-bit word holds version, type and flags, so that the common frame is one comparison with 0.
HEADER = Struct(">III")
HEADER_SIZE = HEADER.size

DATA, WINDOW_UPDATE, PING, GO_AWAY = 0x000000, 0x010000, 0x020000, 0x030000
SYN, ACK, FIN, RST = 0x1, 0x2, 0x4, 0x8
TYPE_MASK, FLAG_MASK, KNOWN_FLAGS = 0xFFFF0000, 0x0000FFFF, SYN | ACK | FIN | RST

INITIAL_WINDOW = 256 * 1024  # What every stream starts with (spec.md, "Flow Control").
MAX_WINDOW = 6 * 1024 * 1024  # As frp; reached only by streams whose reader keeps up.
# What all streams of a session may be granted beyond their initial windows, taken together: the
# bound on what a peer can make us hold for readers that were fast once and then stop.
WINDOW_BUDGET = 32 * 1024 * 1024

PING_TIMEOUT = 10.0  # Seconds; frp's ConnectionWriteTimeout, which also bounds ping replies.
CLOSE_TIMEOUT = 300.0  # Seconds a closed stream waits for the peer's FIN; yamux StreamCloseTimeout.
OPEN_LIMIT = 256  # Streams opened and not yet acknowledged; the peer's AcceptBacklog.
SLICE = 64 * 1024  # What one stream may put into the link before the next has its turn.
SHORT = 4 * 1024  # Who has less to send goes first on a slow link: a token, a head, an end.
# What one write to the link may hold; the rest goes in the next turn. As much as a loop reads from
# a local socket at once: one read, one write (`make bench`, rows down and up).
BATCH = 256 * 1024
RECORD = 16 * 1024  # What a TLS record holds.
LONG = 32 * 1024  # Bodies from here on are not copied to be joined with what is around them.
BURST = 32  # Streams with output at which a turn's output is not collected any further.

# Bodies shorter than this are delivered one by one: tokens of different streams, mostly.
GATHERED = 4 * 1024


class Half:
    """State of one direction of a stream.

    Not an Enum: up to Python 3.11, reading an Enum's member costs 0.15 us, and several are read for
    each frame.
    """

    OPEN: Final = 0
    ENDING: Final = 1  # Sending: FIN is due once the pending bytes are out.
    ENDED: Final = 2  # FIN has passed.
    RESET: Final = 3  # RST has passed, or the session ended.

    NAMES: Final = ("open", "ending", "ended", "reset")


# Legal moves of either half; anything else is the peer's fault when it asked, ours otherwise.
MOVES = {
    (Half.OPEN, Half.ENDING),
    (Half.OPEN, Half.ENDED),
    (Half.ENDING, Half.ENDED),
    (Half.OPEN, Half.RESET),
    (Half.ENDING, Half.RESET),
    (Half.ENDED, Half.RESET),
}


class Stream:
    """One stream of a session. Subclasses implement the `on_` methods.

    `chunk` in `on_data` is `bytes`, never empty, and may be only a part of a data frame. Credit is
    given back to the peer when `on_data` returns, unless the stream is held.
    """

    __slots__ = (
        "_acked",
        "_credit",
        "_end_due",
        "_held",
        "_held_size",
        "_holding",
        "_in",
        "_out",
        "_out_pos",
        "_queued",
        "_send",
        "_send_window",
        "_syn_due",
        "_window",
        "id",
        "session",
    )

    def __init__(self, session: Any, stream_id: int) -> None:
        self.session = session
        self.id = stream_id
        self._in: int = Half.OPEN
        self._send: int = Half.OPEN
        self._syn_due = False
        self._acked = True
        self._queued = False  # Is in the session's queue of streams with something to send.
        self._out: bytes | memoryview = b""  # A view only within `lend`.
        self._out_pos = 0
        self._send_window = INITIAL_WINDOW
        self._window = INITIAL_WINDOW  # What the peer may have outstanding, all told.
        self._credit = INITIAL_WINDOW  # What is left of it.
        self._holding = False
        self._end_due = False  # FIN came while the stream was held; `on_end` follows the release.
        self._held: deque[bytes] | None = None
        self._held_size = 0

    # -- what the owner implements -------------------------------------------------------------

    def on_data(self, chunk: bytes) -> None:
        """Bytes of the peer; called while `Session.feed` or `release` runs."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The peer sent FIN; every byte before it has been delivered."""
        raise NotImplementedError

    def on_reset(self) -> None:
        """The peer sent RST, or the session ended: the stream is gone in both directions."""
        raise NotImplementedError

    def on_full(self) -> None:
        """`write` left more pending than the session's `high_water`: pause the source."""
        raise NotImplementedError

    def on_drained(self) -> None:
        """Pending bytes went out; `pending` tells what is left."""
        raise NotImplementedError

    # -- sending -------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Bytes written here that are not yet handed to the link."""
        return len(self._out) - self._out_pos

    @property
    def writable(self) -> bool:
        """Whether `write` and `end` are still allowed."""
        return self._send == Half.OPEN

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes; they leave with the session's next output.

        As with any transport, bytes written after `end`, or after either side's reset, are dropped:
        the writer may not have heard of it yet.
        """
        if self._send != Half.OPEN or not data:
            return
        if self._out:
            self._out = b"".join((self._out[self._out_pos :], data))
            self._out_pos = 0
        else:
            self._out = data
        session = self.session
        if not self._queued:
            self._queued = True
            ready = session._ready
            ready.append(self)
            if not session._awake:
                session._awake = True
                session._on_output()
            elif len(ready) >= session.burst:
                session._on_burst()
        if len(self._out) > session.high_water:
            self.on_full()

    def lend(self, data: memoryview) -> None:
        """As `write`, of a buffer that is the caller's again afterwards.

        For sessions whose output is used up when it is taken. What stays pending is copied.
        """
        self.write(data)
        if isinstance(self._out, memoryview):
            self._out = self._out[self._out_pos :].tobytes()
            self._out_pos = 0

    def end(self) -> None:
        """Send FIN after everything written; reading goes on. Does nothing when ended already."""
        if self._send == Half.OPEN:
            self._move_send(Half.ENDING)
            self._queue()

    def reset(self) -> None:
        """Kill both directions at once with RST; nothing more is delivered. Idempotent."""
        if self._in == Half.RESET:
            return
        if not self._syn_due:
            self.session._control(WINDOW_UPDATE | RST, self.id, 0)
        self._drop()

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self.session._ready.append(self)
            self.session._wake_output()

    # -- receiving -----------------------------------------------------------------------------

    @property
    def held_size(self) -> int:
        """Bytes received and not yet delivered because the stream is held."""
        return self._held_size

    def hold(self) -> None:
        """Stop delivering. What arrives is kept, without credit, so the peer's window bounds it."""
        self._holding = True

    def release(self) -> None:
        """Deliver what was held (unless held again meanwhile) and go on delivering."""
        self._holding = False
        # Looked up each time: the callback may hold, release or reset this stream.
        while (held := self._held) and not self._holding:
            chunk = held.popleft()
            self._held_size -= len(chunk)
            self.on_data(chunk)
        if not self._held:
            self._held = None
            if self._end_due and not self._holding:
                self._end_due = False
                self.on_end()
        if self._in == Half.OPEN and self._credit + self._held_size <= self._window >> 1:
            self._grant()

    def _grant(self) -> None:
        """Give back the credit for what was consumed, and grow the window of a fast reader."""
        session = self.session
        window = self._window
        if not self._holding and window < MAX_WINDOW and session._grown < session._budget:
            session._grown += min(window, MAX_WINDOW - window)
            window = self._window = min(window * 2, MAX_WINDOW)
        delta = window - self._credit - self._held_size
        self._credit += delta
        session._control(WINDOW_UPDATE, self.id, delta)

    def _shrink(self) -> None:
        """A reader that let the whole window fill up goes back to the initial one."""
        self.session._grown -= self._window - INITIAL_WINDOW
        self._window = INITIAL_WINDOW

    # -- state ---------------------------------------------------------------------------------

    def _move_send(self, to: int) -> None:
        if (self._send, to) not in MOVES:
            raise LocalWireError(f"stream {self.id}: {Half.NAMES[self._send]} -> {Half.NAMES[to]}")
        self._send = to
        if to == Half.ENDED and self._in == Half.ENDED:
            self.session._forget(self)

    def _move_in(self, to: int) -> None:
        if (self._in, to) not in MOVES:
            # Go: `processFlags` answers a FIN in an unexpected state by ending the session.
            raise MuxError(f"stream {self.id}: {Half.NAMES[to]} after {Half.NAMES[self._in]}")
        self._in = to
        if to == Half.ENDED and self._send == Half.ENDED:
            self.session._forget(self)

    def _drop(self) -> None:
        self._in = self._send = Half.RESET
        self._out = b""
        self._out_pos = 0
        self._held = None
        self._held_size = 0
        self._end_due = False
        self.session._forget(self)
