"""How a client gets out to its server: values with a form of their own, and what can be wrong.

All of it is pyfrp's own but `dnsServer` and `connectServerLocalIP`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pyfrp.config.problems import Problem

if TYPE_CHECKING:
    from pyfrp.config.client import ClientConfig, ClientTransport

AUTO = "auto"
"""The value of `transport.protocol` that climbs a ladder."""

PROTOCOLS = ("tcp", "wss", "websocket", "kcp", "quic")
"""What a rung may begin with."""

PROXIED = ("tcp", "wss", "websocket")
"""Those that a proxy can carry; the others are UDP."""

_VIA_PROXY = "+proxy"
# Compiled when first used: most files have neither.
_RUNG = r"([a-z0-9]+)(?::([0-9]{1,5}))?(\+proxy)?"
_FINGERPRINT = r"(?i:sha-?256:)?((?:[0-9a-fA-F]{2}[: ]?){31}[0-9a-fA-F]{2})"


class Rung(NamedTuple):
    """One way to try.

    Attributes:
        protocol: One of `PROTOCOLS`.
        port: Of the server; 0 for `serverPort`.
        proxied: Whether through the proxy that the configuration or the environment names.
    """

    protocol: str
    port: int = 0
    proxied: bool = False

    def __str__(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.protocol}{port}{_VIA_PROXY if self.proxied else ''}"


def parse_rung(text: str) -> Rung:
    """Read a rung: `wss`, `wss:443`, `wss:443+proxy`.

    Raises:
        ValueError: with what is wrong and what to write.
    """
    match = re.fullmatch(_RUNG, text.strip().lower())
    if match is None or match[1] not in PROTOCOLS:
        raise ValueError(f'unknown rung "{text[:60]}"{_meant(text)}')
    protocol, port, proxied = match.groups()
    if port and not 0 < int(port) < 65536:
        raise ValueError(f'rung "{text}": the port is not a number from 1 to 65535')
    if proxied and protocol not in PROXIED:
        raise ValueError(f'rung "{text}": {protocol} is UDP, which these proxies do not carry')
    return Rung(protocol, int(port or 0), bool(proxied))


def parse_dns_server(text: str) -> tuple[str, int]:
    """Read `ip`, `ip:port` or `[ip]:port`.

    Raises:
        ValueError: with what to write.
    """
    host, port = text.strip(), "53"
    if not _is_address(host):
        host, _, port = host.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
    if not _is_address(host) or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError("write the address of the server, with a port if it is not 53: 192.0.2.53")
    return host, int(port)


def parse_fingerprint(text: str) -> str:
    """Read a SHA-256 fingerprint, with or without colons and a prefix; returns pairs in capitals.

    Raises:
        ValueError: with what to write.
    """
    match = re.fullmatch(_FINGERPRINT, text.strip())
    if match is None:
        raise ValueError(
            f'"{text[:100]}" is no SHA-256 fingerprint: write the 64 hexadecimal digits that the '
            'server logs at start as "tls certificate"'
        )
    return bytes.fromhex(re.sub("[: ]", "", match[1])).hex(":").upper()


def outward_problems(cfg: ClientConfig) -> Iterator[Problem]:
    """List what is wrong with a completed configuration, as far as it is about the way out."""
    if cfg.dns_server:
        try:
            parse_dns_server(cfg.dns_server)
        except ValueError as error:
            text = f'dnsServer: "{cfg.dns_server[:60]}" is no address'
            yield Problem(text, ("dnsServer",), str(error))
    transport = cfg.transport
    local = transport.connect_server_local_ip
    if local and not _is_address(local):
        text = f'transport.connectServerLocalIP: "{local[:60]}" is no address'
        hint = "write an address of this machine, e.g. 192.0.2.7"
        yield Problem(text, ("transport", "connectServerLocalIP"), hint)
    if transport.dial_server_timeout < 0:
        text = "transport.dialServerTimeout must be a number of seconds above 0"
        yield Problem(text, ("transport", "dialServerTimeout"))
    yield from _pins(transport)
    if transport.protocol == AUTO or transport.auto != type(transport.auto)():
        yield from _auto(transport)


def _pins(transport: ClientTransport) -> Iterator[Problem]:
    place = ("transport", "tls", "pinnedSHA256")
    for index, pin in enumerate(transport.tls.pinned_sha256):
        try:
            parse_fingerprint(pin)
        except ValueError as error:
            yield Problem(f"transport.tls.pinnedSHA256: {error}", (*place, index))
    if transport.tls.pinned_sha256 and not transport.tls.enable:
        text = "transport.tls.pinnedSHA256 has no effect without transport.tls.enable"
        yield Problem(text, place, "without TLS nobody shows a certificate: remove one of the two")


def _auto(transport: ClientTransport) -> Iterator[Problem]:
    place = ("transport", "auto", "ladder")
    seen: set[Rung] = set()
    for index, text in enumerate(transport.auto.ladder):
        try:
            rung = parse_rung(text)
        except ValueError as error:
            yield Problem(f"transport.auto.ladder: {error}", (*place, index))
            continue
        if rung in seen:
            yield Problem(f'transport.auto.ladder: "{rung}" stands there twice', (*place, index))
        seen.add(rung)
    if not transport.auto.ladder:
        hint = f"remove it for the usual one: {', '.join(type(transport.auto)().ladder)}"
        yield Problem("transport.auto.ladder is empty", place, hint)
    if transport.auto.rung_timeout < 0:
        text = "transport.auto.rungTimeout must be a number of seconds above 0"
        yield Problem(text, ("transport", "auto", "rungTimeout"))


def _is_address(text: str) -> bool:
    from ipaddress import ip_address  # most files have no address to look at

    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _meant(text: str) -> str:
    import difflib  # only when something is wrong

    known = [*PROTOCOLS, *(protocol + _VIA_PROXY for protocol in PROXIED)]
    close = difflib.get_close_matches(re.sub(":[0-9]+", "", text.strip().lower()), known, n=1)
    if close:
        return f', did you mean "{close[0]}"?'
    return f"; it is one of {', '.join(PROTOCOLS)}, with :PORT and +proxy behind it where wanted"
