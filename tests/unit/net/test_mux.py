"""Mux streams as endpoints, and the transport that carries them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from pyfrp.errors import LinkError, MuxError, PeerClosed
from pyfrp.net import mux
from pyfrp.net.bridge import Bridge, LendingLeg
from pyfrp.net.conn import MessageConn
from pyfrp.net.mux import EARLY_LIMIT
from pyfrp.wire.framing import encode
from pyfrp.wire.messages import LoginResp, Ping
from pyfrp.wire.yamux import BATCH, CLOSE_TIMEOUT, INITIAL_WINDOW, SLICE
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, memory_pair, tcp_pair, tcp_to_raw, turns
from tests.unit.net.mux_pair import MuxSide, link_of, mux_pair
from tests.unit.wire.yamux_pair import data_frame, frames_of, pattern, ping, rst, syn

KIB = 1024
MIB = 1024 * KIB

kinds = pytest.mark.parametrize("kind", ["memory", "tcp", "tls"])


# -- streams as endpoints -----------------------------------------------------------------------


async def test_a_new_reader_hears_that_a_full_stream_is_full():
    """What introduced it on a saturated link filled it, and was told so in this one's place."""
    async with mux_pair() as (client, _):
        stream, first = client.open()
        client.mux.pause_writing()
        stream.write(b"introduction")
        assert first.choked
        second = Reader()
        stream.set_protocol(second)
        stream.write(b"payload")
        assert second.choked
        client.mux.resume_writing()
        await turns()
        assert not second.choked


@kinds
async def test_bytes_pass_both_ways_and_each_way_ends_by_itself(kind, loop_kind):
    async with mux_pair(kind) as (client, server):
        stream, reader = client.open()
        stream.write(b"question")
        stream.write_eof()
        other, other_reader = await server.accepted()
        await other_reader.until_ended()
        assert other_reader.data == b"question"
        other.write(b"answer")
        other.write_eof()
        await reader.until_ended()
        assert reader.data == b"answer"
        # As with any transport that stays open after an end, closing is up to its owner.
        assert reader.lost == other_reader.lost == []
        stream.close()
        other.close()
        await reader.until_lost()
        await other_reader.until_lost()
        assert reader.lost == other_reader.lost == [None]


@kinds
async def test_a_reader_that_does_not_stay_open_closes_its_stream(kind, loop_kind):
    async with mux_pair(kind) as (client, server):
        server.on_stream = lambda _, reader: setattr(reader, "keep_open", False)
        stream, reader = client.open()
        stream.write(b"all")
        stream.close()
        _, other_reader = await server.accepted()
        await other_reader.until_lost()
        assert other_reader.events == ["data", "eof", "lost"]
        assert await reader.until_lost() is None
        await until(lambda: not client.mux.session.streams, "the stream to be forgotten")
        await until(lambda: not server.mux.session.streams, "the stream to be forgotten")


@kinds
async def test_an_aborted_stream_resets_the_other_end_only(kind, loop_kind):
    async with mux_pair(kind) as (client, server):
        stream, reader = client.open()
        stream.write(b"x")
        keeper, _ = client.open()
        keeper.write(b"y")
        await server.accepted(2)
        stream.abort()
        assert stream.is_closing()
        exc = await server.readers[0].until_lost()
        assert isinstance(exc, ConnectionResetError)
        assert reader.lost == [None]
        keeper.write(b"z")
        assert await server.readers[1].until_data(2) == b"yz"


async def test_closing_sends_what_is_pending_first():
    async with mux_pair() as (client, server):
        stream, reader = client.open()
        data = pattern(1, 0, 900 * KIB)
        stream.write(data)
        stream.close()
        stream.close()
        stream.write(b"dropped")
        await turns(2)
        assert reader.lost == []
        _, other_reader = await server.accepted()
        await other_reader.until_ended()
        assert other_reader.data == data
        assert await reader.until_lost() is None


async def test_what_still_comes_after_closing_does_not_cost_what_is_pending():
    async with mux_pair() as (client, server):
        server.on_stream = lambda s, _: s.hold()
        stream, _ = client.open()
        data = pattern(1, 0, INITIAL_WINDOW + 100 * KIB)
        stream.write(data)
        other, other_reader = await server.accepted()
        await turns()
        stream.close()
        other.write(b"unwanted")
        await turns()
        assert stream.pending
        other.resume_reading()
        assert await other_reader.until_data(len(data)) == data
        await other_reader.until_ended()
        # Whoever goes on sending after that is told to stop.
        other.write(b"still unwanted")
        await other_reader.until_lost()
        assert isinstance(other_reader.lost[0], ConnectionResetError)


