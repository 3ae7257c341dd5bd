"""The pydantic twins have the same keys, types and defaults as the models that are loaded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pyfrp.config import ClientConfig, ServerConfig
from pyfrp.config.base import Model, keys_of
from pyfrp.config.decode import Decoder
from pyfrp.config.parse import Document
from pyfrp.config.plugins import CLIENT_PLUGINS
from pyfrp.config.proxies import PROXY_TYPES
from pyfrp.config.schema import pydantic_model
from pyfrp.config.visitors import VISITOR_PLUGINS, VISITOR_TYPES

MODELS: list[type[Model]] = [ServerConfig, ClientConfig, *PROXY_TYPES.values()]
MODELS += [*VISITOR_TYPES.values(), *CLIENT_PLUGINS.values(), *VISITOR_PLUGINS.values()]


def values(model: Any) -> Any:
    """List the values of a model or twin by attribute."""
    if isinstance(model, list):
        return [values(item) for item in model]
    if isinstance(model, Model):
        names = [key.attribute for key in keys_of(type(model)).values()]
    elif isinstance(model, BaseModel):
        names = list(type(model).model_fields)
    else:
        return model
    return {name: values(getattr(model, name)) for name in names}


@pytest.mark.parametrize("model", MODELS)
def test_twins_have_the_same_keys_and_defaults(model: type[Model]) -> None:
    twin = pydantic_model(model)
    assert values(twin()) == values(model())
    names = {info.alias for info in twin.model_fields.values()}
    assert names == {key.name for key in keys_of(model).values()}


@pytest.mark.parametrize("model", MODELS)
def test_twins_have_a_schema(model: type[Model]) -> None:
    schema = pydantic_model(model).model_json_schema(by_alias=True)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("data", [{"bindPort": "1"}, {"nope": 1}, {"bindPort": True}, {"auth": 1}])
def test_twins_refuse_what_the_loader_refuses(data: dict[str, Any]) -> None:
    decoder = Decoder(Document({}), strict=True)
    decoder.decode(ServerConfig, data)
    assert decoder.problems
    with pytest.raises(ValidationError):
        pydantic_model(ServerConfig).model_validate(data)


def test_variants_are_told_apart_by_their_type() -> None:
    proxy = {"name": "a", "type": "tcp", "remotePort": 1, "plugin": {"type": "socks5"}}
    data = {"proxies": [proxy], "visitors": [{"name": "v", "type": "xtcp"}]}
    assert agreed(ClientConfig, data)


def agreed(model: type[Model], data: dict[str, Any]) -> bool:
    decoder = Decoder(Document({}), strict=True)
    ours = decoder.decode(model, data)
    theirs = pydantic_model(model).model_validate(data)
    return not decoder.problems and values(ours) == values(theirs)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)


@given(
    data=st.fixed_dictionaries(
        {},
        optional={
            "bindPort": st.integers(1, 65535),
            "auth": st.fixed_dictionaries({}, optional={"token": texts}),
            "allowPorts": st.lists(st.fixed_dictionaries({"start": st.integers(1, 9)}), max_size=2),
            "webServer": st.fixed_dictionaries({}, optional={"tls": st.just({"certFile": "x"})}),
            "detailedErrorsToClient": st.booleans(),
        },
    )
)
def test_both_read_the_same_values(data: dict[str, Any]) -> None:
    assert agreed(ServerConfig, data)
