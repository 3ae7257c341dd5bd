"""Runs pyfrp with a counter of its tasks that a test can ask from outside.

    python -m tests.support.observed server -c FILE

SIGUSR2 writes the number of tasks, and of collected objects, into the file that
`PYFRP_OBSERVED` names. With `PYFRP_HURRY` a client whose sessions keep ending comes back at
once each time, so that hundreds of reconnects fit into seconds. `PYFRP_CIPHER` names the one that
a client offers under wire v2, whatever the machine is fast at.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections import Counter


def _report(number: int, frame: object) -> None:
    """Write the figures; a signal handler of Python's own runs inside the loop's thread."""
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return  # The loop is not running at this moment; the test asks again.
    names = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)
    gc.collect()
    figures = {"tasks": len(tasks), "objects": len(gc.get_objects()), "names": names}
    path = os.environ["PYFRP_OBSERVED"]
    with open(f"{path}.new", "w", encoding="ascii") as file:
        json.dump(figures, file)
    os.replace(f"{path}.new", path)


def main() -> None:
    signal.signal(signal.SIGUSR2, _report)
    if os.environ.get("PYFRP_HURRY"):
        from pyfrp.client import service

        # Replaced, not invented: a rename there must fail here.
        assert service.QUICK_RETRIES > 0
        assert service.QUICK_S[0] > 0
        service.QUICK_RETRIES = 10**9
        service.QUICK_S = (0.0, 0.01)
    cipher = os.environ.get("PYFRP_CIPHER")
    if cipher:
        from pyfrp.net import handshake

        assert cipher in handshake.preferred_algorithms()
        handshake.preferred_algorithms = lambda: (cipher,)
    from pyfrp.cli.main import main as run

    sys.argv[0] = "pyfrp"
    result = run()
    sys.exit(result)


if __name__ == "__main__":
    main()
