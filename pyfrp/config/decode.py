"""From parsed text (dicts, lists, scalars) to models, checking keys and types on the way.

The rules are those of frp's decoding through JSON: keys match without regard to case, null and
(where a default exists) zero mean "unset", whole floats pass as integers, and nothing is turned
from string to number or back. Every fault is kept, so that one run shows all of them.

Source: frp `pkg/config/load.go` and `pkg/config/v1/decode.go`; texts of newest frp.
"""

from __future__ import annotations

import datetime
import re
from typing import Any, TypeVar

from pyfrp.config.base import Key, Model, Shape, Tagged, keys_of
from pyfrp.config.parse import laid_over
from pyfrp.config.problems import Place, Problem, Source, dotted

M = TypeVar("M", bound=Model)

_INT64 = range(-(2**63), 2**63)
_GO_TYPES = {
    Shape.INT: "int",
    Shape.STR: "string",
    Shape.BOOL: "bool",
    Shape.STR_LIST: "list of strings",
    Shape.STR_MAP: "table of strings",
    Shape.BOOL_MAP: "table of bools",
    Shape.MODEL: "table",
    Shape.MODEL_LIST: "list of tables",
}


class _Wrong(Exception):
    """A value of the wrong type; the argument says what it is."""


class Decoder:
    """Turns parsed text into models and collects what is wrong.

    Args:
        source: The file that the text comes from, for the faults.
        strict: Unknown keys are faults; otherwise they are ignored.

    After `decode`, `problems` holds the faults; the result is unusable when there are any.
    """

    def __init__(self, source: Source, *, strict: bool) -> None:
        self.source = source
        self.strict = strict
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def decode(self, model: type[M], raw: dict[str, Any], place: Place = ()) -> M:
        """Make a model of a table.

        Args:
            model: Which model; for a `Tagged` one, already the variant.
            raw: The table.
            place: Where the table stands.
        """
        keys = keys_of(model)
        values: dict[str, Any] = {}
        for name, value in self._without_twins(raw, place).items():
            key = keys.get(name.lower())
            if key is None:
                self._unknown(model, (*place, name))
            elif value is not None:
                self._take(model, key, value, (*place, key.name), values)
        for key in keys.values():
            if key.shape is Shape.MODEL and key.attribute not in values and not key.optional:
                assert key.model is not None
                values[key.attribute] = self.decode(key.model, {}, (*place, key.name))
        return model(**values)

    def _take(
        self, model: type[Model], key: Key, value: Any, place: Place, values: dict[str, Any]
    ) -> None:
        """Convert one value and store it, unless it means "unset"."""
        try:
            converted = self._convert(key, value, place)
        except _Wrong as wrong:
            self._wrong_type(place, key.shape, str(wrong), value)
            return
        if converted is None:
            return
        zero = converted == "" or (converted == 0 and converted is not False)
        if not zero or key.name in model.zero_is_meant:
            values[key.attribute] = converted

    def _convert(self, key: Key, value: Any, place: Place) -> Any:
        match key.shape:
            case Shape.INT:
                return _integer(value)
            case Shape.STR:
                return _string(value)
            case Shape.BOOL:
                return _boolean(value)
            case Shape.STR_LIST:
                return [
                    item
                    for index, raw in enumerate(_list(value))
                    if (item := self._item(Shape.STR, raw, (*place, index))) is not None
                ]
            case Shape.STR_MAP | Shape.BOOL_MAP:
                shape = Shape.STR if key.shape is Shape.STR_MAP else Shape.BOOL
                return {
                    name: item
                    for name, raw in _table(value).items()
                    if (item := self._item(shape, raw, (*place, name))) is not None
                }
            case Shape.MODEL:
                return self._table_of(key, _table(value), place)
            case Shape.MODEL_LIST:
                return [
                    entry
                    for index, raw in enumerate(_list(value))
                    if (entry := self._list_item(key, raw, (*place, index))) is not None
                ]

    def _item(self, shape: Shape, value: Any, place: Place) -> str | bool | None:
        """Convert one item of a list or map; null is the zero value there."""
        try:
            if shape is Shape.STR:
                return "" if value is None else _string(value)
            return False if value is None else _boolean(value)
        except _Wrong as wrong:
            self._wrong_type(place, shape, str(wrong), value)
            return None

    def _list_item(self, key: Key, value: Any, place: Place) -> Model | None:
        try:
            return self._table_of(key, {} if value is None else _table(value), place)
        except _Wrong as wrong:
            self._wrong_type(place, Shape.MODEL, str(wrong), value)
            return None

    def _table_of(self, key: Key, raw: dict[str, Any], place: Place) -> Model | None:
        model = key.model
        assert model is not None
        if not issubclass(model, Tagged):
            return self.decode(model, raw, place)
        variant = self._variant(model, raw, place)
        return None if variant is None else self.decode(variant, raw, place)

    def _variant(
        self, model: type[Tagged], raw: dict[str, Any], place: Place
    ) -> type[Tagged] | None:
        """Pick the model that the key `type` asks for."""
        tag = next((value for name, value in raw.items() if name.lower() == "type"), None)
        prefix = ""
        if isinstance(place[-1], int):
            prefix = f"decode {model.kind} at index {place[-1]}: "
        where = (*place, "type") if tag is not None else place
        if tag is not None and not isinstance(tag, str):
            self._wrong_type((*place, "type"), Shape.STR, _what(tag), tag)
            return None
        variants = model.variants()
        if tag in variants:
            return variants[tag]
        if not tag and not prefix:
            text = f"{model.kind} type is empty"
        else:
            text = f"{prefix}unknown {model.kind} type: {(tag or '')[:60]}"
        hint = f"type is one of {' '.join(variants)}"
        self._report(text, where, hint)
        return None

    def _without_twins(self, raw: dict[str, Any], place: Place) -> dict[str, Any]:
        """Join keys that differ only in case; frp takes one of them, or merges the tables."""
        if len({name.lower() for name in raw}) == len(raw):
            return raw
        joined: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for name, value in raw.items():
            first = spelled.setdefault(name.lower(), name)
            if first == name:
                joined[name] = value
                continue
            self.warnings.append(
                f"{dotted((*place, first))} and {dotted((*place, name))} are the same key; "
                "tables are merged, of other values the last one counts"
            )
            joined[first] = laid_over(joined[first], value)
        return joined

    def _unknown(self, model: type[Model], place: Place) -> None:
        if self.strict:
            name = str(place[-1])[:60]
            text = f'unknown field "{name}"'
            self.problems.append(Problem(text, place, model=model, source=self.source))

    def _wrong_type(self, place: Place, shape: Shape, found: str, value: Any) -> None:
        hint = ""
        if isinstance(value, str) and shape in (Shape.INT, Shape.BOOL):
            plain = value.strip().lower()
            if plain in ("true", "false") if shape is Shape.BOOL else plain.lstrip("-").isdecimal():
                hint = "write it without quotes"
        elif shape is Shape.STR and isinstance(value, (int, float)):
            hint = "write it in quotes"
        elif shape is Shape.STR_LIST and isinstance(value, str):
            hint = "write it in brackets: [...]"
        elif shape is Shape.MODEL_LIST and isinstance(value, dict) and len(place) == 1:
            hint = f"each starts with [[{place[0]}]] in TOML, or - in YAML"
        text = f'field "{dotted(place)}": cannot unmarshal {found} into {_GO_TYPES[shape]}'
        self._report(text, place, hint)

    def _report(self, text: str, place: Place, hint: str) -> None:
        self.problems.append(Problem(text, place, hint, source=self.source))


