"""Connections whose first bytes tell which proxy they are for.

Source: frp `pkg/util/vhost/vhost.go` (`Muxer`), used there for https and tcpmux.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from pyfrp.errors import RemoteWireError
from pyfrp.net.endpoint import format_address, peer_address
from pyfrp.net.held import Held
from pyfrp.vhost.router import Router

# For the whole of what tells the proxy (frp `server/service.go`, vhostReadWriteTimeout).
GREETING_S = 30.0
# Connections that have not told yet, in all. When there are more, the oldest goes: a flood cannot
# keep users with a quick greeting out.
MAX_WAITING = 1024
# Refusals logged per second; what scanners provoke on a public port must not fill the disk.
LOGGED_REFUSALS = 20

Asked = TypeVar("Asked")
Asked_co = TypeVar("Asked_co", covariant=True)
Target = TypeVar("Target")


class GreetingReader(Protocol[Asked_co]):
    """What reads the first bytes of a connection, without I/O; `raw` is all of them."""

    raw: bytearray

    def feed(self, data: bytes) -> Asked_co | None:
        """What is asked for, or None while that is open. Raises RemoteWireError."""
        ...


class UserSink(Protocol):
    """Takes over a user's connection, paused; `Held.early` are the bytes read so far."""

    def __call__(self, user: asyncio.Transport, held: Held, /) -> None: ...


class Greeter(asyncio.Protocol, Generic[Asked]):
    """A connection that has not told yet whom it is for."""

    __slots__ = ("_muxer", "_reader", "user")

    def __init__(self, muxer: Muxer[Asked, Any], reader: GreetingReader[Asked]) -> None:
        self._muxer = muxer
        self._reader = reader
        self.user: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.user = cast(asyncio.Transport, transport)
        self._muxer.expect(self)

    def data_received(self, data: bytes) -> None:
        user = self.user
        if user is None or user.is_closing():
            return
        try:
            asked = self._reader.feed(data)
        except RemoteWireError as exc:
            self.leave()
            self._muxer.log_refusal(user, str(exc))
            user.close()
            return
        if asked is not None:
            self.leave()
            user.pause_reading()
            held = Held()
            held.early = bytes(self._reader.raw)
            user.set_protocol(held)
            self._muxer.admit(user, held, asked)

    def eof_received(self) -> bool:
        # Health checks of load balancers connect and say nothing: that is nobody's fault.
        if self.user is not None and self._reader.raw:
            self._muxer.log_refusal(self.user, "it ended before it told what it asks for")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()

    def leave(self) -> None:
        """Nobody waits for its greeting any more."""
        self._muxer.forget(self)
        self.user = None


class Muxer(Generic[Asked, Target]):
    """Accepts users of one kind of vhost and hands each to its proxy.

    Subclasses say how a greeting is read, and what happens then.

    Args:
        log: A structlog logger.

    Attributes:
        router: Where the proxies of this kind are registered.
    """

    kind: ClassVar[str]  # For the log.

    def __init__(self, *, log: Any) -> None:
        self.router: Router[Target] = Router()
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._closed = False
        # Oldest first, with the moment by which each must have told.
        self._waiting: dict[Greeter[Asked], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._second = 0
        self._logged = 0

    def reader(self) -> GreetingReader[Asked]:
        """A reader for one connection."""
        raise NotImplementedError

    def admit(self, user: asyncio.Transport, held: Held, asked: Asked) -> None:
        """Find the proxy for a user, paused, and pass him on; or turn him down."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Connections that have not told yet."""
        return len(self._waiting)

    # -- for the server ------------------------------------------------------------------------

    def protocol(self) -> Greeter[Asked]:
        """For `loop.create_server`."""
        return Greeter(self, self.reader())

    def adopt(self, user: asyncio.Transport, early: bytes) -> None:
        """Serve a connection that was accepted elsewhere, paused, and the bytes read from it."""
        greeter = self.protocol()
        user.set_protocol(greeter)
        greeter.connection_made(user)
        greeter.data_received(early)
        if greeter.user is not None and not user.is_closing():
            user.resume_reading()

    def close(self) -> None:
        """Take nobody any more and drop those who have not told; the others are the proxies'."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for greeter in list(self._waiting):
            self._expel(greeter)

    # -- for the connections -------------------------------------------------------------------

    def expect(self, greeter: Greeter[Asked]) -> None:
        """A connection was made."""
        self._waiting[greeter] = self._loop.time() + GREETING_S
        if self._closed:
            self._expel(greeter)
            return
        if len(self._waiting) > MAX_WAITING:
            self._expel(next(iter(self._waiting)))
        if self._timer is None:
            self._timer = self._loop.call_later(GREETING_S, self._expire)

    def forget(self, greeter: Greeter[Asked]) -> None:
        """It told, or it is gone. Idempotent."""
        self._waiting.pop(greeter, None)

    def log_refusal(self, user: asyncio.Transport, cause: str, **more: Any) -> None:
        """Say who was turned down and why, unless too much was said within this second."""
        second = int(self._loop.time())
        if second != self._second:
            if self._logged > LOGGED_REFUSALS:
                count = self._logged - LOGGED_REFUSALS
                self._log.warning(f"{self.kind} users refused, not logged one by one", count=count)
            self._second = second
            self._logged = 0
        self._logged += 1
        if self._logged <= LOGGED_REFUSALS:
            caller = format_address(peer_address(user))
            self._log.info(f"{self.kind} user refused", caller=caller, cause=cause, **more)

    def _expel(self, greeter: Greeter[Asked]) -> None:
        user = greeter.user
        greeter.leave()
        if user is not None:
            user.abort()

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for greeter, deadline in list(self._waiting.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._expire)
                return
            if greeter.user is not None:
                cause = f"it did not tell what it asks for within {GREETING_S:g} s"
                self.log_refusal(greeter.user, cause)
            self._expel(greeter)
