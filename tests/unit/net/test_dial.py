"""Outgoing connections: every address is tried, and every failure named."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import contextmanager

import pytest

from pyfrp.errors import DialError
from pyfrp.net import dial
from pyfrp.net.dial import dial_tcp, explain, resolve
from tests.support import leaks
from tests.support.interrupted import Interrupted
from tests.support.ports import black_hole
from tests.support.waiting import until, within
from tests.unit.net.ends import RawPeer, Reader


@contextmanager
def listening(family=socket.AF_INET, host="127.0.0.1"):
    """A listener, its port, and a way to accept what came."""
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(5)
        yield listener.getsockname()[1], lambda: RawPeer(listener.accept()[0])


def refusing():
    """A port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def resolving_to(monkeypatch, *addresses):
    async def resolve(host, port):
        return list(addresses)

    monkeypatch.setattr(dial, "resolve", resolve)


async def test_a_connection_comes_paused_and_carries_bytes(loop_kind):
    with listening() as (port, accept):
        endpoint, held = await dial_tcp("127.0.0.1", port, timeout_s=5)
        peer = accept()
        await peer.send(b"hello")
        for _ in range(20):
            await asyncio.sleep(0)
        early = held.early
        reader = Reader()
        endpoint.set_protocol(reader)
        if early:
            reader.data_received(early)
        endpoint.resume_reading()
        assert await reader.until_data(5) == b"hello"
        endpoint.write(b"back")
        assert await peer.receive_exactly(4) == b"back"
        endpoint.abort()
        peer.close()


async def test_a_service_that_speaks_and_leaves_at_once_loses_nothing(loop_kind):
    """uvloop reads before it can be told to pause."""
    with listening() as (port, accept):
        loop = asyncio.get_running_loop()

        def serve():
            peer = accept()
            peer.sock.setblocking(True)
            peer.sock.sendall(b"greeting")
            peer.close()

        for _ in range(20):
            serving = loop.run_in_executor(None, serve)
            endpoint, held = await dial_tcp("127.0.0.1", port, timeout_s=5)
            await serving
            reader = Reader()
            if held.early:
                reader.data_received(held.early)
            endpoint.set_protocol(reader)
            if held.ended:
                reader.eof_received()
            else:
                endpoint.resume_reading()
            await reader.until_ended()
            assert reader.data == b"greeting"
            endpoint.abort()
        await loop.shutdown_default_executor()


async def test_every_address_of_a_name_is_tried_in_order(loop_kind, monkeypatch):
    with listening() as (port, accept):
        dead = refusing()
        resolving_to(monkeypatch, ("127.0.0.1", dead), ("127.0.0.1", port))
        endpoint, _ = await dial_tcp("llm.test", port, timeout_s=5)
        assert endpoint.get_extra_info("peername")[1] == port
        endpoint.abort()
        accept().close()


async def test_an_address_that_does_not_answer_does_not_hold_up_the_next(loop_kind, monkeypatch):
    """As with a broken IPv6 route in front of a working IPv4 one."""
    monkeypatch.setattr(dial, "STAGGER_S", 0.05)
    loop = asyncio.get_running_loop()
    with listening() as (port, accept), black_hole() as hole:
        resolving_to(monkeypatch, *[("127.0.0.1", hole)] * 3, ("127.0.0.1", port))
        start = loop.time()
        endpoint, _ = await dial_tcp("llm.test", port, timeout_s=20)
        assert loop.time() - start < 5
        assert endpoint.get_extra_info("peername")[1] == port
        endpoint.abort()
        accept().close()


async def test_of_two_that_answer_the_first_is_used_and_the_other_left_alone(
    loop_kind, monkeypatch
):
    with listening() as (first, accept), listening() as (second, other):
        resolving_to(monkeypatch, ("127.0.0.1", first), ("127.0.0.1", second))
        endpoint, _ = await dial_tcp("llm.test", 1, timeout_s=5)
        assert endpoint.get_extra_info("peername")[1] == first
        endpoint.abort()
        accept().close()
        del other  # Nothing came there; closing the listener would reset it unseen.


