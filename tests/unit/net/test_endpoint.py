"""What is said of any endpoint: how it is cut, tuned and named."""

from __future__ import annotations

import asyncio
import socket

import pytest

from pyfrp.net import endpoint, sockets
from tests.unit.net.ends import Reader, memory_pair, tcp_pair, tcp_to_raw, turns


async def test_a_cut_tcp_connection_is_told_from_an_orderly_end(loop_kind):
    """By a reset: whoever reads until the end must not take the rest for nothing."""
    async with tcp_to_raw() as (transport, peer):
        transport.write(b"half of it")
        assert await peer.receive() == b"half of it"
        endpoint.reset(transport)
        with pytest.raises(ConnectionResetError):
            await peer.receive()


async def test_a_cut_drops_what_is_pending(loop_kind):
    async with tcp_to_raw() as (transport, peer):
        transport.write(bytes(16 << 20))
        assert transport.get_write_buffer_size()
        endpoint.reset(transport)
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()


async def test_cutting_what_is_lost_already_does_nothing(loop_kind):
    reader = Reader()
    async with tcp_to_raw(lambda: reader) as (transport, _):
        transport.abort()
        await reader.until_lost()
        await turns()
        endpoint.reset(transport)


async def test_endpoints_without_a_socket_are_cut_by_their_own_abort():
    near, far = memory_pair()
    reader = far.get_protocol()
    endpoint.reset(near)
    await turns()
    assert isinstance(reader.lost[0], ConnectionResetError)


async def test_tuning_sets_our_marks(loop_kind):
    """uvloop's low mark is 16 bytes: it would stop and start the source for every chunk."""
    async with tcp_pair() as (near, far):
        endpoint.tune(near)
        reader = near.get_protocol()
        far.pause_reading()
        while not reader.choked:
            near.write(bytes(64 * 1024))
        assert near.get_write_buffer_size() > endpoint.HIGH_WATER
        received = 0

        def count(data: bytes) -> None:
            nonlocal received
            received += len(data)
            if not reader.choked:
                assert near.get_write_buffer_size() <= endpoint.LOW_WATER

        far.get_protocol().on_data = count
        far.resume_reading()
        async with asyncio.timeout(10):
            while reader.choked:
                await asyncio.sleep(0)
        assert received


async def test_nagle_is_off_on_both_kinds_of_loop(loop_kind):
    """`tune` counts on it: a token must not wait for the acknowledgement of the one before."""
    async with tcp_pair() as (near, far):
        for transport in (near, far):
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("seconds", "on"), [(0, 0), (-1, 0), (0.3, 1), (90, 1), (7200, 1)])
def test_keepalive_is_set_for_a_positive_number_of_seconds(seconds, on):
    with socket.socket() as sock:
        sockets.set_keepalive(sock, seconds)
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == bool(on)
        if on:
            idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert idle == max(1, int(seconds))
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) <= 75


async def test_options_of_a_closed_socket_are_nobodys_error(loop_kind):
    """uvloop says ValueError where asyncio says OSError."""
    reader = Reader()
    async with tcp_to_raw(lambda: reader) as (transport, _):
        sock = transport.get_extra_info("socket")
        transport.abort()
        await reader.until_lost()
        await turns()
        sockets.set_keepalive(sock, 10)
        sockets.bound_unsent(sock)


async def test_the_kernel_holds_little_that_it_has_not_sent(loop_kind):
    async with tcp_pair() as (near, _):
        sock = near.get_extra_info("socket")
        sockets.bound_unsent(sock)
        bound = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert bound == sockets.UNSENT


async def test_addresses_of_a_connection(loop_kind):
    async with tcp_pair() as (near, far):
        assert endpoint.peer_address(near) == endpoint.local_address(far)
        assert endpoint.peer_address(near)[0] == "127.0.0.1"
        assert endpoint.local_address(near) == endpoint.peer_address(far)


async def test_what_has_no_address_has_an_empty_one(loop_kind):
    left, right = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(Reader, sock=left)
    try:
        assert endpoint.peer_address(transport) == ("", 0)
        assert endpoint.local_address(transport) == ("", 0)
    finally:
        transport.abort()
        right.close()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 80), "192.0.2.1:80"),
        (("::1", 7000), "[::1]:7000"),
        (("llm.example", 1), "llm.example:1"),
        (("", 0), ":0"),
    ],
)
def test_ipv6_addresses_get_brackets(address, text):
    assert endpoint.format_address(address) == text
