from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import RemoteWireError
from pyfrp.wire import stun

ID = bytes(range(12))
ADDRESSES = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))
BINDINGS = st.builds(
    stun.Binding, st.binary(min_size=12, max_size=12), ADDRESSES, st.none() | ADDRESSES
)


def answer(*attributes: bytes, kind: int = 0x0101) -> bytes:
    body = b"".join(attributes)
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + stun.COOKIE + ID + body


def attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + padding


PLAIN = b"\x00\x01\x00\x50\x01\x02\x03\x04"  # 1.2.3.4:80


@given(BINDINGS)
def test_what_is_written_is_read_back(binding):
    assert stun.decode_response(stun.encode_response(binding)) == binding
    assert stun.decode_request(stun.encode_request(binding.transaction)) == binding.transaction


@given(st.binary(max_size=80))
def test_garbage_raises_remote_wire_error_or_nothing(data):
    for bad in (data, answer(data)):
        try:
            stun.decode_response(bad)
        except RemoteWireError:
            pass
    with pytest.raises(RemoteWireError):
        stun.decode_request(data)


@given(BINDINGS, st.data())
def test_damaged_answer_raises_remote_wire_error_or_nothing(binding, data):
    bad = bytearray(stun.encode_response(binding))
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        stun.decode_response(bytes(bad))
    except RemoteWireError:
        pass


@given(BINDINGS, st.data())
def test_truncated_answer_is_refused(binding, data):
    whole = stun.encode_response(binding)
    with pytest.raises(RemoteWireError):
        stun.decode_response(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_plain_address_of_old_servers_counts_when_there_is_no_hidden_one():
    old = answer(attribute(0x0001, PLAIN), attribute(0x0005, PLAIN))
    assert stun.decode_response(old) == stun.Binding(ID, ("1.2.3.4", 80), ("1.2.3.4", 80))
    hidden = stun.encode_response(stun.Binding(ID, ("9.9.9.9", 9)))[20:]
    assert stun.decode_response(answer(attribute(0x0001, PLAIN), hidden)).mapped == ("9.9.9.9", 9)


def test_unknown_attributes_are_skipped_with_their_padding():
    data = answer(attribute(0x8022, b"server"), attribute(0x0001, PLAIN))
    assert stun.decode_response(data).mapped == ("1.2.3.4", 80)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (answer(), "without an address"),
        (answer(kind=0x0111), "refused"),
        (answer(kind=0x0001), "type 0x0001"),
        (answer(attribute(0x0001, PLAIN))[:-1], "no STUN message"),
        (answer(b"\x00\x01"), "truncated"),
        (answer(b"\x00\x01\x00\x09" + PLAIN), "truncated"),
        (answer(attribute(0x0001, b"")), "malformed"),
        (answer(attribute(0x0001, b"\x00\x02" + PLAIN[2:])), "malformed"),
        (answer(attribute(0x0001, b"\x00\x07\x00\x00")), "malformed"),
        (answer(attribute(0x0020, b"\x00\x01\x00")), "malformed"),
        (answer(attribute(0x0001, PLAIN)).replace(stun.COOKIE, b"abcd"), "no STUN message"),
        (b"", "too short"),
    ],
)
def test_bad_answer_is_refused(data, words):
    with pytest.raises(RemoteWireError, match=words):
        stun.decode_response(data)
