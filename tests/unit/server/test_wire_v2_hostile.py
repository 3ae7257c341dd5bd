"""Peers that break the rules of wire v2: each is refused, and a client beside it served on."""

from __future__ import annotations

import asyncio
import struct

import pytest

from pyfrp.wire import v2
from tests.support import v2_peer
from tests.support.frpwire import frame, login_message
from tests.support.ports import free_port
from tests.support.v2_peer import (
    CLIENT_HELLO,
    MAGIC,
    MESSAGE,
    SERVER_HELLO,
    V2Peer,
    message,
    offer,
    v2_peering,
)
from tests.support.waiting import all_of, until
from tests.unit.server.scene import TOKEN
from tests.unit.server.v2_scene import logged_in, port_of, serving

both = pytest.mark.parametrize("algorithm", v2_peer.ALGORITHMS)


@pytest.fixture(autouse=True)
def _certificate(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path_factory.getbasetemp() / "state"))


# -- hostile peers ------------------------------------------------------------------------------

HELLO = v2_peer.frame(CLIENT_HELLO, offer(bytes(32)))
LOGIN = message("Login", login_message(TOKEN))

NO_GREETING = {
    "magic alone, then the end": MAGIC,
    "half a magic": MAGIC[:4],
    "a magic that goes wrong": b"FRP\x00\x01\r\n" + HELLO + LOGIN,
    "a magic of version 3": b"FRP\x00\x03\r\n" + HELLO + LOGIN,
    "the magic twice": MAGIC + MAGIC + HELLO + LOGIN,
    "version 1 after the magic": MAGIC + frame("o", login_message(TOKEN)),
    "unknown type of frame": MAGIC + v2_peer.frame(3, b"{}"),
    "type 0": MAGIC + v2_peer.frame(0, b""),
    "flags": MAGIC + v2_peer.frame(CLIENT_HELLO, offer(bytes(32)), flags=1),
    "giant hello": MAGIC + struct.pack(">HHI", CLIENT_HELLO, 0, 65_536) + b" " * 65_536,
    "hello just too long": MAGIC + v2_peer.frame(CLIENT_HELLO, b" " * (v2.MAX_HELLO + 1)),
    "message beyond the limit": MAGIC + struct.pack(">HHI", MESSAGE, 0, 65_537) + b" " * 65_537,
    "length beyond all": MAGIC + struct.pack(">HHI", MESSAGE, 0, 2**32 - 1),
    "hello that is no JSON": MAGIC + v2_peer.frame(CLIENT_HELLO, b"hello"),
    "hello of lists": MAGIC + v2_peer.frame(CLIENT_HELLO, b"[" * 8000),
    "a server's hello": MAGIC + v2_peer.frame(SERVER_HELLO, b"{}"),
    "message without an id": MAGIC + v2_peer.frame(MESSAGE, b"\x00"),
    "unknown message": MAGIC + v2_peer.frame(MESSAGE, b"\x00\x13{}"),
    "message 0": MAGIC + v2_peer.frame(MESSAGE, b"\x00\x00{}"),
    "body that is no object": MAGIC + message("Login", b"[]"),
    "deep body": MAGIC + message("Login", b'{"metas":' + b"[" * 60_000),
    "a message of the server's": MAGIC + message("ReqWorkConn", {}),
    "a ping first": MAGIC + message("Ping", {}),
    "datagrams first": MAGIC + message("UDPPacket", {"c": "aGVsbG8="}),
}


async def test_connections_that_begin_wrongly_are_closed_unanswered(monkeypatch):
    """Nothing of theirs stays, and a client beside them is served on."""

    async def one(server, name, data):
        async with v2_peering(port_of(server)) as peer:
            peer.raw(data)
            if "half" in name or "alone" in name:
                peer.writer.write_eof()
            try:
                async with asyncio.timeout(5):
                    assert await peer.reader.read() == b"", name
            except ConnectionError:
                pass  # Closed with bytes unread.

    async with serving(monkeypatch) as server, logged_in(server) as good:
        await all_of(one(server, name, data) for name, data in NO_GREETING.items())
        good.tell("Ping", {})
        assert await good.expect("Pong") == {}
        assert len(server.controls) == 1
        assert server._acceptor is not None
        await until(lambda: len(server._acceptor.links) == 1, "their links to be gone")
        assert not server._acceptor._unknown


AFTER_HELLO = {
    "hello twice": HELLO,
    "a server's hello": v2_peer.frame(SERVER_HELLO, b"{}"),
    "garbage": b"\xff" * 40,
    "version 1": frame("o", login_message(TOKEN)),
    "giant message": struct.pack(">HHI", MESSAGE, 0, 65_537) + b" " * 65_537,
}


@pytest.mark.parametrize("name", AFTER_HELLO)
async def test_what_follows_a_hello_is_a_message(monkeypatch, name):
    async with serving(monkeypatch) as server, v2_peering(port_of(server)) as peer:
        peer.raw(MAGIC + HELLO + AFTER_HELLO[name] + LOGIN)
        assert await peer.closed()
        assert not server.controls


