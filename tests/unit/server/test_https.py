"""Proxies of type https: users come by the name in their TLS hello."""

from __future__ import annotations

import asyncio

import pytest

from pyfrp.config import server_from_dict
from pyfrp.errors import ConfigError
from pyfrp.server.service import Server
from pyfrp.wire.clienthello import UNRECOGNIZED_NAME
from pyfrp.wire.messages import CloseProxy, NewProxy, StartWorkConn
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.net.ends import RawPeer, Reader, memory_pair, turns
from tests.unit.server.scene import DIRECT, Log, office
from tests.unit.server.test_proxies import come
from tests.unit.wire.hellos import alpn, hello

HTTPS = {"vhostHTTPSPort": 8443}
HELLO = hello("a.test")
BROWSER = hello("a.test", alpn(b"h2", b"http/1.1"))
both = pytest.mark.parametrize("settings", [{}, DIRECT], ids=["mux", "direct"])


async def propose(peer, name, *domains, **fields):
    return await peer.propose(
        NewProxy(proxy_name=name, proxy_type="https", custom_domains=list(domains), **fields)
    )


def user_of(o, data=HELLO):
    """A user who has said `data`: the reader at his end, and that end."""
    near, far = memory_pair()
    near.extra["sockname"] = ("192.0.2.1", 8443)
    near.pause_reading()
    o.server.https.adopt(near, data)
    o.ends += [near, far]
    return far.get_protocol(), far


@both
async def test_a_user_reaches_the_client_with_his_hello_and_is_introduced(monkeypatch, settings):
    async with office(monkeypatch, **settings, **HTTPS) as o:
        peer = await o.login()
        assert (await propose(peer, "web", "A.test")).remote_addr == "a.test:8443"
        reader, far = user_of(o)
        work = await peer.bring()
        start, inside = await work.start()
        assert start == StartWorkConn(
            proxy_name="web",
            src_addr="203.0.113.7",
            src_port=4711,
            dst_addr="192.0.2.1",
            dst_port=8443,
        )
        assert await inside.until_data(len(HELLO)) == HELLO
        work.end.write(b"server hello")
        assert await reader.until_data(12) == b"server hello"
        far.write(b"data")
        assert (await inside.until_data(len(HELLO) + 4))[-4:] == b"data"
        assert len(o.server.bridges) == 1
        far.close()
        work.end.close()
        await until(lambda: not o.server.bridges, "the bridge to close")
        assert o.log.has("https proxy listen for host [a.test]", "info")


async def test_every_name_of_a_proxy_is_routed_and_told(monkeypatch):
    async with office(monkeypatch, subDomainHost="sub.test", **HTTPS) as o:
        peer = await o.login()
        resp = await propose(peer, "web", "a.test", "*.b.test", "*", subdomain="x")
        assert resp.remote_addr == "a.test:8443,*.b.test:8443,*:8443,x.sub.test:8443"
        find = o.server.https.router.find
        for host in ("a.test", "y.b.test", "x.sub.test", "elsewhere.org", ""):
            assert find(host, "", "") is not None
        peer.conn.write(CloseProxy(proxy_name="web"))
        await until(lambda: not o.server._proxies, "the proxy to close")
        assert find("a.test", "", "") is None
        reader, _ = user_of(o)
        await reader.until_ended()
        assert reader.data == UNRECOGNIZED_NAME


@pytest.mark.parametrize("port", [80, 443])
async def test_the_usual_ports_are_not_told(monkeypatch, port):
    async with office(monkeypatch, vhostHTTPSPort=port) as o:
        peer = await o.login()
        assert (await propose(peer, "web", "a.test")).remote_addr == "a.test"


@pytest.mark.parametrize(
    ("settings", "fields", "error"),
    [
        ({}, {}, "type [https] not supported when vhost https port is not set"),
        (
            {**HTTPS, "subDomainHost": "test"},
            {},
            "custom domain [a.test] should not belong to subdomain host [test]",
        ),
        (
            HTTPS,
            {"subdomain": "x"},
            "subdomain is not supported because this feature is not enabled in server",
        ),
        (
            {**HTTPS, "subDomainHost": "sub.test"},
            {"subdomain": "x.y"},
            "'.' and '*' are not supported in subdomain",
        ),
    ],
)
async def test_what_cannot_be_is_refused_in_frps_words(monkeypatch, settings, fields, error):
    async with office(monkeypatch, **settings) as o:
        peer = await o.login()
        assert (await propose(peer, "web", "a.test", **fields)).error == error


async def test_a_conflict_of_names_takes_back_those_that_were_made(monkeypatch):
    async with office(monkeypatch, **HTTPS, vhostHTTPPort=8080) as o:
        peer = await o.login()
        assert (await propose(peer, "one", "b.test")).error == ""
        assert (await propose(peer, "two", "a.test", "b.test")).error == "router config conflict"
        assert (await propose(peer, "three", "a.test")).error == ""
        # Those of http are others.
        assert (await peer.http("four", "a.test")).error == ""


