"""Which remote ports proxies may have, have, and had.

Source of the rules and texts: frp `server/ports/ports.go`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pyfrp.errors import RefusedError

KEEP_S = 24 * 3600.0  # A name gets its random port again for this long.
MAX_REMEMBERED = 10_000
RANDOM_TRIES = 5


class PortManager:
    """Books ports; binding them is the proxy's business.

    Args:
        allowed: Inclusive ranges; empty for all ports.
    """

    def __init__(self, allowed: Sequence[tuple[int, int]]) -> None:
        self._allowed = list(allowed) or [(1, 65535)]
        self._used: dict[int, str] = {}
        self._remembered: dict[str, tuple[int, float]] = {}

    def candidates(self, name: str, port: int, now: float) -> list[int]:
        """The ports to try for a proxy, in order; for port 0 some at random.

        Raises:
            RefusedError: when a given port is not allowed or taken, or no port is left.
        """
        if port:
            if port in self._used:
                raise RefusedError("port already used")
            if not any(low <= port <= high for low, high in self._allowed):
                raise RefusedError("port not allowed")
            return [port]
        found: list[int] = []
        kept, until = self._remembered.get(name, (0, 0.0))
        if kept and until >= now and kept not in self._used:
            found.append(kept)
        sizes = [high - low + 1 for low, high in self._allowed]
        for _ in range(RANDOM_TRIES * 20):
            low, high = random.choices(self._allowed, sizes)[0]
            port = random.randint(low, high)
            if port not in self._used and port not in found:
                found.append(port)
            if len(found) > RANDOM_TRIES:
                break
        if not found:
            raise RefusedError("no available port")
        return found

    def take(self, name: str, port: int) -> None:
        self._used[port] = name

    def release(self, name: str, port: int, now: float) -> None:
        """Free a port and remember whose it was."""
        self._used.pop(port, None)
        self._remembered.pop(name, None)
        self._remembered[name] = (port, now + KEEP_S)
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
