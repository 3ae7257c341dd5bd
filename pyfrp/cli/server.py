"""The command line of the server: with a file, or with flags alone.

Source: frp `cmd/frps/root.go`, `pkg/config/flags.go`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pyfrp.cli.flags import FlagParser, integer, port_ranges

if TYPE_CHECKING:
    import argparse

    from pyfrp.config import ServerConfig

_EXAMPLES = """\
  pyfrp server -c frps.toml                        run with a file
  pyfrp server verify -c frps.toml                 check the file, run nothing
  pyfrp server -p 7000 --vhost-http-port 8081      run with flags alone
"""

# Each flag: its names, the key that it sets, how its value is read, and its help.
_Flag = tuple[tuple[str, ...], str, Callable[[str], Any], str]
_FLAGS: tuple[_Flag, ...] = (
    (("--bind-addr",), "bindAddr", str, "address for clients (default 0.0.0.0)"),
    (("-p", "--bind-port"), "bindPort", integer, "port for clients (default 7000)"),
    (("--kcp-bind-port",), "kcpBindPort", integer, "UDP port for KCP"),
    (("--quic-bind-port",), "quicBindPort", integer, "UDP port for QUIC"),
    (("--proxy-bind-addr",), "proxyBindAddr", str, "address of proxies (default 0.0.0.0)"),
    (("--vhost-http-port",), "vhostHTTPPort", integer, "port of HTTP virtual hosts"),
    (("--vhost-https-port",), "vhostHTTPSPort", integer, "port of HTTPS virtual hosts"),
    (
        ("--vhost-http-timeout",),
        "vhostHTTPTimeout",
        integer,
        "seconds to wait for the header of an answer (default: no limit)",
    ),
    (("--dashboard-addr",), "webServer.addr", str, "address of the dashboard (default 0.0.0.0)"),
    (("--dashboard-port",), "webServer.port", integer, "port of the dashboard"),
    (("--dashboard-user",), "webServer.user", str, "user of the dashboard (default admin)"),
    (("--dashboard-pwd",), "webServer.password", str, "its password (default admin)"),
    (("--log-file",), "log.to", str, "file of the log (default console)"),
    (("--log-level",), "log.level", str, "trace, debug, info, warn or error (default info)"),
    (("--log-max-days",), "log.maxDays", integer, "days that logs are kept (default 3)"),
    (
        ("-t", "--token"),
        "auth.token",
        str,
        "shared token; any user of this machine can read it in the process list",
    ),
    (("--subdomain-host",), "subDomainHost", str, "domain for the subdomains of proxies"),
    (("--allow-ports",), "allowPorts", port_ranges, "ports for proxies, e.g. 1000-2000,3000"),
    (("--max-ports-per-client",), "maxPortsPerClient", integer, "ports per client (default any)"),
)
_SWITCHES = (
    ("--enable-prometheus", "enablePrometheus", "serve metrics on the dashboard"),
    ("--disable-log-color", "log.disablePrintColor", "no colours on the console"),
    ("--tls-only", "transport.tls.force", "take only clients with TLS"),
)
# frp has these flags, but they have no effect there either.
_INERT = ("--dashboard-tls-mode", "--dashboard-tls-cert-file", "--dashboard-tls-key-file")


def parser() -> FlagParser:
    """Make the parser of `pyfrp server`."""
    made = FlagParser(
        "pyfrp server [verify]",
        "Run the server, which clients connect to and which callers reach (frps).\n"
        "With a file, the flags that set a key have no effect.",
        _EXAMPLES,
    )
    add_common(made)
    for names, _, kind, text in _FLAGS:
        made.value(*names, kind=kind, text=text, metavar=_metavar(kind))
    for name, _, text in _SWITCHES:
        made.switch(name, text=text)
    for name in _INERT:
        made.value(name, text="no effect, as in frp", metavar="TEXT")
    return made


def add_common(made: FlagParser) -> None:
    """Add the flags that both programs have."""
    made.value("-c", "--config", text="configuration file (TOML, YAML or JSON)", metavar="FILE")
    made.switch("-v", "--version", text="print the version")
    made.switch("--verify", text="check the file, run nothing")
    made.switch("--strict-config", default=True, text="unknown keys are errors")
    made.many(
        "--allow-unsafe",
        metavar="FEATURE",
        text="allow a feature that can run programs: TokenSourceExec",
    )


def config_of(flags: argparse.Namespace) -> ServerConfig:
    """Make the configuration that flags alone describe.

    Raises:
        ConfigError: a value that no file could hold either.
    """
    from pyfrp.config import server_from_dict

    # frp's flags have their own defaults: proxies do not follow --bind_addr as they do in a file.
    data: dict[str, Any] = {"proxyBindAddr": "0.0.0.0"}
    if flags.dashboard_port:
        data["webServer"] = {"addr": "0.0.0.0", "user": "admin", "password": "admin"}
    for names, key, _, _ in _FLAGS:
        _put(data, key, getattr(flags, _attribute(names)))
    for name, key, _ in _SWITCHES:
        _put(data, key, getattr(flags, _attribute((name,))))
    cfg = server_from_dict(data)
    if flags.token:
        cfg.warnings.append(
            "--token can be read in the process list by every user of this machine: "
            "put it into a file and use -c"
        )
    return cfg


def ignored(flags: argparse.Namespace) -> list[str]:
    """List the flags that were given and have no effect beside a file."""
    names = [names for names, _, _, _ in _FLAGS if getattr(flags, _attribute(names)) is not None]
    names += [(name,) for name, _, _ in _SWITCHES if getattr(flags, _attribute((name,)))]
    return [name[-1] for name in names]


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        return
    *tables, name = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
    data[name] = value


def _attribute(names: Sequence[str]) -> str:
    return names[-1].removeprefix("--").replace("-", "_")


def _metavar(kind: Callable[[str], Any]) -> str:
    if kind is integer:
        return "N"
    return "RANGES" if kind is port_ranges else "TEXT"
