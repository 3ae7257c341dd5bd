"""What the addresses that STUN servers saw tell about a NAT.

Source: frp `pkg/nathole/classify.go`; the words are frp's, because `nathole discover` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

EASY, HARD = "EasyNAT", "HardNAT"
NO_CHANGE, IP_CHANGED = "BehaviorNoChange", "BehaviorIPChanged"
PORT_CHANGED, BOTH_CHANGED = "BehaviorPortChanged", "BehaviorBothChanged"

REGULAR_SPREAD = 5
"""Ports that differ by no more than this can be guessed."""

_BEHAVIORS = {
    (False, False): NO_CHANGE,
    (True, False): IP_CHANGED,
    (False, True): PORT_CHANGED,
    (True, True): BOTH_CHANGED,
}
_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<v4>[0-9.]{7,15})):(?P<port>[0-9]{1,5})"
)


@dataclass(frozen=True, slots=True)
class Nat:
    """What kind of NAT somebody sits behind.

    Args:
        kind: `EASY` when every server sees the same address, else `HARD`.
        behavior: Which part of the address changes.
        spread: Largest difference of the ports; 0 unless the port alone changes.
        public: One of the addresses is the machine's own.
    """

    kind: str
    behavior: str
    spread: int
    public: bool

    @property
    def regular(self) -> bool:
        """Whether the ports that it will give can be guessed from those seen."""
        return 1 <= self.spread <= REGULAR_SPREAD


def split_address(address: str) -> tuple[str, int]:
    """Read `ip:port` or `[ip]:port`; a peer's word, so names are not taken.

    Raises:
        ValueError: it is none; with the text for the peer.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise ValueError(f"address {address[:60]}: no IP address and port")
    return found["v6"] or found["v4"], int(found["port"])


def hosts_of(addresses: Sequence[str]) -> list[str]:
    """The IP addresses of those that can be read, each once, in their order."""
    hosts: dict[str, None] = {}
    for address in addresses:
        try:
            hosts[split_address(address)[0]] = None
        except ValueError:
            continue
    return list(hosts)


def classify(mapped: Sequence[str], local_ips: Collection[str]) -> Nat:
    """Classify a NAT.

    Args:
        mapped: Addresses of one socket as different servers saw them.
        local_ips: The machine's own.

    Raises:
        ValueError: fewer than two addresses, or one that cannot be read; with frp's text.
    """
    if len(mapped) < 2:
        raise ValueError("not enough addresses")
    seen = [split_address(address) for address in mapped]
    hosts = {host for host, _ in seen}
    ports = [port for _, port in seen]
    spread = max(ports) - min(ports)
    behavior = _BEHAVIORS[len(hosts) > 1, spread > 0]
    return Nat(
        kind=EASY if behavior == NO_CHANGE else HARD,
        behavior=behavior,
        spread=spread if behavior == PORT_CHANGED else 0,
        public=not hosts.isdisjoint(local_ips),
    )
