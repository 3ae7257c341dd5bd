"""Is the local service alive? What decides whether its proxy is offered.

Source: frp `client/health/health.go`. Unlike there, a success forgets the failures before it, as
frp's reference says ("in a row").
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pyfrp.errors import DialError
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import format_address
from pyfrp.net.fetch import Fetcher, FetchError, Place

if TYPE_CHECKING:
    from pyfrp.config.proxies import HealthCheck, ProxyBase

_AS_IS = "".join(map(chr, range(0x21, 0x7F)))  # Of a path: what need not be percent-encoded.

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
    """A service is alive when a GET of its health path comes to 2xx, be it after redirections."""
    path = check.path if check.path.startswith("/") else f"/{check.path}"
    place = Place("http", host, port, quote(path, safe=_AS_IS))
    fields = {header.name: header.value for header in check.http_headers}
    named = format_address((host, port))
    for name in [name for name in fields if name.lower() == "host"]:
        named = fields.pop(name)

    async def probe(timeout_s: float) -> None:
        try:
            status = await Fetcher(timeout_s=timeout_s).status(place, fields, host=named)
        except FetchError as exc:
            raise DialError(str(exc)) from exc
        if not 200 <= status < 300:
            # frp's words.
            raise DialError(f"do http health check, StatusCode is [{status}] not 2xx")

    return probe


PROBES: dict[str, Callable[[str, int, HealthCheck], Probe]] = {
    "tcp": tcp_probe,
    "http": http_probe,
}
"""How each type asks; a new one is a function and a line here."""
