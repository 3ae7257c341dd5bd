"""One request in makes at most one request out, whatever is sent and however it is cut.

Requests carry a number, and in their bodies a request that must never be seen as one. What reaches
the services, and what the caller receives, is read by parsers that share no code with ours.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vhost.scene import HOST, Wire, chunk, turns, vhost
from tests.unit.wire.pieces import cut_at

BAIT = f"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


# -- what a caller sends ------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """Bytes of one request. `good`: it is complete and beyond doubt."""

    data: bytes
    number: int
    good: bool = True
    body: bytes = b""


def head(number: int, *fields: str, method: str = "POST") -> bytes:
    lines = (f"{method} /{number} HTTP/1.1", f"Host: {HOST}", *fields)
    return "\r\n".join((*lines, "", "")).encode()


def plain(number: int) -> Request:
    return Request(head(number, method="GET"), number)


def sized(number: int, body: bytes) -> Request:
    return Request(head(number, f"Content-Length: {len(body)}") + body, number, body=body)


def chunked(number: int, parts: list[bytes], trailer: bytes) -> Request:
    body = b"".join(chunk(part) for part in parts if part) + b"0\r\n" + trailer + b"\r\n"
    return Request(head(number, "Transfer-Encoding: chunked") + body, number, body=b"".join(parts))


# Each leaves open, for one reader or another, where the message ends.
DOUBTFUL = [
    ("Content-Length: 5", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked", "Content-Length: 60"),
    ("Content-Length: 5", "Content-Length: 60"),
    ("Content-Length: 5, 5",),
    ("Content-Length: +5",),
    ("Content-Length: 0x5",),
    ("Content-Length: 5 5",),
    ("Content-Length: -1",),
    ("Transfer-Encoding: xchunked",),
    ("Transfer-Encoding: chunked, identity",),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding : chunked",),
    (" Transfer-Encoding: chunked",),
    ("Transfer-Encoding:\x0bchunked",),
    ("X: y\nTransfer-Encoding: chunked",),
    ("X: y\rContent-Length: 60",),
    ("Host: other.test",),
    ("X: a\r\n folded",),
    ("X: a\x00b",),
    ("no colon at all",),
    (": no name",),
]
doubtful = st.builds(
    lambda number, fields, body: Request(head(number, *fields) + body, number, good=False),
    st.just(0),
    st.sampled_from(DOUBTFUL),
    st.sampled_from([b"0\r\n\r\n" + BAIT, b"hello" + BAIT, BAIT]),
)
broken_chunks = st.builds(
    lambda bad: Request(
        head(0, "Transfer-Encoding: chunked") + chunk(b"good") + bad + BAIT, 0, good=False
    ),
    st.sampled_from([b"zz\r\n", b"-1\r\n", b"5 \r\nhello\r\n", b"3\r\nfour\r\n", b"\n", b"1\nx\n"]),
)
garbage = st.binary(min_size=1, max_size=60).map(
    lambda data: Request(b"\x00" + data + BAIT, 0, good=False)
)
bodies = st.sampled_from([b"x", BAIT, b"0\r\n\r\n" + BAIT, b"a" * 300 + BAIT])
good = st.one_of(
    st.just(plain),
    bodies.map(lambda body: lambda number: sized(number, body)),
    st.tuples(
        st.lists(st.one_of(bodies, st.binary(max_size=20)), max_size=4),
        st.sampled_from([b"", b"X-Trailer: 1\r\n"]),
    ).map(lambda made: lambda number: chunked(number, *made)),
)


@st.composite
def streams(draw) -> list[Request]:
    requests = [make(number) for number, make in enumerate(draw(st.lists(good, max_size=5)), 1)]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(requests)))
        bad = draw(st.one_of(doubtful, broken_chunks, garbage))
        requests.insert(at, bad)
    return requests


# -- the services -------------------------------------------------------------------------------

ANSWERS = ["sized", "chunked", "slow", "open", "interim", "close", "extra", "cut", "die", "early"]


@dataclass
class Service:
    """Reads one work connection with llhttp and answers as it is told."""

    wire: Wire
    answers: list[str]
    seen: list[tuple[int, bytes]] = field(default_factory=list)
    died: list[int] = field(default_factory=list)
    number: int = 0
    body: bytes = b""
    complete: bool = False
    pending: list[bytes] = field(default_factory=list)
    ends: bool = False

    def __post_init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)

    # As llhttp's listener:

    def on_message_begin(self) -> None:
        assert not self.complete, "a request before the last one was answered"
        self.body = b""

    def on_url(self, url: bytes) -> None:
        assert url != b"/smuggled"
        self.number = int(url[1:])

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.seen.append((self.number, self.body))
        self.complete = True

    # For the test:

    def work(self) -> bool:
        """Read what came, or send a piece of the answer."""
        if self.wire.closed:
            return False
        data = self.wire.take()
        if data:
            self.parser.feed_data(data)
            if self.complete and not self.pending:
                self._decide()
            return True
        if self.pending:
            self.wire.feed(self.pending.pop(0))
            if not self.pending:
                if self.ends and not self.wire.closed:
                    self.wire.end()
                self.complete = False
            return True
        return False

    def _decide(self) -> None:
        how = self.answers.pop(0) if self.answers else "sized"
        body = b"id=%d" % self.number
        full = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.ends = False
        if how == "chunked":
            self.pending = [stream + chunk(body) + b"0\r\n\r\n"]
        elif how == "slow":
            self.pending = [stream, chunk(body[:2]), chunk(body[2:]), b"0\r\n\r\n"]
        elif how == "open":
            self.pending = [b"HTTP/1.1 200 OK\r\n\r\n", body]
            self.ends = True
        elif how == "interim":
            self.pending = [b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", full]
        elif how == "close":
            self.pending = [full.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")]
        elif how == "extra":
            self.pending = [full + b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nid=999999"]
        elif how == "cut":
            self.pending = [full[:-1]]
            self.ends = True
        elif how == "die":
            self.died.append(self.number)
            self.wire.end()
        else:
            self.pending = [full]


# -- the caller ---------------------------------------------------------------------------------


class Answers:
    """What a caller received, read with llhttp."""

    def __init__(self, data: bytes) -> None:
        self.found: list[tuple[int, bytes]] = []
        self._body = b""
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200:
            self.found.append((status, self._body))


async def converse(requests: list[Request], places: list[int], answers: list[str]):
    """Send everything, let the services answer; what all sides saw."""
    services: list[Service] = []
    async with vhost() as v:
        caller = v.call()

        async def settle() -> None:
            busy = True
            while busy:
                await turns(4)
                fresh = v.services[len(services) :]
                services.extend(Service(wire, answers) for wire in fresh)
                busy = False
                for service in services:
                    busy |= service.work()

        for piece in cut_at(b"".join(r.data for r in requests), places):
            if piece and not caller.closed:
                caller.feed(piece)
                if len(piece) % 2:
                    await settle()
        await settle()
        closed = caller.closed or caller.ended
        return services, caller.sent, closed


@settings(deadline=None, max_examples=200)
@given(
    streams(),
    st.lists(st.integers(0, 2**16), max_size=12),
    st.lists(st.sampled_from(ANSWERS), max_size=8),
)
def test_one_request_in_makes_at_most_one_request_out(requests, places, answers):
    services, received, closed = asyncio.run(converse(requests, places, answers))
    intended = {}
    for request in requests:
        if not request.good:
            break
        intended[request.number] = request.body
    seen = [made for service in services for made in service.seen]
    # Only what was meant, as it was meant, ...
    for number, body in seen:
        assert number in intended
        assert intended[number] == body
    # ... once, unless a kept connection died under it.
    died = Counter(number for service in services for number in service.died)
    for number, count in Counter(number for number, _ in seen).items():
        assert count <= 1 + died[number]
    # Each answer is the one to the caller's next request, or our own refusal of it.
    found = Answers(received).found
    assert len(found) <= len(requests)
    for place, (status, body) in enumerate(found):
        if status == 200:
            assert body in (b"id=%d" % requests[place].number, b"")
        else:
            assert status in (400, 414, 431, 501, 502, 505)
            assert (status == 502) == requests[place].good
    # After a doubtful one there is no next.
    if any(not request.good for request in requests) and len(found) == len(requests):
        assert found[-1][0] in (400, 414, 431, 501, 505)
        assert closed


@settings(deadline=None, max_examples=60)
@given(streams(), st.lists(st.integers(0, 2**16), max_size=12))
def test_how_a_callers_bytes_are_cut_changes_nothing(requests, places):
    whole = asyncio.run(converse(requests, [], []))
    cut = asyncio.run(converse(requests, places, []))

    def gist(result):
        services, received, closed = result
        seen = sorted(made for service in services for made in service.seen)
        return seen, [status for status, _ in Answers(received).found], closed

    assert gist(whole) == gist(cut)
