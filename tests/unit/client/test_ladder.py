"""The protocol `auto`: which ways are tried, in which order, and what is said of it."""

from __future__ import annotations

import asyncio
from errno import ECONNREFUSED

import pytest

from pyfrp.client import ladder as module
from pyfrp.client.ladder import Ladder, NoWay
from pyfrp.client.route import make_route
from pyfrp.config import client_from_dict
from pyfrp.errors import (
    AuthError,
    CertificateError,
    ConfigError,
    DialError,
    HandshakeError,
    LoginRefused,
    LookupFailed,
    ProxyError,
)
from tests.unit.server.scene import Log

PROXY = "http://user:secret@proxy.test:3128"
SILENT = DialError("dial tcp 203.0.113.7:7000: no answer within 5 s")
REFUSED = DialError("dial tcp 203.0.113.7:7000: connection refused", ECONNREFUSED)
CUT = HandshakeError("the peer closed the connection during the TLS handshake")
DENIED = ProxyError("the proxy proxy.test:3128 refuses a tunnel (403 Forbidden): ask for it", 403)
FORGED = CertificateError("the certificate at s:7000 is not a pinned one (...)")


class Net:
    """Answers attempts from a table of ways; whatever it does not hold works."""

    def __init__(self, **failures):
        self.failures = failures
        self.tried = []

    async def attempt(self, route, login_s, proof):
        way = route.protocol
        if route.port != 7000:
            way += str(route.port)
        if route.proxy is not None:
            way += "_proxy"
        self.tried.append((way, route.dial_timeout_s))
        assert login_s == route.dial_timeout_s
        failure = self.failures.get(way)
        if failure is not None:
            raise failure
        return way

    @property
    def ways(self):
        return [way for way, _ in self.tried]


def ladder_of(*, environ=None, proxy="", **auto):
    transport = {"protocol": "auto", "auto": auto}
    if proxy:
        transport["proxyURL"] = proxy
    cfg = client_from_dict({"serverAddr": "203.0.113.7", "transport": transport})
    log = Log()
    made = Ladder(cfg, make_route(cfg), log, environ or {})
    return made


async def prove():
    return "key", 1


def said(ladder):
    return ladder.log.events("info")[-1]


async def test_the_first_way_that_works_is_taken():
    ladder, net = ladder_of(), Net()
    assert await ladder.climb(prove, net.attempt) == "tcp"
    assert net.tried == [("tcp", 5.0)]
    assert said(ladder) == "connected by tcp"


async def test_a_way_that_is_gone_by_has_the_usual_time_for_its_later_connections():
    async def attempt(route, login_s, proof):
        assert (route.dial_timeout_s, route.later_timeout_s) == (5.0, 10.0)
        return "tcp"

    assert await ladder_of().climb(prove, attempt) == "tcp"


async def test_whoever_gives_out_what_is_shown_may_be_slow():
    """Such as a program, or a provider: the ways are not to blame, and have their whole time."""
    ladder, asked = ladder_of(rungTimeout=1), []
    ladder._rung_s = ladder._most_s = 0.02

    async def slow():
        await asyncio.sleep(0.2)
        asked.append(len(asked))
        return asked[-1]

    async def attempt(route, login_s, proof):
        assert proof == asked[-1]
        if route.protocol == "tcp":
            raise CUT
        return route.protocol

    assert await ladder.climb(slow, attempt) == "wss"
    assert asked == [0, 1]


async def test_one_line_says_what_was_chosen_and_why_the_others_failed():
    ladder = ladder_of(environ={"HTTPS_PROXY": PROXY}, ladder=["tcp", "wss:443", "wss+proxy"])
    net = Net(tcp=SILENT, wss443=CUT)
    assert await ladder.climb(prove, net.attempt) == "wss_proxy"
    assert said(ladder) == (
        "connected by wss through http://proxy.test:3128; failed before: "
        "(1) tcp: dial tcp 203.0.113.7:7000: no answer within 5 s; "
        "(2) wss:443: the peer closed the connection during the TLS handshake"
    )
    assert "secret" not in said(ladder)


async def test_ways_that_begin_with_the_same_connection_fail_together():
    ladder = ladder_of(proxy=PROXY)
    net = Net(tcp=SILENT, tcp_proxy=CUT)
    assert await ladder.climb(prove, net.attempt) == "wss_proxy"
    assert net.ways == ["tcp", "tcp_proxy", "wss_proxy"]
    assert "failed before: (1) tcp, wss, websocket: dial tcp" in said(ladder)


