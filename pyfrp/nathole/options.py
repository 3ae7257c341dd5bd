"""What the whole client has set for its peer-to-peer connections."""

from __future__ import annotations


class PeerOptions:
    """Options of discovery and of QUIC tunnels; times in seconds.

    Every client has them, so that they are no dataclass: that would cost each start a millisecond.

    Args:
        stun_server: `host:port` of the server that tells us our outer address.
    """

    __slots__ = ("quic_idle_s", "quic_keepalive_s", "stun_server")

    def __init__(
        self, stun_server: str = "", *, quic_keepalive_s: float = 10.0, quic_idle_s: float = 30.0
    ) -> None:
        self.stun_server = stun_server
        self.quic_keepalive_s = quic_keepalive_s
        self.quic_idle_s = quic_idle_s
