"""What operators get wrong, and the exact words that they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyfrp.config import check_supported, load_client, load_server
from pyfrp.errors import ConfigError

HTTP = '[[proxies]]\nname = "a"\ntype = "http"\ncustomDomains = ["a"]\nlocalPort = 80\n'
TCP = '[[proxies]]\nname = "a"\ntype = "tcp"\nlocalPort = 80\n'
VISITOR = '[[visitors]]\nname = "v"\ntype = "xtcp"\n'

SERVER: list[tuple[str, str]] = [
    # Unknown keys, and what was meant.
    ("bindPrt = 1", ':1: unknown field "bindPrt"; did you mean "bindPort"?'),
    ("\nbind_port = 1", ':2: unknown field "bind_port"; it is spelled "bindPort"'),
    ('token = "x"', ':1: unknown field "token"; write it as auth.token'),
    ("tls_only = true", 'unknown field "tls_only"; write it as transport.tls.force'),
    ('dashboard_port = "x"', 'unknown field "dashboard_port"; write it as webServer.port'),
    (
        'bindPort = 1\nserverAddr = "x"',
        ':2: unknown field "serverAddr"; `serverAddr` belongs into the client\'s file (frpc.toml)',
    ),
    ("xyzzy = 1", ':1: unknown field "xyzzy"'),
    (
        "[auth]\ntoken = 'x'\nfoobar = 1",
        ':3: unknown field "foobar" (auth.foobar)',
    ),
    (
        "[transport]\ntcp_mux = true",
        ':2: unknown field "tcp_mux" (transport.tcp_mux); it is spelled "tcpMux"',
    ),
    (
        "[transport.tls]\nenable = true",
        ':2: unknown field "enable" (transport.tls.enable); `enable` belongs into the client\'s '
        "file (frpc.toml)",
    ),
    ("[[allowPorts]]\nstart = 1\nend = 2\nstep = 1", ':4: unknown field "step"'),
    ("[web_server]\nport = 1", 'unknown field "web_server"; it is spelled "webServer"'),
    ('level = "info"', 'unknown field "level"; write it as log.level'),
    ("tcpMux = true", 'unknown field "tcpMux"; write it as transport.tcpMux'),
    # Types.
    (
        'bindPort = "7000"',
        ':1: field "bindPort": cannot unmarshal string into int; write it without quotes',
    ),
    ("bindPort = 7000.5", ':1: field "bindPort": cannot unmarshal number 7000.5 into int'),
    ("auth.token = 12345", ':1: field "auth.token": cannot unmarshal number into string; write'),
    # Values.
    (
        "auth.method = 'x'",
        ":1: invalid auth method, optional values are [token oidc] (auth.method)",
    ),
    (
        "auth.additionalScopes = ['Foo']",
        "invalid auth additional scopes, optional values are [HeartBeats NewWorkConns]",
    ),
    (
        "log.level = 'INFO'",
        ":1: invalid log level, optional values are [trace debug info warn error] (log.level)",
    ),
    ("log.format = 'xml'", ":1: invalid log format, optional values are [text json]"),
    ("bindPort = 70000", ":1: bindPort: port number 70000 must be in the range 0..65535"),
    ("kcpBindPort = -1", "kcpBindPort: port number -1 must be in the range 0..65535"),
    ("quicBindPort = 65536", "quicBindPort: port number 65536 must be in the range 0..65535"),
    ("vhostHTTPPort = 99999", "vhostHTTPPort: port number 99999 must be in the range 0..65535"),
    ("vhostHTTPSPort = 99999", "vhostHTTPSPort: port number 99999 must be in the range 0..65535"),
    (
        "tcpmuxHTTPConnectPort = 99999",
        ":1: tcpMuxHTTPConnectPort: port number 99999 must be in the range 0..65535",
    ),
    (
        "vhostHTTPPort = 80\nvhostHTTPSPort = 80",
        ":2: vhostHTTPPort and vhostHTTPSPort are both 80; give each a port of its own, or let",
    ),
    (
        "tcpmuxHTTPConnectPort = 7000",
        ":1: bindPort and tcpmuxHTTPConnectPort are both 7000; give tcpmuxHTTPConnectPort a port",
    ),
    ("webServer.port = 99999", "webServer.port: port number 99999 must be in the range 0..65535"),
    ("auth.method = 'oidc'", ":1: auth.oidc.issuer is required"),
    (
        "auth.method = 'oidc'\nauth.oidc.issuer = 'accounts.example'",
        ":2: auth.oidc.issuer must be the http or https URL of the provider",
    ),
    ("webServer.tls = {}", "tls.certFile must be specified when tls is enabled"),
    ("webServer.tls.certFile = 'x'", "tls.keyFile must be specified when tls is enabled"),
    (
        "[[httpPlugins]]\nops = ['Foo']",
        ":2: invalid http plugin ops, optional values are [Login NewProxy CloseProxy Ping "
        "NewWorkConn NewUserConn]",
    ),
    (
        "vhostHTTPErrorStyle = 'x'",
        ":1: invalid vhostHTTPErrorStyle, optional values are [gateway frp]",
    ),
    ("shutdownTimeout = -1", ":1: shutdownTimeout must be 0 (do not wait) or a number of seconds"),
    ("auth.maxClockSkew = -1", ":1: auth.maxClockSkew must be 0 (not checked)"),
    (
        "auth.token = 'x'\nauth.tokenSource = { type = 'file', file = { path = 'x' } }",
        ":2: cannot specify both auth.token and auth.tokenSource",
    ),
    (
        "auth.tokenSource.type = 'file'",
        "invalid auth.tokenSource: file configuration is required when type is 'file'",
    ),
    (
        "auth.tokenSource = { type = 'file', file = {} }",
        "invalid auth.tokenSource: file path cannot be empty",
    ),
    (
        "auth.tokenSource.type = 'env'",
        "invalid auth.tokenSource: unsupported value source type: env "
        "(only 'file' and 'exec' are supported)",
    ),
    (
        "auth.tokenSource = { type = 'exec', exec = { command = 'x' } }",
        'unsafe feature "TokenSourceExec" is not enabled. To enable it, ensure it is allowed in '
        "the configuration or command line flags",
    ),
    (
        "auth.tokenSource.type = 'exec'",
        "invalid auth.tokenSource: exec configuration is required when type is 'exec'",
    ),
    (
        "auth.tokenSource = { type = 'exec', exec = { command = '' } }",
        "invalid auth.tokenSource: exec command cannot be empty",
    ),
    (
        "auth.tokenSource = { type = 'exec', exec = { command = 'x', env = [{}] } }",
        "invalid auth.tokenSource: exec env name cannot be empty",
    ),
    (
        "auth.tokenSource = { type = 'exec', exec = { command = 'x', env = [{ name = 'a=b' }] } }",
        "invalid auth.tokenSource: exec env name cannot contain '='",
    ),
    (
        "auth.tokenSource = { type = 'file', file = { path = '/nonexistent/token' } }",
        ":1: failed to resolve auth.tokenSource: failed to read file /nonexistent/token: "
        "no such file or directory",
    ),
    # Syntax and templates.
    ("bindPort = ", ":1: toml: line 1, column 11: "),
    ("bindPort = \n", ":1: toml: line 1, column 12: "),
    ("a.b = 1\na.b = 2\n\n", ":2: toml: line 2, column 8: "),
    ("bindPort = {{ .Envs.NOPE_NOT_SET }}", ":1: toml: line 1, column 12: "),
    ('bindAddr = "{{ .Foo }}"', "can't evaluate field Foo in type *config.Values"),
    ('bindAddr = "{{ foo }}"', ':1: template: frp:1: function "foo" not defined'),
    ("[common]\nbind_port = 1", ":1: this is a file in frp's old INI format ([common])"),
]

CLIENT: list[tuple[str, str]] = [
    (
        "vhostHTTPPort = 8081",
        ':1: unknown field "vhostHTTPPort"; `vhostHTTPPort` belongs into the server\'s file',
    ),
    (
        "vhost_http_port = 8081",
        ':1: unknown field "vhost_http_port"; `vhostHTTPPort` belongs into the server\'s file',
    ),
    ("localPort = 1", 'unknown field "localPort"; write it as localPort inside a [[proxies]]'),
    ("[[proxy]]\nname = 'a'", 'unknown field "proxy"; did you mean "proxies"?'),
    (
        TCP + "subdomain = 'x'",
        ':5: unknown field "subdomain" (proxies[0].subdomain); "subdomain" exists for type http '
        "and https and tcpmux only",
    ),
    (
        HTTP + "useEncryption = true",
        ':6: unknown field "useEncryption" (proxies[0].useEncryption); '
        "write it as transport.useEncryption",
    ),
    (
        HTTP + "serverAddr = 'x'",
        ':6: unknown field "serverAddr" (proxies[0].serverAddr); `serverAddr` is a key of the '
        "whole file: in TOML it must stand above the first [[proxies]]",
    ),
    (
        HTTP + "custom_domain = ['x']",
        ':6: unknown field "custom_domain" (proxies[0].custom_domain); '
        'did you mean "customDomains"?',
    ),
    (
        TCP + "[proxies.plugin]\ntype = 'socks5'\nuser = 'x'",
        'unknown field "user" (proxies[0].plugin.user)',
    ),
    ("[[proxies]]\nname = 'a'", "decode proxy at index 0: unknown proxy type: "),
    (
        "[[proxies]]\nname = 'a'\ntype = 'TCP'",
        ":3: decode proxy at index 0: unknown proxy type: TCP (proxies[0].type); type is one of "
        "tcp udp http https tcpmux stcp sudp xtcp",
    ),
    ("[[visitors]]\ntype = 'tcp'", "decode visitor at index 0: unknown visitor type: tcp"),
    (TCP + "plugin = {}", "plugin type is empty (proxies[0].plugin)"),
    (TCP + "plugin.type = 'foo'", "unknown plugin type: foo (proxies[0].plugin.type)"),
    ("metadatas.a = 1", ':1: field "metadatas.a": cannot unmarshal number into string'),
    ("[proxies]\nname = 'a'", 'field "proxies": cannot unmarshal object into list of tables'),
    ("start = 'a'", 'field "start": cannot unmarshal string into list of strings; write it in'),
    ("[[proxies]]\ntype = 'tcp'", ":1: proxy : name should not be empty (proxies[0].name)"),
    (TCP.replace("80", "99999"), ":4: proxy a: localPort: localPort: port number 99999 must be"),
    (
        HTTP.replace('["a"]', "[]"),
        ":1: proxy a: subdomain and custom domains should not be both empty (proxies[0])",
    ),
    (
        HTTP.replace('"http"', '"tcpmux"'),
        "proxy a: not support multiplexer:  (proxies[0].multiplexer); the only one is httpconnect",
    ),
    (
        TCP + "transport.proxyProtocolVersion = 'v3'",
        ":5: proxy a: not support proxy protocol version: v3",
    ),
    (
        TCP + "transport.bandwidthLimitMode = 'x'",
        ":5: proxy a: bandwidth limit mode should be client or server",
    ),
    (
        TCP + "transport.bandwidthLimit = '5mb'",
        ':5: proxy a: unit not support (proxies[0].transport.bandwidthLimit); write it like "5MB"',
    ),
    (
        TCP + "transport.bandwidthLimit = 'xMB'",
        'proxy a: strconv.ParseFloat: parsing "x": invalid syntax',
    ),
    (TCP + "healthCheck.type = 'x'", ":5: proxy a: not support health check type: x"),
    (TCP + "healthCheck.type = 'http'", ":5: proxy a: health check path should not be empty"),
    (TCP + "plugin.type = 'static_file'", "proxy a: plugin static_file: localPath is required"),
    (TCP + "plugin.type = 'unix_domain_socket'", "unix_domain_socket: unixPath is required"),
    (TCP + "plugin.type = 'https2http'", "proxy a: plugin https2http: localAddr is required"),
    (TCP + "annotations = { 'a b' = 'x' }", ":5: proxy a: annotation key a b is invalid: the name"),
    (TCP + "annotations = { 'a/b/c' = 'x' }", "annotation key a/b/c is invalid: at most one slash"),
    (TCP + "annotations = { '_.b/c' = 'x' }", "annotation key _.b/c is invalid: the part before"),
    (
        TCP + f"annotations = {{ a = '{'x' * 262144}' }}",
        "proxy a: annotations size 262145 is larger than limit 262144",
    ),
    (TCP + TCP, ":6: proxy name [a] is duplicated (proxies[1].name); names must be unique"),
    ("[[visitors]]\ntype = 'stcp'", "visitor : name is required"),
    (VISITOR, ":1: visitor v: server name is required"),
    (VISITOR + "serverName = 's'", ":1: visitor v: bind port is required"),
    (
        VISITOR + "serverName = 's'\nbindPort = 65536",
        ":5: visitor v: bindPort: port number 65536 must be in the range 0..65535",
    ),
    (
        VISITOR + "serverName = 's'\nbindPort = 1\nprotocol = 'tcp'",
        ":6: visitor v: protocol should be kcp or quic",
    ),
    (
        "transport.heartbeatInterval = 10\ntransport.heartbeatTimeout = 5",
        ":2: invalid transport.heartbeatTimeout, heartbeat timeout should not less than heartbeat "
        "interval",
    ),
    (
        "transport.protocol = 'udp'",
        ":1: invalid transport.protocol, optional values are [tcp kcp quic websocket wss auto]",
    ),
    # The way out.
    (
        "transport.protocol = 'auto'\ntransport.auto.ladder = ['tcp', 'wsss:443']",
        ':2: transport.auto.ladder: unknown rung "wsss:443", did you mean "wss"?',
    ),
    (
        "transport.auto.ladder = ['http']",
        ':1: transport.auto.ladder: unknown rung "http"; it is one of tcp, wss, websocket, kcp, '
        "quic, with :PORT and +proxy behind it where wanted",
    ),
    (
        "transport.auto.ladder = ['tcp:70000']",
        ':1: transport.auto.ladder: rung "tcp:70000": the port is not a number from 1 to 65535',
    ),
    (
        "transport.auto.ladder = ['kcp:7000+proxy']",
        'rung "kcp:7000+proxy": kcp is UDP, which these proxies do not carry',
    ),
    (
        "transport.auto.ladder = ['wss+proxy', 'WSS+proxy']",
        'transport.auto.ladder: "wss+proxy" stands there twice',
    ),
    (
        "transport.auto.ladder = []",
        ":1: transport.auto.ladder is empty; remove it for the usual one: tcp, wss, websocket, "
        "tcp+proxy, wss+proxy, websocket+proxy",
    ),
    (
        "transport.auto.rungTimeout = -1",
        ":1: transport.auto.rungTimeout must be a number of seconds above 0",
    ),
    (
        "dnsServer = 'dns.example.com'",
        ':1: dnsServer: "dns.example.com" is no address; write the address of the server, with a '
        "port if it is not 53: 192.0.2.53",
    ),
    ("dnsServer = '192.0.2.53:0'", ':1: dnsServer: "192.0.2.53:0" is no address; write'),
    (
        "transport.connectServerLocalIP = 'eth0'",
        ':1: transport.connectServerLocalIP: "eth0" is no address; write an address of this',
    ),
    (
        "transport.dialServerTimeout = -1",
        ":1: transport.dialServerTimeout must be a number of seconds above 0",
    ),
    (
        "transport.tls.pinnedSHA256 = ['AB:CD']",
        ':1: transport.tls.pinnedSHA256: "AB:CD" is no SHA-256 fingerprint: write the 64 '
        'hexadecimal digits that the server logs at start as "tls certificate"',
    ),
    (
        f"transport.tls.enable = false\ntransport.tls.pinnedSHA256 = ['{'ab' * 32}']",
        ":2: transport.tls.pinnedSHA256 has no effect without transport.tls.enable; without TLS",
    ),
    (
        "transport.wireProtocol = 'v3'",
        ":1: invalid transport.wireProtocol, optional values are [v1 v2]",
    ),
    (
        "transport.proxyURL = 'proxy:3128'",
        ":1: transport.proxyURL: it must begin with the proxy's scheme, as in http://proxy.example",
    ),
    (
        "transport.proxyURL = 'http://u:p@proxy:66666'",
        ":1: transport.proxyURL: the proxy's port is not a number from 1 to 65535",
    ),
    (
        "virtualNet.address = '10.0.0.1/24'",
        ":1: VirtualNet feature is not enabled; enable it by setting the appropriate feature gate",
    ),
    ("auth.method = 'oidc'", "auth.oidc.clientID is required; auth.oidc.tokenEndpointURL is"),
    (
        "auth.method = 'oidc'\nauth.oidc = { clientID = 'x', tokenEndpointURL = 'x' }",
        "auth.oidc.tokenEndpointURL must be an absolute http or https URL",
    ),
    *(
        (
            f"auth.method = 'oidc'\nauth.oidc = {{ clientID = 'x', tokenEndpointURL = '{url}' }}",
            f"auth.oidc.tokenEndpointURL {fault}",
        )
        for url, fault in (
            ("https://x:y/", "has a host or a port that there cannot be"),
            ("https://x:99999/", "has a host or a port that there cannot be"),
            ("https://[::1/", "has a host or a port that there cannot be"),
            ("https://:443/", "names no host"),
            ("https://x/a b", "has a space or a letter in it that must be percent-encoded"),
        )
    ),
    (
        "auth.method = 'oidc'\nauth.oidc = { clientID = 'x', tokenEndpointURL = 'ftp://x' }",
        "auth.oidc.tokenEndpointURL must use http or https",
    ),
    (
        "auth.method = 'oidc'\nauth.oidc = { clientID = 'x', tokenEndpointURL = 'https://x/', "
        "proxyURL = 'proxy:3128' }",
        "auth.oidc.proxyURL: it must begin with the proxy's scheme, as in",
    ),
    (
        "auth.method = 'oidc'\nauth.oidc.additionalEndpointParams.scope = 'x'",
        "auth.oidc.additionalEndpointParams.scope is not allowed; use auth.oidc.scope instead",
    ),
    (
        "auth.method = 'oidc'\nauth.oidc.audience = 'x'\n"
        "auth.oidc.additionalEndpointParams.audience = 'x'",
        "cannot specify both auth.oidc.audience and auth.oidc.additionalEndpointParams.audience",
    ),
    (
        "auth.oidc.scope = 'x'\nauth.oidc.tokenSource = { type = 'file', file = { path = 'x' } }",
        ":2: cannot specify both auth.oidc.tokenSource and any other field of auth.oidc",
    ),
    ("auth.oidc.tokenSource.type = 'x'", "invalid auth.oidc.tokenSource: unsupported value source"),
    (
        "auth.oidc.tokenSource = { type = 'exec', exec = { command = 'x' } }",
        'unsafe feature "TokenSourceExec" is not enabled',
    ),
    (
        "includes = ['./nonexistent/*.toml']",
        "/nonexistent: no such file or directory (includes[0])",
    ),
]


@pytest.mark.parametrize(("text", "words"), SERVER, ids=range(len(SERVER)))
def test_the_server_file_is_refused_in_these_words(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "frps.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(("text", "words"), CLIENT, ids=range(len(CLIENT)))
def test_the_client_file_is_refused_in_these_words(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "frpc.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_client(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)


def test_faults_are_collected_in_frps_order(tmp_path: Path) -> None:
    path = tmp_path / "frpc.toml"
    path.write_text(
        "webServer.port = 70000\ntransport.protocol = 'q'\nauth.method = 'x'\nlog.level = 'y'\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_client(path)
    words = ["auth method", "log level", "webServer.port", "transport.protocol"]
    lines = str(caught.value).split("\n")
    assert len(lines) == 4
    assert all(word in line for word, line in zip(words, lines, strict=True))
    assert (caught.value.key, caught.value.line) == ("auth.method", 3)


def test_unknown_keys_are_listed_by_line_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "frps.toml"
    path.write_text("\n".join(f"unknown{number} = 1" for number in range(50)))
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    lines = str(caught.value).split("\n")
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more"
    assert [int(line.split(":")[1]) for line in lines[:-1]] == list(range(1, 21))


def test_a_file_for_the_other_role_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "frpc.toml"
    path.write_text("serverAddr = 'x'\n" + HTTP)
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    first = str(caught.value).split("\n")[0]
    assert "this looks like the client's file" in first
    assert "try `pyfrp client`" in first


UNSUPPORTED_SERVER = [
    ("sshTunnelGateway.bindPort = 1", "sshTunnelGateway.bindPort"),
    ("webServer.port = 1", "webServer.port"),
    ("enablePrometheus = true", "enablePrometheus"),
    ("[[httpPlugins]]\nname = 'x'\nops = ['Login']", "httpPlugins"),
]
UNSUPPORTED_CLIENT = [
    ("webServer.port = 7400", "webServer.port"),
    ("store.path = 'x'", "store.path"),
    ("featureGates.VirtualNet = true", "featureGates.VirtualNet"),
    (
        "featureGates.VirtualNet = true\nvirtualNet.address = '10.0.0.1/24'",
        "virtualNet.address",
    ),
    (TCP + "plugin.type = 'virtual_net'", 'proxy a: plugin.type = "virtual_net"'),
    (
        TCP + "plugin.type = 'socks5'\ntransport.proxyProtocolVersion = 'v2'",
        "proxy a: transport.proxyProtocolVersion",
    ),
    (
        VISITOR.replace("xtcp", "stcp")
        + "serverName = 's'\nbindPort = 1\nplugin.type = 'virtual_net'",
        "visitor v: plugin is",
    ),
]


@pytest.mark.parametrize(("text", "words"), UNSUPPORTED_SERVER)
def test_the_server_refuses_what_it_cannot_do_yet(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "frps.toml"
    path.write_text("bindPort = 1\n" + text)
    cfg = load_server(path, allow_unsafe=["TokenSourceExec"])
    with pytest.raises(ConfigError) as caught:
        check_supported(cfg)
    assert f"{path}:2: {words} " in str(caught.value)
    assert " not available in this release of pyfrp: " in str(caught.value)


@pytest.mark.parametrize(("text", "words"), UNSUPPORTED_CLIENT)
def test_the_client_refuses_what_it_cannot_do_yet(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "frpc.toml"
    path.write_text(text)
    cfg = load_client(path)
    with pytest.raises(ConfigError) as caught:
        check_supported(cfg)
    assert words in str(caught.value)
    assert " not available in this release of pyfrp: " in str(caught.value)
    assert caught.value.line is not None


def test_a_visitor_that_speaks_quic_needs_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "frpc.toml"
    path.write_text(VISITOR + "serverName = 's'\nbindPort = 1\n")
    monkeypatch.setattr("pyfrp.config.support.find_spec", lambda name: name)
    check_supported(load_client(path))
    monkeypatch.setattr("pyfrp.config.support.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_supported(load_client(path))
    assert 'visitor v: protocol = "quic" is not available in this installation: ' in str(
        caught.value
    )
    assert 'pip install "pyfrp-tunnel[quic]"' in str(caught.value)
    path.write_text(path.read_text() + "protocol = 'kcp'\n")
    check_supported(load_client(path))


def test_a_link_over_quic_needs_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "frpc.toml", tmp_path / "frps.toml"
    theirs.write_text("transport.protocol = 'quic'\n")
    ours.write_text("quicBindPort = 1\n")
    monkeypatch.setattr("pyfrp.config.support.find_spec", lambda name: name)
    check_supported(load_client(theirs))
    check_supported(load_server(ours))
    monkeypatch.setattr("pyfrp.config.support.find_spec", lambda name: None)
    for cfg, words in (
        (load_client(theirs), 'transport.protocol = "quic" is'),
        (load_server(ours), "quicBindPort is"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_supported(cfg)
        assert f":1: {words} not available in this installation: " in str(caught.value)
        assert 'pip install "pyfrp-tunnel[quic]"' in str(caught.value)
    ours.write_text("quicBindPort = 0\n")
    check_supported(load_server(ours))


def test_an_unknown_feature_gate_is_refused_at_start_in_frps_words(tmp_path: Path) -> None:
    path = tmp_path / "frpc.toml"
    path.write_text("featureGates.Foo = true\n")
    cfg = load_client(path)
    with pytest.raises(ConfigError, match=r":1: unrecognized feature gate: Foo"):
        check_supported(cfg)


SUPPORTED_CLIENT = [
    "natHoleStunServer = 'x'\nudpPacketSize = 1400\nfeatureGates.VirtualNet = false\n",
    "transport.quic.keepalivePeriod = 5\nauth.oidc.scope = 'x'\nwebServer.user = 'x'\n",
    TCP + "loadBalancer = { group = 'g', groupKey = 'x' }\nhealthCheck.intervalSeconds = 5\n"
    "transport.bandwidthLimit = '1MB'\ntransport.bandwidthLimitMode = 'server'\n",
    HTTP + "locations = ['/a']\nhttpUser = 'u'\nhttpPassword = 'p'\nrouteByHTTPUser = 'u'\n"
    "hostHeaderRewrite = 'h'\nrequestHeaders.set.a = 'b'\nresponseHeaders.set.a = 'b'\n"
    "transport.useEncryption = true\ntransport.useCompression = true\nannotations.a = 'b'\n",
    "[[proxies]]\nname = 'a'\ntype = 'https'\ncustomDomains = ['a']\n",
    "[[proxies]]\nname = 'a'\ntype = 'tcpmux'\ncustomDomains = ['a']\n"
    "multiplexer = 'httpconnect'\n",
    TCP.replace("tcp", "udp") + "transport.proxyProtocolVersion = 'v2'\n",
    "[[proxies]]\nname = 'a'\ntype = 'sudp'\ntransport.proxyProtocolVersion = 'v1'\n",
    VISITOR.replace("xtcp", "sudp") + "serverName = 's'\nbindPort = -1\n",
    # Disabled entries are not looked at.
    "[[proxies]]\nname = 'a'\ntype = 'xtcp'\nenabled = false\n",
]


@pytest.mark.parametrize("text", SUPPORTED_CLIENT)
def test_what_has_no_effect_is_not_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "frpc.toml"
    path.write_text(text)
    check_supported(load_client(path))
