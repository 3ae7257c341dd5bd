"""Configurations read by a child: all of them comes back, and nothing of the reader stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyfrp.cli.apart import Settings, load_apart, plain
from pyfrp.config import client_from_dict, server_from_dict
from pyfrp.errors import ConfigError, PyfrpError

SERVER = {
    "auth": {"token": "a-sample-token"},
    "allowPorts": [{"start": 7, "end": 9}, {"single": 11}],
    "vhostHTTPPort": 8081,
}
CLIENT = {
    "serverAddr": "192.0.2.1",
    "metadatas": {"a": "b"},
    "proxies": [
        {
            "name": "llm",
            "type": "http",
            "localPort": 4000,
            "customDomains": ["llm.local"],
            "httpPassword": "a-sample-password",
            "requestHeaders": {"set": {"x-a": "b"}},
        },
        {"name": "ssh", "type": "tcp", "localPort": 22, "remotePort": 6000},
    ],
}


def same(copy: Any, model: Any) -> None:
    """Compare every key of a model, at any depth, with its copy."""
    if isinstance(model, list):
        assert len(copy) == len(model)
        for ours, theirs in zip(copy, model, strict=True):
            same(ours, theirs)
    elif hasattr(model, "__pydantic_fields__"):
        for name in type(model).__pydantic_fields__:
            same(getattr(copy, name), getattr(model, name))
    else:
        assert copy == model


@pytest.mark.parametrize(
    ("make", "data"),
    [(server_from_dict, SERVER), (client_from_dict, CLIENT)],
    ids=["server", "client"],
)
def test_every_key_and_warning_comes_back(make: Any, data: dict[str, Any]) -> None:
    model = make(data)
    copy = load_apart(lambda: make(data), meanwhile=lambda: None)
    same(copy, model)
    assert copy.warnings == model.warnings


def test_computed_attributes_come_back() -> None:
    copy = plain(server_from_dict(SERVER))
    assert [ports.bounds for ports in copy.allow_ports] == [(7, 9), (11, 11)]


def test_a_copy_shows_no_values() -> None:
    copy = plain(client_from_dict(CLIENT))
    assert isinstance(copy, Settings)
    assert "sample" not in repr(copy) + repr(copy.proxies) + repr(vars(copy)["auth"])


def test_an_error_comes_back_whole() -> None:
    def load() -> Any:
        raise ConfigError("it is wrong", path="frps.toml", key="bindPort", line=3)

    with pytest.raises(ConfigError, match=r"frps\.toml:3: it is wrong") as caught:
        load_apart(load, meanwhile=lambda: None)
    assert (caught.value.key, caught.value.line) == ("bindPort", 3)


def test_a_bug_of_the_reader_is_told_without_a_traceback() -> None:
    with pytest.raises(PyfrpError, match="ZeroDivisionError"):
        load_apart(lambda: 1 // 0, meanwhile=lambda: None)


def test_a_reader_that_is_killed_is_told() -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(PyfrpError, match="was ended"):
        load_apart(lambda: exec(script), meanwhile=lambda: None)


def test_without_fork_the_file_is_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.fork")
    assert load_apart(lambda: "read", meanwhile=lambda: None) == "read"


@pytest.mark.parametrize("role", ["server", "client"])
def test_the_running_program_holds_no_pydantic(role: str, tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text("")
    script = f"""
import sys
import pyfrp.cli.run
pyfrp.cli.run._run = lambda *a: print("pydantic" in sys.modules)
from pyfrp.cli.main import main
main([{role!r}, "-c", "f.toml"])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == ["False"]
