"""Which version of the wire protocol a connection speaks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadMessage
from pyfrp.wire import framing, v2
from pyfrp.wire.messages import Login, NewWorkConn, Ping
from pyfrp.wire.version import MAGIC, V1, FirstDecoder, load_version
from tests.unit.wire.pieces import three_ways


def told(pieces):
    """The version that the pieces tell, its decoder, and after how many bytes it was known."""
    known, size = [], 0
    first = FirstDecoder(lambda version, decoder: known.append((version, decoder, size)))
    for piece in pieces:
        size += len(piece)
        if known:
            known[0][1].feed(piece)
        else:
            assert first.next() is None
            first.feed(piece)
    return known[0] if known else (None, first, size)


@three_ways
@pytest.mark.parametrize("version", [V1, v2.V2], ids=["v1", "v2"])
def test_messages_are_read_whatever_the_version_and_the_cutting(cut, version):
    sent = [NewWorkConn(run_id="r"), Ping()]
    data = version.magic + b"".join(map(version.encode, sent)) + b"payload"
    found, decoder, _ = told(cut(data))
    assert found is version
    assert [decoder.next(), decoder.next()] == sent
    assert decoder.leftover() == b"payload"


@given(st.binary(min_size=1, max_size=20))
def test_nothing_waits_for_more_bytes_than_it_takes_to_tell(data):
    version, decoder, size = told(bytes([byte]) for byte in data)
    common = next((n for n, (a, b) in enumerate(zip(data, MAGIC, strict=False)) if a != b), None)
    if data.startswith(MAGIC):
        assert (version, size) == (v2.V2, len(MAGIC))
    elif common is None:
        assert version is None
        assert decoder.leftover() == data
        assert decoder.leftover() == b""
    else:
        assert (version, size) == (V1, common + 1)


def test_one_byte_of_version_1_is_enough():
    _, _, size = told([framing.encode(Login())[:1]])
    assert size == 1


@pytest.mark.parametrize("at", range(1, len(MAGIC)))
def test_a_magic_that_goes_wrong_is_refused_as_version_1(at):
    _, decoder, _ = told([MAGIC[:at] + b"x" * 20])
    with pytest.raises(BadMessage, match="unknown message type 0x46"):
        decoder.next()


def test_names_are_those_of_the_configuration():
    assert load_version("v1") is V1
    assert load_version("v2") is v2.V2
    assert [V1.name, v2.V2.name] == ["v1", "v2"]


def test_version_2_is_loaded_when_it_is_spoken():
    program = (
        "import sys; from pyfrp.wire.version import FirstDecoder, MAGIC;"
        "import pyfrp.net.handshake;"
        "assert 'pyfrp.wire.v2' not in sys.modules;"
        "FirstDecoder(print).feed(MAGIC);"
        "assert 'pyfrp.wire.v2' in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
