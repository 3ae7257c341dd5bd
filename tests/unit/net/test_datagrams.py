"""UDP sockets, and how their addresses travel."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import DialError
from pyfrp.net import datagrams as module
from pyfrp.net.datagrams import (
    REPEAT_S,
    Complaints,
    DatagramSocket,
    address_of,
    bind_udp,
    connect_udp,
    packet_size,
    resolve_one,
    user_of,
)
from pyfrp.wire.messages import UDPAddr
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.unit.net.ends import turns

LOOPBACKS = ["127.0.0.1", "::1"]


class Ear:
    """A bound socket, and what it heard."""

    def __init__(self, sock: socket.socket) -> None:
        self.port = sock.getsockname()[1]
        self.sock = sock
        self.got: list[tuple[bytes, tuple]] = []
        self.errors: list[OSError] = []
        self.end = DatagramSocket(
            sock,
            on_datagram=lambda data, address: self.got.append((data, address)),
            on_error=self.errors.append,
        )


async def gone(*ears: Ear) -> None:
    for ear in ears:
        ear.end.close()
    await until(lambda: all(ear.sock.fileno() < 0 for ear in ears), "the sockets to close")


# -- sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("size", [0, 1, 1400, 60000])
async def test_datagrams_pass_both_ways_empty_ones_too(loop_kind, host, size):
    near = Ear(await bind_udp(host, 0))
    far = Ear(connect_udp((host, near.port)))
    for ear in (near, far):
        await ear.end.attach()
    data = os.urandom(size)
    far.end.send(data)
    await until(lambda: near.got, "the datagram")
    assert near.got[0][0] == data
    near.end.send(data, near.got[0][1])
    await until(lambda: far.got, "the answer")
    assert far.got[0][0] == data
    await gone(near, far)


async def test_a_port_is_not_shared_with_other_programs(loop_kind):
    ear = Ear(await bind_udp("127.0.0.1", 0))
    await ear.end.attach()
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", ear.port))
    await gone(ear)


async def test_a_port_can_be_had_again_right_after_it_was_closed(loop_kind):
    ear = Ear(await bind_udp("127.0.0.1", 0))
    await ear.end.attach()
    ear.end.close()
    again = Ear(await bind_udp("127.0.0.1", ear.port))
    await gone(ear, again)


async def test_a_port_that_is_taken_is_an_error_of_the_system():
    ear = Ear(await bind_udp("127.0.0.1", 0))
    with pytest.raises(OSError, match="in use"):
        await bind_udp("127.0.0.1", ear.port)
    ear.end.close()


async def test_a_name_that_does_not_resolve_is_one_too(monkeypatch):
    async def nowhere(host, port):
        raise DialError(f"lookup {host}: no such host")

    monkeypatch.setattr(module, "resolve", nowhere)
    with pytest.raises(OSError, match=r"lookup x\.invalid"):
        await bind_udp("x.invalid", 0)


async def test_a_service_that_is_not_there_is_told(loop_kind):
    ear = Ear(connect_udp(("127.0.0.1", free_port())))
    await ear.end.attach()
    ear.end.send(b"hello")
    await until(lambda: ear.errors, "the refusal")
    assert isinstance(ear.errors[0], ConnectionRefusedError)
    await gone(ear)


async def test_a_datagram_is_not_lost_for_the_refusal_of_an_earlier_one():
    port = free_port()
    quiet = Ear(connect_udp(("127.0.0.1", port)))  # Not attached: nobody collects the error.
    quiet.end.send(b"one")
    late = Ear(await bind_udp("127.0.0.1", port))
    await late.end.attach()
    quiet.end.send(b"two")
    await until(lambda: late.got, "the datagram")
    assert late.got[0][0] == b"two"
    assert quiet.errors == []
    await gone(quiet, late)


class Stub:
    """A socket whose sending fails."""

    family = socket.AF_INET

    def __init__(self, *errors: OSError) -> None:
        self.errors = list(errors)

    def send(self, data: bytes) -> None:
        raise self.errors.pop(0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([BlockingIOError()], 0),
        ([OSError(errno.EMSGSIZE, "too long")], 1),
        ([ConnectionRefusedError(), BlockingIOError()], 1),
        ([ConnectionRefusedError(), ConnectionRefusedError()], 1),
    ],
)
async def test_a_datagram_that_cannot_be_sent_is_lost(errors, told):
    ear = Ear(await bind_udp("127.0.0.1", 0))
    ear.end.close()
    end = DatagramSocket(Stub(*errors), on_datagram=print, on_error=ear.errors.append)
    end.send(b"x")
    assert len(ear.errors) == told
    end.close()
    end.send(b"x")


async def test_a_socket_closed_before_or_while_it_is_attached_is_closed(loop_kind):
    before = Ear(await bind_udp("127.0.0.1", 0))
    before.end.close()
    await before.end.attach()
    meanwhile = Ear(await bind_udp("127.0.0.1", 0))
    task = asyncio.ensure_future(meanwhile.end.attach())
    await asyncio.sleep(0)
    meanwhile.end.close()
    await task
    cancelled = Ear(await bind_udp("127.0.0.1", 0))
    task = asyncio.ensure_future(cancelled.end.attach())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(before, meanwhile, cancelled)


async def test_a_socket_that_the_loop_does_not_take_is_closed(monkeypatch):
    ear = Ear(await bind_udp("127.0.0.1", 0))

    class Loop:
        async def create_datagram_endpoint(self, *args, **kw):
            raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(module.asyncio, "get_running_loop", Loop)
    with pytest.raises(OSError, match="too many"):
        await ear.end.attach()
    monkeypatch.undo()
    assert ear.sock.fileno() < 0


async def test_what_comes_after_closing_is_dropped():
    ear = Ear(await bind_udp("127.0.0.1", 0))
    await ear.end.attach()
    ear.end.close()
    ear.end.datagram_received(b"late", ("127.0.0.1", 1))
    ear.end.error_received(OSError())
    assert (ear.got, ear.errors) == ([], [])
    await turns()


# -- addresses ----------------------------------------------------------------------------------


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_address_travels_and_comes_back(ip, port):
    text = str(ip).partition("%")[0]
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    address = (text, port) if family == socket.AF_INET else (text, port, 0, 0)
    found, number, zone = user_of(address)
    assert address_of(UDPAddr(ip=found, port=number, zone=zone), family) == address


def test_a_zone_travels_by_its_name():
    index, name = socket.if_nameindex()[0]
    user = user_of(("fe80::1", 53, 0, index))
    assert user == ("fe80::1", 53, name)
    addr = UDPAddr(ip=user[0], port=user[1], zone=name)
    assert address_of(addr, socket.AF_INET6) == ("fe80::1", 53, 0, index)
    assert user_of(("fe80::1", 53, 0, 4_000_000)) == ("fe80::1", 53, "4000000")
    addr = UDPAddr(ip="fe80::1", port=53, zone="7")
    assert address_of(addr, socket.AF_INET6) == ("fe80::1", 53, 0, 7)


@pytest.mark.parametrize(
    ("ip", "port", "zone"),
    [
        ("", 1, ""),
        ("localhost", 1, ""),
        ("a" * 5000 + ".test", 1, ""),
        ("<broadcast>", 1, ""),
        ("127.0.0.1\0", 1, ""),
        ("127.0.0.1", 0, ""),
        ("127.0.0.1", -1, ""),
        ("127.0.0.1", 65536, ""),
        ("127.0.0.1", 2**63 - 1, ""),
        ("fe80::1", 1, "no-such-interface"),
        ("fe80::1", 1, "x\0"),
        ("fe80::1", 1, "x" * 1000),
        ("fe80::1", 1, "9" * 1000),
        ("fe80::1", 1, "9" * 5000),
        ("fe80::1", 1, "4294967296"),
    ],
)
def test_what_is_no_address_is_refused_without_the_resolver(ip, port, zone):
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with pytest.raises(ValueError, match=r"not an address|a zone that"):
        address_of(UDPAddr(ip=ip, port=port, zone=zone), family)


@pytest.mark.parametrize(("ip", "family"), [("::1", socket.AF_INET), ("1.2.3.4", socket.AF_INET6)])
def test_an_address_of_the_other_family_is_refused(ip, family):
    with pytest.raises(ValueError, match="another family"):
        address_of(UDPAddr(ip=ip, port=1), family)


@given(st.text(max_size=30), st.integers(-(2**63), 2**63 - 1), st.text(max_size=10))
def test_any_address_is_one_or_a_value_error(ip, port, zone):
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            address = address_of(UDPAddr(ip=ip, port=port, zone=zone), family)
        except ValueError:
            continue
        assert address[:2] == (ip, port)


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ([("::1", 5), ("127.0.0.1", 5)], ("127.0.0.1", 5)),
        ([("::1", 5), ("::2", 5)], ("::1", 5)),
    ],
)
async def test_a_name_stands_for_its_first_ipv4_address(monkeypatch, found, chosen):
    async def several(host, port):
        return found

    monkeypatch.setattr(module, "resolve", several)
    assert await resolve_one("x.test", 5) == chosen


async def test_a_name_without_addresses_is_refused(monkeypatch):
    async def none(host, port):
        return []

    monkeypatch.setattr(module, "resolve", none)
    with pytest.raises(DialError, match="no address"):
        await resolve_one("x.test", 5)


@pytest.mark.parametrize(("given", "used"), [(-5, 1500), (0, 1500), (1, 1), (7000, 7000)])
def test_a_packet_size_of_nothing_is_the_default(given, used):
    assert packet_size(given) == used


# -- complaints ---------------------------------------------------------------------------------


async def test_each_kind_is_told_at_once_and_then_once_a_minute():
    said: list[str] = []
    complaints = Complaints(said.append)
    now = 1000.0
    complaints._clock = lambda: now
    for _ in range(5):
        complaints.tell("a", "it is cut")
        complaints.tell("b", "it is long")
    assert said == ["it is cut", "it is long"]
    now += REPEAT_S
    complaints.tell("a", "it is cut")
    assert said[2:] == ["it is cut (and 4 times before)"]
    now += REPEAT_S
    complaints.tell("a", "it is cut")
    assert said[3:] == ["it is cut"]
