"""The URLs of proxies on the way out, and the environment that names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.config import ClientConfig, load_client
from pyfrp.config.outproxy import named_proxy, parse_proxy_url, proxy_from_environment
from pyfrp.errors import ConfigError

GOOD = [
    ("http://proxy", ("http", "proxy", 80, None, "")),
    ("http://proxy:3128/", ("http", "proxy", 3128, None, "")),
    ("HTTPS://proxy", ("https", "proxy", 443, None, "")),
    ("socks5://10.0.0.1", ("socks5", "10.0.0.1", 1080, None, "")),
    ("socks5h://[fd00::1]:99", ("socks5h", "fd00::1", 99, None, "")),
    ("http://u:p@proxy:1", ("http", "proxy", 1, "u", "p")),
    ("http://u@proxy:1", ("http", "proxy", 1, "u", "")),
    ("http://u:@proxy:1", ("http", "proxy", 1, "u", "")),
    ("http://u:a:b@proxy:1", ("http", "proxy", 1, "u", "a:b")),
    ("http://me@example.com:p@proxy:1", ("http", "proxy", 1, "me@example.com", "p")),
    ("http://%C3%A4%40:%2F%25%23@proxy:1", ("http", "proxy", 1, "ä@", "/%#")),
    ("ntlm://CORP\\me:p@proxy:8080", ("ntlm", "proxy", 8080, "CORP\\me", "p")),
    ("ntlm://CORP%5Cme:p@proxy:8080", ("ntlm", "proxy", 8080, "CORP\\me", "p")),
]

SECRET = "hunter2"
BAD = [
    ("", "it must begin with the proxy's scheme, as in http://proxy.example.com:3128"),
    ("proxy:3128", "it must begin with the proxy's scheme"),
    ("10.0.0.1:3128", "it must begin with the proxy's scheme"),
    (f"u:{SECRET}@proxy:3128", "it must begin with the proxy's scheme"),
    ("ftp://proxy:21", "the scheme ftp is not one of http, https, ntlm, socks5, socks5h"),
    ("socks4://proxy:21", "the scheme socks4 is not one of"),
    ("http://", "the proxy's host is missing"),
    ("http://:3128", "the proxy's host is missing"),
    (f"http://u:{SECRET}@:3128", "the proxy's host is missing"),
    ("http://proxy:", "the proxy's port is not a number from 1 to 65535"),
    ("http://proxy:0", "the proxy's port is not a number from 1 to 65535"),
    ("http://proxy:65536", "the proxy's port is not a number from 1 to 65535"),
    ("http://proxy:99999999999999999999", "the proxy's port is not a number from 1 to 65535"),
    ("http://proxy:http", "the proxy's port is not a number from 1 to 65535"),
    ("http://proxy:٣", "the proxy's port is not a number from 1 to 65535"),
    ("http://fd00::1:3128", "an IPv6 address of the proxy needs brackets: http://[::1]:3128"),
    ("http://[fd00::1::2]:3128", "the proxy's host is not a valid IPv6 address"),
    ("http://pro xy:3128", "the proxy's host has a character that host names may not have"),
    ("http://wpad/proxy.pac", "it names a PAC file, not a proxy"),
    ("http://proxy:3128/path", "nothing may follow the proxy's host and port"),
    (f"http://u:{SECRET}#1@proxy:3128", "write @ as %40, : as %3A, / as %2F, # as %23"),
    (f"http://u:{SECRET}/1@proxy:3128", "write @ as %40, : as %3A, / as %2F, # as %23"),
    (f"http://u:{SECRET}%zz@proxy:3128", "a percent sign without two hexadecimal digits"),
    (f"http://u:{SECRET}%ff@proxy:3128", "is not UTF-8 when its %XX are undone"),
    (f"http://u:{SECRET}%0d%0aX@proxy:3128", "may not hold control characters"),
]


@pytest.mark.parametrize(("url", "parts"), GOOD)
def test_a_url_is_taken_apart(url, parts):
    assert tuple(parse_proxy_url(url)) == parts


@pytest.mark.parametrize(("url", "words"), BAD)
def test_a_bad_url_is_refused_in_these_words(url, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        parse_proxy_url(url)
    assert SECRET not in str(caught.value)


def test_no_secret_is_shown_by_accident():
    parts = parse_proxy_url(f"http://u:{SECRET}@proxy:3128")
    assert SECRET not in f"{parts} {parts!r}"
    named = proxy_from_environment({"http_proxy": f"http://u:{SECRET}@p"}, "h", 1, secure=False)
    assert named is not None
    assert SECRET not in f"{named} {named!r}"


@given(st.text())
def test_anything_is_taken_apart_or_refused(text):
    for url in (text, f"http://{text}", f"http://{text}@proxy"):
        try:
            parts = parse_proxy_url(url)
        except ValueError:
            continue
        assert 0 < parts.port < 65536
        assert parts.host


@pytest.mark.parametrize(
    ("environ", "secure", "found"),
    [
        ({}, True, None),
        ({"http_proxy": "http://a:1"}, False, ("http_proxy", "http://a:1")),
        ({"http_proxy": "http://a:1"}, True, ("http_proxy", "http://a:1")),
        ({"HTTPS_PROXY": "http://b:1"}, False, ("HTTPS_PROXY", "http://b:1")),
        (
            {"http_proxy": "http://a:1", "https_proxy": "http://b:1"},
            True,
            ("https_proxy", "http://b:1"),
        ),
        (
            {"http_proxy": "http://a:1", "https_proxy": "http://b:1"},
            False,
            ("http_proxy", "http://a:1"),
        ),
        ({"http_proxy": "a:1", "HTTP_PROXY": "b:1"}, False, ("http_proxy", "http://a:1")),
        ({"http_proxy": " ", "HTTP_PROXY": "b:1"}, False, ("HTTP_PROXY", "http://b:1")),
        ({"HTTP_PROXY": "b:1", "REQUEST_METHOD": "GET"}, False, None),
        ({"ALL_PROXY": "socks5h://c:1"}, True, ("ALL_PROXY", "socks5h://c:1")),
        ({"http_proxy": "a:1", "NO_PROXY": "*"}, False, None),
    ],
)
def test_the_environment_names_a_proxy(environ, secure, found):
    assert proxy_from_environment(environ, "frp.example.com", 7000, secure=secure) == found


@pytest.mark.parametrize(
    ("environ", "host", "secure", "found"),
    [
        ({"http_proxy": "a:1", "all_proxy": "c:1"}, "x", True, None),
        ({"https_proxy": "b:1", "all_proxy": "c:1"}, "x", False, None),
        ({"https_proxy": "b:1"}, "x", True, ("https_proxy", "http://b:1")),
        ({"https_proxy": "b:1"}, "localhost", True, None),
        ({"https_proxy": "b:1"}, "127.9.9.9", True, None),
        ({"https_proxy": "b:1"}, "::1", True, None),
    ],
)
def test_the_environment_may_be_read_to_the_letter_of_go(environ, host, secure, found):
    assert proxy_from_environment(environ, host, 443, secure=secure, as_go=True) == found


@pytest.mark.parametrize(
    ("no_proxy", "host", "exempt"),
    [
        ("example.com", "example.com", True),
        ("example.com", "frp.example.com", True),
        ("example.com", "notexample.com", False),
        (".example.com", "frp.example.com", True),
        (".example.com", "example.com", False),
        ("*.example.com", "frp.example.com", True),
        ("*.example.com", "example.com", False),
        ("EXAMPLE.com", "frp.Example.COM.", True),
        ("a, b example.com", "example.com", True),
        ("example.com:7000", "example.com", True),
        ("example.com:443", "example.com", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "ten.example.com", False),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("1.2.3", "10.1.2.3", False),
        ("10.1.2.3:7000", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("fd00::/8", "fd00::1", True),
        ("fd00::1", "[fd00:0::1]", True),
        ("[fd00::1]:7000", "fd00::1", True),
        ("[fd00::1]:80", "fd00::1", False),
        ("*", "anything", True),
        ("", "anything", False),
        (",,", "anything", False),
        (".", "anything", False),
    ],
)
def test_no_proxy_exempts_servers(no_proxy, host, exempt):
    environ = {"http_proxy": "http://a:1", "no_proxy": no_proxy}
    assert (proxy_from_environment(environ, host, 7000, secure=False) is None) is exempt


@given(st.text(), st.text())
def test_any_no_proxy_is_survived(no_proxy, host):
    proxy_from_environment({"no_proxy": no_proxy}, host, 1, secure=True)


# -- in a client's file -------------------------------------------------------------------------


def loaded(text: str, tmp_path: Path) -> ClientConfig:
    path = tmp_path / "frpc.toml"
    path.write_text(text, encoding="utf-8")
    return load_client(path)


@pytest.mark.parametrize("protocol", ["tcp", "websocket", "wss"])
def test_the_key_counts_before_the_variable(protocol, tmp_path):
    cfg = loaded(f"transport.protocol = '{protocol}'\ntransport.proxyURL = 'http://a'", tmp_path)
    environ = {"http_proxy": "http://b", "HTTP_PROXY": "http://c", "no_proxy": "*"}
    url = cfg.transport.proxy_url
    assert named_proxy(url, protocol, environ) == ("transport.proxyURL", "http://a")
    # As in frp, which knows neither other variables nor no_proxy.
    assert named_proxy("", protocol, environ) == ("http_proxy in the environment", "http://b")
    assert named_proxy("", protocol, {"http_proxy": "b:1"}) is not None
    assert named_proxy("", protocol, {"HTTP_PROXY": "http://c"}) is None
    assert not any("proxyURL" in text for text in cfg.warnings)


@pytest.mark.parametrize("protocol", ["kcp", "quic"])
def test_what_is_udp_goes_past_the_proxy_and_says_so(protocol, tmp_path):
    cfg = loaded(f"transport.protocol = '{protocol}'\ntransport.proxyURL = 'http://a'", tmp_path)
    assert named_proxy("http://a", protocol, {"http_proxy": "http://b"}) is None
    assert [text for text in cfg.warnings if "proxyURL" in text] == [
        f"transport.proxyURL is not used: {protocol} is UDP, which proxies do not carry; take "
        'transport.protocol = "wss", "websocket" or "tcp" to go through the proxy'
    ]


def test_a_bad_variable_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"ftp://u:{SECRET}@proxy")
    with pytest.raises(ConfigError) as caught:
        loaded("serverAddr = 'a'", tmp_path)
    assert "http_proxy in the environment: the scheme ftp is not one of" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert loaded("transport.protocol = 'kcp'", tmp_path)