async def test_another_port_or_a_proxy_is_another_connection():
    ladder = ladder_of(proxy=PROXY, ladder=["tcp", "tcp:443", "tcp+proxy", "tcp:443+proxy"])
    net = Net(tcp=REFUSED, tcp443=REFUSED, tcp_proxy=DENIED)
    assert await ladder.climb(prove, net.attempt) == "tcp443_proxy"
    assert net.ways == ["tcp", "tcp443", "tcp_proxy", "tcp443_proxy"]


async def test_a_refused_login_is_an_answer():
    ladder, net = ladder_of(), Net(tcp=CUT, wss=LoginRefused("token in login doesn't match"))
    with pytest.raises(LoginRefused):
        await ladder.climb(prove, net.attempt)
    assert net.ways == ["tcp", "wss"]
    assert said(ladder).startswith("connected by wss; failed before: tcp: ")
    with pytest.raises(LoginRefused):
        await ladder.climb(prove, net.attempt)
    assert net.ways == ["tcp", "wss", "wss"]


async def test_who_has_nothing_to_log_in_with_learns_nothing_of_ways():
    ladder, net = ladder_of(), Net(tcp=AuthError("couldn't acquire OIDC token"))
    with pytest.raises(AuthError):
        await ladder.climb(prove, net.attempt)
    assert net.ways == ["tcp"]
    assert ladder.log.events() == []


async def test_what_worked_is_tried_first_and_the_others_only_in_passing():
    ladder, net = ladder_of(proxy=PROXY), Net(tcp=CUT, wss=CUT)
    assert await ladder.climb(prove, net.attempt) == "websocket"
    net.tried.clear()
    assert await ladder.climb(prove, net.attempt) == "websocket"
    assert net.tried == [("websocket", 5.0)]
    # The network is another one now.
    net.tried.clear()
    net.failures = {"websocket": SILENT}
    assert await ladder.climb(prove, net.attempt) == "tcp_proxy"
    assert net.tried == [("websocket", 5.0), ("tcp_proxy", 2.0)]


async def test_an_hour_later_better_ways_are_tried_in_passing_at_the_next_login(monkeypatch):
    monkeypatch.setattr(module, "BETTER_AFTER_S", -1.0)
    ladder, net = ladder_of(), Net(tcp=CUT, wss=CUT)
    assert await ladder.climb(prove, net.attempt) == "websocket"
    net.tried.clear()
    net.failures = {"tcp": CUT}
    assert await ladder.climb(prove, net.attempt) == "wss"
    assert net.tried == [("tcp", 2.0), ("wss", 2.0)]
    monkeypatch.setattr(module, "BETTER_AFTER_S", 3600.0)
    net.tried.clear()
    assert await ladder.climb(prove, net.attempt) == "wss"
    assert net.tried == [("wss", 5.0)]


async def test_a_way_on_which_sessions_are_short_is_tried_last():
    ladder, net = ladder_of(proxy=PROXY), Net(tcp=SILENT)
    assert await ladder.climb(prove, net.attempt) == "tcp_proxy"
    for lasted_s in (20.0, 70.0, 20.0, 20.0):
        ladder.ended(lasted_s)
        assert await ladder.climb(prove, net.attempt) == "tcp_proxy"
    net.tried.clear()
    ladder.ended(20.0)
    assert await ladder.climb(prove, net.attempt) == "wss_proxy"
    assert net.tried == [("wss_proxy", 5.0)]
    # Where nothing else works it is taken all the same.
    for _ in range(3):
        ladder.ended(20.0)
    net.failures = dict.fromkeys(("tcp", "websocket_proxy", "tcp_proxy"), CUT)
    net.failures |= dict.fromkeys(("wss", "websocket"), CUT)
    assert await ladder.climb(prove, net.attempt) == "wss_proxy"
    assert (
        "failed before: websocket through http://proxy.test:3128, tcp, wss, websocket, tcp through"
        in (said(ladder))
    )


async def test_the_patience_grows_while_nothing_works():
    failures = dict.fromkeys(("tcp", "wss", "websocket"), CUT)
    ladder, net = ladder_of(ladder=["tcp"]), Net(**failures)
    for _ in range(4):
        with pytest.raises(NoWay):
            await ladder.climb(prove, net.attempt)
    assert [seconds for _, seconds in net.tried] == [5.0, 10.0, 10.0, 10.0]
    net.failures = {}
    await ladder.climb(prove, net.attempt)
    await ladder.climb(prove, net.attempt)
    assert net.tried[-1] == ("tcp", 5.0)


