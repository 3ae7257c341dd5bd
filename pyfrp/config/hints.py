"""Guesses what an operator meant by a key that does not exist.

Only imported once something is wrong, so it may look at every model of both roles.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pyfrp.config.base import Model, Shape, Tagged, keys_of
from pyfrp.config.problems import Place

_FILES = {"server": "the server's file (frps.toml)", "client": "the client's file (frpc.toml)"}

_LEGACY = {
    # frp's INI names that are more than the new name in other letters; `pkg/config/legacy`.
    "adminaddr": "webServer.addr",
    "adminport": "webServer.port",
    "adminpwd": "webServer.password",
    "adminuser": "webServer.user",
    "authenticateheartbeats": 'auth.additionalScopes = ["HeartBeats"]',
    "authenticatenewworkconns": 'auth.additionalScopes = ["NewWorkConns"]',
    "authenticationmethod": "auth.method",
    "dashboardaddr": "webServer.addr",
    "dashboardport": "webServer.port",
    "dashboardpwd": "webServer.password",
    "dashboarduser": "webServer.user",
    "healthchecktype": "healthCheck.type",
    "healthcheckurl": "healthCheck.path",
    "httppwd": "httpPassword",
    "logfile": "log.to",
    "loglevel": "log.level",
    "logmaxdays": "log.maxDays",
    "disablelogcolor": "log.disablePrintColor",
    "oidcaudience": "auth.oidc.audience",
    "oidcclientid": "auth.oidc.clientID",
    "oidcclientsecret": "auth.oidc.clientSecret",
    "oidcissuer": "auth.oidc.issuer",
    "privilegetoken": "auth.token",
    "sk": "secretKey",
    "tlscertfile": "transport.tls.certFile",
    "tlsenable": "transport.tls.enable",
    "tlskeyfile": "transport.tls.keyFile",
    "tlsonly": "transport.tls.force",
    "tlsservername": "transport.tls.serverName",
    "tlstrustedcafile": "transport.tls.trustedCaFile",
    "httpproxy": "transport.proxyURL",
}

_MAX_TRANSLATED = 20


@dataclass(frozen=True, slots=True)
class _Known:
    """One key of one role: where it may stand, and in which variants of its table."""

    role: str
    path: tuple[str, ...]  # frp's spelling; "[]" stands for any index
    only: tuple[str, ...] = ()  # for keys that not every variant has: the types that have it

    @property
    def dotted(self) -> str:
        return ".".join(self.path).replace(".[]", "[]")


def explain(role: str, place: Place, model: type[Model]) -> str:
    """Guess what an unknown key was meant to be.

    Args:
        role: "server" or "client": whose file it is.
        place: Where the key stands.
        model: The table in which it is unknown.

    Returns:
        A clause for the end of a message; empty when nothing comes to mind.
    """
    path = tuple("[]" if isinstance(part, int) else part for part in place)
    leaf, parents = _plain(path[-1]), path[:-1]
    known = _known()
    same_leaf = [k for k in known if _plain(k.path[-1]) == leaf]
    by_spelling = [k for k in keys_of(model).values() if _plain(k.name) == leaf]
    if by_spelling:
        return f'it is spelled "{by_spelling[0].name}"'
    here = [k for k in same_leaf if k.role == role and _lower(k.path[:-1]) == _lower(parents)]
    if here and here[0].only:
        return f'"{here[0].path[-1]}" exists for type {" and ".join(here[0].only)} only'
    other = "client" if role == "server" else "server"
    if any(k.role == other and _lower(k.path[:-1]) == _lower(parents) for k in same_leaf):
        theirs = next(k for k in same_leaf if k.role == other)
        return f"`{theirs.path[-1]}` belongs into {_FILES[other]}"
    legacy = _LEGACY.get(leaf)
    if legacy is not None:
        return f"write it as {legacy}"
    elsewhere = _elsewhere(role, path, same_leaf)
    if elsewhere:
        return elsewhere
    close = _close(leaf, {_plain(k.name): k.name for k in keys_of(model).values()}, 0.65)
    if close:
        return f'did you mean "{close}"?'
    theirs_by_name = [k for k in same_leaf if k.role == other]
    if theirs_by_name:
        return f"`{theirs_by_name[0].dotted}` belongs into {_FILES[other]}"
    close = _close(leaf, {_plain(k.path[-1]): k.dotted for k in known if k.role == role})
    return f'did you mean "{close}"?' if close else ""


def _elsewhere(role: str, path: tuple[str, ...], same_leaf: list[_Known]) -> str:
    """Tell where in the same file a key of this name may stand."""
    ours = [k for k in same_leaf if k.role == role]
    top = [k for k in ours if len(k.path) == 1]
    if top and path[0] in ("proxies", "visitors", "httpPlugins"):
        return (
            f"`{top[0].path[-1]}` is a key of the whole file: in TOML it must stand above the "
            f"first [[{path[0]}]]"
        )
    # Keys of the same table first: `useEncryption` in a proxy is its transport's, not a visitor's.
    near = [k for k in ours if k.path[0] == path[0] and len(path) > 1] or ours
    places: list[str] = []
    for k in near:
        within = k.path[1:2] == ("[]",)
        text = ".".join(part for part in k.path[2 if within else 0 :] if part != "[]")
        if within and path[0] != k.path[0]:
            text += f" inside a [[{k.path[0]}]] table"
        if text not in places:
            places.append(text)
    if not places:
        return ""
    places.sort(key=lambda text: ("inside" in text, len(text)))
    more = ", or the like" if len(places) > 3 else ""
    return "write it as " + " or ".join(places[:3]) + more


def translate_ini(text: str) -> list[str]:
    """List, for keys of an INI file, how they are written in TOML.

    Returns:
        One line each, at most 20: `line 2: server_addr -> serverAddr`.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"\s*([a-z][a-z_0-9]*)\s*=", line)
        if match is None:
            continue
        name = match[1]
        target = _LEGACY.get(_plain(name))
        if target is None:
            paths = [k for k in _known() if _plain(k.path[-1]) == _plain(name)]
            paths.sort(key=lambda k: len(k.path))
            if not paths:
                continue
            start = 2 if paths[0].path[1:2] == ("[]",) else 0
            target = ".".join(paths[0].path[start:])
        found.append(f"line {number}: {name} -> {target}")
    if len(found) > _MAX_TRANSLATED:
        found[_MAX_TRANSLATED:] = ["..."]
    return found


