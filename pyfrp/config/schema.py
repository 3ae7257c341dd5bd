"""The same models in pydantic, for those who need a schema or validation by pydantic.

No start needs this: pydantic costs 90 ms and 9 MiB at import (see `pyfrp.config.base`).
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from pyfrp.config.base import FieldInfo, Key, Model, Shape, Tagged, fields_of, key_of, keys_of

_TWINS: dict[type[Model], type[BaseModel]] = {}


class _Twin(BaseModel):
    model_config = ConfigDict(
        alias_generator=key_of, populate_by_name=True, extra="forbid", strict=True
    )


def pydantic_model(model: type[Model]) -> type[BaseModel]:
    """Make the pydantic twin of a model: the same keys, types and defaults.

    A table that comes in variants is a union of the twins of all of them, told apart by `type`.
    """
    twin = _TWINS.get(model)
    if twin is None:
        fields: dict[str, Any] = {
            key.attribute: _field(key, *fields_of(model)[key.attribute])
            for key in keys_of(model).values()
        }
        twin = create_model(model.__name__, __base__=_Twin, __doc__=model.__doc__, **fields)
        _TWINS[model] = twin
    return twin


def _field(key: Key, kind: Any, info: FieldInfo) -> tuple[Any, Any]:
    """Describe one key as pydantic wants it: its type and its default."""
    if key.name == "type":
        default = info.make()
        return (Literal[default] if default else str), Field(default=default)
    factory: Any = info.make
    if key.model is not None:
        kind = _twin_of(key.model)
        if key.shape is Shape.MODEL_LIST:
            kind = list[kind]
        elif key.optional:
            kind = kind | None
        else:
            factory = kind
    return kind, Field(default_factory=factory, repr=info.repr)


def _twin_of(model: type[Model]) -> Any:
    if not issubclass(model, Tagged):
        return pydantic_model(model)
    return reduce(or_, (pydantic_model(variant) for variant in model.variants().values()))
