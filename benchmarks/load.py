"""The load generator: one process, one epoll loop, the same for every pair.

Run as `python -m benchmarks.load` with a `Spec` as JSON on standard input; writes the result as
JSON on standard output. Answers are counted by their length: the size of the body is known, so
the end of the head is all that is looked for.

On a small machine the generator shares the cores with the tunnel. CPU per request is therefore
the primary figure; rates are what this machine gives with the generator on it.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from benchmarks.backend import ENDLESS, STAMP_DIGITS, STAMP_MARK
from benchmarks.measure import Window, memory_of, percentile

HOST = "llm.local"
"""The caller's Host, which the tunnels route by."""

STALL_S = 10.0
"""A load without any progress for this long has failed."""
_OPENING_AT_ONCE = 32
"""Streams whose answer has not begun; few enough that no listener's queue overflows."""
_OPEN_LIMIT_S = 90.0
_READ_BYTES = 64 * 1024
_DATAGRAM_LOST_S = 0.5
"""A datagram that did not come back in this time does not come any more."""
_STATUS_OK = b"HTTP/1.1 200"


class LoadError(Exception):
    """The load could not be carried; the text says what was seen."""


@dataclass(slots=True)
class Spec:
    """One load.

    `kind` is a key of `LOADS`; `port` is where callers go; `pids` are the tunnel's processes.
    """

    kind: str
    port: int
    backend_pid: int
    pids: list[int] = field(default_factory=list)
    connections: int = 1
    up: int = 0
    down: int = 128
    every_ms: int = 50
    step: bool = False
    warm_s: float = 1.0
    window_s: float = 4.0


