"""Websocket: TCP, frp's websocket on it, and within that TLS or not.

Source: frp `client/connector.go` (the order of the layers) and `pkg/util/net/dial.go` (the host).
"""

from __future__ import annotations

import asyncio

from pyfrp.client.connector import over
from pyfrp.client.route import Route
from pyfrp.client.transports.steps import reach, secure
from pyfrp.errors import HandshakeError
from pyfrp.net import websocket as net
from pyfrp.net.endpoint import Endpoint, format_address


async def dial(route: Route) -> tuple[Endpoint, bytes]:
    """Connect to the server, open a websocket, and speak TLS in it if the route says so.

    Raises:
        DialError, HandshakeError: with the reason in words.
    """
    link, early = await reach(route)
    host = format_address((route.host, route.port))
    websocket = await open_websocket(route, link, early, host)
    if route.tls is None:
        return websocket, b""
    return await secure(route, route.tls, websocket, b"", first_byte=route.tls_first_byte), b""


async def open_websocket(route: Route, link: Endpoint, early: bytes, host: str) -> Endpoint:
    """Open frp's websocket on a connection, paused.

    Args:
        early: What was read of it already.
        host: What to ask for it by.

    Raises:
        HandshakeError: with the reason in words; the connection is closed.
    """
    try:
        async with asyncio.timeout(route.dial_timeout_s):
            return await net.connect(link, host, early=early)
    except HandshakeError as exc:
        text = f"{route.host}:{route.port}: {exc}"
        raise HandshakeError(text, unanswered=exc.unanswered) from exc
    except TimeoutError:
        raise HandshakeError(
            f"no answer to the websocket handshake from {route.host}:{route.port} within "
            f"{route.dial_timeout_s:g} s; is it an frp server, and does anything on the way hold "
            "websockets back?",
            unanswered=True,
        ) from None


connect = over(dial)
