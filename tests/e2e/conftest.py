"""Scenes that the end-to-end tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.support.attack import Attacked, served_meanwhile
from tests.support.office import Office, office
from tests.support.processes import Kind


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(
    kinds: tuple[Kind, Kind],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Office]:
    """One office for all tests of a module; its `SCENE` holds arguments of `office`."""
    options = getattr(request.module, "SCENE", {})
    directory = tmp_path_factory.mktemp("scene")
    async with office(directory, kinds=kinds, shared=True, **options) as running:
        yield running


@pytest.fixture
def fresh(scene: Office) -> Iterator[Office]:
    """The module's office, with the records of earlier tests dropped."""
    scene.api.forget()
    scene.echo.forget()
    yield scene
    scene.drop_callers()


# --- attacks ------------------------------------------------------------------------------


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[True, False], ids=["mux", "nomux"]
)
async def target(
    request: pytest.FixtureRequest,
    kinds: tuple[Kind, Kind],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Attacked]:
    link = {"transport": {"tcpMux": request.param}}
    directory = tmp_path_factory.mktemp("hostile")
    async with office(directory, kinds=kinds, server=link, client=link, shared=True) as scene:
        yield Attacked(scene, request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def _under_watch(target: Attacked) -> AsyncIterator[None]:
    """A real caller is served all the while, and the server stays as it was."""
    async with served_meanwhile(target):
        yield
