"""Steps on the way to the server that transports have in common."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial

from pyfrp.client.route import Route
from pyfrp.errors import DialError, HandshakeError
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.tls import upgrade
from pyfrp.wire.sniff import FRP_TLS_BYTE


async def reach(route: Route) -> tuple[Endpoint, bytes]:
    """A TCP connection to the server's port, or a proxy's tunnel, paused, and bytes read ahead.

    Raises:
        DialError: with the reason in words.
    """
    dial = partial(
        dial_tcp,
        timeout_s=route.dial_timeout_s,
        keepalive_s=route.keepalive_s,
        local_ip=route.local_ip,
        link=True,
    )
    if route.proxy is not None:
        from pyfrp.net.via import dial_via  # most clients need none

        return await dial_via(
            dial, route.proxy, route.host, route.port, timeout_s=route.dial_timeout_s
        )
    endpoint, held = await dial(route.host, route.port)
    if held.ended:
        endpoint.abort()
        raise DialError(f"{route.host}:{route.port} accepts connections and closes them at once")
    return endpoint, held.early


async def secure(
    route: Route, context: ssl.SSLContext, endpoint: Endpoint, early: bytes, *, first_byte: bool
) -> Endpoint:
    """Speak TLS on a connection, paused.

    Args:
        early: What was read of it already.
        first_byte: Whether to announce TLS with frp's own byte.

    Raises:
        HandshakeError: with the reason in words; the connection is closed.
    """
    if first_byte:
        endpoint.write(bytes((FRP_TLS_BYTE,)))
    try:
        async with asyncio.timeout(route.dial_timeout_s):
            return await upgrade(
                endpoint,
                context,
                server_side=False,
                server_name=route.tls_server_name,
                early=early,
            )
    except TimeoutError:
        raise HandshakeError(
            f"no TLS answer from {route.host}:{route.port} within {route.dial_timeout_s:g} s; "
            "is it an frp server, and does anything on the way hold TLS back?",
            unanswered=True,
        ) from None
