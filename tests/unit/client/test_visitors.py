"""The client's visitors: ports of its own behind which are services of other clients."""

from __future__ import annotations

import asyncio
import socket

import pytest

from pyfrp.auth.token import key_matches
from pyfrp.client.visitors import base, keeper
from pyfrp.errors import DialError, LinkError, PeerClosed
from pyfrp.net.conn import MessageConn
from pyfrp.net.held import Held
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import LoginResp, NewVisitorConn, NewVisitorConnResp
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.client.scene import Session, session
from tests.unit.client.test_control import service
from tests.unit.client.test_service import client_of, quick, running, serving
from tests.unit.net.ends import Reader, memory_pair, turns
from tests.unit.server.test_proxies import come

__all__ = ["quick"]  # A fixture.

SECRET = "spec-secret"


def visitor(port, name="v", **more):
    return {
        "name": name,
        "type": "stcp",
        "serverName": "db",
        "serverUser": "alice",
        "secretKey": SECRET,
        "bindPort": port,
        **more,
    }


async def knocked(s: Session, count: int = 1) -> tuple[MessageConn, NewVisitorConn]:
    """The server's end of the latest of `count` visits, its first message read."""
    await until(lambda: len(s.connector.opened) >= count, "a visitor connection")
    conn = MessageConn(s.connector.opened[count - 1])
    msg = await within(conn.read(), 5, "NewVisitorConn")
    assert isinstance(msg, NewVisitorConn)
    return conn, msg


async def started(s: Session, count: int = 1) -> None:
    await until(
        lambda: s.log.events().count("start visitor success") == count, "the visitor to start"
    )


async def let_go(user) -> None:
    try:
        assert await within(user.receive(), 5, "the end") == b""
    except ConnectionResetError:
        pass  # As good an end.
    user.close()


# -- the way to the service -----------------------------------------------------------------------


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("compress", [False, True])
async def test_a_user_reaches_the_proxy_of_another_client(encrypt, compress):
    port = free_port()
    layers = {"useEncryption": encrypt, "useCompression": compress}
    async with session(visitors=[visitor(port, transport=layers)]) as s:
        await started(s)
        user = await come(port)
        await user.send(b"hello " * 100)
        conn, msg = await knocked(s)
        assert (msg.run_id, msg.proxy_name) == ("run-1", "alice.db")
        assert key_matches(SECRET, msg.timestamp, msg.sign_key)
        assert (msg.use_encryption, msg.use_compression) == (encrypt, compress)
        conn.write(NewVisitorConnResp(proxy_name="alice.db"))
        endpoint, early = conn.detach()
        key = derive_key(SECRET) if encrypt else None
        plain, early = wrap_payload(endpoint, early, key=key, compress=compress)
        reader = Reader()
        plain.set_protocol(reader)
        plain.resume_reading()
        assert await reader.until_data(600) == b"hello " * 100
        user.end()
        await reader.until_ended()
        plain.write(b"answer after the end")
        plain.write_eof()
        assert await user.receive_all() == b"answer after the end"
        user.close()
        await until(lambda: not s.control.bridges, "the bridge to close")
        assert SECRET not in repr(s.log.lines)


async def test_without_an_owner_the_proxy_is_our_own_users():
    port = free_port()
    async with session(visitors=[visitor(port, serverUser="")]) as s:
        await started(s)
        user = await come(port)
        _, msg = await knocked(s)
        assert msg.proxy_name == "bob.db"
        user.close()


async def test_bytes_behind_the_answer_belong_to_the_user():
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        user = await come(port)
        conn, _ = await knocked(s)
        conn.write(NewVisitorConnResp())
        conn.endpoint.write(b"banner")
        assert await user.receive_exactly(6) == b"banner"
        user.close()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            NewVisitorConnResp(error="visitor connection of [alice.db] auth failed"),
            "start new visitor connection error: visitor connection of [alice.db] auth failed",
        ),
        (LoginResp(), "start new visitor connection error: the server answered with LoginResp"),
        (b"\xff" * 9, "start new visitor connection error: "),
        (None, "start new visitor connection error: the peer closed the connection"),
    ],
    ids=["refused", "other message", "garbage", "closed"],
)
async def test_a_user_is_let_go_when_the_server_does_not_admit_him(reply, words):
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        user = await come(port)
        conn, _ = await knocked(s)
        if isinstance(reply, bytes):
            conn.endpoint.write(reply)
        elif reply is not None:
            conn.write(reply)
        else:
            conn.close()
        await let_go(user)
        assert s.log.has(words, "warning")
        # The next one is served.
        user = await come(port)
        conn, _ = await knocked(s, 2)
        conn.write(NewVisitorConnResp())
        conn.endpoint.write(b"hello")
        assert await user.receive_exactly(5) == b"hello"
        user.close()


async def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(base, "ANSWER_S", 0.05)
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        user = await come(port)
        await knocked(s)
        await let_go(user)
        assert s.log.has("no answer of the server within 0.05 s", "warning")


async def test_a_server_that_cannot_be_dialled_costs_the_user_only():
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        s.connector.refusal = DialError("connection refused")
        await let_go(await come(port))
        assert s.log.has("start new visitor connection error: connection refused", "warning")
        assert s.task is not None
        assert not s.task.done()


async def test_a_link_without_room_for_visits_ends_the_session():
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        s.connector.refusal = PeerClosed("the link is lost")
        await let_go(await come(port))
        assert str(await s.over()) == "the link is lost"


