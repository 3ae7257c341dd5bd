"""Every text with which frp refuses a proxy or a visitor, in one table.

The texts are what scripts and people look for. Where the reason needs more than a request to come
about, other tests have it as well.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pyfrp.errors import RefusedError
from pyfrp.server.control import _check_annotations
from pyfrp.server.visitors import VisitorManager
from pyfrp.wire.messages import NewProxy
from tests.support.ports import free_port
from tests.unit.server.scene import office
from tests.unit.server.test_visitors import answer, offer, visit

PORT, OTHER, TAKEN = -101, -102, -103  # Stand for ports of the run; the last is another program's.

HTTP = {"vhostHTTPPort": 8080}
HTTPS = {"vhostHTTPSPort": 8443}
MUX = {"tcpmuxHTTPConnectPort": 1337}
SUB = {"subDomainHost": "sub.test"}

Fields = dict[str, Any]


def tcp(port: int = PORT, **more: Any) -> Fields:
    return {"proxy_type": "tcp", "remote_port": port, **more}


def udp(port: int = PORT, **more: Any) -> Fields:
    return {"proxy_type": "udp", "remote_port": port, **more}


def http(*domains: str, **more: Any) -> Fields:
    return {"proxy_type": "http", "custom_domains": list(domains), **more}


def https(*domains: str, **more: Any) -> Fields:
    return {"proxy_type": "https", "custom_domains": list(domains), **more}


def mux(*domains: str, **more: Any) -> Fields:
    base = {"proxy_type": "tcpmux", "multiplexer": "httpconnect", "custom_domains": list(domains)}
    return {**base, **more}


def grouped(fields: Fields, key: str = "k", group: str = "g") -> Fields:
    return {**fields, "group": group, "group_key": key}


VHOSTS = [(HTTP, http), (HTTPS, https), (MUX, mux)]
NO_SUBDOMAINS = "subdomain is not supported because this feature is not enabled in server"
NO_DOTS = "'.' and '*' are not supported in subdomain"
UNDER = "custom domain [a.sub.test] should not belong to subdomain host [sub.test]"
LIMIT = "exceed the max_ports_per_client"

# What the server is set to, what another client and then this one has, what it asks for, and the
# answer. A `*` at its end stands for the rest.
Row = tuple[Fields, list[Fields], list[Fields], Fields, str]
TABLE: list[Row] = [
    ({}, [], [], {"proxy_type": "zzz"}, "unknown proxy type: zzz"),
    ({}, [], [], tcp(annotations={"a b": "x"}), "annotation key a b is invalid: *"),
    # Ports.
    ({}, [tcp()], [], tcp(), "port already used"),
    ({}, [], [tcp()], tcp(), "port already used"),
    ({"allowPorts": [{"single": PORT}]}, [], [], tcp(OTHER), "port not allowed"),
    ({}, [], [], tcp(70000), "port not allowed"),
    ({}, [], [], tcp(-1), "port not allowed"),
    ({}, [], [], tcp(TAKEN), "port unavailable"),
    ({"allowPorts": [{"single": TAKEN}]}, [], [], tcp(0), "no available port"),
    ({"allowPorts": [{"single": PORT}]}, [tcp()], [], tcp(0), "no available port"),
    ({}, [udp()], [], udp(), f"acquire port {PORT} error: port already used"),
    (
        {"allowPorts": [{"single": PORT}]},
        [],
        [],
        udp(OTHER),
        f"acquire port {OTHER} error: port not allowed",
    ),
    ({}, [], [], udp(TAKEN), f"acquire port {TAKEN} error: port unavailable"),
    (
        {"allowPorts": [{"single": TAKEN}]},
        [],
        [],
        udp(0),
        "acquire port 0 error: no available port",
    ),
    ({"maxPortsPerClient": 1}, [], [tcp()], tcp(OTHER), LIMIT),
    ({"maxPortsPerClient": 1}, [], [tcp()], udp(OTHER), LIMIT),
    ({"maxPortsPerClient": 1}, [], [udp()], tcp(OTHER), LIMIT),
    ({"maxPortsPerClient": 1}, [], [grouped(tcp())], grouped(tcp()), LIMIT),
    # Names.
    ({}, [tcp(proxy_name="x")], [], tcp(OTHER, proxy_name="x"), "proxy [x] already exists"),
    ({}, [], [tcp(proxy_name="x")], tcp(OTHER, proxy_name="x"), "proxy [x] already exists"),
    # Vhosts.
    ({}, [], [], http("a.test"), "type [http] not supported when vhost http port is not set"),
    ({}, [], [], https("a.test"), "type [https] not supported when vhost https port is not set"),
    (
        {},
        [],
        [],
        mux("a.test"),
        "tcpmux with multiplexer httpconnect not supported because this feature is not enabled in "
        "server",
    ),
    (MUX, [], [], mux("a.test", multiplexer="x"), "unknown multiplexer [x]"),
    *((on, [], [], kind(subdomain="x"), NO_SUBDOMAINS) for on, kind in VHOSTS),
    *(({**on, **SUB}, [], [], kind(subdomain="x.y"), NO_DOTS) for on, kind in VHOSTS),
    *(({**on, **SUB}, [], [], kind(subdomain="*"), NO_DOTS) for on, kind in VHOSTS),
    *(({**on, **SUB}, [], [], kind("a.sub.test"), UNDER) for on, kind in VHOSTS),
    *((on, [kind("a.test")], [], kind("A.test"), "router config conflict") for on, kind in VHOSTS),
    (
        HTTP,
        [http("a.test", locations=["/x"], route_by_http_user="u")],
        [],
        http("b.test", "a.test", locations=["/y", "/x"], route_by_http_user="u"),
        "router config conflict",
    ),
    # Groups.
    ({}, [grouped(tcp())], [], grouped(tcp(OTHER)), "group should have same remote port"),
    ({}, [grouped(tcp())], [], grouped(tcp(OTHER), "l"), "group should have same remote port"),
    ({}, [grouped(tcp())], [], grouped(tcp(0)), "group should have same remote port"),
    ({}, [grouped(tcp())], [], grouped(tcp(), "l"), "group auth failed"),
    ({}, [grouped(tcp())], [], grouped(tcp(), ""), "group auth failed"),
    ({}, [grouped(tcp())], [], grouped(tcp(), group="h"), "port already used"),
    ({}, [grouped(tcp())], [], tcp(), "port already used"),
    ({}, [], [], grouped(tcp(TAKEN)), "port unavailable"),
    *(
        row
        for on, kind in VHOSTS
        for row in [
            (on, [grouped(kind("a.test"))], [], grouped(kind("a.test"), "l"), "group auth failed"),
            (
                on,
                [grouped(kind("a.test"))],
                [],
                grouped(kind("b.test"), "l"),
                "group params invalid",
            ),
            # A group has one route.
            (on, [], [], grouped(kind("a.test", "b.test")), "group params invalid"),
            (
                on,
                [grouped(kind("a.test"))],
                [],
                grouped(kind("a.test"), group="h"),
                "router config conflict",
            ),
            (on, [grouped(kind("a.test"))], [], kind("a.test"), "router config conflict"),
            (on, [kind("a.test")], [], grouped(kind("a.test")), "router config conflict"),
        ]
    ),
    *(
        (HTTP, [grouped(http("a.test"))], [], grouped(http("a.test", **other)), text)
        for text in ["group params invalid"]
        for other in ({"locations": ["/x"]}, {"route_by_http_user": "u"})
    ),
    (HTTP, [], [], grouped(http("a.test", locations=["/x", "/x"])), "group proxy repeated"),
    (HTTP, [], [], http("a.test", locations=["/x", "/x"]), "router config conflict"),
    *(
        (MUX, [grouped(mux("a.test"))], [], grouped(mux("a.test", **other)), "group params invalid")
        for other in ({"http_user": "u"}, {"http_pwd": "p"}, {"route_by_http_user": "u"})
    ),
    (MUX, [], [], grouped(mux("a.test", multiplexer="x")), "unknown multiplexer [x]"),
]


@pytest.mark.parametrize("row", TABLE, ids=[f"{n}-{row[4][:40]}" for n, row in enumerate(TABLE)])
async def test_what_cannot_be_is_refused_in_frps_words(monkeypatch, row: Row):
    settings, theirs, ours, asked, text = row
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        stream.bind(("127.0.0.1", 0))
        stream.listen()
        taken = stream.getsockname()[1]
        datagrams.bind(("127.0.0.1", taken))
        real = {PORT: free_port(), OTHER: free_port(), TAKEN: taken}

        def request(name: str, fields: Fields) -> NewProxy:
            fields = {"proxy_name": name, **fields}
            port = fields.get("remote_port", 0)
            return NewProxy(**{**fields, "remote_port": real.get(port, port)})

        if ports := settings.get("allowPorts"):
            settings = {**settings, "allowPorts": [{"single": real[p["single"]]} for p in ports]}
        for stand_in, port in real.items():
            text = text.replace(str(stand_in), str(port))
        async with office(monkeypatch, **settings) as o:
            other, peer = await o.login(), await o.login()
            for number, fields in enumerate(theirs):
                assert not (await other.propose(request(f"theirs{number}", fields))).error
            for number, fields in enumerate(ours):
                assert not (await peer.propose(request(f"ours{number}", fields))).error
            before = set(o.server._proxies)
            resp = await peer.propose(request("asked", asked))
            if text.endswith("*"):
                assert resp.error.startswith(text[:-1])
            else:
                assert resp.error == text
            assert resp.remote_addr == ""
            # It is as if it had not asked.
            assert set(o.server._proxies) == before
            assert len(o.server.groups) == sum(bool(f.get("group")) for f in theirs + ours[:1])


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("secret", {"run_id": "nobody"}, "no client control found for run id [nobody]"),
        ("other", {}, "custom listener for [other] doesn't exist"),
        ("secret", {"secret": "guess"}, "visitor connection of [secret] auth failed"),
        ("secret", {}, "visitor connection of [secret] user [bob] not allowed"),
    ],
)
async def test_visitors_are_turned_away_in_frps_words(monkeypatch, name, fields, text):
    async with office(monkeypatch) as o:
        owner, guest = await o.login(user="alice"), await o.login(user="bob")
        await offer(owner, "secret", allow_users=["carol"])
        conn, _ = visit(guest, name, **fields)
        assert await answer(conn) == text


def test_texts_that_no_client_can_provoke():
    """A name is taken before anything else is, and longer messages are no messages."""
    visitors = VisitorManager()
    visitors.listen("x", secret_key="", allow_users=(), accept=lambda *_: None)
    with pytest.raises(RefusedError, match=r"^custom listener for \[x\] is repeated$"):
        visitors.listen("x", secret_key="", allow_users=(), accept=lambda *_: None)
    with pytest.raises(RefusedError, match=r"^annotations size 300001 is larger than limit 262144"):
        _check_annotations({"x": "y" * 300_000})
