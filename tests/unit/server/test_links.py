"""From an accepted connection to its first message: what is let in, for how long, how many."""

from __future__ import annotations

import asyncio
import socket

import pytest

from pyfrp.errors import LinkError, PeerClosed
from pyfrp.net.conn import MessageConn
from pyfrp.net.tls import upgrade
from pyfrp.net.websocket import connect
from pyfrp.server import links as module
from pyfrp.server.links import Link, LinkAcceptor
from pyfrp.wire.framing import encode
from pyfrp.wire.messages import Login, LoginResp
from tests.support.waiting import until, within
from tests.unit.net.ends import RawPeer, memory_pair, turns
from tests.unit.net.mux_pair import MuxSide
from tests.unit.net.tls_pair import NAME, client_context, server_context
from tests.unit.server.scene import Log, office


class Door:
    """An acceptor whose first messages are noted and answered."""

    def __init__(self, *, tcp_mux=False, force_tls=False, http=False):
        self.first = []
        self.http = []
        self.errors = []
        self.log = Log()
        self.trusting = False
        self.acceptor = LinkAcceptor(
            on_first=self._on_first,
            on_http=(lambda *what: self.http.append(what)) if http else None,
            tls=server_context(),
            force_tls=force_tls,
            tcp_mux=tcp_mux,
            mux_keepalive_s=0,
            log=self.log,
            report=lambda exc, what: self.errors.append(exc),
        )

    async def _on_first(self, conn, msg, link):
        self.first.append((conn, msg, link))
        if self.trusting:
            self.acceptor.trust(link)
        conn.write(LoginResp(run_id="seen"))
        await conn.read()

    def accept(self):
        """A connection; the far end of it, with its reader."""
        ours, theirs = memory_pair()
        sniffer = self.acceptor.protocol()
        ours.set_protocol(sniffer)
        sniffer.connection_made(ours)
        return theirs

    async def close(self):
        await self.acceptor.close()
        await turns()
        assert not self.acceptor._unknown
        assert not self.acceptor.links
        assert not len(self.acceptor._scope)
        assert self.errors == []


async def greet(theirs):
    """Log in on a connection; the answer."""
    theirs.pause_reading()
    conn = MessageConn(theirs)
    conn.write(Login(run_id="x"))
    return await within(conn.read(), 5, "the answer")


async def test_a_plain_connection_brings_its_first_message():
    door = Door()
    assert await greet(door.accept()) == LoginResp(run_id="seen")
    [(_, msg, link)] = door.first
    assert msg == Login(run_id="x")
    assert link.heard() > 0
    await door.close()


@pytest.mark.parametrize("force_tls", [False, True])
@pytest.mark.parametrize("first_byte", [b"", b"\x17"])
@pytest.mark.parametrize("tcp_mux", [False, True])
async def test_tls_is_recognised_with_and_without_frps_byte(force_tls, first_byte, tcp_mux):
    door = Door(force_tls=force_tls, tcp_mux=tcp_mux)
    theirs = door.accept()
    theirs.pause_reading()
    if first_byte:
        theirs.write(first_byte)
    tls = await within(
        upgrade(theirs, client_context(), server_side=False, server_name=NAME), 5, "the handshake"
    )
    side = None
    if tcp_mux:
        side = MuxSide(tls)
        side.start(client=True, keepalive_s=0)
        end = side.mux.open()
        end.hold()
        conn = MessageConn(end)
    else:
        conn = MessageConn(tls)
    conn.write(Login(run_id="x"))
    assert await within(conn.read(), 5, "the answer") == LoginResp(run_id="seen")
    if side is not None:
        side.mux.close()
    else:
        conn.abort()
    await door.close()


async def test_what_is_not_tls_is_closed_without_a_word_where_tls_is_required():
    door = Door(force_tls=True)
    theirs = door.accept()
    reader = theirs.get_protocol()
    theirs.write(encode(Login()))
    await until(lambda: reader.lost, "the refusal")
    assert reader.data == b""
    assert door.log.has("TLS is required")
    await door.close()


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x00\x05hello" + bytes(40), b"\x17GET / HTTP/1.1"])
async def test_a_handshake_that_fails_ends_its_own_connection(junk):
    door = Door()
    theirs = door.accept()
    reader = theirs.get_protocol()
    theirs.write(junk)
    await until(lambda: reader.lost or reader.ends, "the refusal")
    assert door.first == []
    await until(lambda: not door.acceptor._unknown, "the link to be forgotten")
    await door.close()


