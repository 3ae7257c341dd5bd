"""Records: small classes whose body is the table of their JSON form, read and written as Go does.

    class Ping(Record):
        privilege_key: str = secret(default="")
        timestamp: int = 0

Field order is the order on the wire, the annotation chooses the JSON form, and the attribute name
is the JSON key unless `wire` renames it. Absent and `null` fields mean the zero value, unknown
fields are ignored, keys match without regard to case. Empty values are not written, except nested
records, which Go never leaves out.

Records are keyword-only dataclasses to type checkers. They are not made by `dataclasses`: for the
two dozen messages its generated code costs each start about 10 ms, this costs 2.

Source: Go `encoding/json` (omission, escaping, matching of keys, ranges).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from json import JSONDecoder
from json.encoder import encode_basestring
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, dataclass_transform

from pyfrp.errors import BadMessage

U16: TypeAlias = int
"""An integer that Go keeps in 16 unsigned bits; every other one has 64 signed bits."""

INT64_MAX = 2**63 - 1


class _Spec:
    """What `wire`, `secret` and `each` leave in a class body until the class is made."""

    __slots__ = ("always", "default", "hidden", "key", "make")

    def __init__(
        self,
        default: Any = None,
        *,
        make: Callable[[], Any] | None = None,
        key: str | None = None,
        always: bool = False,
        hidden: bool = False,
    ) -> None:
        self.always = always
        self.default = default
        self.make = make
        self.key = key
        self.hidden = hidden


def wire(key: str, *, default: Any, always: bool = False) -> Any:
    """A field whose JSON key differs from its attribute; written when empty too if `always`."""
    return _Spec(default, key=key, always=always)


def secret(*, default: str) -> Any:
    """A string that stays out of `repr`, so that it cannot slip into a log or an error."""
    return _Spec(default, hidden=True)


def each(*, factory: Callable[[], Any]) -> Any:
    """A field whose zero value is made for each record: a list, a map, a nested record."""
    return _Spec(make=factory)


class Mismatch(Exception):
    """A JSON value of the wrong type; the text completes "field x: ..."."""


_Reader: TypeAlias = Callable[[Any], Any]
_Writer: TypeAlias = Callable[[Any], str]
_ABSENT = object()


@dataclass_transform(kw_only_default=True, field_specifiers=(wire, secret, each))
class Record:
    """Base of everything that travels as a JSON object."""

    _readers: ClassVar[dict[str, tuple[str, _Reader]]]
    """JSON key in lower case -> (attribute, reader)."""
    _writers: ClassVar[tuple[tuple[str, str, _Writer, bool], ...]]
    """(attribute, `"key":`, writer, written when empty too) in the order of the wire."""
    _makers: ClassVar[tuple[tuple[str, Callable[[], Any]], ...]]
    """Attributes whose zero value must not be shared."""
    _shown: ClassVar[tuple[str, ...]]
    _names: ClassVar[frozenset[str]]

    def __init_subclass__(cls) -> None:
        readers: dict[str, tuple[str, _Reader]] = {}
        writers: list[tuple[str, str, _Writer, bool]] = []
        makers: list[tuple[str, Callable[[], Any]]] = []
        shown: list[str] = []
        for name, kind in cls.__annotations__.items():
            spec = cls.__dict__[name]
            if type(spec) is not _Spec:
                spec = _Spec(spec)
            if spec.make is None:
                setattr(cls, name, spec.default)
            else:
                delattr(cls, name)
                makers.append((name, spec.make))
            key = spec.key or name
            read, write = _KINDS[kind]
            readers[key.lower()] = (name, read)
            writers.append((name, f'"{key}":', write, spec.always))
            if not spec.hidden:
                shown.append(name)
        cls._readers = readers
        cls._writers = tuple(writers)
        cls._makers = tuple(makers)
        cls._shown = tuple(shown)
        cls._names = frozenset(cls.__annotations__)
        # A record can be a field of another one, or the item of a list there.
        _KINDS[cls.__name__] = (cls._read, Record._write)
        _KINDS[f"{cls.__name__} | None"] = (cls._read, Record._write)
        _KINDS[f"list[{cls.__name__}]"] = (cls._read_list, _write_list)

    def __init__(self, **values: Any) -> None:
        for name, make in self._makers:
            if name not in values:
                values[name] = make()
        if not self._names.issuperset(values):
            unknown = ", ".join(sorted(values.keys() - self._names))
            raise TypeError(f"{type(self).__name__} has no field {unknown}")
        self.__dict__.update(values)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._names)

    __hash__ = None  # type: ignore[assignment]  # mutable and compared by value

    def __repr__(self) -> str:
        shown = ((name, getattr(self, name)) for name in self._shown)
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown if v)})"

    @classmethod
    def _read(cls, value: Any) -> Self:
        _expect(dict, value, "an object")
        readers = cls._readers
        found: dict[str, Any] = {}
        for key, item in value.items():
            entry = readers.get(key) or readers.get(key.lower())
            if entry is None:
                continue
            name, read = entry
            if name in found:
                # Go lets the last one win. Nobody writes this by accident, and two readers that
                # understand one message differently would be a hole.
                raise Mismatch(f"field {key!r} is there twice")
            try:
                found[name] = _ABSENT if item is None else read(item)
            except Mismatch as exc:
                raise Mismatch(f"field {key!r}: {exc}") from exc
        return cls(**{name: item for name, item in found.items() if item is not _ABSENT})

    @classmethod
    def _read_list(cls, value: Any) -> list[Self]:
        _expect(list, value, "an array")
        return [cls() if item is None else cls._read(item) for item in value]

    def _write(self) -> str:
        parts: list[str] = []
        for name, key, write, always in self._writers:
            value = getattr(self, name)
            if value or always:  # A record is always true: nested ones are written even when empty.
                parts.append(key + write(value))
        return f"{{{','.join(parts)}}}"


# --- JSON forms of the kinds of fields --------------------------------------------------------

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _expect(kind: type, value: Any, name: str) -> None:
    if type(value) is not kind:
        names = {str: "a string", bool: "a boolean", dict: "an object", list: "an array"}
        raise Mismatch(f"expected {name}, not {names.get(type(value), 'a number')}")


def _read_str(value: Any) -> str:
    _expect(str, value, "a string")
    text: str = value
    if text.isascii():
        return text
    # JSON can spell half of a surrogate pair; Go reads it as U+FFFD, and UTF-8 cannot carry it.
    return _LONE_SURROGATE.sub("\ufffd", text)


def _read_bool(value: Any) -> bool:
    _expect(bool, value, "a boolean")
    return value is True


def _read_int(value: Any) -> int:
    _expect(int, value, "an integer")
    number: int = value
    if not -INT64_MAX - 1 <= number <= INT64_MAX:
        raise Mismatch("integer beyond 64 bits")
    return number


def _read_u16(value: Any) -> int:
    number = _read_int(value)
    if not 0 <= number <= 0xFFFF:
        raise Mismatch("integer outside 0..65535")
    return number


def _read_strings(value: Any) -> list[str]:
    _expect(list, value, "an array")
    return ["" if item is None else _read_str(item) for item in value]


def _read_map(value: Any) -> dict[str, str]:
    _expect(dict, value, "an object")
    return {_read_str(key): "" if item is None else _read_str(item) for key, item in value.items()}


def _read_bytes(value: Any) -> bytes:
    try:
        return binascii.a2b_base64(_read_str(value), strict_mode=True)
    except ValueError as exc:
        raise Mismatch("invalid base64") from exc


def _write_bool(value: bool) -> str:
    return "true" if value else "false"


def _write_strings(value: list[str]) -> str:
    return f"[{','.join(map(encode_basestring, value))}]"


def _write_map(value: dict[str, str]) -> str:
    quote = encode_basestring
    return f"{{{','.join(f'{quote(key)}:{quote(value[key])}' for key in sorted(value))}}}"


def _write_bytes(value: bytes) -> str:
    return f'"{binascii.b2a_base64(value, newline=False).decode()}"'


def _write_list(value: list[Record]) -> str:
    return f"[{','.join(map(Record._write, value))}]"


# By the text of the annotation, as postponed evaluation keeps it.
_KINDS: dict[str, tuple[_Reader, _Writer]] = {
    "str": (_read_str, encode_basestring),
    "int": (_read_int, str),
    "U16": (_read_u16, str),
    "bool": (_read_bool, _write_bool),
    "bytes": (_read_bytes, _write_bytes),
    "list[str]": (_read_strings, _write_strings),
    "dict[str, str]": (_read_map, _write_map),
}


# --- whole bodies -----------------------------------------------------------------------------

# What Go's encoder escapes beyond JSON's own rules, so that JSON can be put into HTML.
_HTML = re.compile("[<>&\u2028\u2029]")
_SPACE = " \t\r\n"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decode = JSONDecoder(parse_constant=_refuse_constant).raw_decode

R = TypeVar("R", bound=Record)


def encode_body(msg: Record) -> bytes:
    """Write a record as Go's encoder would: field order, omission, escaping, no spaces.

    Returns:
        UTF-8 JSON of any length; `framing.encode` is what checks it.
    """
    text = msg._write()
    if _HTML.search(text):
        text = _HTML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Undecodable bytes from the system (a host name, say) come as surrogates.
        return _LONE_SURROGATE.sub("\ufffd", text).encode()


def decode_body(cls: type[R], data: bytes) -> R:
    """Read the JSON form of a record of class `cls`.

    Raises:
        BadMessage: Not UTF-8, not one JSON object, nested too deeply, or a field of a wrong type
            or range. The text names the field and never holds a value.
    """
    if data == b"{}":  # Most messages that are sent often are empty.
        return cls()
    try:
        text = data.decode().strip(_SPACE)
        value, end = _decode(text)
        if end != len(text):
            raise ValueError("more than one value")
        return cls._read(value)
    except UnicodeDecodeError as exc:
        raise BadMessage(f"{cls.__name__}: body is not UTF-8") from exc
    except RecursionError as exc:
        raise BadMessage(f"{cls.__name__}: body is nested too deeply") from exc
    except ValueError as exc:
        raise BadMessage(f"{cls.__name__}: body is not JSON: {exc}") from exc
    except Mismatch as exc:
        raise BadMessage(f"{cls.__name__}: {exc}") from exc
