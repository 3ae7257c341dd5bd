"""Values that have the right type and are still wrong.

The order and the words of the faults are frp's, so that what operators search for is found.

Source: frp `pkg/config/v1/validation/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from pyfrp.config.base import fields_of
from pyfrp.config.common import AuthConfig, LogConfig, WebServerConfig
from pyfrp.config.complete import SourceError, check_source
from pyfrp.config.outproxy import named_proxy, parse_proxy_url
from pyfrp.config.problems import Place, Problem

if TYPE_CHECKING:  # each program loads only the models of its own role
    from pyfrp.config.client import ClientConfig, ClientOIDC
    from pyfrp.config.proxies import ProxyBase
    from pyfrp.config.server import ServerConfig
    from pyfrp.config.visitors import VisitorBase

EXEC_FEATURE = "TokenSourceExec"
"""The one value that `--allow-unsafe` knows."""

MAX_ANNOTATION_BYTES = 256 * 1024
"""Bytes of all keys and values of one proxy's annotations together."""

_LOG_LEVELS = ("trace", "debug", "info", "warn", "error")
_PLUGIN_OPS = ("Login", "NewProxy", "CloseProxy", "Ping", "NewWorkConn", "NewUserConn")
# Compiled when first used: most files have neither annotations nor limits.
_NAME_PART = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_PREFIX_PART = rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*"
_BANDWIDTH = r"[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|(?i:inf(?:inity)?|nan))"
# What can be in a Host field without its port. Wildcards stand for at least three labels, as in frp
# (`pkg/util/vhost/vhost.go`).
_HOST_LABEL = r"[A-Za-z0-9_~-]+"
_DOMAIN = (
    rf"\*|{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\*(?:\.{_HOST_LABEL}){{2,}}"
    r"|\[?[0-9A-Fa-f.]*(?::[0-9A-Fa-f.]*){2,}\]?"
)
_BANDWIDTH_UNITS = {"MB": 1024 * 1024, "KB": 1024}


def server_problems(cfg: ServerConfig, allow_unsafe: Collection[str] = ()) -> Iterator[Problem]:
    """List what is wrong with a completed server configuration."""
    yield from _auth(cfg.auth, allow_unsafe)
    if cfg.auth.max_clock_skew < 0:
        text = "auth.maxClockSkew must be 0 (not checked) or a number of seconds"
        yield Problem(text, ("auth", "maxClockSkew"))
    # frps ends with a trace of its stack when it cannot use the issuer.
    issuer = cfg.auth.oidc.issuer
    if cfg.auth.method == "oidc" and not re.match(r"https?://[^/]", issuer):
        what = "must be the http or https URL of the provider" if issuer else "is required"
        yield Problem(f"auth.oidc.issuer {what}", ("auth", "oidc", "issuer"))
    yield from _log(cfg.log)
    yield from _web_server(cfg.web_server)
    # frp names the last one in the spelling of its own fields.
    ports: list[tuple[str, int, str]] = [
        ("bindPort", cfg.bind_port, "bindPort"),
        ("kcpBindPort", cfg.kcp_bind_port, "kcpBindPort"),
        ("quicBindPort", cfg.quic_bind_port, "quicBindPort"),
        ("vhostHTTPPort", cfg.vhost_http_port, "vhostHTTPPort"),
        ("vhostHTTPSPort", cfg.vhost_https_port, "vhostHTTPSPort"),
        ("tcpMuxHTTPConnectPort", cfg.tcpmux_http_connect_port, "tcpmuxHTTPConnectPort"),
    ]
    for shown, port, key in ports:
        yield from _port(shown, port, (key,))
    if cfg.vhost_https_port and cfg.vhost_https_port == cfg.vhost_http_port != cfg.bind_port:
        text = f"vhostHTTPPort and vhostHTTPSPort are both {cfg.vhost_http_port}"
        hint = "give each a port of its own, or let both be equal to bindPort"
        yield Problem(text, ("vhostHTTPSPort",), hint)
    taken = [("vhostHTTPPort", cfg.vhost_http_port), ("vhostHTTPSPort", cfg.vhost_https_port)]
    if cfg.proxy_bind_addr in ("", cfg.bind_addr):
        taken.append(("bindPort", cfg.bind_port))
    for name, port in taken:
        if port and port == cfg.tcpmux_http_connect_port:
            text = f"{name} and tcpmuxHTTPConnectPort are both {port}"
            hint = "give tcpmuxHTTPConnectPort a port of its own"
            yield Problem(text, ("tcpmuxHTTPConnectPort",), hint)
    for index, plugin in enumerate(cfg.http_plugins):
        if not set(plugin.ops) <= set(_PLUGIN_OPS):
            yield _choice("http plugin ops", _PLUGIN_OPS, ("httpPlugins", index, "ops"))
    if cfg.vhost_http_error_style not in ("gateway", "frp"):
        yield _choice("vhostHTTPErrorStyle", ("gateway", "frp"), ("vhostHTTPErrorStyle",))
    yield from _shutdown(cfg.shutdown_timeout)


