from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address

import pytest

from pyfrp.errors import LinkError
from pyfrp.nathole import discovery
from pyfrp.nathole.discovery import discover, local_ips, prepare
from pyfrp.nathole.hole import Outlet
from pyfrp.wire import stun
from tests.support.ports import free_port
from tests.support.stun import StunServer
from tests.support.waiting import until
from tests.unit.net.ends import turns


@pytest.fixture
async def outlet():
    made = await Outlet.open("127.0.0.1")
    yield made
    made.close()
    await turns()


async def test_both_addresses_of_the_server_are_asked(outlet):
    async with StunServer(shift=3) as server:
        found = await discover(outlet, server.address)
        port = outlet.address[1]
        assert found == [f"127.0.0.1:{port}", f"127.0.0.1:{port + 3}"]
        assert server.asked == [("127.0.0.1", port)] * 2


async def test_a_server_without_another_address_tells_one(outlet):
    async with StunServer() as server:
        server.lonely = True
        assert len(await discover(outlet, server.address)) == 1
        with pytest.raises(LinkError, match=r"^discover error: not enough addresses$"):
            await prepare(server.address, assisted=False)


async def test_a_server_that_does_not_answer_is_given_up(monkeypatch, outlet):
    monkeypatch.setattr(discovery, "ANSWER_S", 0.05)
    async with StunServer() as server:
        server.silent = True
        with pytest.raises(LinkError, match=r"^wait response from stun server timeout$"):
            await discover(outlet, server.address)


async def test_a_question_that_gets_lost_is_asked_again(monkeypatch, outlet):
    monkeypatch.setattr(discovery, "REPEATS_S", (0.01, 10.0))
    async with StunServer() as server:
        server.silent = True

        async def wake():
            await until(lambda: server.heard, "the first question")
            server.silent = False

        found, _ = await asyncio.gather(discover(outlet, server.address), wake())
        assert len(found) == 2


async def test_answers_to_other_questions_are_ignored(outlet):
    async with StunServer() as server:
        answer = server.answer
        forged = stun.encode_response(stun.Binding(bytes(12), ("9.9.9.9", 9)))

        def with_forgery(number, data, source):
            for bad in (forged, b"garbage"):
                server._transports[number].sendto(bad, source)
            return answer(number, data, source)

        server.answer = with_forgery
        found = await discover(outlet, server.address)
        assert not any(address.startswith("9.9.9.9") for address in found)


async def test_a_server_that_refuses_is_told_of_at_once(outlet):
    async with StunServer() as server:

        def refuse(number, data, source):
            return b"\x01\x11\x00\x00" + data[4:20]

        server.answer = refuse
        with pytest.raises(LinkError, match="refused the request"):
            await discover(outlet, server.address)


@pytest.mark.parametrize("text", ["", "x", "host:", ":3478", "host:0", "host:99999", "host:x"])
async def test_what_is_no_server_is_told(outlet, text):
    with pytest.raises(LinkError, match="is not host:port"):
        await discover(outlet, text)


async def test_a_server_that_has_no_ipv4_address_is_told(outlet):
    with pytest.raises(LinkError, match="no IPv4 address"):
        await discover(outlet, "[::1]:3478")


async def test_a_server_that_does_not_exist_is_told(outlet):
    with pytest.raises(LinkError, match=r"^lookup "):
        await discover(outlet, "nobody.invalid:3478")


async def test_the_socket_stays_the_one_that_was_seen():
    async with StunServer() as server:
        ready = await prepare(server.address, assisted=True)
        try:
            port = ready.outlet.address[1]
            assert ready.mapped == [f"127.0.0.1:{port}"] * 2
            assert ready.nat.kind == "EasyNAT"
            assert ready.assisted == [f"{ip}:{port}" for ip in local_ips()]
            with (
                socket.socket(type=socket.SOCK_DGRAM) as other,
                pytest.raises(OSError, match="in use"),
            ):
                other.bind(("0.0.0.0", port))
        finally:
            ready.outlet.close()
            await turns()


async def test_addresses_of_the_machine_are_told_only_where_that_is_wanted():
    async with StunServer() as server:
        ready = await prepare(server.address, assisted=False)
        assert ready.assisted == []
        ready.outlet.close()
        await turns()


def test_addresses_of_the_machine_are_of_use_to_others():
    found = local_ips()
    assert len(found) <= discovery.MAX_LOCAL_IPS
    for ip in found:
        assert not IPv4Address(ip).is_loopback
        assert not IPv4Address(ip).is_link_local


def test_useless_addresses_are_dropped(monkeypatch):
    given = ["127.0.0.1", "169.254.1.1", "0.0.0.0", *(f"10.0.0.{n}" for n in range(1, 20))]
    monkeypatch.setattr(discovery, "_interface_ips", lambda: given)
    monkeypatch.setattr(discovery, "_route_ip", lambda: ("10.0.0.1",))
    assert local_ips() == [f"10.0.0.{n}" for n in range(1, 11)]


async def test_nothing_stays_open_when_it_is_cancelled():
    async with StunServer() as server:
        server.silent = True
        task = asyncio.get_running_loop().create_task(prepare(server.address, assisted=False))
        await until(lambda: server.heard, "the question")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns()


async def test_an_address_in_use_is_an_error():
    taken = await Outlet.open("127.0.0.1", free_port())
    with pytest.raises(OSError, match="in use"):
        await Outlet.open("127.0.0.1", taken.address[1])
    taken.close()
    await turns()
