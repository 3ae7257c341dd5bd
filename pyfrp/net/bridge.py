"""Two endpoints cross-wired: every proxy type ends in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, Protocol

from pyfrp.net.endpoint import Endpoint, Lend, end_writing, fills_buffers, reset
from pyfrp.net.held import Held

LONG = 32 * 1024  # Pieces from here on are lent; to copy a shorter one is cheaper.
# Filled and emptied within one callback, so that all share it. What is read at once leaves in one
# frame, which the far end of a TLS link reads at once, too (`net/tls.py`): its records with their
# frames around them stay below 128 KiB. Twice as much costs 1 to 3 % more and moves 1 to 6 % less
# in a second (`make bench`, rows tcp-down and tcp-up).
_read_buffer = memoryview(bytearray(127 * 1024))


class Carried(Protocol):
    """A user's connection while somebody serves it: a bridge, or a plugin's conversation."""

    def carried(self) -> int:
        """Bytes so far, of both directions."""
        ...

    def at_rest(self) -> bool:
        """Whether evidently nobody waits for anything on it."""
        ...

    def close(self) -> None: ...
    def abort(self) -> None: ...


class Keeper(Protocol):
    """Who owns the connections of users: they end with it, and it waits for them in a drain."""

    bridges: dict[Carried, None]

    def bridge_closed(self, bridge: Carried) -> None: ...


class Leg(asyncio.BaseProtocol):
    """One end of a bridge; what it receives is written to the other end."""

    __slots__ = ("_bridge", "_ended", "far", "full", "near", "received")

    far: Leg

    def __init__(self, near: Endpoint, bridge: Bridge) -> None:
        self.near = near
        self.received = 0
        self.full = False
        self._bridge = bridge
        self._ended = False

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.far.near.write(data)

    def pause_writing(self) -> None:
        self.full = True
        self.far.near.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        far = self.far.near
        if not far.is_closing():
            far.resume_reading()

    def eof_received(self) -> bool:
        """Carry the end of this direction on; the other stays open where both ends can do that."""
        self._ended = True
        far = self.far
        if far._ended or not self.near.can_write_eof() or not far.near.can_write_eof():
            far.near.close()
            return False
        if not far.near.is_closing():
            end_writing(far.near)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        far = self.far.near
        if not far.is_closing():
            if exc is None:
                far.close()
            else:
                # A cut answer must not look like a finished one.
                reset(far)
        self._bridge.leg_lost()


class ByteLeg(Leg, asyncio.Protocol):
    """A leg that any endpoint can feed."""

    __slots__ = ()


class LendingLeg(Leg, asyncio.BufferedProtocol):
    """A leg of a loop's own transport, which reads into one buffer for all of them.

    Long pieces are lent to the far end from there, instead of being copied into a block of 256 KB
    that has to be found and freed for each reading.

    Args:
        lend: The far end's.
    """

    __slots__ = ("_lend",)

    def __init__(self, near: Endpoint, bridge: Bridge, lend: Lend) -> None:
        super().__init__(near, bridge)
        self._lend = lend

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes < LONG:
            self.data_received(_read_buffer[:nbytes].tobytes())
        else:
            self.received += nbytes
            self._lend(_read_buffer[:nbytes])


class Bridge:
    """Bytes flow both ways between two endpoints until either is lost.

    Both endpoints are resumed here; bytes read ahead of the hand-over are passed in. Counters of
    bytes stay readable after the end.

    Args:
        near, far: The endpoints; this sets their protocols.
        early, far_early: Bytes that came from `near`, and from `far`, before the bridge.
        near_ended, far_ended: Whether their EOF came before the bridge, too.
        on_close: Called once, with this bridge, when both endpoints are gone.
    """

    __slots__ = ("_left", "_on_close", "far", "near")

    leg_type: ClassVar[type[Leg]] = ByteLeg

    def __init__(
        self,
        near: Endpoint,
        far: Endpoint,
        *,
        early: bytes = b"",
        far_early: bytes = b"",
        near_ended: bool = False,
        far_ended: bool = False,
        on_close: Callable[[Bridge], None] | None = None,
    ) -> None:
        self._left = 2
        self._on_close = on_close
        self.near = self._leg(near, far)
        self.far = self._leg(far, near)
        self.near.far = self.far
        self.far.far = self.near
        near.set_protocol(self.near)
        far.set_protocol(self.far)
        if near.is_closing() or far.is_closing():
            # An endpoint lost before its protocol was set reports to nobody.
            self._left = 0
            self.abort()
            if on_close is not None:
                asyncio.get_running_loop().call_soon(on_close, self)
            return
        if early:
            self.near.data_received(early)
        if far_early:
            self.far.data_received(far_early)
        for leg, ended in ((self.far, far_ended), (self.near, near_ended)):
            if not ended:
                # Early bytes may have filled the other end: it says so once, and resumes us then.
                if not leg.far.full:
                    leg.near.resume_reading()
            elif not leg.eof_received():
                leg.near.close()

    def _leg(self, near: Endpoint, far: Endpoint) -> Leg:
        lend: Lend | None = getattr(far, "lend", None)
        if lend is not None and self.leg_type is ByteLeg and fills_buffers(near):
            return LendingLeg(near, self, lend)
        return self.leg_type(near, self)

    def carried(self) -> int:
        """Bytes so far, of both directions."""
        return self.near.received + self.far.received

    def at_rest(self) -> bool:
        """Whether evidently nobody waits for anything on it.

        Silence alone never tells; who knows what the bytes mean knows more, in a subclass.
        """
        return False

    def close(self) -> None:
        """Close both ends, after what they still have to send."""
        self.near.near.close()
        self.far.near.close()

    def abort(self) -> None:
        """Drop both ends at once."""
        self.near.near.abort()
        self.far.near.abort()

    def leg_lost(self) -> None:
        self._left -= 1
        if self._left == 0 and self._on_close is not None:
            self._on_close(self)


def join_user(
    user: Endpoint,
    held: Held,
    far: Endpoint,
    early: bytes,
    keeper: Keeper,
    bridge_type: type[Bridge] = Bridge,
) -> None:
    """Bridge a user who was held meanwhile with the connection that was made for him.

    Args:
        far, early: That connection, paused, and what was read from it ahead. Dropped when the user
            has left.
    """
    if user.is_closing():
        far.abort()
        return
    if not held.ended:
        user.pause_reading()
    bridge = bridge_type(
        user,
        far,
        early=held.early,
        far_early=early,
        near_ended=held.ended,
        on_close=keeper.bridge_closed,
    )
    keeper.bridges[bridge] = None
