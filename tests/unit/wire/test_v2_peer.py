"""The codec of version 2 against the one that the tests have of their own."""

from __future__ import annotations

import json
import os

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.wire import messages as m
from pyfrp.wire import v2, v2crypto
from pyfrp.wire.gojson import decode_body
from pyfrp.wire.version import MAGIC
from tests.support import v2_peer
from tests.vectors.load import vectors

both = pytest.mark.parametrize("algorithm", v2_peer.ALGORITHMS)
ways = pytest.mark.parametrize("way", ["client-to-server", "server-to-client"])


def test_the_peers_hchacha20_agrees_with_the_draft():
    # draft-irtf-cfrg-xchacha-03, 2.2.1
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert v2_peer.hchacha20(bytes(range(32)), nonce).hex() == expected


def test_the_peers_records_agree_with_the_draft():
    # draft-irtf-cfrg-xchacha-03, A.3.1, whose associated data is no record's.
    key, nonce = bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58))
    cipher, short = v2_peer.Records(key, "xchacha20-poly1305", nonce)._cipher()
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    sealed = cipher.encrypt(short, plain, bytes.fromhex("50515253c0c1c2c3c4c5c6c7"))
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_hchacha20_is_the_same_in_both(key, nonce):
    assert v2crypto.hchacha20(key, nonce) == v2_peer.hchacha20(key, nonce)


@both
@ways
@given(token=st.text(max_size=40), client=st.binary(max_size=99), server=st.binary(max_size=99))
def test_keys_are_the_same_in_both(algorithm, way, token, client, server):
    digest = v2_peer.transcript(client, server)
    assert v2crypto.transcript_hash(client, server) == digest
    ours = v2crypto.control_key(token, digest, algorithm, way)
    assert ours == v2_peer.key(token, digest, algorithm, way)


@both
@pytest.mark.parametrize("sides", [1, 2])
def test_what_one_seals_the_other_opens(algorithm, sides):
    key = os.urandom(32)
    writes = [b"header..", b"", b"x", bytes(70_000), b"last"]
    if sides == 1:
        theirs = v2_peer.Records(key, algorithm)
        opener = v2crypto.Opener(key, algorithm)
        for data in (b"header..", b"", b"x", bytes(65_536), b"last"):
            assert opener.open(theirs.seal(data)) == data
        return
    sealer, theirs = v2crypto.Sealer(key, algorithm), v2_peer.Records(key, algorithm)
    stream = b"".join(map(sealer.seal, writes))
    theirs.nonce, stream = stream[: theirs.nonce_size], stream[theirs.nonce_size :]
    plain = b""
    while stream:
        size = 4 + int.from_bytes(stream[:4], "big")
        plain += theirs.open(stream[:4], stream[4:size])
        stream = stream[size:]
    assert plain == b"".join(writes)


@both
def test_counts_carry_over_all_bytes_of_the_nonce(algorithm):
    theirs = v2_peer.Records(bytes(32), algorithm)
    theirs.nonce = b"\x01".rjust(theirs.nonce_size - 9, b"\0") + b"\xff" * 9
    sealed = theirs.nonce + b"".join(theirs.seal(b"%d" % n) for n in range(3))
    assert v2crypto.Opener(bytes(32), algorithm).open(sealed) == b"012"


def test_the_peer_notices_a_wrong_key():
    sealed = v2crypto.Sealer(bytes(32), "aes-256-gcm").seal(b"x")
    theirs = v2_peer.Records(b"\x01" * 32, "aes-256-gcm", sealed[:12])
    with pytest.raises(InvalidTag):
        theirs.open(sealed[12:16], sealed[16:])


def test_messages_and_hellos_are_the_same_in_both():
    assert v2_peer.MAGIC == MAGIC
    assert [v2.CLASSES[n + 1].__name__ for n in range(18)] == v2_peer.NAMES
    frame = v2_peer.message("Ping", {"timestamp": 7})
    assert v2.decode_message(frame[8:]) == m.Ping(timestamp=7)
    hello = decode_body(v2.ClientHello, v2_peer.offer(bytes(32)))
    answer = decode_body(v2.ServerHello, v2_peer.choice("aes-256-gcm", bytes(32)))
    assert v2.check_server_hello(answer, hello) == "aes-256-gcm"


@both
def test_the_peer_reproduces_the_vectors(algorithm):
    vector = vectors()[f"v2_control_{algorithm.replace('-', '_')}"]
    digest = v2_peer.transcript(
        vector["client_hello_payload"].encode(), vector["server_hello_payload"].encode()
    )
    assert digest.hex() == vector["transcript_hash"]
    for side, way in (("c2s", "client-to-server"), ("s2c", "server-to-client")):
        key = v2_peer.key(vector["token"], digest, algorithm, way)
        sealed = bytes.fromhex(vector[f"{side}_aead_hex"])
        plain = bytes.fromhex(vector[f"{side}_plaintext_hex"])
        records = v2_peer.Records(key, algorithm)
        records.nonce = sealed[: records.nonce_size]
        again = records.nonce + records.seal(plain[:8]) + records.seal(plain[8:])
        assert again == sealed
    known = json.loads(vector["server_hello_payload"])["selected"]["crypto"]["algorithm"]
    assert known == algorithm
