"""Websockets on any endpoint: handshakes, frames, pauses, ends, and what hostile peers send."""

from __future__ import annotations

import asyncio
import random

import pytest
import websockets

from pyfrp.errors import HandshakeError, PeerClosed, RemoteWireError
from pyfrp.net import websocket as module
from pyfrp.net.dial import dial_tcp
from pyfrp.net.tls import upgrade
from pyfrp.net.websocket import WebSocketEndpoint, accept, connect
from pyfrp.wire import websocket as wire
from tests.support.waiting import until, within
from tests.unit.net.ends import MemoryEnd, Reader, memory_pair, tcp_pair, tcp_to_raw, turns
from tests.unit.net.tls_pair import NAME, client_context, server_context

MASK = b"\x01\x80\xfe\x37"
REQUEST = wire.encode_request("frps.test:7000", wire.new_key())


def frame(payload: bytes = b"", opcode: int = wire.BINARY) -> bytes:
    """A frame as a client sends it."""
    return wire.encode_frame(payload, opcode=opcode, mask=MASK)


class Scene:
    """A server's websocket in memory; the plain end of its link is ours."""

    def __init__(self, early: bytes = b"") -> None:
        self.link, self.far = memory_pair()
        self.link.pause_reading()
        self.ws = WebSocketEndpoint(self.link, client=False, early=early)
        self.reader = Reader()
        self.ws.set_protocol(self.reader)
        self.peer: Reader = self.far.get_protocol()

    async def send(self, *frames: bytes) -> None:
        for data in frames:
            self.far.write(data)
        await turns()

    def said(self) -> bytes:
        """What the websocket said, as payload; a close frame ends it."""
        self.heard = wire.FrameDecoder(masked=False)
        return self.heard.decode(bytes(self.peer.data))


async def linked(**settings: bool) -> tuple[WebSocketEndpoint, WebSocketEndpoint, MemoryEnd]:
    """A client's websocket, the server's, and the link of the latter."""
    near, far = memory_pair()
    for end in (near, far):
        end.pause_reading()
    server = asyncio.get_running_loop().create_task(accept(far))
    client = await within(connect(near, "frps.test:7000"), 5, "the client's handshake")
    return client, await within(server, 5, "the server's handshake"), far


def reading(end: WebSocketEndpoint, **settings: bool) -> Reader:
    reader = Reader(**settings)
    end.set_protocol(reader)
    end.resume_reading()
    return reader


# -- handshakes ---------------------------------------------------------------------------------


async def test_both_sides_carry_bytes_both_ways():
    client, server, _ = await linked()
    near, far = reading(client), reading(server)
    dice = random.Random(1)
    up, down = dice.randbytes(200_000), dice.randbytes(300_000)
    for at in range(0, len(up), 7777):
        client.write(up[at : at + 7777])
    server.write(down)
    assert await far.until_data(len(up)) == up
    assert await near.until_data(len(down)) == down
    client.close()
    await far.until_ended()
    server.close()
    assert await near.until_lost() is None
    assert await far.until_lost() is None


async def test_on_sockets_they_end_in_order(loop_kind):
    async with tcp_pair() as (near, far):
        for end in (near, far):
            end.pause_reading()
        server_job = asyncio.get_running_loop().create_task(accept(far))
        client = await connect(near, "frps.test:7000")
        server = await server_job
        got, echo = reading(client), reading(server)
        client.write(b"x" * 1_000_000)
        await echo.until_data(1_000_000)
        server.write(b"y" * 1_000_000)
        server.close()
        assert await got.until_data(1_000_000)
        await got.until_ended()
        client.close()
        assert await echo.until_lost() is None
        assert await got.until_lost() is None


