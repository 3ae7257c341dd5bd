"""Proxies of the server: users come in, work connections take them on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from pyfrp.net.payload import wrap_payload
from pyfrp.server.proxies.bridged import admit
from pyfrp.server.proxies.http import vhost_domains
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import CloseProxy, StartWorkConn
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.net.ends import RawPeer, Reader, turns
from tests.unit.server.scene import DIRECT, TOKEN, office
from tests.unit.vhost.scene import Wire, answer, get, split_answers

both = pytest.mark.parametrize("settings", [{}, DIRECT], ids=["mux", "direct"])
HTTP = {"vhostHTTPPort": 8080}


async def come(port) -> RawPeer:
    """A user at a port."""
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return RawPeer(sock)


# -- tcp ----------------------------------------------------------------------------------------


@both
async def test_a_user_reaches_the_client_and_is_introduced(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        peer = await o.login(pool_count=1)
        await peer.tcp("ssh", port)
        work = await peer.bring()
        user = await come(port)
        await user.send(b"hello")
        start, reader = await work.start()
        address, source = user.sock.getsockname()
        assert start == StartWorkConn(
            proxy_name="ssh", src_addr=address, src_port=source, dst_addr="127.0.0.1", dst_port=port
        )
        assert await reader.until_data(5) == b"hello"
        work.end.write(b"answer")
        assert await user.receive_exactly(6) == b"answer"
        assert len(o.server.bridges) == 1
        user.close()
        await until(lambda: reader.ends, "the end of the user")
        work.end.close()
        await until(lambda: not o.server.bridges, "the bridge to close")


@both
async def test_each_way_of_a_user_ends_by_itself(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port)
        user = await come(port)
        await user.send(b"request")
        user.end()
        work = await peer.bring()
        _, reader = await work.start()
        await reader.until_ended()
        assert reader.data == b"request"
        work.end.write(b"answer")
        work.end.write_eof()
        assert await user.receive_all() == b"answer"
        user.close()
        await until(lambda: not o.server.bridges, "the bridge to close")


@both
@pytest.mark.parametrize(("encrypt", "compress"), [(True, False), (False, True), (True, True)])
async def test_the_payload_is_as_the_client_asked(monkeypatch, settings, encrypt, compress):
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port, use_encryption=encrypt, use_compression=compress)
        work = await peer.bring()
        user = await come(port)
        await user.send(b"hello " * 100)
        msg = await within(work.conn.read(), 5, "StartWorkConn")
        assert isinstance(msg, StartWorkConn)
        endpoint, early = work.conn.detach()
        key = derive_key(TOKEN) if encrypt else None
        plain, early = wrap_payload(endpoint, early, key=key, compress=compress)
        reader = Reader()
        plain.set_protocol(reader)
        plain.resume_reading()
        assert await reader.until_data(600) == b"hello " * 100
        plain.write(b"answer")
        assert await user.receive_exactly(6) == b"answer"
        user.close()
        plain.abort()
        await until(lambda: not o.server.bridges, "the bridge to close")


async def test_a_user_for_whom_nothing_comes_is_closed_in_time(monkeypatch):
    async with office(monkeypatch, userConnTimeout=1) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port)
        user = await come(port)
        try:
            assert await user.receive() == b""
        except ConnectionResetError:
            pass  # As good an end.
        user.close()
        assert o.log.has("timeout trying to get work connection", "warning")
        assert await peer.asked() == 1


@both
async def test_users_who_wait_are_let_go_when_the_client_goes(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port)
        users = [await come(port) for _ in range(5)]
        proxy = o.server._proxies["ssh"]
        await until(lambda: len(proxy._waiting) == 5, "the users to wait")
        peer.conn.abort()
        for user in users:
            try:
                assert await user.receive() == b""
            except ConnectionResetError:
                pass  # As good an end.
            user.close()
        await until(lambda: not o.server.controls, "the client to be gone")


async def test_a_user_accepted_while_the_proxy_closes_is_let_go(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        await peer.tcp("ssh", free_port())
        [entrance] = o.server._proxies["ssh"]._entrances
        peer.conn.write(CloseProxy(proxy_name="ssh"))
        await until(lambda: not o.server._proxies, "the proxy to close")
        late = Wire()
        admit(entrance.group, late, None)
        assert late.aborted


async def test_a_user_who_left_while_he_waited_takes_his_work_connection_along(monkeypatch):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port)
        user = await come(port)
        proxy = o.server._proxies["ssh"]
        [transport] = await until(lambda: list(proxy._waiting), "the user to wait")
        transport.abort()
        user.close()
        work = await peer.bring()
        await turns()
        assert not o.server.bridges
        assert await work.ended()


async def test_connected_users_stay_when_their_proxy_is_closed(monkeypatch):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port)
        work = await peer.bring()
        user = await come(port)
        _, reader = await work.start()
        peer.conn.write(CloseProxy(proxy_name="ssh"))
        await until(lambda: not o.server._proxies, "the proxy to close")
        await user.send(b"still here")
        assert await reader.until_data(10) == b"still here"
        user.close()
        work.end.abort()
        await until(lambda: not o.server.bridges, "the bridge to close")


async def test_stopping_lets_connected_users_finish(monkeypatch):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port)
        work = await peer.bring()
        user = await come(port)
        _, reader = await work.start()
        stopping = asyncio.get_running_loop().create_task(o.server.stop(10))
        await turns()
        await user.send(b"last words")
        assert await reader.until_data(10) == b"last words"
        assert not stopping.done()
        user.close()
        work.end.abort()
        await within(stopping, 5, "the stop")


async def test_stopping_cuts_those_who_do_not_finish(monkeypatch):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port)
        work = await peer.bring()
        user = await come(port)
        await work.start()
        await until(lambda: o.server.bridges, "the bridge")
        await within(o.server.stop(0.05), 5, "the stop")
        assert o.log.has("grace period is over", "warning")
        user.close()


# -- http ---------------------------------------------------------------------------------------


async def ask(o, data) -> Wire:
    caller = Wire()
    o.server.http.adopt(caller, data)
    await turns()
    return caller


@both
async def test_a_request_reaches_the_client_by_its_host(monkeypatch, settings):
    async with office(monkeypatch, **settings, **HTTP) as o:
        peer = await o.login()
        assert (await peer.http("web", "LLM.test")).remote_addr == "llm.test:8080"
        work = await peer.bring()
        caller = await ask(o, get(host="llm.test"))
        start, reader = await work.start()
        assert (start.proxy_name, start.dst_addr, start.dst_port) == ("web", "", 0)
        assert (start.src_addr, start.src_port) == ("203.0.113.9", 50123)
        await until(lambda: b"\r\n\r\n" in reader.data, "the request")
        work.end.write(answer(b"hello"))
        await until(lambda: caller.sent, "the answer")
        assert split_answers(caller.sent) == [(200, b"hello")]


async def test_requests_under_way_fail_at_once_when_the_client_goes(monkeypatch):
    async with office(monkeypatch, **DIRECT, **HTTP) as o:
        peer = await o.login()
        await peer.http("web", "llm.test")
        waiting = await ask(o, get(host="llm.test"))
        work = await peer.bring()
        await work.start()
        queued = await ask(o, get(host="llm.test"))
        o.server.controls[peer.run_id].close()
        for caller in (waiting, queued):
            await until(lambda c=caller: c.sent, "the refusal")
            assert split_answers(caller.sent)[0][0] in (502, 503)
        again = await ask(o, get(host="llm.test"))
        assert split_answers(again.sent)[0][0] == 503
        work.end.abort()


async def test_all_domains_and_locations_are_told_and_routed(monkeypatch):
    async with office(monkeypatch, subDomainHost="sub.test", **HTTP) as o:
        peer = await o.login()
        resp = await peer.http("web", "a.test", "*.b.test", subdomain="x", locations=["/1", "/2"])
        assert resp.remote_addr == ",".join(
            f"{host}:8080"
            for host in ("a.test", "a.test", "*.b.test", "*.b.test", "x.sub.test", "x.sub.test")
        )
        router = o.server.http.router
        for host, path, there in [
            ("a.test", "/1", True),
            ("a.test", "/3", False),
            ("y.b.test", "/2", True),
            ("x.sub.test", "/1/2", True),
            ("z.sub.test", "/1", False),
        ]:
            assert bool(router.find(host, path, "")) == there


@pytest.mark.parametrize("port", [80, 443])
async def test_the_usual_ports_are_not_told(monkeypatch, port):
    async with office(monkeypatch, vhostHTTPPort=port) as o:
        peer = await o.login()
        assert (await peer.http("web", "a.test")).remote_addr == "a.test"


async def test_a_conflict_of_routes_takes_back_those_that_were_made(monkeypatch):
    async with office(monkeypatch, **HTTP) as o:
        peer = await o.login()
        assert (await peer.http("one", "b.test")).error == ""
        resp = await peer.http("two", "a.test", "b.test")
        assert resp.error == "router config conflict"
        assert (await peer.http("three", "a.test")).error == ""
        assert o.server.http.router.find("b.test", "/", "").name == "one"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"host_header_rewrite": "bad host"}, "invalid header"),
        ({"headers": {"X Y": "z"}}, "invalid header"),
        ({"headers": {"X": "a\r\nEvil: 1"}}, "invalid header"),
        ({"response_headers": {"": "z"}}, "invalid header"),
    ],
)
async def test_heads_that_cannot_be_sent_are_refused(monkeypatch, fields, error):
    async with office(monkeypatch, **HTTP) as o:
        peer = await o.login()
        assert error in (await peer.http("web", "a.test", **fields)).error
        assert o.server.http.router._domains == {}


async def test_fields_that_frame_messages_are_ignored_with_a_warning(monkeypatch):
    async with office(monkeypatch, **HTTP) as o:
        peer = await o.login()
        assert (await peer.http("web", "a.test", headers={"Content-Length": "5"})).error == ""
        assert o.log.has("have no effect: Content-Length", "warning")


async def test_many_domains_make_an_answer_that_can_be_sent(monkeypatch):
    async with office(monkeypatch, **HTTP) as o:
        peer = await o.login()
        domains = [f"host{number}.example.test" for number in range(330)]
        resp = await peer.http("web", *domains, locations=["/a", "/b"])
        assert (resp.error, resp.remote_addr) == ("", "host0.example.test:8080")


@pytest.mark.parametrize(
    ("custom", "subdomain", "host", "domains"),
    [
        (["A.test", "a.test", ""], "", "", ["a.test"]),
        (["a.test"], "x", "sub.test", ["a.test", "x.sub.test"]),
        ([], "X", "Sub.Test", ["x.sub.test"]),
        (["sub.test"], "", "sub.test", ["sub.test"]),
        (["asub.test"], "", "sub.test", ["asub.test"]),
    ],
)
def test_domains_of_a_proxy(custom, subdomain, host, domains):
    assert vhost_domains(custom, subdomain, host) == domains


@pytest.mark.parametrize(
    ("custom", "subdomain", "host", "error"),
    [
        (
            ["A.Sub.test"],
            "",
            "sub.test",
            "custom domain [A.Sub.test] should not belong to subdomain host [sub.test]",
        ),
        (
            [],
            "x",
            "",
            "subdomain is not supported because this feature is not enabled in server",
        ),
        ([], "x.y", "sub.test", "'.' and '*' are not supported in subdomain"),
        ([], "*", "sub.test", "'.' and '*' are not supported in subdomain"),
    ],
)
async def test_domains_that_cannot_be_are_refused_in_frps_words(
    monkeypatch, custom, subdomain, host, error
):
    async with office(monkeypatch, subDomainHost=host, **HTTP) as o:
        peer = await o.login()
        assert (await peer.http("web", *custom, subdomain=subdomain)).error == error
