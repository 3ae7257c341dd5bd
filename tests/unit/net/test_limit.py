"""Endpoints with a bandwidth limit: what waits, in which order, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.net.bridge import Bridge
from pyfrp.net.limit import LimitedEndpoint, Limiter
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from tests.unit.net.ends import Reader, memory_pair, tcp_pair, turns
from tests.unit.net.mux_pair import mux_pair

RATE = 1000
KEY = derive_key("token")


class Clock:
    """A loop whose time is the test's; callbacks of the turn are those of the real one."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []
        self.woken = 0

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any) -> None:
        asyncio.get_running_loop().call_soon(callback, *args)

    def call_at(self, when: float, callback: Any) -> Timer:
        timer = Timer(self, when, callback)
        self.timers.append(timer)
        return timer

    async def pass_on(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        await turns()
        while self.timers and (first := min(self.timers, key=lambda t: t.when)).when <= end:
            self.timers.remove(first)
            self.now = max(self.now, first.when)
            self.woken += 1
            first.callback()
            await turns()
        self.now = end


class Timer:
    def __init__(self, clock: Clock, when: float, callback: Any) -> None:
        self.clock = clock
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        if self in self.clock.timers:
            self.clock.timers.remove(self)


def limiter(clock: Clock, rate: int = RATE, *, full: bool = False) -> Limiter:
    made = Limiter(rate, clock)  # type: ignore[arg-type]  # as much of a loop as is used
    if not full:
        assert made.take(rate) == rate
    return made


class Scene:
    """A limited end, its reader, and the far end with its reader."""

    def __init__(self, *, full: bool = False, early: bytes = b"", clock: Clock | None = None):
        self.clock = clock or Clock()
        self.limiter = limiter(self.clock, full=full)
        self.near, self.far = memory_pair()
        self.near.pause_reading()
        self.end = LimitedEndpoint(self.near, self.limiter, early)
        self.reader = Reader()
        self.end.set_protocol(self.reader)
        self.far_reader = self.far.get_protocol()
        self.pass_on = self.clock.pass_on

    @property
    def idle(self) -> bool:
        """Nobody waits, and no timer runs."""
        return not self.limiter._bucket and not self.clock.timers


def text(size: int) -> bytes:
    return bytes(index % 251 for index in range(size))


# -- both directions ----------------------------------------------------------------------------


async def test_within_the_credit_bytes_pass_at_once():
    s = Scene(full=True)
    s.end.resume_reading()
    s.end.write(text(400))
    s.far.write(text(600))
    await turns()
    assert s.far_reader.data == text(400)
    assert s.reader.data == text(600)
    assert s.idle
    assert s.reader.pauses == 0
    assert not s.near.paused


async def test_what_is_written_beyond_it_waits_and_the_writer_is_told():
    s = Scene()
    s.end.write(text(1500))
    assert s.reader.choked
    assert s.end.get_write_buffer_size() == 1500
    await s.pass_on(0.5)
    assert s.far_reader.data == b""  # A turn at this rate takes a second.
    await s.pass_on(0.5)
    assert s.far_reader.data == text(1000)
    assert s.reader.choked
    await s.pass_on(0.5)
    assert s.far_reader.data == text(1500)
    assert not s.reader.choked
    assert s.idle


async def test_what_is_read_beyond_it_waits_and_the_link_is_paused():
    s = Scene()
    s.end.resume_reading()
    s.far.write(text(700))
    s.far.write(text(800))
    await s.pass_on(0.6)
    assert s.near.paused
    assert (s.end.unread, s.far.get_write_buffer_size()) == (700, 800)
    await s.pass_on(0.11)
    assert s.reader.data == text(700)
    await s.pass_on(0.9)
    assert s.reader.data[700:] == text(800)
    assert not s.near.paused
    assert s.idle


async def test_both_directions_and_all_connections_share_one_limit():
    clock = Clock()
    scenes = [Scene(clock=clock) for _ in range(2)]
    for other in scenes:
        other.end = LimitedEndpoint(other.near, scenes[0].limiter)
        other.end.set_protocol(other.reader)
        other.end.resume_reading()
        other.end.write(text(2000))
        other.far.write(text(2000))
    await clock.pass_on(4.02)
    assert [len(s.reader.data) for s in scenes] == [1000, 1000]
    assert [len(s.far_reader.data) for s in scenes] == [1000, 1000]
    await clock.pass_on(4.02)
    assert all(s.reader.data == s.far_reader.data == text(2000) for s in scenes)
    assert clock.woken <= 9
    assert not clock.timers


async def test_early_bytes_count_and_come_first():
    s = Scene(early=text(500))
    s.far.write(b"late")
    await s.pass_on(2)
    assert s.reader.data == b""
    s.end.resume_reading()
    await s.pass_on(0)
    assert s.reader.data == text(500) + b"late"


async def test_a_reader_that_stops_gets_nothing_and_costs_no_credit():
    s = Scene(full=True)
    s.end.resume_reading()
    s.reader.on_data = lambda _: s.end.pause_reading()
    s.far.write(text(900))
    s.far.write(text(900))
    await s.pass_on(5)
    assert s.reader.data == text(900)
    s.reader.on_data = None
    s.end.resume_reading()
    await s.pass_on(0)
    assert len(s.reader.data) == 1800
    s.far.write(text(5))
    await s.pass_on(0.2)
    s.end.pause_reading()
    assert s.idle


async def test_a_reader_that_stops_while_bytes_wait_is_not_served():
    s = Scene()
    s.end.resume_reading()
    s.far.write(text(800))
    await s.pass_on(0.1)
    assert not s.idle
    s.end.pause_reading()
    assert s.idle
    await s.pass_on(5)
    assert s.reader.data == b""
    s.end.resume_reading()
    assert s.reader.data == text(800)


async def test_a_full_link_stops_what_waits_and_its_writer():
    s = Scene(full=True)
    s.end.set_write_buffer_limits(high=100, low=10)
    s.far.pause_reading()
    s.end.write(text(500))
    assert s.reader.choked
    s.end.write(text(300))
    await s.pass_on(5)
    assert len(s.near.written) == 500
    assert s.reader.pauses == 1
    s.far.resume_reading()
    await turns()
    assert s.far_reader.data == text(500) + text(300)
    assert not s.reader.choked
    assert s.idle


async def test_a_new_reader_hears_that_it_should_not_write():
    s = Scene()
    s.end.write(text(10))
    reader = Reader()
    s.end.set_protocol(reader)
    s.end.write(text(10))
    assert reader.choked
    await s.pass_on(1)
    assert not reader.choked


# -- the ends -----------------------------------------------------------------------------------


async def test_what_waits_goes_out_before_the_end():
    s = Scene()
    s.end.write(text(1500))
    s.end.write_eof()
    s.end.write(b"too late")
    await s.pass_on(1.2)
    assert s.far_reader.ends == 0
    await s.pass_on(0.4)
    assert s.far_reader.data == text(1500)
    assert s.far_reader.events == ["data", "eof"]
    assert not s.end.is_closing()


@pytest.mark.parametrize("size", [0, 1500])
async def test_what_waits_goes_out_before_a_close(size):
    s = Scene()
    s.end.resume_reading()
    if size:
        s.end.write(text(size))
    s.end.close()
    s.end.close()
    assert s.end.is_closing()
    s.far.write(b"unread")
    s.end.write(b"too late")
    await s.pass_on(size / RATE + 0.1)
    assert s.far_reader.data == text(size)
    assert s.reader.data == b""
    assert s.reader.lost == [None]
    assert s.idle


async def test_an_abort_drops_what_waits():
    s = Scene()
    s.end.resume_reading()
    s.end.write(text(500))
    s.far.write(text(500))
    await s.pass_on(0.1)
    s.end.abort()
    assert s.idle
    await s.pass_on(5)
    assert s.far_reader.data == b""
    assert s.reader.events == ["lost"]
    assert s.near.aborted


async def test_an_abort_ends_a_close_that_waits():
    s = Scene()
    s.end.write(text(500))
    s.end.close()
    s.end.abort()
    await s.pass_on(5)
    assert s.far_reader.data == b""
    assert s.reader.lost == [None]
    assert s.idle


async def test_the_far_end_is_told_after_the_bytes_before_it():
    s = Scene()
    s.end.resume_reading()
    s.far.write(text(900))
    s.far.write_eof()
    await s.pass_on(0.5)
    assert s.reader.events == []
    await s.pass_on(0.5)
    assert s.reader.events == ["data", "eof"]
    s.end.write(b"answer")
    await s.pass_on(0.5)
    assert s.far_reader.data == b"answer"


async def test_a_reader_that_does_not_stay_open_closes_after_what_waits():
    s = Scene()
    s.reader.keep_open = False
    s.end.resume_reading()
    s.end.write(text(900))
    s.far.write_eof()
    await s.pass_on(0.5)
    assert s.reader.events == ["eof"]
    assert s.end.is_closing()
    await s.pass_on(0.5)
    assert s.far_reader.data == text(900)
    assert s.reader.lost == [None]


async def test_an_orderly_loss_waits_for_the_bytes_before_it():
    s = Scene()
    s.end.resume_reading()
    s.far.write(text(900))
    await turns()
    s.near.lose(None)
    assert not s.end.is_closing()
    s.end.write(b"for nobody")
    await s.pass_on(0.5)
    assert s.reader.events == []
    await s.pass_on(0.5)
    assert s.reader.data == text(900)
    assert s.reader.lost == [None]
    assert s.end.is_closing()
    assert s.idle


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_reader_may_leave_after_an_orderly_loss(how):
    s = Scene()
    s.end.resume_reading()
    s.far.write(text(900))
    await turns()
    s.near.lose(None)
    getattr(s.end, how)()
    await s.pass_on(5)
    assert s.reader.events == ["lost"]
    assert s.idle


async def test_a_reset_is_told_at_once():
    s = Scene()
    s.end.resume_reading()
    s.end.write(text(900))
    s.far.write(text(900))
    await turns()
    s.far.abort()
    await turns()
    assert s.reader.data == b""
    assert isinstance(s.reader.lost[0], ConnectionResetError)
    assert s.idle
    await s.pass_on(5)
    assert len(s.reader.lost) == 1


async def test_a_reader_that_fails_loses_its_connection_and_no_other():
    clock = Clock()
    s = Scene(clock=clock)
    other = Scene(clock=clock)
    other.end = LimitedEndpoint(other.near, s.limiter)

    def fail(_: bytes) -> None:
        raise ValueError("a bug")

    s.reader.on_data = fail
    s.end.resume_reading()
    s.far.write(text(100))
    await turns()
    other.end.write(text(100))
    with pytest.raises(ValueError, match="a bug"):
        await clock.pass_on(1)
    await clock.pass_on(1)
    assert s.reader.lost == [None]
    assert other.far_reader.data == text(100)


# -- in company ---------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["link_limiter", "payload_limiter"])
@pytest.mark.parametrize(("encrypt", "compress"), [(False, False), (True, True)])
async def test_the_limit_is_below_or_above_the_other_layers(side, encrypt, compress):
    clock = Clock()
    key = KEY if encrypt else None
    near, far = memory_pair()
    near.pause_reading()
    lim = limiter(clock)
    end, early = wrap_payload(near, b"", key=key, compress=compress, **{side: lim})
    plain, _ = wrap_payload(far, b"", key=key, compress=compress)
    assert early == b""
    reader, far_reader = Reader(), Reader()
    end.set_protocol(reader)
    plain.set_protocol(far_reader)
    end.resume_reading()
    end.write(bytes(900))
    assert reader.choked
    # What counts is what a client has on the wire, and what a server's users have.
    small = compress and side == "link_limiter"
    assert (end.get_write_buffer_size() < 200) == small
    await clock.pass_on(1)
    assert far_reader.data == bytes(900)
    plain.write(bytes(900))
    await clock.pass_on(1)
    assert reader.data == bytes(900)
    end.close()
    await turns()


async def test_a_bridge_is_slowed_down_and_holds_no_more_than_was_on_its_way():
    clock = Clock()
    user, near = memory_pair()
    work, far = memory_pair()
    for end in (near, work):
        end.pause_reading()
    Bridge(near, LimitedEndpoint(work, limiter(clock)))
    user.set_write_buffer_limits(high=10**9)
    for _ in range(20):
        user.write(text(500))
    user.write_eof()
    await clock.pass_on(5)
    assert len(far.get_protocol().data) == 5000
    assert user.get_write_buffer_size() == 4500  # Still with the user.
    await clock.pass_on(5)
    assert far.get_protocol().data == text(500) * 20
    assert far.get_protocol().ends == 1
    far.abort()
    await turns()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 4000)),
        st.tuples(st.just("feed"), st.integers(1, 4000)),
        st.tuples(st.just("pass"), st.sampled_from([0, 1, 10, 500, 3000])),
        st.tuples(st.sampled_from(["pause", "resume", "choke", "unchoke"]), st.just(0)),
    ),
    max_size=30,
)


