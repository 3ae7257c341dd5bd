"""Programs of the system: found, started, waited for, and ended by their process ids."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.http import HOST
from tests.support.waiting import PATIENCE_S, until

# Where Debian has what only root uses, and what is not on the path at all.
_MORE_PLACES = ("/usr/sbin", "/sbin", *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin"))))
_GRACE_S = 5.0
LIMIT_S = 30.0
"""How long one program may take to do its work."""


def find(name: str) -> str:
    """The path of a program; the test fails where it is missing."""
    path = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *_MORE_PLACES]))
    if path is None:
        pytest.fail(f"{name} is missing: run `make test-real`", pytrace=False)
    return path


def _environment() -> dict[str, str]:
    """Nobody's configuration files, no translations; proxies of the machine are removed already."""
    return {**os.environ, "LC_ALL": "C", "HOME": "/nonexistent"}


def _command(words: Sequence[str | Path], user: str | None) -> list[str]:
    name, *rest = map(str, words)
    # It becomes the program itself, so that the process id is the program's.
    change = [find("setpriv"), f"--reuid={user}", f"--regid={user}", "--init-groups"]
    return [*(change if user else []), find(name), *rest]


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str


async def run(*words: str | Path, limit_s: float = LIMIT_S, user: str | None = None) -> Done:
    """Run a program until it ends.

    Args:
        words: The program and its arguments.
        limit_s: It is killed, and the test fails, when it takes longer.
        user: Run it as this user.
    """
    process = await asyncio.create_subprocess_exec(
        *_command(words, user),
        env=_environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(limit_s):
            out, err = await process.communicate()
    except TimeoutError:
        pytest.fail(f"not within {limit_s:g} s: {' '.join(map(str, words))}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Done(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


async def output(*words: str | Path, limit_s: float = LIMIT_S, user: str | None = None) -> str:
    """Run a program that must succeed; returns its standard output."""
    done = await run(*words, limit_s=limit_s, user=user)
    assert done.code == 0, f"{words[0]} ended with {done.code}:\n{done.out[-2000:]}{done.err}"
    return done.out


@asynccontextmanager
async def daemon(
    *words: str | Path,
    log: Path,
    ready: Callable[[], bool],
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a program that serves, and end it with its children on leaving.

    Args:
        words: The program and its arguments; it must stay in the foreground.
        log: Gets what it prints.
        ready: Tells whether it serves.
        user: Run it as this user.
        stop: The signal that ends it.
    """
    name = str(words[0])
    with log.open("ab") as sink:
        process = subprocess.Popen(
            _command(words, user),
            env=_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def serves() -> bool:
        if process.poll() is not None:
            said = log.read_text(errors="replace")[-2000:]
            raise AssertionError(f"{name} ended with {process.returncode}:\n{said}")
        return ready()

    try:
        await until(serves, f"{name} to serve", step_s=0.02)
        yield process
    finally:
        process.send_signal(stop)
        try:
            await until(lambda: process.poll() is not None, f"{name} to end", _GRACE_S)
        finally:
            _kill_session(process)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a program and its children, which share its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # The usual case: nothing is left.
    process.wait(timeout=_GRACE_S)


def listening(port: int) -> Callable[[], bool]:
    """A condition for `daemon`: something takes connections on a loopback port."""

    def connects() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((HOST, port)) == 0

    return connects


def says(log: Path, words: str) -> Callable[[], bool]:
    """A condition for `daemon`: it has printed these words."""
    return lambda: words in log.read_text(errors="replace")


@contextmanager
def directory_of(user: str) -> Iterator[Path]:
    """A directory that belongs to another user, who could not enter those of pytest."""
    with TemporaryDirectory(prefix="pyfrp-real-") as path:
        shutil.chown(path, user, user)
        yield Path(path)


async def said(log: Path, words: str, limit_s: float = PATIENCE_S) -> None:
    """Wait until a log has these words."""
    await until(says(log, words), f"{log.name} to say {words!r}", limit_s)
