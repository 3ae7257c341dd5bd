"""Protocols on endpoints in memory: TLS, conversations, muxes, the http exchange."""

from __future__ import annotations

import random
from typing import Any

from pyfrp.errors import HandshakeError, LinkError, PyfrpError, RemoteWireError
from pyfrp.net.conn import MessageConn
from pyfrp.net.filters import FilterEndpoint
from pyfrp.net.tls import TlsEndpoint
from pyfrp.net.websocket import accept
from pyfrp.wire.framing import encode
from pyfrp.wire.messages import Login, Ping, StartWorkConn
from pyfrp.wire.snappy import SnappyReader, SnappyWriter
from pyfrp.wire.websocket import CLOSE, PING, encode_frame, encode_request, new_key
from tests.fuzz.engine import Behaviour, Target, cut
from tests.fuzz.http_targets import CHUNKS, REQUESTS, RESPONSES, TOKENS
from tests.fuzz.wire_targets import PACKED, _yamux_seeds
from tests.unit.net.ends import Reader, memory_pair, turns
from tests.unit.net.mux_pair import MuxSide
from tests.unit.net.tls_pair import Library, server_context
from tests.unit.vhost.scene import vhost
from tests.unit.wire.yamux_pair import fin, rst, syn

# -- TLS ----------------------------------------------------------------------------------------


async def _tls(data: bytes, rng: random.Random) -> Behaviour:
    """A client that says these bytes, then perhaps those of a real handshake, then closes."""
    near, far = memory_pair()
    near.pause_reading()
    tls = TlsEndpoint(near, server_context(), server_side=True)
    reader = Reader()
    near.resume_reading()
    client = Library(server_side=False)
    far.get_protocol().on_data = lambda answer: _quietly(client, answer)
    where = rng.randrange(4)
    if where == 0:
        far.write(client.out)
        await turns(3)
        far.write(client.out)
        await turns(3)
        assert tls.handshaken.done()
        tls.set_protocol(reader)
        tls.resume_reading()
        if client.shaken and rng.random() < 0.5:
            client.write(data[:1000] or b"x")
            data = bytearray(client.out)
            data[rng.randrange(len(data))] ^= rng.choice((0, 0, 1, 0x80))
            data = bytes(data)
    for piece in cut(data, rng):
        if not far.is_closing():
            far.write(piece)
        if rng.random() < 0.3:
            await turns(2)
    await turns(3)
    far.close() if rng.random() < 0.5 else far.abort()
    await turns(3)
    assert tls.handshaken.done()
    if where == 0:
        assert len(reader.lost) <= 1
        outcome: Any = (bool(reader.data), reader.ends, [type(e).__name__ for e in reader.lost])
    else:
        exc = tls.handshaken.exception()
        assert isinstance(exc, HandshakeError) or exc is None
        outcome = "".join(c for c in str(exc) if c.isalpha())[:40]
    near.abort()
    await turns(2)
    return where, str(outcome)


def _quietly(client: Library, answer: bytes) -> None:
    """The library's client may not like what it gets; that is not what is tested."""
    try:
        client.feed(answer)
    except OSError:
        pass  # ssl.SSLError is one.


# -- websocket ----------------------------------------------------------------------------------


async def _websocket(data: bytes, rng: random.Random) -> Behaviour:
    """A client that says these bytes after a good handshake, or from the start, and leaves."""
    near, far = memory_pair()
    near.pause_reading()
    good = rng.random() < 0.8
    early = encode_request("frps.test", new_key()) if good else b""
    reader = Reader(keep_open=rng.random() < 0.5)
    pieces = cut(data, rng)
    if not good:
        for piece in pieces:
            far.write(piece)
        far.close()
    try:
        websocket = await accept(near, early=early)
    except LinkError as exc:
        assert near.is_closing()
        await turns(3)
        return type(exc).__name__
    websocket.set_protocol(reader)
    websocket.resume_reading()
    for piece in pieces if good else []:
        if rng.random() < 0.2:
            websocket.pause_reading()
        if not far.is_closing():
            far.write(piece)
        await turns(2)
        assert len(websocket._held) <= len(data)
        websocket.resume_reading()
    far.close() if rng.random() < 0.5 else far.abort()
    await turns(4)
    websocket.abort()
    await turns(3)
    assert len(reader.lost) == 1
    assert near.is_closing()
    cause = reader.lost[0]
    return bool(reader.data), reader.ends, type(cause).__name__


# -- conversations and filters ------------------------------------------------------------------


async def _conversation(data: bytes, rng: random.Random) -> Behaviour:
    """Read messages until it goes wrong; what is behind a StartWorkConn belongs to the next."""
    near, far = memory_pair()
    near.pause_reading()
    early = rng.randrange(len(data) + 1) if rng.random() < 0.3 else 0
    conn = MessageConn(near, early=data[:early])
    for piece in cut(data[early:], rng):
        far.write(piece)
    far.write_eof()
    found = 0
    outcome = ""
    try:
        while True:
            msg = await conn.read()
            found += 1
            if isinstance(msg, StartWorkConn):
                endpoint, rest = conn.detach()
                reader = Reader()
                endpoint.set_protocol(reader)
                endpoint.resume_reading()
                await turns(6)
                assert reader.ends == 1
                assert data.endswith(rest + bytes(reader.data))
                outcome = "detached"
                break
    except PyfrpError as exc:
        outcome = type(exc).__name__
    near.abort()
    far.abort()
    await turns(2)
    return min(found, 3), outcome