async def test_a_librarys_client_is_served():
    accepted = []

    class Accepting(Reader):
        def connection_made(self, transport):
            transport.pause_reading()
            accepted.append(asyncio.get_running_loop().create_task(accept(transport)))

    listener = await asyncio.get_running_loop().create_server(Accepting, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    url = f"ws://127.0.0.1:{port}{wire.PATH}"
    async with websockets.connect(url, origin="http://frps.test", proxy=None) as client:
        assert client.protocol.extensions == []
        server = await accepted[0]
        reader = reading(server)
        reader.on_data = server.write
        await client.send([b"in ", b"three ", b"fragments"])
        assert await reader.until_data(18) == b"in three fragments"
        await within(await client.ping(), 5, "the pong")
        assert (await client.recv()).startswith(b"in ")
        server.close()
        await within(client.wait_closed(), 5, "the end")
        assert client.close_code == 1000
    listener.close()
    await reader.until_lost()


async def test_a_librarys_server_is_understood():
    async def echo(connection: websockets.ServerConnection) -> None:
        await within(await connection.ping(), 5, "the pong")
        async for message in connection:
            assert isinstance(message, bytes)
            await connection.send(message.hex())  # As text.

    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        link, held = await dial_tcp("127.0.0.1", port, timeout_s=5)
        client = await connect(link, f"127.0.0.1:{port}", early=held.early)
        reader = reading(client)
        client.write(b"\x01\x02")
        assert await reader.until_data(4) == b"0102"
        client.close()
        assert await reader.until_lost() is None


async def test_bytes_behind_either_handshake_are_kept_for_the_reader():
    near, far = memory_pair()
    for end in (near, far):
        end.pause_reading()
    server = await within(accept(far, early=REQUEST + frame(b"early")), 5, "the handshake")
    reader = Reader()
    server.set_protocol(reader)
    await turns()
    assert reader.data == b""
    server.resume_reading()
    assert reader.data == b"early"

    near, far = memory_pair()
    near.pause_reading()

    def answer(data: bytes) -> None:
        key = wire.decode_request(data)
        far.write(wire.encode_response(key) + wire.encode_frame(b"first", opcode=wire.TEXT))

    far.get_protocol().on_data = answer
    client = await within(connect(near, "h"), 5, "the handshake")
    assert reading(client).data == b"first"
    client.abort()
    server.abort()
    await turns()


async def test_a_handshake_may_come_byte_by_byte():
    near, far = memory_pair()
    far.pause_reading()
    job = asyncio.get_running_loop().create_task(accept(far))
    for at in range(len(REQUEST)):
        near.write(REQUEST[at : at + 1])
        await turns(2)
    server = await within(job, 5, "the handshake")
    server.abort()
    await turns()


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (REQUEST.replace(b"Origin", b"Origen"), b"403 Forbidden", "without an origin"),
        (REQUEST.replace(b"Upgrade: ", b"Upgrede: "), b"400 Bad Request", "without an upgrade"),
        (b"GET /~!frpx HTTP/1.1\r\n\r\n", b"400 Bad Request", "no websocket request"),
        (b"GET /~!frp " + b"x" * 9000, b"431 Request Header Fields Too Large", "too long"),
    ],
)
async def test_who_asks_wrongly_is_told_in_http(request_, status, words):
    near, far = memory_pair()
    far.pause_reading()
    reader = near.get_protocol()
    reader.keep_open = False
    near.write(request_)
    with pytest.raises(HandshakeError, match=words):
        await within(accept(far), 5, "the refusal")
    assert reader.data.startswith(b"HTTP/1.1 " + status)
    assert words in reader.data.decode()
    assert far.is_closing()


async def test_who_does_not_read_the_refusal_is_dropped(monkeypatch):
    monkeypatch.setattr(module, "REFUSAL_S", 0.01)
    near, far = memory_pair()
    far.pause_reading()
    near.pause_reading()
    near.write(b"GET /~!frp HTTP/1.1\r\n\r\n")
    with pytest.raises(HandshakeError):
        await within(accept(far), 5, "the refusal")
    assert far.is_closing()


async def test_a_client_that_leaves_before_it_asked_is_noticed():
    near, far = memory_pair()
    far.pause_reading()
    near.write(b"GET /~!frp HTTP/1.1\r\n")
    near.close()
    with pytest.raises(PeerClosed):
        await within(accept(far), 5, "the end")
    assert far.is_closing()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\n\r\n<html>", "502 Bad Gateway by nginx"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS"),
        (b"SSH-2.0", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000, "too long"),
        (b"", "closed the connection at the websocket handshake"),
        (b"HTTP/1.1 101 Switch", "closed the connection at the websocket handshake"),
    ],
)
async def test_what_comes_in_place_of_a_websocket_is_told(answer, words):
    near, far = memory_pair()
    near.pause_reading()

    def say(_: bytes) -> None:
        far.write(answer)
        far.close()

    far.get_protocol().on_data = say
    with pytest.raises(HandshakeError, match=words):
        await within(connect(near, "h"), 5, "the failure")
    assert near.is_closing()


async def test_a_handshake_that_is_given_up_drops_the_link():
    for handshake in (accept, lambda end: connect(end, "h")):
        near, far = memory_pair()
        far.pause_reading()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await handshake(far)
        assert far.is_closing()
        await turns()
        assert near.is_closing()


# -- frames -------------------------------------------------------------------------------------


