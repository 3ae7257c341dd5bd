"""KCP sessions as endpoints, on a network in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyfrp.net import kcp
from pyfrp.net.kcp import KcpEndpoint
from tests.support.waiting import until
from tests.unit.net.ends import Reader, turns


class Wire:
    """A socket whose datagrams reach the other endpoint a turn later, or not."""

    def __init__(self, loss: float = 0.0) -> None:
        self.far: KcpEndpoint | None = None
        self.closed = 0
        self.sent = 0
        self.loss = loss
        self.dice = random.Random(1)

    def send_all(self, datagrams) -> None:
        for data in datagrams:
            self.sent += 1
            if self.far is not None and self.dice.random() >= self.loss:
                asyncio.get_running_loop().call_soon(self.far.datagrams_received, [data])

    def close(self) -> None:
        self.closed += 1


@asynccontextmanager
async def linked(loss: float = 0.0) -> AsyncIterator[tuple[KcpEndpoint, KcpEndpoint]]:
    wires = Wire(loss), Wire(loss)
    ends = [KcpEndpoint(wire, conv=1, info={"peername": ("192.0.2.1", 9)}) for wire in wires]
    wires[0].far, wires[1].far = ends[1], ends[0]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.abort()
        await turns()
        assert all(wire.closed for wire in wires)


def reading(end: KcpEndpoint) -> Reader:
    reader = Reader()
    end.set_protocol(reader)
    end.resume_reading()
    return reader


async def test_bytes_arrive_over_a_bad_network():
    async with linked(loss=0.2) as (a, b):
        reader = reading(b)
        reading(a)
        data = random.Random(2).randbytes(200_000)
        for at in range(0, len(data), 7000):
            a.write(data[at : at + 7000])
        assert await reader.until_data(len(data)) == data


async def test_writes_of_a_turn_share_a_datagram():
    async with linked() as (a, b):
        reader = reading(b)
        for _ in range(50):
            a.write(b"word ")
        assert await reader.until_data(250) == b"word " * 50
        assert a._socket.sent == 1


async def test_nothing_is_read_before_it_is_wanted():
    async with linked() as (a, b):
        reader = Reader()
        b.set_protocol(reader)
        a.write(b"early")
        await turns()
        assert reader.data == b""
        b.resume_reading()
        assert reader.data == b"early"
        b.pause_reading()
        a.write(b"late")
        await turns()
        assert reader.data == b"early"


async def test_a_reader_that_fails_ends_the_session():
    """What it was given is gone, so that nothing may follow it."""

    def fail(data: bytes) -> None:
        raise RuntimeError("a bug")

    async with linked() as (a, b):
        writer = reading(a)
        reader = Reader()
        b.set_protocol(reader)
        reader.on_data = fail
        a.write(b"lost")
        await turns()
        with pytest.raises(RuntimeError):
            b.resume_reading()
        assert b.is_closing()
        await reader.until_lost()
        assert isinstance(await writer.until_lost(), ConnectionResetError)


async def test_a_slow_reader_stops_the_writer_and_lets_it_go_on():
    async with linked() as (a, b):
        writer = reading(a)
        reader = Reader()
        b.set_protocol(reader)
        a.set_write_buffer_limits(high=64 * 1024, low=16 * 1024)
        a.write(bytes(4_000_000))
        await until(lambda: writer.choked, "the writer to be stopped")
        assert a.get_write_buffer_size() > 64 * 1024
        b.resume_reading()
        await reader.until_data(4_000_000)
        await until(lambda: not writer.choked, "the writer to go on")


async def test_what_was_written_before_the_end_arrives():
    async with linked(loss=0.1) as (a, b):
        reader, writer = reading(b), reading(a)
        a.write(b"last words" * 1000)
        a.close()
        a.close()
        assert a.is_closing()
        a.write(b"too late")
        assert await reader.until_data(10_000) == b"last words" * 1000
        assert await writer.until_lost() is None
        assert reader.lost == []  # KCP has no end of its own.


async def test_what_was_written_before_the_end_arrives_however_slow_the_reader(monkeypatch):
    monkeypatch.setattr(kcp, "LOOK_S", 0.01)
    monkeypatch.setattr(kcp, "LINGER_S", 0.1)
    async with linked() as (a, b):
        reader, writer = Reader(), reading(a)
        b.set_protocol(reader)
        a.write(bytes(4_000_000))
        a.close()
        asks = b._socket.sent + 20
        await until(lambda: b._socket.sent > asks, "time enough for a peer that is gone")
        assert writer.lost == []
        b.resume_reading()
        await reader.until_data(4_000_000)
        assert await writer.until_lost() is None


async def test_a_reader_that_stopped_does_not_hold_an_end_for_ever(monkeypatch):
    monkeypatch.setattr(kcp, "LOOK_S", 0.01)
    monkeypatch.setattr(kcp, "LONGEST_S", 0.1)
    async with linked() as (a, b):
        writer = reading(a)
        b.set_protocol(Reader())
        a.write(bytes(4_000_000))
        a.close()
        assert await writer.until_lost() is None


async def test_who_does_not_read_does_not_hear_of_the_end():
    """What it was given before may still wait in a layer between: the end would cost it."""
    async with linked() as (a, b):
        reading(a)
        reader = reading(b)
        reader.on_data = lambda _: b.pause_reading()
        a.write(b"last words")
        a.close()
        await reader.until_data(10)
        await turns()
        assert reader.ends == 0
        b.resume_reading()
        assert reader.ends == 1


async def test_two_that_end_unread_do_not_wait_for_each_other():
    async with linked() as (a, b):
        readers = Reader(), Reader()
        for end, reader in zip((a, b), readers, strict=True):
            end.set_protocol(reader)
            end.write(bytes(4_000_000))
        await turns()
        a.close()
        b.close()
        for reader in readers:
            assert await reader.until_lost() is None


async def test_an_end_does_not_wait_for_a_peer_that_has_ended(monkeypatch):
    monkeypatch.setattr(kcp, "LOOK_S", 0.01)
    async with linked() as (a, b):
        writer = reading(a)
        a._socket.loss = 1.0
        a.write(b"nobody wants it")
        b.close()
        await writer.until_ended()
        a.close()
        assert await writer.until_lost(kcp.LINGER_S / 2) is None


async def test_an_end_does_not_wait_for_a_peer_that_is_gone(monkeypatch):
    monkeypatch.setattr(kcp, "LOOK_S", 0.01)
    monkeypatch.setattr(kcp, "LINGER_S", 0.05)
    async with linked(loss=1.0) as (a, _):
        writer = reading(a)
        a.write(b"nobody hears it")
        a.close()
        assert await writer.until_lost() is None
        a.datagrams_received([b"late"])


async def test_a_peer_whose_port_is_closed_is_gone_after_a_while():
    async with linked(loss=1.0) as (a, _):
        writer = reading(a)
        error = ConnectionRefusedError("refused")
        a.error_received(error)
        await turns()
        assert writer.lost == []  # It may not have begun.
        a._refused_s = 0.0
        a.error_received(OSError("no room"))
        assert writer.lost == []
        a.error_received(error)
        assert await writer.until_lost() is error


async def test_it_speaks_like_a_transport():
    async with linked() as (a, _):
        assert not a.can_write_eof()
        assert a.get_extra_info("peername") == ("192.0.2.1", 9)
        assert a.get_extra_info("socket") is None
        writer = reading(a)
        a.abort()
        a.abort()
        await turns()
        assert writer.lost == [None]
        a.resume_reading()
