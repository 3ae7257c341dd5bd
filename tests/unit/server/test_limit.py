"""Bandwidth limits that a client asks the server to keep."""

from __future__ import annotations

import asyncio

import pytest

from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import CloseProxy, StartWorkConn
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, turns
from tests.unit.server.scene import DIRECT, TOKEN, office
from tests.unit.server.test_proxies import HTTP, ask, come
from tests.unit.server.test_visitors import answer as visited
from tests.unit.server.test_visitors import inside, met, visit
from tests.unit.vhost.scene import answer, get, split_answers

SERVER = {"bandwidth_limit_mode": "server"}
# A kilobyte per second: what is beyond the first one comes while the test looks, or not at all.
SLOW = {"bandwidth_limit": "1KB", **SERVER}


@pytest.mark.parametrize(
    ("limit", "mode", "error"),
    [
        ("1MB", "both", "bandwidth limit mode should be client or server"),
        ("", "SERVER", "bandwidth limit mode should be client or server"),
        ("1mb", "server", "unit not support"),
        ("1", "server", "unit not support"),
        ("xMB", "server", 'strconv.ParseFloat: parsing "x": invalid syntax'),
    ],
)
async def test_a_limit_that_cannot_be_kept_is_refused_in_frps_words(
    monkeypatch, limit, mode, error
):
    async with office(monkeypatch) as o:
        peer = await o.login()
        fields = {"bandwidth_limit": limit, "bandwidth_limit_mode": mode}
        assert (await peer.tcp("ssh", free_port(), **fields)).error == error
        # The name is free again.
        assert not (await peer.tcp("ssh", free_port())).error


@pytest.mark.parametrize(
    ("limit", "mode"),
    [
        ("1MB", ""),
        ("1MB", "client"),
        ("nonsense", ""),  # It is the client's to keep.
        ("", "server"),
        ("0MB", "server"),
        ("-1MB", "server"),
    ],
)
async def test_what_asks_for_no_limit_here_has_none(monkeypatch, limit, mode):
    async with office(monkeypatch) as o:
        peer = await o.login()
        fields = {"bandwidth_limit": limit, "bandwidth_limit_mode": mode}
        assert not (await peer.tcp("ssh", free_port(), **fields)).error
        assert o.server._proxies["ssh"]._limiter is None


@pytest.mark.parametrize("settings", [{}, DIRECT], ids=["mux", "direct"])
@pytest.mark.parametrize("layers", [False, True], ids=["plain", "layers"])
async def test_users_of_a_proxy_share_its_limit_in_both_directions(monkeypatch, settings, layers):
    async with office(monkeypatch, **settings) as o:
        port = free_port()
        peer = await o.login()
        wrapped = {"use_encryption": layers, "use_compression": layers}
        await peer.tcp("ssh", port, bandwidth_limit="50KB", **SERVER, **wrapped)
        users, ends = [], []
        for _ in range(2):
            work = await peer.bring()
            user = await come(port)
            users.append(user)
            assert isinstance(await within(work.conn.read(), 5, "the start"), StartWorkConn)
            key = derive_key(TOKEN) if layers else None
            end, _ = wrap_payload(*work.conn.detach(), key=key, compress=layers)
            reader = Reader()
            end.set_protocol(reader)
            end.resume_reading()
            ends.append((end, reader))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await users[0].send(bytes(40_000))
        ends[1][0].write(bytes(25_000))
        await ends[0][1].until_data(40_000)
        await users[1].receive_exactly(25_000)
        assert loop.time() - began >= (65_000 - 51_200) / 51_200 * 0.95
        for user, (end, _) in zip(users, ends, strict=True):
            user.close()
            end.abort()
        await until(lambda: not o.server.bridges, "the bridges to close")


@pytest.mark.parametrize("kind", ["stcp", "sudp"])
@pytest.mark.parametrize("settings", [{}, DIRECT], ids=["mux", "direct"])
async def test_visitors_of_a_secret_proxy_share_its_limit(monkeypatch, settings, kind):
    limit = {"proxy_type": kind, "bandwidth_limit": "50KB", **SERVER}
    async with (
        office(monkeypatch, **settings) as o,
        met(o, work=False, **limit) as (owner, guest),
    ):
        pairs = []
        for _ in range(2):
            work = await owner.bring()
            conn, _ = visit(guest)
            assert not await visited(conn)
            assert isinstance(await within(work.conn.read(), 5, "the start"), StartWorkConn)
            pairs.append((await inside(conn), await inside(work.conn)))
        loop = asyncio.get_running_loop()
        began = loop.time()
        ((visitor, _), (_, service)), ((_, other), (work, _)) = pairs
        visitor.write(bytes(40_000))
        work.write(bytes(25_000))
        await service.until_data(40_000)
        await other.until_data(25_000)
        assert loop.time() - began >= (65_000 - 51_200) / 51_200 * 0.95
        for (near, _), (far, _) in pairs:
            near.abort()
            far.abort()
        await until(lambda: not o.server.bridges, "the bridges to close")


