"""frp's websocket around frp: with TLS in it, in TLS, or without any."""

from __future__ import annotations

from pyfrp.net.certs import ServerContext
from pyfrp.net.endpoint import Endpoint


async def accept(
    endpoint: Endpoint, early: bytes, context: ServerContext
) -> tuple[Endpoint, bytes]:
    """Do the server's side of the handshake. Raises LinkError."""
    from pyfrp.net import websocket  # not at start: few servers need it, and it brings more

    return await websocket.accept(endpoint, early=early), b""
