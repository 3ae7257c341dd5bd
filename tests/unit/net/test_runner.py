"""The event loop of a process, its signals, and what systemd is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import pytest

from pyfrp.net import runner
from tests.support.waiting import until
from tests.unit.net.ends import turns


def loop_module():
    async def main():
        return type(asyncio.get_running_loop()).__module__

    return runner.run(main())


def test_uvloop_runs_where_it_exists(monkeypatch):
    monkeypatch.delenv("PYFRP_LOOP", raising=False)
    pytest.importorskip("uvloop")
    assert loop_module().startswith("uvloop")


def test_plain_asyncio_runs_when_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("PYFRP_LOOP", "asyncio")
    assert loop_module().startswith("asyncio")


def test_plain_asyncio_runs_where_uvloop_does_not_exist(monkeypatch):
    monkeypatch.delenv("PYFRP_LOOP", raising=False)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_module().startswith("asyncio")


def test_the_result_and_the_failure_of_main_come_through():
    async def good():
        return 5

    async def bad():
        raise ValueError("no")

    assert runner.run(good()) == 5
    with pytest.raises(ValueError, match="no"):
        runner.run(bad())


# -- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_first_signal_asks_and_the_second_ends_at_once(kind, name, monkeypatch):
    monkeypatch.setenv("PYFRP_LOOP", kind)
    seen = []

    async def main():
        signals = runner.Signals(lambda: seen.append("reopen"))
        os.kill(os.getpid(), getattr(signal, name))
        async with asyncio.timeout(5):
            await signals.stop.wait()
        seen.append("stop")
        os.kill(os.getpid(), getattr(signal, name))
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        runner.run(main())
    assert seen == ["stop"]


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP"])
def test_log_files_are_opened_again_on_request(name):
    seen = []

    async def main():
        runner.Signals(lambda: seen.append(name))
        os.kill(os.getpid(), getattr(signal, name))
        async with asyncio.timeout(5):
            while not seen:
                await asyncio.sleep(0)

    runner.run(main())
    assert seen == [name]


def test_a_platform_without_handlers_in_the_loop_uses_the_plain_ones(monkeypatch):
    """Windows: `add_signal_handler` is not there; SIGUSR1 is none of its signals."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setenv("PYFRP_LOOP", "asyncio")
    monkeypatch.delattr(signal, "SIGUSR1")
    monkeypatch.delattr(signal, "SIGHUP")

    async def main():
        loop = asyncio.get_running_loop()

        def missing(*_):
            raise NotImplementedError

        loop.add_signal_handler = missing
        signals = runner.Signals(lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await signals.stop.wait()

    try:
        runner.run(main())
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


# -- systemd ------------------------------------------------------------------------------------


@pytest.fixture
def notified(tmp_path, monkeypatch):
    """What arrives at the socket of a pretended systemd."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)

        def messages():
            found = []
            try:
                while True:
                    found.append(sock.recv(1000).decode())
            except BlockingIOError:
                return found

        yield messages


async def test_systemd_is_told_of_readiness_and_of_the_end(notified, monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notifier = runner.Notifier()
    notifier.ready()
    notifier.stopping(0.0)
    notifier.close()
    [ready, stopping] = notified()
    assert ready == "READY=1"
    assert stopping.splitlines()[0] == "STOPPING=1"


async def test_systemd_is_asked_for_the_time_that_is_needed(notified):
    notifier = runner.Notifier()
    notifier.extend(600.0)
    notifier.stopping(300.0)
    assert notified() == [
        f"EXTEND_TIMEOUT_USEC={660 * 1_000_000}",
        f"STOPPING=1\nEXTEND_TIMEOUT_USEC={360 * 1_000_000}",
    ]


async def test_the_watchdog_is_fed_at_half_its_time_until_the_end(notified, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = runner.Notifier()
    notifier.ready()
    notifier.ready()
    fed = []
    await until(lambda: fed.extend(notified()) or fed.count("WATCHDOG=1") >= 4, "four meals")
    notifier.close()
    notifier.close()
    assert notifier._timer is None
    notified()
    await turns()
    assert notified() == []


@pytest.mark.parametrize(
    ("usec", "pid"), [("", ""), ("x", ""), ("0", ""), ("-5", ""), ("20000", "1")]
)
async def test_no_watchdog_that_is_not_ours_is_fed(notified, monkeypatch, usec, pid):
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    notifier = runner.Notifier()
    notifier.ready()
    await turns()
    notifier.close()
    assert notified() == ["READY=1"]


async def test_a_systemd_that_does_not_read_stops_nothing(tmp_path, monkeypatch):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notifier = runner.Notifier()
        for _ in range(5000):
            notifier.send("WATCHDOG=1")


async def test_an_abstract_socket_is_spoken_to(monkeypatch):
    name = f"pyfrp-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        runner.Notifier().send("READY=1")
        assert sock.recv(100) == b"READY=1"


async def test_outside_of_systemd_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notifier = runner.Notifier()
    notifier.ready()
    notifier.close()


async def test_a_socket_that_is_gone_is_nobodys_error(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    runner.Notifier().send("READY=1")