def server_warnings(cfg: ServerConfig) -> Iterator[str]:
    """List what the operator should know about a valid server configuration."""
    yield from _auth_warnings(cfg.auth, "anybody who reaches bindPort can log in")
    for index, ports in enumerate(cfg.allow_ports):
        low, high = ports.bounds
        if low > high:
            yield f"allowPorts[{index}] is empty: its start is greater than its end"


def client_problems(cfg: ClientConfig, allow_unsafe: Collection[str] = ()) -> Iterator[Problem]:
    """List what is wrong with a completed client configuration, outside proxies and visitors."""
    if cfg.virtual_net.address and not cfg.feature_gates.get("VirtualNet"):
        text = (
            "VirtualNet feature is not enabled; enable it by setting the appropriate "
            "feature gate flag"
        )
        yield Problem(text, ("virtualNet", "address"))
    yield from _auth(cfg.auth, allow_unsafe)
    yield from _oidc(cfg.auth.oidc, cfg.auth.method, allow_unsafe)
    yield from _log(cfg.log)
    yield from _web_server(cfg.web_server)
    transport = cfg.transport
    if 0 < transport.heartbeat_timeout < transport.heartbeat_interval:
        text = (
            "invalid transport.heartbeatTimeout, heartbeat timeout should not less than "
            "heartbeat interval"
        )
        yield Problem(text, ("transport", "heartbeatTimeout"))
    protocols = ("tcp", "kcp", "quic", "websocket", "wss", "auto")
    if transport.protocol not in protocols:
        yield _choice("transport.protocol", protocols, ("transport", "protocol"))
    if transport.wire_protocol not in ("v1", "v2"):
        yield _choice("transport.wireProtocol", ("v1", "v2"), ("transport", "wireProtocol"))
    from pyfrp.config.outward import outward_problems  # a server has no way out

    yield from outward_problems(cfg)
    yield from _proxy_url(cfg)
    yield from _shutdown(cfg.shutdown_timeout)


def _proxy_url(cfg: ClientConfig) -> Iterator[Problem]:
    """The proxy's URL; none of it may be shown, for it holds a password."""
    url = cfg.transport.proxy_url
    found = named_proxy(url, cfg.transport.protocol, os.environ)
    named_by, url = found or ("transport.proxyURL", url)
    try:
        if url:
            parse_proxy_url(url)
    except ValueError as exc:
        yield Problem(f"{named_by}: {exc}", ("transport", "proxyURL"))