async def test_of_two_that_stand_in_the_same_moment_one_is_dropped(loop_kind, monkeypatch):
    monkeypatch.setattr(dial, "STAGGER_S", 0)
    with listening() as (first, accept), listening() as (second, accept_other):
        resolving_to(monkeypatch, ("127.0.0.1", first), ("127.0.0.1", second))
        endpoint, _ = await dial_tcp("llm.test", 1, timeout_s=5)
        used = endpoint.get_extra_info("peername")[1]
        assert used in (first, second)
        endpoint.abort()
        for peer in (accept(), accept_other()):
            assert await peer.receive_all() == b""
            peer.close()


@pytest.mark.parametrize("late", [False, True])
async def test_a_dial_of_several_addresses_that_is_cancelled_leaves_nothing(
    loop_kind, monkeypatch, late
):
    """Also where one stands already, and the others are only to be ended."""
    monkeypatch.setattr(dial, "STAGGER_S", 0.02)
    with listening() as (port, _), black_hole() as hole:
        resolving_to(monkeypatch, ("127.0.0.1", hole), ("127.0.0.1", port))
        for at in range(1, 20):
            before = leaks.look()
            attempt = Interrupted(dial_tcp("llm.test", port, timeout_s=5), at, late=late)
            task = attempt.start()
            await within(asyncio.wait([task]), 10, "the end of the dial")
            if not task.cancelled():
                task.result()[0].abort()
            await until(lambda b=before: not leaks.look() - b, f"all of {at} to be gone", 3)
            if attempt.points < at:
                break


async def test_all_that_do_not_answer_are_named_at_the_deadline(loop_kind, monkeypatch):
    monkeypatch.setattr(dial, "STAGGER_S", 0.05)
    with black_hole() as hole:
        resolving_to(monkeypatch, *[("127.0.0.1", hole)] * 4)
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(DialError) as caught:
            await dial_tcp("llm.test", hole, timeout_s=0.5)
        assert 0.4 < loop.time() - start < 3
    assert str(caught.value).count("no answer within 0.5 s") == 4


async def test_addresses_of_another_family_than_our_own_are_left_out(loop_kind, monkeypatch):
    with listening() as (port, accept):
        resolving_to(monkeypatch, ("::1", port), ("127.0.0.1", port))
        endpoint, _ = await dial_tcp("llm.test", port, timeout_s=5, local_ip="127.0.0.2")
        assert endpoint.get_extra_info("sockname")[0] == "127.0.0.2"
        endpoint.abort()
        accept().close()
    resolving_to(monkeypatch, ("::1", 1))
    with pytest.raises(DialError, match=r"it has no IPv4 address, and .* come from 127\.0\.0\.2"):
        await dial_tcp("llm.test", 1, timeout_s=5, local_ip="127.0.0.2")


async def test_names_can_be_looked_up_another_way():
    async def lookup(name):
        return {"llm.test": ["192.0.2.1", "2001:db8::1"]}[name]

    dial.look_up_with(lookup)
    try:
        assert await resolve("llm.test", 7) == [("192.0.2.1", 7), ("2001:db8::1", 7)]
        assert await resolve("127.0.0.1", 7) == [("127.0.0.1", 7)]
    finally:
        dial.look_up_with(None)


async def test_all_failures_are_named_with_their_addresses(loop_kind, monkeypatch):
    first, second = refusing(), refusing()
    resolving_to(monkeypatch, ("127.0.0.1", first), ("127.0.0.1", second))
    with pytest.raises(DialError) as caught:
        await dial_tcp("llm.test", 1, timeout_s=5)
    text = str(caught.value)
    assert f"127.0.0.1:{first}: connection refused" in text
    assert f"127.0.0.1:{second}: connection refused" in text


async def test_silence_is_named_with_its_address_and_the_time(loop_kind):
    with black_hole() as hole, pytest.raises(DialError) as caught:
        await dial_tcp("127.0.0.1", hole, timeout_s=0.2)
    assert str(caught.value) == f"dial tcp 127.0.0.1:{hole}: no answer within 0.2 s"