async def test_a_stream_closed_with_bytes_unread_is_reset():
    async with mux_pair() as (client, server):
        server.on_stream = lambda s, _: s.hold()
        stream, reader = client.open()
        stream.write(b"nobody reads this")
        other, _ = await server.accepted()
        await turns()
        other.close()
        assert isinstance(await reader.until_lost(), ConnectionResetError)
        assert server.readers[0].lost == [None]


async def test_a_refusal_arrives_although_its_reader_was_still_sending():
    """`MessageConn.close` on a stream that holds bytes for it."""
    async with mux_pair() as (client, server):
        server.on_stream = lambda s, _: s.hold()
        stream, reader = client.open()
        for _ in range(3):
            stream.write(encode(Ping(timestamp=1)))
            await turns(3)
        other, _ = await server.accepted()
        conn = MessageConn(other)
        await within(conn.read(), 5, "the message")
        await turns()
        conn.write(LoginResp(error="no"))
        conn.close()
        await reader.until_ended()
        assert reader.data == encode(LoginResp(error="no"))


async def test_a_closed_stream_that_the_peer_never_reads_is_over_some_day():
    async with mux_pair() as (client, server):
        server.on_stream = lambda s, _: s.hold()
        stream, reader = client.open()
        stream.write(bytes(INITIAL_WINDOW + 1))
        await server.accepted()
        await turns()
        stream.close()
        await turns()
        assert reader.lost == []
        session = client.mux.session
        session.wake(asyncio.get_running_loop().time() + CLOSE_TIMEOUT + 1)
        await turns()
        assert isinstance(reader.lost[0], ConnectionResetError)
        assert session.streams == {}


async def test_pausing_and_resuming_holds_and_delivers():
    async with mux_pair() as (client, server):
        stream, _ = client.open()
        stream.write(b"one")
        other, reader = await server.accepted()
        await reader.until_data(3)
        other.pause_reading()
        stream.write(b"two")
        stream.write_eof()
        await turns()
        assert reader.events == ["data"]
        other.resume_reading()
        assert reader.data == b"onetwo"
        assert reader.events == ["data", "eof"]
        other.resume_reading()
        assert reader.ends == 1


async def test_a_closed_stream_is_not_resumed():
    async with mux_pair() as (client, server):
        stream, _ = client.open()
        stream.write(b"x")
        other, _ = await server.accepted()
        other.pause_reading()
        other.abort()
        other.resume_reading()
        await turns()
        assert server.readers[0].events == ["data", "lost"]


async def test_a_stream_speaks_of_its_link_but_not_of_its_socket():
    async with mux_pair() as (client, _):
        stream, _ = client.open()
        assert stream.get_extra_info("peername") == link_of(client).extra["peername"]
        link_of(client).extra["socket"] = object()
        assert stream.get_extra_info("socket") is None
        assert stream.get_extra_info("socket", 5) == 5
        stream.set_write_buffer_limits(high=1, low=0)
        stream.write(b"12345")
        assert stream.get_write_buffer_size() == 5
        assert isinstance(stream.get_protocol(), Reader)
        assert stream.can_write_eof()


# -- back-pressure of a stream ------------------------------------------------------------------


@kinds
async def test_a_slow_reader_stops_its_own_source_and_nobody_elses(kind, loop_kind):
    async with mux_pair(kind) as (client, server):
        server.on_stream = lambda s, _: s.hold() if s.id == 1 else None
        stuck, stuck_reader = client.open()
        free, free_reader = client.open()
        sent = 0
        while not stuck_reader.choked:
            stuck.write(bytes(16 * KIB))
            sent += 16 * KIB
            await asyncio.sleep(0)
            assert sent < 8 * MIB
        total = 0
        for _ in range(64):
            free.write(bytes(64 * KIB))
            total += 64 * KIB
            await until(lambda: not free_reader.choked, "the free source to go on")
        await until(lambda: len(server.readers) == 2, "both streams")
        await server.readers[1].until_data(total)
        assert server.streams[0].held_size <= INITIAL_WINDOW
        assert stuck_reader.choked
        server.streams[0].resume_reading()
        await server.readers[0].until_data(sent)
        await until(lambda: not stuck_reader.choked, "the slow one's source to go on")