async def test_a_write_is_one_binary_frame_and_a_clients_is_masked():
    client, server, link = await linked()
    reading(server)
    reading(client)
    near = client._link
    assert isinstance(near, MemoryEnd)
    del near.written[:], link.written[:]
    client.write(b"question")
    client.write(b"question")
    server.write(b"answer")
    client.write(b"")
    assert link.written == b"\x82\x06answer"
    first, second = bytes(near.written[:14]), bytes(near.written[14:])
    assert first[:2] == second[:2] == b"\x82\x88"
    assert first[2:6] != second[2:6]
    assert first[2:6] != bytes(4)
    client.abort()
    await turns()


async def test_text_fragments_and_control_frames_are_understood():
    s = Scene()
    s.ws.resume_reading()
    start = bytes([0x01]) + frame(b"a")[1:]
    end = bytes([0x80]) + frame(b"c")[1:]
    await s.send(start, frame(b"p", wire.PING), end, frame(b"", wire.PONG), frame(b"d"))
    assert s.reader.data == b"acd"
    assert s.peer.data == b"\x8a\x01p"
    s.ws.abort()
    await turns()


async def test_of_many_pings_the_last_is_answered():
    s = Scene()
    s.ws.resume_reading()
    await s.send(b"".join(frame(b"%d" % n, wire.PING) for n in range(1000)))
    assert s.peer.data == b"\x8a\x03999"
    s.ws.abort()
    await turns()


async def test_who_asks_and_does_not_read_gets_no_more_answers():
    s = Scene()
    s.ws.set_write_buffer_limits(high=1000, low=100)
    s.ws.resume_reading()
    s.far.pause_reading()
    for _ in range(100):
        await s.send(frame(b"x" * 125, wire.PING))
    assert s.ws.get_write_buffer_size() < 1200
    s.far.resume_reading()
    await turns()
    await s.send(frame(b"again", wire.PING))
    assert s.peer.data.endswith(b"\x8a\x05again")
    s.ws.abort()
    await turns()


@pytest.mark.parametrize(
    "bad",
    [
        b"\xc2" + frame(b"x")[1:],
        wire.encode_frame(b"no mask"),
        b"\x83" + frame()[1:],
        b"\x80" + frame(b"x")[1:],
        b"\x09" + frame(b"x")[1:],
        b"\x82\xff" + b"\xff" * 8 + MASK,
    ],
)
async def test_a_breach_of_the_rules_ends_it_with_the_code_for_that(bad):
    s = Scene()
    s.ws.resume_reading()
    await s.send(frame(b"good"), bad, frame(b"ignored"))
    assert isinstance(await s.reader.until_lost(), RemoteWireError)
    assert s.reader.data == b"good"
    assert s.peer.data == b"\x88\x02\x03\xea"
    assert s.ws.is_closing()


async def test_a_huge_frame_passes_through_without_being_kept():
    s = Scene()
    s.ws.resume_reading()
    total = 0

    def count(data: bytes) -> None:
        nonlocal total
        total += len(data)
        s.reader.data.clear()

    s.reader.on_data = count
    await s.send(b"\x82\xff" + (2**62).to_bytes(8, "big") + bytes(4))
    for _ in range(100):
        await s.send(bytes(64 * 1024))
    assert total == 100 * 64 * 1024
    assert s.ws._held == b""
    s.ws.abort()
    await turns()


# -- pauses -------------------------------------------------------------------------------------


async def test_nothing_is_delivered_while_paused_and_nothing_is_lost():
    s = Scene(early=frame(b"early "))
    await s.send(frame(b"late "))
    assert s.reader.data == b""
    s.ws.resume_reading()
    await turns()
    assert s.reader.data == b"early late "
    s.ws.pause_reading()
    assert s.link.paused
    await s.send(frame(b"and more"))
    s.ws.data_received(b"")  # A link may bring what was under way.
    assert s.reader.data == b"early late "
    s.ws.resume_reading()
    await turns()
    assert s.reader.data == b"early late and more"
    s.ws.abort()
    await turns()


async def test_what_was_under_way_when_it_was_paused_comes_first():
    s = Scene()
    s.ws.resume_reading()
    s.ws.pause_reading()
    s.ws.data_received(frame(b"1") + frame(b"2")[:3])
    await s.send(frame(b"2")[3:])
    s.ws.resume_reading()
    await turns()
    assert s.reader.data == b"12"
    s.ws.abort()
    await turns()


async def test_a_reader_that_pauses_hears_of_the_end_when_it_goes_on():
    s = Scene()
    s.reader.on_data = lambda data: s.ws.pause_reading()
    s.ws.resume_reading()
    await s.send(frame(b"last") + frame(b"", wire.CLOSE))
    assert s.reader.events == ["data"]
    s.reader.on_data = None
    s.ws.resume_reading()
    assert s.reader.events == ["data", "eof"]
    s.ws.close()
    assert await s.reader.until_lost() is None


