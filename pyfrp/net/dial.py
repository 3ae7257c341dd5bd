"""Outgoing connections."""

from __future__ import annotations

import asyncio
import os
import socket

from pyfrp.errors import DialError
from pyfrp.net.endpoint import Endpoint, bound_unsent, format_address, set_keepalive, tune
from pyfrp.net.held import Held


async def resolve(host: str, port: int) -> list[tuple[str, int]]:
    """Every address of `host`, in the resolver's order.

    Raises:
        DialError: when the name does not resolve.
    """
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        pass  # A name, then.
    else:
        return [(host, port)]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise DialError(f"lookup {host}: {reason}") from exc
    return list(dict.fromkeys((str(item[4][0]), int(item[4][1])) for item in found))


async def dial_tcp(
    host: str,
    port: int,
    *,
    timeout_s: float,
    keepalive_s: float = 0,
    local_ip: str = "",
) -> tuple[Endpoint, Held]:
    """Connect to `host:port`, trying each of its addresses, under one deadline for all.

    Returns:
        The endpoint, paused (set a protocol, then resume), and what came meanwhile.

    Raises:
        DialError: naming every address and what happened there.
    """
    loop = asyncio.get_running_loop()
    failures: list[str] = []
    local = (local_ip, 0) if local_ip else None
    try:
        async with asyncio.timeout(timeout_s):
            for address in await resolve(host, port):
                try:
                    transport, held = await loop.create_connection(Held, *address, local_addr=local)
                except OSError as exc:
                    failures.append(f"{format_address(address)}: {explain(exc)}")
                    continue
                transport.pause_reading()
                tune(transport)
                bound_unsent(transport.get_extra_info("socket"))
                if keepalive_s > 0:
                    set_keepalive(transport.get_extra_info("socket"), keepalive_s)
                return transport, held
    except TimeoutError:
        failures.append(f"no answer within {timeout_s:g} s")
    raise DialError(f"dial tcp {'; '.join(failures) or f'{host}: no address'}")


def explain(exc: OSError) -> str:
    """The system's words for an error, without the numbers and addresses around it."""
    return os.strerror(exc.errno).lower() if exc.errno and exc.errno > 0 else str(exc)