async def test_a_name_too_long_for_the_protocol_is_said():
    port = free_port()
    async with session(visitors=[visitor(port, serverName="n" * 20_000)]) as s:
        await started(s)
        await let_go(await come(port))
        assert s.log.has("start new visitor connection error: ", "warning")


async def test_a_user_who_left_while_he_waited_takes_his_visit_along():
    async with session(visitors=[visitor(-1)]) as s:
        await started(s)
        user, far = memory_pair()
        user.pause_reading()
        s.visitors[0].accept(user, Held())
        conn, _ = await knocked(s)
        user.abort()
        conn.write(NewVisitorConnResp())
        with pytest.raises(PeerClosed):
            await within(conn.read(), 5, "the end")
        assert not s.control.bridges
        far.abort()


# -- its life -------------------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_tried_again(monkeypatch):
    monkeypatch.setattr(keeper, "RETRY_S", 0.02)
    taken, free = free_port(), free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        other.listen()
        async with session(visitors=[visitor(taken, "a"), visitor(free, "b")]) as s:
            await started(s)  # The other one is not held up.
            assert s.log.has(f"start error: listen tcp 127.0.0.1:{taken}: bind: addr", "warning")
            other.close()
            await started(s, 2)
            user = await come(taken)
            await knocked(s)
            user.close()


async def test_an_address_that_is_nobodys_is_said():
    async with session(visitors=[visitor(free_port(), bindAddr="no.such.host.invalid")]) as s:
        await until(lambda: s.log.has("start error: listen tcp no.such.host.invalid"), "the error")


async def test_the_port_goes_with_the_session():
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        waiting = await come(port)
        await knocked(s)
        s.server.abort()
        await s.over()
        await let_go(waiting)
        with pytest.raises(ConnectionRefusedError):
            await come(port)


async def test_draining_closes_the_port_and_lets_users_finish():
    port = free_port()
    async with session(visitors=[visitor(port)]) as s:
        await started(s)
        user = await come(port)
        conn, _ = await knocked(s)
        conn.write(NewVisitorConnResp())
        await until(lambda: s.control.bridges, "the bridge")
        draining = asyncio.get_running_loop().create_task(s.control.drain())
        await turns()
        with pytest.raises(ConnectionRefusedError):
            await come(port)
        conn.endpoint.write(b"last words")
        assert await user.receive_exactly(10) == b"last words"
        assert not draining.done()
        user.close()
        conn.abort()
        await within(draining, 5, "the end of the draining")


async def test_a_visitor_that_is_still_tried_is_given_up_with_the_session(monkeypatch):
    monkeypatch.setattr(keeper, "RETRY_S", 0.02)
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        async with session(visitors=[visitor(port)]) as s:
            await until(lambda: s.log.has("start error"), "the failure")
            s.control.end(LinkError("over"))
            await s.over()
    with pytest.raises(ConnectionRefusedError):
        await come(port)


async def test_one_without_a_port_serves_the_users_of_others():
    async with session(visitors=[visitor(-1)]) as s:
        await started(s)
        user, far = memory_pair()
        user.pause_reading()
        reader = Reader()
        far.set_protocol(reader)
        s.control.hand_over("bob.v", user, Held(early=b"early"))
        conn, _ = await knocked(s)
        conn.write(NewVisitorConnResp())
        endpoint, early = conn.detach()
        service = Reader()
        endpoint.set_protocol(service)
        endpoint.resume_reading()
        assert await service.until_data(5) == b"early"
        endpoint.write(b"answer")
        assert await reader.until_data(6) == b"answer"
        assert early == b""
        far.abort()


async def test_a_user_for_whom_there_is_no_visitor_is_let_go():
    async with session(visitors=[visitor(-1)]) as s, session() as without:
        await started(s)
        for control in (s.control, without.control):
            user, far = memory_pair()
            control.hand_over("bob.other", user, Held())
            assert user.is_closing()
            far.abort()
        s.visitors[0].stop()
        user, far = memory_pair()
        s.control.hand_over("bob.v", user, Held())
        assert user.is_closing()
        far.abort()


# -- both sides, and the server -------------------------------------------------------------------


@pytest.mark.parametrize("mux", [True, False])
async def test_two_clients_meet_again_after_the_server_was_away(loop_kind, quick, mux, monkeypatch):
    port, local = free_port(), free_port()
    layers = {"useEncryption": True, "useCompression": True}
    offered = {"name": "db", "type": "stcp", "secretKey": SECRET, "allowUsers": ["bob"]}
    async with service() as backend:
        offered["localPort"] = backend
        link = {"mux": mux, "loginFailExit": False}
        owner = client_of(port, user="alice", proxies=[offered], **link)
        guest = client_of(port, user="bob", visitors=[visitor(local, transport=layers)], **link)

        async def served() -> None:
            user = await come(local)
            await user.send(b"x" * 100_000)
            assert await within(user.receive_exactly(100_000), 10, "the echo") == b"x" * 100_000
            user.close()

        async def ready(server, logins) -> None:
            await until(lambda: len(server.visitors) == 1, "the proxy")
            await until(lambda: quick.events().count("start visitor success") == logins, "a port")

        async with running(owner), running(guest):
            async with serving(port, mux=mux) as server:
                await ready(server, 1)
                assert quick.has("visitor added: [bob.v]", "info")
                await served()
                await until(lambda: not server.bridges, "the bridges to close")
            async with serving(port, mux=mux) as server:
                await ready(server, 2)
                await served()
                await until(lambda: not server.bridges, "the bridges to close")
