"""Our loader and the official programs accept and refuse the same files."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyfrp.config import load_client, load_server
from pyfrp.config.template import render
from pyfrp.errors import ConfigError
from tests.support.official import require_official

pytestmark = pytest.mark.interop

TCP = '[[proxies]]\nname = "a"\ntype = "tcp"\nlocalPort = 80\n'
HTTP = '[[proxies]]\nname = "a"\ntype = "http"\nlocalPort = 80\n'
VISITOR = '[[visitors]]\nname = "v"\ntype = "xtcp"\nserverName = "s"\nbindPort = 1\n'

CLIENT: list[tuple[str, str]] = [
    *(
        (text, "toml")
        for text in (
            "",
            "   \n",
            "serverPort = 7000.0",
            "serverPort = 7000.5",
            "serverPort = 1e3",
            "serverPort = 9223372036854775807",
            "serverPort = 9223372036854775808",
            "serverPort = inf",
            "serverPort = '7000'",
            "serverPort = 70000",
            "serverPort = -1",
            "user = 2020-01-01",
            "user = 07:32:00",
            "user = 1",
            "loginFailExit = 1",
            "loginFailExit = 'true'",
            "USER = 'a'\nuser = 'b'",
            "[Auth]\ntoken = 'x'\n[auth]\nmethod = 'token'",
            "start = [1]",
            "start = 'a'",
            "proxies = {}",
            "proxies = []",
            "proxies = [1]",
            "[[proxies]]",
            "[[proxies]]\ntype = 'tcp'",
            "[[proxies]]\nname = 'a'\ntype = 'tcp'",
            "[[proxies]]\nname = 'a'\ntype = 'TCP'",
            "[[proxies]]\nname = 'a'\ntype = 1",
            "[[proxies]]\nname = 'a'\nTYPE = 'tcp'",
            TCP,
            TCP + "subdomain = 'x'",
            TCP + "remotePort = '1'",
            TCP + "remotePort = 99999",
            TCP.replace("80", "-1"),
            TCP.replace("80", "65535"),
            TCP.replace("80", "65536"),
            TCP + "plugin = {}",
            TCP + "plugin = 1",
            TCP + "plugin = { type = 'foo' }",
            TCP + "plugin = { type = 'http_proxy' }",
            TCP + "plugin = { type = 'http_proxy', zoo = 1 }",
            TCP + "plugin = { type = 'static_file' }",
            TCP + "plugin = { type = 'http2http' }",
            TCP + "plugin = { type = 'https2http' }",
            TCP + "plugin = { type = 'tls2raw', localAddr = 'x:1' }",
            TCP.replace("80", "99999") + "plugin = { type = 'socks5' }",
            *(
                TCP + f"transport.bandwidthLimit = {limit}"
                for limit in (
                    *("'5MB'", "'5mb'", "'xMB'", "5", "'-5MB'", "'infMB'", "' 5MB '", "'5 MB'"),
                    *("''", "'1e3KB'", "'.5MB'", "'5.MB'", "'MB'", "'NaNMB'", "'+5KB'", "'5GB'"),
                )
            ),
            TCP + "transport.bandwidthLimitMode = 'x'",
            TCP + "transport.proxyProtocolVersion = 'v3'",
            TCP + "healthCheck.type = 'x'",
            TCP + "healthCheck.type = 'http'",
            TCP + "healthCheck.type = 'http'\nhealthCheck.path = '/'",
            *(
                TCP + f"annotations = {{ {annotation} }}"
                for annotation in (
                    *("a = 'x'", "'a b' = 'x'", "'A.b/c' = 'x'", "'-a' = 'x'", "'a/b/c' = 'x'"),
                    *("'_.b/c' = 'x'", "'a/' = 'x'", "'/a' = 'x'", "'' = 'x'", "'a.-b/c' = 'x'"),
                    *(f"'{'a' * 63}' = 'x'", f"'{'a' * 64}' = 'x'", f"a = '{'x' * 262144}'"),
                    *(f"'{'a.' * 126}a/c' = 'x'", f"'{'a.' * 126}aa/c' = 'x'", "a = 1"),
                )
            ),
            HTTP,
            HTTP + "customDomains = ['a']",
            HTTP + "subdomain = 'a'",
            HTTP + "subdomain = 'a.b*'",
            HTTP.replace("http", "https"),
            HTTP.replace("http", "tcpmux") + "subdomain = 'a'",
            HTTP.replace("http", "tcpmux") + "subdomain = 'a'\nmultiplexer = 'httpconnect'",
            "start = ['b']\n" + TCP.replace("80", "99999"),
            VISITOR,
            VISITOR + "protocol = 'x'",
            VISITOR.replace("bindPort = 1", "bindPort = -1"),
            VISITOR.replace("bindPort = 1", ""),
            VISITOR.replace('serverName = "s"', ""),
            VISITOR.replace('"xtcp"', '"tcp"'),
            VISITOR + "plugin = { type = 'virtual_net' }",
            VISITOR + "plugin = { type = 'x' }",
            "auth.tokenSource = {}",
            "auth.tokenSource.type = 'file'",
            "auth.tokenSource = { type = 'file', file = { path = '/nonexistent' } }",
            "auth.tokenSource = { type = 'file', file = { path = '/dev/null' } }",
            "auth.method = 'x'",
            "auth.additionalScopes = ['HeartBeats', 'NewWorkConns']",
            "auth.additionalScopes = ['heartbeats']",
            "log.level = 'trace'",
            "log.level = 'INFO'",
            "log.maxDays = -1",
            "webServer.port = 65536",
            "webServer.tls = {}",
            "webServer.tls.keyFile = 'x'",
            "webServer.tls = { certFile = 'x', keyFile = 'y' }",
            "transport.protocol = 'wss'",
            "transport.protocol = 'WSS'",
            "transport.heartbeatInterval = 10\ntransport.heartbeatTimeout = 5",
            "transport.heartbeatInterval = 10\ntransport.heartbeatTimeout = -1",
            "transport.heartbeatInterval = 10",
            "transport.tls.enable = false\ntransport.tls.certFile = 'x'",
            "transport.tls = 1",
            "includes = ['./nope/*.toml']",
            "includes = ['./*.none']",
            "includes = ['']",
            "virtualNet.address = '10.0.0.1/24'",
            "featureGates = { Foo = true }",
            "featureGates = { a = 1 }",
            "metadatas = { a = 1 }",
            "metadatas = []",
            "foo = 1",
            "auth.foo = 1",
            "version = '1'",
            "version = 1",
            "a = ",
            "[auth]\ntoken = 'x'\n[auth]\nmethod = 'token'",
            "auth.token = 'a'\nauth.token = 'b'",
            "user = 'a'\r\nlog.level = 'info'\r\n",
            "user = '{{ .Envs.HOME }}'",
            "user = '{{ .Envs.NOPE }}'",
            "user = {{ .Envs.NOPE }}",
            "{{ .Foo }}",
            "{{ foo }}",
            "# {{ foo }}",
            '{{ range parseNumberRange "3-1" }}{{ end }}',
            '{{- range $_, $v := parseNumberRangePair "60-66,67" "60-66,67" }}\n[[proxies]]\n'
            'name = "t-{{ $v.First }}"\ntype = "tcp"\nremotePort = {{ $v.Second }}\n{{- end }}\n',
        )
    ),
    *(
        (text, "yaml")
        for text in (
            "user: 123",
            "user: true",
            "user: 2020-01-01",
            "user: 1:30",
            "user: 1e3",
            "user: 007",
            "user: ~",
            "user: !!str 1",
            "serverPort: '7000'",
            "serverPort: 7e3",
            "serverPort: 0x10",
            "serverPort: 010",
            "serverPort: 0o10",
            "serverPort: 1_000",
            "serverPort: 1:30",
            "serverPort: 1.5",
            "serverPort: null",
            "serverPort:",
            "metadatas: {a: 1}",
            "metadatas: {1: a}",
            "metadatas: {a: null}",
            "loginFailExit: yes",
            "loginFailExit: y",
            "loginFailExit: 'true'",
            "start: [1]",
            "start: [null, a]",
            "proxies:\n- {name: 1, type: tcp}",
            "proxies:\n- {name: a, type: tcp, localPort: 1}",
            "proxies:\n- null",
            "- a",
            "foo",
            "a: 1\na: 2",
            "user: a\nuser: b",
            "user: a\nUSER: b",
            "user: &a x\nserverAddr: *a",
            ".base: &b {port: 1}\nwebServer:\n  <<: *b\n",
            "---\nuser: a\n---\nuser: b",
            "auth:",
            "auth: ''",
            "\tuser: a",
            ".x: 1",
            "auth:\n  .x: 1",
            "user: [a",
            "user:\ta\t# why\nserverPort: 1\t\n",
            "auth:\n\tmethod: token",
            "auth:\n  \tmethod: token",
            "auth: {\n\tmethod: token}",
            "user: =",
            # Whether the port is a number tells which of the two counts.
            ".b: &b {port: x}\nwebServer:\n  port: 0\n  <<: *b\n",
            ".b: &b {port: x}\nwebServer:\n  <<: *b\n  port: 0\n",
            ".b: &b {port: x}\n.c: &c {port: 0}\nwebServer:\n  <<: [*b, *c]\n",
            ".b: &b {port: x}\n.c: &c {port: 0}\nwebServer:\n  <<: [*c, *b]\n",
            "webServer:\n  <<: 1\n",
        )
    ),
    *(
        (text, "json")
        for text in (
            "{}",
            '{"user": "a"}',
            '{"user": 1}',
            '{"user": "a",}',
            '{"user": "a"} x',
            '{"user": "a", "user": "b"}',
            # Whether the port is a number tells whether it is still there.
            '{"webServer": {"port": "x"}, "webServer": {"addr": "a"}}',
            '{"webServer": {"tls": {"certFile": "x"}}, "webServer": {"tls": {"keyFile": "x"}}}',
            '{"user": NaN}',
            '{"user": null}',
            "[]",
            '\n\t{"user": "a",\n\t"auth": {"token": "x"}}',
            'user = "toml"',
        )
    ),
]

SERVER = [
    "",
    "bindPort = 70000",
    "bindPort = -1",
    "kcpBindPort = 65536",
    "quicBindPort = 65536",
    "vhostHTTPPort = 65536",
    "vhostHTTPSPort = 65536",
    "tcpmuxHTTPConnectPort = 65536",
    "sshTunnelGateway.bindPort = 70000",
    "allowPorts = [{ start = 1, end = 2 }, { single = 3 }]",
    "allowPorts = [{ start = 2, end = 1 }]",
    "allowPorts = '1-2'",
    "[[httpPlugins]]\nname = 'a'\nops = ['Login']",
    "[[httpPlugins]]\nname = 'a'\nops = ['login']",
    "serverAddr = 'x'",
    "auth.oidc.issuer = 'x'",
    "auth.method = 'oidc'\nauth.oidc.issuer = 'https://x'",
    "transport.tls.force = 'x'",
    "transport.heartbeatTimeout = 0",
    "webServer.tls = {}",
    "detailedErrorsToClient = false",
    "maxPortsPerClient = '5'",
    "custom404Page = '/nonexistent'",
    "subDomainHost = 'a.example'\nuserConnTimeout = 1\nudpPacketSize = 1\n",
    "log = { to = 'x', level = 'debug', maxDays = 1, disablePrintColor = true }",
    "enablePrometheus = true",
]

# Where newer releases, or we, are stricter on purpose than 0.65.0.
STRICTER = [
    TCP + TCP,
    "auth.tokenSource = { type = 'file', file = { path = '/dev/null' } }\nauth.token = 'x'",
    "[common]\nserver_addr = 1.2.3.4",
    "auth.method = 'oidc'",
]

# Keys that 0.65.0 does not know, or that are our own.
NEWER = [
    TCP + "enabled = false",
    "clientID = 'x'",
    "log.format = 'json'",
    "shutdownTimeout = 5",
    "featureGates.VirtualNet = true\nvirtualNet.address = '10.0.0.1/24'",
    "\ufeffuser = 'a'",
    '{"serverPort": 7000.0}',
]


@functools.cache
def program(role: str) -> Path:
    frps, frpc = require_official()
    return frps if role == "server" else frpc


def official_says(role: str, path: Path, env: dict[str, str] | None = None) -> tuple[bool, str]:
    """Let the official program verify a file: whether it is taken, and what was printed."""
    done = subprocess.run(
        [program(role), "verify", "-c", path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=env,
    )
    return done.returncode == 0, done.stdout


def ours_says(role: str, path: Path) -> bool:
    load: Any = load_server if role == "server" else load_client
    try:
        load(path)
    except ConfigError:
        return False
    return True


def both(role: str, text: str, ending: str, tmp_path: Path) -> tuple[bool, bool]:
    path = tmp_path / f"file.{ending}"
    path.write_text(text, encoding="utf-8", newline="")
    return ours_says(role, path), official_says(role, path)[0]


@pytest.mark.parametrize(("text", "ending"), CLIENT)
def test_client_files_are_judged_alike(
    text: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, official = both("client", text, ending, tmp_path)
    assert ours == official


@pytest.mark.parametrize("text", SERVER)
def test_server_files_are_judged_alike(text: str, tmp_path: Path) -> None:
    ours, official = both("server", text, "toml", tmp_path)
    assert ours == official


@pytest.mark.parametrize("text", STRICTER)
def test_where_we_are_stricter_is_known(text: str, tmp_path: Path) -> None:
    assert both("client", text, "toml", tmp_path) == (False, True)


@pytest.mark.parametrize("text", NEWER)
def test_where_we_take_more_is_known(text: str, tmp_path: Path) -> None:
    assert both("client", text, "toml", tmp_path) == (True, False)


TEMPLATES = """\
{{1e20}}
{{123456789.0}}
{{100000.0}} {{1000000.0}}
{{0.0001}} {{0.00001}}
{{017}} {{0b11}} {{0x1F}} {{1_000}}
{{1__0}}
{{print 1 2 "a" 3 4}}
{{printf "%5d|%-5d|%05d|%+d" 3 4 5 6}}
{{printf "%x %X %o %b %c %U" 255 255 8 5 65 65}}
{{printf "%10s|%-10s|%.2s|%x" "r" "l" "trunc" "hi"}}
{{printf "%f %.2f %e %g" 1.5 1.5 1.5 1.5}}
{{printf "%d %s" "x" 3}}
{{printf "%d"}}
{{printf "x" 1}}
{{printf "%v %d" (parseNumberRange "1-3") (parseNumberRange "1-3")}}
{{printf "%*d %03d %#x" 5 1 -5 255}}
{{len "héé"}} {{index "abc" 1}} {{slice "abcdef" 1 3}}
{{index (parseNumberRange "5-9") 9}}
{{slice "abc" 2 1}}
{{eq 1 2 1}} {{eq .Envs.NOPE "x"}} {{ne .Envs.AA "x"}} {{eq nil nil}}
{{eq 1 1.0}}
{{lt true false}}
{{lt .Envs.NOPE "a"}}
{{and 1 0}} {{or 0 "" "x"}} {{or .Envs.NOPE "d"}} {{not .Envs.NOPE}}
{{and}}
{{ne 1}}
{{.Foo}}
{{foo}}
{{$x}}
{{nil}}
{{"a" "b"}}
{{1 | 2}}
{{"a" | printf "%s-%s" "b"}} {{1 | print 2}}
{{html "<a&>"}} {{urlquery "a b/é?&="}} {{html .Envs.NOPE}}
{{parseNumberRange "1-3, 5"}} {{parseNumberRange "+5"}}
{{parseNumberRange ""}}
{{parseNumberRange "3-1"}}
{{parseNumberRange "1-2-3"}}
{{parseNumberRange "a"}}
{{parseNumberRangePair "1-2" "3-4"}} {{parseNumberRangePair "1" "2"}}
{{parseNumberRangePair "1-2" "3"}}
{{if .Envs.NOPE}}y{{else if .Envs.AA}}m{{else}}n{{end}}
{{with .Envs.NOPE}}a{{else with .Envs.AA}}{{.}}{{end}}
{{range 3}}{{.}}{{end}}
{{range $i, $v := parseNumberRange "1-3"}}{{$i}}{{$v}}{{else}}q{{end}}
{{range 6}}{{if eq . 3}}{{continue}}{{end}}{{if eq . 5}}{{break}}{{end}}{{.}}{{end}}
{{$x := 1}}{{range 3}}{{$x = .}}{{end}}{{$x}}
{{$x := 1}}{{range 3}}{{$x := .}}{{end}}{{$x}}
{{range .Envs.NOPE}}x{{else}}e{{end}}
a  {{- 3 -}}  b{{/* c */}}
a  {{- /* c */ -}}  b
{{if true}}a{{else}}b{{else}}c{{end}}
{{break}}
{{if true}}
{{}}
{{end}}
{{range}}{{end}}
""".splitlines()


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_render_alike(template: str, tmp_path: Path) -> None:
    """The official program quotes an unknown key, and so tells what the template gave."""
    path = tmp_path / "frpc.toml"
    path.write_text(f"'K<{template}>' = 1\n", encoding="utf-8")
    env = {"AA": "value", "PATH": os.environ.get("PATH", "")}
    _, said = official_says("client", path, env)
    match = re.fullmatch(r'json: unknown field (".*")\n', said)
    expected = said.strip() if match is None else f"'{json.loads(match[1])}' = 1"
    try:
        ours = render(path.read_text(encoding="utf-8"), env)[0].strip()
    except ConfigError as error:
        ours = error.reason
    assert ours == expected
