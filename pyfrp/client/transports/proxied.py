"""What a proxy on the way does to a link after its tunnel is made, told to the operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyfrp.client.route import Route
from pyfrp.errors import HandshakeError, PeerClosed, PyfrpError

if TYPE_CHECKING:
    from pyfrp.net.outproxy import Proxy

# Silence, or life, after which the loss of a link may be a limit of the proxy's; less is chance.
IDLE_S = 5.0
AGE_S = 5.0
# Two lives are equal when they differ by no more than this part, or this many seconds.
SAME_PART, SAME_S = 0.1, 1.0


@contextmanager
def blaming(route: Route) -> Iterator[None]:
    """Name the route's proxy where a link through it gets no answer.

    Raises:
        HandshakeError: in place of one that is `unanswered`.
    """
    try:
        yield
    except (HandshakeError, PeerClosed) as exc:
        if route.proxy is None or not getattr(exc, "unanswered", True):
            raise
        from pyfrp.net.proxywords import cut_inside  # most clients need none

        words = cut_inside(route.proxy, str(exc), route.protocol, tls=route.tls is not None)
        raise HandshakeError(words, unanswered=True) from exc


def idle_cut(route: Route, cause: PyfrpError, silent_s: float) -> str:
    """What to try if a session has ended because the proxy cuts what is idle; "" if it hasn't.

    Args:
        silent_s: For how long nothing had come by then.
    """
    if route.proxy is None or silent_s < IDLE_S or not isinstance(cause, PeerClosed):
        return ""
    from pyfrp.net import proxywords

    key = "tcpMuxKeepaliveInterval" if route.tcp_mux else "heartbeatInterval"
    return proxywords.idle_cut(route.proxy, silent_s, f"transport.{key}")


class Cuts:
    """Looks at how sessions end, for limits that a proxy has on its tunnels."""

    def __init__(self) -> None:
        self._last: tuple[Proxy | None, float] = (None, 0.0)

    def hint(self, route: Route, cause: PyfrpError, silent_s: float, age_s: float) -> str:
        """What to try after a session has ended; "" if it looks like no limit.

        Args:
            silent_s: For how long nothing had come by then.
            age_s: How long the session lasted.
        """
        before, self._last = self._last, (route.proxy, age_s)
        idle = idle_cut(route, cause, silent_s)
        if idle or route.proxy is None or age_s < AGE_S or not isinstance(cause, PeerClosed):
            return idle
        proxy, last_s = before
        if proxy != route.proxy or abs(age_s - last_s) > max(SAME_S, SAME_PART * age_s):
            return ""
        from pyfrp.net import proxywords

        return proxywords.age_cut(route.proxy, age_s, f"{route.host}:{route.port}")
