"""A client that speaks wire v2, at servers that the tests play with the second codec."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from contextlib import asynccontextmanager

import pytest

from pyfrp.client import service as module
from pyfrp.client.service import Client, LoginFailed
from pyfrp.net import handshake
from tests.support import v2_peer
from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.frpwire import auth_key, frame
from tests.support.ports import free_port
from tests.support.v2_peer import (
    CLIENT_HELLO,
    MESSAGE,
    SERVER_HELLO,
    choice,
    message,
    v2_server,
)
from tests.support.waiting import until, within
from tests.unit.client.test_control import service
from tests.unit.client.test_service import TOKEN, client_of, come, running
from tests.unit.net.ends import turns
from tests.unit.server.scene import Log

both = pytest.mark.parametrize("algorithm", v2_peer.ALGORITHMS)
LIMIT_S = 10.0
OLD_SERVER = (
    "before the login was answered; the server does not speak wire protocol v2 (frp before 0.69?): "
    'set transport.wireProtocol = "v1"'
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of milliseconds instead of seconds."""
    for name in ("FIRST_RETRY_S", "FIRST_CAP_S", "LATER_CAP_S"):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr(module, "QUICK_S", (0.01, 0.02))
    log = Log()
    monkeypatch.setattr("pyfrp.client.service.get_logger", lambda: log)
    return log


def configured(port, **settings):
    """A client of version 2, without TLS and tcpMux."""
    cfg = client_of(port, mux=False, tls=False, **settings)
    cfg.transport.wire_protocol = "v2"
    return cfg


@asynccontextmanager
async def meeting(*, login=None, **settings):
    """A running client, its control connection after the login, and those that come after it."""
    async with v2_server() as (port, came), running(configured(port, **settings)) as client:
        control = await within(came.get(), LIMIT_S, "the client")
        control.body = await within(control.welcome(TOKEN, **(login or {})), LIMIT_S, "the login")
        yield control, came, client


async def _next(came, name):
    """The next connection of the client, which begins with a message of this name."""
    peer = await within(came.get(), LIMIT_S, "a connection of the client")
    found, body = await within(peer.opened(), LIMIT_S, "its first message")
    assert found == name
    return peer, body


# -- the conversation ---------------------------------------------------------------------------


@both
async def test_a_client_logs_in_pings_and_serves_users(loop_kind, algorithm):
    async with service() as local:
        proxy = {"name": "echo", "type": "tcp", "localPort": local, "remotePort": 7}
        async with meeting(login={"algorithm": algorithm}, proxies=[proxy], user="al") as (
            control,
            came,
            _,
        ):
            login = control.body
            assert login["user"] == "al"
            assert login["privilege_key"] == auth_key(TOKEN, login["timestamp"])
            wanted = await control.expect("NewProxy")
            assert (wanted["proxy_name"], wanted["remote_port"]) == ("al.echo", 7)
            control.tell("NewProxyResp", {"proxy_name": "al.echo", "remote_addr": ":7"})
            control.tell("ReqWorkConn", {})
            work, body = await _next(came, "NewWorkConn")
            assert body == {"run_id": "run-of-the-test"}
            work.tell("StartWorkConn", {"proxy_name": "al.echo"})
            work.raw(b"hello")  # In the clear, whatever the control connection is.
            assert await within(work.reader.readexactly(5), LIMIT_S, "the echo") == b"hello"
            work.writer.write_eof()
            assert await work.closed()


async def test_pings_are_sealed_and_pongs_understood(quick):
    transport = {"heartbeatInterval": 1, "heartbeatTimeout": 90}
    async with v2_server() as (port, came):
        cfg = configured(port)
        cfg.transport.heartbeat_interval = transport["heartbeatInterval"]
        cfg.transport.heartbeat_timeout = transport["heartbeatTimeout"]
        async with running(cfg):
            control = await within(came.get(), LIMIT_S, "the client")
            await control.welcome(TOKEN)
            assert await control.expect("Ping") == {}
            control.tell("Pong", {})
            assert await control.expect("Ping") == {}
        assert quick.has("receive heartbeat from server")


