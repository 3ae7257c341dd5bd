"""Two homes behind NATs and the world between them, in network namespaces of Linux.

a (10.0.1.2) -- nat of a (198.51.100.2) -- world -- nat of b (203.0.113.2) -- b (10.0.2.2)
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import pytest

T = TypeVar("T")
Nat = Literal["restricted", "cone", "symmetric"]

WORLD_A, WORLD_B = "198.51.100.1", "203.0.113.1"
_CLONE_NEWNET = 0x40000000
_HOMES = {
    "a": ("10.0.1.1", "10.0.1.2", WORLD_A, "198.51.100.2"),
    "b": ("10.0.2.1", "10.0.2.2", WORLD_B, "203.0.113.2"),
}
_TRANSLATION = {
    # Linux keeps the port, and lets in whoever was sent to.
    "restricted": "oifname out masquerade",
    "cone": "oifname out masquerade",
    # Another random port for each peer.
    "symmetric": "oifname out masquerade fully-random",
}


@functools.cache
def _missing() -> str:
    """Why there can be no namespaces here; empty if there can."""
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    if os.geteuid() != 0:
        return "namespaces of the network need root"
    probe = f"pyfrp-{os.getpid()}-probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if done.returncode:
        return "namespaces of the network are not permitted here"
    rule = "add table ip n; add chain ip n p { type nat hook postrouting priority 100; }; "
    done = subprocess.run(
        ["ip", "netns", "exec", probe, "nft", rule + "add rule ip n p masquerade"],
        capture_output=True,
        check=False,
    )
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return "this kernel translates no addresses" if done.returncode else ""


def require_namespaces() -> None:
    reason = _missing()
    if reason:
        pytest.skip(reason)


@dataclass(frozen=True)
class Homes:
    """Names of the namespaces."""

    prefix: str

    @property
    def world(self) -> str:
        return f"{self.prefix}-world"

    @property
    def a(self) -> str:
        return f"{self.prefix}-a"

    @property
    def b(self) -> str:
        return f"{self.prefix}-b"

    def words(self, place: str) -> list[str]:
        """What to put before a command, to have it run there."""
        return ["ip", "netns", "exec", place]

    def make(self, place: str, make: Callable[[], T]) -> T:
        """Call `make` there: sockets stay where they were made, whoever uses them."""
        result: list[T] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                handle = os.open(f"/run/netns/{place}", os.O_RDONLY)
                try:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(handle, _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(handle)
                result.append(make())
            except BaseException as exc:
                failure.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def connect(self, place: str, address: tuple[str, int]) -> socket.socket:
        """A connection from there."""
        return self.make(place, lambda: socket.create_connection(address, timeout=10))

    def listen(self, place: str, address: tuple[str, int]) -> socket.socket:
        """A listener there."""
        return self.make(place, lambda: socket.create_server(address))


@contextmanager
def homes(a: Nat, b: Nat) -> Iterator[Homes]:
    """Build it all, and remove it at the end."""
    require_namespaces()
    made = Homes(f"pyfrp-{os.getpid()}")
    places = [made.world, made.a, made.b, f"{made.a}-nat", f"{made.b}-nat"]
    try:
        for place in places:
            _ip("netns", "add", place)
            _ip("-n", place, "link", "set", "lo", "up")
        _forward(made.world)
        for home, kind in (("a", a), ("b", b)):
            _build(made, home, kind)
        yield made
    finally:
        for place in places:
            subprocess.run(["ip", "netns", "del", place], capture_output=True, check=False)


def _build(made: Homes, home: str, kind: Nat) -> None:
    gateway, host, world, outer = _HOMES[home]
    inside = f"{made.prefix}-{home}"
    nat = f"{inside}-nat"
    _join(nat, "in", gateway, inside, "eth0", host)
    _join(made.world, f"to-{home}", world, nat, "out", outer)
    _ip("-n", inside, "route", "add", "default", "via", gateway)
    _ip("-n", nat, "route", "add", "default", "via", world)
    _forward(nat)
    rules = f"""
        table ip home {{
            chain after {{
                type nat hook postrouting priority 100;
                {_TRANSLATION[kind]}
            }}
            chain own {{
                type filter hook input priority 0;
                iifname out drop
            }}
            chain before {{
                type nat hook prerouting priority -100;
                {f"iifname out udp dport 1024-65535 dnat to {host}" if kind == "cone" else ""}
            }}
        }}
    """
    subprocess.run(
        [*made.words(nat), "nft", "-f", "-"], input=rules.encode(), check=True, capture_output=True
    )


def _join(one: str, name: str, address: str, other: str, far_name: str, far: str) -> None:
    _ip("-n", one, "link", "add", name, "type", "veth", "peer", "name", far_name, "netns", other)
    for place, device, own in ((one, name, address), (other, far_name, far)):
        _ip("-n", place, "addr", "add", f"{own}/24", "dev", device)
        _ip("-n", place, "link", "set", device, "up")


def _forward(place: str) -> None:
    subprocess.run(
        ["ip", "netns", "exec", place, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
        check=True,
    )


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
