"""One login of one client: it lives and dies as a unit."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest

from pyfrp.auth.token import auth_key
from pyfrp.errors import PeerClosed
from pyfrp.server import control as module
from pyfrp.wire.messages import (
    CloseProxy,
    Login,
    NewProxy,
    NewVisitorConn,
    NewVisitorConnResp,
    NewWorkConn,
    Ping,
    Pong,
    ReqWorkConn,
    StartWorkConn,
)
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.net.ends import turns
from tests.unit.server.scene import DIRECT, office

both = pytest.mark.parametrize("settings", [{}, DIRECT], ids=["mux", "direct"])
HTTP = {"vhostHTTPPort": 8080}


def can_connect(port):
    with socket.socket() as sock:
        sock.settimeout(2)
        return sock.connect_ex(("127.0.0.1", port)) == 0


# -- logging in ---------------------------------------------------------------------------------


@both
async def test_a_login_gets_a_run_id_and_the_pool_is_asked_for(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        peer = await o.login(pool_count=3)
        assert len(peer.run_id) == 16
        assert int(peer.run_id, 16) >= 0
        assert [await peer.read() for _ in range(3)] == [ReqWorkConn()] * 3
        assert o.log.has("client login info: ip [203.0.113.7:4711] version [0.65.0]")


@pytest.mark.parametrize(
    ("wanted", "given"), [(0, 0), (1, 1), (5, 5), (50, 5), (-3, 0), (2**62, 5)]
)
async def test_the_pool_is_as_large_as_both_sides_allow(monkeypatch, wanted, given):
    async with office(monkeypatch) as o:
        peer = await o.login(pool_count=wanted)
        assert await peer.asked() == given


@both
async def test_a_wrong_token_is_refused_in_frps_words(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        peer = await o.login(token="wrong")
        assert peer.resp.error == "token in login doesn't match token from configuration"
        assert peer.resp.run_id == ""
        with pytest.raises(PeerClosed):
            await peer.read()
        assert o.server.controls == {}
        assert o.log.has("register control error", "warning")


async def test_without_detailed_errors_the_reason_is_ours_alone(monkeypatch):
    async with office(monkeypatch, detailedErrorsToClient=False, **HTTP) as o:
        refused = await o.login(token="wrong")
        assert refused.resp.error == "register control error"
        peer = await o.login()
        assert (await peer.tcp(port=70_000)).error == "new proxy [ssh] error"


async def test_a_login_from_another_time_is_refused_and_names_both_clocks(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login(timestamp=1_000_000_000)
        assert "2001-09-09" in peer.resp.error
        assert "maxClockSkew" in peer.resp.error


@pytest.mark.parametrize("timestamp", [0, -1, 2**63 - 1, -(2**63)])
async def test_absurd_times_of_a_login_are_refused(monkeypatch, timestamp):
    async with office(monkeypatch) as o:
        peer = await o.login(timestamp=timestamp)
        assert "another time" in peer.resp.error


@both
async def test_a_first_message_that_opens_nothing_closes_the_connection(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        peer = await o.login()
        for msg in (Ping(), ReqWorkConn(), StartWorkConn(), NewProxy(proxy_name="x")):
            conn, _ = peer.dial()
            conn.write(msg)
            with pytest.raises(PeerClosed):
                await within(conn.read(), 5, "the end")
        assert o.log.has("error message type for the new connection")


# -- being replaced -----------------------------------------------------------------------------


@both
async def test_a_login_with_a_known_run_id_replaces_the_old_one_at_once(monkeypatch, settings):
    """Ports and names are free for the new one, before the old connection is even gone."""
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        old = await o.login()
        assert (await old.tcp("ssh", port)).error == ""
        pooled = await old.bring()
        new = await o.login(run_id=old.run_id)
        assert new.run_id == old.run_id
        assert (await new.tcp("ssh", port)).error == ""
        assert list(o.server.controls) == [new.run_id]
        with pytest.raises(PeerClosed):
            await old.read()
        assert await pooled.ended()
        assert o.log.has(f"replaced by client [{old.run_id}]")
        await until(lambda: o.log.has("client exit success"), "the old one to leave")
        # The end of the old one releases nothing of the new one.
        await turns(50)
        assert list(o.server.controls) == [new.run_id]
        assert can_connect(port)


async def test_a_replaced_login_that_does_not_read_does_not_delay_the_new_one(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o:
        old = await o.login()
        old.end.pause_reading()
        new = await within(o.login(run_id=old.run_id), 2, "the new login")
        assert new.resp.error == ""


async def test_a_login_that_ended_while_it_was_checked_replaces_nobody(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o:
        old = await o.login()
        control = o.server.controls[old.run_id]
        asked, answered = asyncio.Event(), asyncio.Event()
        verify = o.server.verifier.verify_login

        async def slow(login, now):
            asked.set()
            await answered.wait()
            await verify(login, now)

        monkeypatch.setattr(o.server.verifier, "verify_login", slow)
        now = int(time.time())
        conn, end = o.connect()
        key = auth_key("spec-token", now)
        conn.write(Login(privilege_key=key, timestamp=now, run_id=old.run_id))
        await within(asked.wait(), 5, "the check")
        end.abort()
        await turns()
        answered.set()
        await turns(20)
        assert list(o.server.controls.values()) == [control]
        assert (await old.tcp("ssh", free_port())).error == ""


async def test_a_run_id_that_nobody_has_is_kept_by_who_brings_it(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login(run_id="chosen-by-the-client")
        assert peer.run_id == "chosen-by-the-client"
        assert list(o.server.controls) == ["chosen-by-the-client"]


@pytest.mark.parametrize("run_id", ["x" * 9000, "\n\x1b[31m", "\u2028", "é" * 2000])
async def test_absurd_run_ids_harm_nobody(monkeypatch, run_id):
    async with office(monkeypatch, **DIRECT) as o:
        good = await o.login()
        assert (await o.login(run_id=run_id)).resp.error == ""
        assert (await good.tcp("ssh", free_port())).error == ""


async def test_a_run_id_too_long_to_be_answered_costs_its_own_connection_only(monkeypatch):
    """`<` takes six letters in Go's JSON, so the answer is longer than the question."""
    async with office(monkeypatch, **DIRECT) as o:
        good = await o.login()
        conn, end = o.connect()
        when = int(time.time())
        body = json.dumps(
            {"run_id": "<" * 3000, "timestamp": when, "privilege_key": auth_key("spec-token", when)}
        ).encode()
        end.write(b"o" + len(body).to_bytes(8, "big") + body)
        with pytest.raises(PeerClosed):
            await within(conn.read(), 5, "the end")
        assert list(o.server.controls) == [good.run_id]


