"""What every configuration model is built on, and the description of its keys.

The models say which keys exist, of which type, with which default; `pyfrp.config.decode` turns
parsed text into them. Everybody else treats a configuration as a plain object with attributes.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Union, dataclass_transform, get_args, get_origin

from pyfrp.config.problems import Origin

_ACRONYMS = {"ip": "IP", "url": "URL", "http": "HTTP", "https": "HTTPS", "tls": "TLS", "id": "ID"}
_ACRONYMS |= {"http2": "HTTP2", "sha256": "SHA256"}


def key_of(attribute: str) -> str:
    """Spell an attribute as frp spells the key: `vhost_http_port` -> `vhostHTTPPort`."""
    first, *rest = attribute.split("_")
    return first + "".join(_ACRONYMS.get(word, word.capitalize()) for word in rest)


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """What a model says about a key beside its type: its default, and whether it may be shown."""

    default: Any = None
    default_factory: Callable[[], Any] | None = None
    repr: bool = True

    def make(self) -> Any:
        """Make the default; a new one each time if it can be changed."""
        return self.default if self.default_factory is None else self.default_factory()


def Field(
    *, default: Any = None, default_factory: Callable[[], Any] | None = None, repr: bool = True
) -> Any:
    """Declare a key whose default is made anew each time, or that does not show in a repr."""
    return FieldInfo(default, default_factory, repr)


def secret(default: Any = "") -> Any:
    """Declare a key whose value never appears in a repr."""
    return FieldInfo(default, repr=False)


def secret_map() -> Any:
    """Declare a string map whose values never appear in a repr."""
    return FieldInfo(default_factory=dict, repr=False)


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class Model:
    """Base of all configuration models: plain objects with an attribute for each key.

    Every field has a default. Attributes may be assigned after loading; nothing checks them then.
    The loader checks keys and types. `pyfrp.config.schema` makes the same models in pydantic for
    who needs their schema; here, pydantic's import alone would cost each process 90 ms and 9 MiB.
    """

    zero_is_meant: ClassVar[frozenset[str]] = frozenset()
    """Keys whose 0 or "" is a value of its own; elsewhere frp takes it as "unset"."""

    def __init__(self, **values: Any) -> None:
        fields = fields_of(type(self))
        unknown = values.keys() - fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no key {sorted(unknown)[0]!r}")
        for name, (_, info) in fields.items():
            self.__dict__[name] = values[name] if name in values else info.make()

    def __eq__(self, other: object) -> bool:
        """Equal when of one class with equal keys; warnings and the like do not count."""
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in fields_of(type(self)))

    def __repr__(self) -> str:
        shown = (
            f"{name}={getattr(self, name)!r}"
            for name, (_, info) in fields_of(type(self)).items()
            if info.repr
        )
        return f"{type(self).__name__}({', '.join(shown)})"


_FIELDS: dict[type[Model], dict[str, tuple[Any, FieldInfo]]] = {}


def fields_of(model: type[Model]) -> dict[str, tuple[Any, FieldInfo]]:
    """List the type and description of each attribute of a model, inherited ones first."""
    fields = _FIELDS.get(model)
    if fields is None:
        fields = _FIELDS[model] = {}
        for cls in reversed(model.__mro__[:-1]):
            names = vars(sys.modules[cls.__module__])
            for name, annotation in cls.__annotations__.items():
                if name.startswith("_") or annotation.startswith("ClassVar"):
                    continue
                declared = getattr(model, name)
                info = declared if isinstance(declared, FieldInfo) else FieldInfo(declared)
                # The annotations are text (PEP 563) and ours.
                fields[name] = (eval(annotation, names), info)
    return fields


class RootModel(Model):
    """Base of the two models that stand for a whole file."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._warnings: list[str] = []
        self._origin = Origin()

    @property
    def warnings(self) -> list[str]:
        """What the operator should know although nothing is wrong; one sentence each."""
        return self._warnings

    @property
    def origin(self) -> Origin:
        """Where the configuration was written; nowhere for one that was made by keywords."""
        return self._origin

    @origin.setter
    def origin(self, origin: Origin) -> None:
        self._origin = origin


class Tagged(Model):
    """Base of models that come in variants, told apart by the key `type`."""

    type: str = ""
    """Which variant; required in files."""

    kind: ClassVar[str] = ""
    """What the variants are called in messages, e.g. `proxy`."""

    @classmethod
    def variants(cls) -> Variants:
        """Map each value of `type` to its model."""
        return {}


Variants = dict[str, type[Tagged]]
"""Models by the value of their key `type`."""


class Shape(Enum):
    """The forms a value can have in a configuration file."""

    INT = "int"
    STR = "string"
    BOOL = "bool"
    STR_LIST = "list of strings"
    STR_MAP = "table of strings"
    BOOL_MAP = "table of bools"
    MODEL = "table"
    MODEL_LIST = "list of tables"


_SHAPES: dict[Any, Shape] = {
    int: Shape.INT,
    str: Shape.STR,
    bool: Shape.BOOL,
    list[str]: Shape.STR_LIST,
    dict[str, str]: Shape.STR_MAP,
    dict[str, bool]: Shape.BOOL_MAP,
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a model.

    Args:
        name: As frp spells it, e.g. `bindPort`.
        attribute: As the model spells it, e.g. `bind_port`.
        shape: What its value looks like.
        model: For tables and lists of tables: the model of (one of) them.
        optional: A table whose absence means something else than its defaults.
    """

    name: str
    attribute: str
    shape: Shape
    model: type[Model] | None = None
    optional: bool = False


_KEYS: dict[type[Model], dict[str, Key]] = {}


def keys_of(model: type[Model]) -> dict[str, Key]:
    """List the keys of a model, by lower-cased name (frp matches keys without regard to case)."""
    keys = _KEYS.get(model)
    if keys is None:
        described = [_describe(name, kind) for name, (kind, _) in fields_of(model).items()]
        keys = _KEYS[model] = {key.name.lower(): key for key in described}
    return keys


def _describe(attribute: str, annotation: Any) -> Key:
    name = key_of(attribute)
    optional = False
    if get_origin(annotation) in (types.UnionType, Union):
        (annotation,) = [arg for arg in get_args(annotation) if arg is not type(None)]
        optional = True
    shape = _SHAPES.get(annotation)
    if shape is not None:
        return Key(name, attribute, shape, optional=optional)
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        return Key(name, attribute, Shape.MODEL_LIST, item)
    return Key(name, attribute, Shape.MODEL, annotation, optional)
