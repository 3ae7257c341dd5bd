"""All targets by name."""

from __future__ import annotations

from tests.fuzz import (
    datagram_targets,
    http_targets,
    kcp_targets,
    nathole_targets,
    net_targets,
    wire_targets,
)
from tests.fuzz.engine import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *wire_targets.TARGETS,
        *http_targets.TARGETS,
        *nathole_targets.TARGETS,
        *net_targets.TARGETS,
        *datagram_targets.TARGETS,
        *kcp_targets.TARGETS,
    )
}
