"""Starts that cannot succeed: what is said, with which exit code, and what still works after."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import leaks
from tests.support.backends import HttpBackend
from tests.support.http import calling, fetch
from tests.support.office import DOMAIN, Office, office
from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    Config,
    Kind,
    Program,
    client_config,
    command,
    environment,
    http_proxy,
    server_config,
    tcp_proxy,
)
from tests.support.services import EchoBackend, running
from tests.support.waiting import all_of, until, until_async

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

Kinds = tuple[Kind, Kind]


@dataclass
class Stage:
    """Starts programs that are ended with the test."""

    kinds: Kinds
    directory: Path
    programs: list[Program]

    def server(self, name: str = "server", **more: Any) -> Program:
        return self._add(self.kinds[0], "server", server_config(more), name)

    def client(
        self, server: Program | int, *proxies: Config, name: str = "client", **more: Any
    ) -> Program:
        port = server if isinstance(server, int) else int(server.config["bindPort"])
        return self._add(self.kinds[1], "client", client_config(port, proxies, more), name)

    def _add(self, kind: Kind, role: Any, config: Config, name: str) -> Program:
        program = Program(kind, role, config, self.directory, name=name)
        self.programs.append(program)
        return program


@pytest.fixture
def stage(kinds: Kinds, tmp_path: Path) -> Iterator[Stage]:
    built = Stage(kinds, tmp_path, [])
    yield built
    for program in built.programs:
        program.kill()


def says_no_traceback(program: Program) -> None:
    log = program.log()
    assert "Traceback" not in log, log
    assert "Task exception" not in log, log


# --- logins -------------------------------------------------------------------------------


async def test_a_wrong_token_ends_the_client_with_the_servers_words(stage: Stage) -> None:
    server = stage.server().start()
    await server.logged("started successfully")
    wrong = stage.client(server, auth={"token": "wrong-secret-token"}, name="wrong").start()
    assert await wrong.exited(10) == 1
    await wrong.logged(
        re.escape(
            "login to the server failed: token in login doesn't match token from configuration. "
            "With loginFailExit enabled, no additional retries will be attempted"
        )
    )
    await server.logged("register control error: token in login doesn't match token")
    for program in (server, wrong):
        assert "wrong-secret-token" not in program.log()
        assert "a-test-token" not in program.log()
        says_no_traceback(program)
    right = stage.client(server, name="right").start()
    await right.logged("login to server success")


async def test_errors_for_clients_are_short_where_the_server_says_so(stage: Stage) -> None:
    server = stage.server(detailedErrorsToClient=False).start()
    await server.logged("started successfully")
    wrong = stage.client(server, auth={"token": "wrong"}, name="wrong").start()
    assert await wrong.exited(10) == 1
    await wrong.logged("login to the server failed: register control error")
    dead = tcp_proxy("p", 1, int(server.config["bindPort"]))
    right = stage.client(server, dead, name="right").start()
    await right.logged(re.escape("[p] start error: new proxy [p] error"))


async def test_without_login_fail_exit_a_client_waits_for_its_server(stage: Stage) -> None:
    port = free_port()
    client = stage.client(port, loginFailExit=False).start()
    await client.logged("connect to server error")
    server = stage.server(bindPort=port, auth={"token": "another"}).start()
    await client.logged("token in login doesn't match", 30)
    server.kill()
    server.config["auth"] = {"token": "a-test-token"}
    server.start()
    await client.logged("login to server success", 30)
    says_no_traceback(client)


async def test_a_port_where_nothing_listens_ends_the_client(stage: Stage) -> None:
    client = stage.client(free_port()).start()
    assert await client.exited(10) == 1
    await client.logged("login to the server failed: .*(refused|connect)")
    says_no_traceback(client)


async def test_a_port_where_something_else_listens_ends_the_client(stage: Stage) -> None:
    """An HTTP service, and one that never says anything."""
    api = HttpBackend()
    silent = EchoBackend()
    async with running(api, silent):
        clients = [
            stage.client(port, name=f"{name}-{tls}", transport={"tls": {"enable": tls}}).start()
            for name, port in (("api", api.port), ("echo", silent.port))
            for tls in (True, False)
        ]
        for client in clients:
            assert await client.exited(25) == 1
            assert "login to the server failed" in client.log()
            says_no_traceback(client)
        api.complaints.clear()


async def test_a_name_that_does_not_resolve_ends_the_client(stage: Stage) -> None:
    client = stage.client(7000, serverAddr="no-such-host.invalid").start()
    assert await client.exited(20) == 1
    await client.logged("login to the server failed: .*no-such-host.invalid")
    says_no_traceback(client)


async def test_mux_on_one_side_only_fails_and_does_not_hang(stage: Stage) -> None:
    servers = [
        stage.server(name=f"server-{mux}", transport={"tcpMux": mux}).start()
        for mux in (True, False)
    ]
    for server in servers:
        await server.logged("started successfully")
    clients = [
        stage.client(server, name=f"client-of-{server.stem}", transport={"tcpMux": not mux}).start()
        for server, mux in zip(servers, (True, False), strict=True)
    ]
    for client in clients:
        assert await client.exited(25) == 1
        assert "login to the server failed" in client.log()
        says_no_traceback(client)
    for server in servers:
        assert server.is_running()
        says_no_traceback(server)


async def test_tls_only_servers_close_on_clients_without_tls(stage: Stage) -> None:
    server = stage.server(transport={"tls": {"force": True}}).start()
    await server.logged("started successfully")
    plain = stage.client(server, name="plain", transport={"tls": {"enable": False}}).start()
    secure = stage.client(server, name="secure").start()
    assert await plain.exited(15) == 1
    await secure.logged("login to server success")
    says_no_traceback(plain)
    says_no_traceback(server)


# --- ports --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["bindPort", "vhostHTTPPort"])
async def test_a_server_whose_port_is_taken_ends_with_1_and_says_so(stage: Stage, key: str) -> None:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        server = stage.server(**{key: port}).start()
        assert await server.exited(10) == 1
        assert "address already in use" in server.log()
        assert str(port) in server.log()
        says_no_traceback(server)


# --- proxies the server refuses -----------------------------------------------------------


async def test_refused_proxies_say_why_and_leave_the_others_alone(stage: Stage) -> None:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        foreign = holder.getsockname()[1]
        first, second, third, denied = (free_port() for _ in range(4))
        server = stage.server(
            allowPorts=[{"single": port} for port in (first, second, third, foreign)],
            subDomainHost="sub.test",
        ).start()
        await server.logged("started successfully")
        api = HttpBackend()
        async with running(api):
            other = stage.client(
                server,
                tcp_proxy("taken-name", api.port, first),
                http_proxy("taken-route", api.port, "taken.test"),
                name="other",
            ).start()
            await other.logged(r"\[taken-route\] start proxy success")
            sub: Config = {"type": "http", "localPort": api.port}
            client = stage.client(
                server,
                tcp_proxy("taken-name", api.port, second),
                tcp_proxy("taken-port", api.port, first),
                tcp_proxy("denied-port", api.port, denied),
                tcp_proxy("foreign-port", api.port, foreign),
                http_proxy("route", api.port, "taken.test"),
                http_proxy("below-sub", api.port, "x.sub.test"),
                {"name": "bad-sub", **sub, "subdomain": "a.b"},
                http_proxy("good", api.port, DOMAIN),
                name="client",
            ).start()
            for name, why in {
                "taken-name": "proxy [taken-name] already exists",
                "taken-port": "port already used",
                "denied-port": "port not allowed",
                "foreign-port": "port unavailable",
                "route": "router config conflict",
                "below-sub": "custom domain [x.sub.test] should not belong to subdomain host "
                "[sub.test]",
                "bad-sub": "'.' and '*' are not supported in subdomain",
            }.items():
                await client.logged(re.escape(f"[{name}] start error: {why}"))
                await server.logged(re.escape(f"new proxy [{name}] type [") + r"\w+\] error: .+")
            await client.logged(r"\[good\] start proxy success")
            port = int(server.config["vhostHTTPPort"])
            assert (await fetch(port, "/hello")).status == 200
            assert (await fetch(port, "/hello", "taken.test")).status == 200


async def test_proxies_a_server_does_not_offer_are_refused(stage: Stage) -> None:
    server = stage.server(maxPortsPerClient=1).start()
    bare = stage.server(name="bare")
    del bare.config["vhostHTTPPort"]
    bare.start()
    for program in (server, bare):
        await program.logged("started successfully")
    client = stage.client(
        bare,
        http_proxy("web", 1, DOMAIN),
        {"name": "sub", "type": "http", "localPort": 1, "subdomain": "a"},
    ).start()
    await client.logged(
        re.escape("[web] start error: type [http] not supported when vhost http port is not set")
    )
    many = stage.client(
        server,
        tcp_proxy("one", 1, free_port()),
        tcp_proxy("two", 1, free_port()),
        {"name": "sub", "type": "http", "localPort": 1, "subdomain": "a"},
        name="many",
    ).start()
    await many.logged(r"\[one\] start proxy success")
    await many.logged(re.escape("[two] start error: exceed the max_ports_per_client"))
    await many.logged(
        re.escape(
            "[sub] start error: subdomain is not supported because this feature is not enabled in "
            "server"
        )
    )


# --- refusals that end by themselves ------------------------------------------------------


@dataclass
class Conflict:
    """A client whose proxies were refused, and what stood in the way, gone for a while now."""

    http_port: int
    tcp_port: int
    foreign_port: int
    client: Program
    echo: EchoBackend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def conflict(
    kinds: Kinds, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Conflict]:
    """Set up first and asked last: a refused proxy is offered again after half a minute."""
    stage = Stage(kinds, tmp_path_factory.mktemp("conflict"), [])
    api, echo = HttpBackend(), EchoBackend()
    for backend in (api, echo):
        leaks.share(backend)
    tcp_port, foreign_port = free_port(), free_port()
    holder = socket.create_server((HOST, foreign_port))
    try:
        async with running(api, echo):
            server = stage.server().start()
            await server.logged("started successfully")
            first = stage.client(
                server,
                http_proxy("llm", api.port, DOMAIN),
                tcp_proxy("other", echo.port, tcp_port),
                name="first",
            ).start()
            await first.logged(r"\[other\] start proxy success")
            second = stage.client(
                server,
                http_proxy("llm", api.port, DOMAIN),
                tcp_proxy("raw", echo.port, tcp_port),
                tcp_proxy("foreign", echo.port, foreign_port),
                name="second",
            ).start()
            for name in ("llm", "raw", "foreign"):
                await second.logged(rf"\[{name}\] start error")
            first.kill()
            holder.close()
            port = int(server.config["vhostHTTPPort"])
            yield Conflict(port, tcp_port, foreign_port, second, echo)
    finally:
        holder.close()
        for program in stage.programs:
            program.kill()
        for backend in (api, echo):
            leaks.unshare(backend)


@pytest.fixture(autouse=True)
def _conflict_from_the_start(conflict: Conflict) -> None:
    """Make the first test of this module set up the conflict."""


# --- configurations that cannot work ------------------------------------------------------

BAD: dict[str, tuple[str, str, str]] = {
    # name: (role, file, what the message must say)
    "unknown key": ("server", "bindPrt = 7000\n", r"bindPrt.*\n?.*bindPort"),
    "key of the other side": ("server", 'serverAddr = "x"\n', r"serverAddr.*\n?.*client|frpc"),
    "key of the other side, client": ("client", "vhostHTTPPort = 80\n", r"vhostHTTPPort"),
    "port too large": ("server", "bindPort = 70000\n", "bindPort.*65535"),
    "port negative": ("server", "vhostHTTPPort = -1\n", "vhostHTTPPort.*65535"),
    "port in quotes": ("server", 'bindPort = "7000"\n', "bindPort"),
    "port is a fraction": ("server", "bindPort = 7000.5\n", "bindPort"),
    "no such method": ("server", 'auth.method = "magic"\n', r"token.*oidc"),
    "no such level": ("client", 'log.level = "INFO"\n', r"log level|log\.level"),
    "no such scope": ("client", 'auth.additionalScopes = ["All"]\n', "HeartBeats"),
    "no such protocol": ("client", 'transport.protocol = "smoke"\n', r"tcp.*kcp.*quic.*websocket"),
    "heartbeats crossed": (
        "client",
        "transport.heartbeatInterval = 90\ntransport.heartbeatTimeout = 30\n",
        "heartbeat",
    ),
    "key given twice": ("server", "bindPort = 1\nbindPort = 2\n", "bindPort|bad.toml:2|line 2"),
    "table opened twice": ("server", "[auth]\n[log]\n[auth]\n", "auth|line 3|:3"),
    "not TOML at all": ("server", "this is not = = a config [[\n", r"line 1|:1|toml|TOML"),
    "proxy without a name": (
        "client",
        '[[proxies]]\ntype = "tcp"\nlocalPort = 1\nremotePort = 2\n',
        "name",
    ),
    "proxy without a type": ("client", '[[proxies]]\nname = "a"\nlocalPort = 1\n', "type"),
    "proxy of no known type": ("client", '[[proxies]]\nname = "a"\ntype = "ftp"\n', "ftp"),
    "unknown key in a proxy": (
        "client",
        '[[proxies]]\nname = "a"\ntype = "tcp"\nlocalPrt = 1\n',
        r"localPrt.*\n?.*localPort",
    ),
    "http without a domain": (
        "client",
        '[[proxies]]\nname = "a"\ntype = "http"\nlocalPort = 1\n',
        "subdomain and custom domains should not be both empty",
    ),
    "local port too large": (
        "client",
        '[[proxies]]\nname = "a"\ntype = "tcp"\nlocalPort = 99999\n',
        "localPort.*65535",
    ),
    "names twice": (
        "client",
        '[[proxies]]\nname = "a"\ntype = "tcp"\nlocalPort = 1\n' * 2,
        r"\ba\b.*(duplicated|twice)",
    ),
    "bandwidth in furlongs": (
        "client",
        '[[proxies]]\nname = "a"\ntype = "tcp"\nlocalPort = 1\n'
        'transport.bandwidthLimit = "3 furlongs"\n',
        "bandwidth",
    ),
    "no such file for the token": (
        "server",
        'auth.tokenSource.type = "file"\nauth.tokenSource.file.path = "/no/such/file"\n',
        "/no/such/file",
    ),
    "no such certificate": (
        "server",
        'transport.tls.certFile = "/no/cert"\ntransport.tls.keyFile = "/no/key"\n',
        "/no/cert",
    ),
    "unset variable": ("client", "serverPort = {{ .Envs.PYFRP_NOT_SET }}\n", "PYFRP_NOT_SET|1"),
    "no such template function": ("server", "bindPort = {{ port }}\n", "port"),
    "missing include": ("client", 'includes = ["/no/such/dir/*.toml"]\n', "/no/such/dir"),
}


async def test_every_bad_configuration_ends_with_1_and_says_what_is_wrong(
    kinds: Kinds, tmp_path: Path
) -> None:
    gate = asyncio.Semaphore(3)

    async def one(name: str) -> str | None:
        role, text, expected = BAD[name]
        path = tmp_path / name.replace(" ", "-") / "bad.toml"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        kind = kinds[0] if role == "server" else kinds[1]
        async with gate:
            process = await asyncio.create_subprocess_exec(
                *command(kind, role),  # type: ignore[arg-type]  # "server" or "client", see above
                "-c",
                str(path),
                cwd=path.parent,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            try:
                async with asyncio.timeout(15):
                    output = (await process.communicate())[0].decode()
            except TimeoutError:
                process.kill()
                await process.communicate()
                return f"{name}: it started"
        if process.returncode != 1:
            return f"{name}: exit code {process.returncode}, said {output!r}"
        if "Traceback" in output or not re.search(expected, output, re.S):
            return f"{name}: said {output!r}"
        return None

    wrong = [found for found in await all_of(one(name) for name in BAD) if found]
    assert not wrong, "\n".join(wrong)
    assert len(BAD) >= 20


async def test_verify_tells_good_from_bad(kinds: Kinds, tmp_path: Path) -> None:
    if kinds != ("ours", "ours"):
        return  # frp has no `verify server`; its own form is tested with our programs below.
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("bindPort = 7000\n")
    bad.write_text("bindPrt = 7000\n")

    async def run(*words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *command("ours", "server")[:-1],
            *words,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
        assert process.returncode is not None
        return process.returncode, output

    results = await all_of(
        [
            run("verify", "server", "-c", str(good)),
            run("server", "verify", "-c", str(good)),
            run("verify", "server", "-c", str(bad)),
            run("server", "verify", "-c", str(bad)),
            run("server", "-v"),
            run("--help"),
        ]
    )
    said_ok = f"frps: the configuration file {good} syntax is ok"
    for code, output in results[:2]:
        assert (code, said_ok in output) == (0, True), output
    for code, output in results[2:4]:
        assert (code, "bindPrt" in output, "Traceback" in output) == (1, True, False), output
    for code, output in results[4:]:
        assert code == 0, output
        assert output.strip()


# --- last, because it waits for the half minute that began with this module ----------------


async def test_refused_proxies_start_by_themselves_once_the_way_is_free(
    conflict: Conflict,
) -> None:
    for name in ("llm", "raw", "foreign"):
        await conflict.client.logged(rf"\[{name}\] start proxy success", 45)
    assert (await fetch(conflict.http_port, "/hello")).status == 200
    for port in (conflict.tcp_port, conflict.foreign_port):
        async with calling(port) as caller:
            await caller.send(b"echo")
            assert await caller.exactly(4) == b"echo"
    await until(lambda: not conflict.echo.live, "the echo connections to end")


# --- services that fail -------------------------------------------------------------------


async def test_a_tcp_proxy_without_its_service_closes_at_once_and_logs(
    kinds: Kinds, tmp_path: Path
) -> None:
    dead, remote = free_port(), free_port()
    async with office(tmp_path, kinds=kinds, proxies=[tcp_proxy("dead", dead, remote)]) as scene:
        async with calling(remote) as caller:
            assert await caller.everything() == b""
        await scene.pair.client.logged(rf"connect to local service \[127.0.0.1:{dead}\] error")
        late = EchoBackend(dead)
        async with running(late), calling(remote) as caller:
            await caller.send(b"echo")
            assert await caller.exactly(4) == b"echo"


async def test_a_service_that_dies_and_returns_needs_no_help(kinds: Kinds, tmp_path: Path) -> None:
    async with office(tmp_path, kinds=kinds) as scene:
        for _ in range(3):
            assert await scene.works()
            await scene.api.stop()
            assert (await scene.get()).status == 502
            await scene.api.start()
            await _works_within(scene, 2)


async def _works_within(scene: Office, limit_s: float) -> None:
    await until_async(scene.works, "requests to work", limit_s)
