"""How an event becomes a line: safe text, frp's line format, JSON.

Source of the format: frp `pkg/util/log/log.go`, golib `log` (layout and colours).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

LEVELS = ("trace", "debug", "info", "warn", "error")
_LETTERS = dict(zip(LEVELS, "TDIWE", strict=True))
_COLOURS = {"debug": "1;36", "info": "1;34", "warn": "1;33", "error": "1;31"}

EVENT_LIMIT = 4096
"""Characters of an event's text that are kept; frp's longest own line lists all proxy names."""
VALUE_LIMIT = 1024
"""Characters of one value that are kept."""


def clean(text: str, limit: int = 200) -> str:
    """Make text of a peer fit for one line: control characters escaped, the excess cut.

    Args:
        text: Anything.
        limit: Characters to keep; what is left out is told as a number.
    """
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text) - limit} more)"
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)


_BARE = re.compile(r"[^\s\"'=\\]+")


def _value(value: object) -> str:
    """Render the value of a key: bare if it is one word, else in quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = _text(value)
    if _BARE.fullmatch(text) and text.isprintable() and len(text) <= VALUE_LIMIT:
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{clean(text, VALUE_LIMIT)}"'


def _text(value: object) -> str:
    """Like `str`, but an exception without a text gives its name."""
    return str(value) or (type(value).__name__ if isinstance(value, BaseException) else "")


class _Stamp:
    """Renders the time of a line; the part down to the second is made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ("", "", "")

    def parts(self, now: float) -> tuple[str, str, str, int]:
        """Return date, time of day and offset (all local), and milliseconds."""
        second = int(now // 1)
        if second != self._second:
            local = time.localtime(second)
            offset = time.strftime("%z", local)
            self._text = (
                time.strftime("%Y-%m-%d", local),
                time.strftime("%H:%M:%S", local),
                f"{offset[:3]}:{offset[3:5]}",
            )
            self._second = second
        return *self._text, int((now - second) * 1000)


Renderer = Callable[[float, str, str, Mapping[str, Any]], str]
"""(time, level, caller, event with its keys) -> lines, without the last newline."""


def text_renderer(colour: bool) -> Renderer:
    stamp = _Stamp()

    def render(now: float, level: str, caller: str, event: Mapping[str, Any]) -> str:
        date, clock, _, ms = stamp.parts(now)
        parts = [f"{date} {clock}.{ms:03d} [{_LETTERS[level]}] [{caller}] "]
        tail: list[str] = []
        for key, value in event.items():
            if key in ("run_id", "proxy"):
                if value:  # A request that met no proxy has none.
                    parts.append(f"[{clean(str(value), VALUE_LIMIT)}] ")
            elif key not in ("event", "exception"):
                tail.append(f" {key}={_value(value)}")
        parts.append(clean(str(event["event"]), EVENT_LIMIT))
        parts += tail
        if "exception" in event:
            parts += (
                f"\n    {clean(line, VALUE_LIMIT)}" for line in event["exception"].split("\n")
            )
        line = "".join(parts)
        code = _COLOURS.get(level) if colour else None
        # As in frp, the newline is inside the colour.
        return f"\x1b[{code}m{line}\n\x1b[0m" if code else f"{line}\n"

    return render


_FIRST = ("run_id", "proxy", "event")
"""What comes first in each JSON line, after time, level and caller."""


def json_renderer() -> Renderer:
    stamp = _Stamp()

    def render(now: float, level: str, caller: str, event: Mapping[str, Any]) -> str:
        date, clock, offset, ms = stamp.parts(now)
        line: dict[str, Any] = {
            "time": f"{date}T{clock}.{ms:03d}{offset}",
            "level": level,
            "caller": caller,
        }
        for key in (*_FIRST, *event):
            if key in event:
                line.setdefault(key, _json_value(event[key]))
        # ASCII output: nothing in it can steer a terminal, not even half a surrogate pair.
        return json.dumps(line) + "\n"

    return render


def _json_value(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    text = _text(value)
    return text if len(text) <= EVENT_LIMIT else clean(text, EVENT_LIMIT)
