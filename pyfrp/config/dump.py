"""Writes a configuration as TOML."""

from __future__ import annotations

from functools import reduce
from typing import Any

from pyfrp.config.base import Key, Model, Shape, Tagged, fields_of, keys_of
from pyfrp.config.client import ClientConfig
from pyfrp.config.complete import complete_client, complete_server
from pyfrp.config.decode import Decoder
from pyfrp.config.parse import Document
from pyfrp.config.server import ServerConfig

_DERIVED = {
    ServerConfig: ("proxyBindAddr", "transport.heartbeatTimeout", "transport.tls.force"),
    ClientConfig: (
        "transport.heartbeatInterval",
        "transport.heartbeatTimeout",
        "transport.tls.serverName",
    ),
}


def dump_toml(cfg: ServerConfig | ClientConfig) -> str:
    """Write a configuration as the text of a file, secrets included.

    Only what differs from the defaults is written. A token that `tokenSource` gave stays where it
    is, and proxies that `includes` brought in are written instead of `includes`; otherwise the
    text loads back equal.
    """
    import tomli_w  # only demo and tests write files

    table = _table(cfg)
    if cfg.auth.token_source is not None:
        table["auth"].pop("token", None)
    if isinstance(cfg, ClientConfig):
        table.pop("includes", None)
        for visitor in table.get("visitors", ()):
            if visitor.get("serverUser") == cfg.user:
                visitor.pop("serverUser", None)
    _drop_derived(cfg, table)
    return tomli_w.dumps(table)


def _drop_derived(cfg: ServerConfig | ClientConfig, table: dict[str, Any]) -> None:
    """Take out what loading would fill in again from other keys."""
    taken = {path: _take(table, path.split(".")) for path in _DERIVED[type(cfg)]}
    probe = Decoder(Document({}), strict=False).decode(type(cfg), table)
    if isinstance(probe, ServerConfig):
        complete_server(probe)
    else:
        complete_client(probe)
    for path, value in taken.items():
        if value is not None and _attribute(probe, path) != _attribute(cfg, path):
            *tables, key = path.split(".")
            reduce(lambda inner, name: inner.setdefault(name, {}), tables, table)[key] = value


def _take(table: dict[str, Any], path: list[str]) -> Any:
    """Remove and return the value at a path, and the tables that become empty."""
    key, *rest = path
    if not rest:
        return table.pop(key, None)
    inner = table.get(key)
    if inner is None:
        return None
    value = _take(inner, rest)
    if not inner:
        del table[key]
    return value


def _attribute(cfg: Model, path: str) -> Any:
    value: Any = cfg
    for name in path.split("."):
        value = getattr(value, keys_of(type(value))[name.lower()].attribute)
    return value


def _table(model: Model) -> dict[str, Any]:
    """Turn a model into a table of what differs from its defaults."""
    table: dict[str, Any] = {}
    fields = fields_of(type(model))
    for key in keys_of(type(model)).values():
        value = getattr(model, key.attribute)
        default = fields[key.attribute][1].make()
        written = _value(key, value, default)
        if written is not None:
            table[key.name] = written
    if isinstance(model, Tagged):
        return {"type": model.type} | table
    return table


def _value(key: Key, value: Any, default: Any) -> Any:
    """Return what to write for a value, or None for nothing."""
    if key.shape is Shape.MODEL:
        if value is None:
            return None
        return _table(value) or ({} if key.optional else None)
    if value == default:
        return None
    if key.shape is Shape.MODEL_LIST:
        return [_table(item) for item in value]
    return value
