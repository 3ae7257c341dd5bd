"""Type sudp on the client: its proxies, and its visitors."""

from __future__ import annotations

import socket

import pytest

from pyfrp.client.visitors import base, keeper
from pyfrp.client.visitors import sudp as module
from pyfrp.errors import DialError
from pyfrp.net import userport
from pyfrp.net.held import Held
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import NewProxy, NewVisitorConnResp, Ping, StartWorkConn, UDPAddr
from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.unit.client.scene import TOKEN, session
from tests.unit.client.test_udp import Server, packet, user
from tests.unit.client.test_visitors import SECRET, knocked, started
from tests.unit.client.test_visitors import visitor as any_visitor
from tests.unit.net.ends import memory_pair, turns


@pytest.fixture(autouse=True)
def _prompt(monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.01)


# -- proxies ------------------------------------------------------------------------------------


def proxy(port, **more):
    return {"name": "dns", "type": "sudp", "secretKey": SECRET, "localPort": port, **more}


async def test_a_proxy_asks_with_its_secret_and_whom_it_admits():
    async with session(proxy(53, allowUsers=["*"])) as s:
        assert await s.read() == NewProxy(
            proxy_name="dns", proxy_type="sudp", sk=SECRET, allow_users=["*"]
        )


async def start(s, **layers) -> Server:
    conn = await s.request()
    conn.write(StartWorkConn(proxy_name="dns"))
    return Server(*conn.detach(), **layers)


@pytest.mark.parametrize("encrypt", [False, True])
async def test_each_visitor_has_a_work_connection_of_its_own(encrypt):
    """With udp a new one would replace the old one."""
    layers = {"useEncryption": encrypt, "useCompression": encrypt}
    async with await EchoUdp().start() as echo, session(proxy(echo.port, transport=layers)) as s:
        await s.accept("dns")
        key = derive_key(TOKEN) if encrypt else None
        servers = [await start(s, key=key, compress=encrypt) for _ in range(2)]
        for server in servers:  # Users of two visitors may have one address.
            server.send(packet(b"hello", user()))
            assert await server.packets(1) == [packet(b"hello", user())]
        assert len(echo.sources) == 2
        assert s.log.has("incoming a new work connection for sudp proxy", "info")
        servers[0].end.abort()
        await until(lambda: len(s.control.bridges) == 1, "the first to end")
        servers[1].send(packet(b"again", user()))
        await servers[1].packets(2)
        servers[1].end.abort()


# -- visitors -----------------------------------------------------------------------------------


def visitor(port, name="v", **more):
    return any_visitor(port, name, type="sudp", **more)


async def admit(s, count=1, **layers) -> Server:
    """Let the visitor in; the server's end of the payload."""
    conn, _ = await knocked(s, count)
    conn.write(NewVisitorConnResp(proxy_name="alice.db"))
    return Server(*conn.detach(), **layers)


def address(of: UdpUser) -> UDPAddr:
    return UDPAddr(ip=of.address[0], port=of.address[1])


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("compress", [False, True])
async def test_users_share_one_connection_which_the_first_datagram_opens(encrypt, compress):
    port = free_port()
    layers = {"useEncryption": encrypt, "useCompression": compress}
    async with session(visitors=[visitor(port, transport=layers)]) as s:
        await started(s)
        assert s.log.has(f"sudp start to work, listen on 127.0.0.1:{port}", "info")
        await turns()
        assert s.connector.opened == []
        with UdpUser(port) as one, UdpUser(port) as two:
            one.send(b"one")
            two.send(b"two")
            conn, msg = await knocked(s)
            assert (msg.proxy_name, msg.run_id) == ("alice.db", "run-1")
            assert (msg.use_encryption, msg.use_compression) == (encrypt, compress)
            one.send(b"meanwhile")
            await turns(20)
            conn.write(NewVisitorConnResp())
            key = derive_key(SECRET) if encrypt else None
            server = Server(*conn.detach(), key=key, compress=compress)
            got = await server.packets(3)
            expected = [
                packet(b"one", address(one)),
                packet(b"two", address(two)),
                packet(b"meanwhile", address(one)),
            ]
            assert got == expected  # And no ping, which frp would take for a datagram.
            server.send(Ping(), *reversed(expected))
            assert [await one.receive(), await one.receive()] == [b"meanwhile", b"one"]
            assert await two.receive() == b"two"
            assert len(s.connector.opened) == 1
        assert SECRET not in repr(s.log.lines)


