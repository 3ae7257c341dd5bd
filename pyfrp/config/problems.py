"""Faults found in a configuration, and how they are told to the operator.

A fault names a place (`("proxies", 0, "localPort")`) rather than a line: lines are looked up in
the source text only when there is something to report.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pyfrp.errors import ConfigError

Place = tuple[str | int, ...]
"""Way from the top of the file to a value: keys as frp spells them, and list indexes from 0."""

MAX_REPORTED = 20
"""Faults told at once; more would scroll the first ones off the screen."""


class Source(Protocol):
    """Where a value was written."""

    path: str | None

    def line_of(self, place: Place) -> int | None:
        """Find the 1-based line of a place, if there is one."""


class Nowhere:
    """The source of what was never in a file."""

    path: str | None = None

    def line_of(self, place: Place) -> int | None:
        """There are no lines."""
        return None


Spot = tuple[Source, Place]
"""A file and a place in it."""


@dataclass(slots=True)
class Origin:
    """Where the parts of a loaded configuration were written.

    Args:
        source: The main file.
        proxies: For each proxy its file, which may be an included one, and its place there.
        visitors: The same for each visitor.
    """

    source: Source = field(default_factory=Nowhere)
    proxies: list[Spot] = field(default_factory=list)
    visitors: list[Spot] = field(default_factory=list)

    def spot(self, table: str, index: int) -> Spot:
        """Tell where a proxy or visitor was written; programs may have changed the lists since."""
        spots = self.proxies if table == "proxies" else self.visitors
        return spots[index] if index < len(spots) else (self.source, (table, index))


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault.

    Args:
        text: What is wrong; frp's words where frp has them.
        place: Where; empty when no key is to blame.
        hint: What to try; empty when the text says it.
        model: For an unknown key, the model of the table that it stands in.
        source: The file; none for a configuration that was never in one.
    """

    text: str
    place: Place = ()
    hint: str = ""
    model: Any = None
    source: Source | None = None

    @property
    def line(self) -> int | None:
        """The 1-based line in the file, if known."""
        return None if self.source is None else self.source.line_of(self.place)

    def within(self, source: Source, place: Place = (), prefix: str = "") -> Problem:
        """Say in which file, and inside which table of it, the fault is."""
        return replace(self, text=prefix + self.text, place=(*place, *self.place), source=source)

    def bare(self) -> Problem:
        """Leave out where the fault is."""
        return replace(self, place=(), source=None)

    def __str__(self) -> str:
        path = None if self.source is None else self.source.path
        where = ":".join(str(part) for part in (path, self.line) if part is not None)
        text = f"{where}: {self.text}" if where else self.text
        key = dotted(self.place)
        if key and key not in self.text:
            text += f" ({key})"
        return f"{text}; {self.hint}" if self.hint else text


def dotted(place: Place) -> str:
    """Write a place as operators do: `proxies[0].transport.useEncryption`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def config_error(problems: Iterable[Problem]) -> ConfigError:
    """Make one error of all faults (at least one), in the order given, each on its own line."""
    found = list(problems)
    lines = [str(problem) for problem in found[:MAX_REPORTED]]
    if len(found) > MAX_REPORTED:
        lines.append(f"... and {len(found) - MAX_REPORTED} more")
    first = found[0]
    error = ConfigError("\n".join(lines))
    error.path = None if first.source is None else first.source.path
    error.key, error.line = dotted(first.place) or None, first.line
    return error
