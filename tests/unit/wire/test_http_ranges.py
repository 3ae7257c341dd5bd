"""Ranges and conditions, as Go's file server reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.wire.http_ranges import (
    MAX_RANGES,
    Unsatisfiable,
    precondition,
    range_field,
    read_date,
    read_ranges,
)

THEN = 784111777
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
LATER = b"Mon, 07 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("field", "size", "parts"),
    [
        (b"bytes=0-0", 10, [(0, 1)]),
        (b"bytes=2-", 10, [(2, 8)]),
        (b"bytes=-3", 10, [(7, 3)]),
        (b"bytes=-30", 10, [(0, 10)]),
        (b"bytes=5-99", 10, [(5, 5)]),
        (b"bytes= 1 - 2 , 4-5 ,", 10, [(1, 2), (4, 2)]),
        (b"bytes=20-30,1-1", 10, [(1, 1)]),
        (b"bytes=0-,0-", 10, []),
        (b"bytes=0-", 0, []),
        (b"bytes=" + b"0-0," * (MAX_RANGES + 5), 1000, []),
        (b"bytes=" + b",".join(b"%d-%d" % (n, n) for n in range(MAX_RANGES + 1)), 1000, []),
    ],
)
def test_ranges_are_cut_to_the_size(field, size, parts):
    assert read_ranges(field, size) == parts


@pytest.mark.parametrize(
    ("field", "beyond"),
    [
        (b"x", False),
        (b"bits=0-1", False),
        (b"bytes=", None),
        (b"bytes=-", False),
        (b"bytes=a-b", False),
        (b"bytes=3-1", False),
        (b"bytes=--1", False),
        (b"bytes=1", False),
        (b"bytes=" + b"9" * 19 + b"-", False),
        (b"bytes=10-", True),
        (b"bytes=-0", True),
    ],
)
def test_what_cannot_be_had_is_told(field, beyond):
    if beyond is None:
        assert read_ranges(field, 10) == []
        return
    with pytest.raises(Unsatisfiable) as caught:
        read_ranges(field, 10)
    assert caught.value.beyond is beyond


@given(st.binary(max_size=80) | st.text("bytes=0123-, ", max_size=60).map(str.encode),
       st.integers(0, 300))  # fmt: skip
def test_parts_are_within_the_file_and_no_more_than_it(field, size):
    for data in (field, b"bytes=" + field):
        try:
            parts = read_ranges(data, size)
        except Unsatisfiable:
            continue
        assert all(start >= 0 and length > 0 and start + length <= size for start, length in parts)
        assert sum(length for _, length in parts) <= size


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({b"if-match": [b"*"]}, 200),
        ({b"if-match": [b'"x"']}, 412),
        ({b"if-unmodified-since": [DATE]}, 200),
        ({b"if-unmodified-since": [b"Sat, 05 Nov 1994 08:49:37 GMT"]}, 412),
        ({b"if-unmodified-since": [b"soon"]}, 200),
        ({b"if-none-match": [b"*"]}, 304),
        ({b"if-none-match": [b'"x"'], b"if-modified-since": [LATER]}, 200),
        ({b"if-modified-since": [DATE]}, 304),
        ({b"if-modified-since": [LATER]}, 304),
        ({b"if-modified-since": [b"Sat, 05 Nov 1994 08:49:37 GMT"]}, 200),
        ({b"if-modified-since": [DATE, DATE]}, 200),
    ],
)
def test_conditions_count_in_the_order_of_the_standard(fields, status):
    assert precondition(fields, THEN) == status


def test_a_range_may_depend_on_the_date():
    assert range_field({b"range": [b"r"]}, THEN) == b"r"
    assert range_field({b"range": [b"r"], b"if-range": [DATE]}, THEN) == b"r"
    assert range_field({b"range": [b"r"], b"if-range": [LATER]}, THEN) == b""
    assert range_field({b"range": [b"r"], b"if-range": [b'"tag"']}, THEN) == b""
    assert range_field({b"range": [b"r", b"s"]}, THEN) == b""


@given(st.binary(max_size=40) | st.just(DATE))
def test_any_date_is_read_or_not(field):
    assert read_date(field + b" GMT") is None or field
    assert read_date(DATE) == THEN
