"""Parsed text becomes models by frp's rules of types, case and zero."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfrp.config import ClientConfig, ServerConfig, client_from_dict, server_from_dict
from pyfrp.config.decode import Decoder
from pyfrp.config.parse import Document
from pyfrp.config.proxies import HTTPProxyConfig
from pyfrp.errors import ConfigError

# A busy machine must not fail a test: what is slow is bounded by the runner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def faults(model: Any, data: dict[str, Any], *, strict: bool = True) -> list[str]:
    decoder = Decoder(Document(data), strict=strict)
    decoder.decode(model, data)
    return [str(problem) for problem in decoder.problems]


@pytest.mark.parametrize("key", ["bindPort", "BINDPORT", "bindport"])
def test_keys_match_without_regard_to_case(key: str) -> None:
    assert server_from_dict({key: 1}).bind_port == 1


def test_nested_keys_match_without_regard_to_case() -> None:
    cfg = server_from_dict({"WebServer": {"ADDR": "x"}, "TRANSPORT": {"tls": {"FORCE": True}}})
    assert cfg.web_server.addr == "x"
    assert cfg.transport.tls.force


def test_two_spellings_of_a_table_are_merged_and_told() -> None:
    cfg = server_from_dict(
        {
            "Auth": {"token": "a", "oidc": {"audience": "b"}},
            "auth": {"method": "token", "oidc": {"issuer": "c"}},
        }
    )
    assert cfg.auth.token == "a"
    assert (cfg.auth.oidc.audience, cfg.auth.oidc.issuer) == ("b", "c")
    assert any("Auth and auth are the same key" in warning for warning in cfg.warnings)


def test_of_two_spellings_of_a_value_the_last_counts() -> None:
    cfg = client_from_dict({"USER": "a", "user": "b"})
    assert cfg.user == "b"


@pytest.mark.parametrize("value", [0, None])
def test_zero_and_null_mean_the_default(value: int | None) -> None:
    cfg = server_from_dict({"bindPort": value, "transport": {"heartbeatTimeout": value}})
    assert (cfg.bind_port, cfg.transport.heartbeat_timeout) == (7000, -1)


def test_an_empty_string_means_the_default() -> None:
    assert server_from_dict({"bindAddr": ""}).bind_addr == "0.0.0.0"


def test_our_own_zeros_are_values() -> None:
    cfg = server_from_dict({"auth": {"maxClockSkew": 0}, "shutdownTimeout": 0})
    assert (cfg.auth.max_clock_skew, cfg.shutdown_timeout) == (0, 0)


def test_false_is_a_value_where_the_default_is_true() -> None:
    assert not server_from_dict({"transport": {"tcpMux": False}}).transport.tcp_mux


def test_null_within_lists_and_maps_is_the_empty_value() -> None:
    cfg = client_from_dict({"start": [None, "a"], "metadatas": {"a": None}})
    assert cfg.start == ["", "a"]
    assert cfg.metadatas == {"a": ""}


@pytest.mark.parametrize(("value", "number"), [(7000.0, 7000), (1e3, 1000), (-1.0, -1)])
def test_whole_floats_are_integers(value: float, number: int) -> None:
    assert (
        server_from_dict({"transport": {"tcpKeepalive": value}}).transport.tcp_keepalive == number
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2020-01-01", "2020-01-01"),
        ("07:32:00", "07:32:00"),
        ("07:32:00.123", "07:32:00.123"),
        ("2020-01-01T07:32:00", "2020-01-01T07:32:00"),
        ("2020-01-01 07:32:00Z", "2020-01-01T07:32:00Z"),
        ("2020-01-01T07:32:00.50-07:00", "2020-01-01T07:32:00.5-07:00"),
        ("2020-01-01T07:32:10+00:00", "2020-01-01T07:32:10Z"),
    ],
)
def test_times_of_toml_are_text_as_go_writes_it(value: str, text: str) -> None:
    cfg = client_from_dict(tomllib.loads(f"metadatas.at = {value}"))
    assert cfg.metadatas == {"at": text}


def test_keys_of_maps_that_are_no_strings_become_text() -> None:
    data = {"metadatas": {2: "a", True: "b", None: "c", 1.5: "d"}}
    assert set(client_from_dict(data).metadatas) == {"2", "true", "null", "1.5"}


def test_lone_surrogates_are_replaced() -> None:
    cfg = client_from_dict({"user": "a\ud800b", "metadatas": {"\udfff": "\ud800"}})
    assert cfg.user == "a\ufffdb"
    assert cfg.metadatas == {"\ufffd": "\ufffd"}


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (ServerConfig, {"bindPort": "7000"}, 'field "bindPort": cannot unmarshal string into int'),
    (ServerConfig, {"bindPort": "7000"}, "write it without quotes"),
    (ServerConfig, {"bindPort": 7000.5}, "cannot unmarshal number 7000.5 into int"),
    (ServerConfig, {"bindPort": float("inf")}, "cannot unmarshal number inf into int"),
    (ServerConfig, {"bindPort": float("nan")}, "cannot unmarshal number nan into int"),
    (ServerConfig, {"bindPort": True}, "cannot unmarshal bool into int"),
    (ServerConfig, {"bindPort": []}, "cannot unmarshal array into int"),
    (ServerConfig, {"bindPort": {}}, "cannot unmarshal object into int"),
    (ServerConfig, {"bindPort": 2**63}, "cannot unmarshal number into int"),
    (ServerConfig, {"bindAddr": 1}, 'field "bindAddr": cannot unmarshal number into string'),
    (ServerConfig, {"bindAddr": 1}, "write it in quotes"),
    (ServerConfig, {"tcpmuxPassthrough": 1}, "cannot unmarshal number into bool"),
    (ServerConfig, {"tcpmuxPassthrough": "true"}, "write it without quotes"),
    (ServerConfig, {"auth": "x"}, 'field "auth": cannot unmarshal string into table'),
    (ServerConfig, {"auth": {"additionalScopes": "x"}}, "write it in brackets"),
    (ServerConfig, {"auth": {"additionalScopes": [1]}}, 'field "auth.additionalScopes[0]"'),
    (ServerConfig, {"allowPorts": [1]}, 'field "allowPorts[0]": cannot unmarshal number'),
    (ServerConfig, {"allowPorts": {"start": 1}}, "cannot unmarshal object into list of tables"),
    (ClientConfig, {"metadatas": {"a": 1}}, 'field "metadatas.a": cannot unmarshal number'),
    (ClientConfig, {"featureGates": {"a": "x"}}, "cannot unmarshal string into bool"),
    (ClientConfig, {"proxies": [{"type": 1}]}, 'field "proxies[0].type": cannot unmarshal number'),
    (ClientConfig, {"proxies": [None]}, "decode proxy at index 0: unknown proxy type: "),
    (ClientConfig, {"proxies": [{"type": "x"}]}, "unknown proxy type: x"),
    (ClientConfig, {"visitors": [{"type": "tcp"}]}, "unknown visitor type: tcp"),
    (ClientConfig, {"proxies": [{"type": "tcp", "plugin": {}}]}, "plugin type is empty"),
    (
        ClientConfig,
        {"proxies": [{"type": "tcp", "plugin": {"type": "foo"}}]},
        "unknown plugin type: foo",
    ),
    (
        ClientConfig,
        {"visitors": [{"type": "stcp", "plugin": {"type": "foo"}}]},
        "unknown visitor plugin type: foo",
    ),
]


@pytest.mark.parametrize(("model", "data", "text"), WRONG)
def test_wrong_types_are_named_with_their_key(model: Any, data: dict[str, Any], text: str) -> None:
    assert text in "\n".join(faults(model, data))


def test_all_faults_are_found_in_one_run() -> None:
    data = {"bindPort": "x", "foo": 1, "auth": {"token": 1, "bar": 2}, "allowPorts": [{"baz": 1}]}
    assert len(faults(ServerConfig, data)) == 5


def test_unknown_keys_are_faults_at_every_depth() -> None:
    plugin = {"type": "http_proxy", "zoo": 1}
    data = {"foo": 1, "proxies": [{"type": "http", "bar": 1, "plugin": plugin}]}
    assert [text.partition(" (")[0] for text in faults(ClientConfig, data)] == [
        'unknown field "foo"',
        'unknown field "bar"',
        'unknown field "zoo"',
    ]


def test_unknown_keys_are_ignored_when_not_strict() -> None:
    data = {"foo": 1, "proxies": [{"type": "http", "bar": 1}], "auth": {"x": {"y": 1}}}
    assert faults(ClientConfig, data, strict=False) == []


def test_values_never_appear_in_messages() -> None:
    for text in faults(ClientConfig, {"auth": {"token": ["s3cret"]}, "loginFailExit": "s3cret"}):
        assert "s3cret" not in text


def test_the_type_key_matches_without_regard_to_case() -> None:
    decoder = Decoder(Document({}), strict=True)
    cfg = decoder.decode(ClientConfig, {"proxies": [{"TYPE": "http", "name": "a"}]})
    assert isinstance(cfg.proxies[0], HTTPProxyConfig)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["auth", "token", "proxies", "type", "name", "plugin", "set", "x"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@unhurried
@given(
    data=st.dictionaries(
        st.sampled_from(["auth", "proxies", "visitors", "bindPort", "allowPorts", "transport"])
        | st.text(max_size=4),
        values,
        max_size=6,
    ),
    strict=st.booleans(),
)
def test_any_data_is_decoded_or_refused(data: dict[str, Any], strict: bool) -> None:
    for make in (server_from_dict, client_from_dict):
        try:
            make(data, strict=strict)
        except ConfigError:
            pass  # The rule is that nothing else comes out.
