"""All targets by name."""

from __future__ import annotations

from importlib.util import find_spec

from tests.fuzz import (
    auth_targets,
    datagram_targets,
    http_targets,
    kcp_targets,
    nathole_targets,
    net_targets,
    proxy_targets,
    wire_targets,
    wire_v2_targets,
)
from tests.fuzz.engine import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *wire_targets.TARGETS,
        *wire_v2_targets.TARGETS,
        *auth_targets.TARGETS,
        *http_targets.TARGETS,
        *nathole_targets.TARGETS,
        *net_targets.TARGETS,
        *datagram_targets.TARGETS,
        *proxy_targets.TARGETS,
        *kcp_targets.TARGETS,
    )
}

if find_spec("aioquic") is not None:  # It is optional.
    from tests.fuzz import quic_targets

    TARGETS |= {target.name: target for target in quic_targets.TARGETS}
