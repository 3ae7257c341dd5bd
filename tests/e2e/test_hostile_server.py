"""A client whose server is not what it seems: it says so or goes on, and never falls over."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.frpwire import SYN, Crypt, frame, mux, mux_data
from tests.support.processes import TOKEN, Kind, Program, client_config, tcp_proxy
from tests.support.services import Pipe, ScriptBackend, running
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="function")]

Script = Callable[[Pipe], Awaitable[None]]


async def _login(pipe: Pipe) -> None:
    """Take a whole Login."""
    head = await pipe.read_exactly(9)
    await pipe.read_exactly(struct.unpack(">q", head[1:])[0])


@asynccontextmanager
async def facing(script: Script, kind: Kind, directory: Path, name: str) -> AsyncIterator[Program]:
    """A client that logs in, without TLS and mux, to a server that follows a script.

    Both have ended, and its log is complete, after the `async with`.
    """
    server = ScriptBackend(script)
    async with running(server):
        config = client_config(
            server.port,
            [tcp_proxy("p", 1, 0)],
            {"transport": {"tls": {"enable": False}, "tcpMux": False}},
        )
        client = Program(kind, "client", config, directory, name=name.replace(" ", "-"))
        try:
            yield client.start()
        finally:
            client.kill()


def saying(data: bytes, *, hold: bool = False) -> Script:
    """A server that answers the Login with these bytes."""

    async def script(pipe: Pipe) -> None:
        await _login(pipe)
        await pipe.send(data)
        if hold:
            await pipe.gone.wait()

    return script


async def _reset(pipe: Pipe) -> None:
    await _login(pipe)
    pipe.reset()


async def _endless(pipe: Pipe) -> None:
    await _login(pipe)
    while True:
        await pipe.send(b"1" + struct.pack(">q", 10_000) + b" " * 60_000)
        # A client that reads as fast as this writes would let nothing else run here, so that its
        # end would not be heard of.
        await asyncio.sleep(0)


REFUSING: dict[str, Script] = {
    "closes": saying(b""),
    "resets": _reset,
    "speaks HTTP": saying(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    "negative length": saying(b"1" + struct.pack(">q", -1) + b"{}", hold=True),
    "length beyond all": saying(b"1" + struct.pack(">q", 2**62) + b"{}", hold=True),
    "length beyond the limit": saying(b"1" + struct.pack(">q", 10241) + b" " * 10241, hold=True),
    "unknown type": saying(frame("Z", {}), hold=True),
    "not JSON": saying(frame("1", b"run_id"), hold=True),
    "deep JSON": saying(frame("1", b'{"run_id":' + b"[" * 9000), hold=True),
    "wrong types": saying(frame("1", {"run_id": 7, "version": []}), hold=True),
    "half an answer": saying(frame("1", {"run_id": "a"})[:-3]),
    "an error": saying(frame("1", {"error": "go away\x1b[31m\r\nforged line"})),
    "endless blanks": _endless,
    "a huge error": saying(frame("1", {"error": "e" * 9000})),
}


@pytest.mark.parametrize("group", [0, 1])
async def test_a_server_that_cannot_be_talked_to_ends_the_client_with_a_sentence(
    kinds: tuple[Kind, Kind], tmp_path: Path, group: int
) -> None:
    async def one(name: str) -> None:
        async with facing(REFUSING[name], kinds[1], tmp_path, name) as client:
            assert await client.exited(20) == 1, name
        raw = client.log_path.read_bytes()
        assert b"login to the server failed" in raw, (name, raw)
        assert b"Traceback" not in raw, (name, raw)
        # What the server says must not paint the terminal or forge lines.
        assert b"\x1b[31m" not in raw, (name, raw)
        assert b"\nforged line" not in raw, (name, raw)

    await all_of((one(name) for name in list(REFUSING)[group::2]), limit_s=60)


def after_login(*messages: bytes, raw: bytes = b"", hold: bool = True) -> Script:
    """A server that lets the client in, and then says these things, sealed, and raw bytes."""

    async def script(pipe: Pipe) -> None:
        await _login(pipe)
        crypt = Crypt(TOKEN)
        await pipe.send(frame("1", {"version": "0.65.0", "run_id": "0123456789abcdef"}))
        for message in messages:
            await pipe.send(crypt.seal(message))
        await pipe.send(raw)
        if hold:
            await pipe.gone.wait()

    return script


async def _work_connections(pipe: Pipe) -> None:
    """Ask for work connections and answer each of them with nonsense."""
    kind = (await pipe.read_exactly(1)).decode()
    body = await pipe.read_exactly(struct.unpack(">q", await pipe.read_exactly(8))[0])
    if kind == "o":
        crypt = Crypt(TOKEN)
        await pipe.send(frame("1", {"version": "0.65.0", "run_id": "0123456789abcdef"}))
        await pipe.send(crypt.seal(frame("2", {"proxy_name": "p", "remote_addr": ":1"})))
        await pipe.send(crypt.seal(frame("r", {}) * 40))
        await pipe.gone.wait()
        return
    assert body
    answers = [
        frame("s", {"proxy_name": "nobody"}),
        frame("s", {"proxy_name": "p", "src_port": 2**40}),
        frame("s", {"proxy_name": "p", "error": "no\x1b[31m"}),
        frame("s", {"proxy_name": 5}),
        frame("s", b"["),
        b"s" + struct.pack(">q", -5),
        b"\xff" * 100,
        b"",
    ]
    await pipe.send(answers[len(body + pipe.raw) % len(answers)])


ADMITTING: dict[str, Script] = {
    "closes": after_login(hold=False),
    "garbage for a cipher": after_login(raw=bytes(range(256)) * 40),
    "half an IV": after_login(raw=b"12345", hold=False),
    "unknown messages": after_login(frame("Z", {}), frame("o", {}), frame("p", {})),
    "answers nobody asked for": after_login(
        frame("2", {"proxy_name": "nobody", "remote_addr": "x"}),
        frame("2", {"proxy_name": "p", "error": "no\x1b[31m\r\nforged line"}),
        frame("4", {"error": "no pings please"}),
    ),
    "absurd answers": after_login(
        frame("2", {"proxy_name": None, "remote_addr": 7, "error": []}),
        frame("4", b"[[[[[["),
    ),
    "a flood of requests for work": after_login(frame("r", {}) * 5000),
    "work connections gone wrong": _work_connections,
}


async def test_a_server_that_turns_strange_after_the_login_does_not_end_the_client(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    async def one(name: str) -> None:
        async with facing(ADMITTING[name], kinds[1], tmp_path, name) as client:
            await client.logged("login to server success", 20)
            quiet = asyncio.get_running_loop().time() + 2.0
            await until(lambda: asyncio.get_running_loop().time() > quiet, "two seconds")
            assert client.is_running(), name
            assert client.figures().peak_kib < 160 * 1024
        raw = client.log_path.read_bytes()
        assert b"Traceback" not in raw, (name, raw)
        assert b"Task exception" not in raw, (name, raw)
        assert b"\x1b[31m" not in raw, (name, raw)
        assert b"\nforged line" not in raw, (name, raw)
        # Retries are spaced out, whatever the server does.
        assert raw.count(b"try to connect to server") < 20, name

    await all_of((one(name) for name in ADMITTING), limit_s=60)


async def test_a_server_that_breaks_yamux_is_left(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    """The session ends with a sentence; nothing hangs and nothing grows."""
    breaches = {
        "version": mux(0, 0, 1, 0, version=9),
        "type": mux(9, 0, 1, 0),
        "opens-streams": mux(1, SYN, 2, 0) * 1000,
        "overruns": mux(0, 0, 1, 2**31) + bytes(2**20),
        "unknown-streams": mux_data(99, b"x" * 1000) * 100,
        "go-away": mux(3, 0, 0, 2),
        "pings": mux(2, SYN, 0, 1) * 50_000,
    }

    async def one(name: str) -> None:
        async def script(pipe: Pipe) -> None:
            await pipe.read_some()
            await pipe.send(breaches[name])
            await pipe.gone.wait()

        server = ScriptBackend(script)
        async with running(server):
            config = client_config(
                server.port, [tcp_proxy("p", 1, 0)], {"transport": {"tls": {"enable": False}}}
            )
            client = Program(kinds[1], "client", config, tmp_path, name=name)
            try:
                client.start()
                assert await client.exited(20) == 1, name
                assert "login to the server failed" in client.log(), name
                assert "Traceback" not in client.log(), name
            finally:
                client.kill()

    await all_of((one(name) for name in breaches), limit_s=60)
