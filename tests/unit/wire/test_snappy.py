from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import RemoteWireError
from pyfrp.wire.snappy import IDENTIFIER, MAX_PLAIN, SnappyReader, SnappyWriter
from tests.unit.wire.pieces import cut_at, places, three_ways

HELLO = SnappyWriter().compress(b"hello")[len(IDENTIFIER) :]


def chunk(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "little") + body


def read_all(pieces) -> bytes:
    reader = SnappyReader()
    return b"".join(map(reader.decompress, pieces))


@three_ways
@pytest.mark.parametrize("size", [0, 1, 100, 65536, 65537, 200_000])
@pytest.mark.parametrize("kind", ["text", "noise"])
def test_stream_survives_any_cutting(cut, size, kind):
    plain = (
        b"data: token\n\n" * (size // 12 + 1)
        if kind == "text"
        else random.Random(1).randbytes(size)
    )[:size]
    assert read_all(cut(SnappyWriter().compress(plain))) == plain


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), places)
def test_each_write_can_be_read_at_once(writes, where):
    writer, reader = SnappyWriter(), SnappyReader()
    for plain in writes:
        packed = writer.compress(plain)
        assert b"".join(map(reader.decompress, cut_at(packed, where))) == plain


def test_identifier_comes_once_and_only_with_the_first_bytes():
    writer = SnappyWriter()
    assert writer.compress(b"") == b""
    assert writer.compress(b"a").startswith(IDENTIFIER)
    assert IDENTIFIER not in writer.compress(b"b")


def test_identifier_may_be_repeated():
    assert read_all([IDENTIFIER + HELLO + IDENTIFIER + HELLO]) == b"hellohello"


def test_reader_takes_uncompressed_chunks():
    assert HELLO[0] == 0x01
    assert read_all([IDENTIFIER + HELLO]) == b"hello"


@three_ways
@pytest.mark.parametrize("kind", [0x80, 0xFD, 0xFE])
@pytest.mark.parametrize("size", [0, 1, 5000])
def test_skippable_chunks_are_skipped(cut, kind, size):
    skipped = chunk(kind, bytes(size))
    stream = IDENTIFIER + skipped + HELLO + skipped + skipped + HELLO
    assert read_all(cut(stream)) == b"hellohello"


def test_skippable_chunk_of_16_mib_is_not_held():
    reader = SnappyReader()
    reader.decompress(IDENTIFIER + b"\x80\xff\xff\xff")
    rest = 2**24 - 1
    while rest:
        piece = bytes(min(rest, 1 << 20))
        assert reader.decompress(piece) == b""
        assert len(reader._held) == 0
        rest -= len(piece)
    assert reader.decompress(HELLO) == b"hello"


def test_reader_holds_at_most_one_chunk():
    noise = random.Random(2).randbytes(MAX_PLAIN)
    packed = SnappyWriter().compress(noise)
    reader = SnappyReader()
    for at in range(0, len(packed) - 1000, 1000):
        reader.decompress(packed[at : at + 1000])
        assert len(reader._held) <= 76_500 + 1000


def test_bomb_yields_at_most_64_kib_for_each_chunk():
    packed = SnappyWriter().compress(bytes(MAX_PLAIN))
    plain = read_all([packed + packed[len(IDENTIFIER) :] * 9])
    assert len(plain) == 10 * MAX_PLAIN
    assert len(plain) / len(packed * 10) < 25


def damage(at: int) -> bytes:
    packed = bytearray(IDENTIFIER + HELLO)
    packed[at] ^= 0x10
    return bytes(packed)


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


BAD = {
    "no identifier": HELLO,
    "skippable chunk before the identifier": chunk(0x80, b"") + IDENTIFIER + HELLO,
    "identifier of another length": b"\xff\x07\x00\x00sNaPpYY",
    "identifier of other bytes": b"\xff\x06\x00\x00SnApPy",
    "reserved type 02": IDENTIFIER + chunk(0x02, b"abc"),
    "reserved type 7f": IDENTIFIER + chunk(0x7F, b""),
    "flipped checksum": damage(len(IDENTIFIER) + 5),
    "flipped byte": damage(len(IDENTIFIER) + 9),
    "chunk without room for a checksum": IDENTIFIER + chunk(0x01, b"abc"),
    "compressed chunk without a block": IDENTIFIER + chunk(0x00, b"abcd"),
    "uncompressed chunk over 64 KiB": IDENTIFIER + b"\x01" + (65541).to_bytes(3, "little"),
    "compressed chunk over the worst case": IDENTIFIER + b"\x00" + (90000).to_bytes(3, "little"),
    "block that promises over 64 KiB": IDENTIFIER
    + chunk(0x00, bytes(4) + varint(65537) + b"\xfe\x01\x00" * 1100),
    "block that promises 4 GiB": IDENTIFIER + chunk(0x00, bytes(4) + varint(2**32 - 1) + b"\x00a"),
    "block that is cut": IDENTIFIER + chunk(0x00, bytes(4) + varint(100) + b"\x00"),
    "copy from before the block": IDENTIFIER
    + chunk(0x00, bytes(4) + varint(8) + b"\x01\x05\x01\x05"),
}


@three_ways
@pytest.mark.parametrize("stream", BAD.values(), ids=BAD)
def test_bad_stream_is_refused(stream, cut):
    with pytest.raises(RemoteWireError):
        read_all(cut(stream))


@given(st.binary(max_size=200), st.booleans(), places)
def test_garbage_raises_remote_wire_error_or_nothing(data, identified, where):
    try:
        read_all(cut_at(IDENTIFIER + data if identified else data, where))
    except RemoteWireError:
        pass


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF]) | st.integers(0, 255),
            st.binary(max_size=30),
        ),
        max_size=5,
    ),
    places,
)
def test_garbage_in_chunks_raises_remote_wire_error_or_nothing(chunks, where):
    try:
        read_all(cut_at(IDENTIFIER + b"".join(chunk(*item) for item in chunks), where))
    except RemoteWireError:
        pass


def test_library_is_loaded_when_the_first_stream_is_made():
    program = (
        "import sys; from pyfrp.wire import snappy; assert 'cramjam' not in sys.modules;"
        "snappy.SnappyWriter(); assert 'cramjam' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
