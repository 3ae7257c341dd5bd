"""A certified OpenID provider (npm's oidc-provider) as a process of its own.

Node runs it; npm installs it once, below `.cache`. Without Node the tests that need it skip.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.identity import CLIENT, SECRET
from tests.support.official import ROOT
from tests.support.ports import free_port
from tests.support.processes import HOST, environment
from tests.support.waiting import until

HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache" / "oidc-provider"
INSTALL_LIMIT_S = 180


@functools.cache
def _installed() -> tuple[str, Path]:
    """Node, and the script beside the modules that it needs."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("the provider needs Node and npm")
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "provider.mjs"):
        shutil.copy(HERE / name, CACHE / name)
    if not (CACHE / "node_modules" / "oidc-provider").is_dir():
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=CACHE,
            capture_output=True,
            text=True,
            timeout=INSTALL_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"npm install failed:\n{done.stdout}{done.stderr}"[-2000:]
    return node, CACHE / "provider.mjs"


@dataclass
class RealProvider:
    """A running provider.

    Attributes:
        url: The issuer.
    """

    url: str
    log: Path

    @property
    def endpoint(self) -> str:
        return f"{self.url}/token"


@asynccontextmanager
async def real_provider(
    directory: Path, algorithm: str = "RS256", *, port: int | None = None, lifetime_s: int = 3600
) -> AsyncIterator[RealProvider]:
    """Run a provider until the block ends; its keys are new each time."""
    node, script = _installed()
    port = port or free_port()
    log = directory / f"provider-{port}.log"
    words = [node, str(script), str(port), CLIENT, SECRET, algorithm, str(lifetime_s)]
    with log.open("ab") as out:
        offset = out.tell()
        process = subprocess.Popen(
            words,
            cwd=CACHE,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            return b"listening as" in log.read_bytes()[offset:]

        await until(listens, "the provider to listen", 30)
        yield RealProvider(f"http://{HOST}:{port}", log)
    finally:
        process.kill()
        process.wait(timeout=10)
