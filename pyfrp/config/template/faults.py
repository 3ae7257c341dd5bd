"""What goes wrong in a template, with Go's way to say where."""

from __future__ import annotations

MAX_SHOWN = 60
"""Characters of the template that are shown in a message."""


class TemplateFault(Exception):
    """A template that cannot be parsed or executed; `line` is 1-based."""

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        super().__init__(text)


def line_at(source: str, at: int) -> int:
    """The 1-based line of an offset."""
    return source.count("\n", 0, at) + 1


def parse_fault(source: str, at: int, reason: str) -> TemplateFault:
    """A fault found before anything runs."""
    line = line_at(source, at)
    return TemplateFault(line, f"template: frp:{line}: {reason}")


def run_fault(source: str, at: int, end: int, reason: str) -> TemplateFault:
    """A fault of the expression that stands at source[at:end]."""
    line = line_at(source, at)
    # Go counts bytes from 0 on the first line and from 1 on the others.
    start = source.rfind("\n", 0, at)
    column = len(source[max(start, 0) : at].encode())
    shown = source[at:end].strip()
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "..."
    text = f'template: frp:{line}:{column}: executing "frp" at <{shown}>: {reason}'
    return TemplateFault(line, text)