async def test_the_hello_offers_what_there_is_the_faster_first():
    async with v2_server() as (port, came), running(configured(port, loginFailExit=False)):
        control = await within(came.get(), LIMIT_S, "the client")
        payload, _ = await control.greeted()
        hello = json.loads(payload)
        assert hello["bootstrap"] == {"transport": "tcp"}
        assert hello["capabilities"]["message"] == {"codecs": ["json"]}
        crypto = hello["capabilities"]["crypto"]
        assert crypto["algorithms"] == list(handshake.preferred_algorithms())
        assert sorted(crypto["algorithms"]) == sorted(v2_peer.ALGORITHMS)
        assert len(base64.b64decode(crypto["clientRandom"], validate=True)) == 32
        await control.close()
        again = await within(came.get(), LIMIT_S, "the client, again")
        assert json.loads((await again.greeted())[0]) != hello  # Its random is a new one.
        again.raw(saying({"error": "enough"}))  # A client that waits would stop only later.


async def test_a_datagram_proxy_speaks_version_2():
    async with await EchoUdp().start() as echo:
        proxy = {"name": "dns", "type": "udp", "localPort": echo.port, "remotePort": 7}
        async with meeting(proxies=[proxy], udpPacketSize=40_000) as (control, came, _):
            await control.expect("NewProxy")
            control.tell("NewProxyResp", {"proxy_name": "dns", "remote_addr": ":7"})
            control.tell("ReqWorkConn", {})
            work, _ = await _next(came, "NewWorkConn")
            work.tell("StartWorkConn", {"proxy_name": "dns"})
            data = os.urandom(30_000)
            body = {
                "c": base64.b64encode(data).decode(),
                "r": {"IP": "192.0.2.7", "Port": 4711, "Zone": ""},
            }
            work.tell("UDPPacket", body)
            assert await work.hear() == ("UDPPacket", body)


async def test_a_visitor_speaks_version_2():
    visit_port, udp_port = free_port(), free_port()
    base = {"serverName": "p", "secretKey": "s", "bindAddr": "127.0.0.1"}
    visitors = [
        {**base, "name": "v", "type": "stcp", "bindPort": visit_port},
        {**base, "name": "u", "type": "sudp", "bindPort": udp_port},
    ]
    async with meeting(visitors=visitors) as (_, came, _client):
        user = None
        async with asyncio.timeout(LIMIT_S):
            while user is None:
                try:
                    user = await come(visit_port)
                except OSError:
                    await asyncio.sleep(0.01)
        await user.send(b"hello")
        visit, body = await _next(came, "NewVisitorConn")
        assert body["sign_key"] == auth_key("s", body["timestamp"])
        visit.tell("NewVisitorConnResp", {"proxy_name": "p"})
        assert await within(visit.reader.readexactly(5), LIMIT_S, "the bytes") == b"hello"
        user.close()
        with UdpUser(udp_port) as someone:
            someone.send(b"hello")
            visit, _ = await _next(came, "NewVisitorConn")
            visit.tell("NewVisitorConnResp", {"proxy_name": "p"})
            name, body = await visit.hear()
            assert (name, body["c"]) == ("UDPPacket", "aGVsbG8=")
            visit.tell("Ping", {})
            visit.tell("UDPPacket", body)
            assert await someone.receive() == b"hello"


async def test_an_invitation_to_a_meeting_is_read_in_version_2(quick):
    proxy = {"name": "x", "type": "xtcp", "localPort": 1, "secretKey": "s"}
    async with v2_server() as (port, came):
        cfg = configured(port, proxies=[proxy])
        cfg.nat_hole_stun_server = "127.0.0.1:1"
        async with running(cfg):
            control = await within(came.get(), LIMIT_S, "the client")
            await control.welcome(TOKEN)
            await control.expect("NewProxy")
            control.tell("NewProxyResp", {"proxy_name": "x"})
            control.tell("ReqWorkConn", {})
            work, _ = await _next(came, "NewWorkConn")
            work.tell("StartWorkConn", {"proxy_name": "x"})
            work.tell("NatHoleSid", {"sid": "a-sid"})
            assert await work.closed()
    assert not quick.has("read from workConn error")


# -- servers that do not let it in --------------------------------------------------------------


async def failure(play) -> str:
    """Why the first login fails at a server that does `play(peer)` with its connection."""
    async with v2_server() as (port, came):
        running_ = asyncio.ensure_future(Client(configured(port)).run())
        peer = await within(came.get(), LIMIT_S, "the client")
        await play(peer)
        with pytest.raises(LoginFailed) as caught:
            await within(running_, LIMIT_S, "the client to give up")
        await turns()
        return str(caught.value)


def answering(*pieces: bytes, end=False):
    async def play(peer):
        await peer.greeted()
        peer.raw(b"".join(pieces))
        if end:
            peer.writer.close()

    return play


