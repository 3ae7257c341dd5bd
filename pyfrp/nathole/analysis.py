"""How two sides behind NATs try to meet, and which way to try next.

Nobody knows beforehand what works between two networks. So each pair of networks has a list of
ways, each with a score: the best is tried, loses a point for it, and gains two when it worked.

Source: frp `pkg/nathole/analysis.go` (the tables, scores and their order) and
`pkg/nathole/controller.go` (`genAnalysisKey`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pyfrp.nathole.nat import EASY, HARD, Nat

SENDER, RECEIVER = "sender", "receiver"
REWARD = 2
BEST_SCORE = 10
# Pairs of networks that are remembered; the addresses in their keys are what clients claim.
MAX_PAIRS = 10_000


@dataclass(frozen=True, slots=True)
class Behavior:
    """What one side does.

    Args:
        role: A `SENDER` comes later and knocks; a `RECEIVER` opens its NAT first.
        ttl: Hop limit of the receiver's datagrams, which need not arrive; 0 for the usual one.
        delay_ms: How long to wait before sending.
        reach: How far from the peer's last port to guess; 0 for no guessing.
        random_ports: How many random ports of the peer to send to.
        listen_ports: How many more sockets to open.
    """

    role: str
    ttl: int = 0
    delay_ms: int = 0
    reach: int = 0
    random_ports: int = 0
    listen_ports: int = 0


Pair = tuple[Behavior, Behavior]
"""The side of the proxy, then the visitor's."""


def _sender(**more: int) -> Behavior:
    return Behavior(SENDER, **more)


def _receiver(**more: int) -> Behavior:
    return Behavior(RECEIVER, **more)


def _spray(reach: int) -> tuple[Pair, ...]:
    """A thousand random ports against 256 sockets: by the birthday paradox two of them meet."""
    sender = _sender(random_ports=1000, delay_ms=3000)
    return tuple((sender, _receiver(listen_ports=256, ttl=ttl, reach=reach)) for ttl in (7, 4, 0))


MODES: tuple[tuple[Pair, ...], ...] = (
    # 0: neither changes ports, or one is public.
    (
        (_sender(), _receiver(ttl=7)),
        (_receiver(ttl=7), _sender()),
        (_sender(), _receiver(ttl=4)),
        (_receiver(ttl=4), _sender()),
        (_sender(), _receiver()),
        (_receiver(), _sender()),
        (_sender(delay_ms=5000), _receiver()),
        (_sender(delay_ms=10000), _receiver()),
        (_receiver(), _sender(delay_ms=5000)),
        (_receiver(), _sender(delay_ms=10000)),
    ),
    # 1: the hard one's ports can be guessed; it sends.
    tuple(
        (_sender(delay_ms=delay), _receiver(ttl=ttl, reach=10))
        for ttl in (7, 4, 0)
        for delay in (0, 2000)
    ),
    # 2: they cannot; the hard one receives.
    _spray(0),
    # 3: both are hard and can be guessed.
    (
        *((_sender(reach=10), _receiver(ttl=ttl, reach=10)) for ttl in (7, 4, 0)),
        *((_receiver(ttl=ttl, reach=10), _sender(reach=10)) for ttl in (7, 4, 0)),
    ),
    # 4: both are hard and one can be guessed; that one sends.
    _spray(2),
)


@dataclass(slots=True)
class Way:
    """One row of `MODES` and how promising it is."""

    mode: int
    index: int
    score: int


def ways_for(client: Nat, visitor: Nat) -> list[Way]:
    """The ways that are worth a try, best guess first; `client` is the side of the proxy."""
    hard = [nat for nat in (client, visitor) if nat.kind == HARD]
    regular = sum(nat.regular for nat in hard)
    if not hard:
        return _mode_0(client, visitor)
    if len(hard) == 1:
        first, second = (1, 2) if regular else (2, 1)
        return [*_ways(first), *_ways(second), *_mode_0(client, visitor)]
    if regular == 2:
        return [*_ways(3), *_ways(4)]
    if regular == 1:
        return _ways(4)
    return [*_ways(0, 1, 1), *_ways(1, 1, 1), *_ways(3, 1, 1)]


def _mode_0(client: Nat, visitor: Nat) -> list[Way]:
    """A public side should be the receiver."""
    if client.public:
        return _ways(0, 0, 1)
    return _ways(0, 1, 0) if visitor.public else _ways(0)


def _ways(mode: int, sending: int = 0, receiving: int = 0) -> list[Way]:
    """All rows of a mode, scored by the role of the proxy's side."""
    return [
        Way(mode, index, sending if client.role == SENDER else receiving)
        for index, (client, _) in enumerate(MODES[mode])
    ]


def _swaps(mode: int, client: Nat) -> bool:
    """Whether the visitor is the one that the first column of a mode is meant for."""
    if mode == 1:
        return client.kind == EASY
    if mode == 2:
        return client.kind == HARD
    return mode == 4 and not client.regular


@dataclass(slots=True)
class _Record:
    ways: list[Way]
    used_at: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The way that was chosen for a meeting."""

    key: str
    mode: int
    index: int
    client: Behavior
    visitor: Behavior


class Analyzer:
    """Remembers what worked between which networks.

    Args:
        keep_s: How long a pair of networks that is not used is remembered.
    """

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._records: OrderedDict[str, _Record] = OrderedDict()  # The latest used is the last.

    def __len__(self) -> int:
        return len(self._records)

    def choose(self, key: str, client: Nat, visitor: Nat, now: float) -> Choice:
        """Choose the best way for a pair of networks; `key` tells pairs apart."""
        self._forget(now)
        record = self._records.get(key)
        if record is None:
            if len(self._records) >= MAX_PAIRS:
                self._records.popitem(last=False)
            record = self._records[key] = _Record(ways_for(client, visitor), now)
        way = max(record.ways, key=lambda way: way.score)  # Of equals the first.
        way.score -= 1
        self._touch(key, record, now)
        ours, theirs = MODES[way.mode][way.index]
        if _swaps(way.mode, client):
            ours, theirs = theirs, ours
        return Choice(key, way.mode, way.index, ours, theirs)

    def worked(self, choice: Choice, now: float) -> None:
        """Prefer this way for its pair from now on."""
        record = self._records.get(choice.key)
        if record is None:
            return
        self._touch(choice.key, record, now)
        for way in record.ways:
            if (way.mode, way.index) == (choice.mode, choice.index):
                way.score = min(way.score + REWARD, BEST_SCORE)

    def _touch(self, key: str, record: _Record, now: float) -> None:
        record.used_at = now
        self._records.move_to_end(key)

    def _forget(self, now: float) -> None:
        while self._records:
            key, record = next(iter(self._records.items()))
            if now - record.used_at <= self._keep_s:
                return
            del self._records[key]
