"""Proxies of type udp on the client: a local socket for each user."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from pyfrp.client.proxies import udp as module
from pyfrp.client.proxies.udp import IDLE_S
from pyfrp.errors import DialError
from pyfrp.net.payload import wrap_payload
from pyfrp.wire import proxyproto
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.framing import FrameDecoder, encode
from pyfrp.wire.messages import NewProxy, Ping, Pong, StartWorkConn, UDPAddr, UDPPacket
from tests.support.datagrams import EchoUdp
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.unit.client.scene import TOKEN, Session, session, udp
from tests.unit.net.ends import Reader, turns


def user(number: int = 1, ip: str = "192.0.2.7", zone: str = "") -> UDPAddr:
    return UDPAddr(ip=ip, port=5000 + number, zone=zone)


def packet(data: bytes, addr: UDPAddr | None = None) -> UDPPacket:
    return UDPPacket(content=data, remote_addr=addr)


class Server:
    """The server's end of the work connection, with its layers."""

    def __init__(self, endpoint, early, *, key=None, compress=False) -> None:
        self.end, early = wrap_payload(endpoint, early, key=key, compress=compress)
        assert not early
        self.got: list = []
        self.reader = Reader()
        self.decoder = FrameDecoder()
        self.reader.on_data = self._data
        self.end.set_protocol(self.reader)
        self.end.resume_reading()

    def _data(self, data: bytes) -> None:
        self.decoder.feed(data)
        while msg := self.decoder.next():
            self.got.append(msg)

    def send(self, *msgs) -> None:
        self.end.write(b"".join(map(encode, msgs)))

    async def packets(self, count: int) -> list[UDPPacket]:
        await until(lambda: len(self.got) >= count, f"{count} messages, not {len(self.got)}")
        return self.got


async def start(s: Session, **layers) -> Server:
    conn = await s.request()
    conn.write(StartWorkConn(proxy_name="dns"))
    return Server(*conn.detach(), **layers)


@asynccontextmanager
async def running(port: int, *, packet_size: int = 1500, **more):
    async with session(udp("dns", port, **more), packet_size=packet_size) as s:
        await s.accept("dns")
        yield s


def relay_of(s: Session) -> module.UdpRelay:
    [relay] = s.control.bridges
    return relay


async def test_a_udp_proxy_asks_for_its_port():
    async with session(udp("dns", 53)) as s:
        assert await s.read() == NewProxy(proxy_name="dns", proxy_type="udp", remote_port=6000)


async def test_each_user_has_a_socket_of_his_own_and_keeps_it(loop_kind):
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        users = [user(number) for number in range(50)] + [user(ip="2001:db8::1"), user(zone="x")]
        for number in range(3):
            msgs = [packet(f"{number}-{n}".encode(), addr) for n, addr in enumerate(users)]
            server.send(*msgs)
            got = await server.packets(len(users))
            assert sorted(got, key=repr) == sorted(msgs, key=repr)
            server.got.clear()
        assert len(echo.sources) == len(users)
        assert relay_of(s).carried() == 2 * sum(len(data) for data, _ in echo.got)
        server.end.abort()


async def test_empty_datagrams_and_those_of_nobody_pass():
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(packet(b"", user()), packet(b"x"))
        got = await server.packets(2)
        assert sorted(got, key=repr) == sorted([packet(b"", user()), packet(b"x")], key=repr)
        server.end.abort()


@pytest.mark.parametrize(("encrypt", "compress"), [(True, False), (False, True), (True, True)])
async def test_the_layers_are_those_of_the_file(encrypt, compress):
    transport = {"useEncryption": encrypt, "useCompression": compress}
    async with await EchoUdp().start() as echo, running(echo.port, transport=transport) as s:
        server = await start(s, key=derive_key(TOKEN) if encrypt else None, compress=compress)
        server.send(packet(b"hello " * 100, user()))
        assert await server.packets(1) == [packet(b"hello " * 100, user())]
        server.end.abort()


@pytest.mark.parametrize("name", ["::1", "localhost"])
async def test_the_service_may_be_at_an_ipv6_address_or_a_name(name):
    host = "::1" if name == "::1" else "127.0.0.1"
    async with await EchoUdp().start(host) as echo, running(echo.port, localIP=name) as s:
        server = await start(s)
        server.send(packet(b"hello", user()))
        assert await server.packets(1) == [packet(b"hello", user())]
        server.end.abort()


