"""Clocks and memory of other processes, and facts about this machine.

Everything here is read from the kernel, without a library: CPU time from the process clocks
(`clock_getcpuclockid(3)`: nanoseconds, all threads, those that have ended too), memory from
`/proc/PID/smaps_rollup` and the machine's own load from `/proc/stat`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_CPUCLOCK_SCHED = 2
"""Kind of a process clock that counts time on a CPU (Linux `include/linux/posix-timers.h`)."""


def process_cpu_s(pid: int) -> float:
    """CPU seconds (user and system, all threads) that a running process has used.

    Raises:
        OSError: the process has ended.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def total_cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of several running processes together."""
    return sum(process_cpu_s(pid) for pid in pids)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of one or several processes, in bytes."""

    rss: int
    """Resident pages, shared ones counted in each process."""
    pss: int
    """Resident pages, each divided by the number of processes that share it."""


def memory_of(pids: Iterable[int]) -> Memory:
    """Memory of several running processes together."""
    rss = pss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                rss += int(line.split()[1]) * 1024
            elif line.startswith("Pss:"):
                pss += int(line.split()[1]) * 1024
    return Memory(rss, pss)


def machine_ticks() -> tuple[int, int]:
    """Ticks (busy, all) of all cores together since boot; the difference of two tells the load."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


class Window:
    """The span of time in which a load counts.

    The generator calls `open` after the warm-up and `close` at the end; both read the process
    clocks of the tunnel at that very moment, so that the warm-up costs nothing in the result.
    """

    def __init__(self, pids: Sequence[int], backend_pid: int) -> None:
        self._pids = pids
        self._backend_pid = backend_pid
        self.seconds = 0.0
        """Length of the closed window."""
        self.cpu_s = 0.0
        """CPU seconds of the tunnel's processes in the window."""
        self.generator_cpu_s = 0.0
        self.backend_cpu_s = 0.0
        self.busy = 0.0
        """Share of all cores' time that was used by anybody, 0 to 1."""

    def open(self) -> None:
        self._ticks = machine_ticks()
        self._generator = time.process_time()
        self._backend = process_cpu_s(self._backend_pid)
        self._began = time.perf_counter()
        self._cpu = total_cpu_s(self._pids)

    def close(self) -> None:
        self.cpu_s = total_cpu_s(self._pids) - self._cpu
        self.seconds = time.perf_counter() - self._began
        self.backend_cpu_s = process_cpu_s(self._backend_pid) - self._backend
        self.generator_cpu_s = time.process_time() - self._generator
        busy, total = machine_ticks()
        self.busy = (busy - self._ticks[0]) / max(1, total - self._ticks[1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of an ascending, non-empty sequence lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def machine_facts() -> dict[str, str]:
    """What a reader needs to know about this machine to compare figures."""
    model = "unknown"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # The name of the CPU is for the reader only; the figures do not need it.
    return {
        "CPU": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load average at start": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }
