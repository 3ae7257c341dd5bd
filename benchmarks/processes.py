"""Child processes of the harness: started in their own session, ended by pid in every case."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
_END_GRACE_S = 3.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class BenchError(Exception):
    """The run cannot go on; the text says what happened and what to try."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one (children inherit it); returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_ports(count: int) -> list[int]:
    """Free loopback ports below the range that outgoing connections take theirs from."""
    chosen: list[int] = []
    for port in random.sample(range(12000, 32000), 2000):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise BenchError(f"no {count} free ports between 12000 and 32000 on 127.0.0.1")


def _end_with_parent() -> None:
    """In the child: ask the kernel for SIGKILL when the harness ends without ending it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """One child process; a context manager that ends it.

    The child has its own session, so that a Ctrl-C reaches the harness alone, which then ends
    its children in order; if the harness itself is killed, the kernel ends them.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path,
        *,
        piped: bool = False,
        extra_env: dict[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self.name = Path(argv[0]).name
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else sink,
                stderr=sink,
                cwd=cwd,
                env={**os.environ, **(extra_env or {})},
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def first_line(self) -> str:
        """The first line that a piped child writes."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def converse(self, text: str, limit_s: float) -> str:
        """Give a piped child its whole input and return its whole output."""
        try:
            out, _ = self._process.communicate(text.encode(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"the load generator did not end within {limit_s:.0f} s") from None
        if self._process.returncode:
            raise BenchError(f"the load generator failed: {self.tail()}")
        return out.decode()

    def check_alive(self) -> None:
        """Raises BenchError, with the end of its log, when the process has ended."""
        if self._process.poll() is not None:
            raise BenchError(
                f"{self.name} ended with status {self._process.returncode}: {self.tail()}"
            )

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        return " | ".join(lines) or "(nothing in its log)"

    def end(self) -> None:
        """Ask the process to end, then make it; returns when it is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # Unsent input of an ended child is lost.
                    pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def module(name: str, log: Path) -> Child:
    """A module of this package as a child with pipes."""
    return Child([sys.executable, "-m", name], log, piped=True)


def wait_for_port(port: int, child: Child, limit_s: float, *, udp: bool = False) -> None:
    """Return when something listens on a loopback port; `child` is who should."""
    end = time.monotonic() + limit_s
    while not _taken(port, udp):
        child.check_alive()
        if time.monotonic() > end:
            raise BenchError(f"{child.name} did not listen within {limit_s:.0f} s: {child.tail()}")
        time.sleep(0.002)


def _taken(port: int, udp: bool) -> bool:
    """Whether somebody listens there."""
    if not udp:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def end_on_sigterm() -> None:
    """Turn SIGTERM into the exception of Ctrl-C, so that children are ended then too."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
