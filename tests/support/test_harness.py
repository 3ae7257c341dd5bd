"""The harness itself: a check that cannot see a fault proves nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import pytest

from tests.support import leaks
from tests.support.backends import HttpBackend
from tests.support.http import BadAnswer, Caller, Cut, calling, request
from tests.support.ports import free_port, free_ports
from tests.support.relay import relaying
from tests.support.services import EchoBackend, Pipe, ScriptBackend, running
from tests.support.waiting import all_of, until


async def test_a_task_and_a_socket_left_behind_are_seen() -> None:
    before = leaks.look()
    assert not leaks.look() - before
    task = asyncio.get_running_loop().create_task(asyncio.sleep(60), name="forgotten")
    listener = socket.create_server(("127.0.0.1", 0))
    left = leaks.look() - before
    assert left.tasks == {task}
    assert list(left.fds) == [listener.fileno()]
    assert "forgotten" in str(left)
    listener.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not leaks.look() - before


async def test_an_open_file_left_behind_is_seen() -> None:
    before = leaks.look()
    handle = os.open(__file__, os.O_RDONLY)
    assert list((leaks.look() - before).fds) == [handle]
    os.close(handle)


def test_ports_are_never_given_twice() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50


async def test_until_fails_with_a_name_when_its_limit_passes() -> None:
    with pytest.raises(AssertionError, match="the moon"):
        await until(lambda: False, "the moon", 0.05)


async def test_the_first_failure_of_many_jobs_is_raised_as_it_was() -> None:
    async def fails() -> None:
        raise KeyError("one")

    with pytest.raises(KeyError, match="one"):
        await all_of([asyncio.sleep(5), fails()])


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", Cut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Cut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n", BadAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", BadAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Cut),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", BadAnswer),
        (b"", Cut),
    ],
)
async def test_the_caller_takes_no_broken_answer(answer: bytes, fault: type[Exception]) -> None:
    async def script(pipe: Pipe) -> None:
        await pipe.read_until(b"\r\n\r\n", 10_000)
        await pipe.send(answer)

    backend = ScriptBackend(script)
    async with running(backend), calling(backend.port) as caller:
        with pytest.raises(fault):
            await caller.get()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n",
    ],
)
async def test_the_backend_complains_of_every_liberty(data: bytes) -> None:
    backend = HttpBackend()

    async def exchange() -> None:
        async with running(backend), calling(backend.port) as caller:
            await caller.send(data)
            caller.half_close()
            await caller.everything()

    with pytest.raises(AssertionError, match="in b'"):
        await exchange()


async def test_the_relay_passes_holes_heals_and_cuts() -> None:
    echo = EchoBackend()
    async with running(echo), relaying(echo.port) as relay, calling(relay.port) as caller:
        await caller.send(b"one")
        assert await caller.exactly(3) == b"one"
        relay.black_hole()
        await caller.send(b"two")
        with pytest.raises(AssertionError):
            await Caller(caller.reader, caller.writer, 0.2).exactly(3)
        relay.heal()
        assert await caller.exactly(3) == b"two"
        relay.cut()
        with pytest.raises(ConnectionResetError):
            await caller.exactly(1)


async def test_the_relay_carries_a_half_close_and_both_ends() -> None:
    echo = EchoBackend()
    async with running(echo), relaying(echo.port) as relay, calling(relay.port) as caller:
        await caller.send(b"all")
        caller.half_close()
        assert await caller.everything() == b"all"
        await until(lambda: not relay.ends, "both ends to close")


async def test_the_relay_throttles_everything_together() -> None:
    api = HttpBackend()
    async with running(api), relaying(api.port, thin=True) as relay:
        relay.throttle(1_000_000)

        async def one() -> None:
            async with calling(relay.port) as caller:
                await caller.send(request("/bytes?n=250000"))
                await caller.begin()
                await caller.rest()

        started = time.monotonic()
        await all_of([one(), one()])
        assert 0.3 < time.monotonic() - started < 3.0


async def test_a_refused_port_is_told_from_a_silent_one() -> None:
    with pytest.raises(ConnectionRefusedError):
        await Caller.open(free_port())
