"""`healthCheck`: a proxy comes and goes with its service, at our server and the official one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.backends import Exchange, HttpBackend
from tests.support.http import fetch
from tests.support.processes import KINDS, Kind, http_proxy, require_official, tunnel
from tests.support.services import running
from tests.support.waiting import until_async

pytestmark = [pytest.mark.waits, pytest.mark.interop, pytest.mark.e2e]


@pytest.mark.parametrize("server", KINDS)
async def test_a_proxy_is_there_while_its_service_is_well(server: Kind, tmp_path: Path) -> None:
    if server == "official":
        require_official()
    api = HttpBackend()
    well = True

    async def health(x: Exchange) -> None:
        await x.reply(b"", status="200 OK" if well else "500 Sick")

    api.on("/health", health)
    async with running(api):
        check = {"type": "http", "path": "/health", "intervalSeconds": 1}
        proxy = http_proxy("api", api.port, "llm.test", healthCheck=check)
        async with tunnel(tmp_path, [proxy], kinds=(server, "ours")) as pair:

            async def status() -> int:
                return (await fetch(pair.http_port)).status

            async def becomes(wanted: set[int]) -> None:
                async def there() -> bool:
                    return await status() in wanted

                await until_async(there, f"an answer of {wanted}")

            await becomes({200})
            well = False
            await becomes({404, 503})
            assert "[api] health check failed" in pair.client.log()
            well = True
            await becomes({200})
