"""One proxy or visitor on the command line: which flags there are, and what they set."""

from __future__ import annotations

import csv
import io
import re
import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfrp.cli import oneline, server
from pyfrp.cli.flags import FlagParser, UsageError, pairs, strings
from pyfrp.config import ClientConfig, client_from_dict
from pyfrp.config.proxies import PROXY_TYPES
from pyfrp.config.support import unsupported
from pyfrp.config.visitors import VISITOR_TYPES
from pyfrp.errors import ConfigError
from tests.support.official import require_official

# A busy machine must not fail a test: what is slow is bounded by the runner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LINES = [*((tag,) for tag in PROXY_TYPES), *((tag, "visitor") for tag in VISITOR_TYPES)]
# What a line needs beside its type to describe something.
NEEDED = {
    **{tag: ["-n", "a"] for tag in PROXY_TYPES},
    **{tag: ["-n", "a", "-d", "d"] for tag in ("http", "https")},
    "tcpmux": ["-n", "a", "-d", "d", "--mux", "httpconnect"],
    "visitor": ["-n", "a", "--server_name", "p", "--bind_port", "1"],
}


def line_of(*argv: str) -> oneline.OneLine:
    clients_own = FlagParser("pyfrp client", "", "")
    server.add_common(clients_own)
    place = clients_own.first_word(argv)
    assert place is not None
    line = oneline.find(argv, place)
    assert line is not None
    return line


def made(*argv: str) -> ClientConfig:
    line = line_of(*argv)
    return line.config_of(*line.parser.read(line.argv))


def described(*argv: str) -> Any:
    """The one proxy or visitor of a command line."""
    cfg = made(*argv)
    (entry,) = [*cfg.proxies, *cfg.visitors]
    return entry


# --- what the flags set -----------------------------------------------------------------------


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_flags_of_the_client_set_its_keys(line: tuple[str, ...]) -> None:
    cfg = made(
        *(*line, *NEEDED[line[-1]], "-s", "h", "-P", "1", "-p", "quic", "-t", "tok", "-u", "me"),
        *(
            "--client-id",
            "c",
            "--tls_enable=false",
            "--tls_server_name",
            "n",
            "--dns_server",
            "::1",
        ),
        *("--log_file", "f", "--log_level", "debug", "--log_max_days", "-7", "--disable_log_color"),
    )
    assert (cfg.server_addr, cfg.server_port, cfg.transport.protocol) == ("h", 1, "quic")
    assert (cfg.auth.token, cfg.user, cfg.client_id, cfg.dns_server) == ("tok", "me", "c", "::1")
    assert (cfg.transport.tls.enable, cfg.transport.tls.server_name) == (False, "n")
    assert (cfg.log.to, cfg.log.level, cfg.log.max_days) == ("f", "debug", -7)
    assert cfg.log.disable_print_color


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_defaults_are_those_of_frps_flags(line: tuple[str, ...]) -> None:
    cfg = made(*line, *NEEDED[line[-1]])
    (entry,) = [*cfg.proxies, *cfg.visitors]
    assert (cfg.server_addr, cfg.server_port, cfg.transport.protocol) == ("127.0.0.1", 7000, "tcp")
    assert (cfg.user, cfg.auth.token, cfg.transport.tls.enable) == ("", "", True)
    assert (cfg.log.to, cfg.log.level, cfg.log.max_days) == ("console", "info", 3)
    assert not cfg.log.disable_print_color
    assert (entry.type, entry.name) == (line[0], "a")
    assert not entry.transport.use_encryption
    assert not entry.transport.use_compression
    if cfg.proxies:
        assert (entry.local_ip, entry.local_port) == ("127.0.0.1", 0)
        assert entry.transport.bandwidth_limit_mode == "client"
    else:
        assert entry.bind_addr == "127.0.0.1"


