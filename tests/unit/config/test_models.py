"""The models know every key of frp's files, with its default, and hide what is secret."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pyfrp.config import ClientConfig, ServerConfig, client_from_dict, server_from_dict
from pyfrp.config.base import Model, Tagged, key_of, keys_of
from pyfrp.config.decode import Decoder
from pyfrp.config.parse import Document
from pyfrp.config.plugins import CLIENT_PLUGINS
from pyfrp.config.proxies import PROXY_TYPES, HTTPProxyConfig
from pyfrp.config.server import PortRange
from pyfrp.config.visitors import VISITOR_PLUGINS, VISITOR_TYPES

LOG = {"log.to": "console", "log.level": "info", "log.maxDays": 3, "log.disablePrintColor": False}
LOG |= {"log.format": "text", "shutdownTimeout": 30, "version": "", "udpPacketSize": 1500}
AUTH = {"auth.method": "token", "auth.additionalScopes": [], "auth.token": ""}
AUTH |= {"auth.tokenSource": None}
WEB = {"webServer.addr": "127.0.0.1", "webServer.port": 0, "webServer.user": ""}
WEB |= {"webServer.password": "", "webServer.assetsDir": "", "webServer.pprofEnable": False}
WEB |= {"webServer.tls": None}
MUX = {"transport.tcpMux": True, "transport.tcpMuxKeepaliveInterval": 30}
MUX |= {"transport.quic.keepalivePeriod": 10, "transport.quic.maxIdleTimeout": 30}
MUX |= {"transport.quic.maxIncomingStreams": 100000, "transport.tls.certFile": ""}
MUX |= {"transport.tls.keyFile": "", "transport.tls.trustedCaFile": ""}

SERVER_DEFAULTS = {
    **LOG,
    **AUTH,
    **WEB,
    **MUX,
    "bindAddr": "0.0.0.0",
    "bindPort": 7000,
    "kcpBindPort": 0,
    "quicBindPort": 0,
    "proxyBindAddr": "0.0.0.0",
    "vhostHTTPPort": 0,
    "vhostHTTPTimeout": 0,
    "vhostHTTPErrorStyle": "gateway",
    "vhostHTTPSPort": 0,
    "tcpmuxHTTPConnectPort": 0,
    "tcpmuxPassthrough": False,
    "subDomainHost": "",
    "custom404Page": "",
    "sshTunnelGateway.bindPort": 0,
    "sshTunnelGateway.privateKeyFile": "",
    "sshTunnelGateway.autoGenPrivateKeyPath": "./.autogen_ssh_key",
    "sshTunnelGateway.authorizedKeysFile": "",
    "enablePrometheus": False,
    "auth.maxClockSkew": 900,
    "auth.oidc.issuer": "",
    "auth.oidc.audience": "",
    "auth.oidc.skipExpiryCheck": False,
    "auth.oidc.skipIssuerCheck": False,
    "transport.tcpKeepalive": 7200,
    "transport.maxPoolCount": 5,
    "transport.heartbeatTimeout": -1,
    "transport.tls.force": False,
    "transport.tls.serverName": "",
    "detailedErrorsToClient": True,
    "maxPortsPerClient": 0,
    "userConnTimeout": 10,
    "natholeAnalysisDataReserveHours": 168,
    "allowPorts": [],
    "httpPlugins": [],
}
CLIENT_DEFAULTS = {
    **LOG,
    **AUTH,
    **WEB,
    **MUX,
    "user": "",
    "clientID": "",
    "serverAddr": "0.0.0.0",
    "serverPort": 7000,
    "natHoleStunServer": "stun.easyvoip.com:3478",
    "dnsServer": "",
    "loginFailExit": True,
    "start": [],
    "includes": [],
    "metadatas": {},
    "featureGates": {},
    "virtualNet.address": "",
    "store.path": "",
    "auth.oidc.clientID": "",
    "auth.oidc.clientSecret": "",
    "auth.oidc.audience": "",
    "auth.oidc.scope": "",
    "auth.oidc.tokenEndpointURL": "",
    "auth.oidc.additionalEndpointParams": {},
    "auth.oidc.trustedCaFile": "",
    "auth.oidc.insecureSkipVerify": False,
    "auth.oidc.proxyURL": "",
    "auth.oidc.tokenSource": None,
    "transport.protocol": "tcp",
    "transport.auto.ladder": [
        "tcp",
        "wss",
        "websocket",
        "tcp+proxy",
        "wss+proxy",
        "websocket+proxy",
    ],
    "transport.auto.rungTimeout": 5,
    "transport.tls.pinnedSHA256": [],
    "transport.wireProtocol": "v1",
    "transport.dialServerTimeout": 10,
    "transport.dialServerKeepalive": 7200,
    "transport.connectServerLocalIP": "",
    "transport.proxyURL": "",
    "transport.poolCount": 1,
    "transport.heartbeatInterval": -1,
    "transport.heartbeatTimeout": -1,
    "transport.tls.enable": True,
    "transport.tls.disableCustomTLSFirstByte": True,
    "transport.tls.serverName": "0.0.0.0",
    "proxies": [],
    "visitors": [],
}
PROXY_DEFAULTS = {
    "name": "",
    "enabled": True,
    "annotations": {},
    "metadatas": {},
    "transport.useEncryption": False,
    "transport.useCompression": False,
    "transport.bandwidthLimit": "",
    "transport.bandwidthLimitMode": "client",
    "transport.proxyProtocolVersion": "",
    "loadBalancer.group": "",
    "loadBalancer.groupKey": "",
    "healthCheck.type": "",
    "healthCheck.timeoutSeconds": 3,
    "healthCheck.maxFailed": 1,
    "healthCheck.intervalSeconds": 10,
    "healthCheck.path": "",
    "healthCheck.httpHeaders": [],
    "localIP": "127.0.0.1",
    "localPort": 0,
    "plugin": None,
}
DOMAIN = {"customDomains": [], "subdomain": ""}
HTTP_USER = {"httpUser": "", "httpPassword": "", "routeByHTTPUser": ""}
HEADERS = {"requestHeaders.set": {}}
SECRET = {"secretKey": "", "allowUsers": []}
P2P = {"natTraversal.disableAssistedAddrs": False}
PER_TYPE: dict[str, dict[str, Any]] = {
    "tcp": {"remotePort": 0},
    "udp": {"remotePort": 0},
    "http": DOMAIN
    | HTTP_USER
    | HEADERS
    | {"locations": [], "hostHeaderRewrite": "", "responseHeaders.set": {}},
    "https": DOMAIN,
    "tcpmux": DOMAIN | HTTP_USER | {"multiplexer": ""},
    "stcp": SECRET,
    "sudp": SECRET,
    "xtcp": SECRET | P2P,
}
VISITOR_DEFAULTS = {
    "name": "",
    "enabled": True,
    "transport.useEncryption": False,
    "transport.useCompression": False,
    "secretKey": "",
    "serverUser": "",
    "serverName": "",
    "bindAddr": "127.0.0.1",
    "bindPort": 0,
    "plugin": None,
}
PER_VISITOR: dict[str, dict[str, Any]] = {
    "stcp": {},
    "sudp": {},
    "xtcp": {
        "protocol": "quic",
        "keepTunnelOpen": False,
        "maxRetriesAnHour": 8,
        "minRetryInterval": 90,
        "fallbackTo": "",
        "fallbackTimeoutMs": 1000,
    }
    | P2P,
}
ADDR = {"localAddr": "", "hostHeaderRewrite": "", "requestHeaders.set": {}}
FILES = {"crtPath": "", "keyPath": ""}
PER_PLUGIN: dict[str, dict[str, Any]] = {
    "http_proxy": {"httpUser": "", "httpPassword": ""},
    "socks5": {"username": "", "password": ""},
    "static_file": {"localPath": "", "stripPrefix": "", "httpUser": "", "httpPassword": ""},
    "unix_domain_socket": {"unixPath": ""},
    "http2http": ADDR,
    "http2https": ADDR,
    "https2http": ADDR | FILES | {"enableHTTP2": True},
    "https2https": ADDR | FILES | {"enableHTTP2": True},
    "tls2raw": {"localAddr": ""} | FILES,
    "virtual_net": {},
}


def flat(model: Model, before: str = "") -> dict[str, Any]:
    """List the values of a model by dotted key."""
    found: dict[str, Any] = {}
    for key in keys_of(type(model)).values():
        value = getattr(model, key.attribute)
        if isinstance(value, Model):
            found |= flat(value, f"{before}{key.name}.")
        else:
            found[before + key.name] = value
    return found


def test_server_has_exactly_the_keys_and_defaults_of_frp() -> None:
    assert flat(server_from_dict({})) == SERVER_DEFAULTS


def test_client_has_exactly_the_keys_and_defaults_of_frp() -> None:
    assert flat(client_from_dict({})) == CLIENT_DEFAULTS


@pytest.mark.parametrize("tag", PER_TYPE)
def test_proxy_type_has_exactly_its_keys_and_defaults(tag: str) -> None:
    assert set(PROXY_TYPES) == set(PER_TYPE)
    assert flat(PROXY_TYPES[tag]()) == PROXY_DEFAULTS | PER_TYPE[tag] | {"type": tag}


@pytest.mark.parametrize("tag", PER_VISITOR)
def test_visitor_type_has_exactly_its_keys_and_defaults(tag: str) -> None:
    assert set(VISITOR_TYPES) == set(PER_VISITOR)
    assert flat(VISITOR_TYPES[tag]()) == VISITOR_DEFAULTS | PER_VISITOR[tag] | {"type": tag}


@pytest.mark.parametrize("tag", PER_PLUGIN)
def test_plugin_has_exactly_its_keys_and_defaults(tag: str) -> None:
    assert set(CLIENT_PLUGINS) == set(PER_PLUGIN)
    assert flat(CLIENT_PLUGINS[tag]()) == PER_PLUGIN[tag] | {"type": tag}


def test_visitor_plugin_has_its_key() -> None:
    (plugin,) = VISITOR_PLUGINS.values()
    assert flat(plugin()) == {"type": "virtual_net", "destinationIP": ""}


@pytest.mark.parametrize(
    ("attribute", "key"),
    [
        ("bind_port", "bindPort"),
        ("vhost_http_port", "vhostHTTPPort"),
        ("vhost_https_port", "vhostHTTPSPort"),
        ("local_ip", "localIP"),
        ("proxy_url", "proxyURL"),
        ("custom_404_page", "custom404Page"),
        ("sub_domain_host", "subDomainHost"),
        ("route_by_http_user", "routeByHTTPUser"),
        ("disable_custom_tls_first_byte", "disableCustomTLSFirstByte"),
        ("enable_http2", "enableHTTP2"),
        ("token_endpoint_url", "tokenEndpointURL"),
    ],
)
def test_attributes_are_spelled_mechanically(attribute: str, key: str) -> None:
    assert key_of(attribute) == key


SECRETS: list[tuple[type[Model], dict[str, Any]]] = [
    (ServerConfig, {"auth": {"token": "s3cret"}, "webServer": {"password": "s3cret"}}),
    (
        ClientConfig,
        {
            "auth": {"token": "s3cret", "oidc": {"clientSecret": "s3cret", "proxyURL": "s3cret"}},
            "transport": {"proxyURL": "http://u:s3cret@proxy"},
            "metadatas": {"password": "s3cret"},
        },
    ),
    (
        HTTPProxyConfig,
        {
            "httpPassword": "s3cret",
            "loadBalancer": {"groupKey": "s3cret"},
            "requestHeaders": {"set": {"Authorization": "s3cret"}},
            "metadatas": {"a": "s3cret"},
        },
    ),
    *((PROXY_TYPES[tag], {"secretKey": "s3cret"}) for tag in ("stcp", "sudp", "xtcp")),
    *((VISITOR_TYPES[tag], {"secretKey": "s3cret"}) for tag in ("stcp", "sudp", "xtcp")),
    (CLIENT_PLUGINS["http_proxy"], {"httpPassword": "s3cret"}),
    (CLIENT_PLUGINS["socks5"], {"password": "s3cret"}),
]


@pytest.mark.parametrize(("model", "values"), SECRETS)
def test_secrets_are_not_in_a_repr(model: type[Model], values: dict[str, Any]) -> None:
    decoder = Decoder(Document({}), strict=True)
    made = decoder.decode(model, values)
    assert decoder.problems == []
    assert "s3cret" not in repr(made)
    assert "s3cret" not in str(made)


def test_models_made_by_keyword_know_their_keys() -> None:
    assert ServerConfig(bind_port=1).bind_port == 1
    with pytest.raises(TypeError, match="ServerConfig has no key 'nope'"):
        ServerConfig(nope=1)


def test_models_are_equal_by_keys_and_class() -> None:
    first, second = server_from_dict({"bindPort": 1}), server_from_dict({"bindPort": 1})
    second.warnings.append("something")
    assert first == second
    assert first != server_from_dict({"bindPort": 2})
    assert first != ServerConfig
    assert PROXY_TYPES["stcp"](type="x") != PROXY_TYPES["sudp"](type="x")


def test_every_tagged_model_knows_its_own_type() -> None:
    tables: list[dict[str, type[Tagged]]] = [PROXY_TYPES, VISITOR_TYPES]
    tables += [CLIENT_PLUGINS, VISITOR_PLUGINS]
    for table in tables:
        for tag, model in table.items():
            assert model().type == tag
            assert model.variants() == table


@pytest.mark.parametrize(
    ("ports", "inside", "outside"),
    [
        (PortRange(start=10, end=12), [10, 11, 12], [9, 13]),
        (PortRange(single=5), [5], [4, 6, 0]),
        (PortRange(single=5, start=10, end=12), [5], [10]),
        (PortRange(start=3, end=2), [], [2, 3]),
    ],
)
def test_port_ranges_include_both_ends(
    ports: PortRange, inside: list[int], outside: list[int]
) -> None:
    assert all(port in ports for port in inside)
    assert not any(port in ports for port in outside)


def test_the_server_does_not_load_what_only_some_files_need() -> None:
    code = (
        "import sys, pyfrp.config as c; c.load_server(sys.argv[1]);"
        "heavy = {'yaml', 'pydantic', 'tomli_w', 'difflib', 'json', 'pyfrp.config.client',"
        "'pyfrp.config.plugins', 'pyfrp.config.template', 'pyfrp.config.hints', 'asyncio'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
