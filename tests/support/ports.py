"""Loopback ports that nothing else takes between choosing and binding them."""

from __future__ import annotations

import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: only the bind probe is left there.
    fcntl = None  # type: ignore[assignment]  # the module is optional, see above

# Below the range from which kernels pick source ports (Linux 32768, others 49152), so that an
# outgoing connection never sits on a port that was promised to a program.
FIRST, LAST = 15000, 31999

_claims: dict[int, int] = {}
_dice = random.Random(os.getpid())


def _claim(port: int) -> bool:
    """Take the machine-wide claim on `port`, held until this process ends."""
    if fcntl is None:
        _claims[port] = -1
        return True
    directory = Path(tempfile.gettempdir()) / f"pyfrp-test-ports.{os.getuid()}"
    directory.mkdir(exist_ok=True)
    handle = os.open(directory / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    _claims[port] = handle
    return True


def _is_free(port: int) -> bool:
    """Tell whether `port` can be bound on loopback and on all addresses, for TCP and for UDP."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    for kind, host in itertools.product(kinds, ("127.0.0.1", "0.0.0.0")):
        with socket.socket(type=kind) as probe:
            if os.name == "posix" and kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def free_port() -> int:
    """A loopback port, for TCP or UDP, that no other test process on this machine will be given."""
    for _ in range(2000):
        port = _dice.randint(FIRST, LAST)
        if port not in _claims and _is_free(port) and _claim(port):
            return port
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")


def free_ports(count: int) -> list[int]:
    """`count` different ports, as `free_port` gives them."""
    return [free_port() for _ in range(count)]


def claim_handles() -> set[int]:
    """Descriptors that hold the claims, for checks that count open descriptors."""
    return {handle for handle in _claims.values() if handle >= 0}


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that neither accepts nor refuses: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        yield listener.getsockname()[1]
        for filler in fillers:
            filler.close()
