"""The table of what is measured, and the floors that pyfrp's pair has to reach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a row.

    `key` is its name in the generator's result. The floors, where they are set: `at_most` and
    `at_least` are pyfrp's figure divided by the official pair's, `below_nginx` the one divided
    by nginx's, `limit` is absolute, in the figure's own unit.
    """

    key: str
    label: str
    digits: int = 1
    at_most: float | None = None
    at_least: float | None = None
    below: float | None = None
    below_nginx: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One load; `kind` is a key of `load.LOADS`, or "start"."""

    name: str
    title: str
    kind: str
    metrics: tuple[Metric, ...]
    connections: int = 1
    up: int = 0
    down: int = 128
    every_ms: int = 50
    step: bool = False
    """Whether all streams get their token at the same moment."""
    repeats: int = 1
    """Measurements in each round."""
    proxy: str = "http"
    """Type of the proxy that carries it; "stcp" with its visitor in the same client."""
    idle_proxies: int = 0
    """How many proxies there are besides."""
    transport: str = "tcp"
    """Between client and server; a key of `pairs.TRANSPORTS`."""
    service: str = "backend"
    """What is behind the tunnel: a module of this package."""
    beside: str = ""
    """Where the official pair cannot do that: the transport over which pyfrp's own pair takes the
    official one's place in the comparison."""


def _requests(
    cpu_at_most: float | None = None,
    rate_at_least: float | None = None,
    cpu_below_nginx: float | None = None,
) -> tuple[Metric, ...]:
    return (
        Metric("cpu_us", "CPU µs/request", 1, at_most=cpu_at_most, below_nginx=cpu_below_nginx),
        Metric("rate", "requests/s", 0, at_least=rate_at_least),
        Metric("p50_ms", "latency p50 ms", 2),
        Metric("p99_ms", "latency p99 ms", 2),
    )


def _streams(
    cpu_at_most: float, cpu_below_nginx: float | None = None, delay_below: float | None = 1.0
) -> tuple[Metric, ...]:
    return (
        Metric("cpu_ms", "CPU ms/1000 tokens", 1, at_most=cpu_at_most, below_nginx=cpu_below_nginx),
        Metric("p50_ms", "delay per token p50 ms", 2, below=delay_below),
        Metric("p99_ms", "delay per token p99 ms", 2, below=delay_below),
    )


def _sse(name: str, title: str, *, step: bool = False, service: str = "backend") -> tuple[Row, ...]:
    """50, 200 and 1000 streams; what a token costs depends on how many come together."""
    rows = (
        Row(f"{name}-50", f"{title}, 50", "streams", _streams(0.55), 50),
        Row(f"{name}-200", f"{title}, 200", "streams", _streams(0.50, 1.0), 200),
        Row(f"{name}-1000", f"{title}, 1000", "streams", _streams(0.48, 1.0), 1000, every_ms=100),
    )
    return tuple(replace(row, step=step, service=service) for row in rows)


_BULK = (
    Metric("cpu_s_gb", "CPU s/GB", 2, at_most=0.60, below_nginx=1.0),
    Metric("rate", "MB/s", 0, at_least=1.3),
)

_BEHIND_NOBODY = (
    Metric("cpu_us", "CPU µs/request", 1, below=1.0),
    Metric("rate", "requests/s", 0, at_least=1.0),
    Metric("p50_ms", "latency p50 ms", 2),
    Metric("p99_ms", "latency p99 ms", 2),
)
_TCP_BULK = (
    Metric("cpu_s_gb", "CPU s/GB", 2, at_most=0.50),
    Metric("rate", "MB/s", 0, at_least=1.0),
)
_STCP_BULK = (
    Metric("cpu_s_gb", "CPU s/GB", 2, below=1.0),
    Metric("rate", "MB/s", 0, at_least=1.0),
)
_IDLE = (
    Metric("idle_rss_mib", "idle MiB, sum of both RSS", 1),
    Metric("idle_once_mib", "idle MiB, shared pages once", 1),
    Metric("proxy_kb", "KB/proxy, above a pair without", 1, below=1.0),
)