async def test_a_source_is_told_once_to_pause_and_once_to_go_on():
    async with mux_pair() as (client, _):
        stream, reader = client.open()
        for _ in range(5):
            stream.write(bytes(SLICE))
        assert reader.pauses == 1
        await turns()
        assert not reader.choked


async def test_a_source_goes_on_while_the_link_takes_it_but_not_for_a_whole_turn():
    async with mux_pair() as (client, _):
        link_of(client).write = lambda data: None
        stream, reader = client.open()
        stream._send_window = MIB
        for _ in range(EARLY_LIMIT):
            stream.write(bytes(SLICE + 1))
            assert not stream.pending
        assert not reader.pauses
        stream.write(bytes(SLICE + 1))
        assert (reader.choked, reader.pauses) == (True, 1)
        await turns()
        assert not reader.choked
        stream.write(bytes(SLICE + 1))
        assert not reader.choked


async def test_batches_are_small_while_the_link_is_slower_than_its_sources():
    async with mux_pair() as (client, _):
        session = client.mux.session
        link = link_of(client)
        writes = []
        link.write = lambda data: writes.append(len(data))
        stream, _ = client.open()
        stream._send_window = 64 * MIB
        client.mux.pause_writing()
        stream.write(bytes(8 * BATCH))
        assert not writes
        client.mux.resume_writing()
        assert SLICE < writes[-1] < 2 * SLICE
        while session.batch < BATCH:
            await turns(1)
        await turns(1)
        assert BATCH < writes[-1] < 2 * BATCH


async def test_a_source_that_filled_again_before_it_was_told_is_not_told_to_go_on():
    async with mux_pair() as (client, _):
        stream, reader = client.open()
        client.mux.pause_writing()
        stream.write(b"full")
        client.mux.resume_writing()
        assert not stream.pending
        client.mux.pause_writing()
        stream.write(b"full again")
        await turns()
        assert (reader.choked, reader.pauses) == (True, 1)
        client.mux.resume_writing()
        await turns()
        assert not reader.choked


# -- the shared link ----------------------------------------------------------------------------


async def test_all_frames_of_a_turn_leave_in_one_write():
    async with mux_pair() as (client, _):
        link = link_of(client)
        writes = []
        original = link.write
        link.write = lambda data: (writes.append(data), original(data))
        streams = [client.open()[0] for _ in range(10)]
        for stream in streams:
            stream.write(b"to")
            stream.write(b"ken")
        await turns()
        assert len(writes) == 1
        assert sum(f.body == b"token" for f in frames_of(writes[0])) == 10


@kinds
async def test_a_saturated_link_pauses_every_source_and_resumes_them_all(kind, loop_kind):
    async with mux_pair(kind) as (client, server):
        pairs = [client.open() for _ in range(20)]
        for stream, _ in pairs:
            stream.write(b"!")
        await server.accepted(20)
        server.link.pause_reading()
        sent = [1] * 20
        # Each source writes until it is told to stop; the kernel takes what it takes.
        for _ in range(10_000):
            for number, (stream, reader) in enumerate(pairs):
                if not reader.choked:
                    stream.write(bytes(32 * KIB))
                    sent[number] += 32 * KIB
            await asyncio.sleep(0)
            if all(reader.choked for _, reader in pairs):
                break
        assert all(reader.choked for _, reader in pairs)
        held = client.link.get_write_buffer_size() + sum(s.pending for s, _ in pairs)
        assert held < 4 * MIB
        # A heartbeat does not wait behind any of it in our own buffers.
        server.link.resume_reading()
        for number, reader in enumerate(server.readers):
            await reader.until_data(sent[number], 30)
            assert len(reader.data) == sent[number]
        await until(lambda: not any(r.choked for _, r in pairs), "all sources to go on")


async def test_a_source_pauses_after_one_more_chunk_while_the_link_is_saturated():
    async with mux_pair() as (client, _):
        stream, reader = client.open()
        await turns()
        client.mux.pause_writing()
        stream.write(b"x")
        assert reader.choked
        client.mux.resume_writing()
        await turns()
        assert not reader.choked
        stream.write(b"y")
        assert not reader.choked


