"""Proxies of type udp on the server: one socket, one work connection."""

from __future__ import annotations

import asyncio
import socket

import pytest

from pyfrp.net import userport
from pyfrp.net.payload import wrap_payload
from pyfrp.server.proxies import udp as module
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.framing import FrameDecoder, encode
from pyfrp.wire.messages import CloseProxy, Ping, Pong, StartWorkConn, UDPAddr, UDPPacket
from tests.support.datagrams import UdpUser
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, turns
from tests.unit.server.scene import DIRECT, TOKEN, Peer, office

both = pytest.mark.parametrize("settings", [{}, DIRECT], ids=["mux", "direct"])


@pytest.fixture(autouse=True)
def _prompt(monkeypatch):
    monkeypatch.setattr(module, "START_S", 0.0)
    monkeypatch.setattr(module, "RETRY_S", 0.01)


class Client:
    """The client's end of the work connection, with its layers."""

    def __init__(self, endpoint, early, *, key=None, compress=False) -> None:
        self.end, early = wrap_payload(endpoint, early, key=key, compress=compress)
        self.got: list = []
        self.reader = Reader()
        self.decoder = FrameDecoder()
        self.reader.on_data = self._data
        self.end.set_protocol(self.reader)
        if early:
            self.reader.data_received(early)
        self.end.resume_reading()

    def _data(self, data: bytes) -> None:
        self.decoder.feed(data)
        while msg := self.decoder.next():
            self.got.append(msg)

    async def packets(self, count: int) -> list[UDPPacket]:
        await until(lambda: len(self.got) >= count, f"{count} packets, not {len(self.got)}")
        return self.got

    def send(self, *msgs) -> None:
        self.end.write(b"".join(map(encode, msgs)))


async def bring(peer: Peer, **layers) -> Client:
    work = await peer.bring()
    msg = await within(work.conn.read(), 5, "StartWorkConn")
    assert msg == StartWorkConn(proxy_name="dns")  # Without addresses.
    return Client(*work.conn.detach(), **layers)


def user_addr(user: UdpUser) -> UDPAddr:
    return UDPAddr(ip=user.address[0], port=user.address[1])


@both
async def test_datagrams_pass_with_the_address_of_their_user(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        peer = await o.login()
        assert (await peer.udp("dns", port)).remote_addr == f":{port}"
        assert o.log.has(f"udp proxy listen port [{port}]", "info")
        client = await bring(peer)
        with UdpUser(port) as one, UdpUser(port) as two:
            for user, data in ((one, b"one"), (two, b"two"), (one, b"")):
                user.send(data)
            got = await client.packets(3)
            assert got == [
                UDPPacket(content=b"one", remote_addr=user_addr(one)),
                UDPPacket(content=b"two", remote_addr=user_addr(two)),
                UDPPacket(content=b"", remote_addr=user_addr(one)),
            ]
            client.send(*reversed(got), Ping())
            assert [await one.receive() for _ in range(2)] == [b"", b"one"]
            assert await two.receive() == b"two"
        client.end.abort()


@pytest.mark.parametrize(("encrypt", "compress"), [(True, False), (False, True), (True, True)])
async def test_the_layers_are_as_the_client_asked(monkeypatch, encrypt, compress):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port, use_encryption=encrypt, use_compression=compress)
        key = derive_key(TOKEN) if encrypt else None
        client = await bring(peer, key=key, compress=compress)
        with UdpUser(port) as user:
            user.send(b"hello " * 100)
            [msg] = await client.packets(1)
            client.send(msg)
            assert await user.receive() == msg.content == b"hello " * 100
        client.end.abort()


async def test_users_may_come_over_ipv6(monkeypatch):
    async with office(monkeypatch, proxyBindAddr="::1") as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        client = await bring(peer)
        with UdpUser(port, "::1") as user:
            user.send(b"six")
            [msg] = await client.packets(1)
            assert msg.remote_addr == UDPAddr(ip="::1", port=user.address[1])
            # An address of the other family is one bad answer, no more.
            client.send(UDPPacket(content=b"x", remote_addr=UDPAddr(ip="127.0.0.1", port=9)), msg)
            assert await user.receive() == b"six"
        client.end.abort()


async def test_datagrams_that_come_before_the_work_connection_wait_for_it(monkeypatch):
    monkeypatch.setattr(userport, "QUEUE", 3)
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        with UdpUser(port) as user:
            for number in range(5):
                user.send(bytes((number,)))
            await until(lambda: o.log.has("datagrams of users are dropped", "warning"), "the drop")
            client = await bring(peer)
            got = await client.packets(3)
            assert [msg.content for msg in got] == [b"\0", b"\1", b"\2"]  # The newest are lost.
        client.end.abort()


