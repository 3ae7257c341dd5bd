"""One proxy or one visitor that the command line describes: `pyfrp client tcp -n ssh -l 22`.

The tables say which flag sets which key. A type has the flags of the keys that its model has, so
a new type gets its flags from there.

Source: frp `cmd/frpc/sub/proxy.go`, `pkg/config/flags.go`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyfrp.cli.flags import (
    FlagParser,
    KeyFlag,
    attribute,
    boolean,
    integer,
    invalid,
    keys_given,
    pairs,
    strings,
)
from pyfrp.config.base import Model, keys_of
from pyfrp.config.proxies import PROXY_TYPES
from pyfrp.config.visitors import VISITOR_TYPES

if TYPE_CHECKING:
    from pyfrp.config import ClientConfig


def bandwidth(text: str) -> str:
    """Look at a bandwidth before it is used: frp takes a wrong one for a wrong flag."""
    from pyfrp.config.validate import parse_bandwidth

    try:
        parse_bandwidth(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(invalid(text, str(error))) from None
    return text


_LINK: tuple[KeyFlag, ...] = (
    (("-s", "--server-addr"), "serverAddr", str, "host of the server (default 127.0.0.1)"),
    (("-P", "--server-port"), "serverPort", integer, "port of the server (default 7000)"),
    (
        ("-p", "--protocol"),
        "transport.protocol",
        str,
        "way to the server: tcp, kcp, quic, websocket, wss or auto (default tcp)",
    ),
    (
        ("-t", "--token"),
        "auth.token",
        str,
        "token of the server; any user of this machine can read it in the process list",
    ),
    (("-u", "--user"), "user", str, "stands in front of the name: USER.NAME"),
    (("--client-id",), "clientID", str, "identity that lasts over restarts"),
    (("--tls-enable",), "transport.tls.enable", boolean, "use TLS (default true)"),
    (
        ("--tls-server-name",),
        "transport.tls.serverName",
        str,
        "name that the server's certificate must have (default: its host)",
    ),
    (
        ("--dns-server",),
        "dnsServer",
        str,
        "DNS server to ask for all names (default: the system's resolver)",
    ),
    (("--log-file",), "log.to", str, "file of the log (default console)"),
    (("--log-level",), "log.level", str, "trace, debug, info, warn or error (default info)"),
    (("--log-max-days",), "log.maxDays", integer, "days that logs are kept (default 3)"),
    (("--disable-log-color",), "log.disablePrintColor", boolean, "no colours on the console"),
)

_PROXY: tuple[KeyFlag, ...] = (
    (("-n", "--proxy-name"), "name", str, "name of the proxy, unique on the server; required"),
    (("-i", "--local-ip"), "localIP", str, "host of the service (default 127.0.0.1)"),
    (("-l", "--local-port"), "localPort", integer, "port of the service"),
    (
        ("-r", "--remote-port"),
        "remotePort",
        integer,
        "port on the server (default: the server picks one)",
    ),
    (("-d", "--custom-domain"), "customDomains", strings, "domains that callers use"),
    (("--sd",), "subdomain", str, "name below the server's own domain"),
    (("--locations",), "locations", strings, "take only paths that start like this"),
    (("--http-user",), "httpUser", str, "ask callers for this user"),
    (("--http-pwd",), "httpPassword", str, "ask callers for this password"),
    (("--host-header-rewrite",), "hostHeaderRewrite", str, "Host header for the service"),
    (("--mux",), "multiplexer", str, "how callers name the domain: httpconnect; required"),
    (("--sk",), "secretKey", str, "secret that visitors must know"),
    (
        ("--allow-users",),
        "allowUsers",
        strings,
        "users whose visitors may connect, * for all (default: the same user)",
    ),
    (("--ue",), "transport.useEncryption", boolean, "encrypt the payload"),
    (("--uc",), "transport.useCompression", boolean, "compress the payload"),
    (
        ("--bandwidth-limit",),
        "transport.bandwidthLimit",
        bandwidth,
        "bytes per second, e.g. 512KB or 5MB (default: no limit)",
    ),
    (
        ("--bandwidth-limit-mode",),
        "transport.bandwidthLimitMode",
        str,
        "which side limits: client or server (default client)",
    ),
    (("--metadatas",), "metadatas", pairs, "values for the server's plugins"),
    (("--annotations",), "annotations", pairs, "remarks for the dashboard"),
)

_VISITOR: tuple[KeyFlag, ...] = (
    (("-n", "--visitor-name"), "name", str, "name of the visitor; required"),
    (("--server-name",), "serverName", str, "name of the proxy to reach; required"),
    (("--server-user",), "serverUser", str, "user who owns the proxy (default: --user)"),
    (("--sk",), "secretKey", str, "secret of the proxy"),
    (("--bind-addr",), "bindAddr", str, "address to listen on (default 127.0.0.1)"),
    (
        ("--bind-port",),
        "bindPort",
        integer,
        "port to listen on; below 0: serve other visitors only; required",
    ),
    (("--ue",), "transport.useEncryption", boolean, "encrypt the payload"),
    (("--uc",), "transport.useCompression", boolean, "compress the payload"),
)

_SECRET = {"auth.token", "httpPassword", "secretKey"}


class _Kind(NamedTuple):
    """What a one-liner describes: the list of the file, and how the help calls it."""

    table: str
    flags: tuple[KeyFlag, ...]
    what: str
    example: str


_KINDS = {
    "proxy": _Kind(
        "proxies",
        _PROXY,
        "Offer one local service through a {tag} proxy, without a file.",
        "  pyfrp client {tag} -s HOST -t TOKEN -n NAME -l PORT{more}\n",
    ),
    "visitor": _Kind(
        "visitors",
        _VISITOR,
        "Reach the {tag} proxy of another client at a local port, without a file.",
        "  pyfrp client {tag} visitor -s HOST -t TOKEN -n NAME{more} \\\n"
        "    --server-name PROXY --bind-port PORT\n",
    ),
}
# What else most people need, for the example in the help.
_USUAL = (
    ("remotePort", " -r PORT"),
    ("customDomains", " -d DOMAIN"),
    ("multiplexer", " --mux httpconnect"),
    ("secretKey", " --sk SECRET"),
)


def find(argv: Sequence[str], place: int) -> OneLine | None:
    """Take a command line for a one-liner if the word at `place` is a type of proxies.

    Args:
        argv: The words behind `pyfrp client`.
        place: Index of the first word that is no flag, as the client's own flags tell it.
    """
    if argv[place] not in PROXY_TYPES:
        return None
    tag, rest = argv[place], [*argv[:place], *argv[place + 1 :]]
    proxy = OneLine("proxy", tag, rest)
    at = proxy.parser.first_word(rest) if tag in VISITOR_TYPES else None
    if at is not None and rest[at] == "visitor":
        return OneLine("visitor", tag, [*rest[:at], *rest[at + 1 :]])
    return proxy


class OneLine:
    """A command line that describes one proxy or visitor.

    Args:
        kind: "proxy" or "visitor".
        tag: The type of it.
        argv: All words but those two.
    """

    def __init__(self, kind: str, tag: str, argv: Sequence[str]) -> None:
        model = (PROXY_TYPES if kind == "proxy" else VISITOR_TYPES)[tag]
        self.tag = tag
        self.argv = argv
        self.kind = _KINDS[kind]
        self.flags = [flag for flag in self.kind.flags if _has(model, flag[1])]
        self.parser = self._parser("" if kind == "proxy" else " visitor", model)

    def config_of(self, flags: argparse.Namespace, words: Sequence[str]) -> ClientConfig:
        """Make the configuration that the flags describe.

        Args:
            flags: What `parser` read.
            words: Words that were no flags; they do nothing, as in frp, which is warned about.

        Raises:
            ConfigError: a value that no file could hold either.
        """
        from pyfrp.config import client_from_dict

        data: dict[str, Any] = {"serverAddr": "127.0.0.1", **keys_given(flags, _LINK)}
        data[self.kind.table] = [{"type": self.tag, **keys_given(flags, self.flags)}]
        cfg = client_from_dict(data, bare=True)
        cfg.warnings.extend(self._warnings(flags, words))
        return cfg

    def _parser(self, role: str, model: type[Model]) -> FlagParser:
        more = "".join(text for key, text in _USUAL if _has(model, key))
        made = FlagParser(
            f"pyfrp client {self.tag}{role}",
            self.kind.what.format(tag=self.tag),
            self.kind.example.format(tag=self.tag, more=more),
        )
        made.switch("-v", "--version", text="print the version")
        for names in (("-c", "--config"), ("--config-dir",)):
            made.value(*names, text="no effect here: no file is read", metavar="PATH")
        made.switch("--strict-config", default=True, text="no effect here: no file is read")
        made.many("--allow-unsafe", text="no effect here: no file is read", metavar="FEATURE")
        made.keys(f"Flags of the {'visitor' if role else 'proxy'}", self.flags)
        made.keys("Flags of the client", _LINK)
        return made

    def _warnings(self, flags: argparse.Namespace, words: Sequence[str]) -> list[str]:
        found = [
            f"{names[-1]} can be read in the process list by every user of this machine: "
            "put it into a file and use -c"
            for names, key, _, _ in (*_LINK, *self.flags)
            if key in _SECRET and getattr(flags, attribute(names))
        ]
        found += [
            f"{name} has no effect together with `client {self.tag}`: no file is read"
            for name in ("--config", "--config-dir")
            if getattr(flags, attribute((name,)))
        ]
        if words:
            # They are not shown: one may be the second half of a secret that lacks its quotes.
            found.append(
                f"{len(words)} of the words on the command line belong to no flag and have no "
                "effect; a switch is turned off by --flag=false"
            )
        return found


def _has(model: type[Model], key: str) -> bool:
    """Tell whether a model has a key, which may be one of its tables' (`transport.protocol`)."""
    name, _, rest = key.partition(".")
    found = keys_of(model).get(name.lower())
    if found is None or not rest:
        return found is not None
    return found.model is not None and _has(found.model, rest)
