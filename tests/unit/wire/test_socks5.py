"""SOCKS5 handshakes: every message, every refusal, however the bytes arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import RemoteWireError
from pyfrp.wire.socks5 import Handshake, Reply, Socks5Error, Target, reply
from tests.unit.wire.pieces import cut_at, places, three_ways

HELLO = b"\x05\x01\x00"
HELLO_PASSWORD = b"\x05\x02\x00\x02"
IPV4 = b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"


def named(name: bytes, port: int = 443) -> bytes:
    return b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big")


def login(user: bytes, password: bytes) -> bytes:
    return b"\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password


def feed_all(handshake: Handshake, pieces: list[bytes]) -> bytes:
    return b"".join([handshake.feed(piece) for piece in pieces])


@three_ways
@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (IPV4, Target("127.0.0.1", 80)),
        (named(b"db.internal"), Target("db.internal", 443)),
        (named(b"x" * 255, 65535), Target("x" * 255, 65535)),
        (b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x1f\x90", Target("::1", 8080)),
    ],
)
def test_a_caller_without_credentials_names_its_target(cut, request_, target):
    handshake = Handshake("", "")
    assert feed_all(handshake, cut(HELLO + request_ + b"ahead")) == b"\x05\x00"
    assert handshake.target == target
    assert handshake.leftover() == b"ahead"


@three_ways
@pytest.mark.parametrize(
    ("user", "password"), [("u", "p"), ("", "p"), ("u", ""), ("ü" * 100, "p" * 255)]
)
def test_a_caller_passes_with_its_credentials(cut, user, password):
    handshake = Handshake(user, password)
    said = HELLO_PASSWORD + login(user.encode(), password.encode()) + IPV4
    assert feed_all(handshake, cut(said)) == b"\x05\x02\x01\x00"
    assert handshake.target == Target("127.0.0.1", 80)


def refusal(handshake: Handshake, data: bytes) -> Socks5Error:
    with pytest.raises(Socks5Error) as caught:
        handshake.feed(data)
    assert handshake.target is None
    return caught.value


def test_wrong_credentials_are_denied_and_not_repeated():
    for user, password in ((b"u", b"x"), (b"x", b"p"), (b"", b""), (b"u", b"pp")):
        exc = refusal(Handshake("u", "p"), HELLO_PASSWORD + login(user, password) + IPV4)
        assert (exc.answer, exc.denied) == (b"\x05\x02\x01\x01", True)
        assert str(exc) == "wrong user or password"


@pytest.mark.parametrize(
    ("credentials", "data", "answer"),
    [
        (("u", "p"), HELLO, b"\x05\xff"),
        (("", ""), b"\x05\x01\x02", b"\x05\xff"),  # frp takes only method 0 then.
        (("", ""), b"\x05\x00", b"\x05\xff"),
        (("", ""), b"\x04", b""),
        (("", ""), b"GET / HTTP/1.1\r\n", b""),
        (("u", "p"), HELLO_PASSWORD + b"\x05", b"\x05\x02"),
        (("", ""), HELLO + b"\x04", b"\x05\x00"),
        (("", ""), HELLO + b"\x05\x02" + IPV4[2:], b"\x05\x00" + reply(7)),
        (("", ""), HELLO + b"\x05\x03" + IPV4[2:], b"\x05\x00" + reply(7)),
        (("", ""), HELLO + b"\x05\x01\x00\x02" + IPV4[4:], b"\x05\x00" + reply(8)),
        (("", ""), HELLO + named(b""), b"\x05\x00" + reply(4)),
        (("", ""), HELLO + named(b"a\0b"), b"\x05\x00" + reply(4)),
        (("", ""), HELLO + named(b"a\nb"), b"\x05\x00" + reply(4)),
        (("", ""), HELLO + named("ü".encode()), b"\x05\x00" + reply(4)),
    ],
)
def test_what_is_not_served_is_answered_as_the_standard_says(credentials, data, answer):
    exc = refusal(Handshake(*credentials), data)
    assert exc.answer == answer
    assert not exc.denied


def test_replies_carry_our_address():
    assert reply(Reply.SUCCEEDED, ("10.0.0.1", 80)) == b"\x05\x00\x00\x01\x0a\x00\x00\x01\x00\x50"
    assert reply(Reply.SUCCEEDED, ("fe80::1%eth0", 1)) == (
        b"\x05\x00\x00\x04\xfe\x80" + bytes(13) + b"\x01\x00\x01"
    )
    assert reply(Reply.REFUSED) == b"\x05\x05\x00\x01" + bytes(6)


@given(st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_garbage_raises_remote_wire_error_or_nothing(pieces, asks):
    handshake = Handshake("u", "p") if asks else Handshake("", "")
    try:
        feed_all(handshake, pieces)
    except RemoteWireError:
        pass


@given(
    st.binary(min_size=1, max_size=255),
    st.binary(min_size=1, max_size=255),
    st.integers(0, 65535),
    st.binary(max_size=50),
    places,
)
def test_no_cut_changes_what_is_understood(user, name, port, ahead, cuts):
    data = HELLO_PASSWORD + login(b"u", user) + named(name, port) + ahead

    def outcome(pieces):
        handshake = Handshake("u", user.decode("latin-1"))
        answers = b""
        try:
            for piece in pieces:
                answers += handshake.feed(piece)
        except Socks5Error as exc:
            return answers + exc.answer, str(exc)
        return answers, handshake.target, handshake.leftover()

    assert outcome(cut_at(data, cuts)) == outcome([data])
