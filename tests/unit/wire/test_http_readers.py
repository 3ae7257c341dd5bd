"""The short readers of heads: they end where the head does, and give up without long tries."""

from __future__ import annotations

import re
import time

import pytest

from pyfrp.wire import http_request, http_response
from pyfrp.wire.http_grammar import MAX_HEADER_COUNT

REQUEST, RESPONSE = b"GET / HTTP/1.1\r\nHost: llm.local\r\n", b"HTTP/1.1 200 OK\r\n"
READERS = pytest.mark.parametrize(
    ("reader", "start"),
    [
        pytest.param(http_request._COMMON, REQUEST, id="request"),
        pytest.param(http_request._GENERAL, REQUEST, id="any request"),
        pytest.param(http_response._COMMON, RESPONSE, id="response"),
        pytest.param(http_response._GENERAL, RESPONSE, id="any response"),
    ],
)
NAMES = sorted({*http_request._FIELDS, *http_response._FIELDS, "a", "accept", "cookie", "x-a"})
# What a line of some field begins with, and so what a reader might take for all of it.
VALUES = [
    b"",
    b" ",
    b"  ",
    b" 5",
    b" 5,",
    b" close",
    b" close,",
    b" chunked",
    b" chunked,",
    b" Basic",
]


@READERS
@pytest.mark.parametrize("name", NAMES)
def test_head_ends_with_its_blank_line(reader: re.Pattern[bytes], start: bytes, name: str) -> None:
    """Python before 3.11.5 went on in the middle of a line that had failed."""
    for value in VALUES:
        for spelled in (name.encode(), name.title().encode()):
            data = start + b"A: b\r\n" + spelled + b":" + value + b"\r\n\r\n"
            for behind in (b"", b"\r\n", b"\r\n\r\n", b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"):
                found = reader.match(data + behind)
                assert found is None or found.end() == len(data), (name, value, behind)


@READERS
@pytest.mark.parametrize("name", NAMES)
def test_head_that_fails_in_the_end_is_not_tried_in_many_ways(
    reader: re.Pattern[bytes], start: bytes, name: str
) -> None:
    """Two ways to read a line would be 2^99 ways to read these."""
    for value in VALUES:
        line = name.encode() + b":" + value + b"\r\n"
        data = start + line * (MAX_HEADER_COUNT - 2) + b"B: \x01\r\n\r\n"
        before = time.process_time()
        assert reader.match(data) is None
        assert time.process_time() - before < 0.1