async def test_control_frames_leave_while_the_link_is_saturated():
    async with mux_pair() as (client, server):
        stream, _ = client.open()
        stream.write(b"x")
        await server.accepted()
        client.mux.pause_writing()
        stream.write(bytes(1000))
        before = len(link_of(client).written)
        client.mux.session._control(0x020001, 0, 5)
        await turns()
        sent = bytes(link_of(client).written[before:])
        assert [f.kind for f in frames_of(sent)] == [2]
        client.mux.resume_writing()
        await server.readers[0].until_data(1001)


async def test_a_peer_that_asks_and_does_not_read_is_dropped():
    async with mux_pair() as (client, server):
        link_of(client).pause_reading()
        flood = ping(1) * 20_000
        async with asyncio.timeout(20):
            while not server.lost:
                link_of(client).write(flood)
                await turns(2)
                assert link_of(server).get_write_buffer_size() < mux.UNREAD_LIMIT + 2 * MIB
        assert isinstance(server.lost[0], MuxError)
        assert "does not read" in str(server.lost[0])


@pytest.mark.parametrize("end", [b"", b"\xff" * 12], ids=["fin", "violation"])
async def test_a_peer_that_does_not_read_holds_a_closed_link_for_a_moment_only(
    monkeypatch, end, loop_kind
):
    monkeypatch.setattr(mux, "LINGER_S", 0.05)
    async with tcp_to_raw() as (link, peer):
        link.pause_reading()
        side = MuxSide(link)
        side.start(client=False, keepalive_s=0)
        async with asyncio.timeout(20):
            while not link.get_write_buffer_size():
                await peer.send(ping(1) * 5000)
                await turns()
        if end:
            await peer.send(end)
        else:
            peer.end()
        await until(lambda: side.lost, "the end of the session")
        if link.get_write_buffer_size():
            await until(lambda: link.get_write_buffer_size() == 0, "the end of the link", 5)


@kinds
async def test_a_thousand_streams_at_once_lose_nothing(kind, loop_kind):
    async with mux_pair(kind) as (client, server):

        def echo(stream, reader):
            reader.keep_open = False
            reader.on_data = stream.write

        server.on_stream = echo
        pairs = [client.open() for _ in range(1000)]
        for number, (stream, _) in enumerate(pairs):
            stream.write(b"hello %d " % number)
        await until(lambda: len(server.streams) == 1000, "all streams")
        for number, (stream, _) in enumerate(pairs):
            stream.write(b"again %d" % number)
            stream.write_eof()
        for number, (_, reader) in enumerate(pairs):
            await reader.until_ended()
            assert reader.data == b"hello %d again %d" % (number, number)
        for stream, _ in pairs:
            stream.close()
        await until(lambda: not client.mux.session.streams, "the streams to be forgotten")
        assert server.errors == client.errors == []


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["data_received", "eof_received"])
async def test_an_exception_of_a_reader_costs_its_own_stream_only(where):
    async with mux_pair() as (client, server):

        def breaks(*_):
            raise RuntimeError("a bug of the reader")

        server.on_stream = lambda s, r: setattr(r, where, breaks) if s.id == 1 else None
        bad, bad_reader = client.open()
        good, _ = client.open()
        bad.write(b"x")
        bad.write_eof()
        good.write(b"fine")
        await until(lambda: len(server.readers) == 2, "both streams")
        assert await server.readers[1].until_data(4) == b"fine"
        assert isinstance(await bad_reader.until_lost(), ConnectionResetError)
        assert [str(exc) for exc, _ in server.errors] == ["a bug of the reader"]
        assert server.lost == []


@kinds
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_the_end_of_the_link_resets_every_stream_before_its_owner_is_told(
    kind, how, loop_kind
):
    async with mux_pair(kind) as (client, server):
        opened = [client.open() for _ in range(3)]
        for stream, _ in opened:
            stream.write(b"x")
        await server.accepted(3)
        if how == "close":
            client.mux.close(PeerClosed("our choice"))
        else:
            client.mux.abort(PeerClosed("our choice"))
        client.mux.close()
        assert [str(exc) for exc in client.lost] == ["our choice"]
        assert client.mux.lost
        assert client.mux.session.streams == {}
        await until(lambda: server.lost, "the other side to notice")
        assert len(server.lost) == 1
        assert isinstance(server.lost[0], LinkError)
        for reader in [r for _, r in opened] + server.readers:
            assert isinstance(await reader.until_lost(), ConnectionResetError)
        with pytest.raises(PeerClosed):
            client.mux.open()


