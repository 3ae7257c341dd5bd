"""Work connections that carry messages instead of bytes: those of datagrams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyfrp.errors import IdleTimeout, LinkError, PeerClosed, RemoteWireError, WireError
from pyfrp.net.endpoint import Endpoint
from pyfrp.wire.messages import Message
from pyfrp.wire.version import V1, Version

QUEUE = 1024  # Frames that wait for a slow link; what comes then is lost (frp `proxy/udp.go`).
BATCH = 64  # Frames of one write. A turn that brings more makes several.


class PacketConn(asyncio.Protocol):
    """Messages both ways on an endpoint; those of one turn of the loop leave in one write.

    Args:
        endpoint: Paused, below the payload's layers; this becomes its protocol.
        early: Bytes already read from it.
        on_message: Called with each message.
        version: How the messages are written.

    Attributes:
        ended: Its result is why the connection ended.
        heard: When anything last came, in the loop's time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        early: bytes,
        *,
        on_message: Callable[[Message], None],
        version: Version = V1,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[LinkError | WireError] = self._loop.create_future()
        self.heard = self._loop.time()
        self._endpoint = endpoint
        self._on_message = on_message
        self._decoder = version.decoder()
        self._queue: list[bytes] = []
        self._scheduled = False
        self._choked = False
        endpoint.set_protocol(self)
        if endpoint.is_closing():
            # An endpoint lost before its protocol was set reports to nobody.
            self._settle(PeerClosed("the connection was closed"))
            endpoint.abort()
            return
        if early:
            self.data_received(early)
        if not self.ended.done():
            endpoint.resume_reading()

    def send(self, frame: bytes) -> bool:
        """Send a whole frame with this turn's; False when it is lost, as the newest of too many."""
        queue = self._queue
        if self.ended.done() or len(queue) >= QUEUE:
            return False
        queue.append(frame)
        if self._choked:
            return True
        if len(queue) >= BATCH:
            self._flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)
        return True

    async def until_silent(self, limit_s: float) -> LinkError | WireError:
        """Wait for the end, and bring it about when nothing comes for `limit_s`; returns why."""
        clock = self._loop.time
        while not self.ended.done():
            left = self.heard + limit_s - clock()
            if left <= 0:
                self.abort(IdleTimeout(f"nothing came for {limit_s:g} s"))
                break
            await asyncio.wait([self.ended], timeout=left)
        return self.ended.result()

    def close(self) -> None:
        """Send what is pending, then close."""
        if not self.ended.done():
            self._flush()
            self._settle(PeerClosed("closed"))
            self._endpoint.close()

    def abort(self, cause: LinkError | None = None) -> None:
        self._settle(cause or PeerClosed("aborted"))
        self._endpoint.abort()

    def _turn(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        queue = self._queue
        while queue and not self._choked and not self._endpoint.is_closing():
            data = b"".join(queue[:BATCH])
            del queue[:BATCH]
            self._endpoint.write(data)  # May choke.

    def _settle(self, cause: LinkError | WireError) -> None:
        if not self.ended.done():
            self.ended.set_result(cause)
        self._queue.clear()

    # -- Protocol ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        self.heard = self._loop.time()
        decoder = self._decoder
        decoder.feed(data)
        try:
            while (msg := decoder.next()) is not None:
                self._on_message(msg)
                if self.ended.done():
                    return
        except RemoteWireError as exc:
            self._settle(exc)
            self._endpoint.abort()

    def eof_received(self) -> bool:
        self._settle(PeerClosed("the peer closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        cause = f"the connection was lost: {exc}" if exc else "the connection was closed"
        self._settle(PeerClosed(cause))

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False
        self._flush()