async def test_a_user_for_whom_nothing_comes_is_closed_in_time(monkeypatch):
    async with office(monkeypatch, userConnTimeout=1, **HTTPS) as o:
        peer = await o.login()
        await propose(peer, "web", "a.test")
        reader, _ = user_of(o)
        await reader.until_lost()
        assert o.log.has("timeout trying to get work connection", "warning")


@both
async def test_users_who_wait_are_let_go_when_the_client_goes(monkeypatch, settings):
    async with office(monkeypatch, **settings, **HTTPS) as o:
        peer = await o.login()
        await propose(peer, "web", "a.test")
        readers = [user_of(o)[0] for _ in range(5)]
        await until(lambda: len(o.server._proxies["web"]._waiting) == 5, "the users to wait")
        o.server.controls[peer.run_id].close()
        for reader in readers:
            await reader.until_lost()
        reader, _ = user_of(o)
        await reader.until_ended()
        assert reader.data == UNRECOGNIZED_NAME


async def test_connected_users_stay_when_their_proxy_is_closed_and_may_finish(monkeypatch):
    async with office(monkeypatch, **HTTPS) as o:
        peer = await o.login()
        await propose(peer, "web", "a.test")
        _, far = user_of(o)
        work = await peer.bring()
        _, inside = await work.start()
        peer.conn.write(CloseProxy(proxy_name="web"))
        await until(lambda: not o.server._proxies, "the proxy to close")
        stopping = asyncio.get_running_loop().create_task(o.server.stop(10))
        unknown, _ = user_of(o, b"\x16\x03")
        await unknown.until_lost()
        far.write(b"last words")
        await inside.until_data(len(HELLO) + 10)
        assert not stopping.done()
        far.close()
        work.end.abort()
        await within(stopping, 5, "the stop")


async def test_a_hello_for_no_proxy_and_without_protocols_is_a_clients(monkeypatch):
    async with office(monkeypatch, **HTTPS) as o:
        clients = []
        o.server.https.on_client = lambda *what: clients.append(what)
        peer = await o.login()
        await propose(peer, "web", "a.test")
        stranger = hello("frps.test")
        _, far = user_of(o, stranger[:20])
        far.write(stranger[20:])
        await until(lambda: clients, "the client")
        [(transport, early)] = clients
        assert transport.paused
        assert early == stranger
        # With protocols, or with a name that somebody serves or served, it is a user's.
        reader, _ = user_of(o, hello("frps.test", alpn(b"h2")))
        await reader.until_ended()
        assert reader.data == UNRECOGNIZED_NAME
        user_of(o, HELLO)
        await (await peer.bring()).start()
        peer.conn.write(CloseProxy(proxy_name="web"))
        await until(lambda: not o.server._proxies, "the proxy to close")
        reader, _ = user_of(o, HELLO)
        await reader.until_ended()
        assert reader.data == UNRECOGNIZED_NAME
        assert len(clients) == 1


# -- listeners ----------------------------------------------------------------------------------


async def exchange(port: int, data: bytes) -> bytes:
    user: RawPeer = await come(port)
    try:
        await user.send(data)
        return await user.receive_all()
    finally:
        user.close()


@pytest.mark.parametrize("shared", [False, True])
async def test_the_port_of_https_is_its_own_or_the_clients(monkeypatch, loop_kind, shared):
    log = Log()
    monkeypatch.setattr("pyfrp.server.service.get_logger", lambda: log)
    port = free_port()
    data = {"bindAddr": "127.0.0.1", "bindPort": free_port(), "vhostHTTPSPort": port}
    if shared:
        data |= {"bindPort": port, "vhostHTTPPort": port}
    server = Server(server_from_dict(data))
    await server.start()
    try:
        assert log.has(f"https service listen on 127.0.0.1:{port}", "info")
        assert log.has("disableCustomTLSFirstByte = false", "info") == shared
        assert await exchange(port, BROWSER) == UNRECOGNIZED_NAME
        if not shared:
            assert await exchange(port, HELLO) == UNRECOGNIZED_NAME
        else:
            # A client of frp's offers no protocols, and is served without its first byte too.
            link = await come(port)
            await link.send(HELLO)
            assert (await link.receive(7))[:7] != UNRECOGNIZED_NAME
            link.close()
            answer = await exchange(port, b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 404 ")
            # After frp's own first byte, TLS is the clients': no alert of an unknown name.
            link = await come(port)
            await link.send(b"\x17" + HELLO)
            assert (await link.receive(7))[:7] != UNRECOGNIZED_NAME
            link.close()
    finally:
        await server.stop(0.0)
        await turns()


async def test_a_port_that_is_taken_is_told(monkeypatch):
    monkeypatch.setattr("pyfrp.server.service.get_logger", Log)
    listener = await asyncio.get_running_loop().create_server(Reader, "127.0.0.1", 0)
    taken = listener.sockets[0].getsockname()[1]
    data = {"bindAddr": "127.0.0.1", "bindPort": free_port(), "vhostHTTPSPort": taken}
    server = Server(server_from_dict(data))
    with pytest.raises(ConfigError, match=f"listen tcp 127.0.0.1:{taken}: bind: address already"):
        await server.start()
    listener.close()
    await turns()