def client_warnings(cfg: ClientConfig) -> Iterator[str]:
    """List what the operator should know about a valid client configuration."""
    yield from _auth_warnings(cfg.auth, "the server is either open to anybody or will refuse us")
    tls = cfg.transport.tls
    if not tls.enable:
        if cfg.auth.method == "oidc":
            yield "transport.tls.enable is false: whoever is on the way can use our OIDC tokens"
        for key, value in (
            ("certFile", tls.cert_file),
            ("keyFile", tls.key_file),
            ("trustedCaFile", tls.trusted_ca_file),
        ):
            if value:
                yield f"transport.tls.{key} is invalid when transport.tls.enable is false"
    protocol = cfg.transport.protocol
    if cfg.transport.proxy_url and protocol in ("kcp", "quic"):
        yield (
            f"transport.proxyURL is not used: {protocol} is UDP, which proxies do not carry; take "
            'transport.protocol = "wss", "websocket" or "tcp" to go through the proxy'
        )
    auto = cfg.transport.auto
    if cfg.transport.protocol != "auto" and auto != type(auto)():
        yield f'transport.auto has no effect with transport.protocol = "{cfg.transport.protocol}"'
    if not 0 <= cfg.server_port <= 65535:
        yield f"serverPort {cfg.server_port} is not in the range 0..65535: no login can succeed"
    for proxy in cfg.proxies:
        for domain in getattr(proxy, "custom_domains", ()):
            if not re.fullmatch(_DOMAIN, domain):
                yield (
                    f'proxy {proxy.name}: no request can name the domain "{domain}": give a host '
                    'name without scheme, port, path and final dot, like "llm.example.com", or '
                    '"*.example.com" for all below it (other scripts as xn--...)'
                )
        if getattr(proxy, "secret_key", None) == "":
            yield (
                f"proxy {proxy.name}: secretKey is empty: every visitor of the users in allowUsers "
                "is let in"
            )
        transport = proxy.transport
        if (
            proxy.type == "xtcp"
            and transport.bandwidth_limit
            and transport.bandwidth_limit_mode == "server"
        ):
            yield (
                f"proxy {proxy.name}: a bandwidthLimit of an xtcp proxy is kept by the client "
                "only: its users come past the server"
            )


def proxy_problem(proxy: ProxyBase) -> Problem | None:
    """Find the first fault of a proxy; its place is within the proxy's table."""
    return next(_proxy(proxy), None)


def visitor_problem(visitor: VisitorBase) -> Problem | None:
    """Find the first fault of a visitor; its place is within the visitor's table."""
    return next(_visitor(visitor), None)


def parse_bandwidth(text: str) -> int:
    """Read a `bandwidthLimit`.

    Returns:
        Bytes per second; 0 means no limit.

    Raises:
        ValueError: with frp's text.

    Source: frp `pkg/config/types/types.go`, `BandwidthQuantity`.
    """
    text = text.strip()
    if not text:
        return 0
    unit = _BANDWIDTH_UNITS.get(text[-2:])
    if unit is None:
        raise ValueError("unit not support")
    number = text[:-2]
    if not re.fullmatch(_BANDWIDTH, number):
        raise ValueError(f'strconv.ParseFloat: parsing "{number[:60]}": invalid syntax')
    value = float(number) * unit
    # Also false for "nan"; "inf" is no limit, as frp's huge number is none in effect.
    return int(value) if 0 < value < 2**62 else 0


def _auth(auth: AuthConfig, allow_unsafe: Collection[str]) -> Iterator[Problem]:
    if auth.method not in ("token", "oidc"):
        yield _choice("auth method", ("token", "oidc"), ("auth", "method"))
    if not set(auth.additional_scopes) <= {"HeartBeats", "NewWorkConns"}:
        place = ("auth", "additionalScopes")
        yield _choice("auth additional scopes", ("HeartBeats", "NewWorkConns"), place)
    if auth.token_source is None:
        return
    if auth.token:
        text = "cannot specify both auth.token and auth.tokenSource"
        yield Problem(text, ("auth", "tokenSource"))
    if auth.token_source.type == "exec" and EXEC_FEATURE not in allow_unsafe:
        yield _exec_refused(("auth", "tokenSource", "type"))
    try:
        check_source(auth.token_source)
    except SourceError as error:
        yield Problem(f"invalid auth.tokenSource: {error}", ("auth", "tokenSource"))


def _auth_warnings(auth: AuthConfig, consequence: str) -> Iterator[str]:
    # An exec source gives its token later, a file source has given it.
    later = auth.token_source is not None and auth.token_source.type == "exec"
    if auth.method == "token" and not auth.token and not later:
        yield f"auth.token is empty: {consequence}; set the same long random token on both sides"


def _exec_refused(place: Place) -> Problem:
    text = (
        f'unsafe feature "{EXEC_FEATURE}" is not enabled. To enable it, ensure it is allowed in '
        "the configuration or command line flags"
    )
    return Problem(text, place)