async def test_a_limited_user_gets_what_waits_after_the_far_end_has_ended(monkeypatch):
    async with office(monkeypatch, **DIRECT) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port, bandwidth_limit="100KB", **SERVER)
        work = await peer.bring()
        user = await come(port)
        await work.start()
        work.end.write(bytes(130_000))
        work.end.close()
        peer.conn.write(CloseProxy(proxy_name="ssh"))
        assert len(await user.receive_all()) == 130_000
        user.close()
        await until(lambda: not o.server.bridges, "the bridge to close")


async def test_a_stop_does_not_wait_for_a_limited_user_for_ever(monkeypatch):
    async with office(monkeypatch) as o:
        port = free_port()
        peer = await o.login()
        await peer.tcp("ssh", port, **SLOW)
        work = await peer.bring()
        user = await come(port)
        _, reader = await work.start()
        await user.send(bytes(500_000))
        await reader.until_data(1024)
        limiter = o.server._proxies["ssh"]._limiter
        await within(o.server.stop(0.05), 5, "the stop")
        await turns()
        assert limiter._timer is None
        user.close()


# -- http ---------------------------------------------------------------------------------------


def _body(sent: bytes) -> int:
    """How much there is of an answer's body."""
    return len(bytes(sent).partition(b"\r\n\r\n")[2])


async def test_http_requests_share_the_limit_and_the_work_connection(monkeypatch):
    async with office(monkeypatch, **HTTP) as o:
        peer = await o.login()
        await peer.http("web", "llm.test", bandwidth_limit="50KB", **SERVER)
        work = await peer.bring()
        callers = [await ask(o, get(host="llm.test"))]
        _, reader = await work.start()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while len(callers) < 4:
            heads = len(callers)
            await until(lambda n=heads: reader.data.count(b"\r\n\r\n") == n, "the request")
            work.end.write(answer(bytes(25_000)))
            await until(lambda c=callers[-1]: _body(c.sent) == 25_000, "the answer")
            assert split_answers(callers[-1].sent) == [(200, bytes(25_000))]
            callers.append(await ask(o, get(host="llm.test")))
        assert loop.time() - began >= (75_000 - 51_200) / 51_200 * 0.95


async def test_bytes_that_wait_behind_an_answer_never_reach_the_next_caller(monkeypatch):
    """Without a limit they come while the work connection is idle, which ends it."""
    async with office(monkeypatch, **HTTP) as o:
        peer = await o.login()
        await peer.http("web", "llm.test", **SLOW)
        work = await peer.bring()
        first = await ask(o, get(host="llm.test"))
        _, reader = await work.start()
        await until(lambda: b"\r\n\r\n" in reader.data, "the request")
        limiter = o.server._proxies["web"]._limiter
        whole = answer(b"hello")
        # No credit is left for what follows the answer.
        limiter._bucket._credit = float(len(whole))
        work.end.write(whole)
        work.end.write(answer(b"for nobody"))
        await until(lambda: _body(first.sent) == 5, "the answer")
        again = await peer.bring()
        second = await ask(o, get(host="llm.test"))
        await reader.until_lost()
        _, fresh = await again.start()
        await until(lambda: b"\r\n\r\n" in fresh.data, "the request")
        again.end.write(answer(b"right"))
        await until(lambda: _body(second.sent) == 5, "the answer")
        assert split_answers(second.sent) == [(200, b"right")]


async def test_a_caller_who_leaves_takes_what_waits_along(monkeypatch):
    async with office(monkeypatch, **HTTP) as o:
        peer = await o.login()
        await peer.http("web", "llm.test", **SLOW)
        work = await peer.bring()
        caller = await ask(o, get(host="llm.test"))
        _, reader = await work.start()
        await until(lambda: b"\r\n\r\n" in reader.data, "the request")
        limiter = o.server._proxies["web"]._limiter
        work.end.write(answer(bytes(100_000)))
        await until(lambda: len(limiter._bucket), "bytes to wait")
        caller.protocol.connection_lost(None)
        await reader.until_lost()
        assert not limiter._bucket
        assert limiter._timer is None
