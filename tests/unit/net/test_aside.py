"""Blocking calls beside the loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from pyfrp.net import aside as module
from pyfrp.net.aside import aside
from tests.support.waiting import within


async def test_what_a_call_gives_or_raises_is_passed_on(loop_kind):
    assert await aside(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0)
    assert await aside(threading.current_thread) is not threading.main_thread()


async def test_calls_run_side_by_side(loop_kind):
    together = threading.Barrier(4)
    calls = [aside(lambda: together.wait(10)) for _ in range(4)]
    assert sorted(await within(asyncio.gather(*calls), 10, "all four")) == [0, 1, 2, 3]


async def test_who_is_cancelled_does_not_wait_and_is_not_done_later(loop_kind, monkeypatch):
    monkeypatch.setattr(module, "_calls", module.SimpleQueue())
    monkeypatch.setattr(module, "_idle", threading.Semaphore(0))
    monkeypatch.setattr(module, "_started", threading.Semaphore(1))
    held, done = threading.Event(), []
    loop = asyncio.get_running_loop()
    first = loop.create_task(aside(lambda: held.wait(10)))
    second = loop.create_task(aside(lambda: done.append(2)))
    await asyncio.sleep(0)
    for task in (first, second):
        task.cancel()
    await within(asyncio.wait((first, second)), 1, "both to end")
    held.set()
    await within(aside(lambda: done.append(3)), 10, "the third")
    assert done == [3]


async def test_a_machine_without_threads_is_an_error_of_the_system(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "_calls", module.SimpleQueue())
    monkeypatch.setattr(module, "_idle", threading.Semaphore(0))
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="can't start new thread"):
        await aside(lambda: 1)
    monkeypatch.undo()
    assert await within(aside(lambda: 1), 10, "the next") == 1


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
def test_a_process_ends_while_a_name_is_looked_up(kind):
    """The system's resolver, here one that takes a minute, cannot be interrupted."""
    program = """
import asyncio, socket, time
from pyfrp.net.dial import resolve
from pyfrp.net.runner import run

socket.getaddrinfo = lambda *_, **__: time.sleep(60)

async def main():
    try:
        async with asyncio.timeout(0.1):
            await resolve("llm.test", 80)
    except TimeoutError:
        print("gave up")

run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env={"PYFRP_LOOP": kind},
    )
    assert (done.stdout, done.stderr) == ("gave up\n", "")
