"""The state machine of a client's proxy, and what it asks the server for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.client.proxies import PROXY_TYPES
from pyfrp.client.proxies.base import ANSWER_S, RETRY_S, Phase
from pyfrp.config import client_from_dict
from pyfrp.wire.messages import NewProxy
from tests.unit.server.scene import Log


def proxy(**table):
    table = {"name": "web", "type": "tcp", "localPort": 4000, "remotePort": 6000, **table}
    if table["type"] != "tcp":
        del table["remotePort"]
    cfg = client_from_dict({"serverAddr": "127.0.0.1", "proxies": [table]})
    made = PROXY_TYPES[table["type"]](cfg.proxies[0], "alice.web", "token")
    made.log = Log()
    return made


# -- requests -----------------------------------------------------------------------------------


def test_a_tcp_proxy_asks_for_its_port():
    assert proxy().request() == NewProxy(proxy_name="alice.web", proxy_type="tcp", remote_port=6000)


def test_every_field_of_an_http_proxy_goes_where_frp_has_it():
    made = proxy(
        type="http",
        customDomains=["a.test", "b.test"],
        subdomain="s",
        locations=["/x"],
        httpUser="u",
        httpPassword="p",
        hostHeaderRewrite="h.test",
        requestHeaders={"set": {"X-A": "1"}},
        responseHeaders={"set": {"X-B": "2"}},
        routeByHTTPUser="r",
        metadatas={"m": "1"},
        annotations={"a": "2"},
        transport={"useEncryption": True, "useCompression": True},
    )
    assert made.request() == NewProxy(
        proxy_name="alice.web",
        proxy_type="http",
        custom_domains=["a.test", "b.test"],
        subdomain="s",
        locations=["/x"],
        http_user="u",
        http_pwd="p",
        host_header_rewrite="h.test",
        headers={"X-A": "1"},
        response_headers={"X-B": "2"},
        route_by_http_user="r",
        metas={"m": "1"},
        annotations={"a": "2"},
        use_encryption=True,
        use_compression=True,
    )


@pytest.mark.parametrize("kind", ["tcp", "udp", "http", "https", "tcpmux", "stcp"])
def test_every_type_sends_its_group_and_no_text_shows_the_key(kind):
    """Who knows groups of which type is the server's business."""
    needs = {
        "http": {"subdomain": "s"},
        "https": {"subdomain": "s"},
        "tcpmux": {"subdomain": "s", "multiplexer": "httpconnect"},
        "stcp": {"secretKey": "x"},
    }
    made = proxy(
        type=kind, loadBalancer={"group": "g", "groupKey": "s3cret"}, **needs.get(kind, {})
    )
    msg = made.request()
    assert (msg.group, msg.group_key) == ("g", "s3cret")
    assert "s3cret" not in repr(msg)


@pytest.mark.parametrize(
    ("limit", "mode", "sent"),
    [
        ("", "client", ("", "")),
        (" 1.5MB ", "client", ("1.5MB", "")),
        ("512KB", "server", ("512KB", "server")),
        ("", "server", ("", "server")),
    ],
)
def test_a_bandwidth_limit_is_sent_whoever_keeps_it(limit, mode, sent):
    made = proxy(transport={"bandwidthLimit": limit, "bandwidthLimitMode": mode})
    msg = made.request()
    assert (msg.bandwidth_limit, msg.bandwidth_limit_mode) == sent


def test_a_secret_proxy_sends_its_secret_and_whom_it_admits():
    made = proxy(type="stcp", secretKey="s3cret", allowUsers=["bob", "*"])
    assert made.request() == NewProxy(
        proxy_name="alice.web", proxy_type="stcp", sk="s3cret", allow_users=["bob", "*"]
    )
    assert "s3cret" not in repr(made.request())


def test_an_https_proxy_asks_for_its_names():
    made = proxy(
        type="https",
        customDomains=["a.test", "*.b.test"],
        subdomain="s",
        transport={"useEncryption": True},
    )
    assert made.request() == NewProxy(
        proxy_name="alice.web",
        proxy_type="https",
        custom_domains=["a.test", "*.b.test"],
        subdomain="s",
        use_encryption=True,
    )


