"""Has a caller that sends no more left, or does it wait for its answer?

Closing a socket and half-closing it look the same on the wire until something is sent: the closed
one answers with a reset. Somebody who left must stop the model; somebody who half-closed (`nc`,
HTTP/1.0 clients, some load balancers) must get the answer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from pyfrp.net.endpoint import Endpoint

# The socket is looked at this often, this many times: within a second, whatever the round trip.
LOOK_S = 0.1
LOOKS = 8

# A closed socket answers this with a reset; an open one must skip it (RFC 9110, 15.2).
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"


def watch_departure(
    caller: Endpoint,
    later: Callable[..., Any],
    *,
    may_probe: bool,
    silent: Callable[[], bool],
) -> None:
    """Abort `caller`, which sent its EOF, as soon as it shows that it has left altogether.

    Args:
        later: `later(seconds, callback, *args)`, as `loop.call_later`.
        may_probe: Whether an interim answer may be sent now; not within an answer's body, and not
            to HTTP/1.0.
        silent: Asked at the end: whether an answer is under way of which nothing could be sent
            since the EOF. Nearly all who end their side in the middle of an answer have left, and
            nothing will show it before the next token, so such a caller counts as gone.
    """
    if may_probe:
        caller.write(PROBE)
    later(LOOK_S, _look, caller, later, silent, LOOKS)


def _look(
    caller: Endpoint, later: Callable[..., Any], silent: Callable[[], bool], left: int
) -> None:
    if caller.is_closing():
        return
    if _has_left(caller) or (left == 1 and silent()):
        caller.abort()
    elif left > 1:
        later(LOOK_S, _look, caller, later, silent, left - 1)


def _has_left(caller: Endpoint) -> bool:
    sock = caller.get_extra_info("socket")
    try:
        return sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    except OSError:
        return True
