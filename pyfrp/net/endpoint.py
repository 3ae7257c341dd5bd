"""The one vocabulary of everything that carries bytes: asyncio's transports.

A TCP socket, a TLS connection, a mux stream, a cipher on top of any of them: each takes writes and
feeds an `asyncio.Protocol`. Whoever holds an endpoint decides what reads it with `set_protocol`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

# Write buffer marks, in bytes. uvloop's own low mark is 16 bytes, which would stop and start the
# source for every chunk.
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024


class Addressed(Protocol):
    """What can be asked about the connection below it, as `asyncio.BaseTransport` can."""

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


class Endpoint(Addressed, Protocol):
    """What `asyncio.Transport` offers, as far as bridges and conversations use it.

    `write` after `close`, `abort` or the loss of the connection drops the bytes.
    """

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def get_write_buffer_size(self) -> int: ...


class OnLink:
    """What an endpoint on another one, its `_link`, leaves to that."""

    __slots__ = ()
    _link: Endpoint

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._link.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._link.set_write_buffer_limits(high=high, low=low)

    def get_write_buffer_size(self) -> int:
        return self._link.get_write_buffer_size()


class ViewReader(asyncio.Protocol):
    """A protocol whose `data_received` takes a memoryview too, and keeps nothing of it."""

    def data_received(self, data: bytes | memoryview) -> None:
        raise NotImplementedError


Pieces: TypeAlias = Sequence[bytes | memoryview]
"""Bytes in parts, to be written in this order. Whoever keeps one for later copies it or owns it."""


def writer_of_pieces(endpoint: Endpoint) -> Callable[[Pieces], None]:
    """The endpoint's `writelines`, as asyncio's transports have it; where there is none, a join.

    And where it is asyncio's own: up to Python 3.11 that joins, too, and those of 3.12 and 3.13
    tell no writer to pause, however much they hold.
    """
    found: Callable[[Pieces], None] | None = getattr(endpoint, "writelines", None)
    if found is None or isinstance(endpoint, asyncio.Transport):
        return lambda pieces: endpoint.write(b"".join(pieces))
    return found


Lend: TypeAlias = Callable[[memoryview], None]
"""`write` for bytes in a buffer that is the writer's again when the call returns."""


def fills_buffers(endpoint: Endpoint) -> bool:
    """Whether this is a loop's own transport: they can feed an `asyncio.BufferedProtocol`."""
    return hasattr(endpoint, "is_reading")  # No endpoint of ours has this.


def keeps_nothing(endpoint: Endpoint) -> bool:
    """Whether what `endpoint` was given to write is the writer's again when the call returns."""
    return getattr(endpoint, "KEEPS_NOTHING", False)


def tune(endpoint: Endpoint) -> None:
    """Set our buffer marks. Both loops turn Nagle's algorithm off by themselves."""
    endpoint.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)


def reset(endpoint: Endpoint) -> None:
    """Drop a connection so that the far end can tell it from an orderly end.

    A TCP connection, also below TLS or a filter, is reset (linger 0). A mux stream, which has no
    socket of its own, resets with `abort`.
    """
    # Asked of any endpoint: uvloop's transports are no `asyncio.Transport`.
    sock = endpoint.get_extra_info("socket")
    if sock is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, ValueError, AttributeError):
            pass  # The socket is closed already, or is not one that lingers.
    endpoint.abort()


def end_writing(endpoint: Endpoint) -> None:
    """Tell a far end, which may be gone by now, that nothing more will be written."""
    try:
        endpoint.write_eof()
    except OSError:
        pass  # asyncio's own loops find it reset; connection_lost will follow.


def peer_address(endpoint: Addressed) -> tuple[str, int]:
    """The far address as (ip, port); ("", 0) for a unix socket, or when it is gone."""
    return _address(endpoint, "peername")


def local_address(endpoint: Addressed) -> tuple[str, int]:
    """Our address of the connection as (ip, port); ("", 0) when there is none, or no more."""
    return _address(endpoint, "sockname")


def _address(endpoint: Addressed, which: str) -> tuple[str, int]:
    try:
        name = endpoint.get_extra_info(which)
    except AttributeError:  # uvloop's, where a connection was reset before it was accepted.
        return "", 0
    if isinstance(name, tuple) and len(name) >= 2:
        # A listener for both families gives an IPv4 address as ::ffff:192.0.2.1.
        return str(name[0]).removeprefix("::ffff:"), int(name[1])
    return "", 0


def format_address(address: tuple[str, int]) -> str:
    """`ip:port`, with brackets around an IPv6 address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
