"""Requests to a group: in turn, and past a member that fails before its answer."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from pyfrp.errors import IdleTimeout
from pyfrp.server.groups import DOUBT_S, Group
from pyfrp.vhost.frontend import HttpRoute
from pyfrp.vhost.replay import LIMIT, WITHIN_S
from pyfrp.vhost.upstream import UpstreamPool
from pyfrp.wire.http1 import HeadEdit
from tests.unit.vhost.scene import ADDRESS, Wire, answer, get, post, split_answers, turns, vhost

DOMAIN = "group.test"


class Member:
    """One proxy of the group, and its work connections in the order of opening."""

    def __init__(self, v, name, edit, password):
        self.services = []
        self.greeting = b""
        self.refusal = None
        self.pool = UpstreamPool(self._connect, lambda: v.now)
        self.route = HttpRoute(
            name,
            self.pool,
            request_edit=edit,
            response_edit=None,
            user="u" if password else "",
            password=password,
        )

    async def _connect(self, caller):
        assert caller == ADDRESS
        if self.refusal is not None:
            raise self.refusal
        service = Wire()
        self.services.append(service)
        return service, self.greeting

    @property
    def service(self):
        return self.services[-1]


@asynccontextmanager
async def group(*names, edits=(), passwords=(), **options):
    """A vhost with a group of these members."""
    async with vhost(**options) as v:
        shared = Group(lambda: v.now)
        v.members = []
        for number, name in enumerate(names):
            edit = edits[number] if edits else None
            member = Member(v, name, edit, passwords[number] if passwords else "")
            member.route.group = shared
            v.members.append(member)
            shared.members.append(member.route)
            v.frontend.add_pool(member.pool)
        v.frontend.router.add(DOMAIN, "", "", v.members[0].route)
        v.group = shared
        # The second has the first turn: let it be the first of `names`.
        shared._turn = -1
        yield v


def ask_get(path="/", *fields):
    return get(path, *fields, host=DOMAIN)


def ask_post(body, path="/"):
    return post(body, path=path).replace(b"llm.test", DOMAIN.encode())


def served(member):
    return [len(service.sent) for service in member.services]


async def test_requests_of_one_caller_go_to_the_members_in_turn():
    async with group("a", "b") as v:
        a, b = v.members
        caller = v.call()
        for number in range(6):
            caller.feed(ask_get(f"/{number}"))
            await turns()
            member = (a, b)[number % 2]
            assert f"/{number} ".encode() in member.service.take()
            member.service.feed(answer(member.route.name.encode()))
        assert [body for _, body in split_answers(caller.sent)] == [b"a", b"b"] * 3
        assert (len(a.services), len(b.services)) == (1, 1)
        assert (a.route.requests, b.route.requests) == (3, 3)


@pytest.mark.parametrize("how", ["end", "reset", "greets", "no connection"])
async def test_a_request_without_an_answer_goes_to_another_member(how):
    async with group("a", "b") as v:
        a, b = v.members
        if how == "greets":
            a.greeting = b"SSH-2.0-"
        elif how == "no connection":
            a.refusal = IdleTimeout("timeout trying to get work connection")
        caller = await v.ask(ask_post(b"the body"))
        if how == "end":
            a.service.end()
        elif how == "reset":
            a.service.lose(ConnectionResetError())
        await turns()
        assert b.service.sent.startswith(b"POST / HTTP/1.1\r\n")
        assert b.service.sent.endswith(b"\r\n\r\nthe body")
        assert b.service.sent.count(b"POST") == 1
        b.service.feed(answer(b"hello"))
        assert split_answers(caller.sent) == [(200, b"hello")]
        assert not [line for line in v.log.lines if line["event"] == "http request failed"]


async def test_the_rest_of_a_body_follows_to_the_other_member():
    async with group("a", "b") as v:
        a, b = v.members
        request = ask_post(b"0123456789")
        caller = await v.ask(request[:-6])
        a.service.end()
        caller.feed(request[-6:-3])
        await turns()
        caller.feed(request[-3:])
        assert b.service.sent.endswith(b"\r\n\r\n0123456789")
        b.service.feed(answer(b"hello"))
        assert split_answers(caller.sent) == [(200, b"hello")]


async def test_each_member_changes_heads_as_it_is_configured():
    edits = [HeadEdit(b"a.internal", {"X-M": "a"}), HeadEdit(b"b.internal.example", {"X-M": "bb"})]
    async with group("a", "b", edits=edits) as v:
        a, b = v.members
        await v.ask(ask_post(b"the body"))
        assert b"Host: a.internal\r\n" in a.service.sent
        a.service.end()
        await turns()
        sent = b.service.sent
        assert b"Host: b.internal.example\r\n" in sent
        assert b"X-M: bb\r\n" in sent
        assert b"a.internal" not in sent
        assert sent.endswith(b"\r\n\r\nthe body")
        # What the other one would have been sent in the first place.
        direct = await v.ask(ask_post(b"the body"))
        assert b.services[-1].sent == sent
        direct.lose()


async def test_a_request_never_reaches_a_member_that_asks_for_other_credentials():
    async with group("a", "b", passwords=("", "p")) as v:
        a, b = v.members
        caller = await v.ask(ask_get())
        a.service.end()
        await turns()
        assert not b.services
        assert split_answers(caller.sent)[0][0] == 502
        caller = await v.ask(ask_get("/", "Authorization: Basic dTpw"))
        assert b.service.sent
        caller.lose()


@pytest.mark.parametrize("partial", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_an_answer_that_had_begun_is_not_begun_anew(partial):
    async with group("a", "b") as v:
        a, b = v.members
        caller = await v.ask(ask_post(b"x"))
        a.service.feed(partial)
        a.service.end()
        await turns()
        assert not b.services
        assert b"502" in caller.sent


@pytest.mark.parametrize(("request_", "again"), [(ask_post(b"x"), False), (ask_get(), True)])
async def test_work_that_may_have_been_done_is_done_again_only_if_it_changes_nothing(
    request_, again
):
    async with group("a", "b") as v:
        a, b = v.members
        caller = await v.ask(request_)
        v.advance(WITHIN_S)
        a.service.end()
        await turns()
        assert bool(b.services) == again
        assert bool(caller.sent) != again
        caller.lose()


async def test_a_request_too_long_to_keep_is_not_repeated():
    async with group("a", "b") as v:
        a, b = v.members
        request = ask_post(bytes(LIMIT))
        caller = await v.ask(request[:200])
        caller.feed(request[200:])
        a.service.end()
        await turns()
        assert not b.services
        assert split_answers(caller.sent)[0][0] == 502


async def test_every_member_is_asked_once_and_the_last_failure_is_the_answer():
    async with group("a", "b", "c") as v:
        caller = await v.ask(ask_get())
        for member in v.members:
            member.service.end()
            await turns()
        assert [len(member.services) for member in v.members] == [1, 1, 1]
        assert split_answers(caller.sent)[0][0] == 502
        # The next request begins anew.
        caller.take()
        caller.feed(ask_get("/next"))
        await turns()
        [asked] = [m for m in v.members if len(m.services) == 2]
        asked.service.end()
        await turns()
        assert sum(len(m.services) for m in v.members) == 5
        caller.lose()


@pytest.mark.parametrize("dead", [False, True])
async def test_a_kept_connection_that_ends_is_replaced_at_its_member_first(dead):
    async with group("a", "b") as v:
        a, b = v.members
        caller = await v.ask(ask_get())
        a.service.feed(answer(b"1"))
        v.group._turn -= 1
        caller.take()
        caller.feed(ask_post(b"second"))
        assert a.service.sent.endswith(b"second")
        if dead:
            a.refusal = IdleTimeout("timeout trying to get work connection")
        a.service.end()
        await turns()
        assert (len(a.services), len(b.services)) == ((1, 1) if dead else (2, 0))
        service = (b if dead else a).service
        assert service.sent.endswith(b"second")
        service.feed(answer(b"2"))
        assert split_answers(caller.sent) == [(200, b"2")]


async def test_a_member_that_failed_is_spared_for_a_while():
    async with group("a", "b") as v:
        a, b = v.members
        a.refusal = IdleTimeout("timeout trying to get work connection")
        caller = v.call()
        for _ in range(4):
            caller.feed(ask_get())
            await turns()
            b.service.feed(answer(b"b"))
        assert [status for status, _ in split_answers(caller.sent)] == [200] * 4
        [line] = v.log.lines  # One for all of them.
        assert line["proxy"] == "a"
        assert (line["event"], line["proxy"]) == (
            "a member of a group failed, others go first",
            "a",
        )
        a.refusal = None
        v.advance(DOUBT_S)
        caller = v.call()
        for _ in range(2):
            caller.feed(ask_get())
            await turns()
            for member in v.members:
                if member.services and member.service.take():
                    member.service.feed(answer(b""))
        assert a.services


async def test_a_group_of_one_fails_like_a_proxy_of_its_own():
    async with group("a") as v:
        [a] = v.members
        caller = await v.ask(ask_get())
        a.service.end()
        await turns()
        assert len(a.services) == 1
        assert split_answers(caller.sent)[0][0] == 502
        a.refusal = IdleTimeout("timeout trying to get work connection")
        caller = await v.ask(ask_get())
        assert split_answers(caller.sent)[0][0] == 503


async def test_an_empty_group_is_like_no_route():
    async with group("a") as v:
        v.group.members.clear()
        caller = await v.ask(ask_get())
        assert split_answers(caller.sent)[0][0] == 503


async def test_a_caller_who_leaves_during_the_second_try_gives_its_connection_back():
    async with group("a", "b") as v:
        a, b = v.members
        caller = await v.ask(ask_get())
        a.service.end()
        caller.lose()
        await turns()
        assert not b.services or len(b.pool) == 1


async def test_refusals_name_the_member_that_had_the_request_last():
    async with group("a", "b") as v:
        await v.ask(ask_get())
        for member in v.members:
            member.service.end()
            await turns()
        [line] = [line for line in v.log.lines if line["event"] == "http request failed"]
        assert line["proxy"] == "b"
