"""What the whole client has set for its peer-to-peer connections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """Options of discovery and of QUIC tunnels; times in seconds.

    Args:
        stun_server: `host:port` of the server that tells us our outer address.
    """

    stun_server: str = ""
    quic_keepalive_s: float = 10.0
    quic_idle_s: float = 30.0