@pytest.mark.parametrize("tag", PROXY_TYPES)
def test_the_flags_of_all_proxies_set_their_keys(tag: str) -> None:
    proxy = described(
        *(tag, *NEEDED[tag], "-i", "::1", "-l", "2", "--ue", "--uc", "--bandwidth_limit", "5MB"),
        *("--bandwidth_limit_mode", "server", "--metadatas", "a=1,b=2", "--annotations", "c=3"),
    )
    assert (proxy.local_ip, proxy.local_port) == ("::1", 2)
    transport = proxy.transport
    assert (transport.use_encryption, transport.use_compression) == (True, True)
    assert (transport.bandwidth_limit, transport.bandwidth_limit_mode) == ("5MB", "server")
    assert (proxy.metadatas, proxy.annotations) == ({"a": "1", "b": "2"}, {"c": "3"})


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["tcp", "-r", "6000"], {"remote_port": 6000}),
        (["udp", "--remote_port=6000"], {"remote_port": 6000}),
        (["http", "-d", "a,b", "-d", "c"], {"custom_domains": ["d", "a", "b", "c"]}),
        (["https", "--custom_domain", "a", "--sd", "s"], {"subdomain": "s"}),
        (["http", "--locations", "/a,/b"], {"locations": ["/a", "/b"]}),
        (["http", "--http_user", "u", "--http_pwd", "p"], {"http_user": "u", "http_password": "p"}),
        (["http", "--host_header_rewrite", "h"], {"host_header_rewrite": "h"}),
        (["tcpmux", "--http_user", "u", "--http-pwd=p"], {"http_password": "p"}),
        (["tcpmux"], {"multiplexer": "httpconnect"}),
        (["stcp", "--sk", "s", "--allow_users", "*"], {"secret_key": "s", "allow_users": ["*"]}),
        (["sudp", "--sk", "s"], {"secret_key": "s"}),
        (["xtcp", "--sk", "s", "--allow-users=a,b"], {"allow_users": ["a", "b"]}),
        (["stcp", "visitor", "--bind_addr", "::1"], {"bind_addr": "::1", "bind_port": 1}),
        (["sudp", "visitor", "--server-user", "u"], {"server_user": "u", "server_name": "p"}),
        (["xtcp", "visitor", "--sk", "s", "--bind-port", "-1"], {"bind_port": -1}),
    ],
    ids=" ".join,
)
def test_the_flags_of_a_type_set_its_keys(argv: list[str], expected: dict[str, Any]) -> None:
    words = 2 if "visitor" in argv else 1
    entry = described(*argv[:words], *NEEDED[argv[words - 1]], *argv[words:])
    assert {name: getattr(entry, name) for name in expected} == expected


@pytest.mark.parametrize("tag", VISITOR_TYPES)
def test_the_flags_of_all_visitors_set_their_keys(tag: str) -> None:
    visitor = described(tag, "visitor", *NEEDED["visitor"], "--ue", "--uc", "--sk", "s")
    assert visitor.transport.use_encryption
    assert visitor.transport.use_compression
    assert visitor.secret_key == "s"


@pytest.mark.parametrize(
    "argv",
    [
        ["tcp", "-n", "a", "-s", "tcp"],
        ["-n", "a", "tcp", "-s", "tcp"],
        ["-n=a", "--server_addr", "tcp", "tcp"],
        ["-na", "--strict_config", "-c", "tcp", "tcp", "-s=tcp"],
    ],
)
def test_the_type_is_the_first_word_that_no_flag_takes(argv: list[str]) -> None:
    cfg = made(*argv)
    assert (cfg.server_addr, cfg.proxies[0].name) == ("tcp", "a")


@pytest.mark.parametrize(
    "argv",
    [
        ["stcp", "visitor", *NEEDED["visitor"]],
        ["stcp", "-n", "a", "--server-name=p", "visitor", "--bind_port", "1"],
        ["-n", "a", "stcp", "--bind_port", "1", "visitor", "--server-name", "p"],
    ],
)
def test_flags_may_stand_before_the_word_visitor(argv: list[str]) -> None:
    assert described(*argv) == described("stcp", "visitor", *NEEDED["visitor"])


def test_a_value_may_look_like_a_flag() -> None:
    cfg = made("tcp", "-n", "--ue", "-t", "-c", "--user", "-", "-i", "")
    assert (cfg.proxies[0].name, cfg.auth.token, cfg.user) == ("--ue", "-c", "-")
    assert not cfg.proxies[0].transport.use_encryption
    assert cfg.proxies[0].local_ip == "127.0.0.1"


# --- what does nothing ------------------------------------------------------------------------


def test_words_that_are_no_flags_do_nothing_and_are_not_shown() -> None:
    cfg = made("tcp", "-n", "a", "-t", "not", "quoted", "--tls_enable", "false")
    assert cfg.transport.tls.enable
    (warning,) = [text for text in cfg.warnings if "belong to no flag" in text]
    assert warning.startswith("2 of the words")
    assert "quoted" not in warning


