"""Ways from a client to its server, and what is said when there is none."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from pyfrp.client.connector import DirectConnector, MuxConnector
from pyfrp.client.route import Route
from pyfrp.client.transports import connect
from pyfrp.client.transports.tcp import dial
from pyfrp.errors import DialError, HandshakeError, PeerClosed
from pyfrp.net.tls import upgrade
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, turns
from tests.unit.net.mux_pair import MuxSide
from tests.unit.net.tls_pair import NAME, client_context, server_context

ROUTE = Route(
    host="127.0.0.1",
    port=0,
    local_ip="",
    dial_timeout_s=5.0,
    keepalive_s=0,
    tls=None,
    tls_server_name=NAME,
    tls_first_byte=False,
    tcp_mux=False,
    mux_keepalive_s=0,
)


def report(exc, what):
    raise AssertionError(what) from exc


@asynccontextmanager
async def listening(on_connection=None):
    """A listener whose connections have Readers; its route and the readers."""
    readers = []

    class Accepting(Reader):
        def connection_made(self, transport):
            super().connection_made(transport)
            readers.append(self)
            if on_connection is not None:
                on_connection(transport)

    server = await asyncio.get_running_loop().create_server(Accepting, "127.0.0.1", 0)
    try:
        yield replace(ROUTE, port=server.sockets[0].getsockname()[1]), readers
    finally:
        server.close()
        for reader in readers:
            reader.transport.abort()
        await turns()


async def accept_tls(reader, *, skip=0):
    """Do the server's part of the handshake on an accepted connection."""
    await until(lambda: len(reader.data) > skip, "the first bytes")
    reader.transport.pause_reading()
    return await within(
        upgrade(
            reader.transport, server_context(), server_side=True, early=bytes(reader.data[skip:])
        ),
        5,
        "the handshake",
    )


async def test_a_direct_route_dials_for_every_connection(loop_kind):
    async with listening() as (route, readers):
        connector = await connect(route, report)
        assert isinstance(connector, DirectConnector)
        assert readers == []
        ends = [(await connector.open())[0] for _ in range(2)]
        await until(lambda: len(readers) == 2, "two connections")
        assert connector.heard() == 0.0
        await connector.close()
        for end in ends:
            assert not end.is_closing()
            end.abort()
        await turns()


async def test_connections_after_the_logins_have_the_usual_time_to_be_made():
    """A look at a way in passing is impatient, and the session that comes of it lasts for days."""
    dialled = []

    async def dial(route):
        dialled.append(route.dial_timeout_s)
        if len(dialled) == 1:
            raise DialError("not yet")
        return object(), b""

    connector = DirectConnector(replace(ROUTE, dial_timeout_s=2.0, later_timeout_s=10.0), dial)
    with pytest.raises(DialError):
        await connector.open()
    for _ in range(3):
        await connector.open()
    assert dialled == [2.0, 2.0, 10.0, 10.0]


async def test_a_connection_that_is_lost_as_it_is_made_is_not_the_end_of_a_link():
    """`PeerClosed` would be: the session with all of its users was ended for that."""

    async def dial(route):
        raise PeerClosed("the connection was closed")

    with pytest.raises(DialError, match="closed"):
        await DirectConnector(ROUTE, dial).open()


async def test_a_mux_route_dials_once_for_all_connections(loop_kind):
    async with listening() as (route, readers):
        connector = await connect(replace(route, tcp_mux=True), report)
        assert isinstance(connector, MuxConnector)
        ends = [(await connector.open())[0] for _ in range(3)]
        for number, end in enumerate(ends):
            end.write(b"%d" % number)
        await until(lambda: readers, "the link")
        side = MuxSide(readers[0].transport)
        data = bytes(readers[0].data)
        side.start(client=False, keepalive_s=0)
        if data:
            side.mux.data_received(data)
        await side.accepted(3)
        await until(lambda: [bytes(r.data) for r in side.readers] == [b"0", b"1", b"2"], "bytes")
        assert connector.heard() > 0
        await connector.close()
        await until(lambda: side.lost, "the link to go")
        with pytest.raises(PeerClosed, match="the session ended"):
            await connector.open()


