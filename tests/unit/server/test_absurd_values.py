"""Absurd values in every field of what a logged-in client sends: refused or harmless."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfrp.errors import PyfrpError
from pyfrp.wire.messages import NewProxyResp, Ping, Pong
from tests.support.ports import free_port
from tests.unit.net.ends import turns
from tests.unit.server.scene import office

SETTINGS = {"vhostHTTPPort": 8080, "subDomainHost": "sub.test"}

TEXTS = [
    "",
    " ",
    "\x00",
    "\r\nX-Evil: 1",
    "\n[I] forged log line",
    "\x1b[31mred",
    "\ud800",
    "\udc80\ud800",
    "\u2028",
    "\ufeff",
    "*",
    "*.com",
    "..",
    ".",
    "-",
    "a" * 4000,
    "é" * 1000,
    "../../etc/passwd",
    "{}",
    "%s%n",
    "sub.test",
    "x.sub.test",
    "xn--",
    "[::1]",
    "host:80",
    "user:pass",
]
NUMBERS = [0, -1, 1, 65535, 65536, 2**31, 2**63 - 1, -(2**63)]
BAD_NUMBERS = [2**63, 1e308, 1.5, -(2**63) - 1, True, "1"]

STRING_FIELDS = [
    "proxy_name",
    "proxy_type",
    "bandwidth_limit",
    "bandwidth_limit_mode",
    "group",
    "group_key",
    "subdomain",
    "http_user",
    "http_pwd",
    "host_header_rewrite",
    "route_by_http_user",
    "sk",
    "multiplexer",
]
LIST_FIELDS = ["custom_domains", "locations", "allow_users"]
MAP_FIELDS = ["metas", "annotations", "headers", "response_headers"]

HTTP = {"proxy_type": "http", "custom_domains": ["a.test"]}


async def ask(o, peer, fields):
    """Send one NewProxy as it is; the answer, or None when the connection was ended for it."""
    body = json.dumps({"proxy_name": "x", "proxy_type": "tcp", **fields}).encode()
    if len(body) > 10_240:
        return None
    peer.send_raw("p", body)
    peer.conn.write(Ping())
    try:
        msg = await peer.read()
        answer = None
        if isinstance(msg, NewProxyResp):
            answer = msg
            msg = await peer.read()
        assert isinstance(msg, Pong)
    except PyfrpError:
        return None
    return answer


def cases():
    for name in STRING_FIELDS:
        for number, text in enumerate(TEXTS):
            yield pytest.param({**HTTP, name: text}, id=f"{name}-{number}")
    for name in LIST_FIELDS:
        for number, text in enumerate(TEXTS):
            yield pytest.param({**HTTP, name: [text]}, id=f"{name}-{number}")
            yield pytest.param({**HTTP, name: [text, text]}, id=f"{name}-twice-{number}")
        yield pytest.param({**HTTP, name: []}, id=f"{name}-none")
        yield pytest.param({**HTTP, name: [f"d{n}.test" for n in range(700)]}, id=f"{name}-many")
    for name in MAP_FIELDS:
        for number, text in enumerate(TEXTS):
            yield pytest.param({**HTTP, name: {text: text}}, id=f"{name}-{number}")
        yield pytest.param({**HTTP, name: {f"X-{n}": "y" for n in range(600)}}, id=f"{name}-many")


async def test_absurd_texts_are_refused_or_harmless(monkeypatch):
    """All in one server: none of them may cost it, or another client, anything."""
    async with office(monkeypatch, **SETTINGS) as o:
        bystander = await o.login()
        assert (await bystander.http("keeper", "keeper.test")).error == ""
        peer = await o.login()
        ended = []
        for case in cases():
            [fields] = case.values
            answer = await ask(o, peer, fields)
            if peer.conn.ended:
                ended.append(case.id)
                peer = await o.login()
                continue
            if answer is not None and not answer.error:
                peer.send_raw("c", json.dumps({"proxy_name": answer.proxy_name}).encode())
        assert ended == []
        assert (await bystander.http("keeper2", "keeper2.test")).error == ""
        await turns()
        for event in o.log.events():
            assert len(event) < 20_000


@pytest.mark.parametrize("number", NUMBERS)
async def test_absurd_ports_are_refused(monkeypatch, number):
    async with office(monkeypatch, **SETTINGS) as o:
        peer = await o.login()
        answer = await ask(o, peer, {"remote_port": number})
        assert answer is not None
        if number not in (0, 1, 65535):
            assert answer.error == "port not allowed"


@pytest.mark.parametrize("number", BAD_NUMBERS)
async def test_numbers_that_are_none_end_the_connection_as_with_go(monkeypatch, number):
    async with office(monkeypatch, **SETTINGS) as o:
        peer, other = await o.login(), await o.login()
        assert await ask(o, peer, {"remote_port": number}) is None
        assert (await other.tcp("fine", free_port())).error == ""


BODIES = [
    b"",
    b"[]",
    b"null",
    b"7",
    b'"x"',
    b"{",
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b"[" * 5000 + b"]" * 5000,
    b'{"proxy_name":{"a":1}}',
    b'{"custom_domains":{"a":1}}',
    b'{"custom_domains":[1]}',
    b'{"metas":[]}',
    b'{"metas":{"a":null}}',
    b'{"use_encryption":1}',
    b'{"proxy_name":"\xff\xfe"}',
    b'{"proxy_name":"x","proxy_name":"y"}',
    b'{"proxy_name":NaN}',
    b"{}trailing",
    b" " * 10_000 + b"{}",
]


@pytest.mark.parametrize("kind", list("opcwrsvh3u4inm5612"))
async def test_bodies_of_any_shape_cost_at_most_their_own_connection(monkeypatch, kind):
    async with office(monkeypatch, **SETTINGS) as o:
        other = await o.login()
        for body in BODIES:
            peer = await o.login()
            peer.send_raw(kind, body)
            await turns()
            other.conn.write(Ping())
            assert await other.read() == Pong()


@pytest.mark.parametrize(
    "frame",
    [
        b"p" + (10_241).to_bytes(8, "big"),
        b"p" + (2**63 - 1).to_bytes(8, "big"),
        b"p" + (2**64 - 1).to_bytes(8, "big"),
        b"p" + (2**63).to_bytes(8, "big"),
        b"\x00" * 9,
        b"\xff" * 9,
        b"x",
    ],
)
async def test_lengths_and_types_that_cannot_be_end_their_own_connection(monkeypatch, frame):
    async with office(monkeypatch, **SETTINGS) as o:
        peer, other = await o.login(), await o.login()
        peer.end.write(peer.conn._encrypt(frame))
        with pytest.raises(PyfrpError):
            await peer.read()
        other.conn.write(Ping())
        assert await other.read() == Pong()


# -- anything at all ----------------------------------------------------------------------------

values = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.booleans(),
    st.none(),
    st.lists(st.sampled_from(TEXTS), max_size=4),
    st.dictionaries(st.sampled_from(TEXTS), st.sampled_from(TEXTS), max_size=3),
)
fields = st.dictionaries(
    st.sampled_from([*STRING_FIELDS, *LIST_FIELDS, *MAP_FIELDS, "remote_port", "use_encryption"]),
    values,
    max_size=6,
)


async def propose(all_fields):
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with office(monkeypatch, **SETTINGS) as o:
            bystander = await o.login()
            for one in all_fields:
                peer = await o.login()
                # Ports of the machine are not for generated values to bind.
                kind = "http" if one.get("proxy_type", "tcp") in ("tcp", "", None) else None
                await ask(o, peer, {**one, **({"proxy_type": kind} if kind else {})})
            assert (await bystander.http("last", "last.test")).error in (
                "",
                "proxy [last] already exists",
            )


@settings(deadline=None, max_examples=30)
@given(st.lists(fields, min_size=1, max_size=8))
def test_no_combination_of_values_harms_anybody_else(all_fields):
    asyncio.run(propose(all_fields))
