"""Which protocol a connection to the bind port speaks, told from its first bytes.

Source: frp `server/service.go` (the muxer's rules and their order), `pkg/util/net/tls.go` (the
TLS check), `pkg/util/vhost` and golib `net/mux/rule.go` (the HTTP methods).
"""

from __future__ import annotations

from enum import Enum, auto

WEBSOCKET_START = b"GET /~!frp"
"""How a websocket of frp's own begins. Its length is why each client sends ten bytes unasked."""

TLS_HANDSHAKE = 0x16
"""First byte of a TLS record that holds a ClientHello."""

FRP_TLS_BYTE = 0x17
"""What a client may write before TLS, so that HTTPS can share the port."""

_METHODS = frozenset(
    (b"GET", b"HEA", b"POS", b"PUT", b"DEL", b"CON", b"OPT", b"TRA", b"PAT", b"PRI")
)
_METHOD_STARTS = frozenset(method[:n] for method in _METHODS for n in (1, 2))


class Kind(Enum):
    """What follows, all of it still unread unless said otherwise."""

    WEBSOCKET = auto()
    """An HTTP upgrade to frp's websocket."""
    HTTPS = auto()
    """TLS where the https vhost is on the same port: for it, or around frp (`vhost/https.py`)."""
    HTTP = auto()
    """A request for the http vhost on the same port."""
    TLS = auto()
    """TLS around frp."""
    TLS_AFTER_BYTE = auto()
    """One byte to drop, then TLS around frp."""
    PLAIN = auto()
    """frp without TLS, or nonsense: the message decoder will tell."""


def classify(first: bytes, *, http_here: bool, https_here: bool) -> Kind | None:
    """Decide from the first bytes of a connection.

    Unlike the official server, which always waits for ten bytes, this waits only while the bytes
    so far leave the answer open.

    Args:
        first: All bytes received so far; any number.
        http_here: The http vhost shares the bind port.
        https_here: The https vhost shares the bind port.

    Returns:
        The kind, or None while more bytes are needed (at most ten in all).
    """
    if not first:
        return None
    if first[0] == TLS_HANDSHAKE:
        return Kind.HTTPS if https_here else Kind.TLS
    if first[0] == FRP_TLS_BYTE:
        return Kind.TLS_AFTER_BYTE
    if first.startswith(WEBSOCKET_START):
        return Kind.WEBSOCKET
    if WEBSOCKET_START.startswith(first):
        return None
    if http_here:
        if first[:3] in _METHODS:
            return Kind.HTTP
        if first in _METHOD_STARTS:
            return None
    return Kind.PLAIN
