"""Calls that block, in threads that the end of the process does not wait for.

A resolver, or a Kerberos server, may take half a minute to give up. asyncio waits for its own
threads before a loop closes, and uvloop for those of libuv: a program that was told to stop would
be held up by a name.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

# At a time; further calls wait for their turn. With a resolver that is stuck this is how many can.
MOST_THREADS = 32

_calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
_idle = threading.Semaphore(0)
_started = threading.Semaphore(MOST_THREADS)


async def aside(call: Callable[[], T]) -> T:
    """Do `call` in a thread; whatever it raises is raised.

    Nothing interrupts it: who is cancelled no longer waits, and its result is dropped.

    Raises:
        OSError: there is no thread to be had.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    # A failure that nobody awaits any more is not worth a warning.
    done.add_done_callback(lambda done: done.cancelled() or done.exception())

    def tell(settle: Callable[[T], None] | Callable[[BaseException], None], what: object) -> None:
        if not done.done():
            settle(what)  # type: ignore[arg-type]  # each of the two calls below fits

    def run() -> None:
        if done.cancelled():
            return  # It was given up before its turn came.
        try:
            news = (done.set_result, call())
        except BaseException as exc:
            news = (done.set_exception, exc)  # type: ignore[assignment]  # see `tell`
        try:
            loop.call_soon_threadsafe(tell, *news)
        except RuntimeError:
            pass  # The loop is closed: nobody waits any more.

    _calls.put(run)
    if not _idle.acquire(blocking=False) and _started.acquire(blocking=False):
        try:
            threading.Thread(target=_work, name="aside", daemon=True).start()
        except RuntimeError as exc:
            _started.release()
            done.cancel()
            raise OSError(str(exc)) from exc
    return await done


def _work() -> None:
    while True:
        _calls.get()()
        _idle.release()
