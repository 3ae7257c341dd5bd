"""`pyfrp demo` from outside: it shows the tokens, ends what it started, and explains a failure."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pyfrp.cli import demo
from pyfrp.demo.llm_api import TEXT

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60


def words(*more: str) -> list[str]:
    return [sys.executable, "-m", "pyfrp", "demo", *more]


def begin(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words(*more),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_naming(text: str) -> list[str]:
    """Command lines of running processes that name `text`, where the kernel tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue  # It ended while we looked.
        if text in line:
            found.append(line.replace("\0", " "))
    return found


def test_demo_streams_through_the_tunnel_and_leaves_nothing(tmp_path):
    process = begin(tmp_path, "--tokens", "12", "--rate", "200", "--prompt", "Anybody there?")
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out + err
    assert err == ""
    assert "> Anybody there?" in out
    assert " ".join(TEXT.split()[:12]) in out
    for name in ("time to first token", "token rate", "delay of a token", "small request"):
        assert re.search(rf"\| {name} +\| +-?[\d.]+ ?", out), name
    assert list(tmp_path.iterdir()) == []
    assert processes_naming(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("keep", "number", "code"),
    [
        (True, signal.SIGINT, 0),
        (True, signal.SIGTERM, 0),
        (False, signal.SIGINT, 130),
    ],
)
def test_signal_ends_the_demo_and_all_that_it_started(tmp_path, keep, number, code):
    more = ["--keep", "--tokens", "2"] if keep else ["--tokens", "100000"]
    process = begin(tmp_path, *more)
    assert process.stdout is not None
    waited_for = "/v1/chat/completions" if keep else "> "
    for line in process.stdout:
        if waited_for in line:
            break
    assert len(processes_naming(str(tmp_path))) in (0, 2)  # 0 where there is no /proc
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    assert err == ""
    assert list(tmp_path.iterdir()) == []
    assert processes_naming(str(tmp_path)) == []


def test_process_that_ends_by_itself_is_named_with_the_end_of_its_log(
    tmp_path, monkeypatch, capsys
):
    real = subprocess.Popen

    def broken(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        code = "print('no such luck'); raise SystemExit(3)"
        return real([command[0], "-c", code], **options)

    monkeypatch.setattr(demo.subprocess, "Popen", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert demo.run_demo([]) == 1
    said = capsys.readouterr().err
    assert "the server ended by itself with exit code 3" in said
    assert "no such luck" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def change_client_config(monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    """Let the demo write a client's configuration with one thing changed."""
    real = demo.write_configs

    def changed(folder: Path, *ports: int) -> None:
        real(folder, *ports)
        path = folder / "client.toml"
        text = path.read_text("utf-8")
        assert before in text
        path.write_text(text.replace(before, after), "utf-8")

    monkeypatch.setattr(demo, "write_configs", changed)


def test_proxy_that_is_never_offered_is_told_with_the_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "READY_LIMIT_S", 3.0)
    change_client_config(monkeypatch, "token = ", 'token = "wrong" # ')
    assert demo.run_demo(["--tokens", "1"]) == 1
    said = capsys.readouterr().err
    assert "the client did not offer its proxy within 3 s" in said
    client_log = said.partition("--- end of the client's log")[2]
    assert "token in login doesn't match token from configuration" in client_log


def test_tunnel_to_nowhere_is_told_with_the_status(tmp_path, monkeypatch, capsys):
    change_client_config(monkeypatch, "localPort = ", "localPort = 1 # ")
    assert demo.run_demo(["--tokens", "1"]) == 1
    assert "the API does not answer through the tunnel: HTTP 502" in capsys.readouterr().err


def test_reader_that_leaves_ends_the_demo_without_a_word(tmp_path):
    process = begin(tmp_path, "--tokens", "100000")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(LIMIT_S) == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert list(tmp_path.iterdir()) == []
    assert processes_naming(str(tmp_path)) == []


@pytest.mark.parametrize("wrong", [["--tokens", "0"], ["--rate", "-1"], ["--rate", "x"], ["--why"]])
def test_wrong_option_is_a_usage_error(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        demo.parse(wrong)
    assert ended.value.code == 2
    assert "usage: pyfrp demo" in capsys.readouterr().err


def test_free_ports_differ():
    assert len(set(demo.free_ports(8))) == 8
