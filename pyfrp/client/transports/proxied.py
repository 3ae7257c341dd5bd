"""What a proxy on the way does to a link after its tunnel is made, told to the operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyfrp.client.route import Route
from pyfrp.errors import HandshakeError, PeerClosed, PyfrpError

# Silence after which the loss of a link may be a limit of the proxy's; shorter ones are chance.
IDLE_S = 5.0


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
