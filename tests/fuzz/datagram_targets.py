"""Messages with datagrams: what a far end may say on a work connection or a visitor's."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

from pyfrp.client.proxies.udp import UdpRelay
from pyfrp.errors import LocalWireError, PyfrpError
from pyfrp.net.sockets import is_numeric
from pyfrp.net.userport import UserPort
from pyfrp.wire import proxyproto
from pyfrp.wire.datagram import encode_packet, user_part
from pyfrp.wire.framing import FrameDecoder, encode
from pyfrp.wire.messages import Ping, Pong, UDPAddr, UDPPacket
from tests.fuzz.engine import Behaviour, Target, cut
from tests.unit.net.ends import memory_pair, turns
from tests.unit.net.test_userport import Wire
from tests.unit.server.scene import Log

SERVICE = ("127.0.0.1", 53)


class _Relay(UdpRelay):
    """A relay whose users have no sockets, but notes."""

    def __init__(self, log: Log, version: str) -> None:
        super().__init__(SERVICE, 1500, log, header_version=version)
        self.sent: list[tuple[Any, list[bytes]]] = []

    def _open(self, user: Any) -> Any:
        local = _Notes()
        self.sent.append((user, local.notes))
        self._locals[user] = local  # type: ignore[assignment]  # as far as it is used here
        return local


class _Notes:
    """Stands for the local socket of a user."""

    def __init__(self) -> None:
        self.heard = 0.0
        self.notes: list[bytes] = []
        self.socket = self

    def send(self, data: bytes) -> None:
        self.notes.append(data)

    def close(self) -> None:
        pass


async def _to_users(data: bytes, rng: random.Random) -> Behaviour:
    """Answers for users: only real addresses, of the socket's family, are sent to."""
    wire = Wire(rng.choice((socket.AF_INET, socket.AF_INET6)))
    log = Log()
    port = UserPort(wire, packet_size=1500, log=log)  # type: ignore[arg-type]  # see `Wire`
    near, far = memory_pair()
    near.pause_reading()
    early = rng.randrange(len(data) + 1) if rng.random() < 0.3 else 0
    port._socket.datagram_received(b"waits", ("192.0.2.7", 4711))
    serving = asyncio.ensure_future(port.serve(near, data[:early]))
    await turns(2)
    for piece in cut(data[early:], rng):
        if not far.is_closing():
            far.write(piece)
    await turns(3)
    port.close(lost=rng.random() < 0.5)
    cause = await serving
    assert isinstance(cause, PyfrpError)
    assert near.is_closing()
    for _, (ip, number, *_) in wire.sent:
        assert is_numeric(ip)
        assert (":" in ip) == (wire.family == socket.AF_INET6)
        assert 0 < number < 65536
    far.abort()
    await turns(2)
    said = [event[:40] for event in log.events("warning")]
    return wire.family, min(len(wire.sent), 3), type(cause).__name__, tuple(said)


async def _to_service(data: bytes, rng: random.Random) -> Behaviour:
    """Datagrams for the service: one socket a user, told once who he is if that is known."""
    log = Log()
    version = rng.choice(("", "v1", "v2"))
    relay = _Relay(log, version)
    near, far = memory_pair()
    near.pause_reading()
    running = asyncio.ensure_future(relay.run(near, b""))
    await turns(3)
    for piece in cut(data, rng):
        if not far.is_closing():
            far.write(piece)
    await turns(3)
    relay.abort()
    await running
    far.abort()
    await turns(2)
    users = [user for user, _ in relay.sent]
    assert len(set(users)) == len(users)
    for user, notes in relay.sent:
        if version and user is not None:
            found = proxyproto.decode(notes[0])
            assert found is not None
            assert (found[0].source is None) == (version == "v1")
    said = [event[:40] for event in log.events("warning")]
    return version, min(len(users), 3), tuple(said)


def _again(data: bytes, rng: random.Random) -> Behaviour:
    """A datagram that was read is written as the general encoder writes it, and reads the same."""
    decoder = FrameDecoder()
    decoder.feed(data)
    shapes = []
    try:
        while (msg := decoder.next()) is not None:
            if not isinstance(msg, UDPPacket):
                continue
            msg.local_addr = None  # Not ours to write.
            addr = msg.remote_addr
            part = b"" if addr is None else user_part(addr.ip, addr.port, addr.zone)
            try:
                frame = encode_packet(msg.content, part)
            except LocalWireError:
                shapes.append("long")
                continue
            assert frame == encode(msg)
            second = FrameDecoder()
            second.feed(frame)
            assert second.next() == msg
            shapes.append((addr is None, bool(msg.content), bool(addr and addr.zone)))
    except PyfrpError as exc:
        shapes.append(type(exc).__name__)
    return tuple(shapes[:4])


_USERS = [
    None,
    UDPAddr(ip="192.0.2.7", port=4711),
    UDPAddr(ip="2001:db8::1", port=4711),
    UDPAddr(ip="fe80::1", port=9, zone="lo"),
    UDPAddr(ip="localhost", port=9),
    UDPAddr(ip="192.0.2.7", port=2**40),
]
_PACKETS = [
    encode(UDPPacket(content=content, remote_addr=addr))
    for addr in _USERS
    for content in (b"", b"hello" * 20)
]
_SEEDS = [*_PACKETS, b"".join(_PACKETS), encode(Ping()) + _PACKETS[2] * 3 + encode(Pong())]
_TOKENS = [b'"r":', b'"IP":"::1"', b'"Port":65536', b'"Zone":"lo"', b'"c":"aGk="', *_PACKETS[:4]]

TARGETS = [
    Target("datagrams-users", _to_users, _SEEDS, _TOKENS),
    Target("datagrams-service", _to_service, _SEEDS, _TOKENS),
    Target("datagrams-again", _again, _SEEDS, _TOKENS),
]