async def test_callers_of_the_vhost_are_handed_over_with_what_was_read():
    door = Door(http=True)
    theirs = door.accept()
    theirs.write(b"GET /v1/models HTTP/1.1\r\n")
    await until(lambda: door.http, "the caller")
    [(transport, early)] = door.http
    assert early == b"GET /v1/models HTTP/1.1\r\n"
    assert transport.paused
    assert not door.acceptor._unknown
    transport.abort()
    await door.close()


LAYERED = {
    "websocket": ("w", True),
    "tls in websocket": ("wt", False),
    "tls after a byte in websocket": ("w0t", False),
    "wss": ("tw", False),
    "wss after a byte": ("0tw", False),
}


async def wrapped(theirs, layers):
    """Put layers on a connection, the outermost first: w websocket, t TLS, 0 frp's byte."""
    for layer in layers:
        theirs.pause_reading()
        if layer == "w":
            theirs = await within(connect(theirs, "frps.test"), 5, "the websocket")
        elif layer == "t":
            shake = upgrade(theirs, client_context(), server_side=False, server_name=NAME)
            theirs = await within(shake, 5, "TLS")
        else:
            theirs.write(b"\x17")
    return theirs


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("force_tls", [False, True])
@pytest.mark.parametrize("tcp_mux", [False, True])
async def test_layers_come_off_in_either_order(name, force_tls, tcp_mux):
    layers, in_the_clear = LAYERED[name]
    door = Door(force_tls=force_tls, tcp_mux=tcp_mux)
    end = await wrapped(door.accept(), layers)
    side = None
    if tcp_mux:
        side = MuxSide(end)
        side.start(client=True, keepalive_s=0)
        stream = side.mux.open()
        stream.hold()
        conn = MessageConn(stream)
    else:
        conn = MessageConn(end)
    conn.write(Login(run_id="x"))
    if force_tls and in_the_clear:
        with pytest.raises(LinkError):
            await within(conn.read(), 5, "the end")
        assert door.log.has("TLS is required")
    else:
        assert await within(conn.read(), 5, "the answer") == LoginResp(run_id="seen")
        door.first[0][0].abort()
    if side is not None:
        side.mux.close()
    end.abort()
    await until(lambda: not door.acceptor._unknown, "the link to be forgotten")
    await door.close()


@pytest.mark.parametrize("layers", ["ww", "wtw", "twt", "tt", "wtt"])
async def test_no_layer_comes_twice(layers):
    door = Door()

    async def come():
        await MessageConn(await wrapped(door.accept(), layers)).read()

    with pytest.raises(LinkError):
        await within(come(), 5, "the refusal")
    await until(lambda: not door.acceptor._unknown, "the link to be forgotten")
    assert door.first == []
    await door.close()


async def test_who_asks_wrongly_for_a_websocket_is_answered_in_http():
    door = Door(http=True)
    theirs = door.accept()
    reader = theirs.get_protocol()
    theirs.write(b"GET /~!frp HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: reader.ends, "the refusal")
    assert reader.data.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    theirs.close()
    await until(lambda: not door.acceptor._unknown, "the link to be forgotten")
    assert door.log.has("request without an upgrade to websocket", "debug")
    await door.close()


@pytest.mark.parametrize("sent", [b"", b"\x17", b"\x16\x03", b"GET /~!frp"])
@pytest.mark.parametrize("layers", ["w", "t", "tw"])
async def test_silence_within_a_layer_is_bounded(monkeypatch, layers, sent):
    door = Door()
    end = await wrapped(door.accept(), layers)
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.05)
    if sent:
        end.write(sent)
    door.acceptor._timer.cancel()
    for waiting in door.acceptor._unknown:
        door.acceptor._unknown[waiting] = 0.0
    door.acceptor._expire()
    await until(lambda: not door.acceptor._unknown, "the link to be forgotten")
    end.abort()
    assert door.first == []
    await door.close()


