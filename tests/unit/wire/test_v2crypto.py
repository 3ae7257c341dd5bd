from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import FrameTooLarge, LocalWireError, RemoteWireError
from pyfrp.wire import v2crypto as vc
from tests.unit.wire.pieces import cut_at, places, three_ways

KEY = bytes(range(32))
both = pytest.mark.parametrize("algorithm", ["aes-256-gcm", "xchacha20-poly1305"])


@three_ways
@both
def test_stream_survives_any_cutting(cut, algorithm):
    plain = bytes(range(256)) * 300
    sealer, opener = vc.Sealer(KEY, algorithm), vc.Opener(KEY, algorithm)
    sealed = sealer.seal(plain[:70000]) + sealer.seal(b"") + sealer.seal(plain[70000:])
    assert b"".join(map(opener.open, cut(sealed))) == plain


@given(st.lists(st.binary(max_size=80), max_size=5), places)
@both
def test_pieces_make_no_difference(algorithm, writes, where):
    sealer, opener = vc.Sealer(KEY, algorithm), vc.Opener(KEY, algorithm)
    sealed = b"".join(map(sealer.seal, writes))
    assert b"".join(map(opener.open, cut_at(sealed, where))) == b"".join(writes)


@both
def test_long_data_becomes_records_of_64_kib(algorithm):
    nonce = vc.NONCE_SIZES[algorithm]
    sealed = vc.Sealer(KEY, algorithm).seal(bytes(vc.MAX_PLAIN + 1))
    assert len(sealed) == nonce + 2 * (4 + 16) + vc.MAX_PLAIN + 1
    assert vc.Sealer(KEY, algorithm).seal(b"") == b""


@given(st.data())
@both
def test_any_change_is_noticed(algorithm, data):
    sealed = bytearray(vc.Sealer(KEY, algorithm).seal(b"some plain text"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    opener = vc.Opener(KEY, algorithm)
    try:
        assert opener.open(bytes(sealed)) == b""  # a longer length: the rest never comes
    except RemoteWireError:
        pass


@both
def test_wrong_key_is_noticed(algorithm):
    with pytest.raises(RemoteWireError, match="wrong token or tampering"):
        vc.Opener(bytes(32), algorithm).open(vc.Sealer(KEY, algorithm).seal(b"x"))


@both
def test_records_cannot_be_swapped_or_repeated(algorithm):
    sealer = vc.Sealer(KEY, algorithm, bytes(vc.NONCE_SIZES[algorithm]))
    first, second = sealer.seal(b"first"), sealer.seal(b"second")
    nonce = vc.NONCE_SIZES[algorithm]
    for stream in (first[:nonce] + second, first + first[nonce:]):
        with pytest.raises(RemoteWireError):
            vc.Opener(KEY, algorithm).open(stream)


@pytest.mark.parametrize("length", [0, 15, 65553, 2**32 - 1])
@both
def test_impossible_length_is_refused_at_once(algorithm, length):
    opener = vc.Opener(KEY, algorithm)
    with pytest.raises(FrameTooLarge, match=f"{length} bytes"):
        opener.open(bytes(vc.NONCE_SIZES[algorithm]) + struct.pack(">I", length))


@given(st.binary(max_size=100), places)
@both
def test_garbage_raises_remote_wire_error_or_nothing(algorithm, data, where):
    opener = vc.Opener(KEY, algorithm)
    try:
        for piece in cut_at(data, where):
            opener.open(piece)
    except RemoteWireError:
        pass


@both
def test_nonces_do_not_wrap(algorithm):
    last = b"\xff" * vc.NONCE_SIZES[algorithm]
    sealer, opener = vc.Sealer(KEY, algorithm, last), vc.Opener(KEY, algorithm)
    sealed = sealer.seal(b"last")
    assert opener.open(sealed) == b"last"
    with pytest.raises(LocalWireError, match="no nonce"):
        sealer.seal(b"more")
    with pytest.raises(RemoteWireError, match="too many"):
        opener.open(sealed[-24:])


def test_a_key_is_not_used_beyond_its_records(monkeypatch):
    monkeypatch.setitem(vc.MAX_RECORDS, "aes-256-gcm", 2)
    sealer = vc.Sealer(KEY, "aes-256-gcm")
    sealer.seal(b"1")
    sealer.seal(b"2")
    with pytest.raises(LocalWireError):
        sealer.seal(b"3")


def test_xchacha_goes_on_when_the_count_reaches_the_first_part_of_the_nonce():
    nonce = bytes(15) + b"\x01" + b"\xff" * 8
    sealer, opener = (
        vc.Sealer(KEY, "xchacha20-poly1305", nonce),
        vc.Opener(KEY, "xchacha20-poly1305"),
    )
    for word in (b"before", b"after"):
        assert opener.open(sealer.seal(word)) == word


def test_hchacha20_agrees_with_the_draft():
    # draft-irtf-cfrg-xchacha-03, 2.2.1
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert vc.hchacha20(KEY, nonce).hex() == expected


def test_xchacha_agrees_with_the_draft():
    # draft-irtf-cfrg-xchacha-03, A.3.1
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    seal, unseal = vc._ciphers(bytes(range(0x80, 0xA0)), "xchacha20-poly1305")
    nonce, extra = bytes(range(0x40, 0x58)), bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = seal(nonce, plain, extra)
    assert sealed.hex().startswith(
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
    )
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"
    assert unseal(nonce, sealed, extra) == plain


def test_transcript_tells_its_parts_apart():
    assert vc.transcript_hash(b"ab", b"c") != vc.transcript_hash(b"a", b"bc")


def test_keys_differ_by_token_transcript_algorithm_and_direction():
    arguments = [
        ("t", b"h", "aes-256-gcm", vc.CLIENT_TO_SERVER),
        ("", b"h", "aes-256-gcm", vc.CLIENT_TO_SERVER),
        ("t", b"i", "aes-256-gcm", vc.CLIENT_TO_SERVER),
        ("t", b"h", "xchacha20-poly1305", vc.CLIENT_TO_SERVER),
        ("t", b"h", "aes-256-gcm", vc.SERVER_TO_CLIENT),
    ]
    assert len({vc.control_key(*each) for each in arguments}) == len(arguments)


def test_library_is_loaded_when_the_first_cipher_is_made():
    program = (
        "import sys; from pyfrp.wire import v2crypto as v;"
        "assert 'cryptography' not in sys.modules; v.Sealer(bytes(32), 'aes-256-gcm');"
        "assert 'cryptography' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
