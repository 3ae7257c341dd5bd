"""Datagrams of KCP: sessions, parity and the port that everybody can send to."""

from __future__ import annotations

import random
from typing import Any

from pyfrp.server.transports import kcp as port
from pyfrp.wire import kcp
from pyfrp.wire.kcp import ACK, ASK_WINDOW, END, PUSH, TELL_WINDOW, Segment
from pyfrp.wire.kcp_fec import KEPT, Recovery
from pyfrp.wire.kcp_session import KcpSession
from tests.fuzz.engine import Behaviour, Target

CONV = 1
WINDOW = 64
SIZE = 2  # Bytes of the length before each datagram of an input.


def _datagrams(data: bytes) -> list[bytes]:
    """An input is datagrams, each behind its length."""
    found = []
    at = 0
    while at + SIZE <= len(data):
        size = int.from_bytes(data[at : at + SIZE], "little")
        found.append(data[at + SIZE : at + SIZE + size])
        at += SIZE + size
    return found


def _input(*datagrams: bytes) -> bytes:
    return b"".join(len(d).to_bytes(SIZE, "little") + d for d in datagrams)


def _session(data: bytes, rng: random.Random) -> Behaviour:
    """Whatever comes, a session stays within its windows."""
    got = bytearray()
    end = KcpSession(CONV, on_data=got.extend, now=0.0, window=WINDOW, send_window=WINDOW)
    end.write(bytes(5000))
    end._lost = rng.choice((0.0, 1.0))
    now = 0.0
    sent = 0
    batch: list[bytes] = []
    for datagram in _datagrams(data):
        batch.append(datagram)
        if rng.random() < 0.3:
            continue
        now += rng.choice((0.0, 0.01, 1.0))
        rng.choice((end.hold, end.release))()
        end.feed(batch, now)
        batch = []
        if rng.random() < 0.5:
            end.wake(now)
        sent += len(end.take_output(now))
        assert len(end._early) + len(end._ready) <= WINDOW
        assert len(end._sent) <= WINDOW
        assert len(end._recovery._kept) <= KEPT
        assert end._wanted - len(end._ready) >= 0
    return bool(got), end.reset, end.ended, end.proven, min(sent, 4)


def _recovery(data: bytes, rng: random.Random) -> Behaviour:
    """Parity of anybody makes segments of this conversation, or nothing."""
    recovery = Recovery(CONV)
    made = 0
    for datagram in _datagrams(data):
        if not 6 <= len(datagram) <= kcp.MAX_DATAGRAM or datagram[4:6] not in (
            b"\xf1\0",
            b"\xf2\0",
        ):
            continue
        for body in recovery.note(int.from_bytes(datagram[:4], "little"), datagram):
            made += 1
            assert body
            assert all(s.conv == CONV for s in kcp.decode_segments(body))
        assert len(recovery._kept) <= KEPT
    return min(made, 3), min(recovery._faults, 3)


class _Acceptor:
    """Takes every session and notes it."""

    def adopt(self, endpoint: Any, early: bytes = b"", on_known: Any = None) -> None:
        endpoint.resume_reading()


class _Socket:
    """The port's socket, with notes of what is sent."""

    address = ("127.0.0.1", 7000)
    closed = False

    def __init__(self) -> None:
        self.sent = 0
        self.size = 0

    def send_all(self, datagrams: Any, address: Any = None) -> None:
        self.sent += len(datagrams)
        self.size += sum(map(len, datagrams))

    def close(self) -> None:
        self.closed = True


async def _port(data: bytes, rng: random.Random) -> Behaviour:
    """Datagrams of strangers make few sessions, and no more bytes than they have."""
    sock = _Socket()
    listener = port.KcpListener(_Acceptor(), keepalive_s=0)  # type: ignore[arg-type]  # see above
    for datagram in _datagrams(data):
        before = sock.size
        address = ("192.0.2.1", rng.randrange(3))
        known = address in listener.sessions
        listener._read(sock, [datagram], address)  # type: ignore[arg-type]  # see `_Socket`
        if not known and address not in listener.sessions:
            assert sock.size - before <= max(len(datagram), 40)
        assert len(listener.sessions) <= 3
    sessions = len(listener.sessions)
    for peer in list(listener.sessions.values()):
        peer.abort()
    listener.close()
    assert not listener.sessions
    return sessions, min(sock.sent, 4)


def _segment(cmd: int, **more: Any) -> Segment:
    return Segment(CONV, cmd, wnd=64, **more)


_BODIES = [kcp.encode_segments([_segment(PUSH, sn=n, data=bytes((n,)) * 30)]) for n in range(10)]
_GROUP = [kcp.encode_data(n, body) for n, body in enumerate(_BODIES)]
_PARITY = [
    kcp.encode_parity(10 + n, shard)
    for n, shard in enumerate(kcp.parity([data[6:] for data in _GROUP]))
]
_OTHERS = [
    kcp.encode_data(13, kcp.encode_segments([_segment(ACK, sn=0, una=1)])),
    kcp.encode_data(14, kcp.encode_segments([_segment(ASK_WINDOW)])),
    kcp.encode_data(15, kcp.encode_segments([_segment(TELL_WINDOW, una=2)])),
    kcp.encode_data(16, kcp.encode_segments([_segment(END, sn=10)])),
]
_SEEDS = [
    _input(*_GROUP, *_PARITY, *_OTHERS),
    _input(*_GROUP[1:], *_PARITY),
    _input(*_GROUP[:4], *_GROUP[7:], *_PARITY),
    _input(*_OTHERS),
    _input(_BODIES[0], _BODIES[1]),
]
_TOKENS = [b"\xf1\0", b"\xf2\0", *(bytes((cmd,)) for cmd in sorted(kcp.COMMANDS)), *_OTHERS]

TARGETS = [
    Target("kcp-session", _session, _SEEDS, _TOKENS),
    Target("kcp-recovery", _recovery, _SEEDS, _TOKENS),
    Target("kcp-port", _port, _SEEDS, _TOKENS),
]