async def test_a_slow_resolver_is_bounded_too(monkeypatch):
    async def never(host, port):
        await asyncio.Event().wait()

    monkeypatch.setattr(dial, "resolve", never)
    with pytest.raises(DialError, match=r"llm.test: no answer of the resolver within 0.05 s"):
        await dial_tcp("llm.test", 80, timeout_s=0.05)


async def test_a_name_without_an_address_says_so(monkeypatch):
    resolving_to(monkeypatch)
    with pytest.raises(DialError, match="no address"):
        await dial_tcp("llm.test", 80, timeout_s=1)


@pytest.mark.parametrize(
    "failure",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        UnicodeError("label empty or too long"),
        OSError("no resolver"),
    ],
)
async def test_a_name_that_does_not_resolve_is_a_dial_error(failure, monkeypatch):
    def getaddrinfo(*_, **__):
        raise failure

    monkeypatch.setattr(dial.socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(DialError) as caught:
        await resolve("llm.test", 80)
    monkeypatch.undo()
    words = getattr(failure, "strerror", None) or str(failure)
    assert str(caught.value) == f"lookup llm.test: {words}"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "192.0.2.7"])
async def test_addresses_are_not_looked_up(address):
    assert await resolve(address, 7000) == [(address, 7000)]


@pytest.mark.parametrize("port", [-1, 65536, 65536 + 22])
async def test_a_port_that_there_is_not_is_told_and_no_other_is_taken(loop_kind, port):
    with pytest.raises(DialError, match=rf"dial: address {port}: invalid port of 127\.0\.0\.1"):
        await dial_tcp("127.0.0.1", port, timeout_s=5)


async def test_localhost_resolves_to_each_address_once(loop_kind):
    found = await resolve("localhost", 7000)
    assert ("127.0.0.1", 7000) in found or ("::1", 7000) in found
    assert len(found) == len(set(found))


async def test_the_local_address_is_used(loop_kind):
    with listening() as (port, accept):
        endpoint, _ = await dial_tcp("127.0.0.1", port, timeout_s=5, local_ip="127.0.0.1")
        assert endpoint.get_extra_info("sockname")[0] == "127.0.0.1"
        endpoint.abort()
        accept().close()


async def test_a_local_address_that_this_machine_lacks_is_named(loop_kind):
    words = r"does this machine have 192\.0\.2\.1, transport\.connectServerLocalIP\?"
    with listening() as (port, _), pytest.raises(DialError, match=words):
        await dial_tcp("127.0.0.1", port, timeout_s=5, local_ip="192.0.2.1")


@pytest.mark.parametrize("seconds", [40_000, 10**12, 1e30])
async def test_keepalive_of_more_than_the_system_takes_is_its_longest(loop_kind, seconds):
    with listening() as (port, accept):
        endpoint, _ = await dial_tcp("127.0.0.1", port, timeout_s=5, keepalive_s=seconds)
        sock = endpoint.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 32767
        endpoint.abort()
        accept().close()


async def test_keepalive_is_set_when_asked_for(loop_kind):
    with listening() as (port, accept):
        for seconds in (0, 30):
            endpoint, _ = await dial_tcp("127.0.0.1", port, timeout_s=5, keepalive_s=seconds)
            sock = endpoint.get_extra_info("socket")
            assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == bool(seconds)
            endpoint.abort()
            accept().close()


async def test_giving_up_leaves_nothing_behind(loop_kind):
    with black_hole() as hole:
        dialling = asyncio.get_running_loop().create_task(dial_tcp("127.0.0.1", hole, timeout_s=10))
        await asyncio.sleep(0)
        dialling.cancel()
        await until(dialling.done, "the dialling to end")
        assert dialling.cancelled()


def test_errors_are_told_in_the_systems_words():
    assert explain(OSError(errno.ECONNREFUSED, "Connect call failed ('1.2.3.4', 5)")) == (
        "connection refused"
    )
    assert explain(OSError("no matching local address")) == "no matching local address"
    assert explain(OSError(-2, "resolver")) == "[Errno -2] resolver"
