"""TLS around frp, at once or after frp's own byte."""

from __future__ import annotations

from pyfrp.net.certs import ServerContext
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.tls import upgrade


async def accept(
    endpoint: Endpoint, early: bytes, context: ServerContext
) -> tuple[Endpoint, bytes]:
    """Do the server's side of the handshake. Raises HandshakeError."""
    return await upgrade(endpoint, context, server_side=True, early=early), b""


async def accept_after_byte(
    endpoint: Endpoint, early: bytes, context: ServerContext
) -> tuple[Endpoint, bytes]:
    """The same, one byte later."""
    return await accept(endpoint, early[1:], context)
