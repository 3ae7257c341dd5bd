"""Outgoing connections."""

from __future__ import annotations

import asyncio
import socket

from pyfrp.errors import DialError
from pyfrp.net.endpoint import Endpoint, format_address, tune
from pyfrp.net.held import Held
from pyfrp.net.sockets import bound_unsent, explain, is_numeric, set_keepalive

# An address gets no less than this of the time left, as with Go's dialler (`net/dial.go`,
# partialDeadline): less is of no use on a slow network.
LEAST_SHARE_S = 2.0


async def resolve(host: str, port: int) -> list[tuple[str, int]]:
    """Every address of `host`, in the resolver's order.

    Raises:
        DialError: when the name does not resolve.
    """
    if is_numeric(host):
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
    link: bool = False,
) -> tuple[Endpoint, Held]:
    """Connect to `host:port`, trying each of its addresses, under one deadline for all.

    The time is shared out, so that an address that does not answer leaves some for the next.

    Returns:
        The endpoint, paused (set a protocol, then resume), and what came meanwhile.

    Raises:
        DialError: naming every address and what happened there.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    try:
        async with asyncio.timeout_at(deadline):
            addresses = await resolve(host, port)
    except TimeoutError:
        raise DialError(
            f"lookup {host}: no answer of the resolver within {timeout_s:g} s"
        ) from None
    failures: list[str] = []
    number = 0
    local = (local_ip, 0) if local_ip else None
    for tried, address in enumerate(addresses):
        left = deadline - loop.time()
        if left <= 0:
            break
        share = min(left, max(left / (len(addresses) - tried), LEAST_SHARE_S))
        try:
            async with asyncio.timeout(share) as limit:
                transport, held = await loop.create_connection(Held, *address, local_addr=local)
        except OSError as exc:  # A TimeoutError is one, too.
            why = f"no answer within {round(share, 1):g} s" if limit.expired() else explain(exc)
            failures.append(f"{format_address(address)}: {why}")
            number = exc.errno or 0
            continue
        transport.pause_reading()
        tune(transport)
        if link:
            bound_unsent(transport.get_extra_info("socket"))
        if keepalive_s > 0:
            set_keepalive(transport.get_extra_info("socket"), keepalive_s)
        return transport, held
    raise DialError(f"dial tcp {'; '.join(failures) or f'{host}: no address'}", number)


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
