"""The service behind the tunnel: as light as Python allows, the same for every pair.

One process, one thread, one epoll loop, answers built beforehand. The request target says what
to do, so that a request costs one look into a table and no parsing of its head:

    /get?down=128            answers with 128 bytes
    /post?up=2048&down=1024  takes a body of 2048 bytes, answers with 1024
    /sse?every_ms=50         an event stream without end, one event every 50 ms
    /sse?every_ms=50&step=1  the same, each event at the same moment as those of all others
    /down                    a body without end (of a stated length nobody waits for)
    /up                      takes a body without end

At the same port number, datagrams are echoed.

Run as `python -m benchmarks.backend`: writes its port as one line and ends when its standard
input is closed, so it cannot outlive the harness.
"""

from __future__ import annotations

import gc
import select
import socket
import sys
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

ENDLESS = 1 << 40
"""Content-Length of a bulk body: more than any window can carry."""

STAMP_MARK = b'"t":"'
"""Stands before the time in an event: 19 digits of CLOCK_MONOTONIC nanoseconds."""
STAMP_DIGITS = 19

_TICK_S = 0.001
"""Streams are spread over ticks of this length, unless they go in step."""
_BULK = memoryview(bytes(256 * 1024))
_READ_BYTES = 64 * 1024


def _event() -> tuple[bytes, bytes]:
    """An event of about 150 bytes as one HTTP chunk: the parts before and after the time."""
    before = b'data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk",' + STAMP_MARK
    after = b'","choices":[{"index":0,"delta":{"content":" token"}}]}\n\n'
    size = len(before) + STAMP_DIGITS + len(after)
    return b"%x\r\n%s" % (size, before), after + b"\r\n"


EVENT_BEFORE, EVENT_AFTER = _event()


def _head(*lines: bytes) -> bytes:
    return b"\r\n".join(
        (b"HTTP/1.1 200 OK", b"Date: Thu, 01 Jan 2026 00:00:00 GMT", *lines, b"", b"")
    )


def answer(size: int) -> bytes:
    """A whole answer with a body of `size` bytes."""
    return (
        _head(b"Content-Type: application/json", b"Content-Length: %d" % size)
        + b'{"sample":"'
        + b"x" * (size - 13)
        + b'"}'
    )


SSE_HEAD = _head(
    b"Content-Type: text/event-stream", b"Cache-Control: no-cache", b"Transfer-Encoding: chunked"
)
DOWN_HEAD = _head(b"Content-Type: application/octet-stream", b"Content-Length: %d" % ENDLESS)


class Plan:
    """What one request line asks for."""

    def __init__(self, line: bytes) -> None:
        target = urlsplit(line.split()[1].decode("ascii"))
        query = parse_qs(target.query)
        self.kind = target.path
        self.up = int(query.get("up", ["0"])[0])
        self.answer = answer(int(query.get("down", ["128"])[0]))
        self.every_ms = int(query.get("every_ms", ["50"])[0])
        self.step = "step" in query


class Stream:
    """One open event stream."""

    __slots__ = ("fd", "owed", "send", "wheel")

    def __init__(self, fd: int, send: Callable[[bytes], int], wheel: Wheel) -> None:
        self.fd = fd
        self.send = send
        self.wheel = wheel
        self.owed = b""
        """Rest of an event that the socket did not take; the next one waits for it."""