async def test_a_link_that_was_lost_says_why_when_it_is_asked_for_more(loop_kind):
    async with listening() as (route, readers):
        connector = await connect(replace(route, tcp_mux=True), report)
        await until(lambda: readers, "the link")
        readers[0].transport.abort()
        await until(lambda: connector._mux.lost, "the loss")
        with pytest.raises(PeerClosed, match="link"):
            await connector.open()


@pytest.mark.parametrize("first_byte", [False, True])
async def test_tls_is_spoken_with_or_without_frps_byte(loop_kind, first_byte):
    async with listening() as (route, readers):
        route = replace(route, tls=client_context(), tls_first_byte=first_byte)
        dialling = asyncio.get_running_loop().create_task(dial(route))
        await until(lambda: readers and readers[0].data, "the first bytes")
        assert readers[0].data[0] == (0x17 if first_byte else 0x16)
        server = await accept_tls(readers[0], skip=int(first_byte))
        client, early = await within(dialling, 5, "the dial")
        assert early == b""
        assert client.get_extra_info("ssl_object").server_hostname == NAME
        reader = Reader()
        server.set_protocol(reader)
        server.resume_reading()
        client.write(b"hello")
        assert await reader.until_data(5) == b"hello"
        client.abort()
        server.abort()


async def test_a_server_that_is_not_there_is_named(loop_kind):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(DialError, match=rf"127.0.0.1:{port}: connection refused"):
            await dial(replace(ROUTE, port=port))


async def test_a_server_that_does_not_speak_tls_is_named_as_such(loop_kind):
    async with listening(lambda t: t.write(b"SSH-2.0-OpenSSH_9\r\n")) as (route, _):
        with pytest.raises(HandshakeError, match="does not speak TLS"):
            await dial(replace(route, tls=client_context()))


async def test_a_server_that_holds_tls_back_is_given_up_with_a_hint(loop_kind):
    async with listening() as (route, readers):
        with pytest.raises(HandshakeError, match=r"no TLS answer .* within 0.1 s; is it an frp"):
            await dial(replace(route, tls=client_context(), dial_timeout_s=0.1))
        await until(lambda: readers[0].ends or readers[0].lost, "the connection to be dropped")


@pytest.mark.parametrize("tcp_mux", [False, True])
async def test_a_server_that_closes_at_once_is_named(loop_kind, tcp_mux):
    async with listening(lambda t: t.close()) as (route, _):
        route = replace(route, tls=client_context(), tcp_mux=tcp_mux)

        async def open_one():
            connector = await connect(route, report)
            await connector.open()

        with pytest.raises((DialError, HandshakeError)) as caught:
            await open_one()
        assert str(caught.value)


async def test_giving_a_dial_up_leaves_no_connection(loop_kind):
    async with listening() as (route, readers):
        dialling = asyncio.get_running_loop().create_task(
            dial(replace(route, tls=client_context()))
        )
        await until(lambda: readers, "the connection")
        dialling.cancel()
        await asyncio.wait([dialling])
        await until(lambda: readers[0].ends or readers[0].lost, "the connection to be dropped")


async def test_a_trusting_client_refuses_a_stranger(loop_kind):
    async with listening() as (route, readers):
        route = replace(route, tls=client_context(trusting=True), tls_server_name="other.test")
        dialling = asyncio.get_running_loop().create_task(dial(route))
        await until(lambda: readers and readers[0].data, "the first bytes")
        serving = asyncio.get_running_loop().create_task(accept_tls(readers[0]))
        with pytest.raises(HandshakeError, match="not trusted"):
            await within(dialling, 5, "the dial")
        with pytest.raises(HandshakeError):
            await within(serving, 5, "the server's part")
