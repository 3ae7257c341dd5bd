"""The structure of the package: imports point down, wire has no I/O, files stay readable."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pyfrp"

# Each layer and what it may import. Whatever a layer may use, it may use at any depth of a module:
# an import inside a function is still an import.
SIDE = {"config", "metrics", "log", "version"}  # used by the layers above net
CONCERNS = {"auth", "vhost", "plugins", "nathole"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "wire": {"errors", "wire"},
    "net": {"errors", "wire", "net"},
    "config": {"errors", "config"},
    "metrics": {"errors", "metrics"},
    "log": {"errors", "log"},
    **{name: {"errors", "wire", "net"} | SIDE | CONCERNS for name in CONCERNS},
    "server": {"errors", "wire", "net", "server"} | SIDE | CONCERNS,
    "client": {"errors", "wire", "net", "client"} | SIDE | CONCERNS,
    "admin": {"errors", "wire", "net", "server", "client", "admin"} | SIDE | CONCERNS,
    # The sample API knows nothing of the tunnel that it is shown through.
    "demo": {"demo"},
    "cli": {"errors", "wire", "net", "server", "client", "admin", "cli", "demo"} | SIDE | CONCERNS,
    # `python -m pyfrp` is the command line.
    "__main__": {"cli"},
    # The package itself says its version and imports nothing that costs time.
    "__init__": {"version"},
}
# Modules that wire must do without: no I/O, no clock.
NOT_IN_WIRE = {"asyncio", "socket", "selectors", "select", "ssl", "time", "threading", "subprocess"}
LINES_LIMIT = 600
# A comment that sets aside a rule of lint or types gives its code, and the reason in some words.
SET_ASIDE = re.compile(r"(?:^|\s)#\s*(noqa|type:\s*ignore)", re.IGNORECASE)
WITH_REASON = re.compile(
    r"#\s*(?:noqa:\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*|type:\s*ignore\[[a-z0-9,\s-]+\])"
    r"[\s:#-]+\S+\s+\S+"
)

MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("pyfrp", "tests", "benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)


def name_of(path: Path) -> str:
    """The dotted name of a module: `pyfrp.wire.yamux`, `pyfrp` for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """The layer that a dotted name within the package belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(tree: ast.Module, known: set[str]) -> list[tuple[int, str]]:
    """Every import, at any depth, as line and dotted name; submodules by their own name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide their layer"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((node.lineno, whole if whole in known else node.module))
    return found


def upward_imports(module: str, source: str, known: set[str]) -> list[str]:
    """The imports of `source` that its layer must not have, as text for a person."""
    layer = layer_of(module)
    bad = []
    for line, name in imports_of(ast.parse(source), known):
        if name != "pyfrp" and not name.startswith("pyfrp."):
            if layer == "wire" and name.split(".")[0] in NOT_IN_WIRE:
                bad.append(f"line {line}: wire imports {name}")
            continue
        if layer_of(name) not in ALLOWED[layer] | {"__init__"}:
            bad.append(f"line {line}: {layer} imports {name}")
    return bad


def bare_exceptions(source: str) -> list[str]:
    """Comments that set a rule aside without saying which or why."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        f"line {token.start[0]}: {token.string}"
        for token in tokens
        if token.type == tokenize.COMMENT
        and SET_ASIDE.search(token.string)
        and not WITH_REASON.search(token.string)
    ]


KNOWN = {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path):
    assert layer_of(name_of(path)) in ALLOWED, "a new layer: say here what it may import"
    assert upward_imports(name_of(path), path.read_text("utf-8"), KNOWN) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_holds_one_idea(path: Path):
    lines = path.read_bytes().count(b"\n")
    assert lines <= LINES_LIMIT, "it probably holds two"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rule_set_aside_has_code_and_reason(path: Path):
    assert bare_exceptions(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pyfrp.server.service", "import pyfrp.client.service"),
        ("pyfrp.client.control", "def f():\n    from pyfrp.server import service"),
        ("pyfrp.net.dial", "from pyfrp.config import client"),
        ("pyfrp.net.dial", "from pyfrp import log"),
        ("pyfrp.config.load", "from pyfrp.wire import messages"),
        ("pyfrp.vhost.exchange", "from pyfrp.server.control import Control"),
        ("pyfrp.demo.llm_api", "from pyfrp.net import dial"),
        ("pyfrp.wire.yamux", "if True:\n    import asyncio"),
        ("pyfrp.wire.yamux", "from time import monotonic"),
        ("pyfrp.wire.yamux", "import socket as s"),
    ],
)
def test_check_sees_an_import_upwards(module, source):
    known = {"pyfrp.log", "pyfrp.server.service", "pyfrp.wire.messages", "pyfrp.config.client"}
    assert len(upward_imports(module, source, known)) == 1


@pytest.mark.parametrize(
    ("comment", "good"),
    [
        ("x = 1  # noqa", False),
        ("x = 1  # noqa: E501", False),
        ("x = 1  # type: ignore", False),
        ("x = 1  # type: ignore[misc]", False),
        ("x = 1  # type: ignore[misc]  #", False),
        ("x = 1  # type: ignore[misc]  # the stub lacks it", True),
        ("x = 1  # noqa: E402  # needs the path set above", True),
        ("x = 1  # noqa: E402, F401 - needs the path set above", True),
        ('x = "# noqa"', True),
    ],
)
def test_check_sees_a_rule_set_aside_without_reason(comment, good):
    assert (bare_exceptions(comment + "\n") == []) == good


def test_every_layer_of_the_package_is_named():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= ALLOWED.keys()
