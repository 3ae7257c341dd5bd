"""`pyfrp demo`: the whole way of a token on one machine, in one command.

It starts the sample API in this process, and a server and a client as processes of their own, all
on free loopback ports, sends a streamed chat completion through them and tells what that added to
the same request made directly. Nothing leaves the machine and nothing stays behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyfrp.demo.caller import Caller, CutShortError, Figures
from pyfrp.demo.llm_api import MODEL, SampleApi
from pyfrp.errors import PyfrpError
from pyfrp.net.runner import run

LOOPBACK = "127.0.0.1"
HOST = "llm.local"
# A busy machine may take seconds to start two interpreters; longer than this is a failure.
READY_LIMIT_S = 30.0
# For one answer beyond the time that its tokens take.
ANSWER_LIMIT_S = 15.0
STOP_LIMIT_S = 10.0
LOOK_AGAIN_S = 0.02
WATCH_EVERY_S = 0.5
ROUNDS = 15
TAIL_LINES = 15


class DemoError(PyfrpError):
    """The demonstration failed; the text says at which step and what to try."""


class OutputGoneError(PyfrpError):
    """Nobody reads what we print any more, as with `pyfrp demo | head -3`."""


def say(text: str = "", *, end: str = "\n") -> None:
    """Print at once.

    Raises:
        OutputGoneError: our output was closed.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise OutputGoneError from None


