"""Frames of datagrams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import LocalWireError
from pyfrp.wire import datagram, v2
from pyfrp.wire.datagram import encode_packet, user_part
from pyfrp.wire.framing import MAX_BODY, FrameDecoder, encode
from pyfrp.wire.messages import UDPAddr, UDPPacket

USER = ("127.0.0.1", 34183, "")


@given(st.binary(max_size=7000), st.none() | st.tuples(st.text(), st.integers(0, 65535), st.text()))
def test_a_datagram_is_written_as_its_record_would_be(content, user):
    part = b"" if user is None else user_part(*user)
    addr = None if user is None else UDPAddr(ip=user[0], port=user[1], zone=user[2])
    try:
        frame = encode(UDPPacket(content=content, remote_addr=addr))
    except LocalWireError as exc:
        with pytest.raises(LocalWireError, match=str(exc)):
            encode_packet(content, part)
    else:
        assert encode_packet(content, part) == frame


def test_seven_thousand_bytes_fit_for_any_user():
    part = user_part("2001:db8:1111:2222:3333:4444:5555:6666", 65535, "wlan0123456789")
    decoder = FrameDecoder()
    decoder.feed(encode_packet(bytes(7000), part))
    assert decoder.next().content == bytes(7000)


def test_a_datagram_beyond_the_limit_of_a_message_is_refused_in_words():
    size = next(n for n in range(7000, 8000) if len(_body(n)) > MAX_BODY)
    with pytest.raises(LocalWireError, match=rf"UDPPacket of \d+ bytes: .* at most {MAX_BODY}"):
        encode_packet(bytes(size), user_part(*USER))
    encode_packet(bytes(size - 1), user_part(*USER))


def _body(size: int) -> bytes:
    return datagram.encode_body(
        UDPPacket(content=bytes(size), remote_addr=UDPAddr(ip=USER[0], port=USER[1]))
    )


@given(st.binary(max_size=300) | st.just(bytes(49_000)))
def test_version_2_carries_longer_datagrams_in_the_same_words(content):
    frame = encode_packet(content, user_part(*USER), v2.frame)
    msg = UDPPacket(content=content, remote_addr=UDPAddr(ip=USER[0], port=USER[1]))
    assert frame == v2.encode(msg)


def test_a_flood_of_addresses_takes_no_memory():
    for port in range(1, 5000):
        user_part("192.0.2.1", port, "")
    assert user_part.cache_info().currsize <= 1024
