"""A TCP relay that misbehaves on request, to stand between a client and its server."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from tests.support.ports import free_port
from tests.support.waiting import until

HOST = "127.0.0.1"
TICK_S = 0.01
PACKET = 1448


class _End(asyncio.Protocol):
    """One of the two sockets of a relayed connection."""

    def __init__(self, relay: Relay, *, inbound: bool) -> None:
        self.relay = relay
        self.inbound = inbound
        self.far: _End | None = None
        self.transport: asyncio.Transport | None = None
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.held = False
        self.far_full = False
        self.eof_due = False
        self.ended = False
        self.forsaken = False
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=256 * 1024, low=64 * 1024)
        self.relay.ends.add(self)
        if self.relay.holed:
            self.hold()

    def data_received(self, data: bytes) -> None:
        self.relay.carried += len(data)
        self.queue.append(data)
        self.queued += len(data)
        self.pump()

    def pump(self) -> None:
        """Pass on what may go now."""
        relay, far = self.relay, self.far
        if far is None or far.transport is None or far.lost or relay.holed:
            self._throttle()
            return
        if relay.rate is None:
            while self.queue:
                far.transport.write(self.queue.popleft())
            self.queued = 0
        self._pass_end()
        self._throttle()

    def drip(self, budget: int) -> int:
        """Pass on at most `budget` bytes; return what is left of it."""
        far = self.far
        if far is None or far.transport is None or far.lost or far.transport.is_closing():
            return budget
        while budget and self.queue and not self.far_full:
            data = self.queue.popleft()
            if len(data) > budget:
                self.queue.appendleft(data[budget:])
                data = data[:budget]
            budget -= len(data)
            self.queued -= len(data)
            far.transport.write(data)
        self._pass_end()
        self._throttle()
        return budget

    def _pass_end(self) -> None:
        """Pass on the end of input after all that came before it."""
        far = self.far
        if not self.eof_due or self.queue or far is None or far.transport is None:
            return
        self.eof_due = False
        self.ended = True
        if far.ended:
            # Both directions are over; asyncio leaves closing to us after `eof_received`.
            far.transport.close()
            if self.transport is not None:
                self.transport.close()
        elif not far.transport.is_closing():
            far.transport.write_eof()

    def _throttle(self) -> None:
        """Stop reading while too much is queued: the sender's kernel buffer is the rest."""
        assert self.transport is not None
        if self.lost or self.transport.is_closing():
            return
        too_much = self.far_full or self.queued > self.relay.depth
        wanted = self.relay.holed or self.forsaken or too_much
        if wanted and not self.held:
            self.hold()
        elif self.held and not wanted:
            self.held = False
            self.transport.resume_reading()

    def hold(self) -> None:
        self.held = True
        assert self.transport is not None
        self.transport.pause_reading()

    def pause_writing(self) -> None:
        if self.far is not None:
            self.far.far_full = True
            self.far._throttle()

    def resume_writing(self) -> None:
        if self.far is not None:
            self.far.far_full = False
            self.far._throttle()

    def eof_received(self) -> bool:
        self.eof_due = True
        self.pump()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.relay.ends.discard(self)
        far = self.far
        if far is not None and far.transport is not None and not self.relay.silent:
            if exc is not None:
                reset(far.transport)
            else:
                far.transport.close()