class Wheel:
    """All streams of one interval: spread evenly over its ticks, or all in one of them.

    One model server that batches its requests gives each a token at every step of the model; the
    streams of many servers, or of one that takes requests in turn, are spread.
    """

    def __init__(self, every_ms: int, *, step: bool) -> None:
        self._slots: list[list[Stream]] = [[] for _ in range(every_ms)]
        self._used = self._slots[:1] if step else self._slots
        self._next = 0

    def add(self, stream: Stream) -> None:
        min(self._used, key=len).append(stream)

    def remove(self, stream: Stream) -> None:
        for slot in self._slots:
            if stream in slot:
                slot.remove(stream)
                return

    def fire(self) -> list[Stream]:
        """Send one event to each stream of the next slot; returns those whose reader is gone."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        gone = []
        now = time.monotonic_ns
        for stream in slot:
            data = stream.owed or b"%s%019d%s" % (EVENT_BEFORE, now(), EVENT_AFTER)
            try:
                stream.owed = data[stream.send(data) :]
            except BlockingIOError:
                stream.owed = data
            except OSError:
                gone.append(stream)
        return gone


class Backend:
    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        # Datagrams come to the same port, and go back as they are.
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self._datagrams.bind(self._listener.getsockname())
        self._datagrams.setblocking(False)
        self._poller = select.epoll()
        self._poller.register(self._datagrams.fileno(), select.EPOLLIN)
        self._poller.register(self._listener.fileno(), select.EPOLLIN)
        self._poller.register(sys.stdin.fileno(), select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._held: dict[int, bytes] = {}
        """Requests of which only a part has come."""
        self._plans: dict[bytes, Plan] = {}
        self._wheels: dict[tuple[int, bool], Wheel] = {}
        self._streams: dict[int, Stream] = {}
        self._feeding: set[int] = set()
        self._draining: set[int] = set()
        self._drain_into = bytearray(len(_BULK))

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Serve until standard input is closed."""
        listener, stdin = self._listener.fileno(), sys.stdin.fileno()
        datagrams = self._datagrams.fileno()
        next_tick = time.monotonic()
        while True:
            if self._streams:
                events = self._poller.poll(max(0.0, next_tick - time.monotonic()))
                now = time.monotonic()
                while next_tick <= now:
                    next_tick += _TICK_S
                    self._tick()
            else:
                events = self._poller.poll()
                next_tick = time.monotonic()
            for fd, _ in events:
                if fd == listener:
                    self._accept()
                elif fd == stdin:
                    return
                elif fd == datagrams:
                    self._echo()
                elif fd in self._sockets:
                    self._ready(fd)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[sock.fileno()] = sock
            self._poller.register(sock.fileno(), select.EPOLLIN)

    def _echo(self) -> None:
        sock = self._datagrams
        try:
            for _ in range(64):
                data, address = sock.recvfrom(_READ_BYTES)
                sock.sendto(data, address)
        except BlockingIOError:
            return

    def _ready(self, fd: int) -> None:
        sock = self._sockets[fd]
        try:
            if fd in self._feeding:
                sock.send(_BULK)
                return
            if fd in self._draining:
                if not sock.recv_into(self._drain_into):
                    self._close(fd)
                return
            data = sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(fd)
            return
        if not data:
            self._close(fd)
        elif fd not in self._streams:
            self._request(fd, sock, data)

    def _request(self, fd: int, sock: socket.socket, data: bytes) -> None:
        if self._held:
            data = self._held.pop(fd, b"") + data
        line = data[: data.find(b"\r\n")]
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._held[fd] = data
            return
        plan = self._plans.get(line)
        if plan is None:
            plan = self._plans[line] = Plan(line)
        if plan.kind in ("/get", "/post"):
            if len(data) < end + 4 + plan.up:
                self._held[fd] = data
                return
            sock.send(plan.answer)
        elif plan.kind == "/sse":
            wheel = self._wheels.setdefault(
                (plan.every_ms, plan.step), Wheel(plan.every_ms, step=plan.step)
            )
            stream = self._streams[fd] = Stream(fd, sock.send, wheel)
            sock.send(SSE_HEAD)
            wheel.add(stream)
        elif plan.kind == "/down":
            sock.send(DOWN_HEAD)
            self._feeding.add(fd)
            self._poller.modify(fd, select.EPOLLOUT)
        elif plan.kind == "/up":
            self._draining.add(fd)
        else:
            self._close(fd)

    def _tick(self) -> None:
        for wheel in self._wheels.values():
            for stream in wheel.fire():
                self._close(stream.fd)

    def _close(self, fd: int) -> None:
        sock = self._sockets.pop(fd, None)
        if sock is None:
            return
        stream = self._streams.pop(fd, None)
        if stream is not None:
            stream.wheel.remove(stream)
        self._held.pop(fd, None)
        self._feeding.discard(fd)
        self._draining.discard(fd)
        sock.close()


def main() -> None:
    backend = Backend()
    print(backend.port, flush=True)
    gc.disable()  # Nothing here makes cycles; a collection would show up as delay of a token.
    backend.run()


if __name__ == "__main__":
    main()
