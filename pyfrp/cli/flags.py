"""Command lines as frp's programs read them: the flags, their rules and their words.

Long flags take `_` and `-` alike, booleans need no value, lists take commas and repetition. A
usage error goes to standard error as `Error: ...` with the usage below it.

Source: frp `cmd/frps/root.go`, `pkg/config/flags.go`; the texts are those of its flag library.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

KeyFlag = tuple[tuple[str, ...], str, Callable[[str], Any], str]
"""A flag that sets a key: its names, the key as in a file, how its value is read, and its help."""

_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}


class UsageError(Exception):
    """A command line that cannot be read.

    Args:
        text: What is wrong.
        usage: How it is meant, to be shown below.
    """

    def __init__(self, text: str, usage: str) -> None:
        super().__init__(text)
        self.usage = usage


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Lists flags as `-c, --config FILE`, with one column for all texts."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        names = names if names.startswith("-") and not names.startswith("--") else f"    {names}"
        return names if action.type is boolean else f"{names} {action.metavar}"


class FlagParser(argparse.ArgumentParser):
    """An argument parser with the manners of frp's flags."""

    def __init__(self, prog: str, summary: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=summary,
            epilog="Examples:\n" + examples,
            formatter_class=_HelpFormatter,
            usage=f"{prog} [flags]",
            allow_abbrev=False,
            exit_on_error=False,
            add_help=False,
        )
        self._optionals.title = "Flags"
        self.switches: set[str] = set()
        self.switch("-h", "--help", text="show this help")

    def switch(self, *names: str, default: bool = False, text: str) -> None:
        """Add a boolean flag: `--flag`, `--flag=false`."""
        self.switches.update(names)
        shown = f"{text} (default true)" if default else text
        self.add_argument(*names, type=boolean, default=default, metavar="BOOL", help=shown)

    def value(self, *names: str, kind: Callable[[str], Any] = str, text: str, **more: Any) -> None:
        """Add a flag with a value; None unless it is given."""
        self.add_argument(*names, type=kind, default=None, help=text, **more)

    def keys(self, title: str, flags: Iterable[KeyFlag]) -> None:
        """Add flags that set keys, under a title of their own in the help.

        Whatever was not given is None; `keys_given` collects the rest.
        """
        group = self.add_argument_group(title)
        for names, _, kind, text in flags:
            if kind is boolean:
                self.switches.update(names)
            action = "append" if kind in (strings, pairs) else "store"
            metavar = _METAVARS.get(kind, "TEXT")
            group.add_argument(
                *names, action=action, type=kind, default=None, metavar=metavar, help=text
            )

    def many(self, *names: str, text: str, metavar: str) -> None:
        """Add a flag with a list of values."""
        self.add_argument(*names, action="append", default=[], help=text, metavar=metavar)

    def read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Read a command line.

        Returns:
            The flags, and the words that are none.

        Raises:
            UsageError: an unknown flag, or a value that does not fit.
        """
        try:
            flags, rest = self.parse_known_args(self._normalized(argv))
        except argparse.ArgumentError as error:
            raise UsageError(_complaint(error), self.format_usage()) from None
        words: list[str] = []
        for index, word in enumerate(rest):
            if word == "--":
                words += rest[index + 1 :]
                break
            if word.startswith("-") and word != "-":
                raise UsageError(self._unknown(word), self.format_usage())
            words.append(word)
        return flags, words

    def first_word(self, argv: Sequence[str]) -> int | None:
        """Find the first word that is neither a flag nor the value of one.

        Flags of a command may stand in front of its name, so flags that are not known here are
        taken to have a value, as frp's flag library does.
        """
        behind_flag = False
        for index, word in enumerate(argv):
            if behind_flag:
                behind_flag = False
            elif word == "--":
                return None
            elif word.startswith("-") and word != "-":
                whole = word.startswith("--") or len(word) == 2
                behind_flag = whole and "=" not in word and _dashed(word) not in self.switches
            else:
                return index
        return None

    def error(self, message: str) -> NoReturn:
        """Turn what argparse reports by itself into a usage error."""
        raise UsageError(message, self.format_usage())

    def _normalized(self, argv: Sequence[str]) -> list[str]:
        """Spell long flags with dashes, give bare booleans their value and join others to theirs.

        A value may look like a flag (`-t -abc`), which argparse would not believe.
        """
        words: list[str] = []
        rest = iter(argv)
        for word in rest:
            if word == "--":
                return [*words, word, *rest]
            flag = _dashed(word) if word.startswith("--") else word
            if flag in self.switches:
                flag += "=true"
            elif flag in self._option_string_actions:
                value = next(rest, None)
                # Two dashes alone are no value to argparse, whatever stands before them.
                flag += "" if value in (None, "--") else f"={value}"
            words.append(flag)
        return words

    def _unknown(self, word: str) -> str:
        if not word.startswith("--"):
            return f"unknown shorthand flag: {word[1:2]!r} in {word.partition('=')[0]}"
        import difflib  # only when something is wrong

        name = word.partition("=")[0]
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        close = difflib.get_close_matches(name, known, n=1)
        return f"unknown flag: {name}" + (f" (did you mean {close[0]}?)" if close else "")


def integer(text: str) -> int:
    """Read a number of a flag, in Go's notations."""
    try:
        if not re.fullmatch("[!-~]+", text):
            raise ValueError("blanks and other scripts' digits, which Python takes")
        value = int(re.sub("^([-+]?0)(?=[0-7_])", r"\1o", text), 0)  # 010 is octal to Go.
    except ValueError:
        reason = f'strconv.ParseInt: parsing "{text[:60]}": invalid syntax'
        raise argparse.ArgumentTypeError(invalid(text, reason)) from None
    if abs(value) >= 2**63:
        reason = f'strconv.ParseInt: parsing "{text[:60]}": value out of range'
        raise argparse.ArgumentTypeError(invalid(text, reason))
    return value