async def test_what_was_written_before_the_close_of_the_link_still_leaves():
    async with mux_pair() as (client, server):
        stream, _ = client.open()
        stream.write(b"last words")
        client.mux.close()
        _, reader = await server.accepted()
        assert reader.data == b"last words"


@kinds
async def test_a_violation_of_the_peer_ends_the_link_with_a_go_away(kind, loop_kind):
    async with mux_pair(kind) as (client, server):
        stream, _ = client.open()
        stream.write(b"x")
        await server.accepted()
        client.link.write(syn(2))
        await until(lambda: server.lost, "the violation to be noticed")
        assert isinstance(server.lost[0], MuxError)
        await until(lambda: client.lost, "the go-away")
        assert isinstance(client.lost[0], MuxError)
        assert "code 1" in str(client.lost[0])


async def test_a_lost_link_says_why():
    near, far = memory_pair()
    side = MuxSide(near)
    side.start(client=True, keepalive_s=0)
    far.abort()
    await turns()
    assert "reset by the far end" in str(side.lost[0])


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda near, far, mux: far.abort(), "the link was lost: reset by the far end"),
        (lambda near, far, mux: far.close(), "the peer closed the link"),
        (lambda near, far, mux: near.lose(None), "the link was closed"),
        (lambda near, far, mux: mux.close(), "the link was closed"),
        (lambda near, far, mux: mux.abort(MuxError("no sign of life")), "no sign of life"),
    ],
)
async def test_streams_are_told_why_their_link_is_gone(end, words):
    """What ended a session is what the log of a client says of it."""
    near, far = memory_pair()
    side = MuxSide(near)
    side.start(client=True, keepalive_s=0)
    _, reader = side.open()
    end(near, far, side.mux)
    await turns()
    assert [(type(exc), str(exc)) for exc in reader.lost] == [(ConnectionResetError, words)]


async def test_a_stream_that_its_peer_resets_says_so():
    async with mux_pair() as (client, server):
        stream, reader = client.open()
        stream.write(b"x")
        far, _ = await server.accepted()
        far.abort()
        assert str(await reader.until_lost()) == "the stream was reset"


async def test_a_link_that_is_just_gone_says_so():
    near, _ = memory_pair()
    side = MuxSide(near)
    side.start(client=True, keepalive_s=0)
    near.lose(None)
    await turns()
    assert str(side.lost[0]) == "the link was closed"
    assert isinstance(side.lost[0], PeerClosed)


async def test_frames_for_a_stream_that_was_reset_hurt_nobody():
    async with mux_pair() as (client, server):
        stream, _ = client.open()
        stream.write(b"x")
        await server.accepted()
        link = link_of(client)
        link.write(rst(1) + data_frame(1, b"late") + rst(1))
        other, _ = client.open()
        other.write(b"fine")
        await until(lambda: len(server.readers) == 2, "the other stream")
        assert server.lost == []
        stream.abort()


# -- time ---------------------------------------------------------------------------------------


async def test_a_silent_peer_is_pinged_and_a_dead_one_dropped(monkeypatch):
    monkeypatch.setattr("pyfrp.wire.yamux.PING_TIMEOUT", 0.05)
    near, far = memory_pair()
    side = MuxSide(near)
    side.start(client=True, keepalive_s=0.05)
    reader = far.get_protocol()
    await until(lambda: side.lost, "the peer to be given up")
    assert [f.kind for f in frames_of(bytes(reader.data))] == [2]
    assert isinstance(side.lost[0], MuxError)
    assert near.aborted


@kinds
async def test_a_peer_that_answers_pings_is_kept(kind, loop_kind):
    async with mux_pair(kind, keepalive_s=0.01) as (client, server):
        for side in (client, server):
            session = side.mux.session
            # The second is sent when the first was answered.
            await until(lambda s=session: s._ping_id > 1, "an answer")
        assert client.lost == server.lost == []


async def test_no_timer_is_left_after_the_end():
    async with mux_pair(keepalive_s=30) as (client, server):
        stream, _ = client.open()
        stream.write(b"x")
        await server.accepted()
        stream.close()
        assert client.mux._alarm.is_set
        client.mux.close()
        assert not client.mux._alarm.is_set


