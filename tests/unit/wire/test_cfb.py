from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadMessage
from pyfrp.wire import cfb
from tests.unit.wire.pieces import cut_at, places, three_ways

KEY = cfb.derive_key("spec-token")
IV = bytes(range(16))


@three_ways
def test_stream_survives_any_cutting_on_both_sides(cut):
    plain = bytes(range(256)) * 5
    encryptor, decryptor = cfb.Encryptor(KEY), cfb.Decryptor(KEY)
    sealed = b"".join(map(encryptor.encrypt, cut(plain)))
    assert len(sealed) == 16 + len(plain)
    assert b"".join(map(decryptor.decrypt, cut(sealed))) == plain


@given(st.binary(max_size=200), places, places)
def test_pieces_make_no_difference_to_the_bytes(plain, out, back):
    encryptor, decryptor = cfb.Encryptor(KEY, IV), cfb.Decryptor(KEY)
    sealed = b"".join(map(encryptor.encrypt, cut_at(plain, out)))
    assert sealed == (cfb.Encryptor(KEY, IV).encrypt(plain))
    assert b"".join(map(decryptor.decrypt, cut_at(sealed, back))) == plain


def test_iv_comes_once_and_only_with_the_first_bytes():
    encryptor = cfb.Encryptor(KEY, IV)
    assert encryptor.encrypt(b"") == b""
    assert encryptor.encrypt(b"ab")[:16] == IV
    assert len(encryptor.encrypt(b"cd")) == 2


def test_each_direction_has_its_own_random_iv():
    assert cfb.Encryptor(KEY).encrypt(b"x") != cfb.Encryptor(KEY).encrypt(b"x")
    assert cfb.seal(KEY, b"x") != cfb.seal(KEY, b"x")


@given(st.binary(max_size=64))
def test_garbage_decrypts_to_something_and_never_raises(data):
    assert len(cfb.Decryptor(KEY).decrypt(data)) == max(0, len(data) - 16)


@given(st.binary(max_size=100))
def test_one_shot_form_is_the_stream_in_one_piece(plain):
    sealed = cfb.seal(KEY, plain, IV)
    assert sealed == IV + cfb.Encryptor(KEY, IV).encrypt(plain)[16 if plain else 0 :]
    assert cfb.unseal(KEY, sealed) == plain


@pytest.mark.parametrize("size", [0, 1, 15])
def test_datagram_without_an_iv_is_refused(size):
    with pytest.raises(BadMessage, match=f"{size} bytes"):
        cfb.unseal(KEY, bytes(size))


def test_key_of_undecodable_environment_bytes_is_derived_from_those_bytes():
    assert cfb.derive_key(b"\xff".decode(errors="surrogateescape")) != cfb.derive_key("?")


def test_library_is_loaded_when_the_first_cipher_is_made_and_warns_of_nothing():
    program = (
        "import sys; from pyfrp.wire import cfb; key = cfb.derive_key('t');"
        "assert 'cryptography' not in sys.modules;"
        "cfb.Encryptor(key); cfb.Decryptor(key).decrypt(bytes(20));"
        "assert 'cryptography' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