def _plain(name: str) -> str:
    """Reduce a key to what spellings have in common: no case, no underscores or dashes."""
    return name.lower().replace("_", "").replace("-", "")


def _lower(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.lower() for part in path)


def _close(leaf: str, candidates: dict[str, str], cutoff: float = 0.75) -> str:
    matches = difflib.get_close_matches(leaf, candidates, n=1, cutoff=cutoff)
    return candidates[matches[0]] if matches else ""


@functools.cache
def _known() -> tuple[_Known, ...]:
    """List every key of both roles."""
    from pyfrp.config.client import ClientConfig
    from pyfrp.config.server import ServerConfig

    return (*_walk("server", ServerConfig, ()), *_walk("client", ClientConfig, ()))


def _walk(role: str, model: type[Model], path: tuple[str, ...]) -> Iterator[_Known]:
    for key in keys_of(model).values():
        inner = (*path, key.name)
        yield _Known(role, inner)
        if key.model is None:
            continue
        if key.shape is Shape.MODEL_LIST:
            inner = (*inner, "[]")
        if not issubclass(key.model, Tagged):
            yield from _walk(role, key.model, inner)
            continue
        yield from _variants(role, key.model, inner)


def _variants(role: str, base: type[Tagged], path: tuple[str, ...]) -> Iterator[_Known]:
    variants = base.variants()
    owners: dict[_Known, list[str]] = {}
    for tag, variant in variants.items():
        for known in _walk(role, variant, path):
            owners.setdefault(known, []).append(tag)
    for known, tags in owners.items():
        only = () if len(tags) == len(variants) else tuple(tags)
        yield _Known(role, known.path, known.only or only)


def role_scores(data: dict[str, object]) -> dict[str, int]:
    """Count the keys of a parsed file that only the one or only the other role knows."""
    paths = {
        role: {_lower(k.path) for k in _known() if k.role == role} for role in ("server", "client")
    }
    scores = {"server": 0, "client": 0}
    for path in _paths_of(data, ()):
        in_server, in_client = (path in paths[role] for role in ("server", "client"))
        if in_server != in_client:
            scores["server" if in_server else "client"] += 1
    return scores


def _paths_of(data: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Walk a parsed file no deeper than keys can be."""
    if len(path) > 6:
        return
    if isinstance(data, dict):
        for key, value in data.items():
            inner = (*path, str(key).lower())
            yield inner
            yield from _paths_of(value, inner)
    elif isinstance(data, list):
        for item in data[:1000]:
            yield from _paths_of(item, (*path, "[]"))
