"""Keys are found on the line where they are written, in every form of every format."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfrp.config.lines import find_line, toml_lines, yaml_lines
from pyfrp.config.problems import Place

# A busy machine must not fail a test: what is slow is bounded by the runner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TOML = '''\
# comment with a = 1
bindPort = 7000 # and more
auth.token = "a # b"
"quoted key" = 'x'

[transport]
tcpMux = true
  tls.force = false
text = """
[not.a.header]
fake = 1
"""
list = [
  "one", # comment
  "two",
]

[log] # comment
level = "info"

[[proxies]]
name = "a"
transport = { useEncryption = true, useCompression = false }
requestHeaders.set.X-A = "b"

[[proxies]]
name = "b"
[proxies.healthCheck]
type = "tcp"
[[proxies.healthCheck.httpHeaders]]
name = "H"
[[proxies.healthCheck.httpHeaders]]
name = "I"

[visitors]
matrix = [[1, 2],
 [3, [4]]]
float = 1.5
date = 2020-01-01T07:32:00.5Z
'''

PLACES: list[tuple[Place, int]] = [
    (("bindPort",), 2),
    (("auth",), 3),
    (("auth", "token"), 3),
    (("quoted key",), 4),
    (("transport",), 6),
    (("transport", "tcpMux"), 7),
    (("transport", "tls", "force"), 8),
    (("transport", "text"), 9),
    (("transport", "list", 1), 15),
    (("log", "level"), 19),
    (("proxies", 0), 21),
    (("proxies", 0, "name"), 22),
    (("proxies", 0, "transport", "useCompression"), 23),
    (("proxies", 0, "requestHeaders", "set", "X-A"), 24),
    (("proxies", 1), 26),
    (("proxies", 1, "name"), 27),
    (("proxies", 1, "healthCheck", "type"), 29),
    (("proxies", 1, "healthCheck", "httpHeaders", 1, "name"), 33),
    (("visitors", "matrix", 1, 1, 0), 37),
    (("visitors", "float"), 38),
    (("visitors", "date"), 39),
    # What is not written is near the table that it belongs into.
    (("transport", "tls", "certFile"), 8),
    (("proxies", 1, "localPort"), 26),
]


@pytest.mark.parametrize(("place", "line"), PLACES)
def test_keys_of_toml_are_found(place: Place, line: int) -> None:
    assert tomllib.loads(TOML)
    assert find_line(toml_lines(TOML), place) == line


def test_keys_are_found_without_regard_to_case() -> None:
    assert find_line(toml_lines("BINDPORT = 1"), ("bindPort",)) == 1


def test_a_key_that_is_nowhere_has_no_line() -> None:
    assert find_line(toml_lines("a = 1"), ("b",)) is None
    assert find_line(toml_lines("a = 1"), ()) is None


YAML = """\
bindPort: 7000
auth: {token: x,
  method: token}
proxies:
- name: a
  transport:
    useEncryption: true
- name: b
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("bindPort",), 1),
        (("auth", "method"), 3),
        (("proxies", 0, "name"), 5),
        (("proxies", 0, "transport", "useEncryption"), 7),
        (("proxies", 1, "name"), 8),
        (("proxies", 1, "type"), 8),
    ],
)
def test_keys_of_yaml_are_found(place: Place, line: int) -> None:
    assert find_line(yaml_lines(YAML), place) == line


def test_keys_of_json_are_found_also_behind_tabs() -> None:
    lines = yaml_lines('{\n\t"a": 1,\n\t"b": {\n\t\t"c": [1, 2]}}')
    assert find_line(lines, ("b", "c", 1)) == 4


def test_lines_of_broken_text_are_none() -> None:
    assert yaml_lines("a: [") == {}
    assert yaml_lines("") == {}


names = st.text(alphabet="abcXYZ_-", min_size=1, max_size=4)
scalars = st.integers(0, 99) | st.booleans() | st.text(max_size=8) | st.floats(0, 9)
tables = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(names, inner, min_size=1, max_size=3)
    ),
    max_leaves=10,
)


def places_of(value: Any, place: Place = ()) -> list[Place]:
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in [(*place, k), *places_of(v, (*place, k))]]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in places_of(v, (*place, i))]
    return []


@unhurried
@given(data=st.dictionaries(names, tables, min_size=1, max_size=4))
def test_every_key_of_written_toml_is_found_where_its_name_stands(data: dict[str, Any]) -> None:
    import tomli_w

    text = tomli_w.dumps(data)
    lines = toml_lines(text)
    written = text.split("\n")
    for place in places_of(data):
        line = find_line(lines, place)
        assert line is not None
        name = [part for part in place if isinstance(part, str)][-1]
        if lines.get(tuple(p.lower() if isinstance(p, str) else p for p in place)) == line:
            assert name.lower() in written[line - 1].lower()


@unhurried
@given(text=st.text(alphabet="ab=[]{}.,\"'#\n \\1", max_size=60))
def test_finding_lines_never_fails(text: str) -> None:
    toml_lines(text)
    yaml_lines(text)