@pytest.mark.parametrize("end", ["abort", "close", "nonsense", "silence"])
async def test_the_next_datagram_opens_a_new_connection(monkeypatch, end):
    if end == "silence":
        monkeypatch.setattr(userport, "SILENCE_S", 0.05)
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        with UdpUser(port) as one:
            one.send(b"one")
            server = await admit(s)
            await server.packets(1)
            if end == "nonsense":
                server.end.write(b"GET / HTTP/1.1\r\n")
            elif end != "silence":
                getattr(server.end, end)()
            words = "read from workconn for user udp conn error: "
            await until(lambda: s.log.has(words, "warning"), "the end to be seen")
            await turns()
            assert len(s.connector.opened) == 1
            one.send(b"two")
            server = await admit(s, 2)
            assert (await server.packets(1))[0].content == b"two"


REFUSALS = {
    "refused": "visitor connection of [alice.db] auth failed",
    "unanswered": "no answer of the server within 0.05 s",
    "unreachable": "connection refused",
}


@pytest.mark.parametrize("how", REFUSALS)
async def test_datagrams_for_which_there_is_no_connection_are_lost(monkeypatch, how):
    monkeypatch.setattr(base, "ANSWER_S", 0.05)
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        if how == "unreachable":
            s.connector.refusal = DialError(REFUSALS[how])
        with UdpUser(port) as one:
            one.send(b"lost")
            one.send(b"lost, too")
            if how == "refused":
                conn, _ = await knocked(s)
                conn.write(NewVisitorConnResp(error=REFUSALS[how]))
            said = f"start new visitor connection error: {REFUSALS[how]}"
            await until(lambda: s.log.has(said, "warning"), said)
            s.connector.refusal = None
            one.send(b"carried")
            server = await admit(s, len(s.connector.opened) + 1)
            assert [msg.content for msg in await server.packets(1)] == [b"carried"]


async def test_a_server_is_not_asked_as_fast_as_users_send(monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 60.0)
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        with UdpUser(port) as one:
            one.send(b"x")
            conn, _ = await knocked(s)
            conn.write(NewVisitorConnResp(error="no"))
            await until(lambda: s.log.has("visitor connection error: no"), "the refusal")
            for _ in range(50):
                one.send(b"x")
            await turns(50)
            assert len(s.connector.opened) == 1


async def test_longer_datagrams_are_cut_to_the_size_of_the_file():
    port = free_port()
    async with session(visitors=[visitor(port)], packet_size=100) as s:
        await started(s)
        with UdpUser(port) as one:
            one.send(bytes(101))
            server = await admit(s)
            assert [len(msg.content) for msg in await server.packets(1)] == [100]


# -- their life ---------------------------------------------------------------------------------


async def test_a_visitor_without_a_port_cannot_start_and_others_do():
    async with session(visitors=[visitor(-1, "a"), visitor(free_port(), "b")]) as s:
        await started(s)
        said = "start error: a sudp visitor needs a port: bindPort is -1"
        assert s.log.events("warning") == [said]
        near, far = memory_pair()
        s.control.hand_over("bob.b", near, Held())
        assert near.is_closing()
        assert s.log.has("a visitor of type sudp takes no users of other visitors")
        far.abort()


async def test_a_port_that_is_taken_is_tried_again(monkeypatch):
    monkeypatch.setattr(keeper, "RETRY_S", 0.02)
    port = free_port()
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        async with session(visitors=[visitor(port)]) as s:
            words = f"start error: listen udp 127.0.0.1:{port}: bind: address already in use"
            await until(lambda: s.log.has(words, "warning"), words)
            assert s.log.has("ss -lunp")
            other.close()
            await started(s)


@pytest.mark.parametrize("how", ["session", "drain"])
@pytest.mark.parametrize("when", ["idle", "asking", "carrying", "refused"])
async def test_the_port_and_the_connection_go_with_the_session(monkeypatch, how, when):
    monkeypatch.setattr(module, "RETRY_S", 60.0)
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        with UdpUser(port) as one:
            conn = server = None
            if when != "idle":
                one.send(b"x")
            if when == "carrying":
                server = await admit(s)
                await server.packets(1)
            elif when != "idle":
                conn, _ = await knocked(s)
            if conn is not None and when == "refused":
                conn.write(NewVisitorConnResp(error="no"))
                await until(lambda: s.log.has("visitor connection error: no"), "the refusal")
            if how == "drain":
                await s.control.drain()
                if conn is not None and when == "asking":
                    conn.write(NewVisitorConnResp())  # Admitted too late.
            else:
                s.server.abort()
                await s.over()
            if server is not None:
                await until(lambda: server.reader.ends or server.reader.lost, "the end")
            if conn is not None and when == "asking":
                await until(lambda: conn.ended or conn.endpoint.is_closing(), "the end")
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                await until(lambda: _free(sock, port), "the port to be free")
        assert not s.log.has("read from workconn")


def _free(sock: socket.socket, port: int) -> bool:
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
