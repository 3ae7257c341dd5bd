"""A server whose clients speak wire v2, over real sockets, with the second codec of the tests."""

from __future__ import annotations

import asyncio
import base64
import os
from contextlib import asynccontextmanager

import pytest

from tests.support import v2_peer
from tests.support.datagrams import UdpUser
from tests.support.frpwire import Peer, auth_key, login_message, peering
from tests.support.ports import free_port
from tests.support.v2_peer import (
    CLIENT_HELLO,
    MAGIC,
    SERVER_HELLO,
    V2Peer,
    message,
    offer,
    v2_peering,
)
from tests.support.waiting import all_of, until
from tests.unit.server.scene import TOKEN
from tests.unit.server.test_proxies import come
from tests.unit.server.v2_scene import logged_in, port_of, serving

both = pytest.mark.parametrize("algorithm", v2_peer.ALGORITHMS)
SECRET = "spec-secret"
NOW = 1_700_000_000


@pytest.fixture(autouse=True)
def _certificate(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path_factory.getbasetemp() / "state"))


async def worked(server, peer, user) -> V2Peer:
    """Bring a work connection for a user who waits; what the client then has."""
    work = V2Peer(*await asyncio.open_connection("127.0.0.1", port_of(server)))
    work.begin("NewWorkConn", {"run_id": peer.run_id})
    return work


# -- the conversation ---------------------------------------------------------------------------


@both
async def test_a_client_logs_in_pings_and_serves_users(loop_kind, monkeypatch, algorithm):
    remote = free_port()
    async with (
        serving(monkeypatch) as server,
        logged_in(server, algorithms=[algorithm], pool_count=0) as peer,
    ):
        assert len(peer.run_id) == 16
        peer.tell("Ping", {})
        assert await peer.expect("Pong") == {}
        peer.tell("NewProxy", {"proxy_name": "ssh", "proxy_type": "tcp", "remote_port": remote})
        resp = await peer.expect("NewProxyResp")
        assert resp == {"proxy_name": "ssh", "remote_addr": f":{remote}"}
        user = await come(remote)
        await peer.expect("ReqWorkConn")
        work = await worked(server, peer, user)
        name, start = await work.hear()
        assert name == "StartWorkConn"
        assert (start["proxy_name"], start["dst_port"]) == ("ssh", remote)
        data = os.urandom(300_000)
        sending = asyncio.ensure_future(user.send(data))
        assert await work.reader.readexactly(len(data)) == data
        await sending
        work.raw(b"an answer")
        assert await user.receive_exactly(9) == b"an answer"
        user.close()
        assert await work.closed()
        peer.tell("CloseProxy", {"proxy_name": "ssh"})
        await until(lambda: not server._proxies, "the proxy to be gone")
        await work.close()


async def test_the_first_of_the_clients_algorithms_is_taken(monkeypatch):
    orders = [v2_peer.ALGORITHMS, v2_peer.ALGORITHMS[::-1], ("rot13", *v2_peer.ALGORITHMS[::-1])]
    async with serving(monkeypatch) as server:
        for algorithms in orders:
            async with logged_in(server, algorithms=algorithms) as peer:
                peer.tell("Ping", {})
                await peer.expect("Pong")


async def test_versions_are_served_side_by_side(monkeypatch):
    async with (
        serving(monkeypatch) as server,
        logged_in(server) as new,
        peering(port_of(server), muxed=False) as old,
    ):
        assert not (await old.login(TOKEN)).get("error")
        for _ in range(3):
            new.tell("Ping", {})
            old.tell("h", {})
            assert await new.expect("Pong") == {}
            assert (await old.hear())[0] in "4r"
        assert {control.pool.version.name for control in server.controls.values()} == {"v1", "v2"}


async def test_bytes_may_come_one_by_one(monkeypatch):
    hello = offer(bytes(32))
    data = MAGIC + v2_peer.frame(CLIENT_HELLO, hello) + message("Login", login_message(TOKEN))
    async with serving(monkeypatch) as server, v2_peering(port_of(server)) as peer:
        for at in range(len(data)):
            peer.raw(data[at : at + 1])
            await asyncio.sleep(0)
        assert (await peer.hear_frame())[0] == SERVER_HELLO
        assert (await peer.hear())[0] == "LoginResp"


async def test_a_datagram_proxy_speaks_the_version_of_its_client(monkeypatch):
    remote = free_port()
    async with serving(monkeypatch, udpPacketSize=40_000) as server, logged_in(server) as peer:
        peer.tell("NewProxy", {"proxy_name": "dns", "proxy_type": "udp", "remote_port": remote})
        await peer.expect("NewProxyResp")
        work = await worked(server, peer, None)
        assert (await work.hear())[0] == "StartWorkConn"
        with UdpUser(remote) as user:
            payload = os.urandom(30_000)  # Three times what version 1 carries.
            user.send(payload)
            name, body = await work.hear()
            assert name == "UDPPacket"
            assert base64.b64decode(body["c"], validate=True) == payload
            work.tell("Ping", {})  # Counts as life, and is not answered: official clients cannot.
            work.tell("UDPPacket", body)
            assert await user.receive() == payload
        await work.close()


