"""Peer-to-peer proxies at the server: what goes over whose connection."""

from __future__ import annotations

import time

from pyfrp.auth.token import auth_key
from pyfrp.wire.messages import (
    CloseProxy,
    NatHoleClient,
    NatHoleReport,
    NatHoleResp,
    NatHoleSid,
    NatHoleVisitor,
    NewProxy,
    StartWorkConn,
)
from tests.support.waiting import until, within
from tests.unit.server.scene import DIRECT, office
from tests.unit.server.test_visitors import both

SECRET = "spec-secret"
MAPPED = ["1.1.1.1:1000", "1.1.1.1:1000"]


async def offer(peer, name="p2p", **fields):
    return await peer.propose(
        NewProxy(proxy_name=name, proxy_type="xtcp", **{"sk": SECRET, **fields})
    )


def ask(secret=SECRET, name="p2p", **fields):
    now = int(time.time())
    return NatHoleVisitor(
        transaction_id="v-1",
        proxy_name=name,
        sign_key=auth_key(secret, now),
        timestamp=now,
        mapped_addrs=MAPPED,
        protocol="kcp",
        **fields,
    )


@both
async def test_the_two_sides_meet(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o:
        owner = await o.login(user="alice")
        guest = await o.login(user="alice")
        assert (await offer(owner, use_encryption=True, use_compression=True)).error == ""
        work = await owner.bring()
        guest.conn.write(ask(pre_check=True))
        assert (await guest.expect(NatHoleResp)).error == ""
        guest.conn.write(ask())
        start = await within(work.conn.read(), 5, "StartWorkConn")
        assert isinstance(start, StartWorkConn)
        assert (start.proxy_name, start.src_addr, start.dst_addr) == ("p2p", "", "")
        invited = await within(work.conn.read(), 5, "NatHoleSid")
        assert isinstance(invited, NatHoleSid)
        assert await work.ended()
        owner.conn.write(
            NatHoleClient(transaction_id="c-1", sid=invited.sid, mapped_addrs=["2.2.2.2:2"] * 2)
        )
        to_guest = await guest.expect(NatHoleResp)
        to_owner = await owner.expect(NatHoleResp)
        assert to_guest.candidate_addrs == ["2.2.2.2:2"]
        assert to_owner.candidate_addrs == ["1.1.1.1:1000"]
        owner.conn.write(NatHoleReport(sid=invited.sid, success=True))
        said = f"sid [{invited.sid}] report make hole success: true, mode 0, index 0"
        await until(lambda: o.log.has(said, "info"), "the report in the log")
        assert SECRET not in repr(o.log.lines)


async def test_a_visitor_that_may_not_come_is_told_why(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o:
        owner = await o.login(user="alice")
        eve = await o.login(user="eve")
        assert (await offer(owner)).error == ""
        for msg, error in (
            (ask(name="other"), "xtcp server for [other] doesn't exist"),
            (ask(secret="guess"), "xtcp connection of [p2p] auth failed"),
            (ask(pre_check=True), "xtcp visitor user [eve] not allowed for [p2p]"),
        ):
            eve.conn.write(msg)
            assert (await eve.expect(NatHoleResp)).error == error
            assert o.log.has(f"handle visitorMsg error: {error}", "warning")


async def test_a_proxy_that_is_closed_takes_no_visitors(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o:
        owner = await o.login(user="alice")
        assert (await offer(owner)).error == ""
        owner.conn.write(CloseProxy(proxy_name="p2p"))
        await until(lambda: not len(o.server.meetings), "the proxy to close")
        owner.conn.write(ask(pre_check=True))
        assert "doesn't exist" in (await owner.expect(NatHoleResp)).error


async def test_a_client_without_work_connections_does_not_hold_anything_up(monkeypatch):
    async with office(monkeypatch, userConnTimeout=1, **DIRECT) as o:
        owner = await o.login(user="alice")
        assert (await offer(owner)).error == ""
        owner.conn.write(ask())
        await until(lambda: o.log.has("timeout trying to get work connection"), "the timeout")
        owner.conn.write(ask(pre_check=True))
        assert (await owner.expect(NatHoleResp)).error == ""


async def test_a_meeting_with_a_client_that_left_comes_to_nothing(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o:
        owner = await o.login(user="alice")
        guest = await o.login(user="alice")
        assert (await offer(owner)).error == ""
        work = await owner.bring()
        guest.conn.write(ask())
        await within(work.conn.read(), 5, "StartWorkConn")
        sid = (await within(work.conn.read(), 5, "NatHoleSid")).sid
        guest.conn.abort()
        await until(lambda: guest.run_id not in o.server.controls, "the guest to be gone")
        owner.conn.write(
            NatHoleClient(transaction_id="c-1", sid=sid, mapped_addrs=["2.2.2.2:2"] * 2)
        )
        assert (await owner.expect(NatHoleResp)).error == ""