@pytest.fixture
def _watchful(monkeypatch):
    """Let a relay look at the time often; what it looks at is set by hand."""
    monkeypatch.setattr(module, "PING_S", 0.01)
    monkeypatch.setattr(module, "COARSE_S", 0.0)


@pytest.mark.usefixtures("_watchful")
async def test_idle_users_are_let_go_and_others_stay():
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(*(packet(b"once", user(number)) for number in range(5)))
        await until(lambda: len(echo.got) == 5, "the datagrams")
        relay = relay_of(s)
        kept, *others = relay._locals.items()
        kept[1].heard -= IDLE_S - 10
        for _, local in others:
            local.heard -= IDLE_S
        await until(lambda: len(relay._locals) < 5, "the idle users to go")
        assert relay._locals == {kept[0]: kept[1]}
        server.send(packet(b"again", user(0)), packet(b"back", user(1)))
        await until(lambda: len(echo.got) == 7, "a user to come back")
        assert echo.got[5][1] == echo.got[0][1]
        assert len(echo.sources) == 6
        server.end.abort()


@pytest.mark.usefixtures("_watchful")
@pytest.mark.parametrize("way", ["to the service", "from the service"])
async def test_a_datagram_either_way_keeps_a_user(way):
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        echo.silent = True
        server.send(packet(b"subscribe", user()))
        await until(lambda: echo.got, "the datagram")
        [local] = relay_of(s)._locals.values()
        local.heard -= IDLE_S - 10
        before = local.heard
        if way == "to the service":
            server.send(packet(b"still here", user()))
        else:
            echo.sock.sendto(b"news", echo.got[0][1])
        await until(lambda: local.heard >= before + IDLE_S - 10, "the user to count as alive")
        assert list(relay_of(s)._locals.values()) == [local]
        server.end.abort()


async def test_a_ping_leaves_every_interval(monkeypatch):
    monkeypatch.setattr(module, "PING_S", 0.02)
    monkeypatch.setattr(module, "COARSE_S", 0.0)
    async with running(free_port()) as s:
        server = await start(s)
        assert (await server.packets(3))[:3] == [Ping()] * 3
        server.end.abort()


async def test_a_new_work_connection_takes_the_place_of_the_old():
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        first = await start(s)
        first.send(packet(b"one", user()))
        await first.packets(1)
        second = await start(s)
        await first.reader.until_lost()
        second.send(packet(b"two", user()))
        assert await second.packets(1) == [packet(b"two", user())]
        await until(lambda: len(s.control.bridges) == 1, "the old one to be gone")
        second.end.abort()


@pytest.mark.parametrize("end", ["abort", "close", "nonsense", "session"])
async def test_nothing_is_left_when_the_work_connection_ends(end):
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(*(packet(b"x", user(number)) for number in range(20)))
        await server.packets(20)
        relay = relay_of(s)
        if end == "session":
            s.server.abort()
            await s.over()
            assert relay._locals == {}
        elif end == "nonsense":
            server.end.write(b"GET / HTTP/1.1\r\n")
        else:
            getattr(server.end, end)()
        await until(lambda: not s.control.bridges, "the relay to end")
        assert relay._locals == {}
        assert len(relay._scope) == 0
        server.end.abort()


async def test_other_messages_are_ignored():
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(Ping(), Pong(), packet(b"x", user()))
        assert await server.packets(1) == [packet(b"x", user())]
        server.end.abort()


async def test_draining_waits_for_silence_only(monkeypatch):
    monkeypatch.setattr("pyfrp.client.control.REST_S", 0.05)
    monkeypatch.setattr("pyfrp.client.control.SAMPLE_S", 0.01)
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(packet(b"x", user()))
        await server.packets(1)
        await asyncio.wait_for(s.control.drain(), 5)
        await server.reader.until_ended()
        server.end.abort()


# -- who sends ----------------------------------------------------------------------------------


def headed(echo: EchoUdp, number: int) -> tuple[proxyproto.ProxyHeader, bytes]:
    """A datagram that the service got, and the header ahead of it."""
    data = echo.got[number][0]
    found = proxyproto.decode(data)
    assert found is not None
    return found[0], data[found[1] :]


