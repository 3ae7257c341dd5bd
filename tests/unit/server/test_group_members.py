"""What users notice of a group: who serves them, and that a member's end costs them nothing."""

from __future__ import annotations

import asyncio

import pytest

from pyfrp.wire.messages import CloseProxy, NewProxy
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.net.ends import memory_pair, turns
from tests.unit.server.scene import DIRECT, office
from tests.unit.server.test_proxies import ask, come
from tests.unit.server.test_tcpmux import connect
from tests.unit.vhost.scene import answer, get, post, split_answers
from tests.unit.wire.hellos import hello

GROUP = {"group": "g", "group_key": "k"}
ALL = {"vhostHTTPPort": 8080, "vhostHTTPSPort": 8443, "tcpmuxHTTPConnectPort": 1337}
HELLO = hello("a.test")
CONNECT = connect("a.test")
both = pytest.mark.parametrize("settings", [{}, DIRECT], ids=["mux", "direct"])
bridged = pytest.mark.parametrize("kind", ["tcp", "https", "tcpmux"])


class Stage:
    """Members of one group, and users who come to it."""

    def __init__(self, o, kind):
        self.office = o
        self.kind = kind
        self.port = free_port()
        self.users = []

    async def member(self, name, peer=None, **fields):
        """Register a member, of a new client unless it is given one."""
        peer = peer or await self.office.login()
        resp = await peer.propose(
            NewProxy(
                proxy_name=name,
                proxy_type=self.kind,
                remote_port=self.port if self.kind == "tcp" else 0,
                custom_domains=[] if self.kind == "tcp" else ["a.test"],
                multiplexer="httpconnect",
                **{**GROUP, **fields},
            )
        )
        assert not resp.error
        return peer

    async def user(self, data=b"hello"):
        """A user who has said all of this; what of it a service gets."""
        if self.kind == "tcp":
            peer = await come(self.port)
            await peer.send(data)
            self.users.append(peer)
            return data
        near, far = memory_pair()
        near.pause_reading()
        self.office.ends += [near, far]
        if self.kind == "https":
            self.office.server.https.adopt(near, HELLO + data)
            return HELLO + data
        self.office.server.tcpmux.adopt(near, CONNECT + data)
        return data

    def waiting(self, name):
        proxy = self.office.server._proxies.get(name)
        return len(proxy._waiting) if proxy else 0

    async def done(self):
        for user in self.users:
            user.close()
        for bridge in list(self.office.server.bridges):
            bridge.abort()
        await until(lambda: not self.office.server.bridges, "the bridges to close")


async def serves(peer, data):
    """A work connection of this client is used for this proxy, and gets this data."""
    work = await peer.bring()
    start, reader = await work.start()
    assert await reader.until_data(len(data)) == data
    return start.proxy_name


# -- users of a bridge --------------------------------------------------------------------------


@both
@bridged
async def test_members_take_turns(monkeypatch, settings, kind):
    async with office(monkeypatch, **settings, **ALL) as o:
        stage = Stage(o, kind)
        peers = [await stage.member("a"), await stage.member("b")]
        for turn in (1, 0, 1, 0):
            data = await stage.user()
            await until(lambda t=turn: stage.waiting("ab"[t]), "the user to wait")
            assert await serves(peers[turn], data) == "ab"[turn]
        await stage.done()


async def test_members_of_one_client_take_turns(monkeypatch):
    async with office(monkeypatch) as o:
        stage = Stage(o, "tcp")
        peer = await stage.member("a")
        await stage.member("b", peer)
        names = [await serves(peer, await stage.user()) for _ in range(4)]
        assert names == ["b", "a", "b", "a"]
        await stage.done()


@bridged
async def test_the_door_closes_with_the_last_member_and_can_be_opened_again(monkeypatch, kind):
    async with office(monkeypatch, **ALL) as o:
        stage = Stage(o, kind)
        one, other = await stage.member("a"), await stage.member("b")
        one.conn.write(CloseProxy(proxy_name="a"))
        await until(lambda: "a" not in o.server._proxies, "the first to leave")
        for _ in range(2):
            assert await serves(other, await stage.user()) == "b"
        await stage.done()
        other.conn.write(CloseProxy(proxy_name="b"))
        await until(lambda: "b" not in o.server._proxies, "the last to leave")
        assert not len(o.server.groups)
        if kind == "tcp":
            assert not o.server.ports._used
            with pytest.raises(ConnectionRefusedError):
                await come(stage.port)
        await stage.member("c", other, group_key="another")
        assert await serves(other, await stage.user()) == "c"
        await stage.done()


