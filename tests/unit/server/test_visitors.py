"""Secret proxies: who may visit them, and what becomes of those who do."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.auth.token import auth_key
from pyfrp.errors import PeerClosed, RefusedError
from pyfrp.net.payload import wrap_payload
from pyfrp.server.visitors import SHOWN, VisitorManager
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import CloseProxy, NewProxy, NewVisitorConn, NewVisitorConnResp
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, turns
from tests.unit.server.scene import DIRECT, TOKEN, office

both = pytest.mark.parametrize("settings", [{}, DIRECT], ids=["mux", "direct"])
SECRET = "spec-secret"


async def offer(peer, name="secret", **fields):
    """Register a secret proxy."""
    fields = {"proxy_type": "stcp", "sk": SECRET, **fields}
    resp = await peer.propose(NewProxy(proxy_name=name, **fields))
    assert (resp.error, resp.remote_addr) == ("", "")


def visit(peer, name="secret", *, secret=SECRET, when=None, **fields):
    """Knock at a secret proxy; the connection and its end."""
    conn, end = peer.dial()
    when = int(time.time()) if when is None else when
    fields = {"run_id": peer.run_id, "sign_key": auth_key(secret, when), **fields}
    conn.write(NewVisitorConn(proxy_name=name, timestamp=when, **fields))
    return conn, end


async def answer(conn) -> str:
    resp = await within(conn.read(), 5, "the answer")
    assert isinstance(resp, NewVisitorConnResp)
    return resp.error


async def inside(conn, key=None, compress=False) -> tuple[Any, Reader]:
    """The payload of a visit that was granted, or of a started work connection."""
    endpoint, early = conn.detach()
    plain, early = wrap_payload(endpoint, early, key=key, compress=compress)
    reader = Reader()
    plain.set_protocol(reader)
    if early:
        reader.data_received(early)
    plain.resume_reading()
    return plain, reader


@asynccontextmanager
async def met(o, *, guest_user="alice", work=True, **fields):
    """An owner with a secret proxy and a guest, logged in."""
    owner = await o.login(user="alice")
    guest = await o.login(user=guest_user)
    await offer(owner, **fields)
    if work:
        await owner.bring()
    yield owner, guest


# -- who may come -------------------------------------------------------------------------------


def manager(*, name="a", secret=SECRET, users=("alice",)) -> VisitorManager:
    made = VisitorManager()
    made.listen(name, secret_key=secret, allow_users=users, accept=lambda *_: None)
    return made


def knock(secret=SECRET, name="a", when=100) -> NewVisitorConn:
    return NewVisitorConn(proxy_name=name, sign_key=auth_key(secret, when), timestamp=when)


def test_a_name_is_taken_once_and_given_back():
    made = manager()
    with pytest.raises(RefusedError, match=r"^custom listener for \[a\] is repeated$"):
        made.listen("a", secret_key="", allow_users=[], accept=lambda *_: None)
    made.unlisten("a")
    made.unlisten("a")
    made.listen("a", secret_key="", allow_users=[], accept=lambda *_: None)
    assert len(made) == 1


def test_refusals_are_in_frps_order_and_words():
    made = manager()
    with pytest.raises(RefusedError, match=r"^custom listener for \[b\] doesn't exist$"):
        made.admit(knock("wrong", "b"), "mallory")
    with pytest.raises(RefusedError, match=r"^visitor connection of \[a\] auth failed$"):
        made.admit(knock("wrong"), "mallory")
    with pytest.raises(
        RefusedError, match=r"^visitor connection of \[a\] user \[mallory\] not allowed$"
    ):
        made.admit(knock(), "mallory")
    assert made.admit(knock(), "alice").secret_key == SECRET


def test_the_time_belongs_to_the_key():
    msg = knock(when=100)
    msg.timestamp = 101
    with pytest.raises(RefusedError, match="auth failed"):
        manager().admit(msg, "alice")


def test_nobody_is_admitted_to_a_server_that_stops():
    made = manager()
    made.close()
    with pytest.raises(RefusedError, match="the server is stopping"):
        made.admit(knock(), "alice")


def test_what_a_visitor_says_is_cut_before_it_is_told_back():
    with pytest.raises(RefusedError) as caught:
        manager().admit(knock(name="n" * 5000), "alice")
    assert len(str(caught.value)) < SHOWN + 100
    with pytest.raises(RefusedError) as caught:
        manager().admit(knock(), "u" * 5000)
    assert len(str(caught.value)) < SHOWN + 100


@given(
    st.lists(st.sampled_from(["", "a", "b", "*", "a*", " a"]), max_size=4),
    st.sampled_from(["", "a", "b", "*", "A"]),
    st.text(max_size=8),
    st.text(max_size=8),
    st.integers(-(2**63), 2**63 - 1),
)
def test_only_the_secret_and_a_user_of_the_list_open(users, user, secret, guess, when):
    made = manager(secret=secret, users=users)
    try:
        made.admit(knock(guess, when=when), user)
    except RefusedError:
        assert guess != secret or (user not in users and "*" not in users)
    else:
        assert guess == secret
        assert user in users or "*" in users


@both
@pytest.mark.parametrize(
    ("allow", "guest_user", "admitted"),
    [
        ([], "alice", True),  # The default: the owner's own.
        ([], "bob", False),
        ([], "", False),
        (["bob"], "bob", True),
        (["bob"], "alice", False),
        (["bob", "*"], "carol", True),
    ],
)
async def test_the_owner_says_whose_visitors_may_come(
    monkeypatch, settings, allow, guest_user, admitted
):
    async with (
        office(monkeypatch, **settings) as o,
        met(o, guest_user=guest_user, allow_users=allow) as (_, guest),
    ):
        conn, end = visit(guest)
        error = await answer(conn)
        if admitted:
            assert error == ""
        else:
            text = f"visitor connection of [secret] user [{guest_user}] not allowed"
            assert error == text
            assert o.log.has(f"register visitor conn error: {text}", "warning")
            with pytest.raises(PeerClosed):
                await within(conn.read(), 5, "the end")
        end.abort()


@both
async def test_a_wrong_secret_is_refused(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o, met(o) as (_, guest):
        conn, _ = visit(guest, secret="guess")
        assert await answer(conn) == "visitor connection of [secret] auth failed"
        assert not o.log.has(SECRET)
        assert SECRET not in repr(o.log.lines)


async def test_a_visitor_says_whose_he_is_with_a_run_id_that_lives(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o, met(o, guest_user="") as (owner, guest):
        conn, _ = visit(guest, run_id="gone")
        assert await answer(conn) == "no client control found for run id [gone]"
        # Very old clients do not say, and are nobody's.
        conn, _ = visit(guest, run_id="")
        assert await answer(conn) == "visitor connection of [secret] user [] not allowed"
        await offer(owner, "open", allow_users=["*"])
        conn, end = visit(guest, "open", run_id="")
        assert await answer(conn) == ""
        end.abort()


async def test_details_are_kept_from_visitors_where_the_operator_wants_it(monkeypatch):
    async with office(monkeypatch, detailedErrorsToClient=False) as o, met(o) as (_, guest):
        conn, _ = visit(guest, "other")
        assert await answer(conn) == "register visitor conn error"
        assert o.log.has("custom listener for [other] doesn't exist", "warning")


# -- what becomes of them -----------------------------------------------------------------------


@both
@pytest.mark.parametrize("leg", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("inner", [(False, False), (True, True)])
async def test_each_leg_has_layers_of_its_own(monkeypatch, settings, leg, inner):
    """The visitor's is keyed with the proxy's secret, the owner's with the token."""
    fields = {"use_encryption": inner[0], "use_compression": inner[1]}
    async with office(monkeypatch, **settings) as o, met(o, work=False, **fields) as (owner, guest):
        work = await owner.bring()
        conn, _ = visit(guest, use_encryption=leg[0], use_compression=leg[1])
        assert await answer(conn) == ""
        near, user = await inside(conn, derive_key(SECRET) if leg[0] else None, leg[1])
        near.write(b"hello " * 100)
        start = await within(work.conn.read(), 5, "StartWorkConn")
        far, service = await inside(work.conn, derive_key(TOKEN) if inner[0] else None, inner[1])
        assert start.proxy_name == "secret"
        assert await service.until_data(600) == b"hello " * 100
        far.write(b"answer")
        assert await user.until_data(6) == b"answer"
        assert len(o.server.bridges) == 1
        near.abort()
        far.abort()
        await until(lambda: not o.server.bridges, "the bridge to close")


