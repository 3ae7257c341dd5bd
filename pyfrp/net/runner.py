"""The event loop of a process: which one, its signals, and what systemd is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on uvloop where it exists, on plain asyncio elsewhere."""
    _keep_freed_memory()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


def _keep_freed_memory() -> None:
    """Let glibc keep a megabyte or two of what is freed, for it is asked for again at once.

    Until it has seen a large block freed it returns to the system whatever is above 128 KiB, and
    has it faulted in again page by page. Whether bulk transfers suffer from that depends on where
    in the heap their pieces happen to lie: a profile of one that did (`make bench`, row down) had a
    tenth of all samples in page faults, those since have none.

    Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    bytes(1024 * 1024)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, or None for asyncio's own. `PYFRP_LOOP=asyncio` asks for the latter."""
    if os.environ.get("PYFRP_LOOP") == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        return None  # There is none for this platform.
    return uvloop.new_event_loop


class Signals:
    """Turns signals into events: the first asks for an orderly end, a second ends at once.

    Attributes:
        stop: Set by SIGTERM or SIGINT.
    """

    def __init__(self, on_reopen: Callable[[], None]) -> None:
        self.stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        for name in ("SIGTERM", "SIGINT"):
            self._add(name, self._on_stop)
        # Loggers that move files away ask for new ones with either.
        for name in ("SIGUSR1", "SIGHUP"):
            self._add(name, on_reopen)

    def _add(self, name: str, callback: Callable[[], None]) -> None:
        number = getattr(signal, name, None)
        if number is None:
            return
        try:
            self._loop.add_signal_handler(number, callback)
        except (NotImplementedError, RuntimeError):
            # Windows: no handlers in the loop. Ctrl-C still raises KeyboardInterrupt.
            with suppress(OSError, ValueError):
                signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(callback))

    def _on_stop(self) -> None:
        if self.stop.is_set() and self._main is not None:
            self._main.cancel()
        self.stop.set()


class Notifier:
    """Tells systemd how the service is (sd_notify(3)); does nothing outside of it."""

    SPARE_S = 60.0
    """What is asked for beyond the time that is needed."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """The service does its work; also starts feeding the watchdog, if there is one."""
        self.send("READY=1")
        usec = os.environ.get("WATCHDOG_USEC", "")
        pid = os.environ.get("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        if ours and usec.isdecimal() and int(usec) and self._timer is None:
            self._feed(int(usec) / 1_000_000 / 2)

    def extend(self, seconds: float) -> None:
        """The start needs so long from now; a unit that gives less would have it begin anew."""
        self.send(self._extension(seconds))

    def stopping(self, seconds: float) -> None:
        """The service ends, and may need so long for it, whatever the unit gives."""
        self.send(f"STOPPING=1\n{self._extension(seconds)}")

    def _extension(self, seconds: float) -> str:
        return f"EXTEND_TIMEOUT_USEC={int((seconds + self.SPARE_S) * 1_000_000)}"

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _feed(self, interval_s: float) -> None:
        self.send("WATCHDOG=1")
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(interval_s, self._feed, interval_s)

    def send(self, state: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # A systemd that is stuck must not stop the loop.
                sock.sendto(state.encode(), address)
        except OSError:
            pass  # systemd notices silence by itself.
