"""A request kept for a second try.

A kept work connection may be closed by the local service at the very moment at which a request is
sent on it. Such a request goes out once more, on a fresh connection, if nothing of an answer came,
the whole of what was sent is at hand, and the end came at once: a service that worked on the
request for a while and then died must not get it twice. That goes for POST as well, although RFC
9110, 9.2.2, tells proxies to leave such a choice to the caller: nearly all calls of an LLM API are
POSTs, and most services close idle connections after seconds.

In a group of proxies a request on a fresh connection is kept as well, for another member.
"""

from __future__ import annotations

LIMIT = 64 * 1024  # Bytes of a request that are kept.
WITHIN_S = 1.0  # A connection that was closed under a request shows it within this time.


class Replay:
    """What was sent of a request, as long as it may be sent again."""

    __slots__ = ("_sent", "_since")

    def __init__(self) -> None:
        self._sent: bytes | None = None
        self._since = 0.0

    def begin(self, sent: bytes, now: float) -> None:
        """A request's first bytes went out."""
        self._sent = sent
        self._since = now

    def add(self, data: bytes) -> None:
        """More of the same request went out."""
        sent = self._sent
        if sent is not None:
            self._sent = sent + data if len(sent) + len(data) <= LIMIT else None

    def drop(self) -> None:
        """The request may not be sent again: its answer has begun, or nobody else would take it."""
        self._sent = None

    def take(self, now: float, safe: bool = False) -> bytes | None:
        """The request's bytes, once, if its connection ended early enough.

        Args:
            safe: The request changes nothing, so that two of it do no harm at any time.
        """
        sent, self._sent = self._sent, None
        return sent if safe or now - self._since < WITHIN_S else None