async def _filter(data: bytes, rng: random.Random) -> Behaviour:
    near, far = memory_pair()
    near.pause_reading()
    early = rng.randrange(len(data) + 1)
    endpoint = FilterEndpoint(
        near,
        outward=SnappyWriter().compress,
        inward=SnappyReader().decompress,
        early=data[:early],
    )
    reader = Reader()
    endpoint.set_protocol(reader)
    endpoint.resume_reading()
    for piece in cut(data[early:], rng):
        far.write(piece)
    far.write_eof()
    await turns(4)
    assert reader.ends + len(reader.lost) >= 1
    outcome = [type(exc).__name__ for exc in reader.lost]
    assert all(exc is None or isinstance(exc, RemoteWireError) for exc in reader.lost)
    near.abort()
    far.abort()
    await turns(2)
    return bool(reader.data), str(outcome)


# -- the mux on a link --------------------------------------------------------------------------


async def _mux(data: bytes, rng: random.Random) -> Behaviour:
    near, far = memory_pair()
    side = MuxSide(near)
    behaviour = rng.randrange(4)

    def serve(stream: Any, reader: Any) -> None:
        reader.keep_open = behaviour != 1
        if behaviour == 2:
            stream.hold()
        elif behaviour == 3:
            reader.on_data = lambda chunk: stream.write(chunk) or stream.close()
        else:
            reader.on_data = stream.write

    side.on_stream = serve
    side.start(client=False, keepalive_s=0)
    own, own_reader = side.open()
    own.write(b"hello")
    for piece in cut(data, rng):
        if not far.is_closing():
            far.write(piece)
        if rng.random() < 0.3:
            await turns(1)
    await turns(3)
    assert side.errors == [], "a reader of ours failed"
    events = {tuple(reader.events) for reader in (*side.readers, own_reader)}
    for reader in side.readers:
        assert len(reader.lost) <= 1
        assert reader.ends <= 1
    lost = [type(exc).__name__ for exc in side.lost]
    side.mux.close()
    near.abort()
    far.abort()
    await turns(2)
    assert all(len(reader.lost) == 1 for reader in (*side.readers, own_reader))
    assert len(side.lost) == 1
    return behaviour, str(sorted(events)[:4]), str(lost)


# -- the exchange -------------------------------------------------------------------------------


async def _exchange(data: bytes, rng: random.Random) -> Behaviour:
    """A caller that says these bytes to services that answer with pieces of them."""
    async with vhost() as v:
        caller = v.call()
        for piece in cut(data, rng):
            if caller.closed or caller.ended:
                break
            caller.feed(piece)
            await turns(3)
            for service in v.services:
                if not service.closed and rng.random() < 0.5:
                    service.feed(rng.choice(RESPONSES) if rng.random() < 0.7 else piece)
            await turns(2)
        if not caller.closed and rng.random() < 0.5:
            caller.end()
        v.advance(rng.choice((0, 1, 100)))
        await turns(3)
        statuses = [line["status"] for line in v.log.lines if "status" in line]
        shape = (caller.closed, caller.aborted, caller.ended, len(v.services))
        if not caller.lost:
            caller.lose()
        await turns(2)
        return shape, str(statuses[:3])


TARGETS = [
    Target(
        "tls",
        _tls,
        [
            Library(server_side=False).out,
            b"\x16\x03\x01\x00\x05hello",
            b"\x15\x03\x03\x00\x02\x01\x00",
            b"GET / HTTP/1.1\r\n\r\n",
        ],
        [b"\x16\x03\x01", b"\x17\x03\x03", b"\x14\x03\x03\x00\x01\x01", b"\x15\x03\x03\x00\x02"],
    ),
    Target(
        "websocket-end",
        _websocket,
        [
            encode_frame(b"hello", mask=b"mask") + encode_frame(b"bye", mask=b"\0\xff\0\xff"),
            encode_frame(b"p", opcode=PING, mask=b"mask") * 3,
            encode_frame(b"last", mask=b"mask") + encode_frame(b"", opcode=CLOSE, mask=b"mask"),
        ],
        [b"\x02\x80", b"\x80\x80", b"\x82\xff", b"\x88\x80", b"\x89\x80mask", bytes(4)],
    ),
    Target(
        "conversation",
        _conversation,
        [
            encode(Login(run_id="x")) + encode(Ping()) * 3,
            encode(Ping()) + encode(StartWorkConn(proxy_name="web")) + b"payload that follows",
        ],
        [encode(Ping()), encode(StartWorkConn())],
    ),
    Target("filter", _filter, [PACKED, PACKED[:40]]),
    Target("mux", _mux, _yamux_seeds(), [syn(1), syn(3), fin(1), rst(1), fin(3)]),
    Target(
        "exchange",
        _exchange,
        [*REQUESTS, b"".join(REQUESTS), *(REQUESTS[2][:-5] + chunks for chunks in CHUNKS)],
        [*TOKENS, *REQUESTS],
    ),
]