async def test_a_full_link_pauses_the_writer():
    s = Scene()
    s.ws.set_write_buffer_limits(high=1000, low=100)
    s.far.pause_reading()
    s.ws.write(bytes(2000))
    assert s.reader.choked
    s.far.resume_reading()
    await turns()
    assert not s.reader.choked
    s.ws.abort()
    await turns()


# -- ends ---------------------------------------------------------------------------------------


async def test_a_close_frame_is_the_end_and_is_answered():
    s = Scene()
    s.reader.keep_open = False
    s.ws.resume_reading()
    await s.send(frame(b"bye") + frame(b"\x03\xe8", wire.CLOSE))
    assert s.reader.data == b"bye"
    assert s.reader.ends == 1
    assert await s.reader.until_lost() is None
    assert s.peer.data == b"\x88\x02\x03\xe8"


async def test_a_reader_may_answer_after_the_end_of_the_other_side():
    s = Scene()
    s.ws.resume_reading()
    await s.send(frame(b"", wire.CLOSE))
    assert s.reader.ends == 1
    s.ws.write(b"answer")
    s.ws.close()
    await turns()
    assert s.said() == b"answer"
    assert s.heard.closed == b"\x03\xe8"
    assert await s.reader.until_lost() is None


async def test_the_end_of_the_connection_after_a_close_frame_is_in_order():
    s = Scene()
    s.ws.resume_reading()
    await s.send(frame(b"", wire.CLOSE))
    s.far.close()
    assert await s.reader.until_lost() is None


async def test_an_end_without_a_close_frame_is_a_cut():
    s = Scene()
    s.ws.resume_reading()
    await s.send(frame(b"half")[:-1])
    s.far.close()
    assert isinstance(await s.reader.until_lost(), PeerClosed)
    assert s.reader.ends == 0


async def test_a_close_waits_for_what_was_written_and_for_no_answer():
    s = Scene()
    s.ws.resume_reading()
    s.ws.write(b"last words")
    s.ws.close()
    s.ws.close()
    s.ws.write(b"nothing")
    s.ws.data_received(frame(b"under way"))
    s.ws.pause_reading()
    s.ws.resume_reading()
    assert await s.reader.until_lost() is None
    assert s.said() == b"last words"
    assert s.heard.closed == b"\x03\xe8"
    assert s.reader.data == b""


async def test_a_reader_that_closes_hears_nothing_more():
    s = Scene()
    s.reader.on_data = lambda data: s.ws.close()
    s.ws.resume_reading()
    await s.send(frame(b"1") + frame(b"p", wire.PING) + frame(b"", wire.CLOSE))
    assert s.reader.events == ["data", "lost"]
    assert s.peer.data == b"\x88\x02\x03\xe8"


async def test_an_abort_resets_the_link():
    s = Scene()
    s.ws.resume_reading()
    s.ws.abort()
    await turns()
    assert s.reader.lost == [None]
    assert isinstance(s.peer.lost[0], ConnectionResetError)


async def test_there_is_no_half_close():
    s = Scene()
    assert not s.ws.can_write_eof()
    with pytest.raises(NotImplementedError):
        s.ws.write_eof()
    assert s.ws.get_extra_info("peername") == ("203.0.113.7", 4711)
    s.ws.abort()
    await turns()


async def test_tls_runs_inside():
    client, server, _ = await linked()
    shake = asyncio.get_running_loop().create_task(
        upgrade(server, server_context(), server_side=True)
    )
    inner = await within(
        upgrade(client, client_context(), server_side=False, server_name=NAME), 5, "TLS"
    )
    outer = await shake
    near, far = Reader(), Reader()
    for end, reader in ((inner, near), (outer, far)):
        end.set_protocol(reader)
        end.resume_reading()
    inner.write(b"x" * 100_000)
    assert await far.until_data(100_000)
    inner.close()
    await far.until_ended()
    outer.close()
    await near.until_lost()
    assert await far.until_lost() is None


@pytest.mark.parametrize("ours", [False, True])
async def test_a_peer_that_does_not_read_holds_a_closed_websocket_for_a_moment_only(
    monkeypatch, ours, loop_kind
):
    monkeypatch.setattr(module, "LINGER_S", 0.05)
    async with tcp_to_raw() as (link, peer):
        link.pause_reading()
        ws = WebSocketEndpoint(link, client=False)
        reader = reading(ws, keep_open=False)
        ws.write(bytes(16 * 1024 * 1024))
        await turns()
        if ours:
            ws.close()
        else:
            await peer.send(frame(opcode=wire.CLOSE))
        await until(ws.is_closing, "the close")
        await until(lambda: reader.lost, "the end of patience", 5)
