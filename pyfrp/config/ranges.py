"""Number ranges as frp writes them in templates and flags: `1000-1002,1005`.

Source: golib `net/` helpers behind frp `pkg/util/util`, and `pkg/config/template.go`.
"""

from __future__ import annotations

MAX_NUMBERS = 100_000
"""Numbers that one text may stand for; there are only 65536 ports."""

_INT64 = range(-(2**63), 2**63)


def parse_number_range(text: str) -> list[int]:
    """List the numbers that a text like `1000-1002,1005` stands for.

    Raises:
        ValueError: with frp's text.
    """
    numbers: list[int] = []
    for low, high in parse_bounds(text):
        if high - low + len(numbers) >= MAX_NUMBERS:
            raise ValueError(f"range number is invalid, more than {MAX_NUMBERS} numbers")
        numbers.extend(range(low, high + 1))
    return numbers


def parse_bounds(text: str) -> list[tuple[int, int]]:
    """List the first and last number of each item of a range.

    Raises:
        ValueError: with frp's text.
    """
    bounds = []
    for item in text.strip().split(","):
        ends = [_number(part) for part in item.split("-")[:3]]
        if len(ends) > 2 or ends[0] > ends[-1]:
            raise ValueError("range number is invalid")
        bounds.append((ends[0], ends[-1]))
    return bounds


def _number(text: str) -> int:
    text = text.strip()
    digits = text.removeprefix("+")
    # isdecimal alone would let other scripts' digits through.
    if digits.isascii() and digits.isdecimal() and len(digits) < 20 and int(digits) in _INT64:
        return int(digits)
    reason = f'strconv.ParseInt: parsing "{text[:60]}": invalid syntax'
    raise ValueError(f"range number is invalid, {reason}")
