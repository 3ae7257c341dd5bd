"""Flags are read by frp's rules and refused in its words."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfrp.cli import server
from pyfrp.cli.flags import FlagParser, UsageError, integer
from pyfrp.config import ServerConfig
from pyfrp.errors import ConfigError

# A busy machine must not fail a test: what is slow is bounded by the runner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(*argv: str) -> argparse.Namespace:
    flags, words = server.parser().read(argv)
    assert words == []
    return flags


def made(*argv: str) -> ServerConfig:
    return server.config_of(read(*argv))


@pytest.mark.parametrize(
    "argv",
    [
        ["--bind_port", "1"],
        ["--bind-port", "1"],
        ["--bind_port=1"],
        ["--bind-port=1"],
        ["-p", "1"],
        ["-p1"],
        ["-p=1"],
        ["--bind_port", "0x1"],
    ],
)
def test_long_flags_take_dash_and_underscore_and_both_forms_of_values(argv: list[str]) -> None:
    assert made(*argv).bind_port == 1


def test_underscores_of_values_are_kept() -> None:
    assert made("--subdomain_host=a_b").sub_domain_host == "a_b"
    assert made("--subdomain_host", "a_b").sub_domain_host == "a_b"


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--tls_only"], True),
        (["--tls-only=true"], True),
        (["--tls-only=1"], True),
        (["--tls-only=F"], False),
        ([], False),
    ],
)
def test_switches_need_no_value(argv: list[str], value: bool) -> None:
    assert made(*argv).transport.tls.force is value


def test_a_switch_does_not_take_the_next_word() -> None:
    flags, words = server.parser().read(["--tls_only", "verify", "-v", "more"])
    assert flags.tls_only is True
    assert words == ["verify", "more"]


@pytest.mark.parametrize(
    ("argv", "strict"),
    [
        ([], True),
        (["--strict_config"], True),
        (["--strict_config=false"], False),
        (["--strict-config=0"], False),
    ],
)
def test_strict_is_the_default(argv: list[str], strict: bool) -> None:
    assert read(*argv).strict_config is strict


def test_every_flag_of_frps_sets_its_key() -> None:
    cfg = made(
        *("--bind_addr", "127.0.0.1", "--bind_port", "1", "--kcp_bind_port", "2"),
        *("--quic_bind_port", "3", "--proxy_bind_addr", "::1", "--vhost_http_port", "4"),
        *("--vhost_https_port", "5", "--vhost_http_timeout", "6", "--log_file", "f"),
        *("--log_level", "debug", "--log_max_days", "7", "--disable_log_color", "-t", "tok"),
        *("--subdomain_host", "h", "--allow_ports", "1-2,5", "--max_ports_per_client", "8"),
        *("--tls_only", "--enable_prometheus", "--dashboard_port", "9", "--dashboard_user", "u"),
        *("--dashboard_pwd", "p", "--dashboard_addr", "::1", "--dashboard_tls_mode", "true"),
    )
    assert (cfg.bind_addr, cfg.bind_port, cfg.proxy_bind_addr) == ("127.0.0.1", 1, "::1")
    assert (cfg.kcp_bind_port, cfg.quic_bind_port) == (2, 3)
    assert (cfg.vhost_http_port, cfg.vhost_https_port, cfg.vhost_http_timeout) == (4, 5, 6)
    assert (cfg.log.to, cfg.log.level, cfg.log.max_days) == ("f", "debug", 7)
    assert cfg.log.disable_print_color
    assert cfg.auth.token == "tok"
    assert cfg.sub_domain_host == "h"
    assert [ports.bounds for ports in cfg.allow_ports] == [(1, 2), (5, 5)]
    assert cfg.max_ports_per_client == 8
    assert cfg.transport.tls.force
    assert cfg.enable_prometheus
    web = cfg.web_server
    assert (web.addr, web.port, web.user, web.password) == ("::1", 9, "u", "p")


def test_flags_have_defaults_of_their_own() -> None:
    assert made("--bind_addr", "127.0.0.1").proxy_bind_addr == "0.0.0.0"
    web = made("--dashboard_port", "1").web_server
    assert (web.addr, web.user, web.password) == ("0.0.0.0", "admin", "admin")


def test_a_token_on_the_command_line_is_warned_about() -> None:
    assert any("process list" in warning for warning in made("-t", "x").warnings)
    assert not any("process list" in warning for warning in made().warnings)


def test_lists_take_commas_and_repetition() -> None:
    flags = read("--allow-unsafe", "a,b", "--allow_unsafe=c")
    assert flags.allow_unsafe == ["a,b", "c"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["--bind_prt", "1"], "unknown flag: --bind-prt (did you mean --bind-port?)"),
        (["--bind"], "unknown flag: --bind"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["-c"], "flag needs an argument: -c, --config"),
        (["--bind_port"], "flag needs an argument: -p, --bind-port"),
        (
            ["--bind_port", "x"],
            'invalid argument "x" for "-p, --bind-port" flag: strconv.ParseInt: parsing "x": '
            "invalid syntax",
        ),
        (["-p", "9" * 30], "value out of range"),
        (
            ["--allow_ports", "10-5"],
            'invalid argument "10-5" for "--allow-ports" flag: range number is invalid',
        ),
        (
            ["--allow_ports", ""],
            'invalid argument "" for "--allow-ports" flag: range number is invalid, '
            'strconv.ParseInt: parsing "": invalid syntax',
        ),
        (
            ["--tls_only=maybe"],
            'invalid argument "maybe" for "--tls-only" flag: strconv.ParseBool: parsing "maybe": '
            "invalid syntax",
        ),
    ],
)
def test_usage_errors_are_told_as_frp_does(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        server.parser().read(argv)
    assert words in str(caught.value)
    assert caught.value.usage.startswith("usage: pyfrp server")


def test_values_that_no_file_could_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="bindPort: port number 99999 must be in the range"):
        made("-p", "99999")


def test_words_behind_two_dashes_are_no_flags() -> None:
    _, words = server.parser().read(["--", "--tls-only", "x"])
    assert words == ["--tls-only", "x"]


def test_flags_beside_a_file_are_named() -> None:
    assert server.ignored(read("-c", "f", "-p", "1", "--tls_only")) == ["--bind-port", "--tls-only"]
    assert server.ignored(read("-c", "f", "--strict_config=false")) == []


def test_help_lists_every_flag_with_its_value() -> None:
    text = server.parser().format_help()
    assert "-p, --bind-port N " in text
    assert "    --allow-ports RANGES " in text
    assert "    --tls-only " in text
    assert "-v, --version " in text
    assert "Examples:\n  pyfrp server -c frps.toml" in text
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("0", 0), ("00", 0), ("-5", -5), ("0x10", 16), ("0b11", 3), ("1_000", 1000)),
        *(("010", 8), ("-017", -15), ("0_7", 7), ("0o17", 15)),
    ],
)
def test_numbers_are_read_in_gos_notations(text: str, number: int) -> None:
    assert integer(text) == number


@pytest.mark.parametrize("text", ["", " 1", "1\n", "08", "_1", "1__0", "\u0663", "1.0"])
def test_what_is_no_number_to_go_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="invalid syntax"):
        integer(text)


words = st.sampled_from(
    [
        "-c",
        "--bind_port",
        "--tls_only",
        "-v",
        "--",
        "verify",
        "-t",
        "--allow_ports",
        "-",
        "-p7",
        "=",
    ]
)


@unhurried
@given(argv=st.lists(words | st.text(max_size=6), max_size=6))
def test_any_command_line_is_read_or_refused(argv: list[str]) -> None:
    parser: FlagParser = server.parser()
    found: Any = None
    try:
        found, _ = parser.read(argv)
    except UsageError:
        return  # The rule is that nothing else comes out.
    assert found is not None