async def test_the_time_of_a_climb_is_told_until_all_patience_was_in_vain():
    # Three ways and three through a proxy, which none is.
    ladder, net = ladder_of(), Net(**dict.fromkeys(("tcp", "wss", "websocket"), CUT))
    told = []
    for _ in range(4):
        told.append(ladder.climb_s)
        with pytest.raises(NoWay):
            await ladder.climb(prove, net.attempt)
    assert told == [2 * 5.0 * 3, 2 * 10.0 * 3, 0.0, 0.0]


async def test_a_way_that_stands_and_does_not_answer_is_left():
    ladder = ladder_of(ladder=["tcp", "wss"])
    ladder._rung_s = 0.02

    async def attempt(route, login_s, proof):
        if route.protocol == "tcp":
            await asyncio.Event().wait()
        return route.protocol

    assert await ladder.climb(prove, attempt) == "wss"
    assert "tcp: the login was not done within 0.04 s" in said(ladder)


async def test_the_proxy_of_the_configuration_counts_before_the_environments():
    ladder = ladder_of(proxy="socks5://own.test:1080", environ={"HTTPS_PROXY": PROXY})
    proxies = {way.route.proxy for way in ladder._ways if way.rung.proxied}
    assert [str(way) for way in ladder._ways][3:] == [
        "tcp through socks5://own.test:1080",
        "wss through socks5://own.test:1080",
        "websocket through socks5://own.test:1080",
    ]
    # One object, because it remembers how the proxy wants to be asked.
    assert len({id(proxy) for proxy in proxies}) == 1


async def test_each_way_goes_by_the_variable_for_it():
    environ = {"https_proxy": "http://one.test:1", "http_proxy": "http://two.test:2"}
    ladder = ladder_of(environ=environ, ladder=["wss+proxy", "websocket+proxy"])
    assert [str(way) for way in ladder._ways] == [
        "wss through http://one.test:1",
        "websocket through http://two.test:2",
    ]


@pytest.mark.parametrize("environ", [{}, {"HTTPS_PROXY": PROXY, "NO_PROXY": "203.0.113.0/24"}])
async def test_without_a_proxy_its_ways_are_left_out(environ):
    ladder, net = ladder_of(environ=environ), Net(tcp=SILENT)
    with pytest.raises(NoWay) as caught:
        await ladder.climb(prove, net.attempt)
    assert net.ways == ["tcp"]
    assert str(caught.value) == (
        "no way to 203.0.113.7:7000 was found: (1) tcp, wss, websocket: dial tcp 203.0.113.7:7000: "
        "no answer within 5 s; (2) tcp+proxy, wss+proxy, websocket+proxy: no proxy is named for "
        "this server, neither by transport.proxyURL nor by HTTPS_PROXY, HTTP_PROXY or ALL_PROXY "
        "(or NO_PROXY excepts it); next step: this network lets nothing out to "
        "203.0.113.7:7000: if it has a proxy, name it in transport.proxyURL or HTTPS_PROXY; if "
        'not, let the server listen on port 443 and put "wss:443" into transport.auto.ladder'
    )


async def test_a_variable_that_is_no_url_keeps_nobody_from_starting():
    ladder, net = ladder_of(environ={"HTTPS_PROXY": "ftp://u:secret@x"}), Net(tcp=SILENT)
    with pytest.raises(NoWay) as caught:
        await ladder.climb(prove, net.attempt)
    assert "HTTPS_PROXY in the environment: the scheme ftp is not one of" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_wrong_url_in_the_configuration_does():
    with pytest.raises(ConfigError, match=r"transport\.proxyURL: the scheme"):
        ladder_of(proxy="ftp://x")


async def test_a_protocol_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "TRANSPORTS", {"tcp": ""})
    ladder, net = ladder_of(ladder=["wss", "tcp"]), Net(tcp=CUT)
    with pytest.raises(NoWay, match="wss: wss is not in this release of pyfrp"):
        await ladder.climb(prove, net.attempt)


NEXT_STEPS = {
    "certificate": ([SILENT, FORGED], "do what is said there of the certificate"),
    "inspection": ([CUT, DENIED], "ask for an exception from inspection for it"),
    "proxy": ([SILENT, DENIED], "do what is said there of it"),
    "name": ([LookupFailed("lookup s: no such host")], "check serverAddr, and dnsServer"),
    "refused": ([REFUSED], "does the server run, and is its bindPort 7000?"),
    "silence": ([SILENT], "if it has a proxy, name it in transport.proxyURL"),
    "nothing": ([], "if it has a proxy, name it in transport.proxyURL"),
}


@pytest.mark.parametrize(("causes", "words"), NEXT_STEPS.values(), ids=NEXT_STEPS)
def test_the_most_useful_next_step_is_told(causes, words):
    assert words in module.next_step("s", 7000, causes)