async def test_a_random_port_is_one_for_all_members(monkeypatch):
    async with office(monkeypatch) as o:
        peers = [await o.login(), await o.login()]
        told = {(await p.tcp(n, 0, **GROUP)).remote_addr for n, p in zip("ab", peers, strict=True)}
        [address] = told
        stage = Stage(o, "tcp")
        stage.port = int(address.removeprefix(":"))
        assert await serves(peers[1], await stage.user()) == "b"
        await stage.done()
        for name, peer in zip("ab", peers, strict=True):
            peer.conn.write(CloseProxy(proxy_name=name))
        await until(lambda: not o.server._proxies, "both to leave")
        # The first had it, and gets it again.
        assert (await peers[0].tcp("a", 0, **GROUP)).remote_addr == address


@both
@bridged
@pytest.mark.parametrize("how", ["lost", "closed", "replaced"])
async def test_a_user_who_waits_for_a_member_that_leaves_is_passed_on(
    monkeypatch, settings, kind, how
):
    async with office(monkeypatch, **settings, **ALL) as o:
        stage = Stage(o, kind)
        one, other = await stage.member("a"), await stage.member("b")
        data = await stage.user(b"all that was said")
        await until(lambda: stage.waiting("b"), "the user to wait")
        if how == "lost":
            o.server.controls[other.run_id].close()
        elif how == "closed":
            other.conn.write(CloseProxy(proxy_name="b"))
        else:
            await o.login(run_id=other.run_id)
        await until(lambda: stage.waiting("a"), "the user to wait for the other")
        assert await serves(one, data) == "a"
        if how == "closed":
            # What the client brings for the user it no longer has is closed.
            assert await (await other.bring()).ended()
        await stage.done()


@bridged
async def test_a_user_goes_through_the_members_of_a_dying_client_to_a_living_one(monkeypatch, kind):
    async with office(monkeypatch, **ALL) as o:
        stage = Stage(o, kind)
        dying = await stage.member("a")
        for name in "bcd":
            await stage.member(name, dying)
        living = await stage.member("e")
        data = [await stage.user(b"%d" % n) for n in range(5)]
        await until(lambda: sum(map(stage.waiting, "abcde")) == 5, "the users to wait")
        o.server.controls[dying.run_id].close()
        assert stage.waiting("e") == 5
        got = []
        for _ in data:
            _, reader = await (await living.bring()).start()
            got.append(await reader.until_data(len(data[0])))
        assert sorted(got) == sorted(data)
        await stage.done()


@bridged
async def test_a_member_that_brings_nothing_costs_its_user_the_wait_and_the_next_nothing(
    monkeypatch, kind
):
    async with office(monkeypatch, userConnTimeout=1, **ALL) as o:
        stage = Stage(o, kind)
        one, _ = await stage.member("a"), await stage.member("b")
        data = await stage.user()
        await until(lambda: stage.waiting("b"), "the user to wait")
        await until(lambda: stage.waiting("a"), "the user to be passed on", 5)
        assert await serves(one, data) == "a"
        for _ in range(2):
            await stage.user()
            await until(lambda: stage.waiting("a"), "the next user")
            assert await serves(one, data) == "a"
        await stage.done()


async def test_a_user_who_was_passed_on_is_not_touched_by_the_member_that_left(monkeypatch):
    async with office(monkeypatch, userConnTimeout=1) as o:
        stage = Stage(o, "tcp")
        one, other = await stage.member("a"), await stage.member("b")
        await stage.user()
        [user] = stage.users
        await until(lambda: stage.waiting("b"), "the user to wait")
        other.conn.write(CloseProxy(proxy_name="b"))
        await until(lambda: stage.waiting("a"), "the user to be passed on")
        _, reader = await (await one.bring()).start()

        def patience_is_over():
            return "user of b" not in {task.get_name() for task in asyncio.all_tasks()}

        await until(patience_is_over, "the member that left to give up")
        await user.send(b" again")
        assert await reader.until_data(11) == b"hello again"
        assert not o.log.has("timeout trying")
        await stage.done()


async def test_a_user_whom_nobody_can_serve_is_let_go(monkeypatch):
    async with office(monkeypatch, userConnTimeout=1) as o:
        stage = Stage(o, "tcp")
        await stage.member("a")
        await stage.member("b")
        await stage.user()
        [user] = stage.users
        try:
            assert await within(user.receive(), 10, "the end") == b""
        except ConnectionResetError:
            pass  # As good an end.
        assert len([e for e in o.log.events("warning") if "timeout trying" in e]) == 2
        await stage.done()


async def test_a_user_who_left_is_not_passed_on(monkeypatch):
    async with office(monkeypatch) as o:
        stage = Stage(o, "tcp")
        await stage.member("a")
        other = await stage.member("b")
        await stage.user()
        await until(lambda: stage.waiting("b"), "the user to wait")
        [user] = o.server._proxies["b"]._waiting
        user.abort()
        await turns()
        o.server.controls[other.run_id].close()
        assert not stage.waiting("a")
        await stage.done()


