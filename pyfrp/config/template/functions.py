"""The functions that templates may call.

Each takes the evaluated arguments and returns a value, or raises ValueError with Go's text. Values
are str, int, float, bool, None, lists, dicts (the environment), `Pair` and `MISSING`.

Source: Go `text/template` funcs.go (its documentation); frp `pkg/config/template.go`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from pyfrp.config.ranges import parse_number_range
from pyfrp.config.template.printf import sprint, sprintf

MAX_STRING = 4 * 1024 * 1024
"""Characters that a function may return."""


class Missing:
    """A name that the environment does not have; prints as `<no value>`, counts as false."""

    def __repr__(self) -> str:
        return "<no value>"


MISSING = Missing()


@dataclass(frozen=True, slots=True)
class Pair:
    """One element of `parseNumberRangePair`."""

    First: int
    Second: int


@dataclass(frozen=True, slots=True)
class Root:
    """What `.` is at the start."""

    Envs: Mapping[str, str]


def truth(value: Any) -> bool:
    """Tell whether a value counts as true: not zero, not empty, not missing."""
    if value is MISSING:
        return False
    return bool(value)


def type_name(value: Any) -> str:
    """Name a value's type in Go's words."""
    if isinstance(value, Root):
        return "*config.Values"
    if isinstance(value, Pair):
        return "config.NumberPair"
    if isinstance(value, list):
        return "[]int64"
    if isinstance(value, Mapping):
        return "map[string]string"
    names = {str: "string", bool: "bool", int: "int", float: "float64"}
    return names.get(type(value), "nil")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(_bytes(value))
    if isinstance(value, (list, Mapping)):
        return len(value)
    if value is MISSING or value is None:
        raise ValueError("len of nil pointer")
    raise ValueError(f"len of type {type_name(value)}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is MISSING or value is None:
            raise ValueError("index of untyped nil")
        if isinstance(value, Mapping):
            if not isinstance(key, str):
                raise ValueError(f"value has type {type_name(key)}; should be string")
            value = value.get(key, "")
        elif isinstance(value, (list, str)):
            items: Any = _bytes(value) if isinstance(value, str) else value
            value = items[_position(key, len(items) - 1)]
        else:
            raise ValueError(f"can't index item of type {type_name(value)}")
    return value


def _position(key: Any, last: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise ValueError(f"cannot index slice/array with type {type_name(key)}")
    if not 0 <= key <= last:
        raise ValueError(f"index out of range: {key}")
    return key


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(value, (str, list)):
        raise ValueError(f"can't slice item of type {type_name(value)}")
    items: Any = _bytes(value) if isinstance(value, str) else value
    if len(bounds) > (2 if isinstance(value, str) else 3):
        raise ValueError("cannot 3-index slice a string")
    places = [_position(bound, len(items)) for bound in bounds]
    low, high = (*places, len(items))[:2] if places else (0, len(items))
    if low > high:
        raise ValueError(f"invalid slice index: {low} > {high}")
    part = items[low:high]
    return part.decode("utf-8", "replace") if isinstance(value, str) else part


def _kind(value: Any) -> str:
    for kind, types in (("bool", bool), ("int", int), ("float", float), ("string", str)):
        if isinstance(value, types):
            return kind
    return "missing" if value is MISSING or value is None else type_name(value)


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("missing argument for comparison")
    for value in (first, *others):
        if isinstance(value, (list, Mapping)):
            raise ValueError(f"non-comparable type {type_name(value)}")
    kind = _kind(first)
    for other in others:
        if _kind(other) != kind:
            if "missing" in (kind, _kind(other)):
                continue
            raise ValueError("incompatible types for comparison")
        if kind == "missing" or first == other:
            return True
    return False


def _lt(first: Any, second: Any) -> bool:
    kind = _kind(first)
    if kind == "missing" or _kind(second) == "missing":
        raise ValueError("invalid type for comparison")
    if kind != _kind(second):
        raise ValueError("incompatible types for comparison")
    if kind not in ("int", "float", "string"):
        raise ValueError("invalid type for comparison")
    less: bool = first < second
    return less


def _le(first: Any, second: Any) -> bool:
    return _lt(first, second) or _eq(first, second)


_JS = {
    "\\": "\\\\",
    "'": "\\'",
    '"': '\\"',
    "<": "\\u003C",
    ">": "\\u003E",
    "&": "\\u0026",
    "=": "\\u003D",
}


def _printable(values: Sequence[Any]) -> str:
    """Join the arguments of an escaping function, where a missing one shows."""
    return sprint(*("<no value>" if value is MISSING else value for value in values))


def _js(*values: Any) -> str:
    return "".join(
        _JS.get(char) or (f"\\u{ord(char):04X}" if ord(char) < 32 else char)
        for char in _printable(values)
    )


def _html(*values: Any) -> str:
    # Python writes the same five characters as Go, two of them in other digits.
    text = html.escape(_printable(values), quote=True)
    return text.replace("&quot;", "&#34;").replace("&#x27;", "&#39;").replace("\0", "\ufffd")


def _urlquery(*values: Any) -> str:
    return quote_plus(_bytes(_printable(values)), safe="")


def _text_argument(value: Any) -> str:
    if value is MISSING or value is None:
        raise ValueError("invalid value; expected string")
    if not isinstance(value, str):
        raise ValueError(f"wrong type for value; expected string; got {type_name(value)}")
    return value


def _number_range(text: Any) -> list[int]:
    return parse_number_range(_text_argument(text))


def _number_range_pair(first: Any, second: Any) -> list[Pair]:
    ones, others = _number_range(first), _number_range(second)
    if len(ones) != len(others):
        raise ValueError("first and second range numbers are not in pairs")
    return [Pair(one, other) for one, other in zip(ones, others, strict=True)]


def _printf(form: Any, *values: Any) -> str:
    return sprintf(_text_argument(form), values)


def _println(*values: Any) -> str:
    return " ".join(sprint(value) for value in values) + "\n"


@dataclass(frozen=True, slots=True)
class Function:
    """A function and how many arguments it takes; `most` None: any number."""

    call: Callable[..., Any]
    least: int
    most: int | None


FUNCTIONS: dict[str, Function] = {
    "and": Function(truth, 1, None),  # `and` and `or` stop at the first that decides; see evaluate
    "eq": Function(_eq, 1, None),
    "ge": Function(lambda a, b: not _lt(a, b), 2, 2),
    "gt": Function(lambda a, b: not _le(a, b), 2, 2),
    "html": Function(_html, 0, None),
    "index": Function(_index, 1, None),
    "js": Function(_js, 0, None),
    "le": Function(_le, 2, 2),
    "len": Function(_size, 1, 1),
    "lt": Function(_lt, 2, 2),
    "ne": Function(lambda a, b: not _eq(a, b), 2, 2),
    "not": Function(lambda value: not truth(value), 1, 1),
    "or": Function(truth, 1, None),
    "parseNumberRange": Function(_number_range, 1, 1),
    "parseNumberRangePair": Function(_number_range_pair, 2, 2),
    "print": Function(sprint, 0, None),
    "printf": Function(_printf, 1, None),
    "println": Function(_println, 0, None),
    "slice": Function(_slice, 1, None),
    "urlquery": Function(_urlquery, 0, None),
}
