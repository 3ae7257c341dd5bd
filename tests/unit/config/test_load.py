"""From a file to a whole configuration: completion, includes, filters, secrets, warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyfrp.config import (
    check_supported,
    client_from_dict,
    detect_role,
    load_client,
    load_server,
    server_from_dict,
    wire_name,
)
from pyfrp.config.complete import MAX_TOKEN_FILE_BYTES
from pyfrp.config.validate import parse_bandwidth
from pyfrp.errors import ConfigError

# --- defaults that depend on other keys ---------------------------------------------------


@pytest.mark.parametrize(
    ("transport", "timeout"),
    [
        ({}, -1),
        ({"tcpMux": False}, 90),
        ({"heartbeatTimeout": 30}, 30),
        ({"heartbeatTimeout": -5, "tcpMux": False}, -5),
    ],
)
def test_server_heartbeats_depend_on_the_mux(transport: dict[str, Any], timeout: int) -> None:
    assert server_from_dict({"transport": transport}).transport.heartbeat_timeout == timeout


@pytest.mark.parametrize(
    ("transport", "interval", "timeout"),
    [
        ({}, -1, -1),
        ({"tcpMux": False}, 30, 90),
        ({"heartbeatTimeout": 90}, -1, 90),
        ({"heartbeatInterval": 5, "heartbeatTimeout": 5}, 5, 5),
    ],
)
def test_client_heartbeats_depend_on_the_mux(
    transport: dict[str, Any], interval: int, timeout: int
) -> None:
    cfg = client_from_dict({"transport": transport})
    assert cfg.transport.heartbeat_interval == interval
    assert cfg.transport.heartbeat_timeout == timeout


def test_proxies_bind_where_the_server_binds() -> None:
    assert server_from_dict({"bindAddr": "127.0.0.1"}).proxy_bind_addr == "127.0.0.1"
    both = server_from_dict({"bindAddr": "127.0.0.1", "proxyBindAddr": "::1"})
    assert both.proxy_bind_addr == "::1"


def test_a_trusted_ca_forces_tls() -> None:
    tls = {"trustedCaFile": "ca.pem", "force": False}
    assert server_from_dict({"transport": {"tls": tls}}).transport.tls.force


def test_wss_turns_tls_on() -> None:
    transport = {"protocol": "wss", "tls": {"enable": False}}
    assert client_from_dict({"transport": transport}).transport.tls.enable


def test_the_expected_name_is_the_servers_address() -> None:
    assert client_from_dict({"serverAddr": "h"}).transport.tls.server_name == "h"
    tls = {"serverName": "n"}
    cfg = client_from_dict({"serverAddr": "h", "transport": {"tls": tls}})
    assert cfg.transport.tls.server_name == "n"


def test_visitors_look_for_proxies_of_their_own_user() -> None:
    visitor = {"name": "v", "type": "stcp", "serverName": "s", "bindPort": 1}
    other = {**visitor, "name": "w", "serverUser": "bob"}
    cfg = client_from_dict({"user": "alice", "visitors": [visitor, other]})
    assert [v.server_user for v in cfg.visitors] == ["alice", "bob"]


def test_names_on_the_wire_carry_the_user() -> None:
    assert wire_name("alice", "web") == "alice.web"
    assert wire_name("", "web") == "web"


# --- includes, start, enabled --------------------------------------------------------------

PROXY = '[[proxies]]\nname = "{}"\ntype = "tcp"\nlocalPort = 1\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_in(path: Path) -> list[str]:
    return [proxy.name for proxy in load_client(path).proxies]


def test_included_files_add_their_proxies_in_order_of_name(here: Path) -> None:
    (here / "confd").mkdir()
    (here / "confd" / "dir.toml").mkdir()
    for name in ("b.toml", "a.toml", "c.yaml", ".d.toml"):
        (here / "confd" / name).write_text(PROXY.format(name))
    main = here / "frpc.toml"
    main.write_text('includes = ["./confd/*.toml"]\n' + PROXY.format("main"))
    assert names_in(main) == ["main", ".d.toml", "a.toml", "b.toml"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("?.toml", ["a.toml", "b.toml"]),
        ("[a]*", ["a.toml"]),
        ("[^a].toml", ["b.toml"]),
        ("b.toml", ["b.toml"]),
        ("*.none", []),
        ("", []),
    ],
)
def test_patterns_are_those_of_a_shell(here: Path, pattern: str, found: list[str]) -> None:
    (here / "sub").mkdir()
    for name in ("a.toml", "b.toml", "cc.toml"):
        (here / "sub" / name).write_text(PROXY.format(name))
    main = here / "frpc.toml"
    main.write_text(f'includes = ["sub/{pattern}"]\n')
    assert names_in(main) == found


def test_includes_are_relative_to_the_working_directory(here: Path) -> None:
    (here / "etc").mkdir()
    (here / "etc" / "x.toml").write_text(PROXY.format("wrong"))
    (here / "x.toml").write_text(PROXY.format("right"))
    main = here / "etc" / "frpc.toml"
    main.write_text('includes = ["x.toml"]\n')
    assert names_in(main) == ["right"]


def test_other_keys_of_included_files_are_checked_and_ignored(here: Path) -> None:
    (here / "x.yaml").write_text("user: other\nincludes: ['y*']\nlog: {level: nonsense}\n")
    (here / "y.toml").write_text(PROXY.format("not-followed"))
    main = here / "frpc.toml"
    main.write_text('includes = ["x.yaml"]\n')
    cfg = load_client(main)
    assert (cfg.user, cfg.proxies, cfg.log.level) == ("", [], "info")


def test_included_files_are_templates_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_NAME", "from-env")
    (here / "x.toml").write_text(PROXY.format("{{ .Envs.PROXY_NAME }}"))
    main = here / "frpc.toml"
    main.write_text('includes = ["x.toml"]\n')
    assert names_in(main) == ["from-env"]


def test_a_fault_in_an_included_file_names_that_file(here: Path) -> None:
    (here / "x.toml").write_text("foo = 1\n")
    main = here / "frpc.toml"
    main.write_text('includes = ["x.toml"]\n')
    with pytest.raises(ConfigError) as caught:
        load_client(main)
    path = here / "x.toml"
    start = f'load additional config from {path} error: {path}:1: unknown field "foo"'
    assert str(caught.value).startswith(start)
    assert (caught.value.path, caught.value.line) == (str(path), 1)


def test_a_bad_proxy_of_an_included_file_is_found_there(here: Path) -> None:
    (here / "x.toml").write_text(PROXY.format("a").replace("= 1", "= 70000"))
    main = here / "frpc.toml"
    main.write_text('includes = ["x.toml"]\n')
    with pytest.raises(ConfigError, match=r"x.toml:4: proxy a: localPort"):
        load_client(main)


def test_what_is_not_supported_is_found_in_the_included_file(here: Path) -> None:
    (here / "x.toml").write_text(PROXY.format("a") + 'plugin.type = "virtual_net"\n')
    main = here / "frpc.toml"
    main.write_text('includes = ["x.toml"]\n')
    with pytest.raises(
        ConfigError, match=r'x.toml:\d: proxy a: plugin.type = "virtual_net" is not'
    ):
        check_supported(load_client(main))


def test_names_are_unique_over_all_files(here: Path) -> None:
    (here / "x.toml").write_text(PROXY.format("a"))
    main = here / "frpc.toml"
    main.write_text('includes = ["x.toml"]\n' + PROXY.format("a"))
    with pytest.raises(ConfigError, match=r"x.toml:2: proxy name \[a\] is duplicated"):
        load_client(main)


def test_disabled_entries_count_as_duplicates_too() -> None:
    proxy = {"name": "a", "type": "tcp"}
    with pytest.raises(ConfigError, match="duplicated"):
        client_from_dict({"proxies": [proxy, {**proxy, "enabled": False}]})


def test_a_proxy_and_a_visitor_may_share_a_name() -> None:
    visitor = {"name": "a", "type": "stcp", "serverName": "s", "bindPort": 1}
    proxy = {"name": "a", "type": "tcp"}
    cfg = client_from_dict({"proxies": [proxy], "visitors": [visitor]})
    assert [cfg.proxies[0].name, cfg.visitors[0].name] == ["a", "a"]


def test_start_and_enabled_leave_out_entries_before_they_are_checked() -> None:
    proxies: list[dict[str, Any]] = [
        {"name": "kept", "type": "tcp"},
        {"name": "unlisted", "type": "tcp", "localPort": 70000},
        {"name": "off", "type": "tcp", "localPort": 70000, "enabled": False},
    ]
    visitors = [{"name": "v", "type": "stcp"}]
    data = {"start": ["kept", "off", "nope"], "proxies": proxies, "visitors": visitors}
    cfg = client_from_dict(data)
    assert [proxy.name for proxy in cfg.proxies] == ["kept"]
    assert cfg.visitors == []


# --- tokens ---------------------------------------------------------------------------------


def source(path: Path) -> dict[str, Any]:
    return {"auth": {"tokenSource": {"type": "file", "file": {"path": str(path)}}}}


def test_the_token_of_a_file_is_trimmed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("  secret \n\n")
    for make in (server_from_dict, client_from_dict):
        assert make(source(tmp_path / "token")).auth.token == "secret"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff", "the file must hold text in UTF-8"),
        (b"x" * (MAX_TOKEN_FILE_BYTES + 1), "longer than 65536 bytes"),
    ],
)
def test_a_token_file_must_hold_a_token(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "token").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        server_from_dict(source(tmp_path / "token"))


def test_a_token_source_that_runs_a_program_needs_leave() -> None:
    data = {"auth": {"tokenSource": {"type": "exec", "exec": {"command": "echo"}}}}
    with pytest.raises(ConfigError, match="unsafe feature"):
        server_from_dict(data)
    cfg = server_from_dict(data, allow_unsafe=["TokenSourceExec"])
    assert cfg.auth.token == ""
    assert cfg.warnings == []


# --- warnings -------------------------------------------------------------------------------


def test_an_empty_token_is_warned_about() -> None:
    assert any("auth.token is empty" in text for text in server_from_dict({}).warnings)
    assert any("auth.token is empty" in text for text in client_from_dict({}).warnings)


def test_a_token_is_not_warned_about() -> None:
    assert server_from_dict({"auth": {"token": "x"}}).warnings == []
    assert client_from_dict({"auth": {"token": "x"}}).warnings == []


def test_tls_files_without_tls_are_warned_about() -> None:
    tls = {"enable": False, "certFile": "c", "keyFile": "k", "trustedCaFile": "t"}
    cfg = client_from_dict({"auth": {"token": "x"}, "transport": {"tls": tls}})
    assert cfg.warnings == [
        f"transport.tls.{key} is invalid when transport.tls.enable is false"
        for key in ("certFile", "keyFile", "trustedCaFile")
    ]


def test_a_server_port_that_cannot_be_is_warned_about_only() -> None:
    cfg = client_from_dict({"auth": {"token": "x"}, "serverPort": 70000})
    (warning,) = cfg.warnings
    assert "serverPort 70000" in warning


def test_a_secret_proxy_without_a_secret_is_warned_about() -> None:
    proxies = [{"name": "s", "type": "stcp", "localPort": 1}, {"name": "t", "type": "tcp"}]
    cfg = client_from_dict({"auth": {"token": "x"}, "proxies": proxies})
    (warning,) = cfg.warnings
    assert warning.startswith("proxy s: secretKey is empty")


def test_a_limit_that_the_server_cannot_keep_is_warned_about() -> None:
    def table(name: str, mode: str) -> dict[str, Any]:
        limit = {"bandwidthLimit": "1MB", "bandwidthLimitMode": mode}
        return {"name": name, "type": "xtcp", "secretKey": "s", "localPort": 1, "transport": limit}

    proxies = [table("a", "server"), table("b", "client")]
    (warning,) = client_from_dict({"auth": {"token": "x"}, "proxies": proxies}).warnings
    assert warning.startswith("proxy a: a bandwidthLimit of an xtcp proxy is kept by the client")


@pytest.mark.parametrize("kind", ["http", "https", "tcpmux"])
@pytest.mark.parametrize(
    "domain",
    [
        *("llm.local:8081", "http://llm.local", "llm.local/v1", "llm.local.", " llm.local", ""),
        *("b\u00fccher.example", "a..b", "*.local", "a.*.b", "*.*.b.c", "a*.b.c"),
    ],
)
def test_a_domain_that_no_request_can_name_is_warned_about(kind: str, domain: str) -> None:
    proxy = {"name": "web", "type": kind, "localPort": 1, "customDomains": ["ok.example", domain]}
    if kind == "tcpmux":
        proxy["multiplexer"] = "httpconnect"
    (warning,) = client_from_dict({"auth": {"token": "x"}, "proxies": [proxy]}).warnings
    assert warning.startswith(f'proxy web: no request can name the domain "{domain}"')


@pytest.mark.parametrize(
    "domain",
    [
        *("llm.local", "LLM.Local", "llm", "*", "*.example.com", "xn--bcher-kva.example", "a_b.c"),
        *("203.0.113.7", "::1", "2001:db8::7", "[2001:db8::7]"),
    ],
)
def test_other_domains_are_not_warned_about(domain: str) -> None:
    proxy = {"name": "web", "type": "http", "localPort": 1, "customDomains": [domain]}
    assert client_from_dict({"auth": {"token": "x"}, "proxies": [proxy]}).warnings == []


def test_an_empty_port_range_is_warned_about() -> None:
    cfg = server_from_dict({"auth": {"token": "x"}, "allowPorts": [{"start": 5, "end": 4}]})
    (warning,) = cfg.warnings
    assert "allowPorts[0] is empty" in warning


# --- which role -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "role"),
    [
        ("a.toml", "bindPort = 1", "server"),
        ("a.toml", "vhostHTTPPort = 1\nauth.token = 'x'", "server"),
        ("a.toml", "serverAddr = 'x'", "client"),
        ("a.toml", PROXY.format("a"), "client"),
        ("a.yaml", "visitors: []", "client"),
        ("frps.toml", "auth.token = 'x'", "server"),
        ("my-client.toml", "", "client"),
        ("frps.toml", PROXY.format("a"), "client"),
        ("a.toml", "transport.tls.force = true", "server"),
        ("a.toml", "transport.poolCount = 1", "client"),
    ],
)
def test_the_role_is_told_by_keys_then_by_name(
    tmp_path: Path, name: str, text: str, role: str
) -> None:
    (tmp_path / name).write_text(text)
    assert detect_role(tmp_path / name) == role


def test_a_file_that_could_be_both_needs_a_word(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("auth.token = 'x'")
    with pytest.raises(ConfigError, match="`verify server`"):
        detect_role(tmp_path / "a.toml")


# --- the sample of the README ---------------------------------------------------------------


def test_the_sample_of_both_files_loads(tmp_path: Path) -> None:
    common = 'auth.token = "t"\nlog.level = "info"\nlog.maxDays = 7\n'
    common += "transport.heartbeatTimeout = 90\n"
    server = tmp_path / "frps.toml"
    server.write_text('bindAddr = "0.0.0.0"\nbindPort = 7000\nvhostHTTPPort = 8081\n' + common)
    client = tmp_path / "frpc.toml"
    client.write_text(
        'serverAddr = "203.0.113.7"\nserverPort = 7000\n' + common + "[[proxies]]\n"
        'name = "llm-api"\ntype = "http"\nlocalIP = "127.0.0.1"\nlocalPort = 4000\n'
        'customDomains = ["llm.local"]\n'
    )
    ours, theirs = load_server(server), load_client(client)
    check_supported(ours)
    check_supported(theirs)
    assert ours.warnings == theirs.warnings == []
    assert (ours.vhost_http_port, ours.transport.heartbeat_timeout) == (8081, 90)
    (proxy,) = theirs.proxies
    assert (proxy.name, proxy.type, proxy.local_port) == ("llm-api", "http", 4000)


# --- value types ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("", 0),
        (" ", 0),
        ("5MB", 5 * 1024 * 1024),
        (" 512KB ", 512 * 1024),
        ("1.5KB", 1536),
        ("1e1KB", 10240),
        ("-5MB", 0),
        ("0MB", 0),
        ("infMB", 0),
        ("nanKB", 0),
        (".5KB", 512),
    ],
)
def test_bandwidths_are_bytes_per_second(text: str, rate: int) -> None:
    assert parse_bandwidth(text) == rate


@pytest.mark.parametrize("text", ["5", "5mb", "5 MB", "xMB", "0x5MB", "MB", "5GB", "1_0MB"])
def test_other_bandwidths_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"unit not support|strconv.ParseFloat"):
        parse_bandwidth(text)
