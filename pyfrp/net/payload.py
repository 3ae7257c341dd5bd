"""The layers a proxy may put on its work connections: compression, a cipher, a bandwidth limit.

Source: frp `server/proxy/proxy.go` (`handleUserTCPConnection`) and `client/proxy/proxy.go`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfrp.net.endpoint import Endpoint
from pyfrp.net.filters import FilterEndpoint

if TYPE_CHECKING:
    from pyfrp.net.limit import Limiter


def wrap_payload(
    endpoint: Endpoint,
    early: bytes,
    *,
    key: bytes | None,
    compress: bool,
    link_limiter: Limiter | None = None,
    payload_limiter: Limiter | None = None,
) -> tuple[Endpoint, bytes]:
    """Put the agreed layers on a paused endpoint.

    Args:
        early: Bytes already read from `endpoint`.
        key: Of the cipher, or None for no encryption.
        link_limiter: Of the bytes as they are on the wire: a client's.
        payload_limiter: Of the bytes as they are for users: a server's.

    Returns:
        The endpoint to use, paused, and the bytes read ahead that are still to be passed to its
        reader.
    """
    if link_limiter is not None:
        endpoint = link_limiter.limit(endpoint, early)
        early = b""
    if key is not None:
        from pyfrp.wire.cfb import Decryptor, Encryptor

        endpoint = FilterEndpoint(
            endpoint, outward=Encryptor(key).encrypt, inward=Decryptor(key).decrypt, early=early
        )
        early = b""
    if compress:
        from pyfrp.wire.snappy import SnappyReader, SnappyWriter

        endpoint = FilterEndpoint(
            endpoint,
            outward=SnappyWriter().compress,
            inward=SnappyReader().decompress,
            early=early,
        )
        early = b""
    if payload_limiter is not None:
        endpoint = payload_limiter.limit(endpoint, early)
        early = b""
    return endpoint, early
