"""Work connections that carry one HTTP request after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from pyfrp.net.endpoint import Endpoint

# Kept by the hundred (frp: 5), last in first out: a handshake per stream, not one per request. What
# is not needed ends after IDLE_S.
MAX_IDLE = 512
IDLE_S = 60.0  # As frp (`pkg/util/vhost/http.go`, IdleConnTimeout).


class UpstreamUser(Protocol):
    """Who sends a request on an upstream and reads its answer."""

    @property
    def awaits_head(self) -> bool: ...
    def upstream_data(self, data: bytes) -> None: ...
    def upstream_ended(self, exc: Exception | None) -> None: ...
    def upstream_full(self) -> None: ...
    def upstream_drained(self) -> None: ...


class Upstream(asyncio.Protocol):
    """One work connection of an http proxy: in use by an exchange, or idle in its pool."""

    __slots__ = ("_pool", "closed", "endpoint", "full", "idle_since", "user")

    def __init__(self, endpoint: Endpoint, pool: UpstreamPool, early: bytes) -> None:
        self.endpoint = endpoint
        self._pool = pool
        self.user: UpstreamUser | None = None
        self.idle_since = 0.0
        self.full = False  # What was written has not left yet.
        self.closed = endpoint.is_closing()
        endpoint.set_protocol(self)
        if early:
            self.data_received(early)
        if not self.closed:
            endpoint.resume_reading()

    def abort(self) -> None:
        """Close at once; the far end learns that nobody waits any more."""
        self.user = None
        if not self.closed:
            self.closed = True
            self._pool.forget(self)
            self.endpoint.abort()

    def release(self) -> Endpoint:
        """Give up the endpoint, paused, for a use that is not a request."""
        self.user = None
        self.closed = True
        self._pool.forget(self)
        self.endpoint.pause_reading()
        return self.endpoint

    def data_received(self, data: bytes) -> None:
        user = self.user
        if user is None:
            # Bytes that nobody asked for would be taken for the next caller's answer.
            self.abort()
        else:
            user.upstream_data(data)

    def eof_received(self) -> bool:
        self._lose(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(exc)

    def pause_writing(self) -> None:
        self.full = True
        if self.user is not None:
            self.user.upstream_full()

    def resume_writing(self) -> None:
        self.full = False
        if self.user is not None:
            self.user.upstream_drained()

    def _lose(self, exc: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self._pool.forget(self)
        user, self.user = self.user, None
        if user is not None:
            user.upstream_ended(exc)


class UpstreamPool:
    """The work connections of one http proxy.

    Args:
        connect: `await connect(caller_address)` gives a started work connection, paused, and the
            bytes read ahead on it. Raises PyfrpError when there is none to be had.
        clock: Monotonic seconds.
        unread: How much an endpoint has received and not delivered, for endpoints that hold bytes
            back by themselves.
    """

    def __init__(
        self,
        connect: Callable[[tuple[str, int]], Awaitable[tuple[Endpoint, bytes]]],
        clock: Callable[[], float],
        *,
        unread: Callable[[Endpoint], int] | None = None,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._unread = unread
        self._open: set[Upstream] = set()
        self._idle: dict[Upstream, None] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> Upstream | None:
        """The idle upstream that was used last, or None."""
        idle = self._idle
        while idle:
            upstream = idle.popitem()[0]
            # One that was reset in this turn hears of it in the next.
            if upstream.endpoint.is_closing():
                continue
            if self._unread is None or not self._unread(upstream.endpoint):
                return upstream
            upstream.abort()  # As in `data_received`: nobody asked for these bytes.
        return None

    async def open(self, caller: tuple[str, int]) -> Upstream:
        """A new upstream, caused by the caller at this address."""
        endpoint, early = await self._connect(caller)
        upstream = Upstream(endpoint, self, early)
        self._open.add(upstream)
        return upstream

    def give_back(self, upstream: Upstream) -> None:
        """Keep an upstream whose answer is complete for the next request."""
        upstream.user = None
        if upstream.closed:
            return
        # A full one was answered before it had taken its request: the next would queue up behind
        # that, and not hear when to stop.
        if self._closed or upstream.full or len(self._idle) >= MAX_IDLE:
            upstream.abort()
            return
        upstream.idle_since = self._clock()
        self._idle[upstream] = None

    def forget(self, upstream: Upstream) -> None:
        self._open.discard(upstream)
        self._idle.pop(upstream, None)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long; the longest idle come first."""
        while self._idle:
            upstream = next(iter(self._idle))
            if now - upstream.idle_since < IDLE_S:
                break
            upstream.abort()

    def close(self) -> None:
        """Close idle upstreams now, and the others when their answer is complete."""
        self._closed = True
        for upstream in list(self._idle):
            upstream.abort()

    def fail(self) -> None:
        """The client is lost: whoever still waits for an answer's head is told so now.

        Answers under way may live on where each work connection is a link of its own.
        """
        for upstream in list(self._open):
            user = upstream.user
            if user is not None and user.awaits_head:
                upstream.abort()
                user.upstream_ended(ConnectionResetError("the client is gone"))
