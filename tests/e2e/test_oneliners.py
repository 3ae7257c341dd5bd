"""Proxies and visitors that one command line describes, each a client of its own, in every pairing.

The official client gets the very same words: they are what scripts have.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.backends import HttpBackend
from tests.support.datagrams import EchoUdp, UdpUser
from tests.support.http import calling, fetch
from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    PAIRS,
    SERVER_READY,
    TOKEN,
    Kind,
    Program,
    Role,
    command,
    environment,
    require_official,
    server_config,
)
from tests.support.services import BLOCK, EchoBackend, running
from tests.support.waiting import all_of
from tests.unit.wire.hellos import hello

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

CONNECT = b"CONNECT mux.test:22 HTTP/1.1\r\nHost: mux.test:22\r\n\r\n"
CONNECTED = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def clients(
    kind: Kind, directory: Path, server: Program, lines: list[str]
) -> Iterator[dict[str, Program]]:
    """A client for each line, by the name that the line gives to its proxy or visitor."""
    link = f"-s {HOST} -P {server.config['bindPort']} -t {TOKEN} -u me --disable_log_color"
    started: dict[str, Program] = {}
    try:
        for line in lines:
            words = line.split()
            name = words[words.index("-n") + 1]
            # `start` names a file, which is no TOML here: both programs must not look at it.
            program = Program(kind, "client", {}, directory, name=name)
            program.words = [*command(kind, "client"), *words, *link.split()]
            started[name] = program.start()
        yield started
    finally:
        for program in started.values():
            program.kill()


async def _echoed(port: int, opening: bytes = b"", answer: bytes = b"") -> None:
    """Behind the opening, a megabyte goes to the service and back."""
    async with calling(port) as user:
        await user.send(opening)
        assert await user.exactly(len(answer)) == answer
        await user.echoed(BLOCK)


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
async def test_each_line_carries_bytes(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    require_official()
    http, echo = HttpBackend(), EchoBackend()
    tcp, udp, https, mux, visit, visit_udp = (free_port() for _ in range(6))
    more = {"vhostHTTPSPort": https, "tcpmuxHTTPConnectPort": mux, "subDomainHost": "sub.test"}
    server = Program(kinds[0], "server", server_config(more), tmp_path, name="server")
    async with running(http, echo), await EchoUdp().start() as udp_echo:
        lines = [
            f"tcp -n t -i {HOST} -l {echo.port} -r {tcp} --ue --uc",
            f"udp -n u --local_port {udp_echo.port} --remote_port={udp}",
            f"http -n h -l {http.port} -d a.test,b.test --locations /hello --http_user joe "
            "--http_pwd pass",
            f"https --proxy_name s -n s -l {echo.port} --sd tls",
            f"tcpmux -n m -l {echo.port} --custom-domain mux.test --mux httpconnect",
            f"stcp -n p -l {echo.port} --sk key --allow_users friend,me --uc",
            f"stcp visitor -n v --server_name p --sk key --bind_addr {HOST} --bind_port {visit} "
            "--ue",
            f"sudp -n q -l {udp_echo.port} --sk key",
            f"sudp visitor -n w --server_name q --sk key --bind_port {visit_udp}",
        ]
        try:
            server.start()
            await server.logged(SERVER_READY)
            with clients(kinds[1], tmp_path, server, lines) as started:
                for name in started.keys() - {"v", "w"}:
                    await started[name].logged(rf"\[me\.{name}\] start proxy success")
                for name in ("v", "w"):
                    await started[name].logged("start visitor success")
                http_port = int(server.config["vhostHTTPPort"])
                greeting = hello("tls.sub.test")
                with UdpUser(udp) as user, UdpUser(visit_udp) as guest:
                    await all_of(
                        [
                            _echoed(tcp),
                            _echoed(visit),
                            _echoed(https, greeting, greeting),
                            _echoed(mux, CONNECT, CONNECTED),
                            user.echoed(b"datagram"),
                            guest.echoed(b"secret datagram"),
                        ],
                        limit_s=30,
                    )
                login = [("Authorization", "Basic am9lOnBhc3M=")]
                answer = await fetch(http_port, "/hello", "b.test", headers=login)
                assert (answer.status, answer.body) == (200, b"hello")
                assert (await fetch(http_port, "/hello", "a.test")).status == 401
                # Nobody has this location.
                assert (await fetch(http_port, "/", "b.test", headers=login)).status == 404
                if kinds[1] == "ours":
                    assert "--token can be read in the process list" in started["t"].log()
                    assert all("config file" not in program.log() for program in started.values())
                    codes = await all_of(program.terminate() for program in started.values())
                    assert set(codes) == {0}
        finally:
            server.kill()


async def test_a_server_runs_with_flags_alone(tmp_path: Path) -> None:
    echo, bind, remote = EchoBackend(), free_port(), free_port()
    server = Program("ours", "server", {"bindPort": bind}, tmp_path, name="server")
    words = (
        f"--bind_addr {HOST} -p {bind} --proxy_bind_addr {HOST} -t {TOKEN} --tls_only "
        f"--allow_ports {remote} --disable_log_color"
    )
    async with running(echo):
        with server.log_path.open("wb") as log:
            server.process = subprocess.Popen(
                [*command("ours", "server"), *words.split()],
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            await server.logged(SERVER_READY)
            line = f"tcp -n t -l {echo.port} -r {remote}"
            with clients("ours", tmp_path, server, [line]) as started:
                await started["t"].logged("start proxy success")
                await _echoed(remote)
            assert await server.terminate() == 0
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("role", "words", "said"),
    [
        ("client", "tcp -n a -l 22 --remote 1", "Error: unknown flag: --remote"),
        ("client", "stcp visitor -n v --server_name p -t secret", "bind port is required\n"),
        ("server", "-p 99999 -t secret", "bindPort: port number 99999 must be in the range"),
        (
            "server",
            "--bind_prt 7000",
            "Error: unknown flag: --bind-prt (did you mean --bind-port?)",
        ),
    ],
)
def test_wrong_words_end_with_1_and_a_reason(role: Role, words: str, said: str) -> None:
    done = subprocess.run(
        [*command("ours", role), *words.split()],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    told, silent = (done.stderr, done.stdout) if "Error" in said else (done.stdout, done.stderr)
    assert told.startswith(said)
    assert silent == ""
    assert "secret" not in told
