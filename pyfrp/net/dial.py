"""Outgoing connections."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias, TypeVar

from pyfrp.errors import DialError, LookupFailed
from pyfrp.net.aside import aside
from pyfrp.net.endpoint import Endpoint, format_address, tune
from pyfrp.net.held import Held
from pyfrp.net.sockets import bound_unsent, explain, is_numeric, set_keepalive

# An address that does not answer holds up the next one no longer than this: a network that swallows
# one family is met again at every dial. Go's dialler waits as long (`net/dial.go`, fallbackDelay).
STAGGER_S = 0.3
# Where addresses are tried one after the other, none gets less than this of the time that is left:
# less is of no use on a slow network. Source: Go `net/dial.go`, partialDeadline.
LEAST_SHARE_S = 2.0

T = TypeVar("T")

Lookup: TypeAlias = Callable[[str], Awaitable[list[str]]]
"""Finds the addresses of a name, the ones to try first in front. Raises LookupFailed."""

_Connected: TypeAlias = tuple[Endpoint, Held]


class _Names:
    """Who is asked for addresses: the system, unless it was told otherwise."""

    lookup: Lookup | None = None


def look_up_with(lookup: Lookup | None) -> None:
    """Have all names of this process looked up another way; None gives it back to the system.

    For the process as a whole, as in frp, because names stand in many places: the server's, those
    of local services, of proxies and of STUN servers, and those that a user of a plugin asks for.
    """
    _Names.lookup = lookup


async def resolve(host: str, port: int) -> list[tuple[str, int]]:
    """Every address of `host`, in the resolver's order. Nothing is remembered between calls.

    Raises:
        LookupFailed: when the name does not resolve.
    """
    if is_numeric(host):
        return [(host, port)]
    if _Names.lookup is not None and "%" not in host:  # An address with a zone is no name.
        return [(address, port) for address in await _Names.lookup(host)]
    try:
        found = await aside(partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise LookupFailed(f"lookup {host}: {reason}") from exc
    return list(dict.fromkeys((str(item[4][0]), int(item[4][1])) for item in found))


async def _resolve_within(timeout_s: float, host: str, port: int) -> list[tuple[str, int]]:
    if not 0 <= port <= 65535:
        # asyncio stumbles over it, and uvloop takes what is left of it in 16 bits. Go's words.
        raise DialError(f"dial: address {port}: invalid port of {host}")
    try:
        async with asyncio.timeout(timeout_s):
            return await resolve(host, port)
    except TimeoutError:
        raise LookupFailed(
            f"lookup {host}: no answer of the resolver within {timeout_s:g} s"
        ) from None


async def first_that_answers(
    host: str,
    port: int,
    timeout_s: float,
    ask: Callable[[tuple[str, int], float], Awaitable[T]],
) -> T:
    """Ask the addresses of `host` one after the other, under one deadline for all: for UDP.

    Args:
        ask: Asks one, with so many seconds for the answer; a DialError goes on to the next.

    Raises:
        DialError: naming every address and what happened there.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    addresses = await _resolve_within(timeout_s, host, port)
    failures: list[str] = []
    for tried, address in enumerate(addresses):
        left = deadline - clock()
        if left <= 0:
            break
        share_s = min(left, max(left / (len(addresses) - tried), LEAST_SHARE_S))
        try:
            return await ask(address, share_s)
        except DialError as exc:
            failures.append(f"{format_address(address)}: {exc}")
    raise DialError("; ".join(failures) or f"{host}: no address")