@pytest.mark.parametrize("junk", [b"\x01" * 20, b"POST / HTTP/1.1\r\n", b"o" + b"\xff" * 8, b"x"])
@pytest.mark.parametrize("tcp_mux", [False, True])
async def test_nonsense_ends_its_own_connection(junk, tcp_mux):
    door = Door(tcp_mux=tcp_mux)
    theirs = door.accept()
    reader = theirs.get_protocol()
    theirs.write(junk + bytes(12))
    await until(lambda: reader.lost or reader.ends, "the refusal")
    assert door.first == []
    await door.close()


# -- how long, how many -------------------------------------------------------------------------


@pytest.mark.parametrize("tcp_mux", [False, True])
@pytest.mark.parametrize(
    "sent",
    [b"", b"\x17", b"\x16\x03\x01", b"G", encode(Login())[:12], b"\x00\x01\x00\x01" + bytes(4)],
)
async def test_whoever_does_not_say_who_he_is_in_time_is_dropped(monkeypatch, tcp_mux, sent):
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.05)
    door = Door(tcp_mux=tcp_mux)
    theirs = door.accept()
    reader = theirs.get_protocol()
    if sent:
        theirs.write(sent)
    await until(lambda: reader.lost or reader.ends, "the end of patience")
    await until(lambda: not door.acceptor._unknown, "the link to be forgotten")
    assert door.first == []
    await door.close()


async def test_a_stream_that_says_nothing_is_dropped_alone(monkeypatch):
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.05)
    door = Door(tcp_mux=True)
    door.trusting = True
    side = MuxSide(door.accept())
    side.start(client=True, keepalive_s=0)
    good = side.mux.open()
    good.hold()
    conn = MessageConn(good)
    conn.write(Login(run_id="x"))
    await within(conn.read(), 5, "the answer")
    silent, reader = side.open()
    silent.write(b"o")
    assert isinstance(await reader.until_lost(), ConnectionResetError)
    assert side.lost == []
    conn.write(Login())
    side.mux.close()
    await door.close()


async def test_a_trusted_link_may_take_its_time():
    door = Door(tcp_mux=True)
    door.trusting = True
    side = MuxSide(door.accept())
    side.start(client=True, keepalive_s=0)
    end = side.mux.open()
    end.hold()
    conn = MessageConn(end)
    conn.write(Login(run_id="x"))
    await within(conn.read(), 5, "the answer")
    assert not door.acceptor._unknown
    door.acceptor._expire()
    await turns()
    assert side.lost == []
    side.mux.close()
    await door.close()


async def test_a_link_that_only_opens_streams_is_dropped(monkeypatch):
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.05)
    door = Door(tcp_mux=True)
    side = MuxSide(door.accept())
    side.start(client=True, keepalive_s=0)
    side.open()[0].write(b"o")
    await until(lambda: side.lost, "the end of patience")
    await door.close()