def _oidc(oidc: ClientOIDC, method: str, allow_unsafe: Collection[str]) -> Iterator[Problem]:
    place = ("auth", "oidc")
    source = oidc.token_source
    if source is not None:
        if any(
            getattr(oidc, name) != info.make()
            for name, (_, info) in fields_of(type(oidc)).items()
            if name != "token_source"
        ):
            text = "cannot specify both auth.oidc.tokenSource and any other field of auth.oidc"
            yield Problem(text, (*place, "tokenSource"))
        if source.type == "exec" and EXEC_FEATURE not in allow_unsafe:
            yield _exec_refused((*place, "tokenSource", "type"))
        try:
            check_source(source)
        except SourceError as error:
            yield Problem(f"invalid auth.oidc.tokenSource: {error}", (*place, "tokenSource"))
        return
    if method != "oidc":
        return
    missing = []
    if not oidc.client_id:
        missing.append("auth.oidc.clientID is required")
    url = oidc.token_endpoint_url
    if not url:
        missing.append("auth.oidc.tokenEndpointURL is required")
    elif not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]", url):
        missing.append("auth.oidc.tokenEndpointURL must be an absolute http or https URL")
    elif not url.lower().startswith(("http://", "https://")):
        missing.append("auth.oidc.tokenEndpointURL must use http or https")
    elif fault := _url_fault(url):
        missing.append(f"auth.oidc.tokenEndpointURL {fault}")
    if "scope" in oidc.additional_endpoint_params:
        missing.append(
            "auth.oidc.additionalEndpointParams.scope is not allowed; use auth.oidc.scope instead"
        )
    if oidc.audience and "audience" in oidc.additional_endpoint_params:
        missing.append(
            "cannot specify both auth.oidc.audience and auth.oidc.additionalEndpointParams.audience"
        )
    if missing:
        yield Problem("; ".join(missing), place)
    try:
        # frpc notices at the first token that it has to get.
        if oidc.proxy_url:
            parse_proxy_url(oidc.proxy_url)
    except ValueError as exc:
        yield Problem(f"auth.oidc.proxyURL: {exc}", (*place, "proxyURL"))


def _url_fault(url: str) -> str:
    """Say why nothing could be asked of an http or https URL, as a predicate; empty: nothing."""
    from urllib.parse import urlsplit  # few files have one

    if not re.fullmatch("[!-~]+", url):
        return "has a space or a letter in it that must be percent-encoded"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # it raises for what is no port
    except ValueError:
        return "has a host or a port that there cannot be"
    return "" if parts.hostname else "names no host"


def _log(log: LogConfig) -> Iterator[Problem]:
    if log.level not in _LOG_LEVELS:
        yield _choice("log level", _LOG_LEVELS, ("log", "level"))
    if log.format not in ("text", "json"):
        yield _choice("log format", ("text", "json"), ("log", "format"))


def _web_server(web: WebServerConfig) -> Iterator[Problem]:
    if web.tls is not None:
        if not web.tls.cert_file:
            text = "tls.certFile must be specified when tls is enabled"
            yield Problem(text, ("webServer", "tls"))
        elif not web.tls.key_file:
            text = "tls.keyFile must be specified when tls is enabled"
            yield Problem(text, ("webServer", "tls"))
    yield from _port("webServer.port", web.port, ("webServer", "port"))


def _port(shown: str, port: int, place: Place) -> Iterator[Problem]:
    if not 0 <= port <= 65535:
        yield Problem(f"{shown}: port number {port} must be in the range 0..65535", place)


def _shutdown(seconds: int) -> Iterator[Problem]:
    if seconds < 0:
        text = "shutdownTimeout must be 0 (do not wait) or a number of seconds"
        yield Problem(text, ("shutdownTimeout",))


def _choice(what: str, options: Iterable[str], place: Place) -> Problem:
    return Problem(f"invalid {what}, optional values are [{' '.join(options)}]", place)


