"""Wire protocol v2 between real programs, and beside version 1 at one server.

Each row runs a server and five clients: two of version 2 that own proxies, over TLS and in the
clear, with one cipher each; an official one of version 1 that owns the same; and a visitor of
either version who comes to all of them.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.attack import Attacked, many
from tests.support.backends import HttpBackend
from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.http import calling, fetch
from tests.support.meeting import secret_proxy, visitor
from tests.support.ports import free_port
from tests.support.processes import (
    LOGIN_DONE,
    SERVER_READY,
    Config,
    Program,
    client_config,
    http_proxy,
    require_official,
    server_config,
    tcp_proxy,
)
from tests.support.services import BLOCK, EchoBackend, running
from tests.support.stun import StunServer
from tests.support.v2_peer import ALGORITHMS, MAGIC, MESSAGE, message
from tests.support.waiting import all_of
from tests.unit.server.test_wire_v2_hostile import AFTER_HELLO, HELLO, NO_GREETING

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

V1_SIZES, V2_SIZES = (64, 7000), (64, 20_000)
"""Datagrams that each version carries; the longest make messages beyond those of version 1."""
OWNERS: dict[str, Config] = {
    "aes": {"wireProtocol": "v2", "tls": {"enable": True}},
    "xchacha": {"wireProtocol": "v2", "tls": {"enable": False}},
    "old": {},
}
CIPHERS = dict(zip(("aes", "xchacha"), ALGORITHMS, strict=True))
# The interfaces of the machine stay out of it: everything happens on loopback.
LOOPBACK_ONLY = {"natTraversal": {"disableAssistedAddrs": True}}
GUESTS: dict[str, Config] = {"new": {"wireProtocol": "v2"}, "old": {}}
MUX = pytest.mark.parametrize("tcp_mux", [True, False], ids=["mux", "nomux"])


class Rows:
    """The programs of a row, and the ports of its proxies and visitors."""

    def __init__(self, directory: Path, tcp_mux: bool, stun: str) -> None:
        self.directory = directory
        self.stun = stun
        self.link: Config = {"udpPacketSize": max(V2_SIZES), "transport": {"tcpMux": tcp_mux}}
        self.server = Program(
            "ours",
            "server",
            server_config({**self.link, "log": {"level": "debug"}}),
            directory,
            name="server",
        )
        self.programs = [self.server]
        self.ports: dict[str, int] = {}

    def client(self, name: str, transport: Config, proxies: list[Any], visitors: list[Any]) -> Any:
        kind = "official" if name.startswith("old") else "ours"
        base = client_config(int(self.server.config["bindPort"]), proxies, self.link)
        base["transport"] = {**base["transport"], **transport}
        base |= {"user": name, "natHoleStunServer": self.stun}
        if visitors:
            base["visitors"] = visitors
        if not proxies:
            del base["proxies"]
        program = Program(kind, "client", base, self.directory, name=name)
        if name in CIPHERS:
            program.words = [sys.executable, "-m", "tests.support.observed", "client"]
            program.env = {"PYFRP_CIPHER": CIPHERS[name]}
        self.programs.append(program)
        return program

    def owner(self, name: str, tcp: int, udp: int, http: int) -> Program:
        self.ports |= {f"{name}-tcp": free_port(), f"{name}-udp": free_port()}
        udp_proxy = {
            "name": "udp",
            "type": "udp",
            "localIP": "127.0.0.1",
            "localPort": udp,
            "remotePort": self.ports[f"{name}-udp"],
        }
        layers = {"useEncryption": name != "old", "useCompression": name == "xchacha"}
        proxies = [
            tcp_proxy("tcp", tcp, self.ports[f"{name}-tcp"], transport=layers),
            udp_proxy,
            http_proxy("http", http, f"{name}.test"),
            secret_proxy("stcp", "stcp", allowUsers=["*"], localPort=tcp),
            secret_proxy("sudp", "sudp", allowUsers=["*"], localPort=udp),
            secret_proxy("xtcp", "xtcp", allowUsers=["*"], localPort=tcp, **LOOPBACK_ONLY),
        ]
        return self.client(name, OWNERS[name], proxies, [])

    def guest(self, name: str) -> Program:
        visitors = []
        for owner in OWNERS:
            for kind in ("stcp", "sudp"):
                layers = {"useEncryption": owner == "old"}
                made = visitor(kind, f"{owner}-{kind}", kind, serverUser=owner, transport=layers)
                self.ports[f"{name}-{owner}-{kind}"] = made["bindPort"]
                visitors.append(made)
            made = visitor(
                "xtcp", f"{owner}-xtcp", "xtcp", serverUser=owner, protocol="quic", **LOOPBACK_ONLY
            )
            self.ports[f"{name}-{owner}-xtcp"] = made["bindPort"]
            visitors.append(made)
        return self.client(f"{name}-guest", GUESTS[name], [], visitors)

    async def start(self) -> None:
        self.server.start()
        await self.server.logged(SERVER_READY)
        for program in self.programs[1:]:
            program.start()
        for program in self.programs[1:]:
            await program.logged(LOGIN_DONE)
            proxies, visitors = program.config.get("proxies"), program.config.get("visitors")
            if proxies:
                await program.logged("start proxy success", count=len(proxies))
            if visitors:
                await program.logged("start visitor success", count=len(visitors))


async def _echoed(port: int) -> None:
    async with calling(port) as user:
        for data in (b"a", b"few words", BLOCK):
            await user.send(data)
            assert await user.exactly(len(data)) == data


async def _datagrams(port: int, sizes: tuple[int, ...]) -> None:
    with UdpUser(port) as one, UdpUser(port) as two:
        for size in sizes:
            await all_of(user.echoed(os.urandom(size)) for user in (one, two))


async def _http(port: int, host: str) -> None:
    for _ in range(3):
        answer = await fetch(port, "/hello", host)
        assert (answer.status, answer.body) == (200, b"hello")


@MUX
async def test_both_versions_and_both_ciphers_side_by_side_at_one_server(
    tcp_mux: bool, tmp_path: Path
) -> None:
    require_official()
    echo, web = EchoBackend(), HttpBackend()
    with ExitStack() as stack:
        async with (
            running(echo, web),
            await EchoUdp().start() as datagrams,
            StunServer() as stun,
        ):
            rows = Rows(tmp_path, tcp_mux, stun.address)
            for name in OWNERS:
                rows.owner(name, echo.port, datagrams.port, web.port)
            for name in GUESTS:
                rows.guest(name)
            for program in rows.programs:
                stack.callback(program.kill)
            await rows.start()
            ports, http_port = rows.ports, int(rows.server.config["vhostHTTPPort"])
            sizes = {name: V1_SIZES if name == "old" else V2_SIZES for name in OWNERS}
            jobs = [_echoed(ports[f"{name}-tcp"]) for name in OWNERS]
            jobs += [_datagrams(ports[f"{name}-udp"], sizes[name]) for name in OWNERS]
            jobs += [_http(http_port, f"{name}.test") for name in OWNERS]
            for guest in GUESTS:
                for name in OWNERS:
                    both_new = guest == "new" and name != "old"
                    there = f"{guest}-{name}-"
                    jobs += [_echoed(ports[f"{there}{kind}"]) for kind in ("stcp", "xtcp")]
                    jobs.append(
                        _datagrams(ports[f"{there}sudp"], V2_SIZES if both_new else V1_SIZES)
                    )
            await all_of(jobs, limit_s=30)
    log = rows.server.log()
    for cipher in ALGORITHMS:
        assert f"control connection sealed with {cipher}" in log
    assert log.count("control connection sealed with") == 3
    assert log.count("client login info") == 5
    assert log.count("report make hole success: true") == len(GUESTS) * len(OWNERS)
    # The old guest at each new owner, and the new guest at the old owner.
    assert log.count("a visitor speaks wire v1, the proxy v2") == 2
    assert log.count("a visitor speaks wire v2, the proxy v1") == 1
    for program in rows.programs:
        assert "Traceback" not in program.log(), program.stem
        if program.kind == "ours":
            assert "[E]" not in program.log(), program.stem


@MUX
async def test_a_server_before_version_2_is_told_of(tcp_mux: bool, tmp_path: Path) -> None:
    require_official()
    link: Config = {"transport": {"tcpMux": tcp_mux}}
    server = Program("official", "server", server_config(link), tmp_path, name="server")
    transport = {"tcpMux": tcp_mux, "wireProtocol": "v2"}
    port = int(server.config["bindPort"])
    cfg = client_config(port, [tcp_proxy("p", 1, 0)], {"transport": transport})
    client = Program("ours", "client", cfg, tmp_path, name="client")
    try:
        server.start()
        await server.logged(SERVER_READY)
        client.start()
        assert await client.exited() == 1
    finally:
        client.kill()
        server.kill()
    assert (
        "before the login was answered; the server does not speak wire protocol v2 (frp before "
        '0.69?): set transport.wireProtocol = "v1"'
    ) in client.log()


# --- under attack -------------------------------------------------------------------------


STALLED = 300
"""Connections that each have nearly a whole message on the way: 19 MB."""


@pytest.mark.clock
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("_under_watch")
async def test_what_is_no_version_2_is_refused_and_a_caller_served_meanwhile(
    target: Attacked,
) -> None:
    async def one(name: str, data: bytes) -> None:
        async with target.peer() as peer:
            peer.say(data)
            if "half" not in name and "alone" not in name:
                assert await peer.closed(), name

    all_there = asyncio.Barrier(STALLED)

    async def stalled() -> None:
        async with target.peer() as peer:
            peer.say(MAGIC + HELLO + struct.pack(">HHI", MESSAGE, 0, 65_536) + b" " * 65_000)
            await peer.writer.drain()
            assert await peer.reader.read(65_536)  # The answer to the hello, however wrapped.
            await all_there.wait()

    async def sealed(name: str, data: bytes) -> None:
        async with target.peer() as peer:
            peer.say(MAGIC + HELLO + data)
            assert await peer.closed(), name

    for _ in range(3):
        await many([one(name, data) for name, data in NO_GREETING.items()])
        await many([sealed(name, data) for name, data in AFTER_HELLO.items()])
    login = message("Login", {"version": "0.70.1", "privilege_key": "guess", "timestamp": 1})
    await many([sealed("wrong token", login) for _ in range(50)])
    await many([stalled() for _ in range(STALLED)], at_once=STALLED)