async def test_a_flood_of_the_silent_costs_the_oldest_of_them(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNKNOWN", 10)
    door = Door()
    flood = [door.accept() for _ in range(50)]
    readers = [end.get_protocol() for end in flood]
    await turns()
    assert len(door.acceptor._unknown) == 10
    assert [bool(reader.lost) for reader in readers] == [True] * 40 + [False] * 10
    # Somebody with a quick login is let in all the same.
    assert await greet(door.accept()) == LoginResp(run_id="seen")
    await door.close()


@pytest.mark.parametrize(
    ("trusted", "limit"), [(False, "MAX_STREAMS_UNKNOWN"), (True, "MAX_OPENING")]
)
async def test_only_so_many_streams_of_a_link_may_keep_silent(monkeypatch, trusted, limit):
    monkeypatch.setattr(module, limit, 4)
    door = Door(tcp_mux=True)
    door.trusting = True
    side = MuxSide(door.accept())
    side.start(client=True, keepalive_s=0)
    if trusted:
        end = side.mux.open()
        end.hold()
        conn = MessageConn(end)
        conn.write(Login(run_id="x"))
        await within(conn.read(), 5, "the answer")
    opened = [side.open() for _ in range(7)]
    for stream, _ in opened:
        stream.write(b"o")
    await until(lambda: sum(bool(r.lost) for _, r in opened) == 3, "three resets")
    await turns()
    assert [bool(r.lost) for _, r in opened] == [False] * 4 + [True] * 3
    # One that speaks makes room.
    speaker, reader = opened[0]
    speaker.write(encode(Login(run_id="y"))[1:])
    await reader.until_data(1)
    late, late_reader = side.open()
    late.write(b"o")
    await turns(30)
    assert not late_reader.lost
    side.mux.close()
    await door.close()


async def test_only_so_many_streams_of_a_link_may_speak_in_vain():
    """Each that is refused is logged, as long as somebody may go on trying."""
    door = Door(tcp_mux=True)
    side = MuxSide(door.accept())
    side.start(client=True, keepalive_s=0)
    for number in range(20):
        stream, reader = side.open()
        stream.write(encode(Login(run_id="x")))
        await until(lambda seen=reader: seen.data or seen.lost, f"the answer to {number}")
        stream.close()
        await turns()
    assert len(door.first) == module.MAX_STREAMS_UNKNOWN
    side.mux.close()
    await door.close()


async def test_a_violation_on_a_link_is_logged_and_ends_it():
    door = Door(tcp_mux=True)
    theirs = door.accept()
    theirs.write(b"\x00\x02\x00\x00" + bytes(8))
    await until(lambda: door.log.has("link dropped", "warning"), "the warning")
    await door.close()


async def test_closing_drops_all_that_is_there():
    door = Door(tcp_mux=True)
    silent = door.accept().get_protocol()
    halfway = door.accept()
    halfway_reader = halfway.get_protocol()
    halfway.write(b"\x16\x03")
    side = MuxSide(door.accept())
    side.start(client=True, keepalive_s=0)
    side.open()[0].write(b"o")
    await turns()
    await door.close()
    await turns()
    assert silent.lost
    assert halfway_reader.lost
    assert side.lost


async def test_a_connection_that_ends_before_it_speaks_is_forgotten():
    door = Door()
    theirs = door.accept()
    theirs.close()
    await until(lambda: not door.acceptor._unknown, "the connection to be forgotten")
    await door.close()


@pytest.mark.parametrize("said", [b"\x16\x03", b"no message", b"GET /~!frp", b"o"])
async def test_a_connection_that_was_reset_before_it_was_accepted_is_no_error(said, loop_kind):
    """It has no address any more, which must not be missed when it is told of."""
    door = Door()
    gone = []

    def accept():
        sniffer = door.acceptor.protocol()
        gone.append(sniffer)
        return sniffer

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    for _ in range(5):
        peer = RawPeer(socket.create_connection(server.sockets[0].getsockname()))
        peer.sock.sendall(said)
        peer.reset()
    await until(lambda: len(gone) == 5 and not door.acceptor._unknown, "all to be forgotten")
    server.close()
    await door.close()


async def test_a_link_knows_when_it_was_heard():
    now = 100.0
    near, far = memory_pair()
    link = Link(near, lambda: now)
    assert link.heard() == 100.0
    now = 200.0
    assert link.heard() == 100.0
    link.touch()
    assert link.heard() == 200.0
    reader = far.get_protocol()
    link.drop()
    await turns()
    assert isinstance(reader.lost[0], ConnectionResetError)


async def test_unauthenticated_work_connections_reach_nobody(monkeypatch):
    async with office(monkeypatch) as o:
        peer = await o.login()
        stranger = MuxSide(o.link())
        stranger.start(client=True, keepalive_s=0)
        end = stranger.mux.open()
        end.hold()
        conn = MessageConn(end)
        conn.write(Login(run_id="x", privilege_key="nonsense", timestamp=1))
        answer = await within(conn.read(), 5, "the refusal")
        assert isinstance(answer, LoginResp)
        assert answer.error
        with pytest.raises(PeerClosed):
            await within(conn.read(), 5, "the end")
        assert list(o.server.controls) == [peer.run_id]
        stranger.mux.close()
