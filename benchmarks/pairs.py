"""What is measured: the official pair, pyfrp's pair, two nginx hops, and no tunnel at all.

A pair is two processes on loopback. Callers reach it at `port` and it forwards to the backend.
The official pair and pyfrp's read the very same configuration files.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import nginx
from benchmarks.load import HOST, request
from benchmarks.processes import ROOT, BenchError, Child, free_ports, wait_for_port

READY_LIMIT_S = 20.0
_POLL_S = 0.002

_SERVER_TOML = """\
bindAddr = "127.0.0.1"
bindPort = {bind}
proxyBindAddr = "127.0.0.1"
vhostHTTPPort = {front}
auth.token = "a-sample-token"
log.level = "info"
"""

_CLIENT_TOML = """\
serverAddr = "127.0.0.1"
serverPort = {bind}
auth.token = "a-sample-token"
log.level = "info"

[[proxies]]
name = "llm-api"
type = "http"
localIP = "127.0.0.1"
localPort = {backend}
customDomains = ["{host}"]
"""

# Rows of the other types find theirs beside the http proxy, which tells that the pair is up.
_PROXY_TOML = """
[[proxies]]
name = "{name}"
type = "{type}"
localIP = "127.0.0.1"
localPort = {backend}
"""
_VISITOR_TOML = """secretKey = "a-sample-secret"

[[visitors]]
name = "visitor"
type = "stcp"
serverName = "{name}"
secretKey = "a-sample-secret"
bindAddr = "127.0.0.1"
bindPort = {port}
"""


@dataclass(frozen=True, slots=True)
class Transport:
    """What a transport adds to the files of client and server.

    Attributes:
        server: What a transport with a port of its own adds, over UDP; `{bind}` is the number.
    """

    client: str
    server: str = ""


TRANSPORTS = {
    "tcp": Transport(""),
    "websocket": Transport('transport.protocol = "websocket"\n'),
    "wss": Transport('transport.protocol = "wss"\n'),
    "kcp": Transport('transport.protocol = "kcp"\n', "kcpBindPort = {bind}\n"),
    "quic": Transport('transport.protocol = "quic"\n', "quicBindPort = {bind}\n"),
}
"""The ways between client and server; all with TLS, as is the default."""


def _proxies_toml(kind: str, backend: int, port: int, idle: Sequence[int]) -> str:
    """What is added to the client's file for a row of a type other than http."""
    text = ""
    if kind != "http":
        text = _PROXY_TOML.format(name=kind, type=kind, backend=backend)
        text += (
            _VISITOR_TOML.format(name=kind, port=port)
            if kind == "stcp"
            else f"remotePort = {port}\n"
        )
    for number in idle:
        text += _PROXY_TOML.format(name=f"idle-{number}", type="tcp", backend=backend)
        text += f"remotePort = {number}\n"
    return text


@dataclass(frozen=True, slots=True)
class Running:
    """A pair that answers."""

    port: int
    pids: list[int]
    """Server, then client."""
    ready_s: float
    """From the start of the server's process to the first answer through both."""