def _other_types() -> tuple[Row, ...]:
    """What is not the main job: the same loads through proxies of other types."""
    small = "small messages, 64 connections"
    users = "datagrams of 64 bytes and back, 64 users"
    return (
        Row("tcp-64", f"tcp, {small}", "kept", _BEHIND_NOBODY, 64, proxy="tcp"),
        Row("tcp-new-16", "tcp, new connection each", "new", _BEHIND_NOBODY, 16, proxy="tcp"),
        Row("tcp-down", "tcp, bulk down", "down", _TCP_BULK, proxy="tcp"),
        Row("tcp-up", "tcp, bulk up", "up", _TCP_BULK, proxy="tcp"),
        Row("stcp-64", f"stcp, {small}", "kept", _BEHIND_NOBODY, 64, proxy="stcp"),
        Row("stcp-down", "stcp, bulk down", "down", _STCP_BULK, proxy="stcp"),
        Row("udp-64", f"udp, {users}", "datagrams", _BEHIND_NOBODY, 64, down=64, proxy="udp"),
        Row("idle-100", "100 idle tcp proxies", "idle", _IDLE, proxy="tcp", idle_proxies=100),
    )


def _over(transport: str, *, short: str = "", beside: str = "") -> tuple[Row, ...]:
    """The main job and bulk over a transport other than tcp, named by `short`."""
    short = short or transport
    title = f"{transport}, beside pyfrp over {beside}" if beside else transport
    cpu = 1.3 if beside else 1.0
    least = None if beside else 1.0
    bulk = (
        Metric("cpu_s_gb", "CPU s/GB", 2, at_most=cpu),
        Metric("rate", "MB/s", 0, at_least=least),
    )
    requests, streams = _requests(cpu, least), _streams(cpu, delay_below=least)
    rows = (
        Row(f"{short}-get-64", f"{title}: GET, 64 kept connections", "kept", requests, 64),
        Row(f"{short}-sse-200", f"{title}: SSE, 200", "streams", streams, 200),
        Row(f"{short}-down", f"{title}: bulk, one stream down", "down", bulk),
        Row(f"{short}-up", f"{title}: bulk, one stream up", "up", bulk),
    )
    return tuple(replace(row, transport=transport, beside=beside) for row in rows)


ROWS = (
    Row("get-1", "GET, 1 kept connection", "kept", _requests(cpu_at_most=0.45)),
    Row("get-64", "GET, 64 kept connections", "kept", _requests(0.12, 5.0, 1.0), 64),
    Row("new-16", "GET, new connection each, 16 at once", "new", _requests(0.30), 16),
    Row(
        "post-64",
        "POST chat, 2 KB up, 1 KB down, 64 kept connections",
        "kept",
        _requests(cpu_below_nginx=1.0),
        64,
        up=2048,
        down=1024,
    ),
    *_sse("app", "SSE of a Python service", service="app"),
    *_sse("step", "SSE in step", step=True),
    *_sse("sse", "SSE evenly spread"),
    Row("down", "bulk, one stream down", "down", _BULK),
    Row("up", "bulk, one stream up", "up", _BULK),
    Row(
        "memory",
        "memory, 2000 open streams",
        "memory",
        (
            Metric("stream_rss_kb", "RSS KB/stream", 1, at_most=0.06),
            Metric("stream_pss_kb", "PSS KB/stream", 1, at_most=0.06),
            Metric("idle_rss_mib", "idle MiB, sum of both RSS", 1),
            Metric("idle_once_mib", "idle MiB, shared pages once", 1, limit=60.0),
            Metric("idle_pss_mib", "idle MiB, sum of both PSS", 1),
        ),
        2000,
        every_ms=1000,
    ),
    Row(
        "start",
        "start of both to first answer",
        "start",
        (Metric("ready_ms", "ms", 0, at_most=1.0),),
        repeats=3,
    ),
    *_other_types(),
    *_over("websocket", short="ws"),
    *_over("wss", beside="tcp"),
    *_over("kcp"),
    *_over("quic"),
)


def select_rows(patterns: list[str]) -> list[Row]:
    """The rows that any of the shell patterns names, in the table's order; all without one.

    Raises:
        ValueError: a pattern names no row.
    """
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in ROWS):
            names = ", ".join(row.name for row in ROWS)
            raise ValueError(f"no row is called {pattern!r}; there are: {names}")
    return [
        row
        for row in ROWS
        if not patterns or any(fnmatchcase(row.name, pattern) for pattern in patterns)
    ]
