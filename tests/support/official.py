"""The official frp programs that the interop tests talk to."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "official"
FETCH_LIMIT_S = 180


def _pair_in(directory: Path) -> tuple[Path, Path] | None:
    """The two programs in `directory`, made executable, or None unless both are there."""
    pair = directory / "frps", directory / "frpc"
    for path in pair:
        if not path.is_file():
            return None
        if not os.access(path, os.X_OK):
            path.chmod(0o755)
    return pair


def platform_has_official() -> bool:
    """Tell whether the distribution we fetch carries programs for this machine."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "amd64")


@functools.cache
def find_official() -> tuple[tuple[Path, Path] | None, str]:
    """Look for the official programs and fetch them once if they are missing.

    Returns:
        The paths of frps and frpc, or None; and the reason when it is None.
    """
    wanted = os.environ.get("PYFRP_OFFICIAL_DIR")
    if wanted:
        pair = _pair_in(Path(wanted))
        return pair, "" if pair else f"PYFRP_OFFICIAL_DIR={wanted} holds no frps and frpc"
    pair = _pair_in(CACHE)
    if pair:
        return pair, ""
    if not platform_has_official():
        return None, f"no official programs for {sys.platform} {platform.machine()}"
    script = ROOT / "scripts" / "fetch_official.py"
    if not script.is_file():
        return None, f"{script} is missing, and so are the programs in {CACHE}"
    try:
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=FETCH_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"{script.name} did not end within {FETCH_LIMIT_S} s"
    pair = _pair_in(CACHE)
    said = (done.stdout + done.stderr)[-2000:]
    return pair, "" if pair else f"{script.name} ended with {done.returncode}:\n{said}"


def official_binaries() -> tuple[Path, Path] | None:
    """The paths of frps and frpc, or None where they cannot be had."""
    return find_official()[0]


def require_official() -> tuple[Path, Path]:
    """The paths of frps and frpc.

    A machine that should have them and has not fails: a skip there would let the whole
    interop table vanish unseen. Other platforms skip.
    """
    pair, reason = find_official()
    if pair is None:
        if platform_has_official():
            pytest.fail(f"the official programs are needed here: {reason}", pytrace=False)
        pytest.skip(reason)
    return pair
