"""Proxies on the way out: their URLs, and those that the environment names.

Nothing here may put a URL into a message: it holds a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # a start without a proxy loads neither this nor urllib
    from ipaddress import IPv4Address, IPv6Address

DEFAULT_PORTS = {"http": 80, "https": 443, "ntlm": 80, "socks5": 1080, "socks5h": 1080}
"""Schemes of proxies, with the port where none is given (as Go's `net/http` has them)."""

EXAMPLE = "http://proxy.example.com:3128"
# Protocols that frp takes through a proxy; the others are UDP, which a proxy does not carry.
PROXIED = ("tcp", "websocket", "wss")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,19})://")
_HOST = re.compile(r"\[([0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,32})?)\]|([A-Za-z0-9._~-]{1,253})")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODE = "in the user and the password write @ as %40, : as %3A, / as %2F, # as %23, % as %25"


class ProxyParts(NamedTuple):
    """A proxy's URL, taken apart.

    Attributes:
        scheme: A key of `DEFAULT_PORTS`, in lower case.
        host: A name, or an address without brackets.
        user: Decoded; None without a user in the URL. May be `domain\\user`.
        password: Decoded; "" without one.
    """

    scheme: str
    host: str
    port: int
    user: str | None
    password: str

    def __repr__(self) -> str:
        return f"<ProxyParts {self.scheme} {self.host!r} {self.port}>"  # No secrets.


def parse_proxy_url(url: str) -> ProxyParts:
    """Take the URL of a proxy apart.

    Raises:
        ValueError: with what is wrong and what to write, without anything secret.
    """
    match = _SCHEME.match(url)
    if match is None:
        raise ValueError(f"it must begin with the proxy's scheme, as in {EXAMPLE}")
    scheme = match[1].lower()
    if scheme not in DEFAULT_PORTS:
        known = ", ".join(DEFAULT_PORTS)
        raise ValueError(f"the scheme {scheme} is not one of {known}")
    authority, rest = _split_authority(url[match.end() :])
    userinfo, at, place = authority.rpartition("@")
    if rest not in ("", "/"):
        if "@" in rest:
            raise ValueError(_ENCODE)
        if rest.lower().rstrip("/").endswith((".pac", ".dat")):
            raise ValueError("it names a PAC file, not a proxy: write the host and port from it")
        raise ValueError(f"nothing may follow the proxy's host and port, as in {EXAMPLE}")
    host, port = _place(place, DEFAULT_PORTS[scheme])
    if not at:
        return ProxyParts(scheme, host, port, None, "")
    user, _, password = userinfo.partition(":")
    return ProxyParts(scheme, host, port, _decoded(user), _decoded(password))


class NamedProxy(NamedTuple):
    """A proxy that the environment names; `url` is for `parse_proxy_url`, and secret."""

    variable: str
    url: str

    def __repr__(self) -> str:
        return f"<NamedProxy {self.variable}>"


def proxy_from_environment(
    environ: Mapping[str, str], host: str, port: int, *, secure: bool, as_go: bool = False
) -> NamedProxy | None:
    """The proxy that the environment names for a server, None for a direct connection.

    `https_proxy` counts first for a connection with TLS, `http_proxy` for one without; either
    stands in for the other, because both are asked for a tunnel, and `all_proxy` for both. Each
    may be written in capitals. A value without a scheme is an HTTP proxy. `no_proxy` is as in
    Go's `x/net/http/httpproxy` and curl, but that a server on loopback is no exception, as in curl.

    Args:
        host, port: The server's.
        secure: Whether the connection begins with TLS.
        as_go: To the letter of Go: neither stands in for the other, nor `all_proxy` for both, and
            what is on loopback is excepted.
    """
    if as_go and _is_loopback(host):
        return None
    if _excepted(_variable(environ, "no_proxy")[1], host, port):
        return None
    names = ["http_proxy", "https_proxy"]
    order = [*(reversed(names) if secure else names), "all_proxy"]
    for name in order[:1] if as_go else order:
        variable, value = _variable(environ, name)
        # Servers that start programs per request fill HTTP_PROXY from a header of the caller's.
        if variable == "HTTP_PROXY" and "REQUEST_METHOD" in environ:
            continue
        if value:
            return NamedProxy(variable, with_scheme(value))
    return None