async def test_a_dead_work_connection_is_replaced_by_another(monkeypatch):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        with UdpUser(port) as user:
            for end in ("abort", "close", "nonsense"):
                client = await bring(peer)
                user.send(b"hello")
                await client.packets(1)
                if end == "nonsense":
                    client.end.write(b"GET / HTTP/1.1\r\n")
                    await client.reader.until_lost()
                else:
                    getattr(client.end, end)()
                proxy = o.server._proxies["dns"]
                await until(lambda p=proxy: p._users.conn is None, "the end to be seen")
            assert len([e for e in o.log.events() if "read from workConn for udp error" in e]) == 3
            client = await bring(peer)
            user.send(b"again")
            assert (await client.packets(1))[0].content == b"again"
        client.end.abort()


async def test_a_silent_work_connection_is_dropped(monkeypatch):
    monkeypatch.setattr(userport, "SILENCE_S", 0.1)
    async with office(monkeypatch) as o:
        peer = await o.login()
        await peer.udp("dns", free_port())
        client = await bring(peer)
        await client.reader.until_lost()
        assert o.log.has("read from workConn for udp error: nothing came for 0.1 s", "warning")


async def test_a_ping_keeps_a_work_connection(monkeypatch):
    looks: list[float] = []
    wait = asyncio.wait

    async def impatient(what, timeout=None):
        if timeout is None:
            return await wait(what)
        looks.append(timeout)
        return await wait(what, timeout=min(timeout, 0.01))

    monkeypatch.setattr(asyncio, "wait", impatient)
    async with office(monkeypatch) as o:
        peer = await o.login()
        await peer.udp("dns", free_port())
        client = await bring(peer)
        conn = await until(lambda: o.server._proxies["dns"]._users.conn, "the work connection")
        conn.heard -= 50  # Of the 60 s that a connection may be silent.
        await until(lambda: looks and looks[-1] < 11, "a look at the time")
        client.send(Ping(), Pong())
        await until(lambda: looks[-1] > 11, "the ping to count")
        assert not conn.ended.done()
        client.end.abort()


async def test_a_client_that_brings_nothing_is_asked_again(monkeypatch):
    async with office(monkeypatch, userConnTimeout=1) as o:
        peer = await o.login()
        await peer.udp("dns", free_port())
        text = "timeout trying to get work connection"
        await until(lambda: o.log.has(text, "warning"), text)
        client = await bring(peer)
        client.end.abort()


async def test_a_client_that_closes_each_work_connection_is_asked_slowly(monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 60.0)
    async with office(monkeypatch) as o:
        peer = await o.login(pool_count=1)
        await peer.udp("dns", free_port())
        client = await bring(peer)
        client.end.abort()
        await until(lambda: o.log.has("read from workConn for udp error"), "the end to be seen")
        work = await peer.bring()
        await turns(100)
        assert o.server._proxies["dns"]._users.conn is None
        work.end.abort()