def test_files_are_not_read_and_that_is_said() -> None:
    cfg = made("tcp", "-n", "a", "-c", "/no/such/file", "--config_dir", "x", "--allow-unsafe=y")
    found = [text for text in cfg.warnings if "no file is read" in text]
    assert [text.split()[0] for text in found] == ["--config", "--config-dir"]


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        (["tcp", "-n", "a", "-t", "x"], ["--token"]),
        (["http", "-n", "a", "-d", "d", "--http_pwd", "x"], ["--http-pwd"]),
        (["stcp", "visitor", *NEEDED["visitor"], "--sk", "x", "-t", "y"], ["--token", "--sk"]),
        (["tcp", "-n", "a", "-t", ""], []),
    ],
)
def test_secrets_on_the_command_line_are_warned_about(argv: list[str], flags: list[str]) -> None:
    found = [text for text in made(*argv).warnings if "process list" in text]
    assert [text.split()[0] for text in found] == flags


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tcp"], "name should not be empty"),
        (["tcp", "-n", "a", "-l", "99999"], "port number 99999 must be in the range 0..65535"),
        (["tcp", "-n", "a", "--log_level", "x"], "invalid log level, optional values are [trace"),
        (["tcp", "-n", "a", "-p", "x"], "invalid transport.protocol, optional values are [tcp"),
        (
            ["tcp", "-n", "a", "--bandwidth_limit_mode", "x"],
            "bandwidth limit mode should be client or server",
        ),
        (["tcp", "-n", "a", "--annotations", "a b=c"], "annotation key a b is invalid: "),
        (["http", "-n", "a"], "subdomain and custom domains should not be both empty"),
        (["tcpmux", "-n", "a", "-d", "d"], "not support multiplexer: "),
        (["tcpmux", "-n", "a", "-d", "d", "--mux", "x"], "not support multiplexer: x"),
        (["stcp", "visitor"], "name is required"),
        (["xtcp", "visitor", "-n", "a"], "server name is required"),
        (["sudp", "visitor", "-n", "a", "--server_name", "b"], "bind port is required"),
    ],
    ids=" ".join,
)
def test_faults_are_told_bare_as_frp_does(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(*argv)
    text = str(caught.value)
    assert text.removeprefix("localPort: localPort: ").startswith(words)
    assert "proxies[0]" not in text
    assert "proxy a" not in text


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_what_a_release_has_not_is_refused_as_in_a_file(line: tuple[str, ...]) -> None:
    def refusals(cfg: ClientConfig) -> list[str]:
        return [str(problem) for problem in unsupported(cfg)]

    table: dict[str, Any] = {"type": line[0], "name": "a"}
    if line[-1] == "visitor":
        file = {"visitors": [table | {"serverName": "p", "bindPort": 1}]}
    else:
        domains = {"customDomains": ["d"]} if "-d" in NEEDED[line[0]] else {}
        mux = {"multiplexer": "httpconnect"} if line[0] == "tcpmux" else {}
        file = {"proxies": [table | domains | mux]}
    assert refusals(made(*line, *NEEDED[line[-1]])) == refusals(client_from_dict(file))


def invalid(value: str, flag: str, reason: str) -> str:
    return f'invalid argument "{value}" for "{flag}" flag: {reason}'


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tcp", "--foo"], "unknown flag: --foo"),
        (["tcp", "--sd", "x"], "unknown flag: --sd"),
        (["stcp", "-r", "1"], "unknown shorthand flag: 'r' in -r"),
        (["stcp", "visitor", "--allow_users", "x"], "unknown flag: --allow-users"),
        (["tcp", "-l", "x"], invalid("x", "-l, --local-port", "strconv.ParseInt")),
        (["tcp", "-n", "--", "-l", "1"], "flag needs an argument: -n, --proxy-name"),
        (["tcp", "--ue=x"], invalid("x", "--ue", "strconv.ParseBool")),
        (["tcp", "--bandwidth_limit", "5"], invalid("5", "--bandwidth-limit", "unit not support")),
        (
            ["tcp", "--metadatas", "x"],
            invalid("x", "--metadatas", "x must be formatted as key=value"),
        ),
        (["http", "-d", 'a,"b'], invalid('a,"b', "-d, --custom-domain", "parse error")),
    ],
    ids=" ".join,
)
def test_usage_errors_are_told_as_frp_does(argv: list[str], words: str) -> None:
    line = line_of(*argv)
    with pytest.raises(UsageError) as caught:
        line.parser.read(line.argv)
    assert str(caught.value).startswith(words)
    name = "stcp visitor" if "visitor" in argv else argv[0]
    assert caught.value.usage == f"usage: pyfrp client {name} [flags]\n"


def test_a_word_that_is_no_type_is_no_one_liner() -> None:
    assert oneline.find(["ftp", "-n", "a"], 0) is None