@dataclass
class Child:
    """A server or client of ours, as a process."""

    role: str
    process: subprocess.Popen[bytes]
    log: Path

    def printed(self) -> str:
        """Return all that it printed so far."""
        return self.log.read_text("utf-8", "replace")

    def tail(self) -> str:
        """Return the last lines that it printed."""
        return "\n".join(self.printed().splitlines()[-TAIL_LINES:]) or "(it printed nothing)"

    def check(self) -> None:
        """Raise DemoError if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise DemoError(f"the {self.role} ended by itself with exit code {code}")

    def stop(self) -> None:
        """End it in good order, or by force when it does not follow."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_ports(count: int) -> list[int]:
    """Return loopback ports that are free at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind((LOOPBACK, 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def write_configs(folder: Path, api_port: int, control_port: int, http_port: int) -> None:
    """Write the configuration of both sides, as a person would for a real pair."""
    from pyfrp.config import client_from_dict, dump_toml, server_from_dict

    token = secrets.token_hex(16)
    log = {"level": "info", "disablePrintColor": True}
    server = {
        "bindAddr": LOOPBACK,
        "bindPort": control_port,
        "vhostHTTPPort": http_port,
        "auth": {"token": token},
        "log": log,
    }
    proxy = {
        "name": "llm-api",
        "type": "http",
        "localIP": LOOPBACK,
        "localPort": api_port,
        "customDomains": [HOST],
    }
    client = {
        "serverAddr": LOOPBACK,
        "serverPort": control_port,
        "loginFailExit": False,
        "auth": {"token": token},
        "log": log,
        "proxies": [proxy],
    }
    texts = {
        "server": dump_toml(server_from_dict(server)),
        "client": dump_toml(client_from_dict(client)),
    }
    for role, text in texts.items():
        (folder / f"{role}.toml").write_text(text, "utf-8")


def start_child(role: str, folder: Path) -> Child:
    """Start our server or client with its configuration in `folder`."""
    # A proxy for the web must not come between two programs on this machine.
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    # Whatever it keeps between runs goes where everything else of this run goes.
    env["STATE_DIRECTORY"] = str(folder)
    log = folder / f"{role}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyfrp", role, "-c", str(folder / f"{role}.toml")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            # Ctrl-C is ours to act on; it must not reach the children on its own.
            start_new_session=os.name == "posix",
        )
    return Child(role, process, log)


async def wait_for_port(port: int, child: Child) -> None:
    """Wait until `child` listens at `port`.

    Raises:
        DemoError: it ended, or did not listen in time.
    """
    deadline = time.monotonic() + READY_LIMIT_S
    while True:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            child.check()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the {child.role} does not listen at port {port} after {READY_LIMIT_S:g} s"
                ) from None
            await asyncio.sleep(LOOK_AGAIN_S)
        else:
            writer.close()
            return


async def wait_for_tunnel(port: int, children: Sequence[Child]) -> None:
    """Wait until the client offers its proxy, and see that the API answers through it.

    Raises:
        DemoError: a process ended, or the tunnel does not stand.
    """
    deadline = time.monotonic() + READY_LIMIT_S
    client = children[-1]
    # The line that scripts look for with frp, too. Asking the server again and again instead would
    # fill its log with refusals.
    while "start proxy success" not in client.printed():
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            raise DemoError(f"the client did not offer its proxy within {READY_LIMIT_S:g} s")
        await asyncio.sleep(LOOK_AGAIN_S)
    caller = Caller(LOOPBACK, port, HOST)
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            status, _ = await caller.get("/v1/models")
    finally:
        caller.close()
    if status != 200:
        raise DemoError(f"the API does not answer through the tunnel: HTTP {status}")


async def compare(direct_port: int, tunnel_port: int) -> list[tuple[str, float, float]]:
    """Make the same requests directly and through the tunnel, in turn.

    Returns:
        Rows of a name and the two medians in milliseconds.
    """
    first: dict[int, list[float]] = {direct_port: [], tunnel_port: []}
    small: dict[int, list[float]] = {direct_port: [], tunnel_port: []}
    delay: dict[int, list[float]] = {direct_port: [], tunnel_port: []}
    callers = {port: Caller(LOOPBACK, port, HOST) for port in first}
    try:
        for _ in range(ROUNDS):
            for port, caller in callers.items():
                began = time.monotonic()
                await caller.get("/v1/models")
                small[port].append(time.monotonic() - began)
                figures = Figures()
                await caller.stream("measure", 4, figures)
                first[port].append(figures.first_token_s)
                delay[port] += figures.delays_s
    finally:
        for caller in callers.values():
            caller.close()

    def row(name: str, values: dict[int, list[float]]) -> tuple[str, float, float]:
        medians = [statistics.median(values[port]) * 1000 for port in (direct_port, tunnel_port)]
        return name, medians[0], medians[1]

    return [
        row("time to first token", first),
        row("delay of a token", delay),
        row("small request", small),
    ]


def print_table(figures: Figures, rows: Sequence[tuple[str, float, float]], rate: float) -> None:
    """Print what was measured, as Markdown that is readable in a terminal."""
    say("\n")
    say(f"| {'through the tunnel':<21} | {'':>12} |")
    say(f"|{'-' * 23}|{'-' * 13}:|")
    say(f"| {'time to first token':<21} | {figures.first_token_s * 1000:>9.2f} ms |")
    made = f"(made at {rate:g}/s)" if rate > 0 else "(made at full speed)"
    say(f"| {'token rate':<21} | {figures.tokens_per_s:>10.1f}/s | {made}")
    say()
    say(f"| {f'median of {ROUNDS}':<21} | {'direct':>9} | {'tunnel':>9} | {'added':>9} |")
    say(f"|{'-' * 23}|{'-' * 10}:|{'-' * 10}:|{'-' * 10}:|")
    for name, direct, tunnel in rows:
        cells = " | ".join(f"{value:>6.2f} ms" for value in (direct, tunnel, tunnel - direct))
        say(f"| {name:<21} | {cells} |")


async def stay(port: int, children: Sequence[Child]) -> None:
    """Leave everything running until Ctrl-C.

    Raises:
        DemoError: one of the processes ended.
    """
    asked = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    say("\nEverything stays up until Ctrl-C. Try it with a client of your own, or:")
    say(f"  curl -N -H 'Host: {HOST}' -H 'Content-Type: application/json' \\")
    say(f"    -d '{json.dumps(asked)}' \\")
    say(f"    http://{LOOPBACK}:{port}/v1/chat/completions")
    while True:
        for child in children:
            child.check()
        await asyncio.sleep(WATCH_EVERY_S)


async def demonstrate(args: argparse.Namespace, folder: Path, children: list[Child]) -> None:
    """Run the demonstration; processes it starts are added to `children` at once.

    Raises:
        DemoError: a step failed.
    """
    began = time.monotonic()
    end_on_sigterm()
    api = SampleApi(rate=args.rate)
    try:
        api_port = await api.start(LOOPBACK)
        control_port, http_port = free_ports(2)
        say(f"sample API   http://{LOOPBACK}:{api_port}   (a canned text, no model)")
        write_configs(folder, api_port, control_port, http_port)
        server = start_child("server", folder)
        children.append(server)
        await wait_for_port(control_port, server)
        say(f"server       {LOOPBACK}:{control_port}, callers at http://{LOOPBACK}:{http_port}")
        children.append(start_child("client", folder))
        await wait_for_tunnel(http_port, children)
        say(f"client       logged in, {HOST} -> {LOOPBACK}:{api_port}")
        say(f"ready        after {time.monotonic() - began:.2f} s\n")
        say(f"> {args.prompt}\n")
        figures = Figures()
        caller = Caller(LOOPBACK, http_port, HOST)
        limit = ANSWER_LIMIT_S + (args.tokens / args.rate if args.rate > 0 else args.tokens / 1000)
        try:
            async with asyncio.timeout(limit):
                await caller.stream(
                    args.prompt, args.tokens, figures, show=lambda token: say(token, end="")
                )
        finally:
            caller.close()
        async with asyncio.timeout(ANSWER_LIMIT_S + ROUNDS * 8 / (args.rate or 1000)):
            rows = await compare(api_port, http_port)
        print_table(figures, rows, args.rate)
        if args.keep:
            await stay(http_port, children)
    except (OSError, EOFError, ValueError, LookupError, CutShortError) as exc:
        for child in children:
            child.check()  # a process that ended is the better explanation
        took_too_long = isinstance(exc, TimeoutError)
        reason = "it took too long" if took_too_long else f"{exc}" or type(exc).__name__
        raise DemoError(f"a request failed: {reason}") from exc
    finally:
        await api.close()


def end_on_sigterm() -> None:
    """Let SIGTERM cancel this task, so that the children end with us."""
    task = asyncio.current_task()
    assert task is not None  # called from a coroutine
    try:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    except NotImplementedError:
        pass  # Windows: SIGTERM cannot be caught there; Ctrl-C works as everywhere.


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""

    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise ValueError
        return value

    def rate(text: str) -> float:
        value = float(text)
        if not 0 <= value < 1e6:
            raise ValueError
        return value

    parser = argparse.ArgumentParser(
        prog="pyfrp demo",
        description="Start a sample LLM API, a server and a client on loopback, stream a chat "
        "completion through them, and tell what the tunnel added. Uses no network.",
    )
    add = parser.add_argument
    add("--prompt", default="What happens to a token on its way?", help="what is asked")
    add("--tokens", type=positive, default=60, metavar="N", help="how many to stream (default: 60)")
    add("--rate", type=rate, default=50.0, metavar="R", help="tokens per second (default: 50)")
    add("--keep", action="store_true", help="leave it running and print a curl line")
    return parser.parse_args(argv)


def run_demo(argv: Sequence[str]) -> int:
    """Run `pyfrp demo` with the words that follow it and return the exit code.

    0: it worked, or `--keep` was ended by Ctrl-C or SIGTERM; 1: it failed, with the reason on
    stderr; 130: Ctrl-C or SIGTERM before the end.
    """
    args = parse(argv)
    children: list[Child] = []
    with tempfile.TemporaryDirectory(prefix="pyfrp-demo-") as folder:
        try:
            run(demonstrate(args, Path(folder), children))
        except (KeyboardInterrupt, asyncio.CancelledError):  # Ctrl-C, SIGTERM
            print("\nended")
            return 0 if args.keep else 130
        except OutputGoneError:
            # The interpreter flushes once more at its end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except PyfrpError as exc:
            print(f"\npyfrp demo failed: {exc}", file=sys.stderr)
            for child in children:
                print(f"\n--- end of the {child.role}'s log\n{child.tail()}", file=sys.stderr)
            return 1
        finally:
            for child in reversed(children):
                child.stop()
    return 0
