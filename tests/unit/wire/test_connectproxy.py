"""CONNECT from the client's side: the request, and answers as proxies give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import RemoteWireError
from pyfrp.wire.connectproxy import (
    CHUNKED,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_INTERIM,
    UNTIL_CLOSE,
    Answer,
    AnswerReader,
    authority,
    connect_request,
    printable,
)
from pyfrp.wire.httpconnect import ConnectReader
from tests.unit.wire.pieces import cut_at, places, three_ways


def read(data: bytes) -> Answer:
    answer = AnswerReader().feed(data)
    assert answer is not None
    return answer


def test_the_request_is_frps():
    assert connect_request("frps.test:7000", "Basic eDp5") == (
        b"CONNECT frps.test:7000 HTTP/1.1\r\nHost: frps.test:7000\r\nUser-Agent: Mozilla/5.0\r\n"
        b"Proxy-Authorization: Basic eDp5\r\n\r\n"
    )
    assert connect_request("a:1", keep=True).endswith(b"\r\nProxy-Connection: Keep-Alive\r\n\r\n")


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("frps.test", "frps.test:7000"),
        ("10.0.0.1", "10.0.0.1:7000"),
        ("fd00::1", "[fd00::1]:7000"),
        ("fe80::1%eth0", "[fe80::1]:7000"),
        ("bücher.example", "xn--bcher-kva.example:7000"),
    ],
)
def test_the_target_is_host_and_port(host, target):
    assert authority(host, 7000) == target


@pytest.mark.parametrize("host", ["", "a b", "a\r\nX: y", "ü" * 300, "\x7f"])
def test_a_host_that_is_no_word_is_refused(host):
    with pytest.raises(ValueError, match=r"."):
        authority(host, 7000)


def test_our_server_reads_our_request():
    found = ConnectReader().feed(connect_request("frps.test:7000", "Basic eDp5"))
    assert found is not None
    assert (found.host, found.user, found.password) == ("frps.test", "x", "y")


@three_ways
@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (b"HTTP/1.1 200 Connection established\r\n\r\n", 200, "Connection established"),
        (b"HTTP/1.0 200 OK\r\nProxy-agent: tinyproxy/1.11\r\n\r\n", 200, "OK"),
        (b"HTTP/1.1 200\r\n\r\n", 200, ""),
        (b"HTTP/1.1 200 \r\n\r\n", 200, ""),
        (b"HTTP/1.0 200 OK\n\n", 200, "OK"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", 200, "OK"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 200, "OK"),
        (b"HTTP/1.1 403 caf\xe9 \x1b[31m\r\n\r\n".replace(b"\x1b", b""), 403, "caf? [31m"),
    ],
)
def test_an_answer_is_found_however_it_comes(cut, head, status, reason):
    reader = AnswerReader()
    answer = None
    for piece in filter(None, cut(head)):
        assert answer is None
        answer = reader.feed(piece)
    assert answer is not None
    assert (answer.status, answer.reason) == (status, reason)
    assert not reader.data


def test_what_follows_the_head_is_kept():
    reader = AnswerReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 400 No\r\n\r\n") is not None
    assert reader.data == b"HTTP/1.1 400 No\r\n\r\n"


@pytest.mark.parametrize(
    ("fields", "length", "keep_alive"),
    [
        (b"Content-Length: 5\r\n", 5, True),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", 5, True),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", UNTIL_CLOSE, False),
        (b"Content-Length: +5\r\n", UNTIL_CLOSE, False),
        (b"Content-Length: 5\r\nConnection: Close\r\n", 5, False),
        (b"Content-Length: 5\r\nProxy-Connection: close\r\n", 5, False),
        (b"Transfer-Encoding: chunked\r\n", CHUNKED, True),
        (b"", UNTIL_CLOSE, False),
    ],
)
def test_the_end_of_a_page_is_known_or_not(fields, length, keep_alive):
    answer = read(b"HTTP/1.1 407 No\r\n" + fields + b"\r\n")
    assert (answer.length, answer.keep_alive) == (length, keep_alive)


def test_http_1_0_ends_its_connection_unless_it_says_otherwise():
    assert not read(b"HTTP/1.0 407 No\r\nContent-Length: 0\r\n\r\n").keep_alive
    head = b"HTTP/1.0 407 No\r\nContent-Length: 0\r\nProxy-Connection: keep-alive\r\n\r\n"
    assert read(head).keep_alive


def test_the_fields_that_count_are_read():
    answer = read(
        b"HTTP/1.1 302 Found\r\nLocation : http://a/\r\nContent-Type: Text/HTML; charset=x\r\n"
        b"Proxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM, Basic realm=r\r\n\r\n"
    )
    assert answer.location == "http://a/"
    assert answer.content_type == "text/html"
    assert [c.scheme for c in answer.challenges] == ["negotiate", "ntlm", "basic"]


BAD = [
    (b"SSH-2.0-x\r\n", "it is not HTTP"),
    (b"HTTP/2 200\r\n\r\n", "its first line is not that of an HTTP/1 answer"),
    (b"HTTP/1.1 20 OK\r\n\r\n", "its first line is not that of an HTTP/1 answer"),
    (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "a line of its head is not a field"),
    (b"HTTP/1.1 200 OK\r\n folded\r\n\r\n", "a line of its head is not a field"),
    (b"HTTP/1.1 200 O\x00K\r\n\r\n", "its head has a control byte"),
    (b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", "its head has a control byte"),
    (b"HTTP/1.1 101 Go\r\n\r\n", "it has no final status"),
    (b"HTTP/1.1 100 Go\r\n\r\n" * (MAX_INTERIM + 1), "it has no final status"),
    (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n", "has more than 128 fields"),
    (b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_HEAD_BYTES, "its head is longer than 65536 bytes"),
]


def feed_all(reader: AnswerReader, pieces: list[bytes]) -> None:
    for piece in pieces:
        reader.feed(piece)


@pytest.mark.parametrize("places", [[], range(0, 99999, 7)], ids=["whole", "in-sevens"])
@pytest.mark.parametrize(("data", "words"), BAD)
def test_what_is_no_answer_is_refused(data, words, places):
    reader = AnswerReader()
    with pytest.raises(RemoteWireError) as caught:
        feed_all(reader, cut_at(data, places))
    assert words in str(caught.value)
    assert len(reader.data) <= MAX_HEAD_BYTES + len(data)


@given(st.binary(max_size=400), places)
def test_the_result_does_not_depend_on_the_cuts(data, cuts):
    for whole in (data, b"HTTP/1.1 " + data, b"HTTP/1.1 407 No\r\n" + data + b"\r\n\r\n"):

        def run(pieces: list[bytes]) -> object:
            reader = AnswerReader()
            answer = None
            try:
                for number, piece in enumerate(pieces):
                    answer = reader.feed(piece)
                    if answer is not None:
                        return answer, bytes(reader.data) + b"".join(pieces[number + 1 :])
            except RemoteWireError as exc:
                return str(exc)
            return None

        assert run([whole]) == run(cut_at(whole, cuts))


def test_strangers_words_are_cut_and_printable():
    assert printable("a\x1b[0mé" + "x" * 100, 10) == "a?[0m?xxxx"