async def test_a_link_at_rest_is_pinged_at_each_keepalive():
    """Not only when the answer to a ping would have been late: proxies cut what is idle."""
    async with mux_pair(keepalive_s=0.01) as (client, server):
        await until(lambda: min(s.mux.session._ping_id for s in (client, server)) > 5, "pings")


async def test_a_stream_that_lingers_is_looked_at_without_a_keepalive():
    async with mux_pair() as (client, server):
        assert not client.mux._alarm.is_set
        stream, _ = client.open()
        stream.write(b"x")
        await server.accepted()
        stream.close()
        assert client.mux._alarm.is_set


# -- with bridges -------------------------------------------------------------------------------


@kinds
async def test_a_bridge_over_a_stream_carries_ends_and_resets(kind, loop_kind):
    async with mux_pair(kind) as (client, server):
        server.on_stream = lambda s, _: s.hold()
        user, near = memory_pair()
        far, service = memory_pair()
        stream, _ = client.open()
        closed = []
        Bridge(near, stream, on_close=closed.append)
        user.write(b"request")
        user.write_eof()
        other, _ = await server.accepted()
        Bridge(other, far, on_close=closed.append)
        service_reader = service.get_protocol()
        await until(lambda: service_reader.ends, "the end of the request")
        assert service_reader.data == b"request"
        service.write(b"half of the answ")
        user_reader = user.get_protocol()
        await user_reader.until_data(16)
        service.abort()
        assert isinstance(await user_reader.until_lost(), ConnectionResetError)
        await until(lambda: len(closed) == 2, "both bridges")


@kinds
@pytest.mark.parametrize("reads", [True, False], ids=["reading", "pausing"])
async def test_a_lent_buffer_is_free_when_the_call_returns(kind, reads, loop_kind):
    async with mux_pair(kind) as (client, server):
        server.on_stream = lambda s, _: reads or s.hold()
        stream, reader = client.open()
        stream.write(b"a few bytes that are pending")
        expected = bytearray(b"a few bytes that are pending")
        buffer = bytearray(256_000)
        for count in range(12):
            piece = pattern(count, 0, len(buffer))
            buffer[:] = piece
            stream.lend(memoryview(buffer))
            buffer[:] = bytes(len(buffer))
            expected += piece
            if reads:
                await until(lambda: not reader.choked, "the stream to take more")
        other, other_reader = await server.accepted()
        other.resume_reading()
        assert await other_reader.until_data(len(expected)) == expected


@kinds
async def test_a_lent_buffer_is_free_although_the_link_does_not_drain(kind, loop_kind):
    async with mux_pair(kind) as (client, server):
        server.link.pause_reading()
        buffer = bytearray(INITIAL_WINDOW)
        for count in range(40):
            stream, _ = client.open()
            buffer[:] = pattern(count, 0, len(buffer))
            stream.lend(memoryview(buffer))
            buffer[:] = bytes(len(buffer))
            await asyncio.sleep(0)
        assert client.mux._saturated
        server.link.resume_reading()
        await server.accepted(40)
        for count, reader in enumerate(server.readers):
            assert await reader.until_data(len(buffer)) == pattern(count, 0, len(buffer))


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_long_transfers_of_several_sockets_over_one_link_arrive_whole(kind, loop_kind):
    """Their bridges read into one buffer."""
    async with mux_pair(kind) as (client, server), AsyncExitStack() as stack:
        users, services, wholes = [], [], []
        server.on_stream = lambda s, _: s.hold()
        for count in range(3):
            user, near = await stack.enter_async_context(tcp_pair())
            service, far = await stack.enter_async_context(tcp_pair())
            near.pause_reading()
            far.pause_reading()
            stream, _ = client.open()
            Bridge(near, stream)
            user.write(b"%d" % count)
            other, _ = await server.accepted(count + 1)
            bridge = Bridge(far, other)
            assert isinstance(bridge.near, LendingLeg)
            assert not isinstance(bridge.far, LendingLeg)
            users.append(user)
            services.append(service)
            wholes.append(pattern(count, 0, 5 * MIB))
        for service, whole in zip(services, wholes, strict=True):
            service.write(whole)
        for user, service, whole in zip(users, services, wholes, strict=True):
            user.write(whole)
            assert await user.get_protocol().until_data(len(whole)) == whole
            got = await service.get_protocol().until_data(len(whole) + 1)
            assert got[1:] == whole
