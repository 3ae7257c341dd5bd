"""The bytes of KCP: segments, and the FEC header that frp puts before them.

No state machine: which segments to send when is not decided here.

Source: skywind3000/kcp `ikcp.c` (segments); xtaci/kcp-go `fec.go` (header, shards) and
klauspost/reedsolomon (the matrix), as frp `pkg/util/net/kcp.go` sets them up: 10 data and 3 parity
shards.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from pyfrp.errors import LocalWireError, RemoteWireError

MTU = 1350
"""Most bytes of KCP in a datagram, without the FEC header."""
DATA_SHARDS, PARITY_SHARDS = 10, 3
GROUP = DATA_SHARDS + PARITY_SHARDS
MAX_DATAGRAM = 1500
"""More than any peer sends."""

PUSH, ACK, ASK_WINDOW, TELL_WINDOW = 81, 82, 83, 84
END = 85
"""pyfrp's own command: the sender has ended. `sn` counts the segments that were sent in all; `frg`
is 1 if what is missing of them will never come. Other peers ignore a command that they do not know
(kcp-go `kcp.go`, Input), and find out as they do among themselves."""
COMMANDS = frozenset((PUSH, ACK, ASK_WINDOW, TELL_WINDOW, END))

DATA, PARITY = 0x00F1, 0x00F2
"""Types of datagrams in the FEC header."""

SEGMENT = struct.Struct("<IBBHIIII")
"""Conversation, command, fragment, window, time, number, first missing number, length."""
MAX_SEGMENT_DATA = MTU - SEGMENT.size
_FEC = struct.Struct("<IH")
_SIZE = struct.Struct("<H")


@dataclass(slots=True)
class Segment:
    """One KCP segment.

    Args:
        conv: The conversation, the same in both directions.
        cmd: One of `COMMANDS`.
        frg: Fragments of the message that follow; always 0 in stream mode.
        wnd: Free receive window of the sender, in segments.
        ts: Sender's clock in ms; in an ACK that of the segment acknowledged.
        sn: Number of the segment.
        una: The first segment the sender still misses.
        data: Payload of a PUSH.
    """

    conv: int
    cmd: int
    frg: int = 0
    wnd: int = 0
    ts: int = 0
    sn: int = 0
    una: int = 0
    data: bytes = b""


def encode_segments(segments: Sequence[Segment]) -> bytes:
    """Write segments one after the other, as they share a datagram."""
    return b"".join(
        SEGMENT.pack(s.conv, s.cmd, s.frg, s.wnd, s.ts, s.sn, s.una, len(s.data)) + s.data
        for s in segments
    )


def decode_segments(data: bytes) -> list[Segment]:
    """Read all segments of a datagram.

    Raises:
        RemoteWireError: An unknown command, or bytes missing or left over.
    """
    segments: list[Segment] = []
    at = 0
    while at < len(data):
        if len(data) - at < SEGMENT.size:
            raise RemoteWireError("truncated KCP segment")
        conv, cmd, frg, wnd, ts, sn, una, length = SEGMENT.unpack_from(data, at)
        at += SEGMENT.size
        if cmd not in COMMANDS:
            raise RemoteWireError(f"KCP command {cmd}")
        if len(data) - at < length:
            raise RemoteWireError("truncated KCP segment")
        segments.append(Segment(conv, cmd, frg, wnd, ts, sn, una, data[at : at + length]))
        at += length
    return segments


@dataclass(frozen=True, slots=True)
class First:
    """What the first segment of a datagram tells; `begins` if a client's first looks like it."""

    conv: int
    cmd: int
    una: int
    begins: bool


def first_segment(datagram: bytes) -> First | None:
    """Look at the first segment of a datagram; None when there is none, or a broken one."""
    at = _body_at(datagram)
    if at is None or not at + SEGMENT.size <= len(datagram) <= MAX_DATAGRAM:
        return None
    conv, cmd, frg, _, _, number, una, length = SEGMENT.unpack_from(datagram, at)
    if cmd not in COMMANDS or length > len(datagram) - at - SEGMENT.size:
        return None
    return First(conv, cmd, una, cmd == PUSH and length > 0 and not frg and not number and not una)


def conversation(datagram: bytes) -> int | None:
    """The conversation of a datagram; None for parity, and for what is no datagram of KCP."""
    at = _body_at(datagram)
    return None if at is None else int.from_bytes(datagram[at : at + 4], "little")


def _body_at(datagram: bytes) -> int | None:
    """Where the segments begin; None if there are none."""
    kind = datagram[4:6]
    if kind == b"\xf2\0":
        return None
    return 8 if kind == b"\xf1\0" else 0


@dataclass(slots=True)
class Datagram:
    """A datagram without its FEC header.

    `seqid` is None when there was no header. `body` is KCP segments, or for PARITY a parity shard.
    """

    seqid: int | None
    kind: int
    body: bytes


