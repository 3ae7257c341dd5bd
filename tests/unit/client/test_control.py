"""One session with a server: proxies, work connections, heartbeats, and its end."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager

import pytest

from pyfrp.auth.token import auth_key
from pyfrp.client import control as module
from pyfrp.client.proxies import base
from pyfrp.client.proxies.base import Phase
from pyfrp.errors import AuthError, DialError, IdleTimeout, LinkError, PeerClosed
from pyfrp.net.held import Held
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import (
    CloseProxy,
    LoginResp,
    NewProxy,
    NewProxyResp,
    Ping,
    Pong,
    ReqWorkConn,
    StartWorkConn,
)
from tests.support.waiting import until, within
from tests.unit.client.scene import TOKEN, http, session, tcp
from tests.unit.net.ends import Reader, memory_pair, turns


@asynccontextmanager
async def service(answer=None):
    """A local service: echoes, or does what `answer(reader, writer)` does. Its port."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            if answer is not None:
                await answer(reader, writer)
            else:
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass  # The far end left first.
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if tasks:
            await within(asyncio.wait(tasks), 10, "the service's connections to end")


def nobody():
    """A port where nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def start(s, name="ssh", **fields):
    """Have a work connection started for a proxy; the raw endpoint and its reader."""
    conn = await s.request()
    conn.write(StartWorkConn(proxy_name=name, src_addr="203.0.113.9", src_port=1, **fields))
    endpoint, early = conn.detach()
    reader = Reader()
    endpoint.set_protocol(reader)
    if early:
        reader.data_received(early)
    endpoint.resume_reading()
    return endpoint, reader


# -- proxies ------------------------------------------------------------------------------------


async def test_every_proxy_is_asked_for_at_once():
    async with session(tcp("a", 1), tcp("b", 2), tcp("c", 3)) as s:
        asked = [await s.read() for _ in range(3)]
        assert [msg.proxy_name for msg in asked] == ["a", "b", "c"]
        assert all(isinstance(msg, NewProxy) for msg in asked)
        await turns()
        assert {p.phase for p in s.proxies} == {Phase.WAIT_START}


async def test_a_session_without_proxies_waits_for_some():
    async with session() as s:
        await turns()
        assert not s.task.done()


async def test_answers_reach_their_proxy():
    async with session(tcp("a", 1), tcp("b", 2)) as s:
        await s.read()
        await s.read()
        s.server.write(NewProxyResp(proxy_name="b", error="port already used"))
        s.server.write(NewProxyResp(proxy_name="a", remote_addr=":6000"))
        s.server.write(NewProxyResp(proxy_name="stranger", remote_addr=":1"))
        await turns()
        assert [p.phase for p in s.proxies] == [Phase.RUNNING, Phase.START_ERROR]
        assert s.proxies[1].error == "port already used"


async def test_a_refused_proxy_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(base, "RETRY_S", 0.03)
    async with session(tcp("a", 1)) as s:
        for attempt in range(3):
            assert (await s.read()).proxy_name == "a"
            s.server.write(NewProxyResp(proxy_name="a", error=f"no {attempt}"))
        await s.accept("a")
        assert s.proxies[0].phase is Phase.RUNNING


async def test_an_unanswered_proxy_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(base, "ANSWER_S", 0.03)
    async with session(tcp("a", 1), tcp("b", 2)) as s:
        names = [(await s.read()).proxy_name for _ in range(4)]
        assert sorted(names) == ["a", "a", "b", "b"]


async def test_a_proxy_too_long_for_the_protocol_is_told_so_and_hurts_no_other():
    long = tcp("long", 1, metadatas={f"key{n}": "x" * 500 for n in range(30)})
    async with session(long, tcp("fine", 2)) as s:
        assert (await s.read()).proxy_name == "fine"
        assert s.proxies[0].phase is Phase.START_ERROR
        assert "too long" in s.proxies[0].error


async def test_a_new_session_asks_for_everything_anew():
    async with session(tcp("a", 1)) as s:
        await s.accept("a")
        assert s.proxies[0].phase is Phase.RUNNING
        s.proxies[0].reset(s.log)
        assert s.proxies[0].phase is Phase.NEW


# -- work connections ---------------------------------------------------------------------------


async def test_a_user_is_joined_with_the_local_service():
    async with service() as port, session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        endpoint, reader = await start(s)
        endpoint.write(b"hello")
        assert await reader.until_data(5) == b"hello"
        endpoint.write_eof()
        await reader.until_ended()
        assert reader.data == b"hello"
        await until(lambda: not s.control.bridges, "the bridge to close")


@pytest.mark.parametrize(
    ("start_fields", "header"),
    [
        (
            {"src_addr": "192.0.2.7", "src_port": 4321, "dst_addr": "192.0.2.1", "dst_port": 6000},
            b"PROXY TCP4 192.0.2.7 192.0.2.1 4321 6000\r\n",
        ),
        # As frp's server does for http proxies.
        (
            {"src_addr": "192.0.2.7", "src_port": 4321},
            b"PROXY TCP4 192.0.2.7 127.0.0.1 4321 0\r\n",
        ),
        ({}, b""),
    ],
)
async def test_the_service_is_told_who_calls(start_fields, header):
    proxy = tcp("ssh", 0, transport={"proxyProtocolVersion": "v1"})
    async with service() as port, session({**proxy, "localPort": port}) as s:
        await s.accept("ssh")
        conn = await s.request()
        conn.write(StartWorkConn(proxy_name="ssh", **start_fields))
        endpoint, _ = conn.detach()
        endpoint.write(b"hello")
        reader = Reader()
        endpoint.set_protocol(reader)
        endpoint.resume_reading()
        assert await reader.until_data(len(header) + 5) == header + b"hello"
        endpoint.write_eof()
        await reader.until_ended()


async def test_no_user_passes_for_a_header_when_the_address_is_none():
    proxy = tcp("ssh", 0, transport={"proxyProtocolVersion": "v2"})
    async with service() as port, session({**proxy, "localPort": port}) as s:
        await s.accept("ssh")
        conn = await s.request()
        conn.write(StartWorkConn(proxy_name="ssh", src_addr="nobody", src_port=1))
        endpoint, _ = conn.detach()
        endpoint.write(b"PROXY TCP4 198.51.100.1 198.51.100.2 1 2\r\n")
        reader = Reader()
        endpoint.set_protocol(reader)
        endpoint.resume_reading()
        await reader.until_ended()
        assert reader.data == b""
        assert any("no PROXY header" in event for event in s.log.events("error"))


async def test_bytes_and_the_end_that_come_with_the_start_are_not_lost():
    """All a user had to say may be there before the client has dialled."""
    async with service() as port, session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        conn = await s.request()
        conn.write(StartWorkConn(proxy_name="ssh"))
        endpoint, _ = conn.detach()
        endpoint.write(b"all of it")
        endpoint.write_eof()
        reader = Reader()
        endpoint.set_protocol(reader)
        endpoint.resume_reading()
        await reader.until_ended()
        assert reader.data == b"all of it"


async def test_a_service_that_speaks_first_is_heard():
    async def greet(reader, writer):
        writer.write(b"220 hello\r\n")
        writer.write_eof()
        await reader.read()

    async with service(greet) as port, session(tcp("smtp", port)) as s:
        await s.accept("smtp")
        endpoint, reader = await start(s, "smtp")
        await reader.until_ended()
        assert reader.data == b"220 hello\r\n"
        endpoint.write_eof()
        await until(lambda: not s.control.bridges, "the bridge to close")


@pytest.mark.parametrize(("encrypt", "compress"), [(True, False), (False, True), (True, True)])
async def test_the_payload_is_as_the_file_says(encrypt, compress):
    transport = {"useEncryption": encrypt, "useCompression": compress}
    async with service() as port, session(tcp("ssh", port, transport=transport)) as s:
        msg = await s.read()
        assert (msg.use_encryption, msg.use_compression) == (encrypt, compress)
        s.server.write(NewProxyResp(proxy_name="ssh", remote_addr=":1"))
        conn = await s.request()
        conn.write(StartWorkConn(proxy_name="ssh"))
        endpoint, early = conn.detach()
        key = derive_key(TOKEN) if encrypt else None
        plain, _ = wrap_payload(endpoint, early, key=key, compress=compress)
        reader = Reader()
        plain.set_protocol(reader)
        plain.resume_reading()
        plain.write(b"hello " * 100)
        assert await reader.until_data(600) == b"hello " * 100
        plain.abort()


async def test_a_service_that_refuses_closes_the_work_connection_and_is_named():
    port = nobody()
    async with session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        _, reader = await start(s)
        await reader.until_ended()
        assert s.log.has(f"connect to local service [127.0.0.1:{port}] error: ", "error")
        assert s.log.has("connection refused", "error")


async def test_a_service_that_goes_on_refusing_is_not_named_for_each_user():
    port = nobody()
    async with session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        for _ in range(5):
            _, reader = await start(s)
            await reader.until_ended()
        assert sum("connect to local service" in text for _, text, _ in s.log.lines) == 1


async def test_a_user_who_leaves_during_the_dial_leaves_nothing_behind(monkeypatch):
    gate = asyncio.Event()
    real = base.dial_tcp

    async def slow(*args, **kw):
        await gate.wait()
        return await real(*args, **kw)

    monkeypatch.setattr(base, "dial_tcp", slow)
    async with service() as port, session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        endpoint, _ = await start(s)
        await turns()
        endpoint.abort()
        await turns()
        gate.set()
        await until(lambda: len(s.control._scope) == 1, "the work connection to end")
        await until(lambda: not s.control.bridges, "the bridge to close")


@pytest.mark.parametrize("name", ["stranger", ""])
async def test_a_start_for_nobody_closes_without_a_word(name):
    async with session(tcp("ssh", 1)) as s:
        await s.accept("ssh")
        _, reader = await start(s, name)
        await reader.until_ended()
        assert not s.log.events("error")


async def test_a_start_for_a_proxy_that_does_not_run_closes_without_a_word():
    async with session(tcp("ssh", 1)) as s:
        await s.read()
        _, reader = await start(s)
        await reader.until_ended()
        assert not s.log.events("error")


async def test_a_start_with_an_error_is_logged_and_closed():
    async with session(tcp("ssh", 1)) as s:
        await s.accept("ssh")
        _, reader = await start(s, error="token in NewWorkConn doesn't match")
        await reader.until_ended()
        assert s.log.has("StartWorkConn contains error: token in NewWorkConn", "error")


@pytest.mark.parametrize("what", ["nonsense", "other message", "close", "abort"])
async def test_a_work_connection_that_goes_wrong_costs_only_itself(what):
    async with service() as port, session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        conn = await s.request()
        if what == "nonsense":
            conn.endpoint.write(b"\x00" * 20)
        elif what == "other message":
            conn.write(LoginResp())
        elif what == "close":
            conn.close()
        else:
            conn.abort()
        await turns()
        endpoint, reader = await start(s)
        endpoint.write(b"fine")
        assert await reader.until_data(4) == b"fine"
        endpoint.abort()


async def test_work_connections_carry_a_key_where_the_scope_asks_for_it():
    async with session(tcp("ssh", 1), scopes=["NewWorkConns"]) as s:
        await s.accept("ssh")
        await s.request()
        now = s.introduced.timestamp
        assert abs(now - time.time()) < 60
        assert s.introduced.privilege_key == auth_key(TOKEN, now)
        assert s.introduced.run_id == "run-1"
    async with session(tcp("ssh", 1)) as s:
        await s.accept("ssh")
        await s.request()
        assert (s.introduced.privilege_key, s.introduced.timestamp) == ("", 0)


async def test_a_flood_of_requests_is_answered_in_order_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "MAX_OPENING", 4)
    async with session(tcp("ssh", 1)) as s:
        await s.accept("ssh")
        for _ in range(50):
            s.server.write(ReqWorkConn())
        await until(lambda: len(s.connector.opened) == 50, "all work connections")


async def test_a_server_that_cannot_be_dialled_for_a_work_connection_is_not_left():
    async with session(tcp("ssh", 1)) as s:
        await s.accept("ssh")
        s.connector.refusal = DialError("refused")
        for _ in range(50):
            s.server.write(ReqWorkConn())
        await turns()
        assert not s.task.done()
        # Callers get no answer, so it is told; but not for each of them.
        assert s.log.events("warning") == ["start new connection to server error: refused"]


async def test_a_link_that_opens_no_more_connections_is_left():
    async with session(tcp("ssh", 1)) as s:
        await s.accept("ssh")
        s.connector.refusal = PeerClosed("this mux session opens no more streams")
        s.server.write(ReqWorkConn())
        assert "no more streams" in str(await s.over())


# -- heartbeats ---------------------------------------------------------------------------------


async def test_the_first_ping_goes_out_at_once_and_the_next_after_the_interval():
    async with session(interval_s=0.02) as s:
        assert [await s.read() for _ in range(3)] == [Ping()] * 3


async def test_without_an_interval_nobody_pings():
    async with session(interval_s=-1.0, timeout_s=0.01) as s:
        await turns(50)
        assert s.far.unread == 0
        assert not s.task.done()


async def test_pings_carry_a_key_where_the_scope_asks_for_it():
    async with session(interval_s=30.0, scopes=["HeartBeats"]) as s:
        ping = await s.read()
        assert ping.privilege_key == auth_key(TOKEN, ping.timestamp)


class Provided:
    """What is shown to the server, as long as there is any."""

    def __init__(self):
        self.token = ""
        self.asked = 0
        self.refusals = 0

    async def _show(self, now):
        self.asked += 1
        if not self.token:
            raise AuthError("no token today")
        return self.token, 0

    login_fields = ping_fields = work_conn_fields = _show

    def refused(self):
        self.refusals += 1


async def test_heartbeats_with_nothing_to_show_are_left_out_and_end_no_session(monkeypatch):
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.01)
    auth = Provided()
    async with session(auth=auth, interval_s=0.05, timeout_s=0.08) as s:
        await until(lambda: auth.asked > 6, "some attempts")
        assert not s.task.done()
        words = "error during ping authentication: no token today, skip sending ping message"
        assert s.log.has(words, "warning")
        auth.token = "today's"
        assert await s.read() == Ping(privilege_key="today's")
        assert "nothing came from the server" in str(await s.over())


async def test_work_connections_with_nothing_to_show_are_not_brought():
    auth = Provided()
    async with session(auth=auth) as s:
        s.server.write(ReqWorkConn())
        await until(lambda: auth.asked, "the request to be met")
        await turns()
        assert s.connector.opened == []
        assert s.log.has("error during NewWorkConn authentication: no token today", "warning")
        auth.token = "today's"
        conn = await s.request()
        assert s.introduced.privilege_key == "today's"
        assert auth.refusals == 0
        conn.write(StartWorkConn(error="received different OIDC subject"))
        await until(lambda: auth.refusals, "the refusal to be told")


async def test_a_server_that_does_not_answer_is_left():
    async with session(interval_s=0.01, timeout_s=0.05) as s:
        cause = await s.over()
        assert isinstance(cause, IdleTimeout)
        assert s.log.has("heartbeat timeout", "warning")


async def test_a_server_that_answers_stays_where_the_timeout_is_the_interval():
    async with session(interval_s=0.02, timeout_s=0.02) as s:
        for _ in range(5):
            assert await s.read() == Ping()
            s.server.write(Pong())
        assert not s.task.done()


@pytest.mark.parametrize("where", ["here", "elsewhere on the link"])
async def test_any_byte_of_the_server_counts_as_life(where):
    async with session(interval_s=0.01, timeout_s=100.0) as s:
        now = s.control._clock()
        s.control._clock = lambda: now
        for _ in range(5):
            await s.read()
            now += 60
            if where == "here":
                s.server.write(Pong())
                await until(lambda at=now: s.control._heard == at, "the pong")
            else:
                s.connector.when = now
        assert not s.task.done()
        now += 101
        assert isinstance(await s.over(), IdleTimeout)


async def test_a_pong_with_an_error_ends_the_session():
    auth = Provided()
    auth.token = "of yesterday"
    async with session(auth=auth, interval_s=30.0) as s:
        await s.read()
        s.server.write(Pong(error="invalid authentication"))
        assert "invalid authentication" in str(await s.over())
        assert s.log.has("pong message contains error: invalid authentication", "error")
        assert auth.refusals == 1  # The next login shows another one.


# -- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "abort", "nonsense", "end"])
async def test_the_session_ends_with_its_connection_and_says_why(how):
    async with service() as port, session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        endpoint, reader = await start(s)
        endpoint.write(b"x")
        await reader.until_data(1)
        waiting = await s.request()
        if how == "close":
            s.server.close()
        elif how == "abort":
            s.server.abort()
        elif how == "nonsense":
            s.far.write(b"\x00" * 20)
        else:
            s.control.end(LinkError("our choice"))
        cause = await s.over()
        assert str(cause)
        if how == "end":
            assert str(cause) == "our choice"
        # Everything of it is gone with it.
        assert await reader.until_lost() is not None
        with pytest.raises(PeerClosed):
            await within(waiting.read(), 5, "the end of what waited")


async def test_the_first_cause_is_the_one_that_is_told():
    async with session() as s:
        s.control.end(LinkError("first"))
        s.control.end(LinkError("second"))
        assert str(await s.over()) == "first"


async def test_draining_withdraws_the_proxies_and_waits_for_users():
    async with service() as port, session(tcp("ssh", port), tcp("new", 1), tcp("bad", 1)) as s:
        msgs = [await s.read() for _ in range(3)]
        assert len(msgs) == 3
        s.server.write(NewProxyResp(proxy_name="ssh", remote_addr=":1"))
        s.server.write(NewProxyResp(proxy_name="bad", error="port already used"))
        await turns()
        endpoint, reader = await start(s)
        endpoint.write(b"x")
        await reader.until_data(1)
        draining = asyncio.get_running_loop().create_task(s.control.drain())
        # Also what the server has not answered yet, as it will have users, too.
        assert await s.read() == CloseProxy(proxy_name="ssh")
        assert await s.read() == CloseProxy(proxy_name="new")
        assert not draining.done()
        endpoint.write(b"y")
        assert await reader.until_data(2) == b"xy"
        endpoint.close()
        await within(draining, 5, "the drain")
        assert s.far.unread == 0


async def test_a_drain_serves_who_came_before_the_server_read_of_it():
    async with service() as port, session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        first, reader = await start(s)
        first.write(b"x")
        await reader.until_data(1)
        early = await s.request()  # Asked for before ...
        draining = asyncio.get_running_loop().create_task(s.control.drain())
        assert await s.read() == CloseProxy(proxy_name="ssh")
        late = await s.request()  # ... and after.
        for conn in (early, late):
            conn.write(StartWorkConn(proxy_name="ssh", src_addr="203.0.113.9", src_port=1))
            endpoint, _ = conn.detach()
            reader = Reader()
            endpoint.set_protocol(reader)
            endpoint.resume_reading()
            endpoint.write(b"x")
            await reader.until_data(1)
            endpoint.close()
        assert not draining.done()
        first.close()
        await within(draining, 5, "the drain")


async def test_a_drain_ends_with_the_session():
    async with service() as port, session(tcp("ssh", port)) as s:
        await s.accept("ssh")
        endpoint, reader = await start(s)
        endpoint.write(b"x")
        await reader.until_data(1)
        draining = asyncio.get_running_loop().create_task(s.control.drain())
        await turns()
        s.server.abort()
        await within(draining, 5, "the drain")


REQUEST = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: 1\n\n\r\n"
LAST = b"0\r\n\r\n"


@asynccontextmanager
async def draining(monkeypatch, proxy):
    """A draining session with one user: the ends at the server and at the service, and its clock.

    `pass_s` waits until the drain has looked at the bridges again, so much later.
    """
    ours, local = memory_pair()
    ours.pause_reading()
    now = 0.0
    looked = asyncio.Event()

    async def dial(*args, **kw):
        return ours, Held()

    def clock():
        looked.set()
        return now

    async def pass_s(seconds):
        nonlocal now
        await turns()
        now += seconds
        looked.clear()
        await within(looked.wait(), 5, "a look at the bridges")
        await turns()

    monkeypatch.setattr(base, "dial_tcp", dial)
    monkeypatch.setattr(module, "SAMPLE_S", 0.001)
    async with session(proxy) as s:
        await s.accept(proxy["name"])
        endpoint, _ = await start(s, proxy["name"])
        await until(lambda: s.control.bridges, "the bridge")
        s.control._clock = clock
        task = asyncio.get_running_loop().create_task(s.control.drain())
        await pass_s(0)
        yield endpoint, local, pass_s, task
        endpoint.abort()
        await within(task, 5, "the drain")


async def test_a_drain_closes_what_an_http_server_keeps_for_more_requests(monkeypatch):
    async with draining(monkeypatch, http("web", 1)) as (server, local, pass_s, task):
        server.write(REQUEST)
        await pass_s(module.REST_S)
        local.write(ANSWER + LAST)
        await pass_s(0)  # The first look at so many bytes: the silence counts from here.
        await pass_s(module.REST_S / 2)
        assert not task.done()
        await pass_s(module.REST_S / 2)
        await within(task, 5, "the drain")


async def test_a_drain_lets_a_model_take_its_time(monkeypatch):
    """Before its answer, after the head of it, and between tokens."""
    async with draining(monkeypatch, http("web", 1)) as (server, local, pass_s, task):
        for who, data in (
            (server, REQUEST),
            (local, ANSWER),
            (local, EVENT),
            (local, LAST),
            (server, REQUEST),
            (local, ANSWER + EVENT),
        ):
            who.write(data)
            await pass_s(module.REST_S / 2)
            if data is not LAST:
                await pass_s(10 * module.REST_S)
                await pass_s(10 * module.REST_S)
        assert not task.done()


async def test_a_drain_leaves_a_silent_tcp_connection_to_its_user(monkeypatch):
    async with draining(monkeypatch, tcp("ssh", 1)) as (server, local, pass_s, task):
        server.write(REQUEST)
        await pass_s(1)
        local.write(ANSWER + LAST)
        for _ in range(3):
            await pass_s(10 * module.REST_S)
        assert not task.done()


async def test_a_server_that_never_reads_is_left(monkeypatch):
    monkeypatch.setattr(module, "DRAIN_S", 0.05)
    monkeypatch.setattr(base, "ANSWER_S", 0.0)
    async with session(*[tcp(f"p{n}", 1) for n in range(50)]) as s:
        s.near.high = 1000
        cause = await s.over()
        assert "does not read" in str(cause)


async def test_messages_that_mean_nothing_here_are_ignored():
    async with session(tcp("ssh", 1)) as s:
        for msg in (LoginResp(), NewProxy(proxy_name="x"), StartWorkConn(), Ping()):
            s.server.write(msg)
        await s.accept("ssh")
        assert s.proxies[0].phase is Phase.RUNNING
