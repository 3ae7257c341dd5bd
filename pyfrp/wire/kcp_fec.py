"""Groups of datagrams with parity: what a KCP peer adds so that lost ones need not come again.

Source: xtaci/kcp-go v5.6.13 `fec.go` (groups, numbers, when parity is left out), which is what frp
0.65 is built with. There a sender that leaves parity out does not advance its numbers, so groups
drift against the multiples of 13; a receiver of that version then gives parity up for good. So we
advance them, as later versions do, and take groups from wherever they begin.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyfrp.errors import RemoteWireError
from pyfrp.wire.kcp import (
    DATA,
    DATA_SHARDS,
    GROUP,
    PARITY_SHARDS,
    decode_segments,
    encode_parity,
    encode_shard,
    inverse,
    parity,
    parity_rows,
    shard_body,
    times,
)

FEC_SIZE = 6
"""Bytes of a datagram before its shard."""
WRAP = 0xFFFFFFFF // GROUP * GROUP
"""Where numbers of datagrams begin again."""
# A group whose last datagram came this long after the one before has no parity: those before it
# have been repeated by then.
STALE_S = 0.5
# Late datagrams that may still complete a group.
KEPT = 3 * GROUP
# Groups that came out wrong, one after the other, before parity is not looked at any more: whoever
# makes it is not who we think, and each costs as much as forty datagrams.
MAX_FAULTS = 16

_DATA = DATA & 0xFF


class Protection:
    """Numbers the datagrams of one direction, and makes their parity."""

    def __init__(self) -> None:
        self.seqid = 0
        self._group: list[bytes] = []
        self._sent_at = 0.0

    def add(self, datagram: bytes, now: float, *, wanted: bool) -> list[bytes]:
        """Take a datagram that was numbered with `seqid`; returns parity to send after it.

        Args:
            wanted: Whether parity is worth its price just now.
        """
        group = self._group
        group.append(datagram)
        self.seqid = (self.seqid + 1) % WRAP
        before, self._sent_at = self._sent_at, now
        if len(group) < DATA_SHARDS:
            return []
        self._group = []
        first = self.seqid
        self.seqid = (first + PARITY_SHARDS) % WRAP
        if not wanted or now - before >= STALE_S:
            return []
        shards = parity([data[FEC_SIZE:] for data in group])
        return [encode_parity(first + at, shard) for at, shard in enumerate(shards)]


class Recovery:
    """Keeps the latest datagrams of one direction, to make lost ones from parity.

    Holds at most `KEPT` datagrams.

    Args:
        conv: The conversation: what comes out must be of it.
    """

    def __init__(self, conv: int) -> None:
        self._conv = conv
        self._kept: dict[int, bytes] = {}
        self._newest = -1
        self._hole = -GROUP  # The newest number before which one is missing.
        self._start = DATA_SHARDS  # Where parity began in the latest group that is known for sure.
        self._faults = 0

    def note(self, seqid: int, datagram: bytes) -> list[bytes]:
        """Take a datagram; returns the KCP segments of those that could be made with it.

        Args:
            datagram: Whole, with the header.
        """
        kept = self._kept
        is_data = datagram[4] == _DATA
        if seqid == self._newest + 1:
            if not is_data and self._newest in kept and kept[self._newest][4] == _DATA:
                self._start = seqid
            kept[seqid] = datagram
            self._newest = seqid
            if len(kept) > KEPT:
                del kept[next(iter(kept))]
            if is_data or seqid - self._hole >= GROUP:
                return []
        elif seqid in kept and kept[seqid].startswith(datagram):  # One that was made is padded.
            return []
        else:
            self._keep_odd(seqid, datagram)
        if self._faults >= MAX_FAULTS:
            return []
        begin = self._group_of(seqid, is_data=is_data)
        return [] if begin is None or not self._suffices(begin) else self._complete(begin)

    def _keep_odd(self, seqid: int, datagram: bytes) -> None:
        """Keep one that is not the next; a leap, or numbers that began again, make a new start."""
        kept = self._kept
        if abs(seqid - self._newest) > KEPT or seqid in kept:
            kept.clear()
            self._newest = self._hole = seqid
            self._start = -KEPT
        elif seqid > self._newest:
            self._newest = self._hole = seqid
        kept[seqid] = datagram
        if len(kept) > KEPT:
            del kept[next(iter(kept))]

    def _group_of(self, seqid: int, *, is_data: bool) -> int | None:
        """Where the group of a datagram begins, if that is sure.

        It must be: members of different groups make something that looks right, since whatever is
        equal in all datagrams, such as the conversation, is so in parity too.
        """
        if is_data:  # Only late ones come here.
            begin = self._start - DATA_SHARDS
            return begin if begin <= seqid < self._start else None
        starts = [start for start in range(seqid, seqid - PARITY_SHARDS, -1) if self._fits(start)]
        if len(starts) > 1:
            # Each group without parity moves the next by -3 or 0 modulo 13, so that it takes four
            # of them to mistake one of these for another.
            since = [start - self._start for start in starts]
            starts = [
                start
                for start, way in zip(starts, since, strict=True)
                if way % GROUP == 0 and 0 <= way < 4 * DATA_SHARDS
            ]
        if len(starts) != 1:
            return None
        self._start = starts[0]
        return self._start - DATA_SHARDS

    def _fits(self, start: int) -> bool:
        """Whether all that came agrees with parity that begins there."""
        kept = self._kept
        for at in range(start - DATA_SHARDS, start + PARITY_SHARDS + 1):
            datagram = kept.get(at)
            if datagram is not None:
                is_data = datagram[4] == _DATA
                if is_data == (start <= at < start + PARITY_SHARDS):
                    return False
        return start >= DATA_SHARDS

    def _suffices(self, begin: int) -> bool:
        """Whether enough of a group came to make the rest, and there is a rest."""
        kept = self._kept
        data = sum(at in kept for at in range(begin, begin + DATA_SHARDS))
        extra = sum(at in kept for at in range(begin + DATA_SHARDS, begin + GROUP))
        return data < DATA_SHARDS <= data + extra

    def _complete(self, begin: int) -> list[bytes]:
        """Make the missing data of a group, if what comes out makes sense."""
        kept = self._kept
        shards = [
            None if datagram is None else datagram[FEC_SIZE:]
            for datagram in (kept.get(begin + place) for place in range(GROUP))
        ]
        made = recover(shards)
        try:
            bodies = [self._checked(shard) for shard in made.values()]
        except RemoteWireError:
            self._faults += 1
            return []
        self._faults = 0
        for place, shard in made.items():
            kept[begin + place] = encode_shard(begin + place, shard)
        while len(kept) > KEPT:
            del kept[next(iter(kept))]
        return bodies

    def _checked(self, shard: bytes) -> bytes:
        """The segments of a shard that was made. Raises RemoteWireError when they are none."""
        body = shard_body(shard)
        if not body or shard[len(body) + 2 :].strip(b"\0"):
            raise RemoteWireError("parity that does not belong to these datagrams")
        for segment in decode_segments(body):
            if segment.conv != self._conv:
                raise RemoteWireError("parity of another conversation")
        return body


def recover(shards: Sequence[bytes | None]) -> dict[int, bytes]:
    """Make the data shards that are missing in a group.

    Args:
        shards: Thirteen; None for what is missing, of any lengths; at least ten are there.

    Returns:
        The missing data shards by their place, as long as the longest shard.
    """
    longest = max(len(shard) for shard in shards if shard is not None)
    data = [
        (place, shard.ljust(longest, b"\0"))
        for place, shard in enumerate(shards[:DATA_SHARDS])
        if shard is not None
    ]
    missing = [place for place in range(DATA_SHARDS) if shards[place] is None]
    sums: list[bytes] = []
    rows: list[bytes] = []
    for row, shard in zip(parity_rows(), shards[DATA_SHARDS:], strict=True):
        if shard is None or len(rows) == len(missing):
            continue
        total = int.from_bytes(shard, "little")
        for place, known in data:
            total ^= int.from_bytes(known.translate(times(row[place])), "little")
        sums.append(total.to_bytes(longest, "little"))
        rows.append(row)
    # No square part of the parity rows is singular, so any of them tell the missing apart.
    solution = inverse([[row[place] for place in missing] for row in rows])
    made: dict[int, bytes] = {}
    for place, factors in zip(missing, solution, strict=True):
        total = 0
        for factor, known in zip(factors, sums, strict=True):
            total ^= int.from_bytes(known.translate(times(factor)), "little")
        made[place] = total.to_bytes(longest, "little")
    return made
