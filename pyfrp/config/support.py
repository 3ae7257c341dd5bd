"""What the files may say and this release does not do.

Such a configuration is refused at start rather than run without the feature: an operator who
turned on a limit or a check relies on it. The two tables shrink as releases grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pyfrp.config.base import keys_of
from pyfrp.config.problems import Problem, config_error

if TYPE_CHECKING:  # each program loads only the models of its own role
    from pyfrp.config.client import ClientConfig
    from pyfrp.config.server import ServerConfig


@dataclass(frozen=True, slots=True)
class _Missing:
    """One key that asks for something that does not exist yet.

    Args:
        key: As in the file.
        instead: What to use, as a clause.
        asks: Tells by the value whether the feature is asked for; values that do nothing (a
            tuning of something that is off) pass.
        shows: Whether the value belongs into the message.
        where: What it is missing in.
    """

    key: str
    instead: str
    asks: Callable[[Any], bool] = bool
    shows: bool = False
    where: str = "this release of pyfrp"


def _other_than(*values: str) -> Callable[[Any], bool]:
    return lambda value: value not in values


_QUIC_PACKAGE = 'add the package aioquic (pip install "pyfrp-tunnel[quic]")'
_HERE = "this installation"


def _no_quic() -> bool:
    return find_spec("aioquic") is None


_COMMON = (
    _Missing("webServer.port", "remove it; logs tell what the dashboard would", lambda v: v > 0),
)

_SERVER = (
    *_COMMON,
    _Missing(
        "quicBindPort",
        _QUIC_PACKAGE + ', or remove it and let clients use transport.protocol = "tcp"',
        lambda port: port and _no_quic(),
        where=_HERE,
    ),
    _Missing("sshTunnelGateway.bindPort", "remove it and run `pyfrp client`", lambda v: v > 0),
    _Missing("enablePrometheus", "remove it"),
    _Missing("httpPlugins", "remove them; auth.token and allowPorts limit what clients may do"),
)

_CLIENT = (
    *_COMMON,
    _Missing(
        "transport.protocol",
        _QUIC_PACKAGE + ', or use "tcp"',
        lambda value: value == "quic" and _no_quic(),
        shows=True,
        where=_HERE,
    ),
    _Missing("virtualNet.address", "remove it"),
    _Missing("store.path", "remove it and keep the proxies in this file, or use includes"),
)

# The plugins that there are: the registered ones of `pyfrp.plugins`, which is above this layer.
PLUGINS = (
    "http2http",
    "http2https",
    "http_proxy",
    "https2http",
    "https2https",
    "socks5",
    "static_file",
    "tls2raw",
    "unix_domain_socket",
)

_PROXY = (
    _Missing(
        "plugin.type",
        f"use one of {', '.join(PLUGINS)}, or localIP and localPort",
        _other_than(*PLUGINS),
        shows=True,
    ),
)

# Of these plugins the local service is told who calls, if it shall be (frp: of the latter since
# 0.70); the others read or change what follows, or have their own ways.
TOLD_PLUGINS = ("tls2raw", "unix_domain_socket")

# Where no local service would be told who calls.
_UNTOLD = (_Missing("transport.proxyProtocolVersion", "remove it", shows=True),)

_VISITOR = (
    _Missing("plugin", "use bindAddr and bindPort"),
    _Missing(
        "protocol",
        _QUIC_PACKAGE + ', or use "kcp"',
        lambda value: value == "quic" and _no_quic(),
        shows=True,
        where=_HERE,
    ),
)


def check_supported(cfg: ServerConfig | ClientConfig) -> None:
    """Refuse a configuration that asks for what this release does not do.

    Raises:
        ConfigError: one line for each such key, with what to use instead.
    """
    problems = unsupported(cfg)
    if problems:
        raise config_error(problems)


def unsupported(cfg: ServerConfig | ClientConfig) -> list[Problem]:
    """List the keys of a loaded configuration that this release cannot honour."""
    from pyfrp.config.server import ServerConfig  # a server has it loaded, a client pays here

    origin = cfg.origin
    if isinstance(cfg, ServerConfig):
        return [problem.within(origin.source) for problem in _look(cfg, _SERVER)]
    problems = [problem.within(origin.source) for problem in _look(cfg, _CLIENT)]
    for name, on in cfg.feature_gates.items():
        place = ("featureGates", name)
        if name != "VirtualNet":
            text = f"unrecognized feature gate: {name[:60]}"
            problems.append(Problem(text, place, source=origin.source))
        elif on:
            problems.append(_problem("featureGates.VirtualNet", "remove it").within(origin.source))
    for index, proxy in enumerate(cfg.proxies):
        source, table = origin.spot("proxies", index)
        prefix = f"proxy {proxy.name}: "
        told = proxy.plugin is None or proxy.plugin.type in TOLD_PLUGINS
        missing = _PROXY if told else (*_PROXY, *_UNTOLD)
        problems += [problem.within(source, table, prefix) for problem in _look(proxy, missing)]
    for index, visitor in enumerate(cfg.visitors):
        source, table = origin.spot("visitors", index)
        prefix = f"visitor {visitor.name}: "
        problems += [problem.within(source, table, prefix) for problem in _look(visitor, _VISITOR)]
    return problems


def _look(cfg: Any, table: tuple[_Missing, ...]) -> Iterator[Problem]:
    for missing in table:
        value = cfg
        for part in missing.key.split("."):
            key = None if value is None else keys_of(type(value)).get(part.lower())
            value = None if key is None else getattr(value, key.attribute)
        if value is not None and missing.asks(value):
            shown = f' = "{value}"' if missing.shows else ""
            text = _sentence(missing.key + shown, missing.instead, missing.where)
            yield Problem(text, tuple(missing.key.split(".")))


def _problem(key: str, instead: str) -> Problem:
    return Problem(_sentence(key, instead), tuple(key.split(".")))


def _sentence(what: str, instead: str, where: str = "this release of pyfrp") -> str:
    verb = "are" if what == "httpPlugins" else "is"
    return f"{what} {verb} not available in {where}: {instead}"
