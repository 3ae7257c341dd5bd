"""What callers' exchanges ask of whoever runs them: the http vhost of a server, or a plugin."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pyfrp.errors import PyfrpError
from pyfrp.net.bridge import Bridge
from pyfrp.net.endpoint import Endpoint
from pyfrp.wire.http1 import RequestHead

if TYPE_CHECKING:
    from pyfrp.vhost.exchange import HttpExchange
    from pyfrp.vhost.frontend import HttpRoute


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that failed, for the log.

    Attributes:
        route: Who was to answer it, if that was found out.
        head: Its head, if there was a good one.
        caller: Whose it was.
        status: Of our answer; 0 for an answer of the service that was cut.
        stage: How far it came.
        cause: Why it failed.
    """

    route: HttpRoute | None
    head: RequestHead | None
    caller: tuple[str, int]
    status: int
    stage: str
    cause: str

    @property
    def host(self) -> str:
        """Whom it was for, cut to what a line of the log may hold."""
        return self.head.host[:200] if self.head is not None else ""


class Serving(Protocol):
    """Routes, answers of our own, and the means of the event loop.

    Attributes:
        clock: Seconds; whoever implements this calls `expire` of exchanges past their `deadline`.
        header_timeout_s: Seconds a service may take to its answer's head; 0 or less for no limit.
        prior_knowledge: Whether a connection may begin with HTTP/2's preface.
        draining: Whether connections are to end after the answer that is under way.
        date: For the Date field.
    """

    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def soon(self) -> Callable[..., Any]: ...
    @property
    def later(self) -> Callable[..., Any]: ...
    @property
    def header_timeout_s(self) -> float: ...
    @property
    def prior_knowledge(self) -> bool: ...
    @property
    def draining(self) -> bool: ...
    @property
    def date(self) -> bytes: ...

    def enter(self, exchange: HttpExchange) -> None:
        """A caller's connection is served from now on."""
        ...

    def leave(self, exchange: HttpExchange) -> None:
        """It is gone, or somebody else's."""
        ...

    def bridge(self, join: Callable[..., Bridge]) -> None:
        """Keep an upgraded connection and its upstream joined for good.

        Args:
            join: Makes the bridge, given its `on_close`.
        """
        ...

    def spawn(self, coro: Coroutine[Any, Any, None]) -> None: ...

    def serve_http2(self, caller: Endpoint, early: bytes) -> None:
        """Serve a caller whose first bytes were HTTP/2's preface."""
        ...

    def route(self, head: RequestHead) -> HttpRoute | None:
        """Who answers a request; None for `refuse_unknown`."""
        ...

    def pass_on(
        self, tried: tuple[HttpRoute, ...], head: RequestHead, ip: bytes, sent: bytes
    ) -> tuple[HttpRoute, bytes] | None:
        """Who else may answer a request that `tried` failed, and what to send; None for nobody."""
        ...

    def refuse_unknown(self, exchange: HttpExchange, head: RequestHead) -> None: ...

    def refuse_away(self, exchange: HttpExchange, exc: PyfrpError) -> None:
        """There is no connection to the service."""
        ...

    def refuse_dead(self, exchange: HttpExchange, why: str, *, stage: str) -> None:
        """The service refused, or broke before an answer."""
        ...

    def log_refusal(self, refusal: Refusal) -> None:
        """Say that a request failed."""
        ...
