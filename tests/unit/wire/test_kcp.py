from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import LocalWireError, RemoteWireError
from pyfrp.wire import kcp

U8, U16, U32 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2**32 - 1)
SEGMENTS = st.lists(
    st.builds(
        kcp.Segment,
        U32,
        st.sampled_from(sorted(kcp.COMMANDS)),
        U8,
        U16,
        U32,
        U32,
        U32,
        st.binary(max_size=60),
    ),
    max_size=4,
)
SHARDS = st.lists(st.binary(max_size=40).map(kcp.data_shard), min_size=10, max_size=10)


@given(SEGMENTS)
def test_segments_are_read_back(segments):
    assert kcp.decode_segments(kcp.encode_segments(segments)) == segments


@given(U32, st.binary(max_size=100))
def test_datagrams_are_read_back(seqid, body):
    data = kcp.decode_datagram(kcp.encode_data(seqid, body))
    assert data == kcp.Datagram(seqid, kcp.DATA, body)
    extra = kcp.decode_datagram(kcp.encode_parity(seqid, body))
    assert extra == kcp.Datagram(seqid, kcp.PARITY, body)


@given(st.binary(max_size=100))
def test_garbage_raises_remote_wire_error_or_nothing(data):
    for decode in (kcp.decode_datagram, kcp.decode_segments, kcp.shard_body):
        try:
            decode(data)
        except RemoteWireError:
            pass


@given(SEGMENTS.filter(bool), st.data())
def test_truncated_segments_are_refused(segments, data):
    whole = kcp.encode_segments(segments)
    last = len(kcp.encode_segments(segments[:-1]))
    cut = data.draw(st.integers(last + 1, len(whole) - 1))
    with pytest.raises(RemoteWireError, match="truncated"):
        kcp.decode_segments(whole[:cut])


def test_unknown_command_is_refused():
    with pytest.raises(RemoteWireError, match="command 80"):
        kcp.decode_segments(kcp.encode_segments([kcp.Segment(1, 80)]))


@pytest.mark.parametrize("data", [b"", b"12345", b"\x01\x00\x00\x00\x51\x00rest"])
def test_datagram_without_a_header_is_taken_as_it_is(data):
    assert kcp.decode_datagram(data) == kcp.Datagram(None, kcp.DATA, data)


@pytest.mark.parametrize("size", [0, 1, 6, 65535])
def test_size_that_exceeds_the_datagram_is_refused(size):
    with pytest.raises(RemoteWireError, match="impossible size"):
        kcp.decode_datagram(b"\0\0\0\0\xf1\0" + size.to_bytes(2, "little") + b"abc")


def test_padding_behind_the_size_is_dropped():
    assert kcp.shard_body(kcp.data_shard(b"abc") + bytes(9)) == b"abc"


def test_largest_segment_fills_a_datagram():
    body = kcp.encode_segments([kcp.Segment(1, kcp.PUSH, data=bytes(kcp.MAX_SEGMENT_DATA))])
    assert (len(body), len(kcp.encode_data(0, body))) == (1350, 1358)


# --- parity, against arithmetic written another way ---------------------------------------------


def multiply(a: int, b: int) -> int:
    """Multiply in GF(2^8) modulo 0x11d, the slow way."""
    total = 0
    while b:
        if b & 1:
            total ^= a
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return total


@given(SHARDS)
def test_parity_is_the_sum_of_products(shards):
    longest = max(map(len, shards))
    for row, found in zip(kcp.parity_rows(), kcp.parity(shards), strict=True):
        expected = bytearray(longest)
        for coefficient, shard in zip(row, shards, strict=True):
            for at, byte in enumerate(shard):
                expected[at] ^= multiply(coefficient, byte)
        assert found == bytes(expected)


def test_any_ten_of_the_thirteen_shards_determine_the_rest():
    rows = [bytes(int(i == j) for j in range(10)) for i in range(10)] + list(kcp.parity_rows())
    for kept in itertools.combinations(rows, 10):
        assert rank([list(row) for row in kept]) == 10


def rank(matrix: list[list[int]]) -> int:
    found = 0
    for column in range(10):
        pivot = next((r for r in range(found, len(matrix)) if matrix[r][column]), None)
        if pivot is None:
            continue
        matrix[found], matrix[pivot] = matrix[pivot], matrix[found]
        head = matrix[found]
        for row in matrix[found + 1 :]:
            if row[column]:
                # row * head[column] - head * row[column] clears the column without a division.
                by, to = head[column], row[column]
                row[:] = [
                    kcp._multiply(x, by) ^ kcp._multiply(y, to)
                    for x, y in zip(row, head, strict=True)
                ]
        found += 1
    return found


@given(st.integers(0, 255), st.integers(0, 255))
def test_fast_and_slow_products_agree(a, b):
    assert kcp._multiply(a, b) == multiply(a, b)
    assert kcp.times(a)[b] == multiply(a, b)


@given(st.integers(0, 255), st.integers(0, 300))
def test_powers_are_repeated_products(base, exponent):
    expected = 1
    for _ in range(exponent):
        expected = multiply(expected, base)
    assert kcp._power(base, exponent) == expected


def test_group_of_another_size_is_our_own_mistake():
    with pytest.raises(LocalWireError, match="10 data shards, not 9"):
        kcp.parity([b"ab"] * 9)
