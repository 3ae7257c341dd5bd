"""`pyfrp client nathole discover`: what it takes and how it fails; e2e has what it tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyfrp.cli import nathole
from tests.unit.cli.test_main import Run, here, run

__all__ = ["here", "run"]  # Fixtures.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Takes the place of the discovery; server and local address."""
    seen: list[tuple[str, str]] = []

    async def discover(server: str, local: str) -> list[str]:
        seen.append((server, local))
        return ["first line", "second line"]

    monkeypatch.setattr(nathole, "_discover", discover)
    return seen


@pytest.mark.parametrize("flag", ["--nat_hole_stun_server", "--nat-hole-stun-server"])
def test_the_server_of_the_command_line_is_asked(
    run: Run, asked: list[tuple[str, str]], flag: str
) -> None:
    code, out, err = run("client", "nathole", "discover", flag, "stun.test:1", "-l", ":5")
    assert (code, out, err) == (0, "first line\nsecond line\n", "")
    assert asked == [("stun.test:1", ":5")]


def test_the_server_of_the_file_is_asked(
    run: Run, asked: list[tuple[str, str]], here: Path
) -> None:
    (here / "other.toml").write_text('natHoleStunServer = "file.test:2"\n')
    run("client", "nathole", "discover", "-c", "other.toml")
    (here / "frpc.toml").write_text('natHoleStunServer = "here.test:3"\n')
    run("client", "nathole", "discover")
    assert asked == [("file.test:2", ""), ("here.test:3", "")]


def test_the_default_server_is_asked_without_a_file_that_can_be_read(
    run: Run, asked: list[tuple[str, str]], here: Path
) -> None:
    (here / "frpc.toml").write_text("nonsense = ")
    code, out, _ = run("client", "nathole", "discover")
    assert code == 0
    assert out.startswith("WARNING: ")
    (here / "frpc.toml").unlink()
    code, out, _ = run("client", "nathole", "discover")
    assert (code, out) == (0, "first line\nsecond line\n")
    assert [server for server, _ in asked] == ["stun.easyvoip.com:3478"] * 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--nat-hole-stun-server", "x"], "discover error: natHoleStunServer 'x' is not host:port"),
        (
            ["--nat-hole-stun-server", "[::1]:1"],
            "discover error: the STUN server [::1]:1 has no IPv4 address",
        ),
        (["-l", "x", "--nat-hole-stun-server", "a:1"], "discover error: 'x' is no address"),
        (["-l", ":70000", "--nat-hole-stun-server", "a:1"], "discover error: ':70000' is no"),
        (["-l", "nobody.invalid:0", "--nat-hole-stun-server", "a:1"], "discover error: lookup"),
    ],
)
def test_what_goes_wrong_is_told_and_fails(run: Run, more: list[str], words: str) -> None:
    code, out, err = run("client", "nathole", "discover", *more)
    assert (code, err) == (1, "")
    assert out.startswith(words)


@pytest.mark.parametrize("words", [[], ["find"], ["discover", "more"]])
def test_other_words_are_a_usage_error(run: Run, words: list[str]) -> None:
    code, out, err = run("client", "nathole", *words)
    assert (code, out) == (1, "")
    assert "pyfrp client nathole" in err
    assert "Usage:" in err or "usage:" in err


def test_help_shows_the_flags(run: Run) -> None:
    code, out, _ = run("client", "nathole", "discover", "--help")
    assert code == 0
    assert "--nat-hole-stun-server" in out
    assert "-l, --nat-hole-local-addr" in out
