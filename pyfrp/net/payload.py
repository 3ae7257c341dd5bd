"""The layers a proxy may put on its work connections: compression, then a cipher.

Source: frp `server/proxy/proxy.go` (`handleUserTCPConnection`) and `client/proxy/proxy.go`.
"""

from __future__ import annotations

from pyfrp.net.endpoint import Endpoint
from pyfrp.net.filters import FilterEndpoint


def wrap_payload(
    endpoint: Endpoint, early: bytes, *, key: bytes | None, compress: bool
) -> tuple[Endpoint, bytes]:
    """Put the agreed layers on a paused endpoint.

    Args:
        early: Bytes already read from `endpoint`.
        key: Of the cipher, or None for no encryption.

    Returns:
        The endpoint to use, paused, and the bytes read ahead that are still to be passed to its
        reader.
    """
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
    return endpoint, early
