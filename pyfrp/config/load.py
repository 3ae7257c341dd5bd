"""From a file to a checked configuration: read, render, parse, decode, complete, filter, validate.

Source: frp `pkg/config/load.go` (the order of the steps).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pyfrp.config.base import RootModel
from pyfrp.config.complete import complete_client, complete_server, resolve_token
from pyfrp.config.decode import Decoder
from pyfrp.config.parse import MAX_FILE_CHARS, Document, parse_document
from pyfrp.config.problems import Origin, Place, Problem, Spot, config_error
from pyfrp.config.validate import (
    client_problems,
    client_warnings,
    proxy_problem,
    server_problems,
    server_warnings,
    visitor_problem,
)
from pyfrp.errors import ConfigError

if TYPE_CHECKING:  # each program loads only the models of its own role
    from pyfrp.config.client import ClientConfig
    from pyfrp.config.proxies import ProxyBase
    from pyfrp.config.server import ServerConfig
    from pyfrp.config.visitors import VisitorBase

R = TypeVar("R", bound=RootModel)
E = TypeVar("E", "ProxyBase", "VisitorBase")  # one entry of a list of the client's file
FilePath = str | os.PathLike[str]


def load_server(
    path: FilePath, *, strict: bool = True, allow_unsafe: Collection[str] = ()
) -> ServerConfig:
    """Load the server's file.

    Args:
        path: The file; TOML, YAML or JSON, with templates.
        strict: Unknown keys are errors; otherwise they are ignored.
        allow_unsafe: Features that must be allowed explicitly, e.g. `TokenSourceExec`.

    Returns:
        The configuration with all defaults filled in. Call `check_supported` before using it.

    Raises:
        ConfigError: with every fault on its own line.
    """
    return _server(_open(path, strict=strict), strict=strict, allow_unsafe=allow_unsafe)


def load_client(
    path: FilePath, *, strict: bool = True, allow_unsafe: Collection[str] = ()
) -> ClientConfig:
    """Load the client's file and those it includes; otherwise as `load_server`.

    The lists of proxies and visitors hold only those that `start` and `enabled` leave.
    """
    return _client(_open(path, strict=strict), strict=strict, allow_unsafe=allow_unsafe)


def server_from_dict(
    data: Mapping[str, Any], *, strict: bool = True, allow_unsafe: Collection[str] = ()
) -> ServerConfig:
    """Make a server configuration of what a file would hold, keys spelled as there.

    Raises:
        ConfigError: as `load_server`, without file and lines.
    """
    return _server(Document(dict(data)), strict=strict, allow_unsafe=allow_unsafe)


def client_from_dict(
    data: Mapping[str, Any],
    *,
    strict: bool = True,
    allow_unsafe: Collection[str] = (),
    bare: bool = False,
) -> ClientConfig:
    """Make a client configuration of what a file would hold, keys spelled as there.

    Args:
        data: The keys.
        strict: As for `load_server`.
        allow_unsafe: As for `load_server`.
        bare: Tell faults without the proxy's name and the key: there is one proxy at most, and
            who described it by flags has seen no keys. frp does so too.

    Raises:
        ConfigError: as `load_client`, without file and lines.
    """
    return _client(Document(dict(data)), strict=strict, allow_unsafe=allow_unsafe, bare=bare)


def detect_role(path: FilePath) -> str:
    """Tell by its keys, then by its name, whose file this is: "server" or "client".

    Raises:
        ConfigError: it cannot be read or parsed, or both are possible.
    """
    from pyfrp.config.hints import role_scores

    document = _open(path, strict=True)
    scores = role_scores(document.data)
    if scores["server"] != scores["client"]:
        return max(scores, key=lambda role: scores[role])
    name = os.path.basename(os.fspath(path)).lower()
    for role, marks in (("server", ("frps", "server")), ("client", ("frpc", "client"))):
        if any(mark in name for mark in marks):
            return role
    raise ConfigError(
        "cannot tell whether this is the server's or the client's file: say `verify server` or "
        "`verify client`",
        path=document.path,
    )


def _open(path: FilePath, *, strict: bool) -> Document:
    shown = os.fspath(path)
    return parse_document(_read(shown), shown, env=os.environ, strict=strict)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_CHARS * 4)
    except (OSError, ValueError) as error:
        # ValueError: a NUL in the path.
        verb = "read" if isinstance(error, IsADirectoryError) else "open"
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        failed = ConfigError(f"{verb} {path}: {reason}")
        failed.path = path
        raise failed from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 text"
        raise ConfigError(reason, path=path, line=line) from None


def _server(document: Document, *, strict: bool, allow_unsafe: Collection[str]) -> ServerConfig:
    from pyfrp.config.server import ServerConfig

    cfg = _decode(ServerConfig, "server", document, strict=strict)
    cfg.origin = Origin(document)
    problems = [problem.within(document) for problem in server_problems(cfg, allow_unsafe)]
    if not problems:
        problems = [p.within(document) for p in (resolve_token(cfg.auth),) if p is not None]
    if problems:
        raise config_error(problems)
    complete_server(cfg)
    cfg.warnings.extend(server_warnings(cfg))
    return cfg


def _client(
    document: Document, *, strict: bool, allow_unsafe: Collection[str], bare: bool = False
) -> ClientConfig:
    from pyfrp.config.client import ClientConfig

    cfg = _decode(ClientConfig, "client", document, strict=strict)
    origin = Origin(document)
    origin.proxies = [(document, ("proxies", index)) for index in range(len(cfg.proxies))]
    origin.visitors = [(document, ("visitors", index)) for index in range(len(cfg.visitors))]
    cfg.origin = origin
    for index, pattern in enumerate(cfg.includes):
        for path in _matches(pattern, document, ("includes", index)):
            _include(cfg, origin, path, strict=strict)
    duplicates = [
        *_duplicates("proxy", cfg.proxies, origin.proxies),
        *_duplicates("visitor", cfg.visitors, origin.visitors),
    ]
    if duplicates:
        raise config_error(duplicates)
    cfg.proxies, origin.proxies = _kept(cfg.proxies, origin.proxies, cfg.start)
    cfg.visitors, origin.visitors = _kept(cfg.visitors, origin.visitors, cfg.start)
    complete_client(cfg)
    problems = [problem.within(document) for problem in client_problems(cfg, allow_unsafe)]
    if not problems:
        problems = [p.within(document) for p in (resolve_token(cfg.auth),) if p is not None]
    problems += _entry_problems(cfg, origin, bare=bare)
    if problems:
        raise config_error(problem.bare() if bare else problem for problem in problems)
    cfg.warnings.extend(client_warnings(cfg))
    return cfg


def _entry_problems(cfg: ClientConfig, origin: Origin, *, bare: bool) -> list[Problem]:
    problems = []
    for proxy, (source, place) in zip(cfg.proxies, origin.proxies, strict=True):
        problem = proxy_problem(proxy)
        if problem is not None:
            prefix = "" if bare else f"proxy {proxy.name}: "
            problems.append(problem.within(source, place, prefix))
    for visitor, (source, place) in zip(cfg.visitors, origin.visitors, strict=True):
        problem = visitor_problem(visitor)
        if problem is not None:
            prefix = "" if bare else f"visitor {visitor.name}: "
            problems.append(problem.within(source, place, prefix))
    return problems


def _decode(model: type[R], role: str, document: Document, *, strict: bool) -> R:
    """Decode a whole file, with a guess for each key that does not exist."""
    decoder = Decoder(document, strict=strict)
    cfg = decoder.decode(model, document.data)
    if not decoder.problems:
        cfg.warnings.extend(decoder.warnings)
        return cfg
    from pyfrp.config.hints import explain, role_scores

    problems = [
        problem
        if problem.model is None
        else Problem(
            problem.text,
            problem.place,
            explain(role, problem.place, problem.model),
            source=problem.source,
        )
        for problem in decoder.problems
    ]
    problems.sort(key=lambda problem: problem.line or 0)
    scores = role_scores(document.data)
    other = "client" if role == "server" else "server"
    if scores[other] > scores[role]:
        text = f"this looks like the {other}'s file, and was to be read as the {role}'s"
        hint = f"try `pyfrp {other}`"
        problems.insert(0, Problem(text, (), hint, source=document))
    raise config_error(problems)


def _include(cfg: ClientConfig, origin: Origin, path: str, *, strict: bool) -> None:
    """Add the proxies and visitors of an included file; its other keys are only checked."""
    from pyfrp.config.client import ClientConfig

    try:
        document = _open(path, strict=strict)
        more = _decode(ClientConfig, "client", document, strict=strict)
    except ConfigError as error:
        failed = ConfigError(f"load additional config from {path} error: {error}")
        failed.path, failed.key, failed.line = path, error.key, error.line
        raise failed from None
    cfg.warnings.extend(more.warnings)
    origin.proxies += [(document, ("proxies", index)) for index in range(len(more.proxies))]
    origin.visitors += [(document, ("visitors", index)) for index in range(len(more.visitors))]
    cfg.proxies += more.proxies
    cfg.visitors += more.visitors


def _matches(pattern: str, document: Document, place: Place) -> list[str]:
    """List the files that an include pattern means, relative to the working directory."""
    import fnmatch  # few files include others

    head, tail = os.path.split(pattern)
    directory = os.path.abspath(head)
    try:
        names = sorted(os.listdir(directory))
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        text = f"stat {directory}: {reason}"
        hint = "patterns are relative to the directory that pyfrp is started in"
        raise config_error([Problem(text, place, hint, source=document)]) from None
    wanted = tail.replace("[^", "[!")  # Go writes a negated set as [^...].
    paths = [os.path.join(directory, name) for name in names if fnmatch.fnmatchcase(name, wanted)]
    return [path for path in paths if not os.path.isdir(path)]


def _duplicates(kind: str, entries: list[E], spots: list[Spot]) -> list[Problem]:
    seen: set[str] = set()
    problems: list[Problem] = []
    for index, entry in enumerate(entries):
        if entry.name in seen and entry.name:
            text = f"{kind} name [{entry.name}] is duplicated"
            problem = Problem(text, ("name",), "names must be unique")
            problems.append(problem.within(*spots[index]))
        seen.add(entry.name)
    return problems


def _kept(entries: list[E], spots: list[Spot], start: list[str]) -> tuple[list[E], list[Spot]]:
    """Leave out what `start` does not list and what is not enabled."""
    kept = [
        (entry, spot)
        for entry, spot in zip(entries, spots, strict=True)
        if entry.enabled and (not start or entry.name in start)
    ]
    return [entry for entry, _ in kept], [spot for _, spot in kept]
