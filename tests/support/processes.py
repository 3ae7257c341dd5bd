"""Servers and clients as real processes, ours or the official ones, with files and logs.

A `Program` is one process. A `Tunnel` is a server and a client that belong together. Both keep
their files in a directory of the test and are ended by process id.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from tests.support.official import ROOT, require_official
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, until

Kind = Literal["ours", "official"]
Role = Literal["server", "client"]
Config = dict[str, Any]

KINDS: tuple[Kind, ...] = ("ours", "official")
# Which server and which client.
PAIRS: list[tuple[Kind, Kind]] = list(itertools.product(KINDS, repeat=2))

TOKEN = "a-test-token"
HOST = "127.0.0.1"
TAIL_LINES = 60

_ANSI = re.compile(r"\x1b\[[0-9;]*m")

# Programs started since the last `forget_programs`, for the report of a failed test.
_recent: deque[Program] = deque(maxlen=12)


def recent_programs() -> list[Program]:
    """Programs whose logs explain a failure: those running, and those that ended lately."""
    return list(_recent)


def forget_programs() -> None:
    """Drop programs that have ended, at the start of a test."""
    running = [program for program in _recent if program.is_running()]
    _recent.clear()
    _recent.extend(running)


@dataclass(frozen=True)
class Figures:
    """What the kernel says about a process; memory in KiB."""

    rss_kib: int
    peak_kib: int
    fds: int
    threads: int
    cpu_s: float


def merged(base: Config, more: Mapping[str, Any] | None) -> Config:
    """`base` with `more` laid over it, table by table."""
    result = dict(base)
    for key, value in (more or {}).items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[key] = merged(dict(below), value)
        else:
            result[key] = value
    return result


def command(kind: Kind, role: Role) -> list[str]:
    """The words that start a program, without its options."""
    if kind == "official":
        server, client = require_official()
        return [str(server if role == "server" else client)]
    return [sys.executable, "-m", "pyfrp", role]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program: ours without proxies, and with warnings as errors shown."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env["PYTHONPATH"] = str(ROOT)
    env["PYTHONUNBUFFERED"] = "1"
    env.pop("PYTHONASYNCIODEBUG", None)
    env.update(extra or {})
    return env


@dataclass
class Program:
    """One server or client process with its configuration file and its log.

    Args:
        kind: Ours or the official one.
        role: Server or client.
        config: The configuration as nested tables; written as TOML.
        directory: Where its files go; must exist.
        name: Part of the file names, so that several fit in one directory.
        words: Replaces the command, e.g. for a program under observation.
        env: Additions to the environment.
    """

    kind: Kind
    role: Role
    config: Config
    directory: Path
    name: str = ""
    words: Sequence[str] | None = None
    env: Mapping[str, str] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started_at: float = field(default=0.0, init=False)

    @property
    def stem(self) -> str:
        return self.name or f"{self.kind}-{self.role}"

    @property
    def config_path(self) -> Path:
        return self.directory / f"{self.stem}.toml"

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.stem}.log"

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.stem} was never started"
        return self.process.pid

    def write_config(self) -> Path:
        self.config_path.write_text(tomli_w.dumps(self.config), encoding="utf-8")
        return self.config_path

    def start(self, *options: str) -> Program:
        """Start it (again); the log of an earlier run is kept above the new one."""
        assert not self.is_running(), f"{self.stem} is running already"
        self.write_config()
        words = list(self.words) if self.words is not None else command(self.kind, self.role)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*words, "-c", str(self.config_path), *options],
                cwd=self.directory,
                env=environment(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: a Ctrl-C meant for pytest must not reach it first.
                start_new_session=os.name == "posix",
            )
        self.started_at = time.monotonic()
        if self not in _recent:
            _recent.append(self)
        return self

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to this very process; nothing happens if it has ended."""
        if self.is_running():
            assert self.process is not None
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once and collect it."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)

    async def terminate(self, limit_s: float = PATIENCE_S) -> int:
        """Ask it to end and return its exit code."""
        self.signal(signal.SIGTERM)
        return await self.exited(limit_s)

    async def exited(self, limit_s: float = PATIENCE_S) -> int:
        """Wait until it has ended by itself and return its exit code."""
        await until(lambda: not self.is_running(), f"{self.stem} to end", limit_s)
        code = self.returncode
        assert code is not None
        return code

    # --- what it says -----------------------------------------------------------------

    def log(self, offset: int = 0) -> str:
        """Everything it printed from byte `offset` on, without colours."""
        try:
            data = self.log_path.read_bytes()[offset:]
        except FileNotFoundError:
            return ""
        return _ANSI.sub("", data.decode("utf-8", "replace"))

    def mark(self) -> int:
        """A place in the log to look on from."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def tail(self, lines: int = TAIL_LINES) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    async def logged(
        self,
        pattern: str,
        limit_s: float = PATIENCE_S,
        *,
        offset: int = 0,
        count: int = 1,
    ) -> re.Match[str]:
        """Wait for `count` places in the log that match; return the last of them.

        Fails at once when the process ends without having said it.
        """
        expression = re.compile(pattern)

        def found() -> re.Match[str] | None:
            running = self.is_running()
            matches = list(expression.finditer(self.log(offset)))
            if len(matches) >= count:
                return matches[-1]
            if not running:
                raise AssertionError(
                    f"{self.stem} ended with {self.returncode} before it said {pattern!r}:\n"
                    f"{self.tail()}"
                )
            return None

        return await until(found, f"{self.stem} to say {pattern!r}", limit_s, 0.02)

    # --- what the kernel says ---------------------------------------------------------

    def figures(self) -> Figures:
        base = Path(f"/proc/{self.pid}")
        status = dict(
            line.split(":", 1) for line in (base / "status").read_text().splitlines() if ":" in line
        )
        times = (base / "stat").read_text().rpartition(")")[2].split()
        ticks = int(times[11]) + int(times[12])
        return Figures(
            rss_kib=int(status["VmRSS"].split()[0]),
            peak_kib=int(status["VmHWM"].split()[0]),
            fds=len(os.listdir(base / "fd")),
            threads=int(status["Threads"]),
            cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        )

    def observe(self) -> None:
        """From its next start on, let it answer `insides`."""
        assert self.kind == "ours"
        self.words = [sys.executable, "-m", "tests.support.observed", self.role]
        path = self.directory / f"{self.stem}.insides"
        self.env = {**(self.env or {}), "PYFRP_OBSERVED": str(path), "PYFRP_HURRY": "1"}

    async def insides(self) -> dict[str, Any]:
        """Numbers of `tasks` and collected `objects` in an observed program; tasks by `names`."""
        return await _fresh(self.directory / f"{self.stem}.insides", self)

    def reset_peak(self) -> None:
        """Let `Figures.peak_kib` count from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


