"""The command line of the server: with a file, or with flags alone.

Source: frp `cmd/frps/root.go`, `pkg/config/flags.go`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfrp.cli.flags import (
    FlagParser,
    KeyFlag,
    attribute,
    boolean,
    integer,
    keys_given,
    port_ranges,
)

if TYPE_CHECKING:
    import argparse

    from pyfrp.config import ServerConfig

_EXAMPLES = """\
  pyfrp server -c frps.toml                        run with a file
  pyfrp server verify -c frps.toml                 check the file, run nothing
  pyfrp server -p 7000 --vhost-http-port 8081      run with flags alone
"""

_FLAGS: tuple[KeyFlag, ...] = (
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
    (("--enable-prometheus",), "enablePrometheus", boolean, "serve metrics on the dashboard"),
    (("--disable-log-color",), "log.disablePrintColor", boolean, "no colours on the console"),
    (("--tls-only",), "transport.tls.force", boolean, "take only clients with TLS"),
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
    made.keys("Flags in place of a file", _FLAGS)
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

    data = keys_given(flags, _FLAGS)
    # frp's flags have their own defaults: proxies do not follow --bind_addr as they do in a file.
    data.setdefault("proxyBindAddr", "0.0.0.0")
    if flags.dashboard_port:
        dashboard = {"addr": "0.0.0.0", "user": "admin", "password": "admin"}
        data["webServer"] = dashboard | data["webServer"]
    cfg = server_from_dict(data)
    if flags.token:
        cfg.warnings.append(
            "--token can be read in the process list by every user of this machine: "
            "put it into a file and use -c"
        )
    return cfg


def ignored(flags: argparse.Namespace) -> list[str]:
    """List the flags that were given and have no effect beside a file."""
    return [names[-1] for names, _, _, _ in _FLAGS if getattr(flags, attribute(names)) is not None]
