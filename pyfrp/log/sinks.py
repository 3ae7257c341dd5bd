"""Where lines go: a descriptor that never stops the program, the console, a rotating file.

Source of the rules for files: golib `log` (name of a renamed file, moment, age).
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

from pyfrp.errors import ConfigError

Clock = Callable[[], float]
Notice = Callable[[float, str], str]
"""Renders a line of the log about itself, from the time and a text."""


class _Descriptor:
    """Writes lines to a descriptor without ever raising, and without waiting for long.

    A line of which a part was written is finished before the next one. Lines that cannot be
    written are dropped and counted; the first one written after that is preceded by the count.

    Args:
        notice: Renders the line that tells how many were lost, and why.
    """

    STALL_MS = 20
    """How long a reader that has just stopped (a terminal, a full pipe) is waited for."""
    RETRY_S = 1.0
    """Pause between attempts while a disk refuses."""
    SLICE = 4096
    """What a pipe that polls as writable takes without waiting (PIPE_BUF on Linux)."""

    def __init__(self, notice: Notice) -> None:
        self._notice = notice
        self._fd = -1
        self._poll: Any = None
        self._stalled = False
        self._torn = b""
        self._lost = 0
        self._why = ""
        self._retry_at = 0.0

    @property
    def attached(self) -> bool:
        return self._fd >= 0

    def attach(self, fd: int) -> None:
        self._fd = fd
        self._torn = b""
        self._stalled = False
        self._poll = None
        if hasattr(select, "poll") and not stat.S_ISREG(os.fstat(fd).st_mode):
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

    def detach(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass  # A disk may report a lost write here; the lines are gone either way.

    def write(self, line: bytes, now: float) -> None:
        if self._fd < 0 or 0 < self._retry_at - now <= self.RETRY_S:
            self._lost += 1
            return
        told = self._lost
        head = self._notice(now, f"{told} log lines were lost: {self._why}") if told else ""
        data = self._torn + head.encode() + line
        try:
            done = self._push(data)
        except OSError as exc:
            self.fail(exc)
            self._lost += 1
            self._retry_at = now + self.RETRY_S
            return
        if done == 0 or done < len(self._torn):
            self._torn = self._torn[done:]
            self._lost += 1
            self._why = "nobody read them"
            return
        # Torn or not, the rest is kept, so these lines count as written.
        self._torn = data[done:]
        self._lost = 0

    def _push(self, data: bytes) -> int:
        if self._poll is None:
            return os.write(self._fd, data)
        done = 0
        while done < len(data):
            if not self._poll.poll(0 if self._stalled else self.STALL_MS):
                self._stalled = True
                break
            try:
                done += os.write(self._fd, data[done : done + self.SLICE])
            except BlockingIOError:
                self._stalled = True
                break
            self._stalled = False
        return done

    def fail(self, exc: OSError) -> None:
        """Keep the reason for the notice."""
        self._why = exc.strerror or type(exc).__name__


class Console:
    """Standard output, or whatever stands in for it."""

    def __init__(self, notice: Notice) -> None:
        self._descriptor: _Descriptor | None = None
        try:
            sys.stdout.flush()  # What was printed before comes before.
            fd = sys.stdout.fileno()
            self._descriptor = _Descriptor(notice)
            self._descriptor.attach(fd)
        except (AttributeError, OSError, ValueError):
            self._descriptor = None  # No descriptor: a capture in tests, pythonw, an IDE.

    def write(self, text: str, now: float) -> None:
        if self._descriptor is not None:
            self._descriptor.write(text.encode(errors="backslashreplace"), now)
        elif sys.stdout is not None:
            try:
                sys.stdout.write(text)
            except (OSError, ValueError):
                pass  # The stand-in is closed; there is nowhere to tell it.

    def reopen(self) -> None:
        """There is nothing to reopen."""

    def close(self) -> None:
        """Standard output is not ours to close."""


class File:
    """A file that is renamed at local midnight, and opened again when somebody moved it away.

    Args:
        path: Where to append; directories are made, a new file gets mode 0600.
        max_days: Days that renamed files are kept, by the time in their name; 0 or less: for ever.

    Raises:
        ConfigError: It cannot be opened now. Later failures only cost lines.
    """

    CHECK_S = 1.0
    """How often the path is looked at for having been moved away."""
    LONGEST_DAY_S = 26 * 3600.0

    def __init__(self, path: str, max_days: int, notice: Notice, clock: Clock) -> None:
        self._path = os.path.abspath(path)
        self._max_days = max_days
        self._clock = clock
        self._out = _Descriptor(notice)
        self._identity: tuple[int, int] | None = None
        self._check_at = 0.0
        self._midnight = 0.0
        try:
            self._open(clock())
        except OSError as exc:
            raise ConfigError(
                f"cannot write the log file {path}: {exc.strerror}; give a file in a directory "
                "that this user may write to, or log to the console",
                key="log.to",
            ) from exc

    def write(self, text: str, now: float) -> None:
        if self._midnight - now > self.LONGEST_DAY_S:
            self._midnight = next_midnight(now)  # The clock was ahead, and has been set.
        if self._identity is not None and now >= self._midnight:
            self._rotate(now)
        elif not 0 <= self._check_at - now <= self.CHECK_S:
            self._check_at = now + self.CHECK_S
            if self._moved():
                self._try_open(now)
        self._out.write(text.encode(errors="backslashreplace"), now)

    def reopen(self) -> None:
        """Close and open again, after the file was renamed from outside."""
        self._try_open(self._clock())

    def close(self) -> None:
        self._out.detach()

    def _open(self, now: float) -> None:
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        # Not to hang on a FIFO without a reader; regular files do not care.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
        fd = os.open(self._path, flags, 0o600)
        self._out.detach()
        self._out.attach(fd)
        info = os.fstat(fd)
        # Something like /dev/stdout is neither renamed nor looked after.
        self._identity = (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None
        self._midnight = next_midnight(now)

    def _try_open(self, now: float) -> None:
        try:
            self._open(now)
        except OSError as exc:
            # Lines go on to the old file, or are counted as lost; tried again in a second.
            self._out.fail(exc)

    def _moved(self) -> bool:
        if not self._out.attached:
            return True
        if self._identity is None:
            return False
        try:
            info = os.stat(self._path)
        except OSError as exc:
            return exc.errno == errno.ENOENT
        return (info.st_dev, info.st_ino) != self._identity

    def _rotate(self, now: float) -> None:
        stem, ext = os.path.splitext(self._path)
        at = self._midnight
        # Slept over more than one midnight: the last of them.
        while (later := next_midnight(at)) <= now:
            at = later
        self._midnight = later
        self._out.detach()  # Windows does not rename open files.
        try:
            target = _rotated_name(stem, at, ext)
            # Taken only if two programs share the file or the clock was turned back.
            while os.path.exists(target):
                at += 1
                target = _rotated_name(stem, at, ext)
            os.rename(self._path, target)
        except OSError:
            pass  # Then today's lines join yesterday's.
        self._try_open(now)
        self._prune(stem, ext, now)

    def _prune(self, stem: str, ext: str, now: float) -> None:
        if self._max_days <= 0:
            return
        folder, base = os.path.split(stem)
        pattern = re.compile(rf"{re.escape(base)}\.(\d{{8}}-\d{{6}}){re.escape(ext)}")
        try:
            names = os.listdir(folder)
        except OSError:
            return  # Nothing to see, nothing to delete; tomorrow again.
        for name in names:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            try:
                written = time.mktime(time.strptime(match[1], "%Y%m%d-%H%M%S"))
                if now - written > self._max_days * 86400:
                    os.remove(os.path.join(folder, name))
            except (ValueError, OverflowError, OSError):
                pass  # Not one of ours, or not ours to delete.


def next_midnight(now: float) -> float:
    """Return the first local midnight after `now`, whatever summer time does in between."""
    local = time.localtime(now)
    return time.mktime((local.tm_year, local.tm_mon, local.tm_mday + 1, 0, 0, 0, 0, 0, -1))


def _rotated_name(stem: str, at: float, ext: str) -> str:
    return f"{stem}.{time.strftime('%Y%m%d-%H%M%S', time.localtime(at))}{ext}"
