"""Files are read in whichever format they are written, and faults are told in that format."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfrp.config import load_client, load_server
from pyfrp.config.parse import parse_document
from pyfrp.errors import ConfigError

# A busy machine must not fail a test: what is slow is bounded by the runner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def parsed(text: str, path: str = "x.toml", *, strict: bool = True) -> dict[str, object]:
    return parse_document(text, path, env={"NAME": "value"}, strict=strict).data


def fault(text: str, path: str = "x.toml") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parsed(text, path)
    return caught.value


SAME = {"auth": {"token": "x"}, "bindPort": 1}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('bindPort = 1\nauth.token = "x"\n', "x.toml"),
        ('bindPort = 1\n[auth]\ntoken = "x"\n', "x.toml"),
        ('bindPort = 1\nauth = { token = "x" }\n', "x.toml"),
        ("bindPort: 1\nauth:\n  token: x\n", "x.yaml"),
        ("bindPort: 1\nauth: {token: x}\n", "x.yml"),
        ('{"bindPort": 1, "auth": {"token": "x"}}', "x.json"),
        ('\n\t{"bindPort": 1,\n\t"auth": {"token": "x"}}', "x.json"),
        # The content decides, not the name.
        ('bindPort = 1\nauth.token = "x"\n', "x.json"),
        ('{"bindPort": 1, "auth": {"token": "x"}}', "x.conf"),
        ('{"bindPort": 1, "auth": {"token": "x"}}', "x.toml"),
        ("bindPort: 1\nauth:\n  token: x\n", "noextension"),
        ('\ufeffbindPort = 1\r\nauth.token = "x"\r\n', "x.toml"),
        ('{"bindPort": 1, "auth": {"token": "x"}} trailing', "x.json"),
    ],
)
def test_all_formats_and_forms_mean_the_same(text: str, path: str) -> None:
    assert parsed(text, path) == SAME


def test_a_key_given_twice_in_json_adds_to_its_table() -> None:
    text = '{"a": {"b": {"c": 1}, "d": 1}, "e": [1], "a": {"b": {"f": 2}, "d": 2}, "e": [2]}'
    assert parsed(text, "x.json") == {"a": {"b": {"c": 1, "f": 2}, "d": 2}, "e": [2]}


@pytest.mark.parametrize("text", ["", "   \n", "# only a comment\n", "{}", "---\n"])
def test_an_empty_file_is_valid(text: str) -> None:
    assert parsed(text, "x.conf") == {}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a: y", "a", True),
        ("a: yes", "a", True),
        ("a: Off", "a", False),
        ("a: N", "a", False),
        ("a: 7e3", "a", 7000.0),
        ("a: 0o17", "a", 15),
        ("a: 017", "a", 15),
        ("a: -0x10", "a", -16),
        ("a: 1_000", "a", 1000),
        ("a: 1:30", "a", "1:30"),
        ("a: 2020-01-01", "a", "2020-01-01"),
        ("a: !!str 1", "a", "1"),
        ("a: ~", "a", None),
        ("a: .5", "a", 0.5),
        ("a: '7'", "a", "7"),
        ("a: =", "a", "="),
    ],
)
def test_scalars_of_yaml_are_those_of_frp(text: str, key: str, value: object) -> None:
    found = parsed(text, "x.yaml")[key]
    assert (found, type(found)) == (value, type(value))


def test_anchors_and_merge_keys_of_yaml_work() -> None:
    text = ".base: &b {port: 1, addr: a}\nwebServer:\n  <<: *b\n  port: 2\n"
    assert parsed(text, "x.yaml") == {"webServer": {"port": 2, "addr": "a"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: {k: own, <<: *b}", {"k": "b", "m": 1}),
        ("a: {<<: *b, k: own}", {"k": "own", "m": 1}),
        ("a: {<<: [*c, *b]}", {"k": "c", "m": 1}),
        ("a: {<<: *b, <<: *c}", {"k": "c", "m": 1}),
        ("a: {<<: {<<: *b, m: 2}, m: 3}", {"k": "b", "m": 3}),
    ],
)
def test_of_merged_and_own_keys_of_yaml_the_last_counts(text: str, value: object) -> None:
    bases = ".b: &b {k: b, m: 1}\n.c: &c {k: c}\n"
    assert parsed(bases + text, "x.yaml") == {"a": value}


@pytest.mark.parametrize("text", ["a: {<<: 1}", "a: {<<: [1]}"])
def test_only_tables_of_yaml_can_be_merged(text: str) -> None:
    assert "merg" in fault(text, "x.yaml").reason


@pytest.mark.parametrize(
    "text",
    [
        "a:\tx\nb: 2\n",
        "a: \tx\t\nb: 2\n",
        "a: x\t# why\nb: 2\n",
        "a: 'x'\t\nb: 2\t \t\n",
        "<<: {\n\ta: x,\tb: 2\n\t}\n",
    ],
)
def test_tabs_separate_within_a_line_of_yaml(text: str) -> None:
    assert parsed(text, "x.yaml") == {"a": "x", "b": 2}


def test_dotted_keys_of_yaml_stay_when_not_strict() -> None:
    assert parsed(".base: 1\na: 2\n", "x.yaml", strict=False) == {".base": 1, "a": 2}


def test_the_first_of_several_yaml_documents_counts() -> None:
    assert parsed("---\na: 1\n---\na: 2\n", "x.yaml") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "path", "line", "words"),
    [
        ("a = \n", "x.toml", 1, "toml: line 1, column 5: Invalid value"),
        ("a = 1\nb = [1,\n", "x.toml", None, "toml: "),
        ("a = 1\na = 2\n", "x.toml", 2, "toml: line 2"),
        ("[a]\nx = 1\n[a]\ny = 1\n", "x.toml", 3, "toml: line 3"),
        ("a.b = 1\n[a]\nc = 1\n", "x.toml", 2, "toml: line 2"),
        ("a = 99999999999999999999\n[", "x.toml", None, "toml: "),
        ("a: [1\nb: 2\n", "x.yaml", 2, "yaml: line 2"),
        ("\ta: 1\n", "x.yaml", 1, "yaml: line 1, column 1: found character"),
        ("- a\n", "x.yaml", None, "keys and values at its top level"),
        ("foo\n", "x.yaml", None, "keys and values at its top level"),
        ("foo\n", "x.toml", 1, "toml: line 1, column 4"),
        ("foo\n", "x.conf", 1, "toml: line 1, column 4"),
        ('{"a": 1,}', "x.json", 1, "json: line 1, column "),  # 3.13 points to the comma
        ('\n\n{"a": 1,\n "b" 2}', "x.json", 4, "json: line 4, column 6"),
        ('{"a": NaN}', "x.json", None, "NaN is not a JSON value"),
        ("[" * 100_000, "x.toml", None, "toml: "),
        ('{"a":' * 100_000, "x.json", None, "json: nested too deeply"),
        ("a: " + "[" * 3000, "x.yaml", None, "yaml: "),
        ("a = " + "9" * 5000, "x.toml", None, "toml: "),
        ("a: !!python/object:os.system x", "x.yaml", 1, "yaml: line 1"),
        ("a: !!int x", "x.yaml", None, "yaml: "),
        ("a: *nope", "x.yaml", 1, "yaml: line 1"),
    ],
)
def test_syntax_errors_say_where(text: str, path: str, line: int | None, words: str) -> None:
    error = fault(text, path)
    assert words in str(error)
    assert error.path == path
    if line is not None:
        assert error.line == line
        assert str(error).startswith(f"{path}:{line}: ")


def test_lines_of_rendered_text_are_lines_of_the_source() -> None:
    text = '{{ range parseNumberRange "1-3" }}\na{{ . }} = 1\n{{ end }}\nb = \n'
    assert fault(text).line == 4
    document = parse_document(text.replace("b = ", "b = 1"), "x.toml", env={}, strict=True)
    assert document.data == {"a1": 1, "a2": 1, "a3": 1, "b": 1}
    assert [document.line_of((key,)) for key in ("a1", "a2", "a3", "b")] == [2, 2, 2, 4]


def test_templates_are_rendered_in_every_format() -> None:
    assert parsed('a = "{{ .Envs.NAME }}"') == {"a": "value"}
    assert parsed("a: {{ .Envs.NAME }}", "x.yaml") == {"a": "value"}
    assert parsed('{"a": "{{ .Envs.NAME }}"}', "x.json") == {"a": "value"}


@pytest.mark.parametrize(
    "text",
    [
        "[common]\nserver_addr = 1.2.3.4\ntoken = abc\n",
        "# comment\n  [common]\nbind_port = 7000\n",
        "[common] ; remark\nbind_port = 7000\n",
        "[common]\n",
        "[web]\ntype = http\n[common]\nlog_level = info\n",
        "[common]\nbind_port = {{ .Envs.NOPE \n",
    ],
)
def test_the_old_ini_format_is_refused_by_name(text: str) -> None:
    error = fault(text, "frpc.toml")
    assert "frp's old INI format ([common])" in str(error)
    assert "write it as TOML" in str(error)


def test_the_refusal_of_ini_translates_its_keys() -> None:
    text = "[common]\nserver_addr = x\ntls_enable = true\n[web]\nlocal_port = 80\nsk = x\n"
    shown = str(fault(text, "frpc.ini"))
    assert "line 2: server_addr -> serverAddr" in shown
    assert "line 3: tls_enable -> transport.tls.enable" in shown
    assert "line 5: local_port -> localPort" in shown
    assert "line 6: sk -> secretKey" in shown


def test_common_within_a_string_is_no_ini() -> None:
    text = 'a = """\n[common]\n"""\n'
    assert parsed(text) == {"a": "[common]\n"}


def test_a_file_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyfrp.config.parse.MAX_FILE_CHARS", 10)
    assert "longer than 10" in str(fault("a = 1\n" * 10))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "frps.toml"
    path.write_bytes(b'bindPort = 1\nbindAddr = "\xff"\n')
    with pytest.raises(ConfigError, match=r"frps.toml:2: byte 0xff is not UTF-8"):
        load_server(path)


def test_a_missing_file_is_told_as_frp_does(tmp_path: Path) -> None:
    path = tmp_path / "no.toml"
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    assert str(caught.value) == f"open {path}: no such file or directory"
    assert caught.value.path == str(path)


@pytest.mark.parametrize("load", [load_server, load_client])
def test_a_directory_is_no_file(load: object, tmp_path: Path) -> None:
    assert callable(load)
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path)


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(ConfigError, match="open a"):
        load_server("a\0b")


FRAGMENTS = [
    "=",
    "1",
    '"x"',
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    ":",
    "-",
    ".",
    ",",
    "{{",
    "}}",
    ".Envs.A",
    "end",
    "if",
    "#",
    "'",
    "&x",
    "*x",
    "<<",
    "|",
    "!!int",
    "[common]",
    "proxies",
    "auth",
    "token",
    "bindPort",
    "type",
    "http",
    "é",
    "\\",
]

fragments = st.lists(st.sampled_from([*FRAGMENTS, " ", "\n", "\t", "\x00", "- "]), max_size=25).map(
    "".join
)


@unhurried
@given(text=st.one_of(fragments, st.text(max_size=60)), name=st.sampled_from(["toml", "yaml", "x"]))
def test_any_text_is_parsed_or_refused(text: str, name: str) -> None:
    try:
        document = parse_document(text, f"f.{name}", env={"A": "1"}, strict=True)
    except ConfigError:
        return  # The rule is that nothing else comes out.
    for key in document.data:
        document.line_of((key, 0, "x"))
