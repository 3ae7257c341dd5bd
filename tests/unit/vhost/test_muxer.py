"""Connections that tell by their first bytes whom they are for, here by a TLS hello."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from pyfrp.net.endpoint import local_address
from pyfrp.net.listen import listen
from pyfrp.vhost import muxer as muxer_module
from pyfrp.vhost.https import HttpsMuxer
from pyfrp.wire.clienthello import MAX_HELLO_BYTES, UNRECOGNIZED_NAME
from tests.support.waiting import until
from tests.unit.net.ends import Reader, memory_pair, turns
from tests.unit.server.scene import Log
from tests.unit.wire.hellos import body, extension, hello, library_hello, message, records, sni

HELLO = hello("a.test")


class Scene:
    """A muxer, its log, and the users that it passed on."""

    def __init__(self):
        self.log = Log()
        self.muxer = HttpsMuxer(log=self.log)
        self.taken = []

    def route(self, *domains):
        for domain in domains:
            self.muxer.router.add(
                domain, "", "", lambda user, held, d=domain: self.taken.append((d, user, held))
            )

    def user(self):
        """A connection as a listener makes it: ours, and the far end of it."""
        near, far = memory_pair()
        greeter = self.muxer.protocol()
        near.set_protocol(greeter)
        greeter.connection_made(near)
        return near, far

    async def say(self, *pieces):
        near, far = self.user()
        for piece in pieces:
            far.write(piece)
            await turns(2)
        await turns()
        return near, far, far.get_protocol()


@asynccontextmanager
async def scene():
    made = Scene()
    try:
        yield made
    finally:
        made.muxer.close()
        await turns()
    assert not len(made.muxer)


# -- those who are passed on --------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_user_is_passed_on_paused_with_every_byte(size):
    async with scene() as s:
        s.route("a.test")
        await s.say(*(HELLO[at : at + size] for at in range(0, len(HELLO), size)))
        [(_, user, held)] = s.taken
        assert held.early == HELLO
        assert user.paused
        assert not user.is_closing()
        assert not len(s.muxer)


async def test_bytes_after_the_hello_are_passed_on_too():
    async with scene() as s:
        s.route("a.test")
        near, far, _ = await s.say(HELLO + b"early data")
        far.write(b" and more")
        far.write_eof()
        await turns()
        [(_, user, held)] = s.taken
        assert held.early == HELLO + b"early data"
        reader = Reader()
        user.set_protocol(reader)
        user.resume_reading()
        await turns()
        assert reader.data == b" and more"
        assert reader.ends == 1
        near.abort()


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("a.test", "a.test"),
        ("A.Test", "a.test"),
        ("x.w.test", "*.w.test"),
        ("x.y.w.test", "*.w.test"),
        ("other.org", "*"),
        (None, "*"),
    ],
)
async def test_the_name_routes_as_a_host_does(name, domain):
    async with scene() as s:
        s.route("a.test", "*.w.test", "*")
        await s.say(library_hello(name))
        assert [found for found, _, _ in s.taken] == [domain]


async def test_a_connection_accepted_elsewhere_is_served_alike():
    async with scene() as s:
        s.route("a.test")
        near, far = memory_pair()
        near.pause_reading()
        s.muxer.adopt(near, HELLO[:10])
        assert not near.paused
        far.write(HELLO[10:])
        await turns()
        [(_, _, held)] = s.taken
        assert held.early == HELLO
        assert near.paused
        near, _ = memory_pair()
        near.pause_reading()
        s.muxer.adopt(near, HELLO)
        assert near.paused
        assert len(s.taken) == 2


# -- those who are not --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cause"),
    [("b.test", "no proxy serves this host"), (None, "the TLS hello has no server name")],
)
async def test_an_unknown_name_gets_the_alert(name, cause):
    async with scene() as s:
        s.route("a.test")
        near, _, reader = await s.say(library_hello(name))
        assert reader.data == UNRECOGNIZED_NAME
        assert reader.ends == 1
        assert near.is_closing()
        [(level, event, kw)] = s.log.lines
        assert (level, event) == ("info", "https user refused")
        assert kw == {"caller": "203.0.113.7:4711", "cause": cause, "host": name or ""}
        assert not s.taken


async def test_a_host_whose_client_left_is_told_from_one_that_never_was():
    async with scene() as s:
        s.route("a.test")
        s.muxer.router.remove("a.test", "", "")
        _, _, reader = await s.say(HELLO)
        assert reader.data == UNRECOGNIZED_NAME
        assert s.log.lines[0][2]["cause"] == "no client serves this host at the moment"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a TLS handshake"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "cut short"),
        (hello("a.test."), "not a host name"),
        (records(message(body(extension(21, bytes(8000)), sni("a.test"))), 1), "no end of"),
    ],
)
async def test_garbage_and_huge_hellos_are_closed_without_an_answer(data, cause):
    async with scene() as s:
        s.route("a.test", "*")
        near, _, reader = await s.say(data, b"more")
        assert near.is_closing()
        assert reader.data == b""
        assert cause in s.log.lines[0][2]["cause"]
        assert len(s.log.lines) == 1
        assert not s.taken
        assert not len(s.muxer)


async def test_nothing_is_kept_beyond_the_limit():
    async with scene() as s:
        near, far = s.user()
        far.write(records(message(body(extension(21, bytes(16000)), sni("a.test"))))[:-1])
        await turns()
        greeter = near.get_protocol()
        assert len(greeter._reader.raw) < MAX_HELLO_BYTES
        assert len(s.muxer) == 1


async def test_a_user_who_ends_early_is_told_of_only_if_he_said_something():
    async with scene() as s:
        for said in (b"", HELLO[:20]):
            near, far = s.user()
            if said:
                far.write(said)
            far.close()
            await turns()
            assert near.is_closing()
            assert not len(s.muxer)
        assert [kw["cause"] for _, _, kw in s.log.lines] == [
            "it ended before it told what it asks for"
        ]


async def test_a_user_who_is_reset_is_forgotten():
    async with scene() as s:
        _, far = s.user()
        assert len(s.muxer) == 1
        far.abort()
        await turns()
        assert not len(s.muxer)


# -- limits -------------------------------------------------------------------------------------


async def test_slow_users_are_dropped_in_time_however_they_trickle(monkeypatch):
    monkeypatch.setattr(muxer_module, "GREETING_S", 0.05)
    async with scene() as s:
        s.route("a.test")
        silent, _ = s.user()
        trickling, far = s.user()
        while not trickling.is_closing():
            far.write(b"\x16" if not far.written else HELLO[len(far.written) :][:1])
            await asyncio.sleep(0.002)
            assert len(far.written) < 100
        assert silent.aborted
        assert trickling.aborted
        assert not len(s.muxer)
        # The timer starts anew for those who come later.
        late, _ = s.user()
        await until(lambda: late.aborted, "the late one to be dropped")
        causes = {kw["cause"] for _, _, kw in s.log.lines}
        assert causes == {"it did not tell what it asks for within 0.05 s"}


async def test_a_user_who_told_in_time_stays(monkeypatch):
    monkeypatch.setattr(muxer_module, "GREETING_S", 0.03)
    async with scene() as s:
        s.route("a.test")
        near, _, _ = await s.say(HELLO)
        silent, _ = s.user()
        await until(lambda: silent.aborted, "the silent one to be dropped")
        assert not near.is_closing()
        near.abort()


async def test_of_too_many_the_oldest_goes(monkeypatch):
    monkeypatch.setattr(muxer_module, "MAX_WAITING", 3)
    async with scene() as s:
        s.route("a.test")
        waiting = [s.user() for _ in range(3)]
        quick, far = s.user()
        assert [near.aborted for near, _ in waiting] == [True, False, False]
        far.write(HELLO)
        await turns()
        assert [user for _, user, _ in s.taken] == [quick]
        assert len(s.muxer) == 2
        quick.abort()


async def test_a_flood_of_refusals_does_not_fill_the_log():
    async with scene() as s:
        now = 1000.25
        s.muxer._loop = SimpleNamespace(time=lambda: now)
        near, _ = memory_pair()
        for _ in range(100):
            s.muxer.log_refusal(near, "garbage")
        assert len(s.log.lines) == muxer_module.LOGGED_REFUSALS
        now += 1
        s.muxer.log_refusal(near, "garbage")
        assert s.log.lines[-2][0] == "warning"
        assert s.log.lines[-2][2] == {"count": 100 - muxer_module.LOGGED_REFUSALS}
        assert s.log.lines[-1][1] == "https user refused"


async def test_a_closed_muxer_takes_nobody():
    async with scene() as s:
        s.route("a.test")
        waiting, _ = s.user()
        told, _, _ = await s.say(HELLO)
        s.muxer.close()
        late, _ = memory_pair()
        s.muxer.adopt(late, HELLO)
        await turns()
        assert waiting.aborted
        assert late.aborted
        assert not told.is_closing()  # The proxy's.
        assert len(s.taken) == 1
        told.abort()


async def test_all_of_it_holds_on_sockets(loop_kind, monkeypatch):
    """The same protocol on real transports: paused with what came, alerted, dropped."""
    monkeypatch.setattr(muxer_module, "GREETING_S", 0.2)
    async with scene() as s:
        s.route("a.test")
        listener = await listen(s.muxer.protocol, "127.0.0.1", 0, keepalive_s=0)
        loop = asyncio.get_running_loop()
        ends = []
        for data in (HELLO, hello("b.test"), b"\x16\x03"):
            far, reader = await loop.create_connection(Reader, "127.0.0.1", listener.port)
            far.write(data)
            ends.append((far, reader))
        [(_, user, held)] = await until(lambda: s.taken, "the user to be taken")
        assert held.early == HELLO
        assert local_address(user) == ("127.0.0.1", listener.port)
        await ends[1][1].until_ended()
        assert ends[1][1].data == UNRECOGNIZED_NAME
        slow = ends[2][1]
        await until(lambda: slow.ends or slow.lost, "the slow user to be dropped")
        ends[0][0].write(b"more")
        reader = Reader()
        user.set_protocol(reader)
        user.resume_reading()
        assert await reader.until_data(4) == b"more"
        user.abort()
        listener.close()
        for far, reader in ends:
            far.abort()
            await reader.until_lost()
