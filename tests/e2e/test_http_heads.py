"""Heads that two readers might understand differently are refused, and splits change nothing.

Each entry of the tables is sent on a connection of its own, followed by a complete second request:
a reader that disagrees with ours about where the first one ends would let the second through.
"""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.backends import Exchange
from tests.support.http import Caller, request
from tests.support.office import DOMAIN, Office
from tests.support.waiting import all_of

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HOST = f"Host: {DOMAIN}\r\n".encode()
SECOND = f"GET /smuggled HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n".encode()


@pytest.fixture(autouse=True)
def _fresh_records(fresh: Office) -> None:
    """Every test counts requests from zero."""


def post(*fields: bytes, body: bytes = b"", line: bytes = b"POST /first HTTP/1.1\r\n") -> bytes:
    """A request with exactly these field lines after a proper Host."""
    return line + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def get(line: bytes = b"GET /first HTTP/1.1\r\n", *fields: bytes, host: bytes = HOST) -> bytes:
    return line + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
FIVE = b"5\r\nhello\r\n0\r\n\r\n"

AMBIGUOUS: dict[str, bytes] = {
    # Both framings.
    "length and coding": post(b"Content-Length: 5", CHUNKED, body=FIVE),
    "coding and length": post(CHUNKED, b"Content-Length: 5", body=FIVE),
    "length 0 and coding": post(b"Content-Length: 0", CHUNKED, body=FIVE),
    "both in odd case": post(b"content-LENGTH: 15", b"TRANSFER-encoding: Chunked", body=FIVE),
    "length and folded coding": post(
        b"Content-Length: 5", b"Transfer-Encoding:\r\n chunked", body=FIVE
    ),
    # Codings that only some understand.
    "coding twice in one field": post(b"Transfer-Encoding: chunked, chunked", body=FIVE),
    "coding in two fields": post(CHUNKED, CHUNKED, body=FIVE),
    "identity after chunked": post(b"Transfer-Encoding: chunked, identity", body=FIVE),
    "identity in a second field": post(CHUNKED, b"Transfer-Encoding: identity", body=FIVE),
    "chunked is not last": post(b"Transfer-Encoding: chunked, gzip", body=FIVE),
    "coding in quotes": post(b'Transfer-Encoding: "chunked"', body=FIVE),
    "coding is empty": post(b"Transfer-Encoding:", body=FIVE),
    "coding with vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=FIVE),
    "coding with form feed": post(b"Transfer-Encoding: chunked\x0c", body=FIVE),
    "coding with a NUL": post(b"Transfer-Encoding: chunked\0", body=FIVE),
    "coding behind a space in the name": post(b"Transfer-Encoding : chunked", body=FIVE),
    "coding in HTTP/1.0": post(CHUNKED, body=FIVE, line=b"POST /first HTTP/1.0\r\n"),
    # Lengths that only some understand.
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "two lengths in one field": post(b"Content-Length: 5, 6", body=b"hello!"),
    "length and zero": post(b"Content-Length: 0", b"Content-Length: 5", body=b"hello"),
    "length with a plus": post(b"Content-Length: +5", body=b"hello"),
    "length with a minus": post(b"Content-Length: -5", body=b"hello"),
    "length in hex": post(b"Content-Length: 0x5", body=b"hello"),
    "length with a space inside": post(b"Content-Length: 1 0", body=b"0123456789"),
    "length with an underscore": post(b"Content-Length: 1_0", body=b"0123456789"),
    "length with a fraction": post(b"Content-Length: 5.0", body=b"hello"),
    "length with an exponent": post(b"Content-Length: 1e1", body=b"0123456789"),
    "length is empty": post(b"Content-Length:", body=b""),
    "length is a word": post(b"Content-Length: five", body=b"hello"),
    "length in Arabic digits": post("Content-Length: ٥".encode(), body=b"hello"),
    "length with a vertical tab": post(b"Content-Length: \x0b5", body=b"hello"),
    "length with a semicolon": post(b"Content-Length: 5;", body=b"hello"),
    "length beyond 64 bits": post(b"Content-Length: 99999999999999999999999", body=b"hello"),
    "length behind a space in the name": post(b"Content-Length : 5", body=b"hello"),
    "length behind a tab in the name": post(b"Content-Length\t: 5", body=b"hello"),
    # Line ends.
    "bare LF after the request line": b"GET /first HTTP/1.1\n" + HOST + b"\r\n",
    "bare LF after a field": b"GET /first HTTP/1.1\r\nX-A: a\n" + HOST + b"\r\n",
    "bare LF before the end": get()[:-2] + b"\n",
    "bare LF everywhere": get().replace(b"\r\n", b"\n"),
    "LF inside a value": get(b"GET /first HTTP/1.1\r\n", b"X-A: a\nX-B: b"),
    "bare CR inside a value": get(b"GET /first HTTP/1.1\r\n", b"X-A: a\rX-B: b"),
    "bare CR at the end of a value": get(b"GET /first HTTP/1.1\r\n", b"X-A: a\r"),
    "bare CR inside a name": get(b"GET /first HTTP/1.1\r\n", b"X\rA: a"),
    "bare CR in the request line": get(b"GET /first\r HTTP/1.1\r\n"),
    "CR before the request line's end": get(b"GET /first HTTP/1.1\r\r\n"),
    "bare CR as the empty line": get()[:-2] + b"\r\r\n",
    # NUL and other controls.
    "NUL in a value": get(b"GET /first HTTP/1.1\r\n", b"X-A: a\0b"),
    "NUL in a name": get(b"GET /first HTTP/1.1\r\n", b"X\0A: a"),
    "NUL in the target": get(b"GET /fi\0rst HTTP/1.1\r\n"),
    "NUL in the method": get(b"G\0ET /first HTTP/1.1\r\n"),
    "NUL in the host": get(host=f"Host: {DOMAIN}\0\r\n".encode()),
    "control in a value": get(b"GET /first HTTP/1.1\r\n", b"X-A: a\x01b"),
    "DEL in a value": get(b"GET /first HTTP/1.1\r\n", b"X-A: a\x7fb"),
    "control in the target": get(b"GET /fi\x01rst HTTP/1.1\r\n"),
    "tab in the target": get(b"GET /fi\trst HTTP/1.1\r\n"),
    # Folded and misshapen fields.
    "folded by a space": get(b"GET /first HTTP/1.1\r\n", b"X-A: a\r\n b"),
    "folded by a tab": get(b"GET /first HTTP/1.1\r\n", b"X-A: a\r\n\tb"),
    "folded host": get(host=f"Host:\r\n {DOMAIN}\r\n".encode()),
    "space before the first field": b"GET /first HTTP/1.1\r\n " + HOST + b"\r\n",
    "a line of blanks": get(b"GET /first HTTP/1.1\r\n", b"  "),
    "no colon": get(b"GET /first HTTP/1.1\r\n", b"X-A"),
    "no name": get(b"GET /first HTTP/1.1\r\n", b": a"),
    "space in a name": get(b"GET /first HTTP/1.1\r\n", b"X A: a"),
    "space behind a name": get(b"GET /first HTTP/1.1\r\n", b"X-A : a"),
    "bracket in a name": get(b"GET /first HTTP/1.1\r\n", b"X[A]: a"),
    "name beyond ASCII": get(b"GET /first HTTP/1.1\r\n", "X-É: a".encode()),
    # Host.
    "no host": get(host=b""),
    "host twice, equal": get(host=HOST * 2),
    "host twice, different": get(host=HOST + b"Host: other.test\r\n"),
    "host list": get(host=f"Host: {DOMAIN}, other.test\r\n".encode()),
    "host with a space": get(host=f"Host: {DOMAIN} other.test\r\n".encode()),
    "host with a path": get(host=f"Host: {DOMAIN}/x\r\n".encode()),
    "host with a user": get(host=f"Host: user@{DOMAIN}\r\n".encode()),
    "host with a fragment": get(host=f"Host: {DOMAIN}#x\r\n".encode()),
    "host with a query": get(host=f"Host: {DOMAIN}?x\r\n".encode()),
    "host with a word as port": get(host=f"Host: {DOMAIN}:http\r\n".encode()),
    "host with two ports": get(host=f"Host: {DOMAIN}:80:80\r\n".encode()),
    "host behind a space in the name": get(host=f"Host : {DOMAIN}\r\n".encode()),
    # Targets.
    "absolute form for another host": get(b"GET http://other.test/first HTTP/1.1\r\n"),
    "absolute form with a user": get(f"GET http://{DOMAIN}@other.test/ HTTP/1.1\r\n".encode()),
    "absolute form without a host": get(b"GET http:///first HTTP/1.1\r\n"),
    "absolute form for another scheme": get(f"GET ftp://{DOMAIN}/first HTTP/1.1\r\n".encode()),
    "target without a slash": get(b"GET first HTTP/1.1\r\n"),
    "asterisk for GET": get(b"GET * HTTP/1.1\r\n"),
    "space in the target": get(b"GET /first /second HTTP/1.1\r\n"),
    "no target": get(b"GET HTTP/1.1\r\n"),
    # Request lines.
    "two spaces before the target": get(b"GET  /first HTTP/1.1\r\n"),
    "two spaces before the version": get(b"GET /first  HTTP/1.1\r\n"),
    "space behind the version": get(b"GET /first HTTP/1.1 \r\n"),
    "space before the method": get(b" GET /first HTTP/1.1\r\n"),
    "tabs between the parts": get(b"GET\t/first\tHTTP/1.1\r\n"),
    "no version": get(b"GET /first\r\n"),
    "version in lower case": get(b"GET /first http/1.1\r\n"),
    "version with a word": get(b"GET /first HTTP/one\r\n"),
    "version with three parts": get(b"GET /first HTTP/1.1.1\r\n"),
    "version with a sign": get(b"GET /first HTTP/+1.1\r\n"),
    "bracket in the method": get(b"GE(T /first HTTP/1.1\r\n"),
    "no method": get(b"/first HTTP/1.1\r\n"),
}


