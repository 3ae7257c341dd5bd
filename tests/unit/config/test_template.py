"""Templates give what Go's text/template gives, say where they fail, and come to an end.

The expected texts of the tables were seen with frpc 0.65.0; `test_official.py` asks it again.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfrp.config.ranges import parse_bounds, parse_number_range
from pyfrp.config.template import render
from pyfrp.config.template.printf import plain, sprintf
from pyfrp.errors import ConfigError

# A busy machine must not fail a test: what is slow is bounded by the runner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ENV = {"A": "value", "N": "7000", "EMPTY": ""}


def rendered(text: str) -> str:
    return render(text, ENV)[0]


EXPRESSIONS: list[tuple[str, str]] = [
    # Constants.
    ("1", "1"),
    ("-3", "-3"),
    ("+3", "3"),
    ("0x1F", "31"),
    ("017", "15"),
    ("0b11", "3"),
    ("1_000", "1000"),
    ("1e3", "1000"),
    ("1.5", "1.5"),
    ("1e20", "1e+20"),
    ("123456789.0", "1.23456789e+08"),
    ("1e-5", "1e-05"),
    ("0.0001", "0.0001"),
    ("100000.0", "100000"),
    ("'a'", "97"),
    (r"'\n'", "10"),
    ("true", "true"),
    (r'"x\ty\"z"', 'x\ty"z'),
    (r'"\u00e9\x41\101"', "éAA"),
    ("`raw\\n`", "raw\\n"),
    # The environment.
    (".Envs.A", "value"),
    (".Envs.NOPE", "<no value>"),
    (".Envs.NOPE.B", "<no value>"),
    ("$.Envs.A", "value"),
    ("(.Envs).A", "value"),
    ('index .Envs "A"', "value"),
    ('index .Envs "NOPE"', ""),
    # Printing.
    ('print 1 2 "a" 3 4', "1 2a3 4"),
    ("print true false", "true false"),
    ("print nil", "<nil>"),
    ('println 1 "a"', "1 a\n"),
    ('printf "%5d|%-5d|%05d|%+d|% d" 3 4 5 6 7', "    3|4    |00005|+6| 7"),
    ('printf "%x %X %o %b %c %q %U %O" 255 255 8 5 65 65 65 8', "ff FF 10 101 A 'A' U+0041 0o10"),
    (r'printf "%s %q %x %v" "a" "b\"c" "hi" "v"', r'a "b\"c" 6869 v'),
    ('printf "%10s|%-10s|%.2s" "r" "l" "trunc"', "         r|l         |tr"),
    ('printf "%t %v" true false', "true false"),
    (
        'printf "%f %.2f %e %g %8.3f|" 1.5 1.5 1.5 1.5 1.5',
        "1.500000 1.50 1.500000e+00 1.5    1.500|",
    ),
    ('printf "%d" "x"', "%!d(string=x)"),
    ('printf "%s" 3', "%!s(int=3)"),
    ('printf "%d"', "%!d(MISSING)"),
    ('printf "x" 1', "x%!(EXTRA int=1)"),
    ('printf "%"', "%!(NOVERB)"),
    ('printf "%%"', "%"),
    ('printf "%v" nil', "<nil>"),
    ('printf "%s" nil', "%!s(<nil>)"),
    ('printf "%d" (parseNumberRange "1-3")', "[1 2 3]"),
    ('printf "%T" 1.5', "float64"),
    ('printf "%*d" 5 1', "    1"),
    ('printf "%g" 1e100', "1e+100"),
    ('printf "%#x" 255', "0xff"),
    ('printf "%+.1e" 12345.678', "+1.2e+04"),
    ('printf "%03d" -5', "-05"),
    # Functions.
    ('len "héé"', "5"),
    ('len (parseNumberRange "1-5")', "5"),
    ('index (parseNumberRange "5-9") 2', "7"),
    ('index "abc" 1', "98"),
    ('slice "abcdef" 1 3', "bc"),
    ('slice (parseNumberRange "1-5") 1 3', "[2 3]"),
    ('parseNumberRange " 1 - 3 , 5"', "[1 2 3 5]"),
    ('parseNumberRange "+5"', "[5]"),
    ('parseNumberRangePair "1-2" "3-4"', "[{1 3} {2 4}]"),
    ('(index (parseNumberRangePair "1-2" "3-4") 1).Second', "4"),
    ('html "<a&\'>"', "&lt;a&amp;&#39;&gt;"),
    ("html .Envs.NOPE", "&lt;no value&gt;"),
    ('js "it\'s <b>=&"', r"it\'s \u003Cb\u003E\u003D\u0026"),
    ('urlquery "a b/é?&=~*-_.!"', "a+b%2F%C3%A9%3F%26%3D~%2A-_.%21"),
    # Comparisons and logic.
    ("eq 1 2 1", "true"),
    ('eq "a" "b"', "false"),
    ('eq .Envs.NOPE "x"', "false"),
    ("eq .Envs.NOPE .Envs.NOPE2", "true"),
    ("eq nil nil", "true"),
    ('ne .Envs.A "x"', "true"),
    ('lt "a" "b"', "true"),
    ("le 2 2", "true"),
    ("gt 3 2", "true"),
    ("ge 2 3", "false"),
    ("and 1 0", "0"),
    ("and 1 2", "2"),
    ('or 0 "" "x"', "x"),
    ('or .Envs.NOPE "default"', "default"),
    ("or .Envs.A (index nil 1)", "value"),
    ("not .Envs.EMPTY", "true"),
    # Pipelines.
    ('"a" | printf "%s-%s" "b"', "b-a"),
    ("1 | print 2", "2 1"),
    ('parseNumberRange "1-3" | len', "3"),
    ("1 | or 0", "1"),
    ("(1)", "1"),
]

WHOLES: list[tuple[str, str]] = [
    ("a{{if .Envs.A}}y{{else}}n{{end}}b", "ayb"),
    ("{{if .Envs.NOPE}}y{{else if .Envs.A}}m{{else}}n{{end}}", "m"),
    ("{{with .Envs.A}}{{.}}{{end}}{{with .Envs.NOPE}}x{{else}}none{{end}}", "valuenone"),
    ("{{with .Envs.NOPE}}a{{else with .Envs.A}}{{.}}{{end}}", "value"),
    ("{{with $x := .Envs.A}}{{$x}}{{$.Envs.N}}{{end}}", "value7000"),
    ("{{range 3}}{{.}}{{end}}", "012"),
    ("{{range $i := 3}}{{$i}}{{end}}", "012"),
    ("{{range .Envs.NOPE}}x{{else}}e{{end}}", "e"),
    ('{{range $i, $v := parseNumberRange "10-12"}}{{$i}}={{$v}} {{end}}', "0=10 1=11 2=12 "),
    (
        '{{range parseNumberRange "1-5"}}{{if eq . 3}}{{continue}}{{end}}'
        "{{if eq . 5}}{{break}}{{end}}{{.}}{{end}}",
        "124",
    ),
    (
        '{{range $_, $v := parseNumberRangePair "1-2" "3-4"}}{{$v.First}}{{$v.Second}}{{end}}',
        "1324",
    ),
    ('{{range $k, $v := .Envs}}{{if eq $k "A"}}{{$v}}{{end}}{{end}}', "value"),
    ("{{$x := 1}}{{range 3}}{{$x = .}}{{end}}{{$x}}", "2"),
    ("{{$x := 1}}{{range 3}}{{$x := .}}{{end}}{{$x}}", "1"),
    ("{{range 3}}{{with 1}}{{break}}{{end}}{{end}}z", "z"),
    ("a  {{- 3 -}}  b", "a3b"),
    ("{{-3}}", "-3"),
    ("a{{/* c }} */}}b", "ab"),
    ("a \n {{- /* c */ -}} \n b", "ab"),
    ("}} { { {{`}}`}}", "}} { { }}"),
    ('{{print\n"x"\n}}', "x"),
    ("{{range -1}}x{{else}}e{{end}}", "e"),
    ("plain", "plain"),
    ("", ""),
]

FAULTS: list[tuple[str, str]] = [
    ("{{ foo }}", 'template: frp:1: function "foo" not defined'),
    (
        "{{ .Foo }}",
        'template: frp:1:3: executing "frp" at <.Foo>: can\'t evaluate field Foo in type '
        "*config.Values",
    ),
    (
        'x\n{{ range parseNumberRange "3-1" }}{{end}}',
        'template: frp:2:10: executing "frp" at <parseNumberRange "3-1">: error calling '
        "parseNumberRange: range number is invalid",
    ),
    (
        '{{ parseNumberRangePair "1-2" "3" }}',
        "error calling parseNumberRangePair: first and second range numbers are not in pairs",
    ),
    (
        '{{ parseNumberRange "a" }}',
        'range number is invalid, strconv.ParseInt: parsing "a": invalid syntax',
    ),
    ('{{ parseNumberRange "1-2-3" }}', "range number is invalid"),
    ('{{ parseNumberRange "1-999999" }}', "range number is invalid, more than 100000 numbers"),
    ("{{ parseNumberRange 1 }}", "expected string; got int"),
    ("{{ parseNumberRange .Envs.NOPE }}", "invalid value; expected string"),
    ("{{ parseNumberRange }}", "wrong number of args for parseNumberRange: want 1 got 0"),
    ("{{ ne 1 2 3 }}", "wrong number of args for ne: want 2 got 3"),
    ("{{ and }}", "wrong number of args for and: want at least 1 got 0"),
    ("{{ eq 1 }}", "missing argument for comparison"),
    ("{{ eq 1 1.0 }}", "incompatible types for comparison"),
    ('{{ eq (parseNumberRange "1") 1 }}', "non-comparable type"),
    ("{{ lt 1 2.5 }}", "incompatible types for comparison"),
    ("{{ lt true false }}", "invalid type for comparison"),
    ('{{ lt .Envs.NOPE "a" }}', "invalid type for comparison"),
    ("{{ len 3 }}", "len of type int"),
    ("{{ len nil }}", "len of nil pointer"),
    ('{{ index (parseNumberRange "1") 9 }}', "index out of range: 9"),
    ('{{ index (parseNumberRange "1") "a" }}', "cannot index slice/array with type string"),
    ("{{ index .Envs 1 }}", "value has type int; should be string"),
    ("{{ index nil 1 }}", "index of untyped nil"),
    ("{{ index 3 1 }}", "can't index item of type int"),
    ('{{ slice "abc" 2 1 }}', "invalid slice index: 2 > 1"),
    ('{{ slice "abc" 0 9 }}', "index out of range: 9"),
    ('{{ slice "abc" 1 2 3 }}', "cannot 3-index slice a string"),
    ("{{ slice 3 }}", "can't slice item of type int"),
    ("{{ .Envs.A.B }}", "can't evaluate field B in type string"),
    ('{{ .Envs.A "x" }}', "A is not a method but has arguments"),
    ('{{ "a" "b" }}', 'at <"a">: can\'t give argument to non-function "a"'),
    ("{{ nil }}", "nil is not a command"),
    ("{{ (print nil).X }}", "can't evaluate field X in type string"),
    ("{{ 1 | 2 }}", "non executable command in pipeline stage 2"),
    ("{{ $x }}", 'undefined variable "$x"'),
    ("{{ $x = 1 }}", 'undefined variable "$x"'),
    ("{{ $x := $x }}", 'undefined variable "$x"'),
    ("{{if $x := 1}}{{end}}{{$x}}", 'undefined variable "$x"'),
    ("{{ $x, $y := 1 }}", "too many declarations in command"),
    ("{{range $a, $b, $c := 1}}{{end}}", "too many declarations in command"),
    ("{{range $i, $j := 3}}{{end}}", "can't use 3 to iterate over more than one variable"),
    ("{{range .Envs.A}}{{end}}", "range can't iterate over a string"),
    ("{{range 1.5}}{{end}}", "range can't iterate over a float64"),
    ("{{", "template: frp:1: unclosed action"),
    ("a\n{{ print", "template: frp:2: unclosed action"),
    ("{{ /* }}", "unexpected bad character U+002F"),
    ("{{/* }}", "unclosed comment"),
    ("{{/* */ }}", "comment ends before closing delimiter"),
    ("{{}}", "missing value for command"),
    ("{{if}}{{end}}", "missing value for if"),
    ("{{1 | }}", "missing value for command"),
    ("{{()}}", "missing value for parenthesized pipeline"),
    ("{{(1}}", "unclosed left paren"),
    ("{{1)}}", 'unexpected ")" in command'),
    ("{{if true}}", "unexpected EOF"),
    ("{{if true}}a{{else}}", "unexpected EOF"),
    ("{{if 1}}{{else}}{{else}}{{end}}", "expected end; found {{else}}"),
    ("{{if 1}}{{else with 2}}{{end}}", 'unexpected "with" in else'),
    ("{{end}}", "unexpected {{end}}"),
    ("{{else}}", "unexpected {{else}}"),
    ("{{end 1}}", "unexpected {{end}}"),
    ("{{if 1}}{{end 1}}", 'unexpected "1" in end'),
    ("{{break}}", "{{break}} outside {{range}}"),
    ("{{print if}}", "unexpected <if> in operand"),
    ('{{define "x"}}{{end}}', "{{define}} is not supported"),
    ('{{template "x"}}', "{{template}} is not supported"),
    ('{{block "x" .}}{{end}}', "{{block}} is not supported"),
    ('{{ "a }}', "unterminated quoted string"),
    ("{{ `a }}", "unterminated raw quoted string"),
    ("{{ 'a }}", "unterminated character constant"),
    ("{{ 'ab' }}", "malformed character constant"),
    (r'{{ "\q" }}', "invalid syntax"),
    (r'{{ "\ud800" }}', "invalid syntax"),
    (r"""{{ "\'" }}""", "invalid syntax"),
    ("{{ 08 }}", "illegal number syntax"),
    ("{{ 0x }}", "illegal number syntax"),
    ("{{ 1__0 }}", "illegal number syntax"),
    ("{{ 1a }}", "illegal number syntax"),
    ("{{ 1e400 }}", "illegal number syntax"),
    ("{{ 9223372036854775808 }}", "integer overflow"),
    ('{{ print 1"a" }}', "in operand"),
    ("{{ @ }}", "unexpected bad character U+0040"),
    ("{{ .. }}", "in operand"),
    # Bounds.
    ("{{range 999999999}}{{end}}", "too many steps"),
    ("{{range 99999}}{{range 99999}}{{end}}{{end}}", "too many steps"),
    ("{{range 90000}}" + "x" * 100 + "{{end}}", "output longer than 4194304 characters"),
    ('{{$x := "xxxxxxxxxx"}}{{range 30}}{{$x = print $x $x}}{{end}}', "too"),
    ('{{printf "%9999999d" 1 | len}}{{range 999999999}}{{end}}', "too many steps"),
    ("{{" + "(" * 100 + "1" + ")" * 100 + "}}", "nested more than 60 deep"),
    ("{{if 1}}" * 100 + "{{end}}" * 100, "nested more than 60 deep"),
    ("{{if 0}}" + "{{else if 0}}" * 100 + "{{end}}", "nested more than 60 deep"),
]


@pytest.mark.parametrize(("expression", "text"), EXPRESSIONS)
def test_expressions_give_what_go_gives(expression: str, text: str) -> None:
    assert rendered("{{" + expression + "}}") == text
    assert rendered("<{{ " + expression + " }}>") == f"<{text}>"


@pytest.mark.parametrize(("template", "text"), WHOLES)
def test_templates_give_what_go_gives(template: str, text: str) -> None:
    assert rendered(template) == text


@pytest.mark.parametrize(("template", "words"), FAULTS)
def test_faults_are_told_with_their_place(template: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(template, ENV, path="f.toml")
    assert words in caught.value.reason
    assert caught.value.reason.startswith("template: frp:")
    assert caught.value.path == "f.toml"
    assert caught.value.line == int(caught.value.reason.split(":")[2])


def test_values_of_the_environment_are_not_in_messages() -> None:
    for template in (
        "{{range .Envs.A}}{{end}}",
        "{{.Envs.A.B}}",
        "{{.Envs.A 1}}",
        "{{eq .Envs 1}}",
        "{{eq .Envs.A 1}}",
    ):
        with pytest.raises(ConfigError) as caught:
            render(template, {"A": "s3cret"})
        assert "s3cret" not in str(caught.value)


def test_proxies_made_in_a_loop_know_their_lines() -> None:
    text, lines = render(
        "# a\n"
        '{{- range $_, $v := parseNumberRangePair "60-61" "70-71" }}\n'
        "[[proxies]]\n"
        'name = "tcp-{{ $v.First }}"\n'
        "{{- end }}\n"
        "end = 1\n",
        ENV,
    )
    assert text == ('# a\n[[proxies]]\nname = "tcp-60"\n[[proxies]]\nname = "tcp-61"\nend = 1\n')
    assert lines == [1, 3, 4, 3, 4, 6, 7]


def test_lines_of_a_value_with_newlines_are_the_lines_of_its_action() -> None:
    text, lines = render("a\n{{ println 1 }}{{ println 2 }}b\n", ENV)
    assert text == "a\n1\n2\nb\n"
    assert lines == [1, 2, 2, 2, 3]


pieces = st.sampled_from(
    ["{{", "}}", "{{-", "-}}", "{{- ", " -}}", "(", ")", "|", ":=", "=", ",", ".", "$", "$x", "1"]
)
words = st.sampled_from(
    ["if", "else", "end", "range", "with", "break", "print", "printf", "eq", "index", "len", "or"]
)
others = st.sampled_from(
    [".Envs", ".Envs.A", '"%d%s"', '"1-3"', "`x`", "'a'", "1.5", "/*", "*/", "\n", "$x := 1", "nil"]
)
templates = st.lists(pieces | words | others | st.text(max_size=2), max_size=30).map(" ".join)


@unhurried
@given(text=templates | st.text(max_size=80))
def test_any_template_is_rendered_or_refused(text: str) -> None:
    try:
        result, lines = render(text, ENV)
    except ConfigError:
        return  # The rule is that nothing else comes out.
    assert len(lines) == result.count("\n") + 1
    assert all(1 <= line <= text.count("\n") + 1 for line in lines)


actions = st.recursive(
    st.sampled_from(["x", "\n", "{{.}}", "{{$.Envs.A}}", "{{print 1}}", "{{/* c */}}"]),
    lambda inner: st.builds(
        lambda head, bodies: "{{" + head + "}}" + "".join(bodies) + "{{end}}",
        st.sampled_from(["if .", "with 1", "range 2", 'range $i, $v := parseNumberRange "1-3"']),
        st.lists(inner, max_size=3),
    ),
    max_leaves=12,
)


@unhurried
@given(template=st.lists(actions, max_size=4).map("".join))
def test_well_formed_templates_render(template: str) -> None:
    rendered(template)


@unhurried
@given(text=st.text(max_size=30).filter(lambda text: "{{" not in text))
def test_text_without_actions_is_kept(text: str) -> None:
    assert rendered(text) == text


@unhurried
@given(value=st.text(max_size=30))
def test_the_environment_is_inserted_as_it_is(value: str) -> None:
    assert render("<{{ .Envs.X }}>", {"X": value})[0] == f"<{value}>"


@unhurried
@given(form=st.text(alphabet="%dsvqxXtTfgeUbco*.0123 -+#!", max_size=12), count=st.integers(0, 4))
def test_printf_never_fails(form: str, count: int) -> None:
    values = [12, "text", 1.5, True, None, [1, 2], {"a": "b"}, math.inf]
    for start in range(len(values)):
        sprintf(form, (values[start:] + values)[:count])


@unhurried
@given(number=st.floats())
def test_floats_read_back_equal(number: float) -> None:
    text = plain(number)
    if math.isnan(number):
        assert text == "NaN"
    else:
        assert float(text) == number


# --- ranges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1", [1]),
        ("1-3", [1, 2, 3]),
        (" 1 - 3 , 5 ", [1, 2, 3, 5]),
        ("5-5", [5]),
        ("2,1,2", [2, 1, 2]),
        ("007", [7]),
    ],
)
def test_ranges_are_listed_in_order(text: str, numbers: list[int]) -> None:
    assert parse_number_range(text) == numbers


@pytest.mark.parametrize("text", ["", ",", "1,", "-", "1-", "-1", "3-1", "1-2-3", "a", "１", "1.5"])
def test_other_texts_are_no_ranges(text: str) -> None:
    with pytest.raises(ValueError, match="range number is invalid"):
        parse_number_range(text)


def test_a_range_is_bounded() -> None:
    assert len(parse_number_range("1-100000")) == 100_000
    for text in ("1-100001", "0-9223372036854775807", "1-60000,1-60000"):
        with pytest.raises(ValueError, match="more than 100000"):
            parse_number_range(text)


@unhurried
@given(
    bounds=st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 99)), min_size=1, max_size=5)
)
def test_written_ranges_are_read_back(bounds: list[tuple[int, int]]) -> None:
    pairs = [(low, low + more) for low, more in bounds]
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in pairs)
    assert parse_bounds(text) == pairs
