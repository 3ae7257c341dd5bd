"""Proxies of type tcpmux: users come by the host of their CONNECT."""

from __future__ import annotations

import base64

import pytest

from pyfrp.errors import BadHead
from pyfrp.wire.httpconnect import OK, UNAUTHORIZED, Connect, ConnectReader
from pyfrp.wire.messages import NewProxy
from tests.support.waiting import until
from tests.unit.net.ends import memory_pair, turns
from tests.unit.server.scene import office
from tests.unit.wire.pieces import three_ways

MUX = {"tcpmuxHTTPConnectPort": 1337}


def connect(host="a.test", *lines: str, user: str = "", password: str = "") -> bytes:
    fields = [f"CONNECT {host}:80 HTTP/1.1", f"Host: {host}:80", *lines]
    if user:
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        fields.append(f"Proxy-Authorization: Basic {token}")
    return "\r\n".join([*fields, "", ""]).encode()


async def propose(peer, name, *domains, **fields):
    msg = NewProxy(proxy_name=name, proxy_type="tcpmux", custom_domains=list(domains))
    msg.multiplexer = fields.pop("multiplexer", "httpconnect")
    for key, value in fields.items():
        setattr(msg, key, value)
    return await peer.propose(msg)


async def come(o, data):
    near, far = memory_pair()
    near.pause_reading()
    o.server.tcpmux.adopt(near, data)
    o.ends += [near, far]
    await turns()
    return far.get_protocol(), far


# -- the request --------------------------------------------------------------------------------


@three_ways
@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (connect("A.Test"), ("a.test", "", "")),
        (connect(user="u", password="p:q"), ("a.test", "u", "p:q")),
        (connect("a.test", "Authorization: Basic dTpw"), ("a.test", "", "")),
        (connect("a.test", "Proxy-Authorization: Bearer x"), ("a.test", "", "")),
        (b"CONNECT a.test:22 HTTP/1.0\r\n\r\n", ("a.test", "", "")),
    ],
)
def test_a_request_is_read_however_it_is_cut(cut, data, asked):
    reader = ConnectReader()
    found = [reader.feed(piece) for piece in cut(data)]
    assert found[-1] == Connect(*asked, len(data))
    assert set(found[:-1]) <= {None}
    assert "p:q" not in repr(found[-1])


@pytest.mark.parametrize(
    "data",
    [b"G", b"GET / HTTP/1.1\r\n", b"CONNECt", b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n", b"\0"],
)
def test_anything_else_is_refused(data):
    with pytest.raises(BadHead):
        ConnectReader().feed(data)


def test_a_request_without_end_is_refused():
    reader = ConnectReader()

    def drag() -> None:
        reader.feed(b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n")
        for _ in range(2000):
            reader.feed(b"X: " + b"y" * 100 + b"\r\n")

    with pytest.raises(BadHead):
        drag()
    assert len(reader.raw) < 100_000


# -- users --------------------------------------------------------------------------------------


@pytest.mark.parametrize("passthrough", [False, True])
async def test_a_user_reaches_the_client_with_all_that_is_for_it(monkeypatch, passthrough):
    async with office(monkeypatch, **MUX, tcpmuxPassthrough=passthrough) as o:
        peer = await o.login()
        assert (await propose(peer, "web", "a.test")).remote_addr == "a.test:1337"
        reader, far = await come(o, connect() + b"pipelined")
        work = await peer.bring()
        _, inside = await work.start()
        wanted = (connect() if passthrough else b"") + b"pipelined"
        assert await inside.until_data(len(wanted)) == wanted
        work.end.write(b"answer")
        answer = (b"" if passthrough else OK) + b"answer"
        assert await reader.until_data(len(answer)) == answer
        far.close()
        work.end.close()
        await until(lambda: not o.server.bridges, "the bridge to close")


async def test_an_unknown_host_gets_frps_404_with_the_page(monkeypatch, tmp_path):
    page = tmp_path / "404.html"
    page.write_bytes(b"<p>mine</p>")
    async with office(monkeypatch, **MUX, custom404Page=str(page)) as o:
        reader, _ = await come(o, connect("b.test"))
        head, _, body = bytes(reader.data).partition(b"\r\n\r\n")
        assert head == (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\nContent-Type: text/html\r\n"
            b"Server: frp/0.65.0"
        )
        assert body == b"<p>mine</p>"
        assert reader.ends == 1
        page.unlink()
        reader, _ = await come(o, connect("b.test"))
        assert b"<h1>Not Found</h1>" in reader.data
        assert o.log.has("cannot be read", "warning")


async def test_what_is_no_connect_is_closed_without_an_answer(monkeypatch):
    async with office(monkeypatch, **MUX) as o:
        for data in (b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", b"junk\r\n\r\n"):
            reader, _ = await come(o, data)
            assert reader.data == b""
            assert reader.ends == 1


@pytest.mark.parametrize("passthrough", [False, True])
async def test_wrong_credentials_get_407_as_frp_gives_it(monkeypatch, passthrough):
    async with office(monkeypatch, **MUX, tcpmuxPassthrough=passthrough) as o:
        peer = await o.login()
        await propose(peer, "web", "a.test", http_user="u", http_pwd="pa55word")
        for data in (connect(), connect(user="u", password="x"), connect(user="v")):
            reader, _ = await come(o, data)
            assert reader.data == (b"" if passthrough else OK) + UNAUTHORIZED
            assert reader.ends == 1
        reader, far = await come(o, connect(user="u", password="pa55word"))
        assert UNAUTHORIZED not in reader.data
        assert not reader.ends
        far.abort()
        assert "pa55word" not in repr(o.log.lines)


async def test_users_are_routed_by_their_name(monkeypatch):
    async with office(monkeypatch, **MUX) as o:
        peer = await o.login()
        await propose(peer, "one", "a.test", route_by_http_user="u")
        reader, _ = await come(o, connect())
        assert reader.data.startswith(b"HTTP/1.1 404 ")
        await propose(peer, "all", "a.test")
        for user, name in (("u", "one"), ("v", "all"), ("", "all")):
            _, far = await come(o, connect(user=user))
            work = await peer.bring()
            start, _ = await work.start()
            assert start.proxy_name == name
            far.abort()
            await until(lambda: not o.server.bridges, "the bridge to close")
        resp = await propose(peer, "two", "b.test", "a.test", route_by_http_user="u")
        assert resp.error == "router config conflict"


@pytest.mark.parametrize(
    ("settings", "fields", "error"),
    [
        (
            {},
            {},
            "tcpmux with multiplexer httpconnect not supported because this feature is not "
            "enabled in server",
        ),
        (MUX, {"multiplexer": "x"}, "unknown multiplexer [x]"),
        (MUX, {"multiplexer": ""}, "unknown multiplexer []"),
        (
            MUX,
            {"subdomain": "x"},
            "subdomain is not supported because this feature is not enabled in server",
        ),
    ],
)
async def test_what_cannot_be_is_refused_in_frps_words(monkeypatch, settings, fields, error):
    async with office(monkeypatch, **settings) as o:
        peer = await o.login()
        assert (await propose(peer, "web", "a.test", **fields)).error == error
