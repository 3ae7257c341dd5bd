"""What is written loads back equal, and holds nothing that need not be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyfrp.config import client_from_dict, dump_toml, load_client, load_server, server_from_dict
from pyfrp.config.base import Key, Model, Shape, Tagged, keys_of
from pyfrp.config.client import ClientConfig
from pyfrp.config.server import ServerConfig

# A busy machine must not fail a test: what is slow is bounded by the runner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# What must hold one of a few words, or is about other files.
WORDS: dict[str, list[Any]] = {
    "auth.method": ["token"],
    "auth.additionalScopes": [[], ["HeartBeats"], ["HeartBeats", "NewWorkConns"]],
    "log.level": ["info", "debug"],
    "log.format": ["text", "json"],
    "transport.protocol": ["tcp", "kcp", "wss", "auto"],
    "transport.auto.ladder": [["tcp"], ["wss:443", "websocket+proxy"]],
    "transport.tls.pinnedSHA256": [[]],
    "transport.connectServerLocalIP": ["", "127.0.0.1"],
    "transport.proxyURL": ["", "http://user:word@proxy.example:3128", "socks5://[::1]:1080"],
    "dnsServer": ["", "192.0.2.53", "[::1]:5353"],
    "transport.wireProtocol": ["v1", "v2"],
    "transport.bandwidthLimit": ["", "5MB"],
    "transport.bandwidthLimitMode": ["client", "server"],
    "transport.proxyProtocolVersion": ["", "v1"],
    "healthCheck.type": ["", "tcp"],
    "vhostHTTPErrorStyle": ["gateway", "frp"],
    "multiplexer": ["httpconnect"],
    "protocol": ["quic", "kcp"],
    "customDomains": [["a.example"]],
    "serverName": ["server"],
    "enabled": [True],
    "annotations": [{}, {"a.b/c": "x"}],
    "ops": [[], ["Login"]],
    "virtualNet.address": [""],
}
LEFT_OUT = {"includes", "start", "tokenSource", "tls", "oidc"}
PATHS = {"localPath", "unixPath", "localAddr"}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(0, 65535)


def values_of(key: Key, dotted: str) -> st.SearchStrategy[Any]:
    """Values that a file may hold for a key."""
    for end, words in WORDS.items():
        if dotted == end or dotted.endswith(f".{end}"):
            return st.sampled_from(words)
    match key.shape:
        case Shape.INT:
            return st.integers(1, 65535) if key.name == "bindPort" else numbers
        case Shape.STR:
            return texts.filter(bool) if key.name in PATHS else texts
        case Shape.BOOL:
            return st.booleans()
        case Shape.STR_LIST:
            return st.lists(texts, max_size=2)
        case Shape.STR_MAP:
            return st.dictionaries(texts, texts, max_size=2)
        case Shape.BOOL_MAP:
            return st.dictionaries(texts, st.booleans(), max_size=2)
        case Shape.MODEL:
            assert key.model is not None
            return tables_of(key.model, dotted)
        case Shape.MODEL_LIST:
            assert key.model is not None
            if not issubclass(key.model, Tagged):
                return st.lists(tables_of(key.model, dotted), max_size=2)
            return st.lists(
                tables_of(key.model, dotted), max_size=2, unique_by=lambda table: table["name"]
            )


def tables_of(model: type[Model], dotted: str = "") -> st.SearchStrategy[dict[str, Any]]:
    """Tables that a file may hold for a model."""
    if issubclass(model, Tagged) and model.variants() and model not in model.variants().values():
        return st.sampled_from(sorted(model.variants())).flatmap(
            lambda tag: one_of_a_kind(model.variants()[tag], dotted, tag)
        )
    return one_of_a_kind(model, dotted, None)


def one_of_a_kind(
    model: type[Model], dotted: str, tag: str | None
) -> st.SearchStrategy[dict[str, Any]]:
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for key in keys_of(model).values():
        if key.name in LEFT_OUT and not (key.name == "tls" and not key.optional):
            continue
        strategy = values_of(key, f"{dotted}.{key.name}" if dotted else key.name)
        needed = ("name", "serverName", "customDomains", "multiplexer", *PATHS)
        if key.name == "name" and tag is not None:
            strategy = texts.filter(bool)
        if key.name == "type" and tag is not None:
            strategy = st.just(tag)
        must = tag is not None and (key.name in ("type", *needed))
        must = must or (dotted == "visitors" and key.name == "bindPort")
        (required if must else optional)[key.name] = strategy
    return st.fixed_dictionaries(required, optional=optional)


def together(data: dict[str, Any]) -> bool:
    """Tell whether the drawn heartbeats go together, which is all that may be wrong."""
    transport = data.get("transport", {})
    mux = transport.get("tcpMux", True)
    timeout = transport.get("heartbeatTimeout") or (-1 if mux else 90)
    interval = transport.get("heartbeatInterval") or (-1 if mux else 30)
    return not 0 < timeout < interval


def apart(data: dict[str, Any]) -> bool:
    """Tell whether the drawn ports differ, as those of different protocols have to."""
    names = ("bindPort", "vhostHTTPPort", "vhostHTTPSPort", "tcpmuxHTTPConnectPort")
    ports = [port for name in names if (port := data.get(name))]
    return len(set(ports)) == len(ports)


@unhurried
@given(data=tables_of(ServerConfig))
def test_a_written_server_file_loads_back_equal(
    data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assume(apart(data))
    cfg = server_from_dict(data)
    path = tmp_path_factory.getbasetemp() / "frps.toml"
    path.write_text(dump_toml(cfg).replace("{{", '{{"{{"}}'), encoding="utf-8", newline="")
    assert load_server(path) == cfg


@unhurried
@given(data=tables_of(ClientConfig))
def test_a_written_client_file_loads_back_equal(
    data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assume(together(data))
    cfg = client_from_dict(data)
    path = tmp_path_factory.getbasetemp() / "frpc.toml"
    path.write_text(dump_toml(cfg).replace("{{", '{{"{{"}}'), encoding="utf-8", newline="")
    assert load_client(path) == cfg


def test_defaults_are_not_written() -> None:
    assert dump_toml(server_from_dict({})) == ""
    assert dump_toml(client_from_dict({})) == ""


def test_what_follows_from_other_keys_is_not_written() -> None:
    data = {"bindAddr": "::1", "transport": {"tcpMux": False, "tls": {"trustedCaFile": "x"}}}
    text = dump_toml(server_from_dict(data))
    assert "proxyBindAddr" not in text
    assert "heartbeat" not in text
    assert "force" not in text
    text = dump_toml(client_from_dict({"serverAddr": "h", "transport": {"tcpMux": False}}))
    assert text == 'serverAddr = "h"\n\n[transport]\ntcpMux = false\n'


def test_the_token_of_a_file_stays_there(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret")
    file = {"path": str(tmp_path / "token")}
    cfg = server_from_dict({"auth": {"tokenSource": {"type": "file", "file": file}}})
    text = dump_toml(cfg)
    assert "s3cret" not in text
    (tmp_path / "frps.toml").write_text(text)
    assert load_server(tmp_path / "frps.toml") == cfg


def test_included_proxies_are_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[[proxies]]\nname = "a"\ntype = "tcp"\n')
    cfg = client_from_dict({"includes": [f"{tmp_path}/x.toml"]})
    assert dump_toml(cfg) == 'proxies = [\n    { type = "tcp", name = "a" },\n]\n'


def test_the_user_of_visitors_is_not_written_twice() -> None:
    visitor = {"name": "v", "type": "stcp", "serverName": "s", "bindPort": 1}
    text = dump_toml(client_from_dict({"user": "alice", "visitors": [visitor]}))
    assert text.count("alice") == 1


def test_assigned_attributes_are_written() -> None:
    cfg = server_from_dict({})
    cfg.bind_port = 1234
    cfg.transport.tls.cert_file = "c"
    cfg.transport.heartbeat_timeout = 5
    loaded = dump_toml(cfg)
    assert "bindPort = 1234" in loaded
    assert 'certFile = "c"' in loaded
    assert "heartbeatTimeout = 5" in loaded
