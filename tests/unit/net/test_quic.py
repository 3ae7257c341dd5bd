"""QUIC sessions on a network in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("aioquic", reason="QUIC is optional, and not installed here")

from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch

from pyfrp.errors import HandshakeError, PeerClosed
from pyfrp.net import quic, quic_fast
from pyfrp.net.quic import WINDOW, QuicSession, QuicStream
from pyfrp.net.quic_tls import peer_setup
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, turns


class Wire:
    """A socket whose datagrams reach the other session a turn later, or not."""

    def __init__(self, loss: float) -> None:
        self.far: QuicSession | None = None
        self.closed = 0
        self.loss = loss
        self.dice = random.Random(1)

    def send_many(self, datagrams: list[tuple[bytes, quic.Address]]) -> None:
        for data, _ in datagrams:
            assert len(data) <= quic.DATAGRAM
            if self.far is not None and self.dice.random() >= self.loss:
                asyncio.get_running_loop().call_soon(self.far.datagram_received, data)

    def close(self) -> None:
        self.closed += 1


class Pair:
    """A client, a server, and the streams that the server was given."""

    def __init__(self, loss: float, keepalive_s: float) -> None:
        self.wires = Wire(loss), Wire(loss)
        self.came: list[QuicStream] = []
        self.errors: list[BaseException] = []
        self.server, self.client = (
            QuicSession(
                wire,
                ("192.0.2.1", 4711),
                setup=peer_setup(
                    client=on_stream is None,
                    name="192.0.2.1:4711",
                    keepalive_s=keepalive_s,
                    idle_s=30.0,
                ),
                info={"peername": ("192.0.2.1", 4711)},
                on_stream=on_stream,
                report=lambda exc, what: self.errors.append(exc),
            )
            for wire, on_stream in zip(self.wires, (self.came.append, None), strict=True)
        )
        self.wires[0].far, self.wires[1].far = self.client, self.server

    async def open(self) -> tuple[QuicStream, Reader, QuicStream, Reader]:
        """A stream: the client's end and the server's, each with a reader."""
        count = len(self.came)
        near = self.client.open()
        await until(lambda: len(self.came) > count, "the stream")
        far = self.came[count]
        readers = Reader(), Reader()
        for end, reader in zip((near, far), readers, strict=True):
            end.set_protocol(reader)
            end.resume_reading()
        return near, readers[0], far, readers[1]


@asynccontextmanager
async def linked(loss: float = 0.0, keepalive_s: float = 10.0) -> AsyncIterator[Pair]:
    pair = Pair(loss, keepalive_s)
    try:
        await within(asyncio.gather(pair.client.ready(), pair.server.ready()), 10, "the handshake")
        yield pair
        assert pair.errors == []
    finally:
        pair.client.close()
        await turns()
        pair.server.close()
        assert all(wire.closed for wire in pair.wires)
        assert not pair.client._streams
        assert not pair.server._streams


async def test_a_reset_behind_the_end_does_not_hide_the_reason():
    async with linked() as pair:
        token = pair.client.connection.peers_token
        reset = b"\x40" + bytes(max(quic.RESET_SIZES) - 1 - len(token)) + token
        pair.server.close()
        await until(lambda: pair.client.connection.draining, "the end")
        pair.client.datagram_received(reset)
        ended = await within(asyncio.shield(pair.client.ended), 5, "the reason")
        assert "the QUIC connection ended: " in str(ended)


async def test_a_reset_alone_ends_a_connection():
    async with linked() as pair:
        token = pair.client.connection.peers_token
        reset = b"\x40" + bytes(max(quic.RESET_SIZES) - 1 - len(token)) + token
        pair.client.datagram_received(reset)
        assert "has forgotten it" in str(pair.client.ended.result())


@pytest.mark.parametrize("short", [True, False])
async def test_bytes_go_both_ways_over_a_bad_network(short, monkeypatch):
    """By the short ways, and as with an aioquic whose insides they do not know."""
    monkeypatch.setattr(quic_fast, "KNOWN", short)
    async with linked(loss=0.03) as pair:
        near, user, far, service = await pair.open()
        data = random.Random(3).randbytes(300_000)
        near.write(data)
        far.write(data[::-1])
        assert await service.until_data(len(data)) == data
        assert await user.until_data(len(data)) == data[::-1]


async def test_datagrams_that_come_twice_or_out_of_order_change_nothing(monkeypatch):
    async with linked() as pair:
        near, user, far, service = await pair.open()
        dice = random.Random(7)
        for wire in pair.wires:
            send, late = wire.send_many, []

            def mangled(sent, send=send, late=late):
                out = [*late, *sent, *(one for one in sent if dice.random() < 0.3)]
                late.clear()
                if len(out) > 1 and dice.random() < 0.3:
                    late.append(out.pop(dice.randrange(len(out))))
                if dice.random() < 0.2:
                    dice.shuffle(out)
                send(out)

            monkeypatch.setattr(wire, "send_many", mangled)
        data = dice.randbytes(400_000)
        for at in range(0, len(data), 50_000):
            near.write(data[at : at + 50_000])
            far.write(data[at : at + 1000])
            await turns()
        assert await service.until_data(len(data)) == data
        heard = b"".join(data[at : at + 1000] for at in range(0, len(data), 50_000))
        assert await user.until_data(len(heard)) == heard


async def test_most_packets_take_the_short_ways(monkeypatch):
    async with linked() as pair:
        near, _, _, service = await pair.open()
        far = pair.server.connection
        usual = []
        receive = QuicConnection.receive_datagram
        monkeypatch.setattr(
            QuicConnection,
            "receive_datagram",
            lambda self, data, addr, now: (usual.append(len(data)), receive(self, data, addr, now)),
        )
        before = far._spaces[Epoch.ONE_RTT].largest_received_packet
        near.write(bytes(3 * WINDOW))
        await service.until_data(3 * WINDOW)
        packets = far._spaces[Epoch.ONE_RTT].largest_received_packet - before
        assert packets > 3 * WINDOW // quic.DATAGRAM
        assert len(usual) < packets // 10
        # New keys come by the usual way, and the short ones go on with them.
        pair.client.connection.request_key_update()
        near.write(bytes(WINDOW))
        await service.until_data(4 * WINDOW)
        assert service.data == bytes(4 * WINDOW)


async def test_small_words_are_not_held_up_by_a_flood():
    async with linked() as pair:
        near, _, _, service = await pair.open()
        near.write(bytes(20 * WINDOW))
        other, _, _, beside = await pair.open()
        for number in range(5):
            other.write(b"word")
            await beside.until_data(4 * (number + 1))
        assert len(service.data) < 20 * WINDOW
        near.abort()


async def test_a_service_may_speak_first():
    async with linked() as pair:
        near, user, far, _ = await pair.open()
        far.write(b"banner")
        assert await user.until_data(6) == b"banner"
        near.abort()


async def test_one_direction_may_end_before_the_other():
    async with linked() as pair:
        near, user, far, service = await pair.open()
        assert near.can_write_eof()
        near.write(b"question")
        near.write_eof()
        near.write_eof()
        await service.until_ended()
        assert service.data == b"question"
        far.write(b"answer")
        far.close()
        await user.until_ended()
        assert user.data == b"answer"
        near.close()
        await user.until_lost()
        await service.until_lost()


async def test_who_does_not_read_does_not_hear_of_the_end():
    """What it was given before may still wait in a layer between: the end would cost it."""
    async with linked() as pair:
        near, _, far, service = await pair.open()
        service.on_data = lambda _: far.pause_reading()
        near.write(b"last words")
        near.write_eof()
        await service.until_data(10)
        await turns()
        assert service.ends == 0
        far.resume_reading()
        assert service.ends == 1


async def test_what_was_written_before_the_end_arrives():
    async with linked(loss=0.05) as pair:
        near, user, _, service = await pair.open()
        near.write(b"last words" * 10_000)
        near.close()
        near.write(b"too late")
        await service.until_ended(30)
        assert service.data == b"last words" * 10_000
        assert await user.until_lost() is None


async def test_what_is_written_to_a_peer_that_has_just_closed_is_dropped():
    async with linked() as pair:
        near, user, far, service = await pair.open()
        user.on_data = lambda data: near.write(b"thanks")
        # The answer, its end and the refusal of more share a datagram.
        far.write(b"answer")
        far.close()
        await user.until_ended()
        assert user.data == b"answer"
        near.write(b"more")
        near.write_eof()
        await user.until_lost()
        assert await service.until_lost() is None
        assert service.data == b""


async def test_what_is_written_before_a_refusal_is_read_is_dropped():
    async with linked() as pair:
        near, user, _, _ = await pair.open()
        # What aioquic does when it reads the refusal, before it tells us.
        pair.client.connection.reset_stream(near._number, 0)
        near.write(b"x")
        near.write_eof()
        assert user.lost == []


async def test_a_reset_is_told_from_an_end():
    async with linked() as pair:
        near, user, _, service = await pair.open()
        near.write(b"half an ans")
        await service.until_data(11)
        near.abort()
        assert isinstance(await service.until_lost(), ConnectionResetError)
        assert await user.until_lost() is None
        assert service.ends == 0


async def test_a_slow_reader_bounds_what_is_in_memory():
    async with linked() as pair:
        near, user, far, service = await pair.open()
        # Much has gone through before, and must not count.
        near.write(bytes(3 * WINDOW))
        await service.until_data(3 * WINDOW)
        far.pause_reading()
        near.write(bytes(8 * WINDOW))
        assert user.choked
        await until(lambda: sum(map(len, far._held)) >= WINDOW // 2, "the window to fill")
        for _ in range(50):
            await turns()
        assert sum(map(len, far._held)) <= WINDOW + WINDOW // 2
        assert user.choked
        assert near.get_write_buffer_size() > 5 * WINDOW
        # Others are not held up.
        other, _, _, beside = await pair.open()
        other.write(b"hello")
        assert await beside.until_data(5) == b"hello"
        far.resume_reading()
        await service.until_data(11 * WINDOW)
        await until(lambda: not user.choked, "the writer to go on")


async def test_many_streams_live_side_by_side():
    async with linked() as pair:
        users = []
        for _ in range(140):  # More than are allowed at first.
            near, user, far, service = await pair.open()
            near.write(b"x")
            await service.until_data(1)
            near.close()
            far.close()
            users.append(user)
        for user in users:
            await user.until_lost()


async def test_a_closed_session_ends_its_streams_and_the_peers():
    async with linked() as pair:
        _, user, _, service = await pair.open()
        pair.client.close()
        assert isinstance(await user.until_lost(), ConnectionResetError)
        assert isinstance(await service.until_lost(), ConnectionResetError)
        assert isinstance(await pair.server.ended, PeerClosed)
        with pytest.raises(PeerClosed):
            pair.client.open()


async def test_a_reader_that_fails_costs_its_stream_only():
    async with linked() as pair:
        near, _, _, service = await pair.open()

        def fail(data):
            raise ValueError("a bug")

        service.on_data = fail
        near.write(b"x")
        await until(lambda: pair.errors, "the report")
        assert isinstance(pair.errors.pop(), ValueError)
        other, _, _, beside = await pair.open()
        other.write(b"hello")
        assert await beside.until_data(5) == b"hello"


async def test_streams_that_nobody_wants_are_refused():
    async with linked() as pair:
        pair.server._on_stream = None
        near = pair.client.open()
        reader = Reader()
        near.set_protocol(reader)
        near.resume_reading()
        near.write(b"x")
        assert isinstance(await reader.until_lost(), ConnectionResetError)


async def test_a_quiet_connection_is_kept(monkeypatch):
    async with linked(keepalive_s=0.01) as pair:
        pinged = []
        send = pair.wires[1].send_many
        monkeypatch.setattr(
            pair.wires[1], "send_many", lambda sent: (pinged.extend(sent), send(sent))
        )
        pair.client._keepalive_s = 0.01  # A second is the least that may be set.
        pair.client._ping()
        await until(lambda: len(pinged) > 3, "pings")


async def test_a_peer_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(quic, "HANDSHAKE_S", 0.05)
    pair = Pair(1.0, 10.0)
    for session in (pair.client, pair.server):
        with pytest.raises(HandshakeError, match="no QUIC handshake within"):
            await session.ready()
    assert all(wire.closed for wire in pair.wires)


async def test_a_peer_whose_port_is_closed_is_gone_after_a_while(monkeypatch):
    async with linked() as pair:
        _, user, _, _ = await pair.open()
        pair.client.error_received(ConnectionRefusedError("refused"))
        await turns()
        assert user.lost == []  # It was heard just now.
        monkeypatch.setattr(quic, "REFUSED_S", -1.0)
        pair.client.error_received(OSError("no room"))
        assert user.lost == []
        pair.client.error_received(ConnectionRefusedError("refused"))
        assert isinstance(await user.until_lost(), ConnectionResetError)


@pytest.mark.parametrize("data", [b"", b"x", bytes(1300), b"\xc0\0\0\0\1\x00" + bytes(1300)])
async def test_what_begins_no_connection_is_dropped(data):
    pair = Pair(1.0, 10.0)
    pair.server.datagram_received(data)
    assert pair.server._connection is None
    pair.client.datagram_received(data)
    pair.client.close()
    pair.server.close()
    pair.server.datagram_received(data)


async def test_it_speaks_like_a_transport():
    async with linked() as pair:
        near, user, _, _ = await pair.open()
        assert near.get_extra_info("peername") == ("192.0.2.1", 4711)
        assert near.get_extra_info("socket") is None
        near.set_write_buffer_limits(high=1)
        assert not near.is_closing()
        near.abort()
        near.abort()
        assert near.is_closing()
        near.resume_reading()
        await user.until_lost()
