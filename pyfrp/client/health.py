"""Is the local service alive? What decides whether its proxy is offered.

Source: frp `client/health/health.go`. Unlike there, a success forgets the failures before it, as
frp's reference says ("in a row").
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pyfrp.errors import BadHead, DialError
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import format_address
from pyfrp.net.sockets import explain
from pyfrp.wire import http1

if TYPE_CHECKING:
    from pyfrp.config.proxies import HealthCheck, ProxyBase

READ_BYTES = 16 * 1024

Probe = Callable[[float], Awaitable[None]]
"""`await probe(timeout_s)`: asks the service once. Raises DialError with the reason."""


class HealthMonitor:
    """Probes a service for as long as `run` runs.

    Attributes:
        healthy: What the last probes say; False before the first.
    """

    def __init__(self, probe: Probe, *, interval_s: float, timeout_s: float, max_failed: int):
        self.healthy = False
        self._probe = probe
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._max_failed = max_failed

    async def run(self, on_change: Callable[[], None], log: Any) -> None:
        """Probe for ever, beginning anew: unhealthy until the first success.

        Args:
            on_change: Called after each change of `healthy`.
        """
        self.healthy = False
        failed = 0
        while True:
            try:
                await self._probe(self._timeout_s)
            except DialError as exc:
                failed += 1
                log.warning(f"do one health check failed: {exc}")
                if self.healthy and failed >= self._max_failed:
                    self.healthy = False
                    log.warning("health check status change to failed")
                    log.info("health check failed")
                    on_change()
            else:
                failed = 0
                if not self.healthy:
                    self.healthy = True
                    log.info("health check status change to success")
                    log.info("health check success")
                    on_change()
            await asyncio.sleep(self._interval_s)


def make_monitor(cfg: ProxyBase) -> HealthMonitor | None:
    """The monitor that a proxy's table asks for; None when it asks for none."""
    check = cfg.health_check
    if not check.type or cfg.local_port <= 0:
        return None
    probe = PROBES[check.type](cfg.local_ip, cfg.local_port, check)
    usual = type(check)()  # For what is below zero: it would be asked without a pause.
    return HealthMonitor(
        probe,
        interval_s=max(check.interval_seconds, 0) or usual.interval_seconds,
        timeout_s=max(check.timeout_seconds, 0) or usual.timeout_seconds,
        max_failed=max(check.max_failed, 0) or usual.max_failed,
    )


def tcp_probe(host: str, port: int, check: HealthCheck) -> Probe:
    """A service is alive when it takes a connection."""

    async def probe(timeout_s: float) -> None:
        endpoint, _ = await dial_tcp(host, port, timeout_s=timeout_s)
        endpoint.abort()

    return probe


def http_probe(host: str, port: int, check: HealthCheck) -> Probe:
    """A service is alive when it answers a GET of its health path with 2xx."""
    request = _request(host, port, check)

    async def probe(timeout_s: float) -> None:
        where = format_address((host, port))
        try:
            async with asyncio.timeout(timeout_s):
                status = await _ask(host, port, request)
        except TimeoutError:
            raise DialError(f"{where}: no answer within {timeout_s:g} s") from None
        except OSError as exc:
            raise DialError(f"{where}: {explain(exc)}") from exc
        except BadHead as exc:
            raise DialError(f"{where}: {exc}") from exc
        if not 200 <= status < 300:
            # frp's words.
            raise DialError(f"do http health check, StatusCode is [{status}] not 2xx")

    return probe


PROBES: dict[str, Callable[[str, int, HealthCheck], Probe]] = {
    "tcp": tcp_probe,
    "http": http_probe,
}
"""How each type asks; a new one is a function and a line here."""


def _request(host: str, port: int, check: HealthCheck) -> bytes:
    path = check.path if check.path.startswith("/") else f"/{check.path}"
    named = format_address((host, port))
    lines = []
    for header in check.http_headers:
        if header.name.lower() == "host":
            named = header.value
        else:
            lines.append(f"{header.name}: {header.value}\r\n")
    head = f"GET {path} HTTP/1.1\r\nHost: {named}\r\nConnection: close\r\n"
    return f"{head}{''.join(lines)}\r\n".encode()


async def _ask(host: str, port: int, request: bytes) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        data = b""
        while True:
            head = http1.next_response_head(data, b"GET")
            if head is not None:
                if head.status >= 200:
                    return head.status
                data = data[len(head.raw) :]
                continue
            more = await reader.read(READ_BYTES)
            if not more:
                raise BadHead("it closed the connection without an answer")
            data += more
    finally:
        # Whatever else it says, nobody reads it.
        writer.transport.abort()
