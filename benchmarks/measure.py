"""Clocks and memory of other processes, and facts about this machine.

Everything here is read from the kernel, without a library: CPU time from the process clocks
(`clock_getcpuclockid(3)`: nanoseconds, all threads, those that have ended too), memory from
`/proc/PID/smaps` and the machine's own load from `/proc/stat`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
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
    """Resident pages, shared ones counted in each process: what separate machines would use."""
    pss: int
    """Resident pages, each divided by the number of processes, of whatever kind, that share it."""
    once: int
    """Resident pages, those that several of these processes map from one file counted once.

    PSS flatters a Python program here, because generator and backend share the interpreter's
    pages with it; this figure does not depend on who else runs.
    """


def memory_of(pids: Iterable[int]) -> Memory:
    """Memory of several running processes together.

    Source: Linux `Documentation/filesystems/proc.rst`, section 1.1 on `smaps`.
    """
    rss = pss = once = 0
    shared: dict[str, int] = {}
    for pid in pids:
        for file, sizes in _mappings(pid):
            rss += sizes["Rss"]
            pss += sizes["Pss"]
            private = sizes["Private_Clean"] + sizes["Private_Dirty"]
            once += private
            if file:
                shared[file] = max(shared.get(file, 0), sizes["Rss"] - private)
            else:
                once += sizes["Rss"] - private
    return Memory(rss, pss, once + sum(shared.values()))


def _mappings(pid: int) -> Iterator[tuple[str, dict[str, int]]]:
    """Each mapping of a process: the place in a file that it shows, if any, and its sizes."""
    file = ""
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if words[0].endswith(":"):
            if words[-1] == "kB":
                sizes[words[0][:-1]] = int(words[1]) * 1024
            continue
        if sizes:
            yield file, sizes
        _, _, offset, device, inode = words[:5]
        file = f"{device} {inode} {offset}" if inode != "0" else ""
        sizes = {}
    if sizes:
        yield file, sizes


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