class Pair:
    """How to start one pair."""

    name: str
    version: str
    carries: frozenset[str] = frozenset({"http"})
    """Types of proxies that it has."""
    speaks: frozenset[str] = frozenset({"tcp"})
    """Transports that it has."""
    way: Transport = TRANSPORTS["tcp"]
    """The one of the row in turn."""
    more: str = ""
    """What the row in turn adds to the client's file."""

    def prepare(self, folder: Path) -> None:
        """Make what an installation would have made already; not part of the start-up time."""

    def first(self, folder: Path, ports: Sequence[int], backend: int) -> Child:
        raise NotImplementedError

    def second(self, folder: Path, ports: Sequence[int], backend: int) -> Child:
        raise NotImplementedError

    @contextlib.contextmanager
    def running(
        self,
        folder: Path,
        backend: int,
        kind: str = "http",
        idle_proxies: int = 0,
        transport: str = "tcp",
    ) -> Iterator[Running]:
        """Start both processes, wait for the first proxied answer, and end both afterwards.

        The second process is started as soon as the first one listens, for every pair.

        Args:
            kind: Type of the proxy that the load goes through.
            idle_proxies: How many more there are that nobody uses.
            transport: Key of `TRANSPORTS`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.prepare(folder)
        ports = free_ports(3 + idle_proxies)
        self.way = TRANSPORTS[transport]
        self.more = _proxies_toml(kind, backend, ports[2], ports[3:])
        with contextlib.ExitStack() as stack:
            began = time.perf_counter()
            first = stack.enter_context(self.first(folder, ports, backend))
            wait_for_port(ports[0], first, READY_LIMIT_S)
            if self.way.server:
                wait_for_port(ports[0], first, READY_LIMIT_S, udp=True)
            second = stack.enter_context(self.second(folder, ports, backend))
            _wait_for_answer(ports[1], (first, second))
            ready_s = time.perf_counter() - began
            port = ports[1]
            if kind == "udp":
                port = ports[2]
                _wait_for_echo(port, (first, second))
            elif kind != "http":
                port = ports[2]
                _wait_for_answer(port, (first, second))
            yield Running(port, [first.pid, second.pid], ready_s)


class FrpPair(Pair):
    """Anything that takes frp's files.

    Args:
        argv: The commands of server and client.
        without: Transports that it does not have.
    """

    carries = frozenset({"http", "tcp", "udp", "stcp"})

    def __init__(
        self,
        name: str,
        version: str,
        argv: tuple[Sequence[str | Path], Sequence[str | Path]],
        without: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.version = version
        self.speaks = frozenset(TRANSPORTS) - without
        self._argv = argv

    def _start(self, side: int, file: Path, text: str, folder: Path) -> Child:
        file.write_text(text)
        # State that a program keeps between starts goes beside its files, not to the user's.
        state = folder / "state"
        state.mkdir(exist_ok=True)
        env = {"XDG_STATE_HOME": str(state), "PYTHONPATH": str(ROOT)}
        return Child(
            [*self._argv[side], "-c", file], file.with_suffix(".log"), extra_env=env, cwd=folder
        )

    def first(self, folder: Path, ports: Sequence[int], backend: int) -> Child:
        text = _SERVER_TOML.format(bind=ports[0], front=ports[1])
        text += self.way.server.format(bind=ports[0])
        return self._start(0, folder / "frps.toml", text, folder)

    def second(self, folder: Path, ports: Sequence[int], backend: int) -> Child:
        text = self.way.client + _CLIENT_TOML.format(bind=ports[0], backend=backend, host=HOST)
        text += self.more
        return self._start(1, folder / "frpc.toml", text, folder)


class NginxPair(Pair):
    """Two plain hops, one process each, with TLS and kept connections between them."""

    name = "nginx"

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self.version = nginx.version(binary)

    def prepare(self, folder: Path) -> None:
        nginx.make_certificate(folder)

    def _start(self, conf: Path) -> Child:
        argv: list[str | Path] = [
            self._binary,
            "-p",
            conf.parent,
            "-c",
            conf,
            "-e",
            conf.with_suffix(".log"),
        ]
        return Child(argv, conf.with_suffix(".log"), cwd=conf.parent)

    def first(self, folder: Path, ports: Sequence[int], backend: int) -> Child:
        # Seen from the caller, the inner hop is the second; it listens for the front one, as
        # frps listens for frpc, and is therefore started first.
        return self._start(nginx.inner_conf(folder, listen=ports[0], backend=backend))

    def second(self, folder: Path, ports: Sequence[int], backend: int) -> Child:
        return self._start(nginx.front_conf(folder, listen=ports[1], inner=ports[0]))


class DirectPair(Pair):
    """No tunnel: what generator and backend cost on their own."""

    name = "direct"
    version = "no tunnel"
    carries = frozenset({"http", "tcp", "udp"})

    @contextlib.contextmanager
    def running(
        self,
        folder: Path,
        backend: int,
        kind: str = "http",
        idle_proxies: int = 0,
        transport: str = "tcp",
    ) -> Iterator[Running]:
        yield Running(backend, [], 0.0)


def _wait_for_answer(port: int, children: Sequence[Child]) -> None:
    """Ask until a request through the pair is answered with 200."""
    message = request("GET", "/get?down=128")

    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as sock:
            sock.sendall(message)
            return sock.recv(4096)

    _wait(ask, b"HTTP/1.1 200", children)


def _wait_for_echo(port: int, children: Sequence[Child]) -> None:
    """Send datagrams until one comes back."""

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.2)
            sock.connect(("127.0.0.1", port))
            sock.send(b"echo")
            return sock.recv(4096)

    _wait(ask, b"echo", children)


def _wait(ask: Callable[[], bytes], wanted: bytes, children: Sequence[Child]) -> None:
    end = time.monotonic() + READY_LIMIT_S
    seen = "nothing"
    while time.monotonic() < end:
        try:
            data = ask()
            seen = data[:32].decode("latin-1")
            if data.startswith(wanted):
                return
        except OSError as exc:
            seen = str(exc)
        for child in children:
            child.check_alive()
        time.sleep(_POLL_S)
    logs = "; ".join(f"{child.name}: {child.tail()}" for child in children)
    raise BenchError(f"no answer within {READY_LIMIT_S:.0f} s (last seen: {seen}); {logs}")


def official() -> Pair:
    """The official pair: `PYFRP_OFFICIAL_DIR`, else fetched into `.cache/official/`.

    Raises:
        BenchError: the binaries are not there and could not be fetched.
    """
    override = os.environ.get("PYFRP_OFFICIAL_DIR")
    folder = Path(override) if override else ROOT / ".cache" / "official"
    fetch = ROOT / "scripts" / "fetch_official.py"
    if not override and not (folder / "frps").is_file() and fetch.is_file():
        done = subprocess.run(
            [sys.executable, str(fetch)], capture_output=True, text=True, cwd=ROOT, timeout=300
        )
        if done.returncode:
            raise BenchError(f"scripts/fetch_official.py failed: {done.stderr.strip()[-300:]}")
    frps, frpc = folder / "frps", folder / "frpc"
    if not (frps.is_file() and frpc.is_file()):
        raise BenchError(
            f"no frps and frpc in {folder}: set PYFRP_OFFICIAL_DIR to a folder that holds them"
        )
    version = subprocess.run([str(frps), "-v"], capture_output=True, text=True, timeout=10)
    # frps needs a web server in front of it for wss.
    return FrpPair(
        "official", f"frp {version.stdout.strip()}", ([frps], [frpc]), frozenset({"wss"})
    )


def pyfrp() -> Pair:
    """pyfrp from this repository, under the Python that runs the harness."""
    command = [sys.executable, "-m", "pyfrp"]
    done = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchError(f"python -m pyfrp does not run: {reason}")
    # pip compiles what it installs; a checkout may be without, and be compiled at each start.
    compileall.compile_dir(ROOT / "pyfrp", quiet=2)
    return FrpPair("pyfrp", done.stdout.strip(), ([*command, "server"], [*command, "client"]))


def nginx_hops() -> Pair:
    """Two nginx hops.

    Raises:
        BenchError: nginx is not installed.
    """
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise BenchError("nginx is not installed (Debian: apt-get install nginx-light)")
    return NginxPair(binary)


PAIRS = {"official": official, "pyfrp": pyfrp, "nginx": nginx_hops, "direct": DirectPair}


def versions() -> dict[str, str]:
    """Versions of what pyfrp runs on."""
    import ssl  # Not needed for anything else here.

    try:
        uvloop = metadata.version("uvloop")
    except metadata.PackageNotFoundError:
        uvloop = "absent"
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": uvloop,
        "OpenSSL": ssl.OPENSSL_VERSION,
    }