@both
async def test_the_end_of_a_proxy_leaves_nothing(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        peer = await o.login()
        for _ in range(2):  # The port is free again each time.
            assert (await peer.udp("dns", port)).error == ""
            client = await bring(peer)
            await until(lambda: o.server._proxies["dns"]._users.conn, "the work connection")
            peer.conn.write(CloseProxy(proxy_name="dns"))
            await until(lambda c=client: c.reader.ends or c.reader.lost, "the end")
            assert not o.server._proxies
            control = o.server.controls[peer.run_id]
            await until(lambda c=control: not _tasks(c), "the task to end")
            client.end.abort()


async def test_a_proxy_may_end_before_it_has_a_work_connection(monkeypatch):
    monkeypatch.setattr(module, "START_S", 60.0)
    async with office(monkeypatch) as o:
        peer = await o.login()
        await peer.udp("dns", free_port())
        control = o.server.controls[peer.run_id]
        peer.conn.write(CloseProxy(proxy_name="dns"))
        await until(lambda: not o.server._proxies and not _tasks(control), "the end")


def _tasks(control) -> list[str]:
    names = [task.get_name() for task in control._scope._tasks]
    return [name for name in names if name.startswith("work connection of")]


@both
async def test_the_end_of_a_client_ends_its_proxies(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        client = await bring(peer)
        peer.conn.abort()
        await until(lambda: not o.server.controls, "the client to be gone")
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            await until(lambda: not _taken(sock, port), "the port to be free")
        client.end.abort()


def _taken(sock: socket.socket, port: int) -> bool:
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        return True
    return False


async def test_what_was_closed_while_it_started_is_refused(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        attach = userport.DatagramSocket.attach

        async def late(self):
            await attach(self)
            o.server._proxies["dns"].close()

        monkeypatch.setattr(userport.DatagramSocket, "attach", late)
        assert (await peer.udp("dns", free_port())).error == "the server is stopping"


async def test_a_socket_that_the_loop_does_not_take_leaves_nothing(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()

        async def failing(self):
            self.close()
            raise OSError("no")

        monkeypatch.setattr(userport.DatagramSocket, "attach", failing)
        port = free_port()
        resp = await peer.udp("dns", port)
        assert resp.error == f"acquire port {port} error: port unavailable"


# -- sizes --------------------------------------------------------------------------------------


async def test_a_longer_datagram_is_cut_and_said_so_once(monkeypatch):
    async with office(monkeypatch, udpPacketSize=100) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        client = await bring(peer)
        with UdpUser(port) as user:
            for size in (100, 101, 5000):
                user.send(bytes(size))
            assert [len(msg.content) for msg in await client.packets(3)] == [100] * 3
        [text] = [event for event in o.log.events("warning") if "was cut" in event]
        assert "a datagram of 101 bytes" in text
        assert "udpPacketSize is 100, raise it on both sides" in text
        client.end.abort()


async def test_a_datagram_beyond_any_message_is_dropped_and_said_so(monkeypatch):
    async with office(monkeypatch, udpPacketSize=65000) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        client = await bring(peer)
        with UdpUser(port) as user:
            user.send(bytes(8000))
            user.send(bytes(7000))
            assert len((await client.packets(1))[0].content) == 7000
        assert o.log.has("a datagram of a user was dropped: UDPPacket of 107", "warning")
        client.end.abort()


async def test_a_client_that_does_not_read_costs_datagrams_and_no_memory(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        client = await bring(peer)
        client.end.pause_reading()
        proxy = o.server._proxies["dns"]
        await until(lambda: proxy._users.conn, "the work connection")
        for _ in range(5000):
            proxy._users._from_user(bytes(1400), ("127.0.0.1", 9))
        assert o.log.has("datagrams of users are dropped", "warning")
        assert len(proxy._users.conn._queue) <= userport.QUEUE
        assert client.end.unread < 1024 * 1024
        client.end.abort()


# -- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addr",
    [None, UDPAddr(ip="localhost", port=9), UDPAddr(ip="127.0.0.1", port=0), UDPAddr(ip="::1")],
)
async def test_an_answer_to_no_address_is_dropped_and_said_so(monkeypatch, addr):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        client = await bring(peer)
        with UdpUser(port) as user:
            good = UDPPacket(content=b"good", remote_addr=user_addr(user))
            client.send(UDPPacket(content=b"bad", remote_addr=addr), good)
            assert await user.receive() == b"good"
        assert o.log.has("an answer to a user was dropped: it has", "warning")
        client.end.abort()


async def test_an_answer_that_the_system_refuses_is_lost_alone(monkeypatch):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.udp("dns", port)
        client = await bring(peer)
        with UdpUser(port) as user:
            nowhere = UDPAddr(ip="255.255.255.255", port=9)
            good = UDPPacket(content=b"good", remote_addr=user_addr(user))
            client.send(UDPPacket(content=b"bad", remote_addr=nowhere), good)
            assert await user.receive() == b"good"
        assert o.log.has("a datagram to or from a user was lost", "debug")
        client.end.abort()


# -- ports --------------------------------------------------------------------------------------


async def test_ports_are_counted_with_those_of_tcp(monkeypatch):
    async with office(monkeypatch, maxPortsPerClient=2) as o:
        peer = await o.login()
        assert (await peer.tcp("ssh", free_port())).error == ""
        assert (await peer.udp("dns", free_port())).error == ""
        assert (await peer.udp("ntp", free_port())).error == "exceed the max_ports_per_client"
        peer.conn.write(CloseProxy(proxy_name="dns"))
        assert (await peer.udp("ntp", free_port())).error == ""


async def test_tcp_and_udp_have_their_ports_apart(monkeypatch):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        assert (await peer.tcp("ssh", port)).error == ""
        assert (await peer.udp("dns", port)).error == ""


async def test_a_random_port_is_one_that_is_allowed_and_comes_again(monkeypatch):
    port = free_port()
    async with office(monkeypatch, allowPorts=[{"single": port}]) as o:
        peer = await o.login()
        for _ in range(2):
            assert (await peer.udp("dns")).remote_addr == f":{port}"
            peer.conn.write(CloseProxy(proxy_name="dns"))
        await until(lambda: not o.server._proxies, "the proxy to close")


async def test_refusals_are_in_frps_words(monkeypatch):
    used, busy, free = free_port(), free_port(), free_port()
    allowed = [{"single": port} for port in (used, busy)]
    async with office(monkeypatch, allowPorts=allowed) as o:
        peer = await o.login()
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", busy))
            assert (await peer.udp("dns", used)).error == ""
            for port, reason in [
                (used, "port already used"),
                (free, "port not allowed"),
                (-1, "port not allowed"),
                (70000, "port not allowed"),
                (busy, "port unavailable"),
                (0, "no available port"),
            ]:
                resp = await peer.udp("ntp", port)
                assert resp.error == f"acquire port {port} error: {reason}"
