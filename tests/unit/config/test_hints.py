"""Guesses at what an unknown key was meant to be."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfrp.config import ClientConfig, ServerConfig
from pyfrp.config.hints import explain, role_scores, translate_ini
from pyfrp.config.plugins import Socks5Plugin
from pyfrp.config.proxies import HTTPProxyConfig, ProxyTransport, TCPProxyConfig
from pyfrp.config.server import ServerTransport

# A busy machine must not fail a test: what is slow is bounded by the runner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("bindAdr", 'did you mean "bindAddr"?'),
        ("vhost_http_port", 'it is spelled "vhostHTTPPort"'),
        ("subdomainHosts", 'did you mean "subDomainHost"?'),
        ("heartbeatTimeout", "write it as transport.heartbeatTimeout"),
        ("log_file", "write it as log.to"),
        ("authentication_method", "write it as auth.method"),
        ("poolCount", "`transport.poolCount` belongs into the client's file (frpc.toml)"),
        ("user", "`user` belongs into the client's file (frpc.toml)"),
        ("port", "write it as webServer.port"),
        ("zzz", ""),
        ("", ""),
        ("é" * 100, ""),
    ],
)
def test_guesses_at_the_top_of_the_servers_file(key: str, hint: str) -> None:
    assert explain("server", (key,), ServerConfig) == hint


@pytest.mark.parametrize(
    ("place", "model", "hint"),
    [
        (("transport", "poolCount"), ServerTransport, "belongs into the client's file"),
        (("transport", "quic", "x"), ServerTransport, ""),
    ],
)
def test_guesses_within_tables_of_the_server(
    place: tuple[str, ...], model: type[ServerTransport], hint: str
) -> None:
    assert hint in explain("server", place, model)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("bindPort", "`bindPort` belongs into the server's file (frps.toml)"),
        ("subDomainHost", "`subDomainHost` belongs into the server's file (frps.toml)"),
        ("sever_addr", 'did you mean "serverAddr"?'),
        ("customDomains", "write it as customDomains inside a [[proxies]] table"),
        ("tls_enable", "write it as transport.tls.enable"),
        ("force", "`transport.tls.force` belongs into the server's file (frps.toml)"),
    ],
)
def test_guesses_at_the_top_of_the_clients_file(key: str, hint: str) -> None:
    assert explain("client", (key,), ClientConfig) == hint


def test_guesses_within_a_proxy() -> None:
    http, tcp = HTTPProxyConfig, TCPProxyConfig
    place = ("proxies", 3)
    assert "type tcp and udp only" in explain("client", (*place, "remotePort"), http)
    assert explain("client", (*place, "remote_port"), tcp) == 'it is spelled "remotePort"'
    assert "above the first [[proxies]]" in explain("client", (*place, "loginFailExit"), tcp)
    assert explain("client", (*place, "group"), tcp) == "write it as loadBalancer.group"
    transport = (*place, "transport")
    assert "useEncryption" in explain("client", (*transport, "encryption"), ProxyTransport)
    plugin = (*place, "plugin")
    assert "localPath" in explain("client", (*plugin, "localPath"), Socks5Plugin)


@unhurried
@given(
    place=st.lists(st.text(max_size=6) | st.integers(0, 3), max_size=4),
    key=st.text(max_size=12),
    role=st.sampled_from(["server", "client"]),
)
def test_guessing_never_fails(place: list[str | int], key: str, role: str) -> None:
    model = ServerConfig if role == "server" else ClientConfig
    explain(role, (*place, key), model)


def test_roles_are_scored_by_keys_that_only_one_has() -> None:
    assert role_scores({"bindPort": 1, "auth": {"token": "x"}}) == {"server": 1, "client": 0}
    data: dict[str, object] = {"serverAddr": "x", "proxies": [{"name": "a"}], "nope": 1}
    scores = role_scores(data)
    assert scores["client"] > 1
    assert scores["server"] == 0


def test_a_translation_of_ini_is_bounded() -> None:
    lines = translate_ini("[common]\n" + "server_addr = x\n" * 50)
    assert len(lines) == 21
    assert lines[-1] == "..."


def test_a_translation_of_ini_leaves_out_what_has_no_new_name() -> None:
    assert translate_ini("[common]\nno_such_key = 1\nnot a pair\n") == []
