"""From the text of a file to dicts and lists, whichever of the formats it is written in.

The format is chosen by content, as frp does: TOML if it parses, JSON if it starts with a brace,
otherwise YAML. Where nothing fits, the message is about the format that was most likely meant.

Source: frp `pkg/config/load.go`, `LoadConfigure`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyfrp.config.problems import Place
from pyfrp.errors import ConfigError

if TYPE_CHECKING:
    from pyfrp.config.lines import Lines

MAX_FILE_CHARS = 16 * 1024 * 1024
"""Longest text that is looked at: a thousand times the largest sensible file."""

# What only some files or only faults need (json, yaml, lines, hints, expressions) is loaded there.
_INI_COMMON = r"^[ \t]*\[common\][ \t]*(?:[#;].*)?$"


@dataclass(slots=True)
class Document:
    """A parsed file.

    Args:
        data: Its content.
        path: The file, if it came from one.
        text: Its text, after templates were rendered.
        is_toml: Whether that text is TOML.
        source_lines: For rendered text: the line of the source that each line came from.
    """

    data: dict[str, Any]
    path: str | None = None
    text: str = ""
    is_toml: bool = True
    source_lines: list[int] | None = None
    _lines: Lines | None = field(default=None, repr=False)

    def line_of(self, place: Place) -> int | None:
        """Find the 1-based line of the file on which a place stands."""
        if not self.text or not place:
            return None
        from pyfrp.config.lines import find_line, toml_lines, yaml_lines

        if self._lines is None:
            self._lines = toml_lines(self.text) if self.is_toml else yaml_lines(self.text)
        line = find_line(self._lines, place)
        return None if line is None else _source_line(line, self.source_lines)


def parse_document(text: str, path: str, *, env: Mapping[str, str], strict: bool) -> Document:
    """Render the templates of a file and parse it.

    Args:
        text: The file as it is on disk.
        path: Its path, for messages and for the meaning of `.toml`.
        env: Environment that templates see as `.Envs`.
        strict: As for the loader; top-level YAML keys that start with a dot are dropped then
            (they hold anchors), otherwise they are unknown keys like others.

    Raises:
        ConfigError: not readable in any format, a template fails, or it is an INI file.
    """
    if len(text) > MAX_FILE_CHARS:
        raise ConfigError(f"the file is longer than {MAX_FILE_CHARS} characters", path=path)
    text = text.removeprefix("\ufeff")
    _refuse_ini(text, path)
    source_lines = None
    if "{{" in text:
        from pyfrp.config.template import render  # few files are templates

        text, source_lines = render(text, env, path=path)
    document = _parse(text, path, source_lines)
    document.source_lines = source_lines
    if strict and not document.is_toml:
        document.data = {
            key: value for key, value in document.data.items() if not str(key).startswith(".")
        }
    return document


def laid_over(under: Any, value: Any) -> Any:
    """What a key holds that is given twice: tables are merged, of other values the last counts."""
    if not (isinstance(under, dict) and isinstance(value, dict)):
        return value
    return under | {
        key: laid_over(under[key], item) if key in under else item for key, item in value.items()
    }


def _parse(text: str, path: str, source_lines: list[int] | None) -> Document:
    try:
        return Document(tomllib.loads(text), path, text)
    except tomllib.TOMLDecodeError as error:
        toml_error = _toml_error(error, text, path, source_lines)
    except (RecursionError, ValueError):
        # ValueError: an integer of thousands of digits.
        toml_error = ConfigError("toml: nested too deeply, or a number is too long", path=path)
    data: Any
    if text.lstrip().startswith("{"):
        data = _json(text, path, source_lines)
    else:
        try:
            data = _yaml(text, path, source_lines)
        except ConfigError:
            if path.lower().endswith((".yaml", ".yml")):
                raise
            raise toml_error from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        # Almost any line of text is a YAML string: that tells the operator nothing.
        if not path.lower().endswith((".yaml", ".yml", ".json")):
            raise toml_error
        raise ConfigError("the file must hold keys and values at its top level", path=path)
    return Document({_text(key): value for key, value in data.items()}, path, text, is_toml=False)


def _text(key: Any) -> str:
    return key if isinstance(key, str) else str(key)[:100]


def _toml_error(
    error: Exception, text: str, path: str, source_lines: list[int] | None
) -> ConfigError:
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error), re.DOTALL)
    if match is not None:
        reason, line, column = match[1], int(match[2]), int(match[3])
    else:
        # "at end of document": the last line that says something.
        reason = str(error).partition(" (at ")[0]
        lines = text.rstrip().split("\n")
        line, column = len(lines), len(lines[-1]) + 1
    line = _source_line(line, source_lines)
    return ConfigError(f"toml: line {line}, column {column}: {reason}", path=path, line=line)


def _json(text: str, path: str, source_lines: list[int] | None) -> Any:
    import json

    try:
        # frp reads the first value and does not look at what follows.
        decoder = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_table)
        value, _ = decoder.raw_decode(text.lstrip())
    except json.JSONDecodeError as error:
        skipped = text[: len(text) - len(text.lstrip())].count("\n")
        line = _source_line(error.lineno + skipped, source_lines)
        reason = f"json: line {line}, column {error.colno}: {error.msg}"
        raise ConfigError(reason, path=path, line=line) from None
    except (RecursionError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ConfigError(f"json: {reason[:200]}", path=path) from None
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        table[key] = laid_over(table.get(key), value)
    return table


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _yaml(text: str, path: str, source_lines: list[int] | None) -> Any:
    import yaml  # heavy, and few files are YAML

    from pyfrp.config.yamlload import GoLoader

    try:
        # frp takes the first of several documents.
        return next(iter(yaml.load_all(text, Loader=GoLoader)), None)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        reason = error.problem or "malformed"
        if mark is None:
            raise ConfigError(f"yaml: {reason}", path=path) from None
        line = _source_line(mark.line + 1, source_lines)
        reason = f"yaml: line {line}, column {mark.column + 1}: {reason}"
        raise ConfigError(reason, path=path, line=line) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"yaml: {str(error)[:200]}", path=path) from None
    except (RecursionError, ValueError, TypeError, OverflowError, AttributeError):
        # PyYAML lets these escape for values such as an impossible date or `!!int x`.
        raise ConfigError("yaml: nested too deeply, or an impossible value", path=path) from None


def _source_line(line: int, source_lines: list[int] | None) -> int:
    if source_lines is None:
        return line
    return source_lines[min(line, len(source_lines)) - 1]


def _refuse_ini(text: str, path: str) -> None:
    """Refuse frp's old INI format, which is told by a section called `common`."""
    match = re.search(_INI_COMMON, text, re.MULTILINE) if "[common]" in text else None
    if match is None:
        return
    try:
        if "common" not in tomllib.loads(text):
            return  # `[common]` stands inside a string.
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        pass  # Not TOML, so INI.
    from pyfrp.config.hints import translate_ini

    line = text.count("\n", 0, match.start()) + 1
    reason = (
        "this is a file in frp's old INI format ([common]), which this release of pyfrp does not "
        "read; write it as TOML"
    )
    raise ConfigError("\n".join([reason, *translate_ini(text)]), path=path, line=line)