def _what(value: Any) -> str:
    """Name a value's type in JSON's words; never the value, which may be a secret."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    if isinstance(value, dict):
        return "object"
    return "null" if value is None else type(value).__name__


def _integer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INT64:
        shown = f" {value}" if isinstance(value, float) else ""
        raise _Wrong(_what(value) + shown)
    return value


def _string(value: Any) -> str:
    # TOML's and YAML's times reach frp as text (its TOML goes through JSON).
    if isinstance(value, (datetime.date, datetime.time)):
        text = value.isoformat().replace("+00:00", "Z")
        return re.sub(r"(\.\d*[1-9])0+", r"\1", text)
    if not isinstance(value, str):
        raise _Wrong(_what(value))
    return value if value.isascii() else _encodable(value)


def _encodable(text: str) -> str:
    """Replace lone surrogates (JSON's `\\ud800`) as Go does: nothing could send or log them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(_what(value))
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _Wrong(_what(value))
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(_what(value))
    return {_key_text(name): item for name, item in value.items()}


def _key_text(name: Any) -> str:
    """Spell a YAML key that is not a string as JSON would."""
    if isinstance(name, str):
        return name if name.isascii() else _encodable(name)
    if isinstance(name, bool):
        return "true" if name else "false"
    if name is None:
        return "null"
    return str(name)[:100]