def strings(text: str) -> list[str]:
    """Read `a,b`; an item that holds a comma stands in quotes."""
    return _items(text) if text else []


def pairs(text: str) -> dict[str, str]:
    """Read `a=1,b=2`; a single pair may hold commas."""
    found = {}
    for item in _items(text) if text.count("=") > 1 else [text.strip('"')]:
        key, equals, value = item.partition("=")
        if not equals:
            reason = f"{item[:60]} must be formatted as key=value"
            raise argparse.ArgumentTypeError(invalid(text, reason))
        found[key] = value
    return found


def port_ranges(text: str) -> list[dict[str, int]]:
    """Read `1000-2000,3001` as the key `allowPorts` holds it."""
    from pyfrp.config.ranges import parse_bounds

    try:
        bounds = parse_bounds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(invalid(text, str(error))) from None
    return [{"single": a} if a == b else {"start": a, "end": b} for a, b in bounds]


def boolean(text: str) -> bool:
    """Read what may stand behind a switch: `--flag=false`."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    reason = f'strconv.ParseBool: parsing "{text[:60]}": invalid syntax'
    raise argparse.ArgumentTypeError(invalid(text, reason))


def keys_given(flags: argparse.Namespace, table: Iterable[KeyFlag]) -> dict[str, Any]:
    """Collect the keys that flags set, nested as in a file."""
    data: dict[str, Any] = {}
    for names, key, kind, _ in table:
        value = getattr(flags, attribute(names))
        if value is None:
            continue
        if kind is strings:
            value = [item for given in value for item in given]
        elif kind is pairs:
            value = {name: text for given in value for name, text in given.items()}
        *outer, last = key.split(".")
        inner = data
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return data


def attribute(names: Sequence[str]) -> str:
    """Name the attribute that holds the value of a flag."""
    return names[-1].removeprefix("--").replace("-", "_")


def _items(text: str) -> list[str]:
    import csv  # what frp reads lists with

    try:
        lines = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise argparse.ArgumentTypeError(invalid(text, f"parse error: {error}")) from None
    return lines[0] if lines else []


def _dashed(word: str) -> str:
    """Spell the name of a flag with dashes; its value stays as it is."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def invalid(text: str, reason: str) -> str:
    """Say that a value is wrong, with a place for the flag, which the converter does not know."""
    return f'invalid argument "{text[:60]}" for "{{flag}}" flag: {reason}'


def _complaint(error: argparse.ArgumentError) -> str:
    flag = (error.argument_name or "").replace("/", ", ")
    message = error.message
    if "{flag}" in message:
        return message.replace("{flag}", flag, 1)
    if message.startswith("expected"):
        return f"flag needs an argument: {flag}"
    return f"{flag}: {message}" if flag else message


_METAVARS: dict[Callable[[str], Any], str] = {
    boolean: "BOOL",
    integer: "N",
    pairs: "K=V,...",
    port_ranges: "RANGES",
    strings: "LIST",
}
