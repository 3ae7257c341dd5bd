from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from pyfrp.auth import sources
from pyfrp.auth.sources import SourceFailed, resolve, resolve_token
from pyfrp.config import server_from_dict
from pyfrp.config.common import EnvVar, ExecSource, FileSource, ValueSource
from pyfrp.errors import ConfigError
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the commands are POSIX")


def execute(*words: str, **env: str) -> ValueSource:
    command, *args = words
    variables = [EnvVar(name=name, value=value) for name, value in env.items()]
    return ValueSource(type="exec", exec=ExecSource(command=command, args=args, env=variables))


def file(path: Path | str) -> ValueSource:
    return ValueSource(type="file", file=FileSource(path=str(path)))


async def failure(source: ValueSource) -> str:
    with pytest.raises(SourceFailed) as caught:
        await resolve(source)
    assert "hush" not in str(caught.value)
    return str(caught.value)


async def test_what_a_program_prints_is_the_value_without_white_space(loop_kind: str) -> None:
    assert await resolve(execute("printf", r" \t%s\n\n", "a token")) == "a token"


async def test_no_shell_looks_at_the_words(loop_kind: str) -> None:
    assert await resolve(execute("echo", "$HOME; `id` *")) == "$HOME; `id` *"


async def test_the_environment_is_inherited_and_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "inherited")
    monkeypatch.setenv("BOTH", "old")
    source = execute("sh", "-c", "echo $OURS $BOTH $MORE", BOTH="new", MORE="added")
    assert await resolve(source) == "inherited new added"


async def test_it_has_no_input_and_may_complain(loop_kind: str) -> None:
    assert await resolve(execute("sh", "-c", "echo hush >&2; cat; echo value")) == "value"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("sh", "-c", "echo hush; echo hush >&2; exit 3"), "sh: exit status 3"),
        (("sh", "-c", "echo hush; kill -9 $$"), "sh: signal: 9"),
        (("/no/such/program",), "/no/such/program: no such file or directory"),
        (("/etc/passwd",), "/etc/passwd: permission denied"),
        (("echo", "a\0b"), "echo: an argument or a variable has a NUL in it"),
        (("true",), "true: it printed nothing"),
        (("printf", r"\377"), "printf: not text in UTF-8"),
        (("sh", "-c", "yes hush | head -c 70000"), "sh: more than 65536 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_failures_are_told_without_what_was_printed(
    words: tuple[str, ...], text: str, loop_kind: str
) -> None:
    assert await failure(execute(*words)) == f"failed to execute command {text}"


async def test_a_program_that_hangs_is_ended_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loop_kind: str
) -> None:
    monkeypatch.setattr(sources, "EXEC_S", 0.5)
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $$ $! > {pids}; echo hush; wait"
    began = time.monotonic()
    assert await failure(execute("sh", "-c", script)) == (
        "failed to execute command sh: it did not end within 0.5 s"
    )
    assert time.monotonic() - began < 5
    shell, sleeper = map(int, pids.read_text().split())
    assert not Path(f"/proc/{shell}").exists()
    await until(lambda: not _runs(sleeper), "both to end")


async def test_a_program_is_ended_when_nobody_wants_its_value_any_more(
    tmp_path: Path, loop_kind: str
) -> None:
    mark = tmp_path / "pid"
    task = asyncio.get_running_loop().create_task(
        resolve(execute("sh", "-c", f"echo $$ > {mark}; exec sleep 60"))
    )
    pid = int(await until(lambda: mark.exists() and mark.read_text().strip(), "its start"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Not even as a zombie. One loop does not wait for a program that was not yet quite started.
    await until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


# -- files --------------------------------------------------------------------------------------


async def test_a_file_is_read_without_white_space(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("\n a token\t\n")
    assert await resolve(file(path)) == "a token"


async def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    path = tmp_path / "token"
    prefix = f"failed to read file {path}"
    assert await failure(file(path)) == f"{prefix}: no such file or directory"
    path.write_bytes(b" \n")
    assert await failure(file(path)) == f"{prefix}: it is empty"
    path.write_bytes(b"hush\xff")
    assert await failure(file(path)) == f"{prefix}: not text in UTF-8"
    path.write_bytes(b"hush" * 20_000)
    assert await failure(file(path)) == f"{prefix}: more than 65536 bytes"
    assert "NUL" in await failure(file("a\0b"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert await failure(file(fifo)) == f"failed to read file {fifo}: not a regular file"
    assert "not a regular file" in await failure(file("/dev/zero"))
    assert "directory" in await failure(file(tmp_path))


# -- auth.tokenSource ---------------------------------------------------------------------------


def configured(command: str, method: str = "token") -> object:
    source = {"type": "exec", "exec": {"command": command}}
    data = {"auth": {"method": method, "tokenSource": source, "oidc": {"issuer": "https://x"}}}
    return server_from_dict(data, allow_unsafe=["TokenSourceExec"])


async def test_the_shared_token_comes_from_the_program() -> None:
    cfg = configured("pwd")
    assert cfg.auth.token == ""
    await resolve_token(cfg.auth)
    assert cfg.auth.token == os.getcwd()


async def test_the_program_is_not_run_for_another_method() -> None:
    cfg = configured("/no/such/program", "oidc")
    await resolve_token(cfg.auth)
    assert cfg.auth.token == ""


async def test_without_the_shared_token_there_is_no_start() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^failed to resolve auth\.tokenSource: failed to execute command false: exit status",
    ):
        await resolve_token(configured("false").auth)