def request(method: str, target: str, body_bytes: int = 0, body: bytes = b"") -> bytes:
    """A request as an LLM client sends it."""
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {HOST}",
        "User-Agent: bench/1.0",
        "Accept: */*",
        "Accept-Encoding: gzip, deflate",
        "Authorization: Bearer sample-key-0123456789abcdef",
    ]
    if body_bytes:
        lines += ["Content-Type: application/json", f"Content-Length: {body_bytes}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=STALL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _common(window: Window, errors: int) -> dict[str, float]:
    return {
        "errors": errors,
        "seconds": window.seconds,
        "cpu_s": window.cpu_s,
        "generator_cpu_s": window.generator_cpu_s,
        "backend_cpu_s": window.backend_cpu_s,
        "busy": window.busy,
    }


def _requests_result(window: Window, latencies: list[float], errors: int) -> dict[str, float]:
    if not latencies:
        raise LoadError(f"no answer in the whole window ({errors} failed)")
    latencies.sort()
    return _common(window, errors) | {
        "count": len(latencies),
        "cpu_us": window.cpu_s / len(latencies) * 1e6,
        "rate": len(latencies) / window.seconds,
        "p50_ms": percentile(latencies, 0.50) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }


def _small_request(spec: Spec) -> bytes:
    if not spec.up:
        return request("GET", f"/get?down={spec.down}")
    body = b'{"messages":"' + b"x" * (spec.up - 15) + b'"}'
    return request("POST", f"/post?up={spec.up}&down={spec.down}", spec.up, body)


class Requests:
    """A closed loop of small requests: each connection sends the next one after its answer."""

    def __init__(self, spec: Spec, kept: bool) -> None:
        self._spec = spec
        self._kept = kept
        self._window = Window(spec.pids, spec.backend_pid)
        self._request = _small_request(spec)
        self._poller = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._began: dict[int, float] = {}
        self._partial: dict[int, bytes] = {}
        self._errors = 0

    def run(self) -> dict[str, float]:
        clock = time.perf_counter
        for _ in range(self._spec.connections):
            self._open()
        latencies: list[float] = []
        edge = clock() + self._spec.warm_s
        warm = True
        poll, body, kept = self._poller.poll, self._spec.down, self._kept
        sockets, began, partial = self._sockets, self._began, self._partial
        message = self._request
        while True:
            events = poll(STALL_S)
            if not events:
                raise LoadError(f"no answer for {STALL_S:.0f} s")
            for fd, mask in events:
                if mask == select.EPOLLOUT:
                    self._send_first(fd)
                    continue
                sock = sockets[fd]
                try:
                    data = sock.recv(_READ_BYTES)
                except OSError:
                    data = b""
                now = clock()
                if partial and data:
                    data = partial.pop(fd, b"") + data
                missing = data.find(b"\r\n\r\n") + 4 + body - len(data)
                if missing > 0 and data:
                    partial[fd] = data
                    continue
                if missing or not data.startswith(_STATUS_OK):
                    self._failed(fd, data)
                    continue
                latencies.append(now - began[fd])
                if kept:
                    began[fd] = now
                    sock.send(message)
                else:
                    del sockets[fd]
                    sock.close()
                    self._open()
            if clock() >= edge:
                if not warm:
                    break
                warm = False
                self._window.open()
                latencies.clear()
                self._errors = 0
                edge = clock() + self._spec.window_s
        self._window.close()
        return _requests_result(self._window, latencies, self._errors)

    def _open(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        fd = sock.fileno()
        self._sockets[fd] = sock
        self._began[fd] = time.perf_counter()
        sock.connect_ex(("127.0.0.1", self._spec.port))
        try:
            sock.send(self._request)
        except BlockingIOError:  # Not connected yet: the listener's queue was full.
            self._poller.register(fd, select.EPOLLOUT)
        except OSError as exc:
            raise LoadError(f"cannot connect: {exc}") from exc
        else:
            self._poller.register(fd, select.EPOLLIN)

    def _send_first(self, fd: int) -> None:
        self._sockets[fd].send(self._request)
        self._poller.modify(fd, select.EPOLLIN)

    def _failed(self, fd: int, data: bytes) -> None:
        self._errors += 1
        if self._errors > 100:
            line = data.split(b"\r\n", 1)[0].decode("latin-1") or "closed without an answer"
            raise LoadError(f"more than 100 failed requests, the last one: {line}")
        self._partial.pop(fd, None)
        self._sockets.pop(fd).close()
        self._open()


class Datagrams:
    """A closed loop of datagrams: each user sends the next one when the last one came back."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._window = Window(spec.pids, spec.backend_pid)
        self._poller = select.epoll()

    def run(self) -> dict[str, float]:
        clock = time.perf_counter
        message = bytes(self._spec.down)
        sockets: dict[int, socket.socket] = {}
        began: dict[int, float] = {}
        for _ in range(self._spec.connections):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(("127.0.0.1", self._spec.port))
            sock.setblocking(False)
            sockets[sock.fileno()] = sock
            self._poller.register(sock.fileno(), select.EPOLLIN)
        for fd, sock in sockets.items():
            began[fd] = clock()
            sock.send(message)
        latencies: list[float] = []
        lost = 0
        edge = clock() + self._spec.warm_s
        warm = True
        while True:
            for fd, _ in self._poller.poll(_DATAGRAM_LOST_S):
                sock = sockets[fd]
                sock.recv(_READ_BYTES)
                now = clock()
                latencies.append(now - began[fd])
                began[fd] = now
                sock.send(message)
            now = clock()
            if now < edge:
                continue
            # Looked at twice only: a loss leaves one user silent until then.
            for fd, sock in sockets.items():
                if now - began[fd] > _DATAGRAM_LOST_S:
                    lost += 1
                    began[fd] = now
                    sock.send(message)
            if not warm:
                break
            warm = False
            self._window.open()
            latencies.clear()
            lost = 0
            edge = clock() + self._spec.window_s
        self._window.close()
        return _requests_result(self._window, latencies, lost)


class Streams:
    """Open event streams, and the delay of each event against the time it carries."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        step = "&step=1" if spec.step else ""
        self._request = request("GET", f"/sse?every_ms={spec.every_ms}{step}")
        self._poller = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._opening: set[int] = set()
        self._carry: dict[int, bytes] = {}
        """Ends of reads that stopped inside an event."""
        self.delays: list[int] = []
        """Nanoseconds, one for each event."""
        self.errors = 0

    def open_all(self) -> None:
        """Open all streams, and return when each has had the head of its answer."""
        limit = time.monotonic() + _OPEN_LIMIT_S
        while len(self._sockets) < self._spec.connections or self._opening:
            while (
                len(self._opening) < _OPENING_AT_ONCE
                and len(self._sockets) < self._spec.connections
            ):
                self._open()
            self._read_once()
            if time.monotonic() > limit:
                raise LoadError(
                    f"only {len(self._sockets) - len(self._opening)} of "
                    f"{self._spec.connections} streams were open after {_OPEN_LIMIT_S:.0f} s"
                )

    def read_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read_once()

    def _open(self) -> None:
        sock = _connect(self._spec.port)
        sock.setblocking(False)
        sock.send(self._request)
        self._sockets[sock.fileno()] = sock
        self._opening.add(sock.fileno())
        self._poller.register(sock.fileno(), select.EPOLLIN)

    def _read_once(self) -> None:
        events = self._poller.poll(STALL_S)
        if not events:
            raise LoadError(f"no event for {STALL_S:.0f} s on {len(self._sockets)} streams")
        mark, skip, digits = STAMP_MARK, len(STAMP_MARK), STAMP_DIGITS
        sockets, carry, add = self._sockets, self._carry, self.delays.append
        clock = time.monotonic_ns
        for fd, _ in events:
            try:
                data = sockets[fd].recv(_READ_BYTES)
            except OSError:
                data = b""
            now = clock()
            if self._opening and fd in self._opening and data:
                if not data.startswith(_STATUS_OK):
                    line = data.split(b"\r\n", 1)[0].decode("latin-1")
                    raise LoadError(f"a stream was refused: {line}")
                self._opening.discard(fd)
            if not data:
                self._cut(fd)
                continue
            if carry:
                data = carry.pop(fd, b"") + data
            used = 0
            at = data.find(mark)
            while at >= 0:
                stamp = data[at + skip : at + skip + digits]
                if len(stamp) < digits:
                    break
                add(now - int(stamp))
                used = at + skip + digits
                at = data.find(mark, used)
            if not data.endswith(b"\r\n"):
                carry[fd] = data[max(used, len(data) - skip - digits) :]

    def _cut(self, fd: int) -> None:
        self.errors += 1
        if self.errors > 100:
            raise LoadError("more than 100 streams were cut")
        self._opening.discard(fd)
        self._carry.pop(fd, None)
        self._sockets.pop(fd).close()
        self._open()


def _streams(spec: Spec) -> dict[str, float]:
    streams = Streams(spec)
    streams.open_all()
    streams.read_for(spec.warm_s)
    window = Window(spec.pids, spec.backend_pid)
    streams.delays.clear()
    window.open()
    streams.read_for(spec.window_s)
    window.close()
    delays = sorted(streams.delays)
    if not delays:
        raise LoadError("no event in the whole window")
    expected = spec.connections * window.seconds * 1000 / spec.every_ms
    return _common(window, streams.errors) | {
        "count": len(delays),
        "cpu_ms": window.cpu_s * 1e3 / (len(delays) / 1000),
        "rate": len(delays) / window.seconds,
        "expected_share": len(delays) / expected,
        "p50_ms": percentile(delays, 0.50) / 1e6,
        "p99_ms": percentile(delays, 0.99) / 1e6,
    }


def _memory(spec: Spec) -> dict[str, float]:
    """Memory with many open streams, each with an event now and then, above idle memory."""
    time.sleep(spec.warm_s)
    idle = memory_of(spec.pids)
    streams = Streams(spec)
    streams.open_all()
    streams.read_for(spec.window_s)
    full = memory_of(spec.pids)
    return {
        "errors": streams.errors,
        "idle_rss_mib": idle.rss / 2**20,
        "idle_pss_mib": idle.pss / 2**20,
        "idle_once_mib": idle.once / 2**20,
        "stream_rss_kb": (full.rss - idle.rss) / 1024 / spec.connections,
        "stream_pss_kb": (full.pss - idle.pss) / 1024 / spec.connections,
    }


def _idle(spec: Spec) -> dict[str, float]:
    """Memory of a pair that has nothing to do."""
    time.sleep(spec.warm_s + spec.window_s)
    idle = memory_of(spec.pids)
    return {
        "errors": 0,
        "idle_rss_mib": idle.rss / 2**20,
        "idle_once_mib": idle.once / 2**20,
    }


def _bulk(spec: Spec, message: bytes, step: Callable[[socket.socket], int]) -> dict[str, float]:
    sock = _connect(spec.port)
    sock.settimeout(None)
    limit = struct.pack("ll", int(STALL_S), 0)
    # The kernel watches for a stall: a timeout of Python's own costs a poll for each call.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    window = Window(spec.pids, spec.backend_pid)
    moved = 0

    def move(seconds: float) -> None:
        nonlocal moved
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            count = step(sock)
            if not count:
                raise LoadError("the transfer was cut")
            moved += count

    try:
        sock.sendall(message)
        move(spec.warm_s)
        moved = 0
        window.open()
        move(spec.window_s)
        window.close()
    except BlockingIOError as exc:
        raise LoadError(f"the transfer stood still for {STALL_S:.0f} s") from exc
    except OSError as exc:
        raise LoadError(f"the transfer broke: {exc}") from exc
    return _common(window, 0) | {
        "bytes": moved,
        "cpu_s_gb": window.cpu_s / (moved / 1e9),
        "rate": moved / 1e6 / window.seconds,
    }


def _down(spec: Spec) -> dict[str, float]:
    into = bytearray(256 * 1024)
    return _bulk(spec, request("GET", "/down"), lambda sock: sock.recv_into(into))


def _up(spec: Spec) -> dict[str, float]:
    data = memoryview(bytes(256 * 1024))
    return _bulk(spec, request("POST", "/up", ENDLESS), lambda sock: sock.send(data))


LOADS: dict[str, Callable[[Spec], dict[str, float]]] = {
    "kept": lambda spec: Requests(spec, kept=True).run(),
    "new": lambda spec: Requests(spec, kept=False).run(),
    "streams": _streams,
    "datagrams": lambda spec: Datagrams(spec).run(),
    "memory": _memory,
    "idle": _idle,
    "down": _down,
    "up": _up,
}


def main() -> int:
    spec = Spec(**json.load(sys.stdin))
    gc.disable()  # A collection in the generator would be counted as latency of the tunnel.
    try:
        result: dict[str, object] = dict(LOADS[spec.kind](spec))
    except (LoadError, OSError) as exc:
        result = {"error": str(exc)}
    result["spec"] = asdict(spec)
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