async def _raw_answer(scene: Office, data: bytes) -> bytes:
    """Send everything, say that it was all, and return what comes until the end.

    What is so large that it is refused before it was read ends with the server's closing; saying
    that it was all could meet a reset, and with it lose the answer.
    """
    caller = await Caller.open(scene.http_port, limit_s=10)
    try:
        try:
            await caller.send(data)
            if len(data) < 60_000:
                caller.half_close()
        except OSError:
            pass  # The server may close before it has read all; its answer still counts.
        return await caller.everything()
    finally:
        await caller.close()


async def test_the_table_of_ambiguous_heads_has_sixty_entries() -> None:
    assert len(AMBIGUOUS) >= 60


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_an_ambiguous_head_is_refused_with_400_and_goes_nowhere(
    scene: Office, name: str
) -> None:
    raw = await _raw_answer(scene, AMBIGUOUS[name] + SECOND)
    assert raw.startswith(b"HTTP/1.1 400 "), raw[:200]
    assert raw.count(b"HTTP/1.1 ") == 1, raw
    assert not scene.api.requests


REFUSED_IN_OTHER_WORDS: dict[str, tuple[bytes, set[int]]] = {
    "version 2.0 on a request line": (get(b"GET /first HTTP/2.0\r\n"), {400, 505}),
    "version 3": (get(b"GET /first HTTP/3.0\r\n"), {400, 505}),
    "coding nobody asked for": (
        post(b"Transfer-Encoding: gzip, chunked", body=FIVE),
        {400, 501},
    ),
    "coding with a tail": (post(b"Transfer-Encoding: chunkedx", body=FIVE), {400, 501}),
    "coding with a prefix": (post(b"Transfer-Encoding: xchunked", body=FIVE), {400, 501}),
    "coding with a parameter": (
        post(b"Transfer-Encoding: chunked;q=1", body=FIVE),
        {400, 501},
    ),
    "expectation nobody knows": (post(b"Expect: the-moon", b"Content-Length: 0"), {400, 417}),
    "head of a megabyte": (get(b"GET /first HTTP/1.1\r\n", b"X-A: " + b"a" * 2**20), {400, 431}),
    "target of a megabyte": (get(b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\n"), {400, 414, 431}),
    "ten thousand fields": (
        get(b"GET /first HTTP/1.1\r\n", *[b"X-%d: a" % n for n in range(10_000)]),
        {400, 431},
    ),
    "host that is empty": (get(host=b"Host:\r\n"), {400, 404}),
    "port beyond 65535": (get(host=f"Host: {DOMAIN}:99999\r\n".encode()), {400, 404, 200}),
}


@pytest.mark.parametrize("name", REFUSED_IN_OTHER_WORDS)
async def test_other_impossible_heads_are_refused_too(scene: Office, name: str) -> None:
    data, allowed = REFUSED_IN_OTHER_WORDS[name]
    raw = await _raw_answer(scene, data)
    assert int(raw[9:12]) in allowed, raw[:200]
    assert len(scene.api.requests) == (1 if 200 in allowed and raw[9:12] == b"418" else 0)


BAD_CHUNKS: dict[str, bytes] = {
    "size is a word": b"five\r\nhello\r\n0\r\n\r\n",
    "size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "size with a minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "size in C's hex": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size is empty": b"\r\nhello\r\n0\r\n\r\n",
    "size with an underscore": b"1_0\r\n0123456789012345\r\n0\r\n\r\n",
    "size with a space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "size of seventeen digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    "size beyond 64 bits": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "size ends with LF": b"5\nhello\r\n0\r\n\r\n",
    "size ends with CR": b"5\rhello\r\n0\r\n\r\n",
    "chunk longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "chunk ends with LF": b"5\r\nhello\n0\r\n\r\n",
    "NUL in an extension": b"5;a=\0\r\nhello\r\n0\r\n\r\n",
    "LF in an extension": b"5;a=\nb\r\nhello\r\n0\r\n\r\n",
    "CR in an extension": b"5;a=\rb\r\nhello\r\n0\r\n\r\n",
    "extension without an end": b"5;" + b"a" * 100_000 + b"\r\nhello\r\n0\r\n\r\n",
    "last chunk ends with LF": b"5\r\nhello\r\n0\n\r\n",
    "trailer without a colon": b"5\r\nhello\r\n0\r\nX-A\r\n\r\n",
    "trailer that is folded": b"5\r\nhello\r\n0\r\nX-A: a\r\n b\r\n\r\n",
    "trailer with a NUL": b"5\r\nhello\r\n0\r\nX-A: \0\r\n\r\n",
    "trailers without an end": b"5\r\nhello\r\n0\r\n" + b"X-A: a\r\n" * 100_000 + b"\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_a_badly_chunked_body_never_arrives_whole(scene: Office, name: str) -> None:
    data = post(CHUNKED, line=b"POST /hash HTTP/1.1\r\n", body=BAD_CHUNKS[name])
    raw = await _raw_answer(scene, data + SECOND)
    # The head may have gone on before the fault came, the rest must not look like a body.
    assert raw == b"" or raw.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 502 ")), raw[:300]
    assert raw.count(b"HTTP/1.1 ") <= 1, raw
    assert len(scene.api.requests) <= 1
    assert not scene.api.seen("/smuggled")
    assert not scene.api.complaints


# --- fields that must not reach the backend, or must not be dropped ------------------------


@pytest.mark.parametrize("named", ["Content-Length", "Host", "Transfer-Encoding", "Authorization"])
async def test_connection_cannot_name_away_what_frames_a_request(scene: Office, named: str) -> None:
    body = request("/smuggled")
    fields = [("Connection", f"{named}, close"), ("Authorization", "Bearer key")]
    data = request("/echo/1", method="POST", headers=fields, body=body)
    raw = await _raw_answer(scene, data)
    assert not scene.api.seen("/smuggled")
    if scene.api.requests:
        assert raw.endswith(body)
        assert scene.api.requests[0].get("host") == DOMAIN


async def test_equal_lengths_twice_never_make_two_requests(scene: Office) -> None:
    for fields in ((b"Content-Length: 5", b"Content-Length: 5"), (b"Content-Length: 5, 5",)):
        raw = await _raw_answer(scene, post(*fields, body=b"hello") + SECOND)
        assert raw.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 418 ")), raw[:100]
    assert not [r for r in scene.api.seen("/first") if len(r.all("content-length")) != 1]


# --- splits -------------------------------------------------------------------------------

WHOLE = request(
    "/echo/split?a=b",
    method="POST",
    headers=[
        ("User-Agent", "splitter/1.0"),
        ("Accept", "*/*"),
        ("Authorization", "Bearer sk-something"),
        ("Content-Type", "application/json"),
    ],
    body=b'{"a":1}',
)


async def test_a_head_may_be_split_at_every_byte(scene: Office) -> None:
    async def one(at: int) -> None:
        async with scene.calling() as caller:
            await caller.send(WHOLE, [at], pause_s=0.004)
            answer = await caller.answer()
            assert (answer.status, answer.body) == (200, b'{"a":1}'), f"split at {at}"

    for start in range(1, len(WHOLE), 24):
        await all_of(one(at) for at in range(start, min(start + 24, len(WHOLE))))
    assert len(scene.api.requests) == len(WHOLE) - 1
    assert len({r.raw.partition(b"X-Forwarded-For")[0] for r in scene.api.requests}) == 1


async def test_a_request_may_come_byte_by_byte(scene: Office) -> None:
    async with scene.calling() as caller:
        for _ in range(2):
            await caller.send(WHOLE, range(1, len(WHOLE)), pause_s=0.0005)
            assert (await caller.answer()).body == b'{"a":1}'


async def test_a_chunked_body_may_be_split_at_every_byte(scene: Office) -> None:
    head = request("/echo/c", method="POST", headers=[("Transfer-Encoding", "chunked")])
    body = b"3\r\nabc\r\n00A;x=y\r\n0123456789\r\n0\r\nX-T: t\r\n\r\n"

    async def one(at: int) -> None:
        async with scene.calling() as caller:
            await caller.send(head + body, [len(head) + at], pause_s=0.004)
            assert (await caller.answer()).body == b"abc0123456789", f"split at {at}"
            assert (await caller.get()).body == b"hello"

    await all_of(one(at) for at in range(len(body)))


async def test_answers_may_be_split_at_every_byte(scene: Office) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
        b"3\r\nabc\r\n00A;x=y\r\n0123456789\r\n0\r\nX-T: t\r\n\r\n"
    )

    async def script(x: Exchange) -> None:
        at = int(x.request.query["at"])
        await x.send(answer[:at])
        await asyncio.sleep(0.004)
        await x.send(answer[at:])

    scene.api.on("/split", script)

    async def one(at: int) -> None:
        got = await scene.get(f"/split?at={at}")
        assert (got.body, got.get("x-a")) == (b"abc0123456789", "b"), f"split at {at}"

    for start in range(1, len(answer), 30):
        await all_of(one(at) for at in range(start, min(start + 30, len(answer))))


# --- properties ---------------------------------------------------------------------------

_PIECES = [
    b"Content-Length: 5\r\n",
    b"Content-Length: 46\r\n",
    b"Content-Length: 0\r\n",
    b"Content-length:5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"\tTransfer-Encoding: chunked\r\n",
    b"X: \x0bTransfer-Encoding: chunked\r\n",
    b"X: a\nTransfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, Content-Length\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"Trailer: X\r\n",
    b"TE: trailers\r\n",
    b"Host: llm.test\r\n",
    b"X-Long: " + b"a" * 5000 + b"\r\n",
    b"X: \xff\r\n",
    b"\r",
    b"\n",
    b"\0",
]
_BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"0\r\n\r\n" + SECOND,
    b"5\r\nhello\r\n0\r\nX-T: t\r\n\r\n",
    b"fffffffffffffffe\r\n",
    b"2\r\nGE\r\n",
]

_NUMBERS = itertools.count()


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    line=st.sampled_from(
        [b"GET /1 HTTP/1.1\r\n", b"POST /1 HTTP/1.1\r\n", b"POST /1 HTTP/1.0\r\n", b"PUT /1"]
    ),
    pieces=st.lists(st.sampled_from(_PIECES), max_size=4),
    body=st.sampled_from(_BODIES),
    flip=st.none() | st.tuples(st.integers(0, 400), st.integers(0, 255)),
)
async def test_one_request_in_makes_at_most_one_request_out(
    scene: Office,
    line: bytes,
    pieces: list[bytes],
    body: bytes,
    flip: tuple[int, int] | None,
) -> None:
    """Whatever one head and body say, the backend sees one request or none per answer.

    The caller counts answers: if it got one, one request at most went out, unless the body
    held a whole second request and was read as one, which both sides then agree on.

    A request that was cut off may come to the backend when its caller has long been told so, while
    the next example runs. So each example has a target of its own.
    """
    scene.api.forget()
    number = next(_NUMBERS)
    target = b"/%08d" % number
    data = bytearray(line + HOST + b"".join(pieces) + b"\r\n" + body)
    data = data.replace(b"/1 ", target + b" ", 1).replace(b"/smuggled ", target + b" ")
    if flip is not None:
        data[flip[0] % len(data)] = flip[1]
    raw = await _raw_answer(scene, bytes(data))
    answers = raw.count(b"HTTP/1.1 ") - raw.count(b"HTTP/1.1 100 ")
    earlier = {f"/{one:08}" for one in range(number)}
    seen = [request for request in scene.api.requests if request.target not in earlier]
    assert len(seen) <= max(1, answers)
    if b"/smuggled" not in body:
        assert len(seen) <= 1
    assert not scene.api.complaints


async def test_random_bytes_at_the_http_port_never_reach_the_backend(scene: Office) -> None:
    dice = random.Random(7)

    async def one(size: int) -> None:
        raw = await _raw_answer(scene, dice.randbytes(size) + b"\r\n\r\n")
        assert raw == b"" or raw.startswith(b"HTTP/1.1 4"), raw[:100]

    await all_of(one(dice.randint(1, 3000)) for _ in range(100))
    assert not scene.api.requests
    assert await scene.works()