async def _closes_at_once(peer):
    """As a server before 0.69 does at a byte that is no type of a message."""
    assert await peer.reader.read(1) == b"F"
    peer.writer.close()


async def test_an_older_server_is_told_of_in_words():
    words = await failure(_closes_at_once)
    assert OLD_SERVER in words
    assert "transport.tcpMux" in words


async def _greets_and_closes(peer):
    await peer.greeted()
    peer.raw(v2_peer.frame(SERVER_HELLO, choice("aes-256-gcm", bytes(32))))
    peer.writer.close()


async def test_a_server_that_answered_the_hello_does_speak_it():
    words = await failure(_greets_and_closes)
    assert "before the login was answered; do transport.tcpMux" in words
    assert "does not speak" not in words


def hello(algorithm="aes-256-gcm", random=bytes(32)):
    return v2_peer.frame(SERVER_HELLO, choice(algorithm, random))


def saying(body):
    return v2_peer.frame(SERVER_HELLO, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((saying({"error": "no"}),), "the server refused our hello: no"),
        ((saying({}),), "the server chose a message codec that was not offered"),
        ((hello("none"),), "the server chose a cipher that was not offered"),
        ((hello("aes-128-gcm"),), "the server chose a cipher that was not offered"),
        ((hello(random=bytes(8)),), "the server's random has a wrong length"),
        ((message("LoginResp", {"run_id": "r"}),), "LoginResp in the place of the server's hello"),
        ((frame("1", {"run_id": "r"}),), "unknown type of frame"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "unknown type of frame"),
        ((hello(), hello()), "a hello where a message should be"),
        ((hello(), message("Pong", {})), "the server answered the login with Pong"),
        ((hello(), message("LoginResp", {"error": "go away"})), "go away"),
        ((hello(), struct.pack(">HHI", MESSAGE, 0, 65_537)), "a payload of 65537 bytes"),
        ((struct.pack(">HHI", SERVER_HELLO, 0, 8193),), "a payload of 8193 bytes"),
        ((struct.pack(">HHI", SERVER_HELLO, 1, 2),), "frame with flags 0x0001"),
        ((v2_peer.frame(CLIENT_HELLO, b"{}"),), "Hello in the place of the server's hello"),
        ((hello(), b"\0\x10\0\0\0\0\0\x01\0"), "message frame without a message id"),
    ],
)
async def test_a_server_that_answers_wrongly_ends_the_login_in_words(pieces, words):
    assert words in await failure(answering(*pieces))


async def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "LOGIN_S", 0.1)
    assert "no answer to the login within 0.1 s" in await failure(answering())


# -- servers whose records are wrong ------------------------------------------------------------


def _other_token(peer):
    return peer.outward.seal(message("ReqWorkConn", {}))


def _in_the_clear(peer):
    return message("ReqWorkConn", {}) * 5


def _changed(peer):
    sealed = peer.outward.seal(message("ReqWorkConn", {}))
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


def _replayed(peer):
    first = peer.outward.seal(message("ReqWorkConn", {}))
    second = peer.outward.seal(message("ReqWorkConn", {}))
    return first + second + second


def _reflected(peer):
    return v2_peer.Records(peer.inward.key, peer.inward.algorithm).seal(message("Ping", {}))


def _over_long(peer):
    return peer.outward.seal(b"") + struct.pack(">I", 2**32 - 1)


def _hello_inside(peer):
    return peer.outward.seal(hello())


@both
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (_other_token, "wrong token or tampering"),
        (_in_the_clear, "sealed record"),
        (_changed, "wrong token or tampering"),
        (_replayed, "wrong token or tampering"),
        (_reflected, "wrong token or tampering"),
        (_over_long, "sealed record of 4294967295 bytes"),
        (_hello_inside, "a hello where a message should be"),
    ],
    ids=lambda each: each.__name__[1:] if callable(each) else "",
)
async def test_a_record_that_is_wrong_ends_the_session_and_the_client_comes_back(
    quick, algorithm, wrong, words
):
    login = {"algorithm": algorithm}
    if wrong is _other_token:
        login["sealed_with"] = "another"
    async with meeting(login=login) as (control, came, client):
        control.raw(wrong(control))
        assert await control.closed()
        again = await within(came.get(), LIMIT_S, "the client, again")
        body = await again.welcome(TOKEN)
        assert body["run_id"] == "run-of-the-test"
        await until(lambda: len(client.logins) == 2, "the second login")
    ended = [event for event in quick.events("warning") if "session with the server ended" in event]
    assert words in ended[0]