@pytest.mark.usefixtures("_watchful")
async def test_the_first_datagram_of_each_user_tells_who_he_is():
    """Of each socket at the service, that is: a user who was idle has a new one."""
    told = {"proxyProtocolVersion": "v2"}
    async with await EchoUdp().start() as echo, running(echo.port, transport=told) as s:
        server = await start(s)
        two = user(2, ip="2001:db8::1")
        for data, addr in ((b"a", user()), (b"", two), (b"b", user()), (b"c", two)):
            server.send(packet(data, addr))
        await until(lambda: len(echo.got) == 4, "the datagrams")
        service = ("127.0.0.1", echo.port)
        own = ("192.0.2.7", 5001)
        assert headed(echo, 0) == (proxyproto.ProxyHeader(own, service, True), b"a")
        header, data = headed(echo, 1)
        assert (header.source, header.datagram, data) == (("2001:db8::1", 5002), True, b"")
        assert [data for data, _ in echo.got[2:]] == [b"b", b"c"]
        for local in relay_of(s)._locals.values():
            local.heard -= IDLE_S
        await until(lambda: not relay_of(s)._locals, "the idle users to go")
        server.send(packet(b"back", user()))
        await until(lambda: len(echo.got) == 5, "the datagram")
        assert headed(echo, 4)[1] == b"back"
        server.end.abort()


async def test_text_names_no_address_of_a_datagram():
    told = {"proxyProtocolVersion": "v1"}
    async with await EchoUdp().start() as echo, running(echo.port, transport=told) as s:
        server = await start(s)
        server.send(packet(b"a", user()))
        await until(lambda: echo.got, "the datagram")
        assert echo.got[0][0] == b"PROXY UNKNOWN\r\na"
        server.end.abort()


@pytest.mark.parametrize("addr", [UDPAddr(ip="localhost", port=9), UDPAddr(ip="::1", port=2**17)])
async def test_a_datagram_of_no_address_is_dropped_where_the_service_is_to_be_told(addr):
    """It would take the user's own bytes for the header. One of nobody has none, as in frp."""
    told = {"proxyProtocolVersion": "v2"}
    async with await EchoUdp().start() as echo, running(echo.port, transport=told) as s:
        server = await start(s)
        server.send(packet(b"bad", addr), packet(b"of nobody"))
        await until(lambda: echo.got, "the datagram")
        assert echo.got[0][0] == b"of nobody"
        words = f"no PROXY header for a user at [{addr.ip}]: no address"
        assert s.log.has(words, "warning")
        server.end.abort()


async def test_where_the_service_is_not_known_nobody_is_told(monkeypatch):
    async def lookup(host, port):
        raise DialError("no such host")

    monkeypatch.setattr(module, "resolve_one", lookup)
    told = {"proxyProtocolVersion": "v2"}
    async with running(53, transport=told) as s:
        server = await start(s)
        server.send(packet(b"x", user()))
        await until(lambda: s.log.has("no such host", "warning"), "the complaint")
        await turns()
        assert len(s.log.events("warning")) == 1
        server.end.abort()


# -- what can go wrong --------------------------------------------------------------------------


async def test_a_service_that_is_not_there_is_told_once_and_found_when_it_comes(loop_kind):
    port = free_port()
    async with running(port) as s:
        server = await start(s)
        for _ in range(3):
            server.send(packet(b"anybody?", user()))
            await until(lambda: s.log.has("refused"), "the refusal")
            await turns()
        [text] = [event for event in s.log.events("warning") if "refused" in event]
        assert text == f"connect to local service [127.0.0.1:{port}] error: connection refused"
        async with await EchoUdp().start(port=port):
            server.send(packet(b"now", user()))
            await until(lambda: packet(b"now", user()) in server.got, "the answer")
        server.end.abort()


async def test_a_name_that_does_not_resolve_is_told_and_tried_again(monkeypatch):
    monkeypatch.setattr(module, "PING_S", 0.02)
    monkeypatch.setattr(module, "COARSE_S", 0.0)
    known = []

    async def lookup(host, port):
        if not known:
            raise DialError(f"lookup {host}: no such host")
        return known[-1], port

    monkeypatch.setattr(module, "resolve_one", lookup)
    async with await EchoUdp().start() as echo, running(echo.port, localIP="x.test") as s:
        server = await start(s)
        server.send(packet(b"lost", user()))
        where = f"connect to local service [x.test:{echo.port}] error: lookup x.test: no such host"
        await until(lambda: where in s.log.events("warning"), "the complaint")
        relay = relay_of(s)
        known.append("127.0.0.1")
        await until(lambda: relay._target, "the service to be found")
        server.send(packet(b"found", user()))
        await until(lambda: packet(b"found", user()) in server.got, "the answer")
        known.append("127.0.0.2")  # The service moves: users go there with new sockets.
        await until(lambda: relay._target == ("127.0.0.2", echo.port), "the new address")
        assert relay._locals == {}
        server.end.abort()


