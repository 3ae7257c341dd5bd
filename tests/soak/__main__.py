"""Command line: `python -m tests.soak`, from the root of the repository, as root."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.events import EVENTS, Event
from tests.soak.scene import Scene, running_scene, words
from tests.support.processes import LOGIN_DONE

MORE_KIB = 12 * 1024
"""What a process may have more at the end than after the first round."""


@dataclass
class Row:
    """What came of an event so far."""

    times: int = 0
    waits: list[float] = field(default_factory=list)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="The main job through squid, for as long as you like: streams, idle times, "
        "restarts, refusals, changes of address. Each event must be over within its time, and "
        "everything asked after it must be answered.",
    )
    add = parser.add_argument
    add("--seconds", type=float, default=3600.0, metavar="S", help="how long (default 3600)")
    add("--protocol", default="wss", help="the client's transport.protocol (default wss)")
    add("--seed", type=int, default=None, help="repeat the order of an earlier run")
    add("--only", metavar="TEXT", help="only events whose names have this in them")
    return parser


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


async def _one(scene: Scene, event: Event, chance: random.Random) -> float:
    """Let an event happen; returns the seconds until all was well again."""
    mark = scene.client.mark()
    try:
        await event.happen(scene, chance)
        took = await scene.recovery(event.limit_s)
        if event.same_link:
            assert LOGIN_DONE.split(",")[0] not in scene.client.log(mark), "the link did not last"
        await scene.load(requests=20, streams=5)
    except AssertionError as error:
        error.add_note(f"The event was: {event.name}. The logs end with:")
        for program in (scene.client, scene.server):
            error.add_note(f"{program.stem}\n{program.tail(40)}")
        raise
    return took


async def _live(options: argparse.Namespace, directory: Path) -> dict[str, Row]:
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    chance = random.Random(seed)
    events = [event for event in EVENTS if not options.only or options.only in event.name]
    rows = {event.name: Row() for event in events}
    _say(f"seed {seed}, protocol {options.protocol}, {options.seconds:g} s")
    async with running_scene(directory, protocol=options.protocol, server={}, client={}) as scene:
        _say(f"first request after {await scene.recovery(20):.2f} s")
        await scene.load(requests=50, streams=20)
        deadline = time.monotonic() + options.seconds
        before = None
        while time.monotonic() < deadline:
            for event in chance.sample(events, len(events)):
                took = await _one(scene, event, chance)
                row = rows[event.name]
                row.times += 1
                row.waits.append(took)
                _say(f"{event.name}: well again after {took:.2f} s")
            # Programs were started again within the round: the figures are those of young ones.
            await scene.load(requests=500, streams=40)
            now = await scene.at_rest()
            before = before or now
            _say(f"server {words(now[0])} client {words(now[1])}")
            for first, last in zip(before, now, strict=True):
                assert last.rss_kib - first.rss_kib < MORE_KIB, "memory grew"
    return rows


def _table(rows: dict[str, Row]) -> str:
    lines = ["| event | times | well again: median | worst |", "|---|---|---|---|"]
    for name, row in rows.items():
        waits = sorted(row.waits) or [0.0]
        middle = waits[len(waits) // 2]
        lines.append(f"| {name} | {row.times} | {middle:.2f} s | {waits[-1]:.2f} s |")
    return "\n".join(lines)


def main() -> int:
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="pyfrp-soak-") as directory:
        try:
            rows = asyncio.run(_live(options, Path(directory)))
        except AssertionError as error:
            print(f"FAILED: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
            return 1
    print(_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
