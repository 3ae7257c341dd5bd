"""Values that stand in a file or are printed by a program (`tokenSource`).

Source: frp `pkg/config/v1/value_source.go` (what is run, the words of the errors). What a program
printed is in no error: it may be half of a secret.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyfrp.errors import ConfigError, PyfrpError

if TYPE_CHECKING:
    from pyfrp.config.common import AuthConfig, ExecSource, ValueSource

MAX_VALUE_BYTES = 64 * 1024
"""Longest value; a token is a line."""
EXEC_S = 30.0
"""How long a program may take. frp waits for ever, and with it every login."""

END_S = 2.0
"""For the system to end what was killed."""


class SourceFailed(PyfrpError):
    """A value cannot be had now; the text begins with frp's."""


async def resolve(source: ValueSource) -> str:
    """Get the value, without white space around it; a checked source is expected.

    Raises:
        SourceFailed: with the reason, and nothing of what was read.
    """
    if source.type == "exec":
        assert source.exec is not None
        value = await run(source.exec)
        what = f"failed to execute command {source.exec.command}: it printed nothing"
    else:
        assert source.file is not None
        value = read_file(source.file.path)
        what = f"failed to read file {source.file.path}: it is empty"
    if not value:
        raise SourceFailed(what)
    return value


async def resolve_token(auth: AuthConfig) -> None:
    """Put the token of an exec source into `auth.token`, once; that of a file is there already.

    Raises:
        ConfigError: it cannot be had, and without it there is nothing to run.
    """
    source = auth.token_source
    if auth.method != "token" or source is None or source.type != "exec":
        return
    try:
        auth.token = await resolve(source)
    except SourceFailed as exc:
        text = f"failed to resolve auth.tokenSource: {exc}"
        raise ConfigError(text, key="auth.tokenSource") from exc


def read_file(path: str) -> str:
    """Read a token file, which is small and local, without ever waiting for a writer.

    Raises:
        SourceFailed: it cannot be read, is no file, too long, or no text.
    """
    prefix = f"failed to read file {path}"
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SourceFailed(f"{prefix}: not a regular file")
            data = file.read(MAX_VALUE_BYTES + 1)
    except OSError as exc:
        raise SourceFailed(f"{prefix}: {_reason(exc)}") from exc
    except ValueError as exc:
        raise SourceFailed(f"{prefix}: the path has a NUL in it") from exc
    return _text(data, prefix)


def _open_at_once(path: str, flags: int) -> int:
    # What is no file, such as a pipe that nobody writes to, would hold up everything.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


async def run(source: ExecSource) -> str:
    """Run a program, without a shell, and return what it printed.

    Raises:
        SourceFailed: it cannot be run, fails, takes too long, or prints too much or no text.
    """
    prefix = f"failed to execute command {source.command}"
    env: Mapping[str, str] = {**os.environ, **{each.name: each.value for each in source.env}}
    words = (source.command, *source.args)
    if any("\0" in text for text in (*words, *env.values(), *env)):
        # Not every event loop looks; one cuts the word off there.
        raise SourceFailed(f"{prefix}: an argument or a variable has a NUL in it")
    loop = asyncio.get_running_loop()
    start = loop.create_task(
        loop.subprocess_exec(
            lambda: _Printed(loop),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=env,
            # A group of its own, so that what it started ends with it.
            start_new_session=sys.platform != "win32",
        )
    )
    try:
        async with asyncio.timeout(EXEC_S):
            # Neither is cancelled with who waits for it: what has begun is ended below.
            await asyncio.wait((start,))
            transport, printed = start.result()
            await asyncio.wait((printed.ended,))
    except TimeoutError:
        raise SourceFailed(f"{prefix}: it did not end within {EXEC_S:g} s") from None
    except OSError as exc:
        raise SourceFailed(f"{prefix}: {_reason(exc)}") from exc
    finally:
        await asyncio.wait((start,))
        if start.exception() is None:
            await _end(*start.result())
    code = transport.get_returncode() or 0
    if code < 0:
        raise SourceFailed(f"{prefix}: signal: {-code}")
    if code:
        raise SourceFailed(f"{prefix}: exit status {code}")
    return _text(bytes(printed.data), prefix)


class _Printed(asyncio.SubprocessProtocol):
    """Collects the output of a program; `ended` settles once it has ended and closed it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.data = bytearray()
        self.ended: asyncio.Future[None] = loop.create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.data += data[: MAX_VALUE_BYTES + 1 - len(self.data)]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def _end(transport: asyncio.SubprocessTransport, printed: _Printed) -> None:
    """End a program that has not ended, and let the loop see it, which may take a moment."""
    if transport.get_returncode() is None:
        _kill(transport.get_pid())
    transport.close()
    await asyncio.wait((printed.ended,), timeout=END_S)


def _kill(pid: int) -> None:
    """End a program and whatever it started."""
    try:
        if sys.platform == "win32":
            os.kill(pid, signal.SIGTERM)
        else:
            os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # It has ended by itself meanwhile.


def _text(data: bytes, prefix: str) -> str:
    if len(data) > MAX_VALUE_BYTES:
        raise SourceFailed(f"{prefix}: more than {MAX_VALUE_BYTES} bytes")
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        raise SourceFailed(f"{prefix}: not text in UTF-8") from None


def _reason(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()
