"""KCP from a client: which address answers, what is said when none does, and the end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from pyfrp.client.connector import DirectConnector
from pyfrp.client.transports import connect, kcp
from pyfrp.client.transports.kcp import Dialler
from pyfrp.errors import DialError, HandshakeError
from pyfrp.net import dial
from pyfrp.net import kcp as endpoints
from pyfrp.net.conn import MessageConn
from pyfrp.net.kcp import KcpEndpoint
from pyfrp.net.mux import MuxTransport
from pyfrp.net.sockets import bind_datagrams
from pyfrp.net.tls import upgrade
from pyfrp.net.trains import TrainSocket
from pyfrp.wire.kcp import conversation
from pyfrp.wire.messages import Login
from tests.support.waiting import until, within
from tests.unit.client.test_connector import ROUTE, report
from tests.unit.net.ends import Reader, turns
from tests.unit.net.tls_pair import client_context, server_context

HOST = "127.0.0.1"


class Service:
    """A peer on a port: sessions by address, as an official server has them; silent at will."""

    def __init__(self) -> None:
        self.sessions: dict[object, KcpEndpoint] = {}
        self.silent = False

    async def open(self, host: str = HOST) -> Service:
        self.sock = TrainSocket(
            bind_datagrams(host, 0), on_datagrams=self._come, on_error=lambda exc: None
        )
        await self.sock.attach()
        self.route = replace(ROUTE, host=host, port=self.sock.address[1], protocol="kcp")
        return self

    def _come(self, datagrams, address):
        if self.silent:
            return
        session = self.sessions.get(address)
        if session is None:
            outlet = _Outlet(self, address)
            session = self.sessions[address] = KcpEndpoint(
                outlet,
                conv=conversation(datagrams[0]),
                info={"peername": address, "sockname": self.sock.address},
            )
        session.datagrams_received(datagrams)

    async def session(self) -> KcpEndpoint:
        return await until(lambda: next(iter(self.sessions.values()), None), "a session")

    async def __aenter__(self) -> Service:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        for session in list(self.sessions.values()):
            session.abort()
        self.sock.close()
        await turns()


class _Outlet:
    def __init__(self, service, address):
        self.service, self.address = service, address

    def send_all(self, datagrams):
        self.service.sock.send_all(datagrams, self.address)

    def close(self):
        self.service.sessions.pop(self.address, None)


def resolving(monkeypatch, *hosts):
    async def resolve(host, port):
        return [(found, port) for found in hosts]

    monkeypatch.setattr(dial, "resolve", resolve)


@asynccontextmanager
async def connected(route):
    connector = await connect(route, report)
    try:
        yield connector
    finally:
        await connector.close()
        await turns()


async def test_each_connection_is_a_session_without_a_mux():
    async with Service() as service, connected(service.route) as connector:
        assert isinstance(connector._connector, DirectConnector)
        ends = [(await connector.open())[0] for _ in range(3)]
        assert len({end.get_extra_info("sockname") for end in ends}) == 3
        assert connector.heard() == 0.0
        assert len(connector._dialler._sessions) == 3
        ends[0].abort()
        assert len(connector._dialler._sessions) == 2


async def test_a_mux_runs_on_one_session():
    async with Service() as service, connected(replace(service.route, tcp_mux=True)) as connector:
        stream, early = await connector.open()
        assert early == b""
        streams = []

        def take(opened):
            opened.set_protocol(Reader())
            streams.append(opened)

        session = await service.session()
        mux = MuxTransport(
            session,
            client=False,
            on_stream=take,
            on_lost=lambda cause: None,
            keepalive_s=0,
            on_error=report,
        )
        session.resume_reading()
        stream.set_protocol(Reader())
        stream.write(b"hello")
        assert await until(lambda: streams, "the stream")
        mux.close()


async def test_tls_is_spoken_behind_frps_byte():
    async with Service() as service:
        route = replace(service.route, tls=client_context(), tls_first_byte=True)

        async def serve():
            session = await service.session()
            reader = Reader()
            session.set_protocol(reader)
            session.resume_reading()
            await until(lambda: reader.data, "the first bytes")
            session.pause_reading()
            assert reader.data[0] == 0x17
            return await upgrade(
                session, server_context(), server_side=True, early=bytes(reader.data[1:])
            )

        serving = asyncio.ensure_future(serve())
        async with connected(route) as connector:
            end, _ = await within(connector.open(), 5, "the connection")
            await within(serving, 5, "the server's side")
            end.close()


async def test_the_next_address_is_tried(monkeypatch):
    async with Service() as service:
        resolving(monkeypatch, "127.0.0.9", HOST)
        async with connected(replace(service.route, tcp_mux=True)) as connector:
            assert connector._dialler._address == (HOST, service.route.port)


async def test_every_address_that_failed_is_named(monkeypatch):
    monkeypatch.setattr(dial, "LEAST_SHARE_S", 0.1)
    async with Service() as service:
        service.silent = True
        resolving(monkeypatch, "127.0.0.9", HOST)
        route = replace(service.route, tcp_mux=True, dial_timeout_s=0.4)
        with pytest.raises(DialError) as caught:
            await connect(route, report)
        port = route.port
        assert str(caught.value).startswith(
            f"dial udp 127.0.0.9:{port}: connection refused; {HOST}:{port}: no answer within 0."
        )
        assert "does anything on the way drop UDP?" in str(caught.value)


async def test_a_name_without_an_address_is_said(monkeypatch):
    resolving(monkeypatch)
    with pytest.raises(DialError, match="no address"):
        await connect(replace(ROUTE, protocol="kcp", tcp_mux=True), report)


async def test_a_resolver_that_hangs_is_said(monkeypatch):
    async def resolve(host, port):
        await asyncio.Event().wait()

    monkeypatch.setattr(dial, "resolve", resolve)
    route = replace(ROUTE, protocol="kcp", tcp_mux=True, dial_timeout_s=0.05)
    with pytest.raises(DialError, match="no answer of the resolver"):
        await connect(route, report)


async def test_an_address_that_is_not_ours_is_said():
    async with Service() as service:
        route = replace(service.route, local_ip="192.0.2.1", tcp_mux=True)
        with pytest.raises(DialError, match="cannot assign requested address"):
            await connect(route, report)


async def test_the_local_address_is_as_configured():
    async with Service() as service:
        route = replace(service.route, local_ip="127.0.0.7")
        async with connected(route) as connector:
            end, _ = await connector.open()
            assert end.get_extra_info("sockname")[0] == "127.0.0.7"


async def test_silence_instead_of_tls_is_said():
    async with Service() as service:
        route = replace(service.route, tls=client_context(), dial_timeout_s=0.2, tcp_mux=True)
        with pytest.raises(HandshakeError, match=r"no TLS answer from .* within 0\.2 s"):
            await connect(route, report)


async def test_settling_waits_for_what_was_written_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(kcp, "SETTLE_S", 0.2)
    async with Service() as service, connected(service.route) as connector:
        conn = MessageConn((await connector.open())[0])
        await connector.settle()  # Nothing to wait for.
        conn.write(Login(run_id="x"))
        await connector.settle()
        assert all(session.session.idle for session in connector._dialler._sessions)
        service.silent = True
        conn.write(Login(run_id="y"))
        await within(connector.settle(), 5, "patience to end")
        assert not all(session.session.idle for session in connector._dialler._sessions)
        conn.abort()


async def test_a_peer_that_ends_tells_and_what_it_sent_comes_first():
    async with Service() as service, connected(service.route) as connector:
        end, _ = await connector.open()
        reader = Reader()
        end.set_protocol(reader)
        session = await service.session()
        session.write(b"last words")
        session.close()
        await turns(10)
        end.resume_reading()
        assert await reader.until_data(10) == b"last words"
        await until(lambda: reader.ends or reader.lost, "the end")


async def test_a_peer_that_was_aborted_tells():
    async with Service() as service, connected(service.route) as connector:
        end, _ = await connector.open()
        reader = Reader()
        end.set_protocol(reader)
        (await service.session()).abort()
        assert isinstance(await reader.until_lost(), ConnectionResetError)


async def test_an_idle_peer_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(kcp, "KEEPALIVE_S", 0.05)
    async with Service() as service, connected(service.route) as connector:
        end, _ = await connector.open()
        reader = Reader()
        end.set_protocol(reader)
        end.resume_reading()
        await asyncio.sleep(0.05 * (endpoints.QUESTIONS + 2))
        assert reader.lost == []  # It answers.
        service.silent = True
        assert isinstance(await reader.until_lost(), TimeoutError)


async def test_an_official_peer_that_forgot_the_session_is_noticed(monkeypatch):
    """It makes a new session of our question, in which it has nothing of ours."""
    monkeypatch.setattr(kcp, "KEEPALIVE_S", 0.05)
    async with Service() as service, connected(service.route) as connector:
        end, _ = await connector.open()
        reader = Reader()
        end.set_protocol(reader)
        end.resume_reading()
        end.write(b"x")
        await until(lambda: end.session.idle, "the byte to arrive")
        service.sessions.clear()
        assert isinstance(await reader.until_lost(), ConnectionResetError)


async def test_what_fails_leaves_nothing(monkeypatch):
    dialler = Dialler()

    async def answered(self):
        raise asyncio.CancelledError

    monkeypatch.setattr(KcpEndpoint, "answered", answered)
    async with Service() as service:
        with pytest.raises(asyncio.CancelledError):
            await dialler.dial(service.route)
        assert not dialler._sessions
        await turns()
