"""Finds the line on which a key stands, for messages.

Only called when there is something to report, on text that parsed well, so it may be simple: what
it cannot find it leaves out.
"""

from __future__ import annotations

import re
from typing import Any

from pyfrp.config.problems import Place

Lines = dict[Place, int]
"""1-based line of each place; keys lower-cased, because frp matches them without regard to case."""

_TOKEN = re.compile(
    r"""(?P<newline>\n)
    | (?P<comment>\#[^\n]*)
    | (?P<space>[ \t\r]+)
    | (?P<string>\"\"\"(?:[^\\]|\\.)*?\"{3,5}|'''.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')
    | (?P<mark>\[\[|\]\]|[\[\]{}=.,])
    | (?P<bare>[^\s\[\]{}=.,\#"']+)""",
    re.VERBOSE | re.DOTALL,
)

_MAX_DEPTH = 100


def find_line(lines: Lines, place: Place) -> int | None:
    """Look up a place, or the nearest table around it that has a line."""
    wanted = lower(place)
    while wanted:
        line = lines.get(wanted)
        if line is not None:
            return line
        wanted = wanted[:-1]
    return None


def lower(place: Place) -> Place:
    """Spell the keys of a place without regard to case."""
    return tuple(part.lower() if isinstance(part, str) else part for part in place)


def toml_lines(text: str) -> Lines:
    """List the lines of all keys of a TOML text."""
    scanner = _TOMLScanner(text)
    try:
        scanner.scan()
    except (IndexError, ValueError):
        pass  # Not TOML after all; what was found until here is right.
    return scanner.lines


class _TOMLScanner:
    """Walks the tokens of a valid TOML document and notes where each key starts."""

    def __init__(self, text: str) -> None:
        self.lines: Lines = {}
        self.tokens: list[tuple[str, str, int]] = []  # kind, text, line
        self.at = 0
        self._lengths: dict[Place, int] = {}
        line = 1
        # finditer skips what no alternative matches, which valid TOML does not contain.
        for match in _TOKEN.finditer(text):
            kind = str(match.lastgroup)
            if kind not in ("comment", "space"):
                self.tokens.append((kind, match.group(), line))
            line += match.group().count("\n")

    def scan(self) -> None:
        table: Place = ()
        while self.at < len(self.tokens):
            kind, text, line = self.tokens[self.at]
            if kind == "newline":
                self.at += 1
            elif text in ("[", "[["):
                self.at += 1
                table = self._header(line, is_list=text == "[[")
            else:
                self._pair(table)

    def _header(self, line: int, *, is_list: bool) -> Place:
        *around, last = self._key()
        self.at += 1  # the closing brackets
        place: Place = ()
        for key in around:
            place = (*place, key)
            self.lines.setdefault(place, line)
            if place in self._lengths:  # the name of a list of tables means its last table
                place = (*place, self._lengths[place] - 1)
        place = (*place, last)
        self.lines.setdefault(place, line)
        if is_list:
            index = self._lengths.get(place, 0)
            self._lengths[place] = index + 1
            place = (*place, index)
            self.lines.setdefault(place, line)
        return place

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            kind, text, _ = self.tokens[self.at]
            if kind == "string":
                parts.append(_unquoted(text).lower())
            elif kind == "bare":
                parts.append(text.lower())
            elif text != ".":
                return parts
            self.at += 1

    def _pair(self, table: Place) -> None:
        line = self.tokens[self.at][2]
        place = table
        for key in self._key():
            place = (*place, key)
            self.lines.setdefault(place, line)
        self.at += 1  # the equals sign
        self._value(place, 0)

    def _value(self, place: Place, depth: int) -> None:
        _, text, line = self.tokens[self.at]
        self.at += 1
        if depth > _MAX_DEPTH:
            raise IndexError
        if text in ("[", "[["):
            # Brackets that touch come as one token; put the second one back.
            if text == "[[":
                self._split()
            self._array(place, depth)
        elif text == "{":
            self._inline_table(place, depth)
        else:
            self.lines.setdefault(place, line)
            # Numbers and dates are several tokens (1.5): go on to what ends a value.
            while self.at < len(self.tokens) and not self._ends_value():
                self.at += 1

    def _ends_value(self) -> bool:
        kind, text, _ = self.tokens[self.at]
        return kind == "newline" or text in (",", "]", "]]", "}")

    def _split(self) -> None:
        kind, text, line = self.tokens[self.at - 1]
        self.tokens[self.at - 1] = (kind, text[0], line)
        self.tokens.insert(self.at, (kind, text[0], line))

    def _array(self, place: Place, depth: int) -> None:
        index = 0
        while True:
            kind, text, line = self.tokens[self.at]
            if text == "]]":
                self.at += 1
                self._split()
                return
            if text == "]":
                self.at += 1
                return
            if kind == "newline" or text == ",":
                self.at += 1
                continue
            self.lines.setdefault((*place, index), line)
            self._value((*place, index), depth + 1)
            index += 1

    def _inline_table(self, place: Place, depth: int) -> None:
        while True:
            kind, text, line = self.tokens[self.at]
            if text == "}":
                self.at += 1
                return
            if kind == "newline" or text == ",":
                self.at += 1
                continue
            inner = place
            for key in self._key():
                inner = (*inner, key)
                self.lines.setdefault(inner, line)
            self.at += 1  # the equals sign
            self._value(inner, depth + 1)


def _unquoted(text: str) -> str:
    quote = text[0]
    return text.strip(quote)


def yaml_lines(text: str) -> Lines:
    """List the lines of all keys of a YAML or JSON text."""
    import yaml  # heavy, and few files are YAML

    lines: Lines = {}
    try:
        # JSON may be indented with tabs, which YAML forbids; lines stay what they are.
        root = next(iter(yaml.compose_all(text.replace("\t", " "), Loader=yaml.SafeLoader)), None)
    except (yaml.YAMLError, RecursionError):
        return lines
    if root is not None:
        _walk(root, (), lines, 0)
    return lines


def _walk(node: Any, place: Place, lines: Lines, depth: int) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if depth > 12 or len(lines) > 100_000:
        return  # Deeper than any key of ours, or aliases that blow up.
    if node.id == "mapping":
        for key, value in node.value:
            if key.id == "scalar":
                inner = (*place, key.value.lower())
                lines.setdefault(inner, key.start_mark.line + 1)
                _walk(value, inner, lines, depth + 1)
    elif node.id == "sequence":
        for index, item in enumerate(node.value):
            _walk(item, (*place, index), lines, depth + 1)