async def dial_tcp(
    host: str,
    port: int,
    *,
    timeout_s: float,
    keepalive_s: float = 0,
    local_ip: str = "",
    link: bool = False,
) -> tuple[Endpoint, Held]:
    """Connect to `host:port`, trying each of its addresses, under one deadline for all.

    An address has a short head start on the next; whichever answers first is used.

    Args:
        local_ip: The address to connect from, numeric; addresses of the other family are left out.
        link: Whether much will wait behind what the kernel holds unsent.

    Returns:
        The endpoint, paused (set a protocol, then resume), and what came meanwhile.

    Raises:
        DialError: naming every address and what happened there.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    addresses = await _resolve_within(timeout_s, host, port)
    if local_ip:
        addresses = _of_family(addresses, local_ip, host)
    attempt = _Attempt((local_ip, 0) if local_ip else None, deadline, timeout_s)
    connected = None
    try:
        try:
            connected = await attempt.first(addresses)
        finally:
            await attempt.drop_rest()
    except BaseException:
        if connected is not None:
            connected[0].abort()
        raise
    if connected is None:
        failures = "; ".join(attempt.failures) or f"{host}: no address"
        raise DialError(f"dial tcp {failures}", attempt.errno)
    endpoint, held = connected
    tune(endpoint)
    if link:
        bound_unsent(endpoint.get_extra_info("socket"))
    if keepalive_s > 0:
        set_keepalive(endpoint.get_extra_info("socket"), keepalive_s)
    return endpoint, held


def _of_family(addresses: list[tuple[str, int]], local_ip: str, host: str) -> list[tuple[str, int]]:
    version = 6 if ":" in local_ip else 4
    fitting = [address for address in addresses if (":" in address[0]) == (version == 6)]
    if addresses and not fitting:
        raise DialError(
            f"dial tcp {host}: it has no IPv{version} address, and the connection shall come from "
            f"{local_ip}; check transport.connectServerLocalIP"
        )
    return fitting


class _Attempt:
    """One dial: several addresses, of which the first that answers wins.

    `failures` say what happened at the others, `errno` is the system's number for the last.
    """

    def __init__(self, local: tuple[str, int] | None, deadline: float, timeout_s: float) -> None:
        self.failures: list[str] = []
        self.errno = 0
        self._local = local
        self._deadline = deadline
        self._timeout_s = timeout_s
        self._running: dict[asyncio.Task[_Connected], tuple[str, int]] = {}

    async def first(self, addresses: list[tuple[str, int]]) -> _Connected | None:
        """The first connection that stands; None when there is none. Then `drop_rest`."""
        if len(addresses) == 1:  # Most have one, and local services are dialled for every user.
            try:
                return await self._connect(addresses[0])
            except OSError as exc:
                self._failed(addresses[0], exc)
                return None
        loop = asyncio.get_running_loop()
        waiting = iter(addresses)
        left = len(addresses)
        while left or self._running:
            if left:
                left -= 1
                address = next(waiting)
                task = loop.create_task(self._connect(address), name="dial")
                self._running[task] = address
            done, _ = await asyncio.wait(
                self._running,
                timeout=STAGGER_S if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in [task for task in self._running if task in done]:
                cause = task.exception()
                if cause is None:
                    del self._running[task]
                    return task.result()
                if not isinstance(cause, OSError):
                    raise cause
                self._failed(self._running.pop(task), cause)
        return None

    async def drop_rest(self) -> None:
        """End the attempts that are not needed any more."""
        if not self._running:
            return
        for task in self._running:
            task.cancel()
            task.add_done_callback(_drop)
        await asyncio.wait(self._running)

    async def _connect(self, address: tuple[str, int]) -> _Connected:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(self._deadline):
            endpoint, held = await loop.create_connection(Held, *address, local_addr=self._local)
        endpoint.pause_reading()
        return endpoint, held

    def _failed(self, address: tuple[str, int], exc: OSError) -> None:
        self.errno = exc.errno or 0
        # asyncio's own has no number; the kernel's, much later, has one.
        silent = isinstance(exc, TimeoutError) and not exc.errno
        why = f"no answer within {self._timeout_s:g} s" if silent else explain(exc)
        if exc.errno == errno.EADDRNOTAVAIL and self._local:
            why += f" (does this machine have {self._local[0]}, transport.connectServerLocalIP?)"
        self.failures.append(f"{format_address(address)}: {why}")


def _drop(task: asyncio.Task[_Connected]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result()[0].abort()  # It stood in the very moment when another one did.


async def dial_unix(path: str) -> tuple[Endpoint, Held]:
    """Connect to the unix socket at `path`; otherwise as `dial_tcp`.

    Raises:
        DialError: with what happened; also on systems without unix sockets.
    """
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise DialError("dial unix: this system has no unix sockets")
    # Go takes a leading @ for Linux's abstract names, which begin with a NUL.
    name = "\0" + path[1:] if path.startswith("@") else path
    if "\0" in path:
        raise DialError("dial unix: the path has a NUL in it")
    # Not by the loop's own means: uvloop cuts long paths off and knows no abstract names. A unix
    # socket connects at once or not at all.
    sock = socket.socket(family)
    try:
        sock.setblocking(False)
        sock.connect(name)
        transport, held = await asyncio.get_running_loop().create_unix_connection(Held, sock=sock)
    except OSError as exc:
        sock.close()
        raise DialError(f"dial unix {path}: {explain(exc)}", exc.errno or 0) from exc
    except BaseException:
        sock.close()
        raise
    transport.pause_reading()
    tune(transport)
    return transport, held