# -- refusals -----------------------------------------------------------------------------------


async def refused(server, data) -> dict:
    """What a client hears that begins with these bytes, before the connection is closed."""
    async with v2_peering(port_of(server)) as peer:
        peer.raw(data)
        name, body = await peer.hear()
        assert name in ("LoginResp", "StartWorkConn", "NewVisitorConnResp")
        assert await peer.closed()
        return body


@pytest.mark.parametrize("detailed", [True, False])
async def test_a_wrong_token_is_refused_after_the_hello(monkeypatch, detailed):
    words = "token in login doesn't match token from configuration"
    async with serving(monkeypatch, detailedErrorsToClient=detailed) as server:
        async with v2_peering(port_of(server)) as peer:
            resp = await peer.login("guess")
            assert resp["error"] == (words if detailed else "register control error")
            assert "run_id" not in resp
            assert await peer.closed()
        assert server.log.has(f"register control error: {words}", "warning")


@both
async def test_a_client_whose_keys_come_from_another_token_is_dropped(monkeypatch, algorithm):
    async with serving(monkeypatch) as server:
        async with logged_in(server, algorithms=[algorithm], sealed_with="other") as peer:
            peer.tell("Ping", {})
            assert await peer.closed()
        await until(lambda: not server.controls, "the control to end")
        assert server.log.has("wrong token or tampering", "warning")


@pytest.mark.parametrize("detailed", [True, False])
async def test_a_login_without_a_hello_is_refused(monkeypatch, detailed):
    words = "missing v2 crypto negotiation" if detailed else "register control error"
    async with serving(monkeypatch, detailedErrorsToClient=detailed) as server:
        for token in (TOKEN, "guess"):
            body = await refused(server, MAGIC + message("Login", login_message(token)))
            assert body["error"] == words
        assert not server.controls


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (offer(bytes(32), codecs=["xml"]), "unsupported message codec"),
        (offer(bytes(5)), "invalid crypto client random length 5, want 32"),
        (offer(bytes(32), ["none", "null"]), "no supported crypto algorithm"),
        (b"{}", "unsupported message codec"),
    ],
)
async def test_a_hello_that_fits_nothing_is_refused_in_frps_words(monkeypatch, hello, words):
    async with serving(monkeypatch) as server:
        async with v2_peering(port_of(server)) as peer:
            login = message("Login", login_message(TOKEN))
            peer.raw(MAGIC + v2_peer.frame(CLIENT_HELLO, hello) + login)
            kind, payload = await peer.hear_frame()
            assert kind == SERVER_HELLO
            assert b'"crypto":{}' in payload
            assert words.encode() in payload
            assert await peer.closed()
        assert server.log.has(f"hello refused: {words}", "warning")
        assert not server.controls


async def test_work_connections_are_refused_in_words(monkeypatch):
    async with serving(monkeypatch) as server, logged_in(server) as peer:
        body = await refused(server, MAGIC + message("NewWorkConn", {"run_id": "nobody"}))
        assert body == {"error": "no client control found for run id [nobody]"}
        async with peering(port_of(server), muxed=False) as old:
            old.tell("w", {"run_id": peer.run_id})
            kind, body = await old.hear()
            assert kind == "s"
            assert "another version" in body["error"]
        async with peering(port_of(server), muxed=False) as old:
            await old.login(TOKEN)
            body = await refused(server, MAGIC + message("NewWorkConn", {"run_id": old.run_id}))
            assert "another version" in body["error"]


async def test_a_visitor_is_refused_in_its_own_version(monkeypatch):
    async with serving(monkeypatch) as server, logged_in(server) as peer:
        knock = {"run_id": peer.run_id, "proxy_name": "x", "sign_key": "", "timestamp": NOW}
        body = await refused(server, MAGIC + message("NewVisitorConn", knock))
        assert body == {"proxy_name": "x", "error": "custom listener for [x] doesn't exist"}


# -- client ids ---------------------------------------------------------------------------------


async def test_a_client_id_is_of_one_client_of_a_user(monkeypatch):
    async with serving(monkeypatch) as server:
        names = {"client_id": "box", "user": "alice"}
        async with logged_in(server, **names) as first, v2_peering(port_of(server)) as second:
            resp = await second.login(TOKEN, **names)
            assert resp["error"] == "client_id [box] for user [alice] is already online"
            # Others of that name, others of that user, and itself again.
            for more in ({"client_id": "box"}, {"user": "alice"}, {**names, "client_id": "b"}):
                async with logged_in(server, **more):
                    pass
            async with logged_in(server, run_id=first.run_id, **names) as again:
                assert again.run_id == first.run_id
                assert await first.closed()
        await until(lambda: not server.controls, "all to be gone")
        async with logged_in(server, **names):
            pass