def reset(transport: asyncio.Transport) -> None:
    """Close with a TCP reset."""
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Relay:
    """Listens on `port` and connects through to `target`.

    Attributes:
        holed: A black hole: nothing passes, nothing closes, new connections hang.
        rate: Bytes per second and direction for everything together, or None.
        depth: Bytes queued per direction before the relay stops reading.
        silent: Ends of connections are not passed on (half-open peers).
        thin: Small kernel buffers, so that what is on its way is not megabytes; set it before
            `start`.
    """

    def __init__(self, target: int, *, thin: bool = False) -> None:
        self.target = target
        self.thin = thin
        self.port = free_port()
        self.ends: set[_End] = set()
        self.holed = False
        self.silent = False
        self.rate: int | None = None
        self.depth = 256 * 1024
        self.carried = 0
        self.accepted = 0
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        listener = self._socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        self._server = await loop.create_server(self._accept, sock=listener, backlog=512)

    def _socket(self) -> socket.socket:
        """A TCP socket whose kernel buffers are as the wire is to be."""
        raw = socket.socket()
        raw.setblocking(False)
        if self.thin:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                raw.setsockopt(socket.SOL_SOCKET, option, 64 * 1024)
        return raw

    def _accept(self) -> _End:
        near, far = _End(self, inbound=True), _End(self, inbound=False)
        near.far, far.far = far, near
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._connect(near, far), name="relay dial")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return near

    async def _connect(self, near: _End, far: _End) -> None:
        await until(lambda: not self.holed or near.lost, "the black hole to end", 600.0)
        if near.lost:
            return
        loop = asyncio.get_running_loop()
        raw = self._socket()
        try:
            await loop.sock_connect(raw, (HOST, self.target))
            await loop.create_connection(lambda: far, sock=raw)
        except OSError:
            raw.close()
            assert near.transport is not None
            reset(near.transport)
            return
        except asyncio.CancelledError:
            raw.close()  # The relay stops while this one is still dialling.
            # uvloop tells a protocol nothing more then, not even one that it has just begun.
            far.lost = True
            self.ends.discard(far)
            raise
        if near.lost:
            assert far.transport is not None
            far.transport.close()
        near.pump()

    # --- misbehaviour -----------------------------------------------------------------

    def black_hole(self) -> None:
        """From now on nothing passes in either direction, and nobody is told."""
        self.holed = True
        for end in list(self.ends):
            end._throttle()

    def heal(self) -> None:
        """End the black hole; what was queued passes."""
        self.holed = False
        for end in list(self.ends):
            end.pump()

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for end in list(self.ends):
            if end.transport is not None:
                reset(end.transport)

    def close_all(self) -> None:
        """Close every connection with a FIN, on both sides."""
        for end in list(self.ends):
            if end.transport is not None:
                end.transport.close()

    def forsake(self) -> None:
        """Drop connections inside a hole for good, without telling either side.

        What is left looks like peers that were unplugged: the programs keep their sockets,
        and nothing will ever come over them. New connections pass again.
        """
        for end in list(self.ends):
            end.forsaken = True
            end.hold()
            end.far = None

    def throttle(self, rate: int | None, depth: int = 64 * 1024) -> None:
        """Limit everything together to `rate` bytes per second and direction."""
        self.rate, self.depth = rate, depth
        if rate is None:
            for end in list(self.ends):
                end.pump()
        elif self._ticker is None:
            self._tick()

    def _tick(self) -> None:
        self._ticker = None
        if self.rate is None:
            return
        if not self.holed:
            for inbound in (True, False):
                self._share([end for end in self.ends if end.inbound is inbound], self.rate)
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _share(self, ends: list[_End], rate: int) -> None:
        """Let connections take turns, one packet each, as on one wire."""
        budget = int(rate * TICK_S)
        waiting = deque(end for end in ends if end.queue or end.eof_due)
        if waiting:
            # Somebody else begins next time.
            self._turn += 1
            waiting.rotate(self._turn % len(waiting))
        while budget > 0 and waiting:
            end = waiting.popleft()
            before = min(budget, PACKET)
            taken = before - end.drip(before)
            budget -= taken
            if taken and end.queue:
                waiting.append(end)

    async def refuse(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def stop(self) -> None:
        await self.refuse()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for task in list(self._tasks):
            task.cancel()

        def stopped() -> bool:
            # Each time: a connection that was just accepted is among them a turn later.
            for end in list(self.ends):
                if end.transport is not None:
                    end.transport.abort()
            return not self.ends and not self._tasks

        await until(stopped, "the relay to stop")


@asynccontextmanager
async def relaying(target: int, *, thin: bool = False) -> AsyncIterator[Relay]:
    """A running relay to loopback `target`."""
    relay = Relay(target, thin=thin)
    try:
        await relay.start()
        yield relay
    finally:
        await relay.stop()
