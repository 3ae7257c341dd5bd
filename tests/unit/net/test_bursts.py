"""Sockets for many datagrams at a time, on loopback."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any

import pytest

from pyfrp.net import bursts
from pyfrp.net.bursts import open_socket
from pyfrp.net.datagrams import bind_udp, connect_udp
from tests.support.waiting import until

HOST = "127.0.0.1"


class End:
    """A socket, and what came to it."""

    def __init__(self) -> None:
        self.came: list[tuple[bytes, Any]] = []
        self.errors: list[OSError] = []
        self.socket: Any = None

    async def open(self, sock: socket.socket, *, connected: bool) -> End:
        self.socket = await open_socket(
            sock,
            connected=connected,
            on_datagram=lambda data, source: self.came.append((data, source)),
            on_error=self.errors.append,
        )
        return self

    @property
    def data(self) -> list[bytes]:
        return [data for data, _ in self.came]


@pytest.fixture(params=["together", "one by one"])
async def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, loop_kind: str):
    """Two that know each other, the second of them connected."""
    if request.param == "together" and sys.platform != "linux":
        pytest.skip("only Linux joins datagrams")
    monkeypatch.setattr(bursts, "_LINUX", request.param == "together")
    one = await End().open(await bind_udp(HOST, 0), connected=False)
    two = await End().open(connect_udp(one.socket.address[:2]), connected=True)
    yield one, two
    one.socket.close()
    two.socket.close()
    two.socket.close()


SIZES = [1350] * 100 + [700] + [1350] * 3 + [20, 1350, 1, 1] + [9000] * 9


async def test_datagrams_arrive_as_they_were_sent(ends: tuple[End, End]):
    one, two = ends
    sent = [os.urandom(size) for size in SIZES]
    two.socket.send_many([(data, one.socket.address) for data in sent])
    await until(lambda: len(one.came) == len(sent), "all of them")
    assert one.data == sent
    back = one.came[0][1]
    assert back[1] == two.socket.address[1]
    one.socket.send_many([(data, back) for data in sent])
    await until(lambda: len(two.came) == len(sent), "all of them")
    assert two.data == sent
    assert one.errors == two.errors == []


async def test_each_goes_to_its_address(ends: tuple[End, End]):
    one, two = ends
    three = await End().open(await bind_udp(HOST, 0), connected=False)
    there = [two.socket.address, three.socket.address]
    two.socket.send_many([(b"hello", one.socket.address)])
    await until(lambda: one.came, "it")
    one.socket.send_many([(bytes([n]) * 100, there[n % 3 == 0]) for n in range(30)])
    await until(lambda: len(two.came) + len(three.came) == 30, "all of them")
    assert [data[0] for data in three.data] == list(range(0, 30, 3))
    three.socket.close()


async def test_a_port_where_nobody_listens_is_told(ends: tuple[End, End]):
    one, two = ends
    there = one.socket.address
    one.socket.close()
    await until(lambda: one.socket.closed, "its end")

    def told() -> bool:  # The port is closed some turns later.
        two.socket.send_many([(b"x" * 100, there)] * 2)
        return bool(two.errors)

    await until(told, "the refusal")
    assert isinstance(two.errors[0], ConnectionRefusedError)
    # It goes on when somebody is there again.
    again = await End().open(await bind_udp(HOST, there[1]), connected=False)
    for number in range(3):
        two.socket.send_many([(b"hello", there)])
        await until(lambda: len(again.came) > number, "it")  # noqa: B023  # awaited at once
        again.socket.send_many([(b"hello yourself", again.came[0][1])])
        await until(lambda: len(two.came) > number, "the answer")  # noqa: B023  # as above
    again.socket.close()


async def test_nothing_is_sent_or_told_after_the_end(ends: tuple[End, End]):
    one, two = ends
    there = one.socket.address
    two.socket.close()
    two.socket.send_many([(b"x", there)])
    assert two.socket.closed
    assert one.came == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux joins datagrams")
async def test_where_nothing_can_be_joined_each_is_sent_alone(monkeypatch: pytest.MonkeyPatch):
    one = await End().open(await bind_udp(HOST, 0), connected=False)
    two = await End().open(connect_udp(one.socket.address[:2]), connected=True)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "no segments here")

    monkeypatch.setattr(two.socket, "_send_together", fail)
    two.socket.send_many([(bytes([n]) * 100, one.socket.address) for n in range(10)])
    await until(lambda: len(one.came) == 10, "all of them")
    assert two.errors == []
    monkeypatch.setattr(two.socket, "_send_one", fail)
    two.socket.send_many([(b"x", one.socket.address)])
    assert [exc.errno for exc in two.errors] == [errno.EIO]
    one.socket.close()
    two.socket.close()


@pytest.mark.skipif(sys.platform != "linux", reason="others are answered by the usual way")
async def test_only_so_many_ways_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bursts, "_MOST_PEERS", 3)
    one = await End().open(await bind_udp("0.0.0.0", 0), connected=False)
    there = (HOST, one.socket.address[1])
    others = [await End().open(connect_udp(there), connected=True) for _ in range(6)]
    for other in others:
        other.socket.send_many([(b"hello", there)])
    await until(lambda: len(one.came) == 6, "all of them")
    assert len(one.socket._ways) == 3
    one.socket.send_many([(b"you, too", source) for _, source in one.came])
    await until(lambda: all(other.came for other in others), "the answers")
    for end in (one, *others):
        end.socket.close()
