"""Work connections of one client, waiting for their use.

Source of the accounting: frp `server/control.go` (`GetWorkConn`, `RegisterWorkConn`): the client
opens a connection per request; an empty pool asks twice per user, a filled one once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pyfrp.errors import IdleTimeout, PeerClosed
from pyfrp.net.endpoint import Endpoint
from pyfrp.wire.version import V1, Version

EXTRA = 10  # Connections beyond the asked-for number that are kept (frp `server/control.go`).


class PooledConn(asyncio.Protocol):
    """A waiting work connection; one that ends while it waits leaves the pool."""

    __slots__ = ("_pool", "endpoint")

    def __init__(self, endpoint: Endpoint, pool: WorkPool) -> None:
        self.endpoint = endpoint
        self._pool = pool
        endpoint.set_protocol(self)
        endpoint.resume_reading()

    def data_received(self, data: bytes) -> None:
        # A client has nothing to say before StartWorkConn.
        self._pool.forget(self)
        self.endpoint.abort()

    def eof_received(self) -> bool:
        self._pool.forget(self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)


class WorkPool:
    """Hands out work connections, oldest first.

    Args:
        size: How many the client is asked to keep ready.
        request: Asks the client for one more.
        timeout_s: How long a user waits for one.
        version: How messages on them are written.
    """

    def __init__(
        self,
        size: int,
        *,
        request: Callable[[], None],
        timeout_s: float,
        version: Version = V1,
    ) -> None:
        self.version = version
        self._size = size
        self._request = request
        self._timeout_s = timeout_s
        self._ready: dict[PooledConn, None] = {}
        self._waiters: deque[asyncio.Future[Endpoint]] = deque()
        self._closed = False

    def fill(self) -> None:
        for _ in range(self._size):
            self._request()

    def add(self, endpoint: Endpoint) -> bool:
        """Take in a paused work connection; False when there is no room for it."""
        if self._closed:
            return False
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(endpoint)
                return True
        if len(self._ready) >= self._size + EXTRA:
            return False
        self._ready[PooledConn(endpoint, self)] = None
        return True

    async def take(self) -> Endpoint:
        """A work connection, paused.

        Raises:
            IdleTimeout: when the client brought none in time.
            PeerClosed: when the client went away.
        """
        if self._closed:
            raise PeerClosed("the client is gone")
        if self._ready:
            pooled = next(iter(self._ready))
            del self._ready[pooled]
            self._request()
            pooled.endpoint.pause_reading()
            return pooled.endpoint
        self._request()
        waiter: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._timeout_s):
                endpoint = await waiter
        except TimeoutError:
            self._drop(waiter)
            raise IdleTimeout("timeout trying to get work connection") from None
        except asyncio.CancelledError:
            self._drop(waiter)
            raise
        if not self._closed:
            self._request()
        return endpoint

    def _drop(self, waiter: asyncio.Future[Endpoint]) -> None:
        """A waiter gave up; a connection that reached it in the same turn goes to the next."""
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            if not self.add(waiter.result()):
                waiter.result().abort()
        elif waiter in self._waiters:
            self._waiters.remove(waiter)

    def forget(self, pooled: PooledConn) -> None:
        self._ready.pop(pooled, None)

    def close(self) -> None:
        self._closed = True
        for pooled in list(self._ready):
            pooled.endpoint.abort()
        self._ready.clear()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(PeerClosed("the client is gone"))
