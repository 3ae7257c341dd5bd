"""YAML as frp's library reads it: like PyYAML's safe loader, but for a few details.

Seen with frp 0.65.0: `y`/`n` are booleans, `7e3` is a number, `0o17` is octal, `1:30`, dates and
`=` are strings, a key given twice counts the last time, also if one of the two is merged, and tabs
may stand between tokens.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

_BOOL = "tag:yaml.org,2002:bool"
_FLOAT = "tag:yaml.org,2002:float"
_INT = "tag:yaml.org,2002:int"
_MERGE = "tag:yaml.org,2002:merge"
_REPLACED = {_BOOL, _FLOAT, _INT, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}

_NUMBER_START = "-+0123456789."


class GoLoader(yaml.SafeLoader):
    """The safe loader with the scalars, merges and tabs of Go's library."""

    def scan_to_next_token(self) -> None:
        """Skip tabs as well as spaces, but where they would indent a block."""
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def flatten_mapping(self, node: Any) -> None:
        """Put what is merged where it stands: of the same keys the last one counts."""
        pairs: list[Any] = []
        for key, value in node.value:
            if key.tag != _MERGE:
                pairs.append((key, value))
                continue
            # Of a list of tables the first counts.
            tables = reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]
            for table in tables:
                if not isinstance(table, yaml.MappingNode):
                    reason = "only tables and lists of them can be merged"
                    raise ConstructorError(None, None, reason, table.start_mark)
                self.flatten_mapping(table)
                pairs += table.value
        node.value = pairs


GoLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
GoLoader.add_implicit_resolver(
    _BOOL,
    re.compile(
        r"^(?:y|Y|n|N|(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF))$"
    ),
    list("yYnNtTfFoO"),
)
GoLoader.add_implicit_resolver(
    _INT,
    re.compile(r"^[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
GoLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list(_NUMBER_START),
)


def _construct_bool(loader: GoLoader, node: Any) -> bool:
    return str(loader.construct_scalar(node)).lower() in ("y", "yes", "true", "on")


def _construct_int(loader: GoLoader, node: Any) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdecimal():
        digits = "0o" + digits[1:]
    value = int(digits, 0)
    return -value if text.startswith("-") else value


GoLoader.add_constructor(_BOOL, _construct_bool)
GoLoader.add_constructor(_INT, _construct_int)
