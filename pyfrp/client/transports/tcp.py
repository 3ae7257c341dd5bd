"""TCP, with TLS on it or without."""

from __future__ import annotations

from pyfrp.client.connector import over
from pyfrp.client.route import Route
from pyfrp.client.transports.steps import reach, secure
from pyfrp.net.endpoint import Endpoint


async def dial(route: Route) -> tuple[Endpoint, bytes]:
    """Connect to the server, and speak TLS if the route says so.

    Raises:
        DialError, HandshakeError: with the reason in words.
    """
    endpoint, early = await reach(route)
    if route.tls is None:
        return endpoint, early
    return await secure(route, route.tls, endpoint, early, first_byte=route.tls_first_byte), b""


connect = over(dial)
