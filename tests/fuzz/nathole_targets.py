"""What peers of peer-to-peer connections send: knocks, datagrams of KCP, addresses."""

from __future__ import annotations

import random

from pyfrp.errors import RemoteWireError
from pyfrp.nathole.nat import classify
from pyfrp.nathole.sid import seal_knock, unseal_sid
from pyfrp.wire import kcp
from pyfrp.wire.cfb import derive_key, seal
from pyfrp.wire.kcp import Segment
from pyfrp.wire.kcp_session import KcpSession
from tests.fuzz.engine import Behaviour, Target, cut

KEY = derive_key("spec-secret")


def _knock(data: bytes, rng: random.Random) -> Behaviour:
    """Datagrams of strangers, and what somebody with the secret may seal."""
    sealed = rng.random() < 0.7
    try:
        return sealed, unseal_sid(KEY, seal(KEY, data) if sealed else data).response
    except RemoteWireError as exc:
        return sealed, type(exc).__name__


def _kcp_session(data: bytes, rng: random.Random) -> Behaviour:
    """A session whose peer sends these datagrams, with and without a header."""
    got = bytearray()
    session = KcpSession(1, on_data=got.extend, now=0.0, window=16)
    session.write(bytes(rng.randrange(5000)))
    now, sent = 0.0, 0
    for piece in cut(data, rng):
        now += rng.choice((0.0, 0.01, 1.0, 100.0))
        if rng.random() < 0.2:
            session.hold()
        session.feed(kcp.encode_data(0, piece) if rng.random() < 0.5 else piece, now)
        session.wake(now)
        for datagram in session.take_output(now):
            sent += 1
            kcp.decode_segments(kcp.decode_datagram(datagram).body)
        if rng.random() < 0.2:
            session.release()
        assert len(session._early) + len(session._ready) <= 16
        assert len(session._sent) <= 16
        assert (session.deadline() or now) >= now
    return bool(got), min(sent, 20), session.idle


def _addresses(data: bytes, rng: random.Random) -> Behaviour:
    """What a peer claims to be its addresses."""
    claimed = data.decode(errors="surrogateescape").split(",")
    try:
        nat = classify(claimed, claimed[:1])
    except ValueError as exc:
        text = str(exc)
    else:
        return nat.kind, nat.behavior, nat.regular
    assert len(text) < 150
    return "".join(c for c in text if c.isalpha())[:20]


_SEGMENTS = [
    kcp.encode_segments(
        [
            Segment(1, kcp.PUSH, wnd=9, ts=1, sn=0, data=b"hello"),
            Segment(1, kcp.ACK, wnd=9, ts=1, sn=0, una=1),
        ]
    ),
    kcp.encode_segments([Segment(1, kcp.ASK_WINDOW), Segment(1, kcp.TELL_WINDOW, wnd=3)]),
]

TARGETS = [
    Target(
        "knock",
        _knock,
        [seal_knock(KEY, "sid", "t"), b'5\0\0\0\0\0\0\0\x0d{"sid":"meet"}'],
        [b'{"sid":', b'"response":true'],
    ),
    Target("kcp-session", _kcp_session, _SEGMENTS, [b"\1\0\0\0Q", b"\1\0\0\0R"]),
    Target(
        "nat-addresses",
        _addresses,
        [b"1.2.3.4:5,1.2.3.4:6", b"[::1]:5,[::1]:5"],
        [b":", b",", b"[", b"]"],
    ),
]