# -- leaving ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("how", ["close", "abort", "nonsense"])
async def test_all_of_a_client_is_released_when_it_leaves(monkeypatch, settings, how):
    async with office(monkeypatch, **settings, **HTTP) as o:
        port = free_port()
        peer = await o.login()
        assert (await peer.tcp("ssh", port)).remote_addr == f":{port}"
        assert (await peer.http("web", "a.test", "b.test")).error == ""
        pooled = await peer.bring()
        await turns()
        if how == "close":
            peer.conn.close()
        elif how == "abort":
            peer.conn.abort()
        else:
            peer.end.write(b"\x00" * 50)
        await until(lambda: not o.server.controls, "the client to be gone")
        await turns()
        o.quiet()
        assert await pooled.ended()
        assert not can_connect(port)
        assert o.log.events("info").count("client exit success") == 1
        assert o.log.has("close proxy [ssh] success")
        assert o.log.has("close proxy [web] success")
        # Another client may have all of it.
        other = await o.login()
        assert (await other.tcp("ssh", port)).error == ""
        assert (await other.http("web", "a.test")).error == ""


async def test_the_end_of_the_link_is_the_end_of_the_login(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        await peer.tcp("ssh", free_port())
        peer.mux.link.abort()
        await until(lambda: not o.server.controls, "the client to be gone")
        o.quiet()


async def test_the_end_of_the_login_is_the_end_of_the_link(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        peer.conn.abort()
        await until(lambda: peer.mux.lost, "the link to go")


# -- names and ports ----------------------------------------------------------------------------


async def test_a_name_belongs_to_one_at_a_time(monkeypatch):
    async with office(monkeypatch, **HTTP) as o:
        one, other = await o.login(), await o.login()
        assert (await one.http("web", "a.test")).error == ""
        for peer in (one, other):
            assert (await peer.http("web", "b.test")).error == "proxy [web] already exists"
        one.conn.write(CloseProxy(proxy_name="web"))
        await until(lambda: "web" not in o.server._proxies, "the name to be free")
        assert (await other.http("web", "a.test")).error == ""


async def test_closing_what_one_does_not_have_does_nothing(monkeypatch):
    async with office(monkeypatch, **HTTP) as o:
        one, other = await o.login(), await o.login()
        await one.http("web", "a.test")
        for name in ("web", "never", "", "x" * 5000):
            other.conn.write(CloseProxy(proxy_name=name))
        assert (await other.http("mine", "b.test")).error == ""
        assert set(o.server._proxies) == {"web", "mine"}


async def test_ports_are_conflicts_in_frps_words(monkeypatch):
    allowed = free_port()
    with socket.socket() as other_program:
        other_program.bind(("127.0.0.1", 0))
        other_program.listen()
        taken = other_program.getsockname()[1]
        ranges = [{"single": allowed}, {"single": taken}]
        async with office(monkeypatch, allowPorts=ranges) as o:
            one, other = await o.login(), await o.login()
            assert (await one.tcp("a", allowed)).error == ""
            assert (await other.tcp("b", allowed)).error == "port already used"
            assert (await other.tcp("b", allowed % 60000 + 1)).error == "port not allowed"
            assert (await other.tcp("b", taken)).error == "port unavailable"
            # A refused proxy holds nothing, its name neither.
            one.conn.write(CloseProxy(proxy_name="a"))
            assert (await other.tcp("b", allowed)).error in ("", "port already used")


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_of_ports_that_is_not_above_zero_is_none(monkeypatch, limit):
    async with office(monkeypatch, maxPortsPerClient=limit) as o:
        assert (await (await o.login()).tcp("a", free_port())).error == ""


async def test_a_client_may_have_only_so_many_ports(monkeypatch):
    async with office(monkeypatch, maxPortsPerClient=2, **HTTP) as o:
        peer, other = await o.login(), await o.login()
        assert (await peer.tcp("a", free_port())).error == ""
        assert (await peer.tcp("b", free_port())).error == ""
        assert (await peer.tcp("c", free_port())).error == "exceed the max_ports_per_client"
        assert (await peer.http("web", "a.test")).error == ""
        assert (await other.tcp("c", free_port())).error == ""
        peer.conn.write(CloseProxy(proxy_name="a"))
        await until(lambda: "a" not in o.server._proxies, "the port to be free")
        assert (await peer.tcp("d", free_port())).error == ""


async def test_a_random_port_is_told(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        resp = await peer.tcp("a", 0)
        assert resp.error == ""
        assert can_connect(int(resp.remote_addr.removeprefix(":")))


@pytest.mark.parametrize(
    ("proxy_type", "error"),
    [
        ("udp2", "unknown proxy type: udp2"),
        ("TCP", "unknown proxy type: TCP"),
        ("http", "type [http] not supported when vhost http port is not set"),
    ],
)
async def test_types_that_are_not_served_are_refused_in_frps_words(monkeypatch, proxy_type, error):
    async with office(monkeypatch) as o:
        peer = await o.login()
        resp = await peer.propose(NewProxy(proxy_name="x", proxy_type=proxy_type))
        assert resp.error == error
        assert resp.proxy_name == "x"


async def test_no_type_is_tcp(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        port = free_port()
        resp = await peer.propose(NewProxy(proxy_name="x", remote_port=port))
        assert resp.remote_addr == f":{port}"


async def test_a_client_may_have_only_so_many_proxies(monkeypatch):
    monkeypatch.setattr(module, "MAX_PROXIES", 3)
    async with office(monkeypatch, **HTTP) as o:
        peer = await o.login()
        for number in range(3):
            assert (await peer.http(f"p{number}", f"h{number}.test")).error == ""
        assert "more than 3 proxies" in (await peer.http("p3", "h3.test")).error


async def test_a_client_that_leaves_while_its_proxy_starts_leaves_nothing(monkeypatch):
    gate = asyncio.Event()
    real = module.PROXY_TYPES["tcp"]

    class Slow(real):
        async def start(self):
            await gate.wait()
            return await super().start()

    monkeypatch.setitem(module.PROXY_TYPES, "tcp", Slow)
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        peer.conn.write(NewProxy(proxy_name="ssh", remote_port=port))
        await until(lambda: "ssh" in o.server._proxies, "the proxy to be starting")
        o.server.controls[peer.run_id].close()
        gate.set()
        await until(lambda: not o.server._proxies, "the name to be free")
        await turns()
        o.quiet()
        assert not can_connect(port)


async def test_a_proxy_that_fails_unforeseen_costs_its_client_and_nobody_else(monkeypatch):
    real = module.PROXY_TYPES["tcp"]

    class Broken(real):
        async def start(self):
            raise RuntimeError("a bug")

    monkeypatch.setitem(module.PROXY_TYPES, "tcp", Broken)
    async with office(monkeypatch, ok_errors=("a bug",), **HTTP) as o:
        peer, other = await o.login(), await o.login()
        peer.conn.write(NewProxy(proxy_name="ssh", remote_port=free_port()))
        await until(lambda: peer.run_id not in o.server.controls, "the client to be gone")
        assert (await other.http("web", "a.test")).error == ""
        assert "ssh" not in o.server._proxies


# -- heartbeats ---------------------------------------------------------------------------------


async def test_a_ping_is_answered(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        peer.conn.write(Ping())
        assert await peer.read() == Pong()


async def test_a_ping_with_a_wrong_key_is_answered_with_the_error(monkeypatch):
    auth = {"token": "spec-token", "additionalScopes": ["HeartBeats"]}
    async with office(monkeypatch, auth=auth) as o:
        peer = await o.login()
        peer.conn.write(Ping(privilege_key="x", timestamp=1))
        assert "token in heartbeat" in (await peer.read()).error
        now = int(time.time())
        peer.conn.write(Ping(privilege_key=auth_key("spec-token", now), timestamp=now))
        assert await peer.read() == Pong()


@both
async def test_a_silent_client_is_dropped_and_one_that_sends_anything_is_not(monkeypatch, settings):
    monkeypatch.setattr(module, "HEARTBEAT_CHECK_S", 0.01)
    transport = {**settings.get("transport", {}), "heartbeatTimeout": 1}
    async with office(monkeypatch, transport=transport) as o:
        silent, lively = await o.login(), await o.login()

        def gone():
            lively.conn.write(Ping())
            return silent.run_id not in o.server.controls

        await until(gone, "the silent one to go")
        assert lively.run_id in o.server.controls
        assert o.log.has("heartbeat timeout", "warning")


async def test_a_client_whose_link_is_full_of_others_bytes_is_not_taken_for_one_that_never_reads(
    monkeypatch,
):
    monkeypatch.setattr(module, "DRAIN_S", 0.05)
    async with office(monkeypatch) as o:
        peer = await o.login()
        [link] = o.acceptor.links
        link.carrier.pause_writing()
        for _ in range(3):
            peer.conn.write(Ping())
            assert await peer.read() == Pong()


async def test_a_client_that_never_reads_is_dropped(monkeypatch):
    monkeypatch.setattr(module, "DRAIN_S", 0.05)
    async with office(monkeypatch, **DIRECT) as o:
        peer = await o.login()
        peer.end.pause_reading()
        async with asyncio.timeout(10):
            while peer.run_id in o.server.controls:
                if not peer.conn.ended:
                    peer.conn.write(Ping())
                await asyncio.sleep(0)
        assert o.log.has("does not read its control connection", "warning")


# -- other connections --------------------------------------------------------------------------


@both
async def test_work_connections_of_nobody_are_told(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        peer = await o.login()
        peer.resp.run_id = "nobody"
        work = await peer.bring()
        assert await work.ended()
        assert work.refusal == "no client control found for run id [nobody]"
        assert o.log.has("no client control found for run id [nobody]", "warning")


async def test_work_connections_with_a_wrong_key_are_told(monkeypatch):
    auth = {"token": "spec-token", "additionalScopes": ["NewWorkConns"]}
    async with office(monkeypatch, auth=auth) as o:
        peer = await o.login()
        work = await peer.bring(privilege_key="x", timestamp=1)
        start = await within(work.conn.read(), 5, "the refusal")
        assert "NewWorkConn" in start.error
        now = int(time.time())
        good = await peer.bring(privilege_key=auth_key("spec-token", now), timestamp=now)
        assert not await good.ended()


@both
async def test_a_pool_that_is_full_closes_what_comes_without_an_error(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        peer = await o.login(pool_count=1)
        works = [await peer.bring() for _ in range(13)]
        ended = [await work.ended() for work in works]
        assert ended == [False] * 11 + [True] * 2
        # A burst of callers brings some too many; clients would log each as an error.
        assert not any(work.refusal for work in works)


async def test_a_work_connection_that_goes_on_talking_is_closed(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o:
        peer = await o.login()
        conn, end = o.connect()
        conn.write(NewWorkConn(run_id=peer.run_id))
        end.write(b"not my turn")
        await turns()
        with pytest.raises(PeerClosed):
            await within(conn.read(), 5, "the end")
        assert len(o.server.controls[peer.run_id].pool._ready) == 0


@both
async def test_visitors_are_told_that_there_is_nothing_to_visit(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        peer = await o.login()
        conn, _ = peer.dial()
        conn.write(NewVisitorConn(proxy_name="secret"))
        resp = await within(conn.read(), 5, "the answer")
        assert isinstance(resp, NewVisitorConnResp)
        assert resp.error == "custom listener for [secret] doesn't exist"


async def test_messages_that_mean_nothing_here_are_ignored(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        for msg in (Pong(), StartWorkConn(proxy_name="x"), NewWorkConn(run_id="x"), ReqWorkConn()):
            peer.conn.write(msg)
        peer.conn.write(Ping())
        assert await peer.read() == Pong()