# --- lists and maps ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "items"),
    [("", []), ("a", ["a"]), ("a,b", ["a", "b"]), ('a,"b,c"', ["a", "b,c"]), ("a,", ["a", ""])],
)
def test_lists_take_commas_and_quotes(text: str, items: list[str]) -> None:
    assert strings(text) == items


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a=1", {"a": "1"}),
        ("a=1,2", {"a": "1,2"}),
        ('"a=1"', {"a": "1"}),
        ("a=1,b=2", {"a": "1", "b": "2"}),
        ('"a=1,2",b=', {"a": "1,2", "b": ""}),
        ("a=b=c", {"a": "b=c"}),
    ],
)
def test_maps_take_pairs(text: str, found: dict[str, str]) -> None:
    assert pairs(text) == found


def test_maps_are_joined_when_repeated() -> None:
    proxy = described("tcp", "-n", "a", "--metadatas", "a=1,b=2", "--metadatas=b=3")
    assert proxy.metadatas == {"a": "1", "b": "3"}


@unhurried
@given(items=st.lists(st.text(st.characters(exclude_characters="\r\n\0")), min_size=2))
def test_lists_survive_a_round_trip(items: list[str]) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow(items)
    assert strings(written.getvalue()) == items


words = st.sampled_from(
    ["-n", "--ue", "-d", "--metadatas", "a=1", "--", "visitor", "-l", "-p7", "=", "--sk", "-c", '"']
)


@unhurried
@given(tag=st.sampled_from([*PROXY_TYPES]), argv=st.lists(words | st.text(max_size=6), max_size=8))
def test_any_command_line_is_made_or_refused(tag: str, argv: list[str]) -> None:
    line = oneline.find([tag, *argv], 0)
    assert line is not None
    cfg = None
    try:
        cfg = line.config_of(*line.parser.read(line.argv))
    except (UsageError, ConfigError):
        return  # The rule is that nothing else comes out.
    assert len(cfg.proxies) + len(cfg.visitors) == 1 or line.parser.read(line.argv)[0].help


# --- help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_help_lists_the_flags_and_an_example_that_is_right(line: tuple[str, ...]) -> None:
    parser = line_of(*line).parser
    text = parser.format_help()
    assert max(len(row) for row in text.splitlines()) <= 100
    assert "-P, --server-port N" in text
    example = text.partition("Examples:\n")[2].replace("\\\n", "").split()
    assert example[:2] == ["pyfrp", "client"]
    argv = [{"PORT": "1", "PROXY": "p"}.get(word, word) for word in example[2:]]
    assert described(*argv).name == "NAME"


# --- beside the official programs -------------------------------------------------------------

# A flag of frp's: its short and its long name, and the type of its value, none for a switch.
_OFFICIAL_FLAG = re.compile(r"^ +(?:(-\w), )?(--[\w-]+)(?: (\w+))?(?: {2,}|$)", re.MULTILINE)
_VALUES = {None: None, "int": "1", "string": "5MB", "strings": "a,b", "stringToString": "a=b,c=d"}


def official_flags(program: str, *argv: str) -> list[tuple[str, str | None]]:
    """Each flag that `--help` of an official program lists, by each name, with a value for it."""
    frps, frpc = require_official()
    done = subprocess.run(
        [frps if program == "frps" else frpc, *argv, "--help"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    found = [
        (name, _VALUES[kind or None])
        for short, long, kind in _OFFICIAL_FLAG.findall(done.stdout)
        for name in (short, long, long.replace("-", "_").replace("__", "--", 1))
        if name
    ]
    assert len(found) > 20, done.stdout
    return found


def takes(parser: FlagParser, name: str, value: str | None) -> bool:
    forms = [[name], [f"{name}=true"]] if value is None else [[name, value], [f"{name}={value}"]]
    return all(parser.read(form)[1] == [] for form in forms)


@pytest.mark.interop
@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_every_flag_of_the_official_client_is_taken(line: tuple[str, ...]) -> None:
    parser = line_of(*line).parser
    for name, value in official_flags("frpc", *line):
        assert takes(parser, name, value), name


@pytest.mark.interop
def test_every_flag_of_the_official_server_is_taken() -> None:
    for name, value in official_flags("frps"):
        # frp shows it as a switch, and wants a value all the same.
        inert = name.replace("_", "-") == "--dashboard-tls-mode"
        given = {"--allow-ports": "1-2"}.get(name.replace("_", "-"), "true" if inert else value)
        assert takes(server.parser(), name, given), name


@pytest.mark.interop
def test_every_type_of_the_official_client_is_known() -> None:
    _, frpc = require_official()
    done = subprocess.run([frpc, "--help"], capture_output=True, text=True, timeout=20, check=True)
    types = re.findall(r"^ +(\w+) +Run frpc with a single \w+ proxy$", done.stdout, re.MULTILINE)
    assert sorted(types) == sorted(PROXY_TYPES)