async def _fresh(path: Path, program: Program) -> dict[str, Any]:
    """Ask an observed program for its figures."""
    path.unlink(missing_ok=True)

    def told() -> bool:
        program.signal(signal.SIGUSR2)
        return path.exists()

    await until(told, f"{program.stem} to tell its figures", step_s=0.05)
    return dict(json.loads(path.read_text()))


def server_config(more: Mapping[str, Any] | None = None) -> Config:
    """A server on loopback with ports of its own and the test token."""
    bind_port, http_port = free_port(), free_port()
    base: Config = {
        "bindAddr": HOST,
        "bindPort": bind_port,
        "vhostHTTPPort": http_port,
        "auth": {"token": TOKEN},
        "log": {"disablePrintColor": True},
    }
    return merged(base, more)


def client_config(
    server_port: int, proxies: Sequence[Config], more: Mapping[str, Any] | None = None
) -> Config:
    """A client for a server on loopback, with the test token."""
    base: Config = {
        "serverAddr": HOST,
        "serverPort": server_port,
        "auth": {"token": TOKEN},
        "log": {"disablePrintColor": True},
        "proxies": list(proxies),
    }
    return merged(base, more)


def http_proxy(name: str, local_port: int, domain: str, **more: Any) -> Config:
    base = {
        "name": name,
        "type": "http",
        "localIP": HOST,
        "localPort": local_port,
        "customDomains": [domain],
    }
    return merged(base, more)