@given(STEPS, st.sampled_from(["eof", "close", "far eof", "far close"]), st.booleans())
def test_bytes_are_conserved_and_ordered_within_the_limit(steps, ending, full):
    async def life() -> None:
        s = Scene(full=full)
        start = s.clock.now
        s.end.set_write_buffer_limits(high=1000, low=100)
        s.end.resume_reading()
        out = into = b""
        for what, size in steps:
            if what == "write":
                out += text(size)
                s.end.write(text(size))
            elif what == "feed":
                into += text(size)
                s.far.write(text(size))
            elif what == "pass":
                await s.pass_on(size / 1000)
            elif what in ("pause", "resume"):
                getattr(s.end, f"{what}_reading")()
            elif what == "choke":
                s.far.pause_reading()
            else:
                s.far.resume_reading()
            carried = len(s.near.written) + len(s.reader.data)
            assert carried <= RATE * (s.clock.now - start + full) + 1
            assert out.startswith(s.far_reader.data)
            assert into.startswith(s.reader.data)
        await turns()
        s.far.resume_reading()
        if ending == "eof":
            s.end.write_eof()
        elif ending == "close":
            s.end.close()
        elif ending == "far eof":
            s.far.write_eof()
        else:
            s.far.close()
        s.end.resume_reading()
        await s.pass_on((len(out) + len(into)) / RATE + 1)
        if ending != "far close":
            assert s.far_reader.data == out
        if ending != "close":
            assert s.reader.data == into
        assert s.idle
        s.end.abort()
        s.far.abort()
        await turns()
        assert len(s.reader.lost) == 1

    asyncio.run(life())