def encode_data(seqid: int, body: bytes) -> bytes:
    """Put the FEC header before KCP segments. Official peers need it even without parity."""
    return encode_shard(seqid, data_shard(body))


def encode_shard(seqid: int, shard: bytes) -> bytes:
    """Put the FEC header before a data shard."""
    return _FEC.pack(seqid, DATA) + shard


def encode_parity(seqid: int, shard: bytes) -> bytes:
    """Put the FEC header before a parity shard."""
    return _FEC.pack(seqid, PARITY) + shard


def decode_datagram(data: bytes) -> Datagram:
    """Read the FEC header of a datagram, if it has one.

    Raises:
        RemoteWireError: The size in it exceeds the datagram.
    """
    if len(data) < _FEC.size:
        return Datagram(None, DATA, data)
    seqid, kind = _FEC.unpack_from(data)
    if kind == PARITY:
        return Datagram(seqid, PARITY, data[_FEC.size :])
    if kind != DATA:
        return Datagram(None, DATA, data)
    return Datagram(seqid, DATA, shard_body(data[_FEC.size :]))


# --- forward error correction ------------------------------------------------------------------


def data_shard(body: bytes) -> bytes:
    """Return the data shard of a datagram's KCP segments: their size (with itself), then they."""
    return _SIZE.pack(len(body) + _SIZE.size) + body


def shard_body(shard: bytes) -> bytes:
    """Return the KCP segments of a data shard, without padding.

    Raises:
        RemoteWireError: The size in it is impossible.
    """
    size = int.from_bytes(shard[: _SIZE.size], "little")
    if not _SIZE.size <= size <= len(shard):
        raise RemoteWireError("KCP datagram with an impossible size")
    return shard[_SIZE.size : size]


def parity(shards: Sequence[bytes]) -> list[bytes]:
    """Compute the parity shards of a group.

    Args:
        shards: The ten data shards of the group, from `data_shard`, of any lengths.

    Returns:
        Three parity shards, as long as the longest data shard.
    """
    if len(shards) != DATA_SHARDS:
        raise LocalWireError(f"a group has {DATA_SHARDS} data shards, not {len(shards)}")
    longest = max(map(len, shards))
    padded = [shard.ljust(longest, b"\0") for shard in shards]
    result: list[bytes] = []
    for row in parity_rows():
        total = 0
        for coefficient, shard in zip(row, padded, strict=True):
            product = shard.translate(times(coefficient))
            total ^= int.from_bytes(product, "little")
        result.append(total.to_bytes(longest, "little"))
    return result


@cache
def parity_rows() -> tuple[bytes, ...]:
    """Return the rows of the code for parity: one coefficient for each data shard.

    The Vandermonde matrix (row r, column c: r to the power c) multiplied by the inverse of its top
    square, so that data shards pass unchanged.
    """
    wanted = [[_power(row, column) for column in range(DATA_SHARDS)] for row in range(GROUP)]
    unmixed = inverse(wanted[:DATA_SHARDS])
    columns = list(zip(*unmixed, strict=True))
    return tuple(bytes(_dot(row, column) for column in columns) for row in wanted[DATA_SHARDS:])


@cache
def _logarithms() -> tuple[list[int], list[int]]:
    """Return exponents and logarithms in GF(2^8) modulo 0x11d, to the base 2."""
    exponents, logs, value = [0] * 510, [0] * 256, 1
    for power in range(255):
        exponents[power] = exponents[power + 255] = value
        logs[value] = power
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    return exponents, logs


def _multiply(a: int, b: int) -> int:
    exponents, logs = _logarithms()
    return exponents[logs[a] + logs[b]] if a and b else 0


def _power(base: int, exponent: int) -> int:
    exponents, logs = _logarithms()
    if exponent == 0:
        return 1
    return exponents[logs[base] * exponent % 255] if base else 0


def _dot(row: Sequence[int], column: Sequence[int]) -> int:
    total = 0
    for a, b in zip(row, column, strict=True):
        total ^= _multiply(a, b)
    return total


def inverse(matrix: list[list[int]]) -> list[list[int]]:
    """Invert a square matrix by Gauss and Jordan; no row of a Vandermonde matrix needs swapping."""
    size = len(matrix)
    work = [row + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for pivot in range(size):
        scale = _power(work[pivot][pivot], 254)
        work[pivot] = [_multiply(scale, value) for value in work[pivot]]
        for other in range(size):
            factor = work[other][pivot]
            if other != pivot and factor:
                pairs = zip(work[other], work[pivot], strict=True)
                work[other] = [value ^ _multiply(factor, by) for value, by in pairs]
    return [row[size:] for row in work]


@cache
def times(coefficient: int) -> bytes:
    """Return the table that multiplies each byte by a coefficient, for `bytes.translate`."""
    return bytes(_multiply(coefficient, value) for value in range(256))