def _proxy(proxy: ProxyBase) -> Iterator[Problem]:
    if not proxy.name:
        yield Problem("name should not be empty", ("name",))
    try:
        parse_bandwidth(proxy.transport.bandwidth_limit)
    except ValueError as error:
        hint = 'write it like "5MB" or "512KB"'
        yield Problem(str(error), ("transport", "bandwidthLimit"), hint)
    yield from annotation_problems(proxy.annotations)
    version = proxy.transport.proxy_protocol_version
    if version not in ("", "v1", "v2"):
        text = f"not support proxy protocol version: {version[:60]}"
        yield Problem(text, ("transport", "proxyProtocolVersion"))
    if proxy.transport.bandwidth_limit_mode not in ("client", "server"):
        text = "bandwidth limit mode should be client or server"
        yield Problem(text, ("transport", "bandwidthLimitMode"))
    if proxy.plugin is None:
        yield from _port("localPort: localPort", proxy.local_port, ("localPort",))
    check = proxy.health_check
    if check.type not in ("", "tcp", "http"):
        text = f"not support health check type: {check.type[:60]}"
        yield Problem(text, ("healthCheck", "type"))
    if check.type == "http" and not check.path:
        yield Problem("health check path should not be empty", ("healthCheck", "path"))
    if proxy.plugin is not None:
        yield from _plugin(proxy)
    yield from _by_type(proxy)


def _plugin(proxy: ProxyBase) -> Iterator[Problem]:
    plugin = proxy.plugin
    assert plugin is not None
    required = {
        "static_file": ("localPath", "local_path"),
        "unix_domain_socket": ("unixPath", "unix_path"),
        "http2https": ("localAddr", "local_addr"),
        "https2http": ("localAddr", "local_addr"),
        "https2https": ("localAddr", "local_addr"),
        "tls2raw": ("localAddr", "local_addr"),
    }.get(plugin.type)
    if required is not None and not getattr(plugin, required[1]):
        yield Problem(f"plugin {plugin.type}: {required[0]} is required", ("plugin",))


def _by_type(proxy: ProxyBase) -> Iterator[Problem]:
    from pyfrp.config.proxies import DomainProxy, TCPMuxProxyConfig

    if isinstance(proxy, DomainProxy) and not proxy.custom_domains and not proxy.subdomain:
        yield Problem("subdomain and custom domains should not be both empty")
    if isinstance(proxy, TCPMuxProxyConfig) and proxy.multiplexer != "httpconnect":
        text = f"not support multiplexer: {proxy.multiplexer[:60]}"
        yield Problem(text, ("multiplexer",), "the only one is httpconnect")


def annotation_problems(annotations: dict[str, str]) -> Iterator[Problem]:
    """Find what is wrong with a proxy's annotations; both programs ask."""
    for key in annotations:
        reason = _name_fault(key.lower())
        if reason:
            yield Problem(f"annotation key {key[:300]} is invalid: {reason}", ("annotations", key))
    size = sum(len(os.fsencode(text)) for pair in annotations.items() for text in pair)
    if size > MAX_ANNOTATION_BYTES:
        text = f"annotations size {size} is larger than limit {MAX_ANNOTATION_BYTES}"
        yield Problem(text, ("annotations",))


def _name_fault(name: str) -> str:
    """Say what keeps a name from being a Kubernetes qualified name; empty: nothing."""
    prefix, slash, part = name.rpartition("/")
    if "/" in prefix:
        return "at most one slash is allowed, between an optional DNS prefix and the name"
    if slash and not re.fullmatch(_PREFIX_PART, prefix):
        return "the part before the slash must be a DNS name, e.g. example.com/my-name"
    if len(prefix) > 253:
        return "the part before the slash must not be longer than 253 characters"
    if not re.fullmatch(_NAME_PART, part):
        return (
            "the name part must consist of letters, digits, '-', '_' and '.', and start and end "
            "with a letter or digit"
        )
    if len(part) > 63:
        return "the name part must not be longer than 63 characters"
    return ""


def _visitor(visitor: VisitorBase) -> Iterator[Problem]:
    if not visitor.name:
        yield Problem("name is required", ("name",))
    if not visitor.server_name:
        yield Problem("server name is required", ("serverName",))
    if visitor.bind_port == 0:
        yield Problem("bind port is required", ("bindPort",))
    if visitor.bind_port > 65535:
        text = f"bindPort: port number {visitor.bind_port} must be in the range 0..65535"
        yield Problem(text, ("bindPort",))
    if getattr(visitor, "protocol", "quic") not in ("quic", "kcp"):
        yield Problem("protocol should be kcp or quic", ("protocol",))