@both
async def test_the_answer_is_the_first_thing_that_a_visitor_gets(monkeypatch, settings):
    """And what he says before it is not lost, nor its end."""
    async with office(monkeypatch, **settings) as o, met(o, work=False) as (owner, guest):
        conn, end = visit(guest)
        end.write(b"early")
        end.write_eof()
        assert await answer(conn) == ""
        work = await owner.bring()
        _, service = await work.start()
        await service.until_ended()
        assert service.data == b"early"
        work.end.write(b"answer")
        work.end.write_eof()
        _, user = await inside(conn)
        await user.until_ended()
        assert user.data == b"answer"
        await until(lambda: not o.server.bridges, "the bridge to close")


async def test_the_owner_learns_the_address_of_the_visitors_link(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o, met(o, work=False) as (owner, guest):
        work = await owner.bring()
        conn, end = o.connect()
        address = {"peername": ("192.0.2.7", 4711), "sockname": ("192.0.2.1", 7000)}
        server_end = o.ends[-2]
        monkeypatch.setattr(server_end, "get_extra_info", lambda n, d=None: address.get(n, d))
        now = int(time.time())
        key = auth_key(SECRET, now)
        conn.write(
            NewVisitorConn(run_id=guest.run_id, proxy_name="secret", sign_key=key, timestamp=now)
        )
        assert await answer(conn) == ""
        start, _ = await work.start()
        assert (start.src_addr, start.src_port) == ("192.0.2.7", 4711)
        assert (start.dst_addr, start.dst_port) == ("192.0.2.1", 7000)
        end.abort()


@both
async def test_a_visitor_for_whom_nothing_comes_is_closed_in_time(monkeypatch, settings):
    async with (
        office(monkeypatch, userConnTimeout=1, **settings) as o,
        met(o, work=False) as (_, guest),
    ):
        conn, _ = visit(guest)
        assert await answer(conn) == ""
        with pytest.raises(PeerClosed):
            await within(conn.read(), 5, "the end")
        assert o.log.has("timeout trying to get work connection", "warning")


@both
async def test_visitors_who_wait_are_let_go_when_the_owner_goes(monkeypatch, settings):
    async with office(monkeypatch, **settings) as o, met(o, work=False) as (owner, guest):
        conn, _ = visit(guest)
        assert await answer(conn) == ""
        owner.conn.abort()
        with pytest.raises(PeerClosed):
            await within(conn.read(), 5, "the end")
        conn, _ = visit(guest)
        assert await answer(conn) == "custom listener for [secret] doesn't exist"


async def test_connected_visitors_stay_when_the_proxy_is_closed(monkeypatch):
    async with office(monkeypatch) as o, met(o, work=False) as (owner, guest):
        work = await owner.bring()
        conn, end = visit(guest)
        assert await answer(conn) == ""
        _, service = await work.start()
        owner.conn.write(CloseProxy(proxy_name="secret"))
        await until(lambda: not o.server._proxies, "the proxy to close")
        end.write(b"still here")
        assert await service.until_data(10) == b"still here"
        conn, _ = visit(guest)
        assert await answer(conn) == "custom listener for [secret] doesn't exist"
        end.abort()
        work.end.abort()


async def test_stopping_lets_visitors_finish_and_takes_no_more(monkeypatch):
    async with office(monkeypatch) as o, met(o, work=False) as (owner, guest):
        work = await owner.bring()
        conn, end = visit(guest)
        assert await answer(conn) == ""
        _, service = await work.start()
        stopping = asyncio.get_running_loop().create_task(o.server.stop(10.0))
        await turns()
        late, _ = visit(guest)
        assert "the server is stopping" in await answer(late)
        end.write(b"last words")
        assert await service.until_data(10) == b"last words"
        assert not stopping.done()
        end.abort()
        work.end.abort()
        await within(stopping, 5, "the server to stop")


async def test_a_name_that_is_taken_is_refused_as_with_any_type(monkeypatch):
    async with office(monkeypatch) as o, met(o) as (owner, guest):
        resp = await guest.propose(NewProxy(proxy_name="secret", proxy_type="stcp"))
        assert resp.error == "proxy [secret] already exists"
        # The first one is still there.
        conn, end = visit(guest)
        assert await answer(conn) == ""
        end.abort()
        assert o.log.has("stcp proxy custom listen success", "info")
        assert owner.resp.error == ""


# -- datagrams ----------------------------------------------------------------------------------


@both
async def test_datagrams_pass_as_any_bytes_do(monkeypatch, settings):
    """Messages are between the clients: the server reads none of them."""
    async with (
        office(monkeypatch, **settings) as o,
        met(o, work=False, proxy_type="sudp", use_encryption=True) as (owner, guest),
    ):
        assert o.log.has("sudp proxy custom listen success", "info")
        work = await owner.bring()
        conn, _ = visit(guest, use_compression=True)
        assert await answer(conn) == ""
        near, user = await inside(conn, None, compress=True)
        near.write(b"any bytes")
        await within(work.conn.read(), 5, "StartWorkConn")
        far, service = await inside(work.conn, derive_key(TOKEN))
        assert await service.until_data(9) == b"any bytes"
        far.write(b"and back")
        assert await user.until_data(8) == b"and back"
        conn, _ = visit(guest, secret="guess")
        assert await answer(conn) == "visitor connection of [secret] auth failed"
        near.abort()
        far.abort()
        await until(lambda: not o.server.bridges, "the bridge to close")


async def test_a_server_that_stops_does_not_wait_for_the_end_of_datagrams(monkeypatch):
    async with (
        office(monkeypatch) as o,
        met(o, work=False, proxy_type="sudp") as (owner, guest),
    ):
        work = await owner.bring()
        conn, _ = visit(guest)
        assert await answer(conn) == ""
        _, service = await work.start()
        _, user = await inside(conn)
        await until(lambda: o.server.bridges, "the bridge")
        await within(o.server.stop(60.0), 5, "the server to stop")
        assert service.ends or service.lost
        assert user.ends or user.lost