def tcp_proxy(name: str, local_port: int, remote_port: int, **more: Any) -> Config:
    base = {
        "name": name,
        "type": "tcp",
        "localIP": HOST,
        "localPort": local_port,
        "remotePort": remote_port,
    }
    return merged(base, more)


SERVER_READY = r"frps started successfully"
LOGIN_DONE = r"login to server success, get run id \[([^\]]*)\]"


@dataclass
class Tunnel:
    """A server and a client that is logged in to it, with all its proxies started."""

    server: Program
    client: Program

    @property
    def bind_port(self) -> int:
        return int(self.server.config["bindPort"])

    @property
    def http_port(self) -> int:
        return int(self.server.config["vhostHTTPPort"])

    async def ready(self, limit_s: float = PATIENCE_S) -> None:
        """Wait until the server listens and each proxy of the client has started."""
        await self.server_ready(limit_s)
        await self.client_ready(limit_s)

    async def server_ready(self, limit_s: float = PATIENCE_S, offset: int = 0) -> None:
        await self.server.logged(SERVER_READY, limit_s, offset=offset)

    async def client_ready(self, limit_s: float = PATIENCE_S, offset: int = 0) -> None:
        await self.client.logged(LOGIN_DONE, limit_s, offset=offset)
        user = self.client.config.get("user")
        for proxy in self.client.config["proxies"]:
            name = f"{user}.{proxy['name']}" if user else proxy["name"]
            await self.client.logged(
                rf"\[{re.escape(name)}\] start proxy success", limit_s, offset=offset
            )

    def kill(self) -> None:
        self.client.kill()
        self.server.kill()

    def figures(self) -> tuple[Figures, Figures]:
        """Figures of the server and of the client."""
        return self.server.figures(), self.client.figures()


@asynccontextmanager
async def tunnel(
    directory: Path,
    proxies: Sequence[Config],
    *,
    kinds: tuple[Kind, Kind] = ("ours", "ours"),
    server: Mapping[str, Any] | None = None,
    client: Mapping[str, Any] | None = None,
    through: int | None = None,
    ready: bool = True,
    observed: bool = False,
    env: Mapping[str, str] | None = None,
    unsafe: bool = False,
) -> AsyncIterator[Tunnel]:
    """Run a server and a client, and end both on leaving.

    Args:
        directory: For their files; made if need be.
        proxies: The client's proxies.
        kinds: Which server and which client.
        server: Laid over the server's configuration.
        client: Laid over the client's configuration.
        through: Port that the client dials instead of the server's own, e.g. a relay's.
        ready: Wait until all is up.
        observed: Run both so that `Program.insides` works, and reconnect without delay.
        env: Additions to the environment of both.
        unsafe: Let our programs run what their files name; the official ones cannot.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = server_config(server)
    allowed = [["--allow-unsafe=TokenSourceExec"] if unsafe and k == "ours" else [] for k in kinds]
    pair = Tunnel(
        Program(kinds[0], "server", config, directory, name=f"server-{kinds[0]}"),
        Program(
            kinds[1],
            "client",
            client_config(through or int(config["bindPort"]), proxies, client),
            directory,
            name=f"client-{kinds[1]}",
        ),
    )
    for program in (pair.server, pair.client):
        program.env = env
        if observed:
            program.observe()
    try:
        pair.server.start(*allowed[0])
        if ready:
            # A client that finds no listener would exit: `loginFailExit` is on by default.
            await pair.server_ready()
        pair.client.start(*allowed[1])
        if ready:
            await pair.client_ready()
        yield pair
    finally:
        pair.kill()


async def port_open(port: int, limit_s: float = PATIENCE_S) -> None:
    """Wait until something accepts connections on loopback `port`."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing listens on port {port}") from None
            await asyncio.sleep(0.02)
            continue
        writer.close()
        await writer.wait_closed()
        return
