"""The part of Go's text/template that configuration files use; sans I/O and bounded.

`{{ .Envs.NAME }}`, `parseNumberRange`, `parseNumberRangePair`, `if`, `range`, `with`, `break`,
`continue`, variables, pipelines, parentheses, comments, trim markers and the functions of
`pyfrp.config.template.functions`. Not: `define`, `template`, `block`, and Go's methods.

Source: Go `text/template` (its documentation), frp `pkg/config/template.go` and `load.go`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyfrp.config.template.evaluate import execute
from pyfrp.config.template.faults import TemplateFault
from pyfrp.config.template.lexer import tokenize
from pyfrp.config.template.parser import parse
from pyfrp.errors import ConfigError

__all__ = ["render"]


def render(text: str, env: Mapping[str, str], *, path: str | None = None) -> tuple[str, list[int]]:
    """Render a template.

    Args:
        text: The template.
        env: What `.Envs` holds.
        path: The file, for messages.

    Returns:
        The rendered text, and for each of its lines the 1-based line of the template that it
        came from.

    Raises:
        ConfigError: the template is malformed, fails, or exceeds a bound; in frp's words where
            they are known.
    """
    try:
        return execute(text, parse(text, tokenize(text)), env)
    except TemplateFault as fault:
        raise ConfigError(str(fault), path=path, line=fault.line) from None
