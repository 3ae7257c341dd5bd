"""Read the configuration in a short-lived process of its own.

What checks a file (pydantic, its models, the parsers) is needed once and would stay for months,
8 MB in each process (`make bench`, row `memory`). A forked child does it, while this process loads
what it will run. The result comes back as plain objects with the same attributes. Where there is no
fork (Windows), the file is read right here.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pyfrp.errors import ConfigError, PyfrpError

T = TypeVar("T")


class Settings:
    """A table of a configuration: its keys, and what its model computes from them, as attributes.

    Its repr shows no values, because some are secret.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def load_apart(load: Callable[[], T], *, meanwhile: Callable[[], object]) -> T:
    """Run `load` in a child, `meanwhile` here, and return what `load` returned.

    Args:
        load: Returns a configuration model; it is handed over as plain objects.
        meanwhile: Anything useful that does not depend on it.

    Raises:
        ConfigError: as `load` did.
    """
    if not hasattr(os, "fork"):
        return load()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _answer(load, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        meanwhile()
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise PyfrpError("the process that reads the configuration was ended before it was done")
    # From our own child, over a pipe that nobody else has.
    kind, value = pickle.loads(answer)
    if kind == "config":
        return cast(T, value)
    if kind == "error":
        raise cast(ConfigError, value)
    raise PyfrpError(f"internal error while reading the configuration: {value}")


def _answer(load: Callable[[], Any], writer: int) -> None:
    """In the child: write the result and end, whatever happens."""
    try:
        try:
            answer: tuple[str, Any] = ("config", plain(load()))
        except ConfigError as exc:
            answer = ("error", exc)
        except BaseException as exc:
            answer = ("bug", f"{type(exc).__name__}: {exc}")
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
    finally:
        os._exit(0)  # Nothing of the parent's may run twice, such as its exit handlers.


def plain(value: Any) -> Any:
    """A copy of a configuration that needs none of its classes."""
    if hasattr(value, "__pydantic_fields__"):
        names = list(type(value).__pydantic_fields__)
        for kind in type(value).__mro__:
            if kind.__module__.startswith("pyfrp."):
                names += [name for name, attr in vars(kind).items() if isinstance(attr, property)]
        return Settings({name: plain(getattr(value, name)) for name in names})
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
