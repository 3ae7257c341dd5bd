"""The server name in a ClientHello: real ones, odd ones, broken ones."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadHello
from pyfrp.wire.clienthello import MAX_HELLO_BYTES, MAX_NAME_BYTES, ClientHello, HelloReader
from tests.unit.wire.hellos import (
    alpn,
    body,
    extension,
    hello,
    library_hello,
    message,
    names,
    records,
    sni,
    vector,
)
from tests.unit.wire.pieces import cut_at, places, three_ways

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)


def read(pieces: list[bytes]) -> str | None:
    """The name, or None for an incomplete hello; pieces after the name are not fed."""
    reader = HelloReader()
    for number, piece in enumerate(pieces):
        found = reader.feed(piece)
        if found is not None:
            assert reader.raw == b"".join(pieces[: number + 1])
            return found.name
    assert reader.raw == b"".join(pieces)
    return None


def outcome(pieces: list[bytes]) -> str | None:
    try:
        return read(pieces)
    except BadHello as exc:
        return f"refused: {exc}"


# -- what real clients send ---------------------------------------------------------------------


@three_ways
@pytest.mark.parametrize("version", [None, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_name_of_a_real_hello_is_found(cut, version):
    assert read(cut(library_hello("Chat.Example.COM", version))) == "chat.example.com"


@three_ways
def test_a_real_hello_without_a_name_has_none(cut):
    assert read(cut(library_hello(None))) == ""


def test_a_real_hello_is_complete_with_its_last_byte():
    whole = library_hello("a.test")
    assert read([whole[:-1]]) is None
    assert read([whole]) == "a.test"


@pytest.mark.parametrize(
    ("data", "offers"),
    [
        (library_hello("a.test"), True),
        (hello("a.test", alpn(b"h2")), True),
        (hello("a.test"), False),
        (records(message(body(listed=False))), False),
    ],
)
def test_whether_protocols_are_offered_is_told(data, offers):
    found = HelloReader().feed(data)
    assert found is not None
    assert found.alpn is offers


@three_ways
def test_a_hello_may_be_cut_into_records(cut):
    whole = message(body(sni("a.test")))
    for size in (1, 3, 50, 1000):
        assert read(cut(records(whole, size))) == "a.test"


def test_what_follows_a_hello_is_kept():
    reader = HelloReader()
    found = reader.feed(hello("a.test") + b"\x14\x03\x03early data" + bytes(100_000))
    assert found == ClientHello("a.test")
    assert len(reader.raw) > 100_000


def test_a_second_message_in_the_record_of_the_hello_is_not_looked_at():
    assert read([records(message(body(sni("a.test"))) + b"\xff\xff")]) == "a.test"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (body(listed=False), ""),
        (body(), ""),
        (body(extension(0xFFFF, b"?" * 500), sni("a.test")), "a.test"),
        (body(sni("a.test"), session=bytes(32)), "a.test"),
        (body(names((7, b"x"), (0, b"a.test"), (7, b"y"))), "a.test"),
        (body(names((7, b"x"))), ""),
        (body(sni("192.0.2.1")), "192.0.2.1"),
        (body(sni("under_score.test")), "under_score.test"),
        (body(sni("a" * MAX_NAME_BYTES)), "a" * MAX_NAME_BYTES),
    ],
)
def test_unusual_hellos_are_read(content, name):
    assert read([records(message(content))]) == name


# -- what is refused ----------------------------------------------------------------------------

BROKEN = {
    "an http request": (b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "not a TLS handshake"),
    "an alert": (b"\x15\x03\x03\x00\x02\x02\x28", "not a TLS handshake"),
    "SSL 2": (b"\x80\x2e\x01\x03\x01", "not a TLS handshake"),
    "version 4": (b"\x16\x04\x00\x00\x05", "not a version of TLS"),
    "an empty record": (b"\x16\x03\x01\x00\x00", "a TLS record of 0 bytes"),
    "a long record": (b"\x16\x03\x01\x40\x01", "a TLS record of 16385 bytes"),
    "a server hello": (records(message(b"", kind=2)), "does not begin with a ClientHello"),
    "a huge message": (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "a TLS hello of 16777215 bytes"),
    "a short body": (records(message(b"\x03\x03")), "cut short"),
    "an empty body": (records(message(b"")), "cut short"),
    "a long session id": (records(message(body(session=bytes(33)))), "session id"),
    "half a suite": (records(message(body(suites=b"\x13\x01\x13"))), "cipher suites"),
    "bytes at the end": (records(message(body(sni("a.test")) + b"!")), "after the end"),
    "a name twice": (records(message(body(sni("a.test"), sni("b.test")))), "comes twice"),
    "an extension twice": (
        records(message(body(extension(9, b""), extension(9, b"")))),
        "extension 9 comes twice",
    ),
    "two host names": (
        records(message(body(names((0, b"a.test"), (0, b"b.test"))))),
        "empty or comes twice",
    ),
    "an empty name": (records(message(body(sni("")))), "empty or comes twice"),
    "no names": (records(message(body(extension(0, vector(2, b""))))), "malformed"),
    "bytes after the names": (
        records(message(body(extension(0, vector(2, b"\x00\x00\x01a") + b"!")))),
        "malformed",
    ),
    "a cut name": (records(message(body(extension(0, vector(2, b"\x00\x00\x09a"))))), "cut short"),
    "an empty extension": (records(message(body(extension(0, b"")))), "cut short"),
    "a dot at the end": (records(message(body(sni("a.test.")))), "not a host name"),
    "a line end": (records(message(body(sni("a.test\r\nX: y")))), "not a host name"),
    "a NUL": (records(message(body(sni("a\0.test")))), "not a host name"),
    "letters beyond ASCII": (records(message(body(sni("ä.test")))), "not a host name"),
    "a long name": (records(message(body(sni("a" * (MAX_NAME_BYTES + 1))))), "not a host name"),
}


@three_ways
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_hello_is_refused_with_the_reason(cut, name):
    data, words = BROKEN[name]
    with pytest.raises(BadHello, match=words):
        read(cut(data))


def test_records_between_must_be_handshake():
    parts = records(message(body(sni("a.test"))), 30)
    with pytest.raises(BadHello, match="not a TLS handshake"):
        read([parts[:35] + b"\x17" + parts[36:]])


def test_what_is_no_tls_is_told_by_its_first_byte():
    with pytest.raises(BadHello):
        HelloReader().feed(b"G")


@three_ways
def test_a_hello_that_does_not_end_is_refused_at_the_limit(cut):
    # One byte to a record: the most that can be sent for the least of a message.
    dragging = records(message(body(extension(21, bytes(8000)), sni("a.test"))), 1)
    assert len(dragging) > 2 * MAX_HELLO_BYTES
    with pytest.raises(BadHello, match=f"within {MAX_HELLO_BYTES} bytes"):
        read(cut(dragging))
    assert read(cut(dragging[: MAX_HELLO_BYTES - 1])) is None


@three_ways
def test_a_hello_that_fills_the_limit_is_read(cut):
    spare = MAX_HELLO_BYTES - len(records(message(body(extension(21, b""), sni("a.test")))))
    whole = records(message(body(extension(21, bytes(spare)), sni("a.test"))))
    assert len(whole) == MAX_HELLO_BYTES
    assert read(cut(whole)) == "a.test"
    longer = records(message(body(extension(21, bytes(spare + 1)), sni("a.test"))))
    with pytest.raises(BadHello):
        read(cut(longer))


# -- properties ---------------------------------------------------------------------------------


@given(NAMES, st.integers(1, 200), places)
def test_any_name_is_found_however_the_bytes_are_cut(name, size, at):
    assert read(cut_at(records(message(body(sni(name))), size), at)) == name


@given(st.binary(max_size=200), places)
def test_garbage_is_refused_or_waited_for_however_it_is_cut(data, at):
    for start in (b"", b"\x16\x03\x01", records(message(body(sni("a.test"))), 40)[:60]):
        assert outcome(cut_at(start + data, at)) == outcome([start + data])


@given(st.data())
def test_a_changed_byte_is_found_refused_or_waited_for(data):
    whole = bytearray(hello("a.test"))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    cuts = data.draw(places)
    assert outcome(cut_at(bytes(whole), cuts)) == outcome([bytes(whole)])
