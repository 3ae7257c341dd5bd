"""What a test may leave behind: nothing. This looks for tasks and descriptors."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field

from tests.support.ports import claim_handles
from tests.support.services import Backend

_FD_DIR = "/proc/self/fd"

# Backends that live longer than a test: their connections belong to the tunnel's idle pool.
_shared: list[Backend] = []


def share(backend: Backend) -> None:
    """Do not count this backend's connections and tasks."""
    _shared.append(backend)


def unshare(backend: Backend) -> None:
    """Count them again."""
    _shared.remove(backend)


@dataclass
class Sight:
    """Tasks and descriptors at one moment, or the difference of two."""

    tasks: set[asyncio.Task[object]] = field(default_factory=set)
    fds: dict[int, str] = field(default_factory=dict)

    def __sub__(self, before: Sight) -> Sight:
        new = {fd: what for fd, what in self.fds.items() if before.fds.get(fd) != what}
        new = {fd: what for fd, what in new.items() if not _is_a_loops_own(fd, what)}
        return Sight(self.tasks - before.tasks, _described(new) if new else {})

    def __bool__(self) -> bool:
        return bool(self.tasks or self.fds)

    def __str__(self) -> str:
        lines = [f"task {task.get_name()}: {task.get_coro()}" for task in self.tasks]
        lines += [f"descriptor {fd}: {what}" for fd, what in sorted(self.fds.items())]
        return "\n".join(lines)


def _open_descriptors() -> dict[int, str]:
    """Open descriptors and what they are; empty where the kernel does not tell."""
    found = {}
    try:
        names = os.listdir(_FD_DIR)
    except OSError:
        return found
    for name in names:
        if name in ("0", "1", "2"):
            continue  # pytest's capturing swaps them.
        try:
            found[int(name)] = os.readlink(f"{_FD_DIR}/{name}")
        except OSError:
            continue  # The descriptor of the listing itself is gone already.
    return found


def _is_a_loops_own(fd: int, what: str) -> bool:
    """Tell what loops keep for themselves: a spare descriptor, epoll, eventfd, socket pairs.

    A uvloop loop makes a new pair of unix sockets for signals each time it is run.
    """
    if what == os.devnull or what.startswith("anon_inode:"):
        return True
    if not what.startswith("socket:"):
        return False
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            return copy.family == socket.AF_UNIX
    except OSError:
        return True  # It is closed by now.


def _described(fds: dict[int, str]) -> dict[int, str]:
    """Say which addresses sockets have."""
    addresses: dict[str, str] = {}
    for family in ("tcp", "tcp6", "udp", "udp6"):
        try:
            with open(f"/proc/net/{family}", encoding="ascii") as table:
                rows = [line.split() for line in table][1:]
        except OSError:
            continue
        for row in rows:
            local, remote = (int(part.rpartition(":")[2], 16) for part in row[1:3])
            addresses[f"socket:[{row[9]}]"] = f"{family} port {local} to {remote} state {row[3]}"
    return {fd: f"{what} {addresses.get(what, '')}".rstrip() for fd, what in fds.items()}


def look() -> Sight:
    """Everything that is open in this process now, apart from what is shared."""
    tasks = {task for task in asyncio.all_tasks() if not task.done()}
    current = asyncio.current_task()
    if current is not None:
        tasks.discard(current)
    excused = claim_handles()
    for backend in _shared:
        tasks -= backend.tasks
        excused |= backend.descriptors()
    fds = {fd: what for fd, what in _open_descriptors().items() if fd not in excused}
    return Sight(tasks, fds)