def named_proxy(proxy_url: str, protocol: str, environ: Mapping[str, str]) -> NamedProxy | None:
    """The proxy for a client: of `transport.proxyURL`, or of the variable `http_proxy`, as in frp.

    frp knows neither other variables nor `no_proxy`.

    Args:
        protocol: `transport.protocol`; only those in `PROXIED` go through a proxy.

    Source: frp `pkg/config/v1/client.go`, `ClientTransportConfig.Complete`.
    """
    if protocol not in PROXIED:
        return None
    if proxy_url:
        return NamedProxy("transport.proxyURL", proxy_url)
    value = environ.get("http_proxy", "").strip()
    return NamedProxy("http_proxy in the environment", with_scheme(value)) if value else None


def with_scheme(value: str) -> str:
    """The URL that an environment variable means, which may be `host:port` alone."""
    return value if _SCHEME.match(value) else f"http://{value}"


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    for variable in (name, name.upper()):
        value = environ.get(variable, "").strip()
        if value:
            return variable, value
    return name, ""


def _excepted(no_proxy: str, host: str, port: int) -> bool:
    """Whether `no_proxy` exempts a server."""
    if not no_proxy:
        return False
    from ipaddress import ip_network

    host = host.lower().strip("[]").removesuffix(".")
    address = _address(host)
    for entry in re.split(r"[,\s]+", no_proxy.lower()):
        if entry == "*":
            return True
        if not entry:
            continue
        if "/" in entry:
            try:
                if address is not None and address in ip_network(entry, strict=False):
                    return True
            except ValueError:
                pass  # No network: Go and curl pass over it, too.
            continue
        name, wanted = _split_port(entry)
        if wanted and wanted != str(port):
            continue
        if address is not None or _address(name) is not None:
            if address is not None and _address(name) == address:
                return True
            continue
        if name.startswith("*."):
            name = name[1:]
        # `.example.com` is what is below it, `example.com` is also itself.
        if name and (host.endswith("." + name.removeprefix(".")) or host == name):
            return True
    return False


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _split_port(entry: str) -> tuple[str, str]:
    """Host and port of an entry; an IPv6 address has a port only with brackets."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, rest.removeprefix(":")
    name, _, port = entry.rpartition(":")
    return (name, port) if name and ":" not in name else (entry, "")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    from ipaddress import ip_address

    try:
        return ip_address(text)
    except ValueError:
        return None


def _split_authority(text: str) -> tuple[str, str]:
    match = re.search(r"[/?#]", text)
    return (text, "") if match is None else (text[: match.start()], text[match.start() :])


def _place(text: str, default: int) -> tuple[str, int]:
    """Host and port, or ValueError."""
    match = _HOST.match(text)
    if match is None:
        if text and text[0] not in ":[":
            raise ValueError("the proxy's host has a character that host names may not have")
        raise ValueError(f"the proxy's host is missing, as in {EXAMPLE}")
    address, name = match.groups()
    if address is not None and (":" not in address or _address(address) is None):
        raise ValueError("the proxy's host is not a valid IPv6 address")
    rest = text[match.end() :]
    if not rest:
        return address or name, default
    digits = rest[1:]
    if rest[0] == ":" and digits.isascii() and digits.isdigit() and 0 < int(digits[:6]) < 65536:
        return address or name, int(digits)
    if rest[0] == ":":
        if rest.count(":") > 1:
            raise ValueError("an IPv6 address of the proxy needs brackets: http://[::1]:3128")
        raise ValueError("the proxy's port is not a number from 1 to 65535")
    raise ValueError("the proxy's host has a character that host names may not have")


def _decoded(text: str) -> str:
    from urllib.parse import unquote_to_bytes

    if _BAD_ESCAPE.search(text):
        raise ValueError(f"a percent sign without two hexadecimal digits; {_ENCODE}")
    try:
        plain = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("the user or the password is not UTF-8 when its %XX are undone") from None
    if any(ord(letter) < 0x20 or letter == "\x7f" for letter in plain):
        raise ValueError("the user and the password may not hold control characters")
    return plain
