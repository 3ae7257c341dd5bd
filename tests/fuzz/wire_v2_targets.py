"""What peers of wire v2 say: first bytes, hellos, frames and records."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pyfrp.errors import BadMessage, LocalWireError, PyfrpError, RefusedError, RemoteWireError
from pyfrp.net.conn import MessageConn
from pyfrp.net.datagrams import Complaints
from pyfrp.net.handshake import answer_hello, encrypt_control
from pyfrp.net.translated import translated
from pyfrp.wire import framing, v2, v2crypto
from pyfrp.wire import messages as m
from pyfrp.wire.gojson import decode_body, encode_body
from pyfrp.wire.version import MAGIC, V1, FirstDecoder, Hello
from tests.fuzz.engine import Behaviour, Target, cut
from tests.support import v2_peer
from tests.unit.net.ends import Reader, memory_pair, turns

KEY = bytes(32)
TOKENS = [MAGIC, MAGIC[:4], v2_peer.frame(1, b"{}"), v2_peer.frame(2, b"{}"), b'"codecs":["json"]']
HELLO = v2_peer.frame(v2.CLIENT_HELLO, v2_peer.offer(bytes(32)))
LOGIN = v2.encode(m.Login(user="alice"))
PACKETS = [
    m.UDPPacket(content=b"hello" * 20, remote_addr=m.UDPAddr(ip="192.0.2.7", port=4711)),
    m.UDPPacket(),
    m.Ping(),
    m.Pong(),
]


# -- sans I/O -----------------------------------------------------------------------------------


def _first(data: bytes, rng: random.Random) -> Behaviour:
    """The version does not depend on the cutting, and not one byte behind the magic is lost."""

    def run(pieces: Sequence[bytes]) -> Any:
        known: list[Any] = []
        first = FirstDecoder(lambda version, decoder: known.extend((version, decoder)))
        for piece in pieces:
            (known[1] if known else first).feed(piece)
        decoder = known[1] if known else first
        # A decoder holds what was fed: all but the magic.
        version = known[0].name if known else ""
        left = decoder.leftover()
        assert version != "v2" or MAGIC + left == data
        assert version == "v2" or left == data
        return version

    version = run([data])
    assert version == run(cut(data, rng))
    assert (version == "v2") == data.startswith(MAGIC)
    assert version or MAGIC.startswith(data)
    return version, len(data) > len(MAGIC)


def _messages(data: bytes, rng: random.Random) -> Behaviour:
    """Messages and at most one hello, which comes first."""

    def run(pieces: Sequence[bytes]) -> tuple[list[Any], str]:
        decoder = v2.MessageDecoder()
        found: list[Any] = []
        try:
            for piece in pieces:
                decoder.feed(piece)
                while (msg := decoder.next()) is not None:
                    found.append(msg)
                assert len(decoder._frames._held) < 8 + v2.MAX_PAYLOAD
        except RemoteWireError as exc:
            return found, type(exc).__name__
        return found, ""

    found, fault = run([data])
    assert (found, fault) == run(cut(data, rng))
    assert not any(isinstance(msg, Hello) for msg in found[1:])
    return tuple(type(msg).__name__ for msg in found[:3]), fault


def _hello(data: bytes, rng: random.Random) -> Behaviour:
    """A hello is answered, refused in words, or no hello."""
    try:
        hello = decode_body(v2.ClientHello, data)
    except BadMessage:
        return "none"
    try:
        answer = v2.server_hello(hello, bytes(32))
    except RefusedError as exc:
        return str(exc)[:30]
    assert answer.selected.crypto.algorithm in hello.capabilities.crypto.algorithms
    again = decode_body(v2.ServerHello, encode_body(answer))
    assert v2.check_server_hello(again, hello) in v2.ALGORITHMS
    return answer.selected.crypto.algorithm


def _server_hello(data: bytes, rng: random.Random) -> Behaviour:
    """Whatever a server chooses, only what was offered is believed."""
    ours = v2.client_hello(
        bytes(32), transport="tcp", tls=False, tcp_mux=False, algorithms=("aes-256-gcm",)
    )
    try:
        return v2.check_server_hello(decode_body(v2.ServerHello, data), ours) == "aes-256-gcm"
    except (RemoteWireError, RefusedError) as exc:
        return type(exc).__name__


def _records(algorithm: str) -> Any:
    def run(data: bytes, rng: random.Random) -> Behaviour:
        """Only what was sealed with the key comes out, in order, and little is held."""
        opener, plain, fault = v2crypto.Opener(KEY, algorithm), b"", ""
        try:
            for piece in cut(data, rng):
                before = len(opener._held)
                plain += opener.open(piece)
                assert len(opener._held) <= before + len(piece)
                assert len(opener._held) < 4 + v2crypto.MAX_PLAIN + v2crypto.TAG_SIZE
        except RemoteWireError as exc:
            fault = type(exc).__name__
        assert SEALED.startswith(plain), "bytes that nobody sealed"
        return min(len(plain), 5), fault

    return run


SEALED = b"hello" + bytes(300) + b"world"


def _stream(algorithm: str) -> bytes:
    sealer = v2crypto.Sealer(KEY, algorithm, bytes(v2crypto.NONCE_SIZES[algorithm]))
    return sealer.seal(SEALED[:5]) + sealer.seal(SEALED[5:305]) + sealer.seal(SEALED[305:])


# -- on connections -----------------------------------------------------------------------------


async def _greeting(data: bytes, rng: random.Random) -> Behaviour:
    """A server reads hello and login, and what is behind them as records."""
    near, far = memory_pair()
    near.pause_reading()
    conn = MessageConn(near, version=None)
    for piece in cut(data, rng):
        far.write(piece)
    far.write_eof()
    outcome: list[str] = []
    try:
        msg = await conn.read()
        if isinstance(msg, Hello):
            answer_hello(conn, msg)
            outcome.append("hello")
            msg = await conn.read()
            assert not isinstance(msg, Hello)
            encrypt_control(conn, "token", server=True)
        outcome.append(conn.version.name)
        while True:
            outcome.append(type(await conn.read()).__name__)
    except PyfrpError as exc:
        outcome.append(type(exc).__name__)
    near.abort()
    far.abort()
    await turns(2)
    return tuple(outcome[:4])


async def _translation(data: bytes, rng: random.Random) -> Behaviour:
    """Datagrams of either side, from one version to the other: all of them, or the end."""
    theirs, ours = (V1, v2.V2) if rng.random() < 0.5 else (v2.V2, V1)
    near, far = memory_pair()
    near.pause_reading()
    said: list[str] = []
    made = translated(near, b"", theirs, ours, complaints=Complaints(said.append))
    reader = Reader()
    made.set_protocol(reader)
    made.resume_reading()
    inward = rng.random() < 0.5
    notes = far.get_protocol()
    for piece in cut(data, rng):
        if inward:
            if not far.is_closing():
                far.write(piece)
        elif not made.is_closing():
            made.write(piece)
    await turns(3)
    source, target, out = (theirs, ours, reader) if inward else (ours, theirs, notes)
    sent, fault = _packets(source, data, pings=not inward, target=target)
    got, _ = _packets(target, bytes(out.data), pings=True, target=target)
    assert fault or got == sent
    assert got == sent[: len(got)]
    assert made.is_closing() or not fault
    near.abort()
    far.abort()
    await turns(2)
    return inward, source.name, min(len(got), 3), fault, bool(said)


def _packets(version: Any, data: bytes, *, pings: bool, target: Any) -> tuple[list[Any], str]:
    """The messages that may pass, up to the first that may not."""
    decoder = version.decoder()
    decoder.feed(data)
    found: list[Any] = []
    try:
        while (msg := decoder.next()) is not None:
            if isinstance(msg, m.Ping):
                if pings:
                    found.append(m.Ping(privilege_key=msg.privilege_key, timestamp=msg.timestamp))
            elif not isinstance(msg, m.UDPPacket):
                return found, "other"
            else:
                try:
                    target.encode(msg)
                except LocalWireError:
                    continue
                found.append(msg)
    except RemoteWireError as exc:
        return found, type(exc).__name__
    return found, ""


_BOTH = [
    b"".join(map(version.encode, PACKETS[:3])) + extra
    for version in (V1, v2.V2)
    for extra in (b"", version.encode(PACKETS[3]), version.encode(PACKETS[0])[:20])
]

TARGETS = [
    Target(
        "v2-first",
        _first,
        [MAGIC + HELLO + LOGIN, framing.encode(m.Login()), MAGIC[:5], b"FRP\x00\x03\r\n", b"F"],
        TOKENS,
    ),
    Target("v2-messages", _messages, [HELLO + LOGIN, LOGIN + HELLO, LOGIN * 3], TOKENS),
    Target(
        "v2-hello",
        _hello,
        [v2_peer.offer(bytes(32)), v2_peer.offer(bytes(5)), v2_peer.offer(bytes(32), ["none"])],
        [b'"aes-256-gcm"', b'"xchacha20-poly1305"', b'"algorithms":', b'"codecs":["json"]', b"{}"],
    ),
    Target(
        "v2-server-hello",
        _server_hello,
        [
            *(v2_peer.choice(name, bytes(32)) for name in (*v2_peer.ALGORITHMS, "none")),
            b'{"error":"no"}',
        ],
        [b'"algorithm":"aes-256-gcm"', b'"error":"x"', b'"codec":"json"', b'"serverRandom":"AA=="'],
    ),
    *(
        Target(f"v2-opener-{name}", _records(name), [_stream(name), _stream(name)[:30], bytes(60)])
        for name in v2.ALGORITHMS
    ),
    Target(
        "v2-greeting",
        _greeting,
        [
            MAGIC + HELLO + LOGIN + bytes(40),
            MAGIC + LOGIN * 2,
            MAGIC + HELLO + HELLO,
            framing.encode(m.Login()) * 2,
        ],
        TOKENS,
    ),
    Target("v2-translation", _translation, _BOTH, [v2.encode(PACKETS[0]), v2.encode(m.Ping())]),
]