# -- on sockets and streams ---------------------------------------------------------------------


async def _carries(near: Any, far: Any, rate: int) -> None:
    """A few times the rate both ways, over a real link, then an end in order."""
    lim = Limiter(rate)
    near.pause_reading()
    end = LimitedEndpoint(near, lim)
    reader, far_reader = Reader(), Reader()
    end.set_protocol(reader)
    far.set_protocol(far_reader)
    end.resume_reading()
    loop = asyncio.get_running_loop()
    began = loop.time()
    size = rate * 5 // 8
    end.write(text(size))
    far.write(text(size))
    await far_reader.until_data(size)
    await reader.until_data(size)
    took = loop.time() - began
    assert took >= 0.24  # A second's bytes are free, another quarter of them is paid for.
    assert reader.data == far_reader.data == text(size)
    end.write(text(rate // 10))
    end.close()
    await far_reader.until_data(size + rate // 10)
    await far_reader.until_ended()
    assert far_reader.data[size:] == text(rate // 10)
    far.close()
    await reader.until_lost()
    assert lim._timer is None


async def test_sockets_are_limited(loop_kind):
    async with tcp_pair() as (near, far):
        await _carries(near, far, 400_000)


async def test_streams_are_limited(loop_kind):
    async with mux_pair() as (client, server):
        near, _ = client.open()
        near.write(b"!")
        far, _ = await server.accepted()
        await _carries(near, far, 400_000)
