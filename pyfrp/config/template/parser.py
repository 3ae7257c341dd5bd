"""From tokens to a tree, with the checks that Go makes before it runs anything."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pyfrp.config.template.faults import parse_fault
from pyfrp.config.template.functions import FUNCTIONS
from pyfrp.config.template.lexer import Token

MAX_NESTING = 60
"""Blocks and parentheses within each other; keeps recursion far from Python's limit."""

_ESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_UNSUPPORTED = frozenset({"block", "define", "template"})
_KEYWORDS = _UNSUPPORTED | {"break", "continue", "else", "end", "if", "range", "with"}
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of a command.

    Args:
        kind: dot, nil, const, field, variable, function, pipe.
        at, end: Its place in the source.
        value: Of a const.
        name: Of a variable (with its dollar sign) or function.
        fields: What is looked up in it, in order.
        pipe: Of a parenthesized pipeline.
    """

    kind: str
    at: int
    end: int
    value: Any = None
    name: str = ""
    fields: tuple[str, ...] = ()
    pipe: Pipe | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """An operand, or a function and its arguments."""

    operands: tuple[Operand, ...]

    @property
    def at(self) -> int:
        """Where it starts."""
        return self.operands[0].at

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.operands[-1].end


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each fed with the value before it; and the variables that take the last value."""

    at: int
    end: int
    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    declares: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of the template.

    Args:
        kind: text, action, if, range, with, break or continue.
        at: Its place in the source.
    """

    kind: str
    at: int
    text: str = ""
    pipe: Pipe | None = None
    body: tuple[Node, ...] = ()
    otherwise: tuple[Node, ...] = ()


def parse(source: str, tokens: Sequence[Token]) -> tuple[Node, ...]:
    """Build the tree.

    Raises:
        TemplateFault: not a template, or one that uses what is not supported.
    """
    return _Parser(source, tokens).whole()


@dataclass(slots=True)
class _Parser:
    source: str
    tokens: Sequence[Token]
    at: int = 0
    depth: int = 0
    loops: int = 0
    variables: list[str] = field(default_factory=lambda: ["$"])

    def whole(self) -> tuple[Node, ...]:
        nodes, stop = self._nodes()
        if stop.kind != "end":
            self._fail(stop, f"unexpected {{{{{stop.text}}}}}")
        return nodes

    def _nodes(self) -> tuple[tuple[Node, ...], Token]:
        """Read nodes up to `else`, `end` or the end of the text, and return what stopped it.

        After `else` and `end` the parser stands behind that word.
        """
        nodes: list[Node] = []
        while True:
            token = self._next()
            if token.kind == "text":
                nodes.append(Node("text", token.at, token.text))
                continue
            if token.kind == "end":
                return tuple(nodes), token
            word = self._peek()
            if word.kind == "word" and word.text in ("else", "end"):
                return tuple(nodes), self._next()
            nodes.append(self._action())

    def _action(self) -> Node:
        token = self._peek()
        if token.kind != "word" or token.text not in _KEYWORDS:
            pipe = self._pipe("command")
            self._close("command")
            return Node("action", token.at, pipe=pipe)
        self._next()
        if token.text in _UNSUPPORTED:
            self._fail(token, f"{{{{{token.text}}}}} is not supported")
        if token.text in ("break", "continue"):
            if not self.loops:
                self._fail(token, f"{{{{{token.text}}}}} outside {{{{range}}}}")
            self._close(token.text)
            return Node(token.text, token.at)
        return self._block(token)

    def _block(self, token: Token) -> Node:
        node = self._open_block(token)
        self._close("end")
        return node

    def _open_block(self, token: Token) -> Node:
        """Read a block whose first word has been read, up to and with its word `end`."""
        self._enter(token)
        mark = len(self.variables)
        kind = token.text
        pipe = self._pipe(kind, in_range=kind == "range")
        self._close(kind)
        self.loops += kind == "range"
        body, stop = self._nodes()
        self.loops -= kind == "range"
        otherwise: tuple[Node, ...] = ()
        if stop.text == "else" and stop.kind == "word":
            word = self._peek()
            if kind in ("if", "with") and word.kind == "word" and word.text == kind:
                # One {{end}} closes the whole chain of else-ifs.
                otherwise, stop = (self._open_block(self._next()),), Token("word", "end", word.at)
            else:
                self._close("else")
                otherwise, stop = self._nodes()
        if stop.kind == "end":
            self._fail(stop, "unexpected EOF")
        if stop.text == "else":
            self._fail(stop, "expected end; found {{else}}")
        del self.variables[mark:]
        self.depth -= 1
        return Node(kind, token.at, pipe=pipe, body=body, otherwise=otherwise)

    def _pipe(self, context: str, *, in_range: bool = False) -> Pipe:
        """Read a pipeline up to its closing delimiter or parenthesis."""
        first = self._peek()
        names, declares = self._declaration(in_range=in_range)
        commands = [self._command(context)]
        while self._peek().kind == "mark" and self._peek().text == "|":
            self._next()
            commands.append(self._command(context))
            start = commands[-1].operands[0]
            if start.kind in ("const", "dot", "nil") and not start.fields:
                stage = len(commands)
                self._fail_at(start.at, f"non executable command in pipeline stage {stage}")
        # A variable is not known in the expression that gives it its value.
        if declares:
            self.variables.extend(names)
        return Pipe(first.at, commands[-1].end, tuple(commands), names, declares)

    def _declaration(self, *, in_range: bool) -> tuple[tuple[str, ...], bool]:
        """Read `$x :=`, `$x =` or, in a range, `$i, $x :=`, if there is one."""
        names: list[str] = []
        mark = self.at
        while self._peek().kind == "variable":
            names.append(self._next().text)
            following = self._peek()
            if following.kind != "mark" or following.text not in (":=", "=", ","):
                break
            self._next()
            if following.text == ",":
                if not in_range or len(names) == 2:
                    self._fail(following, "too many declarations in command")
                continue
            for name in names:
                if following.text == "=" and name not in self.variables:
                    self._fail(following, f'undefined variable "{name}"')
            return tuple(names), following.text == ":="
        self.at = mark
        return (), False

    def _command(self, context: str) -> Command:
        operands: list[Operand] = []
        while True:
            token = self._peek()
            if token.kind in ("close", "end") or token.text in ("|", ")"):
                break
            if operands and not token.spaced:
                self._fail(token, f'unexpected "{token.text[:30]}" in operand')
            operands.append(self._operand())
        if not operands:
            found = self._peek()
            if found.kind == "end":
                self._fail(found, "unclosed action")
            self._fail(found, f"missing value for {context}")
        return Command(tuple(operands))

    def _operand(self) -> Operand:
        token = self._next()
        operand: Operand
        if token.kind == "mark" and token.text == "(":
            operand = self._parenthesized(token)
        elif token.kind == "mark" and token.text == ".":
            return Operand("dot", token.at, token.at + 1)
        elif token.kind == "field":
            operand = Operand("field", token.at, token.at, fields=(token.text[1:],))
        elif token.kind == "variable":
            if token.text not in self.variables:
                self._fail(token, f'undefined variable "{token.text}"')
            operand = Operand("variable", token.at, token.at, name=token.text)
        elif token.kind == "word":
            return self._word(token)
        elif token.kind in ("string", "raw", "char", "number"):
            end = token.at + len(token.text)
            return Operand("const", token.at, end, value=self._constant(token))
        else:
            self._fail(token, f'unexpected "{token.text[:30]}" in operand')
        fields = list(operand.fields)
        end = max(operand.end, token.at + len(token.text))
        while self._peek().kind == "field" and not self._peek().spaced:
            fields.append(self._next().text[1:])
            end += 1 + len(fields[-1])
        return Operand(
            operand.kind, operand.at, end, None, operand.name, tuple(fields), operand.pipe
        )

    def _parenthesized(self, token: Token) -> Operand:
        self._enter(token)
        pipe = self._pipe("parenthesized pipeline")
        closing = self._next()
        if closing.text != ")" or closing.kind != "mark":
            self._fail(token, "unclosed left paren")
        self.depth -= 1
        return Operand("pipe", token.at, closing.at + 1, pipe=pipe)

    def _word(self, token: Token) -> Operand:
        end = token.at + len(token.text)
        if token.text in ("true", "false"):
            return Operand("const", token.at, end, value=token.text == "true")
        if token.text == "nil":
            return Operand("nil", token.at, end)
        if token.text in _KEYWORDS:
            self._fail(token, f"unexpected <{token.text}> in operand")
        if token.text not in FUNCTIONS:
            self._fail(token, f'function "{token.text[:60]}" not defined')
        return Operand("function", token.at, end, name=token.text)

    def _constant(self, token: Token) -> Any:
        if token.kind == "raw":
            return token.text[1:-1]
        if token.kind == "number":
            return self._number(token)
        text = self._unescape(token)
        if token.kind == "string":
            return text
        if len(text) != 1:
            self._fail(token, f"malformed character constant: {token.text[:30]}")
        return ord(text)

    def _number(self, token: Token) -> int | float:
        """Read a number as Go's constants: a dot or exponent makes it a float."""
        text = token.text
        plain = text.replace("_", "") if re.fullmatch(r"[^_]+(?:_[^_]+)*", text) else ""
        digits = plain.lstrip("+-")
        try:
            if re.fullmatch(r"0[0-7]+", digits):
                plain = plain.replace("0", "0o", 1)
            if re.fullmatch(r"0[box][0-9A-Fa-f]+|0|[1-9][0-9]*|0o[0-7]+", plain.lstrip("+-"), re.I):
                value = int(plain, 0) if len(plain) < 80 else 2**64
                if value not in _INT64:
                    self._fail(token, f"integer overflow: {text[:60]}")
                return value
            if re.fullmatch(r"(?=.*[.eE])(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", digits):
                number = float(plain)
                if math.isfinite(number):
                    return number
        except ValueError:
            pass  # Told below, with all other malformed numbers.
        self._fail(token, f'illegal number syntax: "{text[:60]}"')

    def _unescape(self, token: Token) -> str:
        """Resolve the escapes of a quoted string or character."""
        quote, body = token.text[0], token.text[1:-1]
        out: list[str] = []
        at = 0
        while at < len(body):
            if body[at] != "\\":
                out.append(body[at])
                at += 1
                continue
            match = re.compile(
                r"\\(?:([abfnrtv\\\"'])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})"
                r"|([0-3][0-7]{2}))"
            ).match(body, at)
            code = -1 if match is None else _code_of(match, quote)
            if match is None or not 0 <= code < 0x110000 or 0xD800 <= code < 0xE000:
                self._fail(token, f"invalid syntax: {token.text[:60]}")
            out.append(chr(code))
            at = match.end()
        return "".join(out)

    def _close(self, context: str) -> None:
        token = self._next()
        if token.kind == "end":
            self._fail(token, "unclosed action")
        if token.kind != "close":
            self._fail(token, f'unexpected "{token.text[:30]}" in {context}')

    def _enter(self, token: Token) -> None:
        self.depth += 1
        if self.depth > MAX_NESTING:
            self._fail(token, f"nested more than {MAX_NESTING} deep")

    def _peek(self) -> Token:
        return self.tokens[min(self.at, len(self.tokens) - 1)]

    def _next(self) -> Token:
        token = self._peek()
        self.at += 1
        return token

    def _fail(self, token: Token, reason: str) -> NoReturn:
        self._fail_at(token.at, reason)

    def _fail_at(self, at: int, reason: str) -> NoReturn:
        raise parse_fault(self.source, at, reason)


def _code_of(match: re.Match[str], quote: str) -> int:
    simple, *numbers = match.groups()
    if simple is None:
        bases = (16, 16, 16, 8)
        return next(int(n, base) for n, base in zip(numbers, bases, strict=True) if n)
    if simple in "\"'" and simple != quote:
        return -1
    return _ESCAPES.get(simple, ord(simple))
