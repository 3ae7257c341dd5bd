"""A client's way through a proxy: where it is named, and what is said when it does not carry."""

from __future__ import annotations

from typing import Any

import pytest

from pyfrp.client.route import Route, make_proxy, make_route
from pyfrp.client.transports.proxied import Cuts, blaming, idle_cut
from pyfrp.config import ClientConfig
from pyfrp.errors import ConfigError, HandshakeError, MuxError, PeerClosed

URL = "http://user:hunter2@proxy.test:3128"


def route(**transport: Any) -> Route:
    cfg = ClientConfig()
    for name, value in {"proxy_url": URL, **transport}.items():
        setattr(cfg.transport, name, value)
    cfg.transport.tls.server_name = "frps.test"
    return make_route(cfg)


def test_a_route_knows_its_proxy():
    proxy = route().proxy
    assert proxy is not None
    assert (proxy.place, proxy.user, proxy.password) == ("proxy.test:3128", "user", "hunter2")
    assert "hunter2" not in repr(route())
    assert route(protocol="kcp").proxy is None
    assert route(proxy_url="").proxy is None


def test_the_variable_of_frp_is_known(monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://other.test")
    proxy = route(proxy_url="").proxy
    assert proxy is not None
    assert (proxy.place, proxy.named_by) == ("other.test:1080", "http_proxy in the environment")


def test_pings_are_closer_through_a_proxy_unless_the_file_says_otherwise():
    assert route().mux_keepalive_s == 15
    assert route(tcp_mux_keepalive_interval=40).mux_keepalive_s == 40
    assert route(proxy_url="").mux_keepalive_s == 30


def test_a_url_that_cannot_be_used_is_a_fault_of_the_file():
    with pytest.raises(ConfigError) as caught:
        make_proxy("transport.proxyURL", "http://user:hunter2@:3128")
    assert str(caught.value) == (
        "transport.proxyURL: the proxy's host is missing, as in http://proxy.example.com:3128"
    )


def blamed(way: Route, exc: Exception) -> str:
    with pytest.raises(type(exc)) as caught, blaming(way):
        raise exc
    return str(caught.value)


CUT = HandshakeError("it was cut", unanswered=True)


@pytest.mark.parametrize(
    ("transport", "hint"),
    [
        ({}, 'cuts TLS that is not HTTPS: try transport.protocol = "wss"'),
        ({"protocol": "websocket"}, 'cuts TLS that is not HTTPS: try transport.protocol = "wss"'),
        (
            {"protocol": "wss"},
            "if the server is there and speaks wss, the proxy lets no traffic of ours pass: have "
            "its administrators exempt serverAddr from inspection",
        ),
    ],
)
def test_a_tunnel_without_an_answer_is_blamed_on_the_proxy(transport, hint):
    said = blamed(route(**transport), CUT)
    assert said.startswith("it was cut (through the proxy proxy.test:3128); if the server is there")
    assert said.endswith(hint)


def test_without_tls_the_hint_is_another():
    cfg = ClientConfig()
    cfg.transport.proxy_url = URL
    cfg.transport.tls.enable = False
    assert "cuts what is neither TLS nor HTTP: try" in blamed(make_route(cfg), CUT)


def test_what_the_server_said_is_not_blamed_on_the_proxy():
    assert blamed(route(), HandshakeError("a bad certificate")) == "a bad certificate"
    assert blamed(route(proxy_url=""), CUT) == "it was cut"


@pytest.mark.parametrize(
    ("transport", "cause", "silent_s", "said"),
    [
        ({}, PeerClosed("closed"), 20.2, "transport.tcpMuxKeepaliveInterval = 10"),
        ({"tcp_mux": False}, PeerClosed("closed"), 20.2, "transport.heartbeatInterval = 10"),
        ({}, PeerClosed("closed"), 0.5, ""),
        ({}, MuxError("broken"), 20.2, ""),
        ({"proxy_url": ""}, PeerClosed("closed"), 20.2, ""),
    ],
)
def test_a_link_that_is_lost_after_some_silence_is_blamed_on_the_proxy(
    transport, cause, silent_s, said
):
    words = idle_cut(route(**transport), cause, silent_s)
    assert words == (
        "nothing had come for 20 s; if this repeats, the proxy proxy.test:3128 cuts what is idle: "
        f"set {said}"
        if said
        else ""
    )


def test_links_that_are_lost_at_the_same_age_are_blamed_on_the_proxy():
    cuts, way, lost = Cuts(), route(), PeerClosed("closed")
    assert cuts.hint(way, lost, 0.5, 20.1) == ""
    assert cuts.hint(way, lost, 0.5, 20.4) == (
        "two sessions in a row ended after 20 s, though bytes were moving: the proxy "
        "proxy.test:3128 seems to limit how long a tunnel lasts, which cuts the requests in it: "
        "have its administrators raise the limit for 0.0.0.0:7000"
    )
    assert cuts.hint(way, lost, 0.5, 40.0) == ""  # Another age,
    assert cuts.hint(way, MuxError("x"), 0.5, 40.0) == ""  # another cause,
    direct = route(proxy_url="")
    assert cuts.hint(direct, lost, 0.5, 40.0) == ""  # no proxy,
    assert cuts.hint(way, lost, 0.5, 40.0) == ""  # none before,
    for _ in range(3):
        assert cuts.hint(way, lost, 0.5, 2.0) == ""  # too young.
    # Silence says more.
    assert "cuts what is idle" in cuts.hint(way, lost, 20.0, 20.0)