@pytest.mark.parametrize("first", ["NewWorkConn", "NewVisitorConn"])
async def test_a_hello_before_other_connections_is_answered(monkeypatch, first):
    """No client sends one; an official server answers it."""
    async with serving(monkeypatch) as server, v2_peering(port_of(server)) as peer:
        peer.raw(MAGIC + HELLO + message(first, {"run_id": "nobody"}))
        assert (await peer.hear_frame())[0] == SERVER_HELLO
        _, body = await peer.hear()
        assert "no client control found" in body["error"]


def _sealed(peer: V2Peer, *pings: int) -> list[bytes]:
    """Whole pings, each in one record."""
    assert peer.outward is not None
    return [peer.outward.seal(message("Ping", {"timestamp": n})) for n in pings]


def _cut(peer):
    one, two = _sealed(peer, 1, 2)
    return one[:-1] + two


def _replayed(peer):
    one, two = _sealed(peer, 1, 2)
    return one + two + two


def _reordered(peer):
    one, two, three = _sealed(peer, 1, 2, 3)
    return one + three + two


def _left_out(peer):
    one, _, three = _sealed(peer, 1, 2, 3)
    return one + three


def _changed(peer):
    (one,) = _sealed(peer, 1)
    return one[:-20] + bytes([one[-20] ^ 1]) + one[-19:]


def _nonce_again(peer):
    """The stream begins anew, with the same nonce."""
    (one,) = _sealed(peer, 1)
    return one + one


def _over_long(peer):
    (one,) = _sealed(peer, 1)
    return one + struct.pack(">I", 65_553) + bytes(65_553)


def _too_short(peer):
    (one,) = _sealed(peer, 1)
    return one + struct.pack(">I", 15) + bytes(15)


def _in_the_clear(peer):
    return message("Ping", {}) * 20


def _version_1(peer):
    return frame("h", {}) * 20


def _other_algorithm(peer):
    other = next(a for a in v2_peer.ALGORITHMS if a != peer.outward.algorithm)
    return v2_peer.Records(peer.outward.key, other).seal(message("Ping", {}) * 3)


def _own_direction(peer):
    """As if it came from the server."""
    return v2_peer.Records(peer.inward.key, peer.inward.algorithm).seal(message("Ping", {}))


def _hello_inside(peer):
    return peer.outward.seal(HELLO)


def _garbage_inside(peer):
    return peer.outward.seal(b"\xff" * 100)


def _giant_inside(peer):
    return peer.outward.seal(struct.pack(">HHI", MESSAGE, 0, 2**31))


ATTACKS = [
    _cut,
    _replayed,
    _reordered,
    _left_out,
    _changed,
    _nonce_again,
    _over_long,
    _too_short,
    _in_the_clear,
    _version_1,
    _other_algorithm,
    _own_direction,
    _hello_inside,
    _garbage_inside,
    _giant_inside,
]


@both
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__[1:])
async def test_a_record_that_is_wrong_ends_its_session_and_no_other(monkeypatch, algorithm, attack):
    async with (
        serving(monkeypatch) as server,
        logged_in(server) as good,
        logged_in(server, algorithms=[algorithm]) as bad,
    ):
        bad.raw(attack(bad))
        assert await bad.closed()
        await until(lambda: len(server.controls) == 1, "the session to end")
        assert server.log.has("control connection closed: ", "warning")
        good.tell("Ping", {})
        assert await good.expect("Pong") == {}


async def test_a_recorded_session_is_worth_nothing(monkeypatch):
    """Everything that a client said, said again: the server's random is another one."""
    async with serving(monkeypatch) as server, logged_in(server) as good:
        async with v2_peering(port_of(server)) as peer:
            said = bytearray()
            raw = peer.raw

            def noting(data):
                said.extend(data)
                raw(data)

            peer.raw = noting
            await peer.login(TOKEN)
            peer.tell(
                "NewProxy", {"proxy_name": "x", "proxy_type": "tcp", "remote_port": free_port()}
            )
            await peer.expect("NewProxyResp")
        await until(lambda: len(server.controls) == 1, "the session to end")
        async with v2_peering(port_of(server)) as again:
            again.raw(bytes(said))
            assert await again.closed()
        await until(lambda: list(server.controls) == [good.run_id], "the session to end")
        assert not server._proxies


async def test_records_of_one_byte_and_of_none_are_read(monkeypatch):
    async with serving(monkeypatch) as server, logged_in(server) as peer:
        assert peer.outward is not None
        data = message("Ping", {})
        out = [peer.outward.seal(b"")]
        for at in range(len(data)):
            out += [peer.outward.seal(data[at : at + 1]), peer.outward.seal(b"")]
        peer.raw(b"".join(out))
        assert await peer.expect("Pong") == {}


async def test_an_unfinished_frame_holds_no_more_than_itself(monkeypatch):
    """A client that logged in sends almost a whole frame in almost a whole record, for ever."""
    async with serving(monkeypatch) as server, logged_in(server) as peer:
        assert peer.outward is not None
        inside = struct.pack(">HHI", MESSAGE, 0, 65_536) + bytes(65_000)
        peer.raw(peer.outward.seal(inside[:65_008]))
        peer.raw(struct.pack(">I", 65_552) + bytes(60_000))
        (control,) = server.controls.values()
        conn = control._conn
        opener = conn._decrypt.__self__
        await until(lambda: len(opener._held) >= 60_000, "the bytes to come")
        assert len(opener._held) <= 65_556
        assert len(conn._decoder._frames._held) <= 65_544
