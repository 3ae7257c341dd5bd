"""Runs a parsed template.

Bounded in work (steps), in output, and by the parser in depth: a configuration file must not be
able to hang a start.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from pyfrp.config.template.faults import run_fault
from pyfrp.config.template.functions import (
    FUNCTIONS,
    MAX_STRING,
    MISSING,
    Pair,
    Root,
    truth,
    type_name,
)
from pyfrp.config.template.parser import Command, Node, Operand, Pipe
from pyfrp.config.template.printf import plain

MAX_STEPS = 500_000
"""Nodes that may be run, in loops over and over; large texts count for more."""

MAX_OUTPUT = 4 * 1024 * 1024
"""Characters of output."""

_CHARS_PER_STEP = 200

_ABSENT: Any = object()
"""No value comes from a command before; None is a value."""


class _Stop(Exception):
    """`break` or `continue` on its way to its loop."""


def execute(source: str, nodes: tuple[Node, ...], env: Mapping[str, str]) -> tuple[str, list[int]]:
    """Run a template; see `render` for what comes back.

    Raises:
        TemplateFault: an expression fails, or a bound is exceeded.
    """
    run = _Run(source, env)
    run.walk(nodes, run.root)
    return "".join(text for text, _, _ in run.pieces), _line_map(run.pieces)


def _line_map(pieces: list[tuple[str, int, bool]]) -> list[int]:
    """For each line of the output, the line of the source that its first character came from."""
    lines: list[int] = []
    at_start = True
    last = 1
    for text, line, literal in pieces:
        parts = text.split("\n")
        for index, part in enumerate(parts):
            last = line + index if literal else line
            ends = index < len(parts) - 1
            if at_start and (part or ends):
                lines.append(last)
            at_start = ends or (at_start and not part)
    if at_start or not lines:
        lines.append(last)
    return lines


class _Run:
    """One execution: the output so far, the variables in sight, and what may still be done."""

    def __init__(self, source: str, env: Mapping[str, str]) -> None:
        self.source = source
        self.root = Root(env)
        self.pieces: list[tuple[str, int, bool]] = []  # text, line of the source, literal?
        self.variables: list[tuple[str, Any]] = [("$", self.root)]
        self.steps = 0
        self.written = 0
        self.newlines = [at for at, char in enumerate(source) if char == "\n"]

    def walk(self, nodes: tuple[Node, ...], dot: Any) -> None:
        for node in nodes:
            self._charge(node.at)
            match node.kind:
                case "text":
                    self._write(node.text, node.at, literal=True)
                case "action":
                    assert node.pipe is not None
                    value = self._pipe(node.pipe, dot)
                    if not node.pipe.variables:
                        self._print(value, node.pipe)
                case "range":
                    self._range(node, dot)
                case "break" | "continue":
                    raise _Stop(node.kind)
                case _:
                    self._branch(node, dot)

    def _branch(self, node: Node, dot: Any) -> None:
        assert node.pipe is not None
        mark = len(self.variables)
        value = self._pipe(node.pipe, dot)
        if truth(value):
            self.walk(node.body, value if node.kind == "with" else dot)
        else:
            self.walk(node.otherwise, dot)
        del self.variables[mark:]

    def _range(self, node: Node, dot: Any) -> None:
        pipe = node.pipe
        assert pipe is not None
        mark = len(self.variables)
        value = self._pipe(pipe, dot, assign=False)
        items = self._items(value, pipe)
        inner = len(self.variables)
        for key, item in items:
            self._charge(pipe.at)
            if len(pipe.variables) == 2:
                self._store(pipe, pipe.variables[0], key)
            if pipe.variables:
                self._store(pipe, pipe.variables[-1], item)
            try:
                self.walk(node.body, item)
            except _Stop as stop:
                if stop.args[0] == "break":
                    del self.variables[mark:]
                    return
            finally:
                del self.variables[inner:]
        if not items:
            self.walk(node.otherwise, dot)
        del self.variables[mark:]

    def _items(self, value: Any, pipe: Pipe) -> list[tuple[Any, Any]]:
        if value is MISSING or value is None:
            return []
        if isinstance(value, list):
            return list(enumerate(value))
        if isinstance(value, Mapping):
            return sorted(value.items())
        if isinstance(value, int) and not isinstance(value, bool):
            if len(pipe.variables) > 1:
                reason = f"can't use {value} to iterate over more than one variable"
                raise run_fault(self.source, pipe.at, pipe.end, reason)
            if value > MAX_STEPS:
                raise run_fault(self.source, pipe.at, pipe.end, "too many steps")
            return [(number, number) for number in range(value)]
        reason = f"range can't iterate over a {type_name(value)}"
        raise run_fault(self.source, pipe.at, pipe.end, reason)

    def _pipe(self, pipe: Pipe, dot: Any, *, assign: bool = True) -> Any:
        value = _ABSENT
        for command in pipe.commands:
            value = self._command(command, dot, value)
        if assign:
            for name in pipe.variables:
                self._store(pipe, name, value)
        return value

    def _store(self, pipe: Pipe, name: str, value: Any) -> None:
        if pipe.declares:
            self.variables.append((name, value))
            return
        for index in range(len(self.variables) - 1, -1, -1):
            if self.variables[index][0] == name:
                self.variables[index] = (name, value)
                return

    def _command(self, command: Command, dot: Any, final: Any) -> Any:
        self._charge(command.at)
        first, *rest = command.operands
        if first.kind == "function":
            return self._call(command, first.name, rest, dot, final)
        if rest or final is not _ABSENT:
            what = self.source[first.at : first.end][:60]
            reason = f"can't give argument to non-function {what}"
            if first.fields:
                reason = f"{first.fields[-1][:60]} is not a method but has arguments"
            raise run_fault(self.source, first.at, first.end, reason)
        if first.kind == "nil":
            raise run_fault(self.source, first.at, first.end, "nil is not a command")
        return self._operand(first, dot)

    def _operand(self, operand: Operand, dot: Any) -> Any:
        value: Any
        match operand.kind:
            case "dot" | "field":
                value = dot
            case "const":
                return operand.value
            case "variable":
                # The parser made sure that it is there.
                value = next(v for name, v in reversed(self.variables) if name == operand.name)
            case "pipe":
                assert operand.pipe is not None
                value = self._pipe(operand.pipe, dot)
            case "function":
                return self._call(Command((operand,)), operand.name, [], dot, _ABSENT)
            case _:
                return None
        for name in operand.fields:
            value = self._field(value, name, operand)
        return value

    def _field(self, value: Any, name: str, operand: Operand) -> Any:
        if value is MISSING:
            return MISSING
        if isinstance(value, Mapping):
            return value.get(name, MISSING)
        if isinstance(value, (Root, Pair)) and name in value.__match_args__:
            return getattr(value, name)
        if value is None:
            reason = f'nil data; no entry for key "{name[:60]}"'
        else:
            reason = f"can't evaluate field {name[:60]} in type {type_name(value)}"
        raise run_fault(self.source, operand.at, operand.end, reason)

    def _call(
        self, command: Command, name: str, operands: list[Operand], dot: Any, final: Any
    ) -> Any:
        function = FUNCTIONS[name]
        count = len(operands) + (final is not _ABSENT)
        if count < function.least or (function.most is not None and count > function.most):
            want = "at least " if function.most is None else ""
            reason = f"wrong number of args for {name}: want {want}{function.least} got {count}"
            raise run_fault(self.source, command.at, command.operands[0].end, reason)
        if name in ("and", "or"):
            return self._decide(name == "or", operands, dot, final)
        values = [self._operand(operand, dot) for operand in operands]
        if final is not _ABSENT:
            values.append(final)
        for value in values:
            self._charge(command.at, value)
        try:
            result = function.call(*values)
        except ValueError as error:
            reason = f"error calling {name}: {error}"
            raise run_fault(self.source, command.at, command.end, reason) from None
        if isinstance(result, str) and len(result) > MAX_STRING:
            raise run_fault(self.source, command.at, command.end, "the result is too long")
        self._charge(command.at, result)
        return result

    def _decide(self, wanted: bool, operands: list[Operand], dot: Any, final: Any) -> Any:
        """Return the first argument that decides `or` (`and`), else the last one."""
        value: Any = MISSING
        for operand in operands:
            value = self._operand(operand, dot)
            if truth(value) is wanted:
                return value
        return value if final is _ABSENT else final

    def _print(self, value: Any, pipe: Pipe) -> None:
        text = "<no value>" if value is MISSING or value is None else plain(value)
        self._write(text, pipe.at, literal=False)

    def _write(self, text: str, at: int, *, literal: bool) -> None:
        self._charge(at, text)
        self.written += len(text)
        if self.written > MAX_OUTPUT:
            raise run_fault(self.source, at, at, f"output longer than {MAX_OUTPUT} characters")
        self.pieces.append((text, bisect_left(self.newlines, at) + 1, literal))

    def _charge(self, at: int, value: Any = None) -> None:
        self.steps += 1
        if isinstance(value, (str, list, Mapping)):
            self.steps += len(value) // _CHARS_PER_STEP
        if self.steps > MAX_STEPS:
            raise run_fault(self.source, at, at, f"too many steps, more than {MAX_STEPS}")