def test_a_tcpmux_proxy_asks_for_its_hosts_with_its_user():
    made = proxy(
        type="tcpmux",
        multiplexer="httpconnect",
        customDomains=["a.test"],
        subdomain="s",
        httpUser="u",
        httpPassword="p",
        routeByHTTPUser="r",
    )
    assert made.request() == NewProxy(
        proxy_name="alice.web",
        proxy_type="tcpmux",
        multiplexer="httpconnect",
        custom_domains=["a.test"],
        subdomain="s",
        http_user="u",
        http_pwd="p",
        route_by_http_user="r",
    )


# -- states -------------------------------------------------------------------------------------


def test_a_new_proxy_is_due_at_once():
    made = proxy()
    assert made.phase is Phase.NEW
    assert made.due(100.0) == 100.0


def test_a_proxy_that_was_accepted_runs_until_the_session_ends():
    made = proxy()
    made.requested(100.0)
    assert made.phase is Phase.WAIT_START
    made.answered(":6000", "", 101.0)
    assert made.phase is Phase.RUNNING
    assert made.remote_addr == ":6000"
    assert made.due(1e9) == math.inf
    assert made.log.has("start proxy success", "info")
    made.reset(made.log)
    assert made.phase is Phase.NEW


def test_a_proxy_that_was_refused_is_tried_again_for_ever():
    made = proxy()
    now = 100.0
    for attempt in range(5):
        assert made.due(now) <= now
        made.requested(now)
        made.answered("", f"no {attempt}", now)
        assert made.phase is Phase.START_ERROR
        assert made.error == f"no {attempt}"
        assert made.due(now) == now + RETRY_S
        now += RETRY_S
    assert made.log.has("start error: no 4", "warning")
    made.requested(now)
    made.answered(":1", "", now)
    assert made.error == ""


def test_a_request_without_an_answer_is_sent_again():
    made = proxy()
    made.requested(100.0)
    assert made.due(100.0) == 100.0 + ANSWER_S
    made.requested(100.0 + ANSWER_S)
    assert made.due(0) == 100.0 + 2 * ANSWER_S


@pytest.mark.parametrize("phase", [Phase.NEW, Phase.START_ERROR, Phase.RUNNING, Phase.CLOSED])
@pytest.mark.parametrize("error", ["", "late refusal"])
def test_an_answer_that_nobody_waits_for_is_ignored(phase, error):
    made = proxy()
    made.phase = phase
    made.answered(":9", error, 5.0)
    assert made.phase is phase
    assert made.remote_addr == ""


def test_a_closed_proxy_is_never_due():
    made = proxy()
    made.phase = Phase.CLOSED
    assert made.due(1e12) == math.inf


@given(
    st.lists(
        st.one_of(
            st.just(("tick",)),
            st.tuples(st.just("answer"), st.sampled_from(["", "no"])),
            st.just(("reset",)),
        ),
        max_size=40,
    ),
    st.lists(st.floats(0.1, 60), max_size=40),
)
def test_a_proxy_never_asks_twice_within_its_waits(steps, times):
    """The rule of frp's `proxy_wrapper.go`, whatever the server answers and when."""
    made = proxy()
    now = 0.0
    asked = None
    refused = None
    for number, step in enumerate(steps):
        now += times[number % len(times)] if times else 1.0
        if step[0] == "reset":
            made.reset(made.log)
            asked = refused = None
        elif step[0] == "answer":
            waiting = made.phase is Phase.WAIT_START
            made.answered(":1", step[1], now)
            if waiting:
                refused = now if step[1] else None
        elif made.due(now) <= now:
            assert made.phase is not Phase.RUNNING
            if made.phase is Phase.WAIT_START:
                assert now - asked >= ANSWER_S
            elif made.phase is Phase.START_ERROR:
                assert now - refused >= RETRY_S
            made.requested(now)
            asked = now
