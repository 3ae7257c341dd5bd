"""Splits a template into text and the tokens of its actions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyfrp.config.template.faults import parse_fault

_WHITE = " \t\r\n"

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n])
    | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
    | (?P<raw>`[^`]*`)
    | (?P<char>'(?:[^'\\\n]|\\[^\n])+')
    | (?P<number>[-+]?(?:[0-9]|\.[0-9])(?:[eE][-+]?[0-9]+|[0-9A-Za-z_.])*)
    | (?P<field>\.[^\W\d]\w*)
    | (?P<variable>\$\w*)
    | (?P<word>[^\W\d]\w*)
    | (?P<mark>:=|[=|(),.])""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Args:
        kind: text, open, close, end, or a group of the expression above (but no space).
        text: As written; for text, after trimming.
        at: Offset in the template.
        spaced: Whether white space stands before it; `.a .b` are two operands, `.a.b` is one.
    """

    kind: str
    text: str
    at: int
    spaced: bool = False


def tokenize(source: str) -> list[Token]:
    """Split a template; the last token is of kind `end`.

    Raises:
        TemplateFault: an action or comment that does not end, or a character that fits nowhere.
    """
    tokens: list[Token] = []
    at = 0
    trim_next = False
    while True:
        start = source.find("{{", at)
        text_end = len(source) if start < 0 else start
        inner = start + 2
        trims = start >= 0 and source[inner : inner + 1] == "-"
        trims = trims and source[inner + 1 : inner + 2] in tuple(_WHITE)
        _text(tokens, source[at:text_end], at, left=trim_next, right=trims)
        if start < 0:
            tokens.append(Token("end", "", len(source)))
            return tokens
        if trims:
            inner += 2
        if source.startswith("/*", inner):
            at, trim_next = _comment(source, inner)
        else:
            tokens.append(Token("open", "{{", start))
            at, trim_next = _action(source, inner, tokens)


def _text(tokens: list[Token], text: str, at: int, *, left: bool, right: bool) -> None:
    if left:
        trimmed = text.lstrip(_WHITE)
        at += len(text) - len(trimmed)
        text = trimmed
    if right:
        text = text.rstrip(_WHITE)
    if text:
        tokens.append(Token("text", text, at))


def _comment(source: str, at: int) -> tuple[int, bool]:
    end = source.find("*/", at + 2)
    if end < 0:
        raise parse_fault(source, at, "unclosed comment")
    closing = _closing(source, end + 2)
    if closing is None:
        raise parse_fault(source, at, "comment ends before closing delimiter")
    return closing


def _closing(source: str, at: int) -> tuple[int, bool] | None:
    """If an action closes here: where the text goes on, and whether it is trimmed."""
    if source.startswith("}}", at):
        return at + 2, False
    if source[at : at + 1] in tuple(_WHITE) and source.startswith("-}}", at + 1):
        return at + 4, True
    return None


def _action(source: str, at: int, tokens: list[Token]) -> tuple[int, bool]:
    start = at
    spaced = False
    while True:
        closing = _closing(source, at)
        if closing is not None:
            tokens.append(Token("close", "}}", at))
            return closing
        match = _TOKEN.match(source, at)
        if match is None:
            raise parse_fault(source, start, _complaint(source, at))
        kind = str(match.lastgroup)
        if kind == "space":
            # One at a time: each may be the blank that belongs to a trim marker.
            at += 1
            spaced = True
            continue
        tokens.append(Token(kind, match.group(), at, spaced))
        at = match.end()
        spaced = False


def _complaint(source: str, at: int) -> str:
    rest = source[at : at + 1]
    if not rest:
        return "unclosed action"
    if rest == '"':
        return "unterminated quoted string"
    if rest == "`":
        return "unterminated raw quoted string"
    if rest == "'":
        return "unterminated character constant"
    return f"unexpected bad character U+{ord(rest):04X} in command"
