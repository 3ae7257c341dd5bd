"""Sockets below the event loop: their options, and ports taken from the system.

Nothing here imports asyncio, so that a program can take its ports before it loads the rest.
"""

from __future__ import annotations

import os
import socket
from typing import Any

BACKLOG = 1024  # Connections the kernel holds for us while the loop is busy, or not yet there.
UNSENT = 128 * 1024
# Of UDP sockets with streams on them: the kernel's own figure has room for a hundred datagrams.
# Source: frp `pkg/util/net/kcp.go`.
DATAGRAM_BUFFER = 4 * 1024 * 1024
# Nine hours; more Linux does not take. Source: <net/tcp.h>, MAX_TCP_KEEPIDLE.
MOST_KEEPALIVE_S = 32767


def is_numeric(host: str) -> bool:
    """Whether `host` is an address, which needs no resolver."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):  # The latter for a NUL in it.
        return False
    return True


def bind(host: str, port: int, *, keepalive_s: float, links: bool = False) -> socket.socket:
    """A listening, non-blocking TCP socket on a numeric address.

    "0.0.0.0" and "::" are both families wherever there are two, as in Go (`net/ipsock_posix.go`,
    favoriteAddrFamily) and so in frp: a home is often reached over IPv6 alone.

    Args:
        keepalive_s: For accepted connections, which inherit it; 0 or less for none.
        links: Whether they are links, on which much waits behind what the kernel holds.

    Raises:
        OSError: with the system's reason; `bind_error` makes a sentence of it.
    """
    both = host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6()
    if both:
        host = "::"
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":
            # Elsewhere it would let two programs have the same port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        set_keepalive(sock, keepalive_s)
        if links:
            bound_unsent(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_datagrams(host: str, port: int) -> socket.socket:
    """A non-blocking UDP socket on a numeric address, for streams; families as for `bind`.

    Raises:
        OSError: with the system's reason; `bind_error` makes a sentence of it.
    """
    both = host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6()
    if both:
        host = "::"
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        widen(sock)
        sock.bind((host, port))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def widen(sock: socket.socket) -> None:
    """Let the kernel hold as many datagrams as a window of streams is, or what it allows."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, DATAGRAM_BUFFER)
        except OSError:
            pass  # Some systems refuse what is too much rather than giving less.


def bind_error(host: str, port: int, exc: OSError, network: str = "tcp") -> str:
    """frp's text for a listener of a network (tcp or udp) that cannot be had; what to try."""
    reason = explain(exc)
    hint = ""
    if "in use" in reason:
        ask = f"ss -l{network[0]}np 'sport = :{port}'"
        hint = f" (another program has port {port}: `{ask}` names it)"
    elif "permission" in reason:
        hint = " (ports below 1024 need CAP_NET_BIND_SERVICE or another port)"
    elif "assign" in reason:
        hint = " (this machine does not have that address)"
    return f"listen {network} {host}:{port}: bind: {reason}{hint}"


def explain(exc: OSError) -> str:
    """The system's words for an error, without the numbers and addresses around it."""
    return os.strerror(exc.errno).lower() if exc.errno and exc.errno > 0 else str(exc)


def set_keepalive(sock: Any, seconds: float) -> None:
    """Have the kernel probe silent connections; on a listener, those that it accepts.

    Args:
        sock: A TCP socket, or what a transport or a server gives for one.
        seconds: Of silence before the first probe; 0 or less leaves keepalive off.
    """
    if seconds <= 0:
        return
    whole = int(min(max(1, seconds), MOST_KEEPALIVE_S))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, whole)
        if hasattr(socket, "TCP_KEEPINTVL"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(whole, 75))
    except (OSError, ValueError):  # uvloop has the latter for a closed socket.
        pass  # The peer is gone already; connection_lost will follow.


def bound_unsent(sock: Any) -> None:
    """Let the kernel hold little that it has not sent yet, where it can be told so.

    It would take megabytes, and on a thin link everything else waits behind them: other streams,
    heartbeats. What is on its way already does not count, so throughput does not suffer. On a
    listener it counts for the connections that it accepts.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, option, UNSENT)
        except (OSError, ValueError):
            pass  # Not on this system, or the peer is gone already.
