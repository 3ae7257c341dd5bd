"""Fixtures for all tests: event loops, leak checks, descriptor limits, logs of failed runs."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from tests.support import leaks, processes

try:
    import uvloop
except ImportError:  # Windows has none; everything runs on asyncio's own loop there.
    uvloop = None  # type: ignore[assignment]  # the module is optional, see above

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyfrp")
    for role in ("server", "client"):
        group.addoption(
            f"--{role}-kind",
            choices=("ours", "official"),
            default="ours",
            help=f"which {role} the end-to-end tests drive (default: ours)",
        )
    group.addoption("--slow", action="store_true", help="run the long versions as well")
    group.addoption("--real", action="store_true", help="run what `make test-real` installs for")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaky_ok: leaves something behind on purpose")
    config.addinivalue_line("markers", "real: drives programs that `make test-real` installs")
    _raise_descriptor_limit()


def _raise_descriptor_limit() -> None:
    """Thousands of loopback connections need more descriptors than a login shell allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = [name for name in ("slow", "real") if not config.getoption(f"--{name}")]
    dropped = []
    for item in items:
        if any(item.get_closest_marker(name) for name in unwanted):
            dropped.append(item)
        elif isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("asyncio")
            scope = marker.kwargs.get("loop_scope") if marker else None
            guard = "_module_guard" if scope == "module" else "_function_guard"
            item.fixturenames.insert(_first_own_fixture(item), guard)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def _first_own_fixture(item: pytest.Function) -> int:
    """Where the fixtures that live as long as the test begin.

    A guard that is set up there is torn down after all of them, and does not see what a
    fixture of wider scope opened.
    """
    known = item._fixtureinfo.name2fixturedefs
    for index, name in enumerate(item.fixturenames):
        if name in known and known[name][-1].scope == "function":
            return index
    return len(item.fixturenames)


# --- event loops -------------------------------------------------------------------------


def _factories() -> dict[str, LoopFactory]:
    found: dict[str, LoopFactory] = {}
    if uvloop is not None:
        found["uvloop"] = uvloop.new_event_loop
    found["asyncio"] = asyncio.new_event_loop
    return found


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Tests that use `loop_kind` run once per kind of loop, others on the fastest one."""
    factories = _factories()
    if "loop_kind" in getattr(item, "fixturenames", ()):
        return factories
    name = next(iter(factories))
    return {name: factories[name]}


@pytest_asyncio.fixture(loop_scope="function")
async def loop_kind() -> str:
    """ "uvloop" or "asyncio": whichever runs this test. Using it runs the test on both."""
    module = type(asyncio.get_running_loop()).__module__
    return "uvloop" if module.startswith("uvloop") else "asyncio"


# --- leaks -------------------------------------------------------------------------------

SETTLE_S = 3.0


async def _guarded(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Compare tasks and descriptors before and after a test."""
    excused = request.node.get_closest_marker("leaky_ok") is not None
    before = leaks.look()
    yield
    if excused:
        return
    deadline = time.monotonic() + SETTLE_S
    while left := leaks.look() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"the test left behind:\n{left}", pytrace=False)
        await asyncio.sleep(0.01)
        gc.collect()


@pytest_asyncio.fixture(loop_scope="function")
async def _function_guard(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    async for _ in _guarded(request):
        yield


@pytest_asyncio.fixture(loop_scope="module")
async def _module_guard(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    async for _ in _guarded(request):
        yield


# --- programs ----------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.failed:
        for program in processes.recent_programs():
            state = "running" if program.is_running() else f"ended with {program.returncode}"
            report.sections.append((f"log of {program.stem} ({state})", program.tail()))
    return report


@pytest.fixture(autouse=True)
def _recent_programs() -> None:
    processes.forget_programs()


@pytest.fixture(scope="session")
def kinds(request: pytest.FixtureRequest) -> tuple[processes.Kind, processes.Kind]:
    """Which server and which client the end-to-end tests drive."""
    return (
        request.config.getoption("--server-kind"),
        request.config.getoption("--client-kind"),
    )


@pytest.fixture(autouse=True, scope="session")
def _no_proxy_variables() -> Iterator[None]:
    """Proxies of the machine must not be between a test and loopback."""
    saved = {k: os.environ.pop(k) for k in list(os.environ) if k.lower().endswith("_proxy")}
    yield
    os.environ.update(saved)
