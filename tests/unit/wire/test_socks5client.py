"""SOCKS5 from the client's side, also against the package's own server side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import LocalWireError, RemoteWireError
from pyfrp.wire.socks5 import Handshake, Target, reply
from pyfrp.wire.socks5client import SocksClient, SocksRefusal
from tests.unit.wire.pieces import cut_at, places, three_ways

DONE = b"\x05\x00\x00\x01" + bytes(6)
NAMED = b"\x05\x00\x00\x03\x04host\x00\x01"
IPV6 = b"\x05\x00\x00\x04" + bytes(18)


@three_ways
@pytest.mark.parametrize("done", [DONE, NAMED, IPV6])
def test_without_credentials_none_are_offered(cut, done):
    client = SocksClient("frps.test", 7000)
    assert client.greeting() == b"\x05\x01\x00"
    out = b"".join(client.feed(piece) for piece in cut(b"\x05\x00" + done + b"early"))
    assert out == b"\x05\x01\x00\x03\x09frps.test\x1b\x58"
    assert client.done
    assert client.leftover() == b"early"


@three_ways
@pytest.mark.parametrize("version", [b"\x01", b"\x05"])
def test_credentials_are_given_when_asked_for(cut, version):
    client = SocksClient("10.0.0.1", 80, "us", "pass")
    assert client.greeting() == b"\x05\x02\x00\x02"
    out = b"".join(client.feed(piece) for piece in cut(b"\x05\x02" + version + b"\x00" + DONE))
    assert out == b"\x01\x02us\x04pass" + b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"
    assert client.done


def test_a_proxy_may_do_without_the_credentials():
    client = SocksClient("fd00::1%eth0", 80, "us", "")
    assert client.feed(b"\x05\x00") == b"\x05\x01\x00\x04\xfd" + bytes(14) + b"\x01\x00\x50"


@pytest.mark.parametrize(
    ("data", "code", "method", "denied"),
    [
        (b"\x05\xff", 0, 0xFF, False),
        (b"\x05\x01", 0, 1, False),
        (b"\x05\x02\x01\x01", 0, None, True),
        (b"\x05\x00\x05\x05", 5, None, False),
        (b"\x05\x00\x05\x02\x00\x01" + bytes(6), 2, None, False),
    ],
)
def test_a_refusal_is_told_apart(data, code, method, denied):
    client = SocksClient("a", 1, "u", "p")
    with pytest.raises(SocksRefusal) as caught:
        client.feed(data)
    exc = caught.value
    assert (exc.code, exc.method, exc.denied) == (code, method, denied)


@pytest.mark.parametrize(
    "data",
    [b"HTTP/1.1 400", b"\x04", b"\x05\x00\x04", b"\x05\x00\x05\x00\x00\x02\x01", b"\x05\x02\x02"],
)
def test_what_is_no_socks5_is_refused(data):
    client = SocksClient("a", 1, "u", "p")
    with pytest.raises(RemoteWireError) as caught:
        client.feed(data)
    assert not isinstance(caught.value, SocksRefusal)


def test_a_password_is_not_given_unasked():
    client = SocksClient("a", 1)
    with pytest.raises(SocksRefusal):
        client.feed(b"\x05\x02")


@pytest.mark.parametrize(
    ("host", "user", "password"),
    [
        ("", None, ""),
        ("a" * 256, None, ""),
        ("a", "", "p"),
        ("a", "u" * 256, "p"),
        ("a", "u", "ü" * 128),
    ],
)
def test_what_does_not_fit_is_refused(host, user, password):
    with pytest.raises(LocalWireError):
        SocksClient(host, 1, user, password)


credentials = st.one_of(
    st.none(), st.tuples(st.text(min_size=1, max_size=60), st.text(max_size=60))
)
hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9.-]{0,60}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)


@given(credentials, hosts, st.integers(0, 65535), places, places, st.binary(max_size=20))
def test_our_client_and_our_server_understand_each_other(pair, host, port, up, down, early):
    user, password = pair if pair is not None else (None, "")
    client = SocksClient(host, port, user, password)
    server = Handshake(user or "", password)
    said = client.greeting()
    while said:
        answer = b"".join(server.feed(piece) for piece in cut_at(said, up))
        if server.target is not None:
            answer += reply(0, ("::1", 1)) + early
        said = b"".join(client.feed(piece) for piece in cut_at(answer, down))
    assert client.done
    assert client.leftover() == early
    assert server.target == Target(host, port)


@given(st.binary(max_size=60), places)
def test_the_result_does_not_depend_on_the_cuts(data, cuts):
    def run(pieces: list[bytes]) -> object:
        client = SocksClient("a", 1, "u", "s3cret")
        out = b""
        try:
            for piece in pieces:
                out += client.feed(piece)
        except RemoteWireError as exc:
            return str(exc)
        return out, client.done, client.leftover()

    for whole in (data, b"\x05\x02\x01\x00" + data, b"\x05\x00\x05\x00\x00" + data):
        once = run([whole])
        assert once == run(cut_at(whole, cuts))
        assert "s3cret" not in str(once) or isinstance(once, tuple)