async def test_a_resolver_that_hangs_does_not_keep_a_relay_alive(monkeypatch):
    monkeypatch.setattr(module, "LOCAL_DIAL_S", 0.05)
    hanging = asyncio.Event()

    async def lookup(host, port):
        await hanging.wait()

    monkeypatch.setattr(module, "resolve_one", lookup)
    async with running(53, localIP="x.test") as s:
        first = await start(s)
        await until(lambda: s.control.bridges, "the relay")
        relay_of(s).abort()
        await until(lambda: s.log.has("the resolver does not answer"), "the complaint")
        await first.reader.until_lost()
        second = await start(s)
        await until(lambda: s.control.bridges, "the second relay")
        second.end.abort()
        await until(lambda: not s.control.bridges, "its end")


async def test_users_beyond_the_limit_are_dropped_and_those_inside_stay(monkeypatch):
    monkeypatch.setattr(module, "MAX_USERS", 3)
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(*(packet(b"x", user(number)) for number in range(10)))
        server.send(packet(b"y", user(0)))
        got = await server.packets(4)
        await turns()
        assert sorted({msg.remote_addr.port for msg in got}) == [5000, 5001, 5002]
        assert s.log.has("more than 3 users at once", "warning")
        server.end.abort()


async def test_no_descriptor_for_a_user_is_told(monkeypatch):
    def none_left(address):
        raise OSError(24, "Too many open files")

    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        monkeypatch.setattr(module, "connect_udp", none_left)
        server.send(packet(b"x", user()))
        await until(lambda: s.log.has("error: too many open files", "warning"), "the complaint")
        monkeypatch.undo()
        server.send(packet(b"y", user()))
        await server.packets(1)
        server.end.abort()


async def test_a_loop_that_cannot_read_a_socket_is_told(monkeypatch):
    async def failing(self):
        self.close()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("pyfrp.net.datagrams.DatagramSocket.attach", failing)
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(packet(b"x", user()))
        await until(lambda: s.log.has("error: too many open files", "warning"), "the complaint")
        server.end.abort()


async def test_an_address_that_is_none_takes_no_memory():
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(packet(b"x", user(ip="1" * 5000)), packet(b"y", user()))
        await server.packets(1)
        assert len(relay_of(s)._locals) == 1
        server.end.abort()


async def test_longer_answers_are_cut_and_said_so_once():
    async with await EchoUdp().start() as echo, running(echo.port, packet_size=100) as s:
        server = await start(s)
        server.send(*(packet(bytes(size), user()) for size in (100, 101, 5000)))
        assert [len(msg.content) for msg in await server.packets(3)] == [100] * 3
        [text] = [event for event in s.log.events("warning") if "was cut" in event]
        assert "a datagram of 101 bytes from the local service" in text
        assert "udpPacketSize is 100, raise it on both sides" in text
        server.end.abort()


async def test_answers_beyond_any_message_are_dropped_and_said_so():
    async with await EchoUdp().start() as echo, running(echo.port, packet_size=65000) as s:
        server = await start(s)
        server.send(packet(b"x", user()))
        await server.packets(1)
        echo.sock.sendto(bytes(8000), echo.got[0][1])
        echo.sock.sendto(bytes(7000), echo.got[0][1])
        assert len((await server.packets(2))[1].content) == 7000
        assert s.log.has("a datagram of the local service was dropped: UDPPacket", "warning")
        server.end.abort()


async def test_a_server_that_does_not_read_costs_answers_and_no_memory():
    async with await EchoUdp().start() as echo, running(echo.port) as s:
        server = await start(s)
        server.send(packet(b"x", user()))
        await server.packets(1)
        server.end.pause_reading()
        relay = relay_of(s)
        [local] = relay._locals.values()
        for _ in range(5000):
            relay._from_service(local, bytes(1400))
        assert s.log.has("datagrams to users are dropped", "warning")
        assert server.end.unread < 1024 * 1024
        server.end.resume_reading()
        server.end.abort()