# -- visitors and proxies of different versions -------------------------------------------------


async def _knock(server, version, run_id, name):
    """Knock at a secret proxy in a version; reads and writes of what is behind."""
    body = {
        "run_id": run_id,
        "proxy_name": name,
        "sign_key": auth_key(SECRET, NOW),
        "timestamp": NOW,
    }
    if version == "v2":
        peer = V2Peer(*await asyncio.open_connection("127.0.0.1", port_of(server)))
        peer.begin("NewVisitorConn", body)
        assert (await peer.hear())[1] == {"proxy_name": name}
        return peer
    old = await Peer.open(port_of(server), muxed=False)
    old.tell("v", body)
    assert await old.hear() == ("3", {"proxy_name": name})
    return old


async def _work(server, version, run_id):
    if version == "v2":
        peer = V2Peer(*await asyncio.open_connection("127.0.0.1", port_of(server)))
        peer.begin("NewWorkConn", {"run_id": run_id})
        assert (await peer.hear())[0] == "StartWorkConn"
        return peer
    old = await Peer.open(port_of(server), muxed=False)
    old.tell("w", {"run_id": run_id})
    assert (await old.hear())[0] == "s"
    return old


@asynccontextmanager
async def owner(server, version, kind):
    """A client of a version with a secret proxy; its run id."""
    body = {"proxy_name": "p", "proxy_type": kind, "sk": SECRET, "allow_users": ["*"]}
    if version == "v2":
        async with logged_in(server) as peer:
            peer.tell("NewProxy", body)
            assert await peer.expect("NewProxyResp") == {"proxy_name": "p"}
            yield peer.run_id
        return
    async with peering(port_of(server), muxed=False) as old:
        assert not (await old.login(TOKEN)).get("error")
        assert await old.ask("p", body, "2") == {"proxy_name": "p"}
        yield old.run_id


TYPES = {"UDPPacket": "u", "Ping": "h", "Pong": "4"}


def say(peer, name, body):
    peer.tell(name if isinstance(peer, V2Peer) else TYPES[name], body)


async def heard(peer):
    name, body = await peer.hear()
    if not isinstance(peer, V2Peer):
        name = next(long for long, short in TYPES.items() if short == name)
    return name, body


mixes = pytest.mark.parametrize(
    ("visitor", "proxy"), [("v1", "v2"), ("v2", "v1"), ("v1", "v1"), ("v2", "v2")]
)


@asynccontextmanager
async def met(server, visitor, proxy, kind):
    """A visitor's end and the proxy's end of one secret connection."""
    async with owner(server, proxy, kind) as run_id:
        guest = await _knock(server, visitor, "", "p")
        work = await _work(server, proxy, run_id)
        try:
            yield guest, work
        finally:
            await guest.close()
            await work.close()


@mixes
async def test_a_visitor_of_one_version_reaches_a_proxy_of_another(monkeypatch, visitor, proxy):
    async with (
        serving(monkeypatch) as server,
        met(server, visitor, proxy, "stcp") as (guest, work),
    ):
        guest.raw(MAGIC + b"bytes that look like a version")
        assert await work.reader.readexactly(37) == MAGIC + b"bytes that look like a version"
        work.raw(b"and back")
        assert await guest.reader.readexactly(8) == b"and back"


@mixes
async def test_datagrams_are_translated_between_versions(monkeypatch, visitor, proxy):
    packets = [
        {"c": base64.b64encode(os.urandom(size)).decode(), "r": {"IP": ip, "Port": 9, "Zone": ""}}
        for size, ip in ((1, "192.0.2.7"), (1400, "2001:db8::1"), (7000, "192.0.2.8"))
    ]
    async with (
        serving(monkeypatch) as server,
        met(server, visitor, proxy, "sudp") as (guest, work),
    ):
        for near, far in ((guest, work), (work, guest)):
            for body in packets:
                say(near, "UDPPacket", body)
            for body in packets:
                assert await heard(far) == ("UDPPacket", body)
        say(work, "Ping", {})
        assert await heard(guest) == ("Ping", {})
        if visitor != proxy:
            say(guest, "Ping", {})
            say(guest, "UDPPacket", packets[0])
            assert await heard(work) == ("UDPPacket", packets[0])
            # What is none of these ends the bridge, as with frp.
            say(guest, "Pong", {})
            await all_of((_gone(guest), _gone(work)))


async def _gone(peer):
    assert await peer.closed()
