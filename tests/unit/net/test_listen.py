"""Incoming connections: held until their reader is ready, sniffed for what they speak."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from pyfrp.net.endpoint import local_address, peer_address
from pyfrp.net.held import Held
from pyfrp.net.listen import Sniffer, listen
from pyfrp.net.sockets import bind, bind_error
from pyfrp.wire.sniff import Kind
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.unit.net.ends import RawPeer, Reader, memory_pair, tcp_to_raw, turns


async def connect(port):
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return RawPeer(sock)


# -- listeners ----------------------------------------------------------------------------------


async def test_a_listener_accepts_and_its_port_is_known(loop_kind):
    readers = []

    def factory():
        readers.append(Reader())
        return readers[-1]

    server = await listen(factory, "127.0.0.1", 0, keepalive_s=0)
    peer = await connect(server.port)
    await peer.send(b"x")
    await until(lambda: readers and readers[0].data, "the byte")
    peer.close()
    await readers[0].until_ended()
    readers[0].transport.abort()
    server.close()
    await readers[0].until_lost()


@pytest.mark.parametrize("seconds", [0, -1, 45])
async def test_accepted_connections_inherit_keepalive(loop_kind, seconds):
    readers = []

    def factory():
        readers.append(Reader())
        return readers[-1]

    server = await listen(factory, "127.0.0.1", 0, keepalive_s=seconds)
    peer = await connect(server.port)
    await until(lambda: readers and readers[0].transport, "the connection")
    sock = readers[0].transport.get_extra_info("socket")
    assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == (seconds > 0)
    if seconds > 0:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == seconds
    readers[0].transport.abort()
    peer.close()
    server.close()
    await readers[0].until_lost()


async def test_callers_who_come_at_once_are_accepted_together(loop_kind):
    readers = []

    def factory():
        readers.append(Reader())
        return readers[-1]

    listener = await listen(factory, "127.0.0.1", 0, keepalive_s=0, lanes=4)
    socks = []
    for _ in range(8):
        sock = socket.socket()
        sock.connect(("127.0.0.1", listener.port))  # Blocks until the kernel has queued it.
        socks.append(sock)
    turn = 0
    while len(readers) < 8:
        await asyncio.sleep(0)
        turn += 1
        assert turn < 50, f"{len(readers)} of 8 after {turn} turns"
    assert turn < 8  # One each would take as many turns, and one more to get there.
    listener.close()
    for sock in socks:
        sock.close()
    await until(lambda: all(reader.transport for reader in readers), "the connections")
    for reader in readers:
        reader.transport.abort()
        await reader.until_lost()
    # All lanes are gone: the port is free.
    bind("127.0.0.1", listener.port, keepalive_s=0).close()


async def test_a_bound_socket_is_served_and_closed(loop_kind):
    sock = bind("127.0.0.1", 0, keepalive_s=0)
    port = sock.getsockname()[1]
    peer = await connect(port)  # Before anybody serves.
    readers = []

    def factory():
        readers.append(Reader())
        return readers[-1]

    listener = await listen(factory, "127.0.0.1", 0, keepalive_s=0, bound=sock)
    assert listener.port == port
    await peer.send(b"x")
    await until(lambda: readers and readers[0].data, "the byte")
    peer.close()
    await readers[0].until_ended()
    readers[0].transport.abort()
    listener.close()
    await readers[0].until_lost()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_any_address_is_of_both_families(loop_kind, host):
    readers = []

    def factory():
        readers.append(Reader())
        return readers[-1]

    listener = await listen(factory, host, 0, keepalive_s=0)
    callers = ["127.0.0.1"]
    if socket.has_dualstack_ipv6():
        callers.append("::1")
    for caller in callers:
        sock = socket.create_connection((caller, listener.port), timeout=5)
        await until(lambda: readers and readers[-1].transport, "the connection")
        reader = readers.pop()
        # An IPv4 caller is seen by its IPv4 address, as in the logs and headers of frp.
        assert peer_address(reader.transport) == sock.getsockname()[:2]
        assert local_address(reader.transport) == (caller, listener.port)
        sock.close()
        reader.transport.abort()
        await reader.until_lost()
    listener.close()
    await turns()


def test_one_address_is_of_one_family():
    with bind("127.0.0.1", 0, keepalive_s=0) as sock:
        assert sock.family == socket.AF_INET


async def test_a_name_is_bound_on_its_addresses(loop_kind):
    listener = await listen(Reader, "localhost", 0, keepalive_s=0)
    assert listener.port
    listener.close()
    await turns()


async def test_a_port_that_is_taken_is_an_oserror_that_can_be_told(loop_kind):
    server = await listen(Reader, "127.0.0.1", 0, keepalive_s=0)
    port = server.port
    with pytest.raises(OSError) as caught:  # noqa: PT011  # its errno is what is looked at below
        await listen(Reader, "127.0.0.1", port, keepalive_s=0)
    assert caught.value.errno == errno.EADDRINUSE
    text = bind_error("127.0.0.1", port, caught.value)
    assert text.startswith(f"listen tcp 127.0.0.1:{port}: bind: address already in use")
    assert "ss -ltnp" in text
    text = bind_error("127.0.0.1", port, caught.value, "udp")
    assert text.startswith(f"listen udp 127.0.0.1:{port}: bind: address already in use")
    assert "ss -lunp" in text
    server.close()
    await turns()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "CAP_NET_BIND_SERVICE"),
        (errno.EADDRNOTAVAIL, "does not have that address"),
        (errno.EMFILE, ""),
    ],
)
def test_what_to_try_is_said_with_the_reason(number, hint):
    text = bind_error("0.0.0.0", 80, OSError(number, "x"))
    assert text.startswith("listen tcp 0.0.0.0:80: bind: ")
    assert text.endswith(")") == bool(hint)
    assert hint in text


# -- connections that are held ------------------------------------------------------------------


async def test_early_bytes_and_the_early_end_of_a_held_connection_are_kept(loop_kind):
    """uvloop starts to read before it can be told to pause."""
    opened = []
    server = await listen(
        lambda: Held(lambda transport, held: opened.append((transport, held))),
        "127.0.0.1",
        0,
        keepalive_s=0,
    )
    peers = []
    for number in range(30):
        peer = await connect(server.port)
        if number % 3:
            await peer.send(b"early")
        if number % 2:
            peer.end()
        peers.append(peer)
    await until(lambda: len(opened) == len(peers), "all connections")
    for transport, held in opened:
        reader = Reader()
        if held.early:
            reader.data_received(held.early)
        transport.set_protocol(reader)
        if held.ended:
            reader.eof_received()
        else:
            transport.resume_reading()
        port = transport.get_extra_info("peername")[1]
        number = next(i for i, p in enumerate(peers) if p.sock.getsockname()[1] == port)
        if number % 3:
            assert await reader.until_data(5) == b"early"
        if number % 2:
            await reader.until_ended()
        await turns(2)
        assert reader.ends == number % 2
        transport.abort()
    for peer in peers:
        peer.close()
    server.close()
    await turns()


async def test_a_held_connection_is_not_read_further(loop_kind):
    opened = []
    async with tcp_to_raw(lambda: Held(lambda t, h: opened.append((t, h)))) as (transport, peer):
        await turns(3)
        loop = asyncio.get_running_loop()
        sending = loop.create_task(loop.sock_sendall(peer.sock, bytes(32 << 20)))
        await turns(50)
        _, held = opened[0]
        # At most what one read takes.
        assert len(held.early) <= 1 << 20
        assert not sending.done()
        transport.abort()
        await asyncio.wait([sending])
        assert sending.exception() is not None


async def test_a_held_connection_that_was_given_away_is_left_alone(loop_kind):
    reader = Reader()
    async with tcp_to_raw(lambda: Held(lambda t, _: t.set_protocol(reader))) as (_, peer):
        await turns(5)
        await peer.send(b"for the new reader")
        assert await reader.until_data(18)


async def test_a_held_connection_that_closed_is_not_paused():
    near, _ = memory_pair()
    held = Held(lambda transport, _: transport.abort())
    near.set_protocol(held)
    held.connection_made(near)
    await turns(5)
    assert near.is_closing()
    assert not near.paused


# -- sniffing -----------------------------------------------------------------------------------

FIRST = {
    "login": (b"o\x00\x00\x00\x00\x00\x00\x00\xbd", Kind.PLAIN),
    "yamux": (b"\x00\x01\x00\x01\x00\x00\x00\x01\x00\x5c\x00\x00", Kind.PLAIN),
    "tls": (b"\x16\x03\x01\x02\x00", Kind.TLS),
    "tls after a byte": (b"\x17\x16\x03\x01", Kind.TLS_AFTER_BYTE),
    "websocket": (b"GET /~!frp HTTP/1.1\r\n", Kind.WEBSOCKET),
    "http": (b"GET /v1/models HTTP/1.1\r\n", Kind.HTTP),
    "post": (b"POST / HTTP/1.1\r\n", Kind.HTTP),
}


class Sniffed:
    """A sniffer in memory and what it said."""

    def __init__(self, *, http_here=True):
        self.near, self.far = memory_pair()
        self.known = []
        self.gone = []
        self.sniffer = Sniffer(
            http_here=http_here,
            on_known=lambda *what: self.known.append(what),
            on_gone=self.gone.append,
        )
        self.near.set_protocol(self.sniffer)
        self.sniffer.connection_made(self.near)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
async def test_what_a_connection_speaks_is_told_with_the_bytes_read(name, size):
    data, kind = FIRST[name]
    scene = Sniffed()
    for at in range(0, len(data), size):
        scene.far.write(data[at : at + size])
    await turns()
    [(transport, found, early)] = scene.known
    assert found is kind
    assert transport is scene.near
    assert data.startswith(early)
    assert scene.near.paused
    assert scene.gone == [scene.sniffer]
    # The rest waits for the next reader.
    reader = Reader()
    scene.near.set_protocol(reader)
    scene.near.resume_reading()
    await turns()
    assert early + bytes(reader.data) == data


async def test_http_is_plain_nonsense_where_no_http_is_served():
    scene = Sniffed(http_here=False)
    scene.far.write(b"POST / HTTP/1.1\r\n")
    await turns()
    assert [known[1] for known in scene.known] == [Kind.PLAIN]


async def test_a_connection_that_says_nothing_is_reported_gone_when_it_leaves():
    scene = Sniffed()
    scene.far.close()
    await turns()
    assert scene.known == []
    assert scene.gone == [scene.sniffer]


async def test_a_connection_that_says_too_little_is_reported_gone():
    scene = Sniffed()
    scene.far.write(b"GE")
    scene.far.close()
    await turns()
    assert scene.known == []
    assert scene.gone == [scene.sniffer]


async def test_a_sniffer_can_be_told_to_give_up_at_any_time():
    early = Sniffer(http_here=False, on_known=lambda *_: None, on_gone=lambda _: None)
    early.abort()  # Made, but its connection was not.
    scene = Sniffed()
    scene.sniffer.abort()
    await turns()
    assert scene.near.aborted
    given_away = Sniffed()
    given_away.far.write(b"\x16")
    await turns()
    given_away.sniffer.abort()
    assert not given_away.near.aborted


async def test_a_listener_that_is_given_up_while_it_opens_leaves_no_port(loop_kind):
    for steps in range(4):
        port = free_port()
        opening = asyncio.get_running_loop().create_task(
            listen(asyncio.Protocol, "127.0.0.1", port, keepalive_s=0)
        )
        await turns(steps)
        opening.cancel()
        try:
            (await opening).close()
        except asyncio.CancelledError:
            pass  # As it should, unless it was done by then.
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
