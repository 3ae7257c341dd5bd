from __future__ import annotations

import asyncio
import socket

import pytest

from pyfrp.errors import LinkError
from pyfrp.nathole import punch as punching
from pyfrp.nathole.hole import LateKnocks, Outlet
from pyfrp.nathole.punch import punch
from pyfrp.nathole.sid import seal_knock, unseal_sid
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import DetectBehavior, NatHoleResp, PortsRange
from tests.support.datagrams import UdpUser
from tests.support.waiting import until, within
from tests.unit.net.ends import turns

KEY = derive_key("spec-secret")
SID = "meeting-1"


def answer(outlet: Outlet | None, role: str, *, host="127.0.0.1", inner=(), **behavior):
    """What the server says to the peer of `outlet`."""
    behavior = {"read_timeout_ms": 3000, **behavior}
    addresses = [] if outlet is None else [f"{host}:{outlet.address[1]}"]
    return NatHoleResp(
        sid=SID,
        candidate_addrs=addresses,
        assisted_addrs=list(inner),
        detect_behavior=DetectBehavior(role=role, **behavior),
    )


def go(outlet, said, key=KEY):
    errors: list[BaseException] = []

    async def attempt():
        try:
            return await punch(outlet, said, key, "t-1", lambda exc, what: errors.append(exc))
        finally:
            assert errors == []

    return asyncio.get_running_loop().create_task(attempt())


@pytest.fixture
async def pair():
    made = [await Outlet.open(), await Outlet.open()]
    yield made
    for outlet in made:
        outlet.close()
    await turns()


async def met(sender, receiver):
    holes = await within(asyncio.gather(sender, receiver), 10, "both to get through")
    a, b = holes
    assert a.peer == ("127.0.0.1", b.outlet.address[1])
    assert b.peer == ("127.0.0.1", a.outlet.address[1])
    for near, far in ((a, b), (b, a)):
        got = []
        far.outlet.reader = lambda data, source, got=got: got.append((data, source))
        near.outlet.send(b"through", near.peer)
        await until(lambda got=got: got, "a datagram")
        assert got == [(b"through", far.peer)]
    return holes


@pytest.mark.parametrize("ttl", [0, 4, 7])
@pytest.mark.parametrize("delay", [0, 50])
async def test_neither_changes_ports(pair, ttl, delay):
    one, two = pair
    receiver = go(one, answer(two, "receiver", ttl=ttl))
    await turns()
    await met(go(two, answer(one, "sender", send_delay_ms=delay)), receiver)


async def test_the_inner_address_is_tried_too(pair):
    one, two = pair
    said = answer(None, "sender", inner=[f"127.0.0.1:{one.address[1]}", "no address", "[::1]:1"])
    await met(go(two, said), go(one, answer(two, "receiver")))


async def test_guessed_ports_are_tried(pair):
    one, two = pair
    port = two.address[1]
    near = [PortsRange(first=max(port - 5, 1), last=min(port + 5, 65535))]
    # Told of another port than it has; both sides guess.
    told = answer(two, "receiver", candidate_ports=near, ttl=7)
    told.candidate_addrs = ["127.0.0.1:1"]
    await met(go(two, answer(one, "sender")), go(one, told))


async def test_random_ports_meet_many_sockets(pair, monkeypatch):
    one, two = pair
    # All ports would take minutes; these are where the kernel opens sockets.
    at = one.address[1]
    low = min(max(at - 10_000, 1024), 65534 - 20_000)
    monkeypatch.setattr(punching, "SPRAY_PORTS", range(low, low + 20_000))
    monkeypatch.setattr(punching, "SPRAY_GAP_S", 0.001)
    receiver = go(one, answer(two, "receiver", listen_random_ports=256, ttl=7))
    await turns()
    said = answer(None, "sender", send_random_ports=1000)
    said.candidate_addrs = ["127.0.0.1:1", "[::1]:5"]
    said.detect_behavior.read_timeout_ms = 8000
    hole, other = await met(go(two, said), receiver)
    assert hole.outlet is two
    other.outlet.close()


async def test_a_lost_knock_is_repeated(pair, monkeypatch):
    monkeypatch.setattr(punching, "KNOCK_AGAIN_S", (0.05, 0.05))
    one, two = pair
    ignored = []
    one.reader = lambda data, source: ignored.append(data)
    sender = go(two, answer(one, "sender"))
    await until(lambda: ignored, "the first knock, that nobody watches for")
    await met(sender, go(one, answer(two, "receiver")))


