"""Which part of a file a request asks for, and whether it wants it at all (RFC 9110, 13 and 14).

Files have a date and no entity tag, as with Go's `net/http/fs.go`, which the rules follow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime

# More parts than this are answered with the whole file: their heads would outweigh the bytes.
MAX_RANGES = 32
_SPEC = re.compile(rb"([0-9]{0,18})\s*-\s*([0-9]{0,18})")

Fields = Mapping[bytes, Sequence[bytes]]


class Unsatisfiable(Exception):
    """A Range that is malformed or beyond the end; the text is for the caller.

    Args:
        beyond: Whether it is well-formed, so that the size helps the caller.
    """

    def __init__(self, reason: str, *, beyond: bool = False) -> None:
        self.beyond = beyond
        super().__init__(reason)


def read_ranges(field: bytes, size: int) -> list[tuple[int, int]]:
    """The parts that a Range field asks for.

    Returns:
        Start and length of each; nothing when the whole is to be sent.

    Raises:
        Unsatisfiable: to be answered with 416.
    """
    unit, equals, specs = field.partition(b"=")
    if unit != b"bytes" or not equals:
        raise Unsatisfiable("invalid range")
    found: list[tuple[int, int]] = []
    beyond = False
    for spec in specs.split(b",", MAX_RANGES + 1):
        spec = spec.strip(b" \t")
        if not spec:
            continue
        match = _SPEC.fullmatch(spec)
        if match is None or spec.strip(b" \t") == b"-":
            if len(found) >= MAX_RANGES:
                return []
            raise Unsatisfiable("invalid range")
        first, last = match.groups()
        if not first:
            length = min(int(last), size)
            start = size - length
        else:
            start = int(first)
            if last and int(last) < start:
                raise Unsatisfiable("invalid range")
            length = (min(int(last), size - 1) if last else size - 1) - start + 1
        if start >= size or length <= 0:
            beyond = True
            continue
        found.append((start, length))
    if beyond and not found and size:
        raise Unsatisfiable("invalid range: failed to overlap", beyond=True)
    # Overlapping parts would be more than the whole: an attack or a mistake.
    if len(found) > MAX_RANGES or sum(length for _, length in found) > size:
        return []
    return found


def read_date(field: bytes) -> int | None:
    """Seconds since the epoch; None for what is no date in GMT."""
    text = field.decode("latin-1")
    if not text.endswith("GMT"):
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def precondition(fields: Fields, modified: int) -> int:
    """200 when the file is to be sent, 304 when the caller has it, 412 when it wants another."""
    match = fields.get(b"if-match")
    if match is not None:
        if not _is_any(match):
            return 412
    else:
        since = _date(fields, b"if-unmodified-since")
        if since is not None and modified > since:
            return 412
    none_match = fields.get(b"if-none-match")
    if none_match is not None:
        return 304 if _is_any(none_match) else 200
    since = _date(fields, b"if-modified-since")
    return 304 if since is not None and modified <= since else 200


def range_field(fields: Fields, modified: int) -> bytes:
    """The Range field that counts; b"" when there is none or If-Range rules it out."""
    wanted = fields.get(b"range", ())
    if len(wanted) != 1:
        return b""
    condition = fields.get(b"if-range")
    if condition is not None and read_date(condition[0]) != modified:
        return b""
    return wanted[0]


def _is_any(values: Sequence[bytes]) -> bool:
    """Whether a list of entity tags is "*", which fits anything; a file has no tag of its own."""
    return any(value.strip(b" \t,") == b"*" for value in values)


def _date(fields: Fields, name: bytes) -> int | None:
    values = fields.get(name, ())
    return read_date(values[0]) if len(values) == 1 else None
