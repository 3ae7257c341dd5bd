"""Peer-to-peer proxies and visitors of a client, with a server that makes them meet."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.client.proxies.base import Phase
from pyfrp.client.visitors import xtcp
from pyfrp.client.visitors.xtcp import Allowance
from pyfrp.errors import PeerClosed
from pyfrp.nathole import meetings
from pyfrp.nathole.options import PeerOptions
from pyfrp.net import kcp
from pyfrp.server.meetings import Meetings
from pyfrp.wire.messages import (
    NatHoleClient,
    NatHoleReport,
    NatHoleResp,
    NatHoleSid,
    NatHoleVisitor,
    NewProxy,
    NewVisitorConn,
    Ping,
    StartWorkConn,
)
from tests.support.ports import free_port
from tests.support.stun import StunServer
from tests.support.waiting import until, within
from tests.unit.client.scene import Session, session
from tests.unit.client.test_control import service
from tests.unit.client.test_visitors import knocked, let_go, started
from tests.unit.net.ends import turns
from tests.unit.server.test_proxies import come

SECRET = "spec-secret"
QUIC_TOO = ["kcp", "quic"]


def offered(port: int, **more: Any) -> dict[str, Any]:
    return {"name": "db", "type": "xtcp", "localPort": port, "secretKey": SECRET, **more}


def wanted(port: int, **more: Any) -> dict[str, Any]:
    return {
        "name": "v",
        "type": "xtcp",
        "serverName": "db",
        "serverUser": "alice",
        "secretKey": SECRET,
        "bindPort": port,
        "protocol": "kcp",
        **more,
    }


class Table:
    """The server between an owner and a guest."""

    def __init__(self, owner: Session, guest: Session, stun: StunServer) -> None:
        self.owner, self.guest, self.stun = owner, guest, stun
        self.asked: list[NatHoleVisitor] = []
        self.reports: list[bool] = []
        self.deaf = False
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._meetings = Meetings(3600.0)
        self._meetings.listen(
            "alice.db", secret_key=SECRET, allow_users=["bob"], invite=self._invite
        )

    def spawn(self, coro) -> None:
        task = self._loop.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def start(self) -> None:
        for side in (self.owner, self.guest):
            side.control.peer_options = PeerOptions(stun_server=self.stun.address)
        await self.owner.accept("db")
        await until(lambda: self.owner.proxies[0].phase is Phase.RUNNING, "the proxy to run")
        self.spawn(self._serve(self.owner))
        self.spawn(self._serve(self.guest))
        await started(self.guest, len(self.guest.visitors))

    def _invite(self, sid: str) -> None:
        async def invite() -> None:
            conn = await self.owner.request()
            conn.write(StartWorkConn(proxy_name="db"))
            conn.write(NatHoleSid(sid=sid))

        self.spawn(invite())

    async def _serve(self, side: Session) -> None:
        while True:
            try:
                msg = await side.server.read()
            except PeerClosed:
                return
            if isinstance(msg, NatHoleVisitor):
                self.asked.append(msg)
                if self.deaf:
                    continue
                self._meetings.visit(msg, "bob", side.server.write, side.log)
            elif isinstance(msg, NatHoleClient):
                self._meetings.join(msg, side.server.write, side.log)
            elif isinstance(msg, NatHoleReport):
                self.reports.append(msg.success)
                self._meetings.report(msg, side.log)

    async def close(self) -> None:
        self._meetings.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def table(
    *visitors: dict[str, Any], **proxy: Any
) -> AsyncIterator[tuple[Table, Session, Session]]:
    async with (
        StunServer() as stun,
        service() as port,
        session(offered(port, **proxy)) as owner,
        session(visitors=list(visitors)) as guest,
    ):
        made = Table(owner, guest, stun)
        try:
            await made.start()
            yield made, owner, guest
        finally:
            await made.close()
            guest.server.abort()
            owner.server.abort()
            for side in (guest, owner):
                assert side.task is not None
                await within(side.task, 10, "the end of the session")
            await turns()


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meetings, "HEAD_START_S", 0.05)
    monkeypatch.setattr(kcp, "LOOK_S", 0.01)
    monkeypatch.setattr(kcp, "LINGER_S", 0.05)


async def echoed(port: int, data: bytes = b"hello" * 10_000) -> None:
    user = await come(port)
    await user.send(data)
    assert await within(user.receive_exactly(len(data)), 10, "the echo") == data
    user.close()


@pytest.mark.parametrize("protocol", QUIC_TOO)
@pytest.mark.parametrize("layered", [False, True])
async def test_a_user_reaches_the_service_past_the_server(protocol, layered):
    if protocol == "quic":
        pytest.importorskip("aioquic", reason="QUIC is optional, and not installed here")
    port = free_port()
    layers = {"transport": {"useEncryption": layered, "useCompression": layered}}
    async with table(wanted(port, protocol=protocol, **layers), **layers) as (t, owner, guest):
        await echoed(port)
        # One tunnel serves them all.
        await asyncio.gather(*(echoed(port) for _ in range(5)))
        assert [msg.pre_check for msg in t.asked] == [True, False]
        await until(lambda: t.reports == [True], "the report")
        assert guest.log.has("establishing nat hole connection successful", "info")
        assert len(guest.connector.opened) == 0
        await until(lambda: not owner.control.bridges, "the owner's bridges to close")
        await until(lambda: not guest.control.bridges, "the guest's bridges to close")
        assert SECRET not in repr(guest.log.lines) + repr(owner.log.lines)


async def test_all_streams_of_all_visitors_share_the_limit_of_the_proxy():
    ports = [free_port(), free_port()]
    visitors = [wanted(port, name=f"v{port}") for port in ports]
    async with table(*visitors, transport={"bandwidthLimit": "50KB"}) as (t, _, _):
        for port in ports:
            await echoed(port, b"a")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(echoed(port, bytes(8_000)) for port in ports * 2))
        # Both ways; the server is not asked for anything but the two tunnels.
        assert loop.time() - began >= (64_000 - 51_200) / 51_200 * 0.95
        assert t.reports == [True, True]


async def test_addresses_of_the_machine_are_told_unless_the_file_forbids_it():
    port = free_port()
    off = {"natTraversal": {"disableAssistedAddrs": True}}
    async with table(wanted(port, **off), **off) as (t, _, _):
        await echoed(port)
        assert t.asked[1].assisted_addrs == []
        assert len(t.asked[1].mapped_addrs) == 2


async def test_a_tunnel_that_ends_is_made_anew_for_the_next_user(monkeypatch):
    monkeypatch.setattr(xtcp, "ATTEMPTS_S", 0.0)
    port = free_port()
    async with table(wanted(port)) as (t, _, guest):
        await echoed(port)
        guest.visitors[0]._tunnel.close()
        await until(lambda: guest.log.has("the tunnel ended"), "the end of the tunnel")
        await echoed(port)
        assert t.reports == [True, True]


async def test_attempts_are_not_made_more_often_than_every_ten_seconds(monkeypatch):
    monkeypatch.setattr(xtcp, "PATIENCE_S", 0.3)
    port = free_port()
    async with table(wanted(port, serverName="other")) as (t, _, guest):
        for _ in range(3):
            user = await come(port)
            await let_go(user)
        assert len(t.asked) == 1
        assert guest.log.has("make hole error: xtcp server for [alice.other] doesn't exist")
        assert guest.log.has("start new visitor connection error: open tunnel timeout", "warning")


async def test_a_wrong_secret_is_told(monkeypatch):
    monkeypatch.setattr(xtcp, "PATIENCE_S", 0.5)
    port = free_port()
    async with table(wanted(port, secretKey="guess")) as (_, _, guest):
        await let_go(await come(port))
        assert guest.log.has("make hole error: xtcp connection of [alice.db] auth failed")


async def test_a_user_falls_back_to_another_visitor():
    port = free_port()
    second = {
        "name": "relay",
        "type": "stcp",
        "serverName": "db",
        "serverUser": "alice",
        "secretKey": SECRET,
        "bindPort": -1,
    }
    first = wanted(port, fallbackTo="relay", fallbackTimeoutMs=100)
    async with table(first, second) as (t, _, guest):
        t.stun.silent = True
        user = await come(port)
        await user.send(b"early")
        _, msg = await knocked(guest)
        assert isinstance(msg, NewVisitorConn)
        assert msg.proxy_name == "alice.db"
        user.close()


async def test_a_user_does_not_wait_for_a_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("pyfrp.client.control.MEETING_S", 0.05)
    monkeypatch.setattr(xtcp, "PATIENCE_S", 0.3)
    port = free_port()
    async with table(wanted(port)) as (t, _, guest):
        t.deaf = True
        await let_go(await come(port))
        assert guest.log.has("make hole error: no answer of the server within 0.05 s", "warning")
        # What comes too late, or for nobody, hurts nobody.
        guest.server.write(NatHoleResp(transaction_id=t.asked[0].transaction_id))
        guest.server.write(NatHoleResp())
        await turns()


async def test_a_tunnel_is_kept_open_where_that_is_wanted(monkeypatch):
    monkeypatch.setattr(xtcp, "ATTEMPTS_S", 0.0)
    monkeypatch.setattr(xtcp, "LEAST_INTERVAL_S", 0.05)
    port = free_port()
    visitor = wanted(port, keepTunnelOpen=True, minRetryInterval=1)
    async with table(visitor) as (t, _, guest):
        guest.visitors[0].cfg.min_retry_interval = 0
        await until(lambda: guest.visitors[0]._tunnel, "a tunnel without any user")
        for count in (1, 2, 3):
            guest.visitors[0]._tunnel.close()
            await until(
                lambda count=count: len(t.reports) > count and guest.visitors[0]._tunnel,
                "another tunnel",
            )


async def test_users_of_a_visitor_that_stops_finish():
    port = free_port()
    async with table(wanted(port)) as (_, _, guest):
        user = await come(port)
        await user.send(b"one")
        assert await user.receive_exactly(3) == b"one"
        guest.visitors[0].stop()
        with pytest.raises(ConnectionRefusedError):
            await come(port)
        await user.send(b"two")
        assert await user.receive_exactly(3) == b"two"
        user.close()


async def test_a_proxy_that_stops_takes_no_more_users():
    port = free_port()
    async with table(wanted(port)) as (_, owner, _):
        await echoed(port)
        owner.proxies[0].phase = Phase.CLOSED
        await let_go(await come(port))


async def test_a_service_that_is_away_costs_its_user_only():
    port = free_port()
    async with table(wanted(port)) as (_, owner, _):
        await echoed(port)
        right = owner.proxies[0].cfg.local_port
        owner.proxies[0].cfg.local_port = free_port()
        await let_go(await come(port))
        owner.proxies[0].cfg.local_port = right
        await echoed(port)


async def test_quic_without_its_package_is_told_by_both(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyfrp.net.quic", None)
    monkeypatch.setattr(xtcp, "PATIENCE_S", 0.5)
    port = free_port()
    async with table(wanted(port, protocol="quic")) as (_, owner, guest):
        await let_go(await come(port))
        for side in (owner, guest):
            assert side.log.has("make hole error: QUIC needs the package aioquic: pip install")


# -- the proxy alone -------------------------------------------------------------------------------


@asynccontextmanager
async def invited(*messages: Any) -> AsyncIterator[Session]:
    async with session(offered(1)) as s:
        msg = await s.read()
        assert isinstance(msg, NewProxy)
        assert (msg.proxy_type, msg.sk, msg.allow_users) == ("xtcp", SECRET, [])
        await s.server.drain()
        s.proxies[0].answered("", "", 0.0)
        conn = await s.request()
        conn.write(StartWorkConn(proxy_name="db"))
        for message in messages:
            conn.write(message)
        await turns()
        if not messages:
            conn.close()
        yield s


async def test_a_work_connection_without_an_invitation_is_closed():
    async with invited(Ping()) as s:
        await until(lambda: s.log.has("expected NatHoleSid, got Ping", "warning"), "the complaint")
    async with invited() as s:
        await until(lambda: s.log.has("xtcp read from workConn error", "warning"), "the complaint")


async def test_a_proxy_that_cannot_find_out_its_address_says_so():
    async with invited(NatHoleSid(sid="s")) as s:
        await until(
            lambda: s.log.has("make hole error: discover error: natHoleStunServer ''"),
            "the complaint",
        )


async def test_tunnels_of_a_proxy_are_bounded(monkeypatch):
    monkeypatch.setattr("pyfrp.client.proxies.xtcp.MAX_TUNNELS", 0)
    async with invited(NatHoleSid(sid="s")) as s:
        await until(lambda: s.log.has("more than 0 visitors of [db]", "warning"), "the complaint")


async def test_a_failed_meeting_is_reported():
    async with StunServer() as stun, session(offered(1)) as s:
        s.control.peer_options = PeerOptions(stun_server=stun.address)
        await s.accept("db")
        conn = await s.request()
        conn.write(StartWorkConn(proxy_name="db"))
        conn.write(NatHoleSid(sid="s"))
        asked = await s.read()
        assert isinstance(asked, NatHoleClient)
        assert asked.sid == "s"
        answer = NatHoleResp(transaction_id=asked.transaction_id, sid="s")
        answer.detect_behavior.role = "receiver"
        answer.detect_behavior.read_timeout_ms = 1
        s.server.write(answer)
        report = await s.read()
        assert report == NatHoleReport(sid="s", success=False)
        assert s.log.has("make hole error: wait detect message timeout", "warning")


# -- the allowance ---------------------------------------------------------------------------------


def test_attempts_come_back_one_by_one():
    allowance = Allowance(8, 0.0)
    assert [allowance.wait(0.0) for _ in range(8)] == [0.0] * 8
    assert allowance.wait(0.0) == 450.0
    assert allowance.wait(900.0) == 0.0
    assert Allowance(-1, 0.0).wait(0.0) == 0.0


@given(st.integers(1, 100), st.lists(st.floats(0, 1000), max_size=300))
def test_no_more_attempts_an_hour_than_allowed(an_hour, pauses):
    allowance = Allowance(an_hour, 0.0)
    now, starts = 0.0, []
    for pause in pauses:
        now += pause
        now += allowance.wait(now)
        starts.append(now)
    for at, start in enumerate(starts):
        within_hour = [other for other in starts[at:] if other < start + 3600]
        assert len(within_hour) <= 2 * an_hour  # All at once, and those that came back.