async def test_a_lost_answer_is_repeated_for_a_late_knock(pair):
    one, two = pair
    receiver = go(one, answer(two, "receiver"))
    await turns()
    with UdpUser(one.address[1]) as sender:
        sender.send(seal_knock(KEY, SID, "t-2"))
        hole = await within(receiver, 5, "the receiver to get through")
        while not unseal_sid(KEY, await sender.receive()).response:
            pass
        assert hole.on_knock(seal_knock(KEY, SID, "t-2"))
        assert unseal_sid(KEY, await sender.receive()).response
        assert not hole.on_knock(b"of the tunnel")
        assert hole.info() == {"sockname": one.address, "peername": sender.address}


def test_only_a_few_datagrams_are_looked_at():
    seen = []
    late = LateKnocks(lambda data: bool(seen.append(data)))
    for _ in range(1000):
        assert not late(b"x")
    assert len(seen) == LateKnocks.LIMIT


async def test_strangers_are_ignored(pair):
    one, two = pair
    receiver = go(one, answer(two, "receiver", read_timeout_ms=200))
    await turns()
    with UdpUser(one.address[1]) as stranger:
        for data in (b"garbage", seal_knock(derive_key("guess"), SID, "t"), bytes(2000)):
            stranger.send(data)
        stranger.send(seal_knock(KEY, "another meeting", "t"))
        with pytest.raises(LinkError, match=r"^wait detect message timeout$"):
            await within(receiver, 5, "the end")


async def test_a_sender_waits_for_an_answer(pair):
    one, two = pair
    sender = go(two, answer(one, "sender", read_timeout_ms=200))
    await turns()
    with UdpUser(two.address[1]) as knocking:
        knocking.send(seal_knock(KEY, SID, "t"))
        with pytest.raises(LinkError):
            await within(sender, 5, "the end")


async def test_everything_is_closed_when_nobody_comes(pair):
    one, _ = pair
    with pytest.raises(LinkError):
        await go(one, answer(None, "receiver", listen_random_ports=5, read_timeout_ms=1))
    assert one._socket.closed


async def test_everything_is_closed_when_it_is_cancelled(pair):
    one, two = pair
    knocks = []
    two.reader = lambda data, source: knocks.append(source)
    task = go(one, answer(two, "receiver", listen_random_ports=5))
    await until(lambda: len(knocks) == 6, "knocks of all sockets")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one._socket.closed


async def test_the_losing_sockets_are_closed(pair):
    one, two = pair
    receiver = go(one, answer(two, "receiver", listen_random_ports=3))
    hole, _ = await met(go(two, answer(one, "sender")), receiver)
    assert not hole.outlet._socket.closed


async def test_a_server_cannot_make_us_send_without_end(pair, monkeypatch):
    monkeypatch.setattr(punching, "GUESS_GAP_S", 0)
    monkeypatch.setattr(punching, "MAX_WAIT_S", 0.01)
    one, _ = pair
    sent = []
    one.send = lambda data, address, ttl=0: sent.append(address)
    said = answer(None, "receiver", candidate_ports=[PortsRange(first=-5, last=10**9)] * 50)
    said.candidate_addrs = [f"127.0.0.{n % 250 + 1}:{n + 1}" for n in range(1000)]
    said.detect_behavior.read_timeout_ms = 10**9
    with pytest.raises(LinkError):
        await go(one, said)
    assert 0 < len(sent) <= punching.MAX_GUESSES
    one = await Outlet.open()
    one.send = lambda data, address, ttl=0: sent.append(address)
    said.detect_behavior.role = "sender"
    said.detect_behavior.candidate_ports = []
    sent.clear()
    with pytest.raises(LinkError):
        await go(one, said)
    assert len(set(sent)) == punching.MAX_TARGETS


async def test_hops_are_limited_for_one_datagram_only():
    outlet = await Outlet.open("127.0.0.1")
    usual = outlet._raw.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
    seen = []
    outlet._socket.send = lambda data, address=None: seen.append(
        outlet._raw.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
    )
    outlet.send(b"x", ("127.0.0.1", 9), ttl=4)
    outlet.send(b"x", ("127.0.0.1", 9))
    assert seen == [4, usual]
    outlet.close()
    await turns()
