"""A login that was recorded on its way: it lets nobody in once its moment is over.

Beside a legitimate client whose requests go on all the while, as in `test_hostile`, whose tests
need the machine for themselves; these wait.
"""

from __future__ import annotations

import time

import pytest

from tests.support.attack import Attacked, many
from tests.support.frpwire import login_message
from tests.support.processes import TOKEN
from tests.support.waiting import until

pytestmark = [
    pytest.mark.waits,
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("_under_watch"),
]


async def test_a_recorded_login_works_no_more_after_ten_seconds(target: Attacked) -> None:
    recorded, used_at = login_message(TOKEN), time.monotonic()
    # Equal clients that start in the same second send equal digests: allowed for a moment.
    for _ in range(2):
        async with target.peer() as peer:
            peer.tell("o", recorded)
            assert not (await peer.hear())[1].get("error")

    # What comes in between does not make it forgotten.
    async def other(token: str, age_s: int) -> None:
        async with target.peer() as peer:
            body = await peer.login(token, at=recorded["timestamp"] - age_s)
            assert bool(body.get("error")) == (token != TOKEN), body

    await many([other(token, age_s) for age_s in range(100, 200) for token in (TOKEN, "wrong")])
    # The rule speaks of ten seconds, by a clock that counts whole ones.
    await until(lambda: time.monotonic() - used_at > 11.5, "the time to pass")
    async with target.peer() as peer:
        peer.tell("o", recorded)
        assert (await peer.hear())[1].get("error")
        assert await peer.closed()
