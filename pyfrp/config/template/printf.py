"""Go's fmt for the values that templates know."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_WIDTH = 1_000_000
"""Largest width and precision, as in Go; larger ones are reported in the text."""

_VERB = re.compile(r"%([-+# 0]*)(\d+|\*)?(?:\.(\d+|\*)?)?(.)", re.DOTALL)
_VERB_WITH_DOT = re.compile(r"%[-+# 0]*(?:\d+|\*)?\.")


def sprint(*values: Any) -> str:
    """Join values as Go's Sprint: with a blank between two that are both no strings."""
    out: list[str] = []
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            out.append(" ")
        out.append(plain(value))
    return "".join(out)


def plain(value: Any) -> str:
    """Write a value as Go's verb %v."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _shortest(value)
    if isinstance(value, list):
        return "[" + " ".join(plain(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{value[key]}" for key in sorted(value)) + "]"
    names = getattr(type(value), "__match_args__", ())
    if names:
        return "{" + " ".join(plain(getattr(value, name)) for name in names) + "}"
    return "<nil>"


def sprintf(form: str, values: Sequence[Any]) -> str:
    """Format as Go's Sprintf; what does not fit is told in the text (`%!d(string=x)`)."""
    out: list[str] = []
    left = list(values)
    at = 0
    while True:
        start = form.find("%", at)
        if start < 0:
            out.append(form[at:])
            break
        out.append(form[at:start])
        match = _VERB.match(form, start)
        if match is None:
            out.append("%!(NOVERB)")
            break
        at = match.end()
        out.append(_directive(match, left))
    if left:
        shown = ", ".join(f"{_type(value)}={plain(value)}" for value in left)
        out.append(f"%!(EXTRA {shown})")
    return "".join(out)


def _directive(match: re.Match[str], left: list[Any]) -> str:
    flags, width, precision, verb = match.groups()
    if verb == "%":
        return "%"
    has_precision = _VERB_WITH_DOT.match(match.group()) is not None
    notes = ""
    if width == "*":
        width, note = _star(left, "WIDTH")
        notes += note
    if precision == "*":
        precision, note = _star(left, "PREC")
        notes += note
    size = int(width) if width else 0
    if width and (len(width) > 7 or size > MAX_WIDTH):
        notes, size = notes + "%!(BADWIDTH)", 0
    digits = (int(precision) if precision else 0) if has_precision else None
    if precision and (len(precision) > 7 or int(precision) > MAX_WIDTH):
        notes, digits = notes + "%!(BADPREC)", None
    if not left:
        return f"{notes}%!{verb}(MISSING)"
    if size < 0:
        flags, size = flags + "-", -size
    return notes + _pad(_verb(verb, flags, digits, size, left.pop(0)), flags, size)


def _star(left: list[Any], what: str) -> tuple[str | None, str]:
    value = left.pop(0) if left else None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_WIDTH:
        return None, f"%!(BAD{what})"
    return str(value), ""


def _pad(text: str, flags: str, width: int) -> str:
    return text.ljust(width) if "-" in flags else text.rjust(width)


def _verb(verb: str, flags: str, digits: int | None, width: int, value: Any) -> str:
    text: str | None = None
    if verb == "T":
        text = _type(value)
    elif isinstance(value, list) and verb != "v":
        text = "[" + " ".join(_verb(verb, flags, digits, 0, item) for item in value) + "]"
    elif verb == "v":
        text = plain(value)
    elif isinstance(value, bool):
        text = plain(value) if verb == "t" else None
    elif isinstance(value, int):
        text = _integer(verb, flags, digits, width, value)
    elif isinstance(value, float):
        text = _float(verb, flags, digits, width, value)
    elif isinstance(value, str):
        text = _string(verb, flags, digits, value)
    if text is None:
        shown = "<nil>" if _type(value) == "<nil>" else f"{_type(value)}={plain(value)}"
        return f"%!{verb}({shown})"
    return text


def _integer(verb: str, flags: str, digits: int | None, width: int, value: int) -> str | None:
    if verb == "c":
        valid = 0 <= value < 0x110000 and not 0xD800 <= value < 0xE000
        return chr(value) if valid else "\ufffd"
    if verb == "q":
        return "'" + (chr(value) if 0 <= value < 0xD800 else "\ufffd") + "'"
    if verb == "U":
        return f"U+{value:04X}"
    prefixes = {"d": "", "b": "0b", "o": "0", "O": "0o", "x": "0x", "X": "0X"}
    if verb not in prefixes:
        return None
    body = format(abs(value), "o" if verb == "O" else verb)
    if digits is not None:
        body = body.rjust(digits, "0")
    if "#" in flags or verb == "O":
        body = prefixes[verb] + body
    sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
    if "0" in flags and "-" not in flags and digits is None:
        body = body.rjust(width - len(sign), "0")
    return sign + body


def _float(verb: str, flags: str, digits: int | None, width: int, value: float) -> str | None:
    if verb not in "eEfFgG":
        return None
    if verb in "gG" and digits is None:
        body = _shortest(abs(value))
    else:
        body = format(abs(value), f".{min(6 if digits is None else digits, 400)}{verb}")
    negative = value < 0 or (value == 0 and str(value).startswith("-"))
    sign = "-" if negative else "+" if "+" in flags else " " if " " in flags else ""
    if "0" in flags and "-" not in flags:
        body = body.rjust(width - len(sign), "0")
    return sign + body


def _string(verb: str, flags: str, digits: int | None, value: str) -> str | None:
    if verb not in "sqxX":
        return None
    if digits is not None:
        value = value[:digits]
    if verb == "s":
        return value
    if verb == "q":
        if "#" in flags and "`" not in value and value.isprintable():
            return f"`{value}`"
        return json.dumps(value, ensure_ascii=False)
    data = value.encode("utf-8", "surrogateescape")
    text = data.hex(" ") if " " in flags else data.hex()
    return text.upper() if verb == "X" else text


def _shortest(value: float) -> str:
    """Write the shortest text that reads back equal, as %v does."""
    text = repr(value)
    if text in ("inf", "-inf", "nan"):
        return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}[text]
    # repr has the shortest digits; Go writes them with an exponent below 1e-4 and from 1e6 on.
    mantissa, _, shift = text.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    zeros = len(whole + fraction) - len(digits)
    exponent = len(whole) - zeros - 1 + int(shift or 0)
    digits = digits.rstrip("0") or "0"
    sign = "-" if text.startswith("-") else ""
    if value and not -4 <= exponent < 6:
        rest = f".{digits[1:]}" if digits[1:] else ""
        return f"{sign}{digits[0]}{rest}e{exponent:+03d}"
    if shift:
        text = format(value, f".{max(len(digits) - exponent - 1, 0)}f")
    return text.removesuffix(".0")


def _type(value: Any) -> str:
    if isinstance(value, list):
        return "[]int64"
    if isinstance(value, Mapping):
        return "map[string]string"
    names = {bool: "bool", int: "int", float: "float64", str: "string"}
    return names.get(type(value), "<nil>")
