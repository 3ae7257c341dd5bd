from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import RemoteWireError
from pyfrp.wire import proxyproto as pp

PORTS = st.integers(0, 65535)
V4 = st.tuples(st.ip_addresses(v=4).map(str), PORTS)
V6 = st.tuples(st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(str), PORTS)
PAIRS = st.tuples(V4, V4) | st.tuples(V6, V6)
NEAR, FAR = ("1.2.3.4", 5), ("6.7.8.9", 10)


@given(PAIRS, st.sampled_from([("v1", False), ("v2", False), ("v2", True)]), st.binary())
def test_what_is_written_is_read_back(pair, form, payload):
    version, datagram = form
    data = pp.encode(version, *pair, datagram=datagram)
    assert pp.decode(data + payload) == (pp.ProxyHeader(*pair, datagram), len(data))


@given(PAIRS, st.sampled_from(["v1", "v2"]))
def test_more_bytes_are_wanted_until_the_last(pair, version):
    data = pp.encode(version, *pair)
    for size in range(len(data)):
        assert pp.decode(data[:size]) is None


@given(
    st.binary(max_size=120), st.sampled_from([b"", b"PROXY ", pp.SIGNATURE, pp.SIGNATURE + b"!"])
)
def test_garbage_raises_remote_wire_error_or_nothing(data, start):
    try:
        found = pp.decode(start + data)
    except RemoteWireError:
        return
    if found is not None:
        assert found[1] <= len(start + data)


def test_text_has_no_word_for_datagrams():
    assert pp.encode("v1", NEAR, FAR, datagram=True) == b"PROXY UNKNOWN\r\n"
    assert pp.decode(b"PROXY UNKNOWN\r\n") == (pp.ProxyHeader(None, None), 15)
    assert pp.decode(b"PROXY UNKNOWN ffff: 1 2\r\n")[0].source is None


def test_mixed_families_become_ipv6():
    data = pp.encode("v1", ("::1", 5), FAR)
    assert data == b"PROXY TCP6 ::1 ::ffff:607:809 5 10\r\n" or data == (
        b"PROXY TCP6 ::1 ::ffff:6.7.8.9 5 10\r\n"
    )
    assert pp.encode("v2", NEAR, ("::1", 5))[13] == 0x21


def test_mapped_addresses_of_a_dual_stack_listener_are_ipv4():
    assert pp.encode("v1", ("::ffff:1.2.3.4", 5), FAR) == b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n"


@pytest.mark.parametrize("bad", [("localhost", 5), ("", 5), ("1.2.3.4", -1), ("1.2.3.4", 65536)])
@pytest.mark.parametrize("form", [("v1", False), ("v2", False), ("v2", True)])
def test_what_is_no_address_is_not_written(bad, form):
    version, datagram = form
    for pair in ((bad, FAR), (NEAR, bad)):
        with pytest.raises(ValueError, match=r"address|port"):
            pp.encode(version, *pair, datagram=datagram)


def test_zone_of_a_link_local_address_is_left_out():
    assert pp.encode("v1", ("fe80::1%eth0", 5), ("fe80::2", 6)) == (
        b"PROXY TCP6 fe80::1 fe80::2 5 6\r\n"
    )


def test_extensions_after_the_addresses_are_skipped():
    data = bytearray(pp.encode("v2", NEAR, FAR) + b"\x03\x00\x01x")
    data[15] += 4
    assert pp.decode(bytes(data)) == (pp.ProxyHeader(NEAR, FAR), len(data))


@pytest.mark.parametrize("at_13", [(0x20, 0x11), (0x21, 0x00), (0x21, 0x31)])
def test_local_and_unknown_families_tell_nothing(at_13):
    data = bytearray(pp.encode("v2", NEAR, FAR))
    data[12:14] = bytes(at_13)
    assert pp.decode(bytes(data)) == (pp.ProxyHeader(None, None), len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1",
        b"PROXY TCP4 1.2.3.4\r\n",
        b"PROXY \r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        b"PROXY TCP4 1.2.3.\xff 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        pp.SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        pp.SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        pp.SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
        pp.SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_malformed_header_is_refused(data):
    with pytest.raises(RemoteWireError):
        pp.decode(data)