async def test_users_of_a_group_who_wait_when_the_server_stops_may_finish(monkeypatch):
    async with office(monkeypatch) as o:
        stage = Stage(o, "tcp")
        one, other = await stage.member("a"), await stage.member("b")
        data = await stage.user()
        await until(lambda: stage.waiting("b"), "the user to wait")
        work = await other.bring()
        _, reader = await work.start()
        stopping = asyncio.get_running_loop().create_task(o.server.stop(10))
        await turns()
        assert await reader.until_data(len(data)) == data
        assert not stopping.done()
        await stage.done()
        await within(stopping, 5, "the stop")
        one.end.abort()


# -- requests -----------------------------------------------------------------------------------


async def test_requests_go_round_robin_as_with_frp(monkeypatch):
    async with office(monkeypatch, **ALL) as o:
        stage = Stage(o, "http")
        names = "abc"
        peers = {name: await stage.member(name) for name in names}
        works = {}
        caller = await ask(o, b"")
        for turn in (1, 2, 0, 1, 2, 0):
            name = names[turn]
            caller.feed(get(host="a.test"))
            await turns()
            if name not in works:
                works[name] = await peers[name].bring()
                start, _ = await works[name].start()
                assert start.proxy_name == name
            caller.take()
            works[name].end.write(answer(name.encode()))
            await until(lambda: caller.sent, "the answer")
            assert split_answers(caller.sent) == [(200, name.encode())]


@both
@pytest.mark.parametrize("sent", [False, True], ids=["queued", "sent"])
@pytest.mark.parametrize("how", ["lost", "replaced"])
async def test_a_request_at_a_client_that_is_lost_goes_to_another(monkeypatch, settings, sent, how):
    async with office(monkeypatch, **settings, **ALL) as o:
        stage = Stage(o, "http")
        one, other = await stage.member("a"), await stage.member("b")
        request = post(b"the body").replace(b"llm.test", b"a.test")
        caller = await ask(o, request)
        if sent:
            _, reader = await (await other.bring()).start()
            await until(lambda: b"the body" in reader.data, "the request")
        if how == "lost":
            o.server.controls[other.run_id].close()
        else:
            await o.login(run_id=other.run_id)
        work = await one.bring()
        start, reader = await work.start()
        assert start.proxy_name == "a"
        await until(lambda: reader.data.endswith(b"the body"), "the request")
        assert reader.data.count(b"POST") == 1
        work.end.write(answer(b"hello"))
        await until(lambda: caller.sent, "the answer")
        assert split_answers(caller.sent) == [(200, b"hello")]


async def test_a_request_that_the_whole_group_has_lost_is_refused(monkeypatch):
    async with office(monkeypatch, **DIRECT, **ALL) as o:
        stage = Stage(o, "http")
        peers = [await stage.member("a"), await stage.member("b")]
        caller = await ask(o, get(host="a.test"))
        for peer in peers:
            o.server.controls[peer.run_id].close()
        await until(lambda: caller.sent, "the refusal")
        assert split_answers(caller.sent)[0][0] == 503
        again = await ask(o, get(host="a.test"))
        assert split_answers(again.sent)[0][0] == 503


async def test_kept_connections_of_a_member_that_left_are_not_used(monkeypatch):
    async with office(monkeypatch, **ALL) as o:
        stage = Stage(o, "http")
        one, other = await stage.member("a"), await stage.member("b")
        caller = await ask(o, get(host="a.test"))
        work = await other.bring()
        _, reader = await work.start()
        work.end.write(answer(b"b"))
        await until(lambda: caller.sent, "the answer")
        other.conn.write(CloseProxy(proxy_name="b"))
        await until(lambda: "b" not in o.server._proxies, "it to leave")
        await reader.until_lost()
        for number in range(2):
            caller.take()
            caller.feed(get(host="a.test"))
            if not number:
                work = await one.bring()
                await work.start()
            work.end.write(answer(b"a"))
            await until(lambda: caller.sent, "the answer")
            assert split_answers(caller.sent) == [(200, b"a")]


async def test_the_route_stays_when_the_member_that_opened_it_leaves(monkeypatch):
    async with office(monkeypatch, **ALL) as o:
        stage = Stage(o, "http")
        one, other = await stage.member("a"), await stage.member("b")
        one.conn.write(CloseProxy(proxy_name="a"))
        await until(lambda: "a" not in o.server._proxies, "it to leave")
        caller = await ask(o, get(host="a.test"))
        work = await other.bring()
        await work.start()
        work.end.write(answer(b"b"))
        await until(lambda: caller.sent, "the answer")
        other.conn.write(CloseProxy(proxy_name="b"))
        await until(lambda: not o.server._proxies, "the last to leave")
        assert o.server.http.router._domains == {}
