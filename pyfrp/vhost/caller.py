"""A caller's connection, as whoever serves it holds it."""

from __future__ import annotations

import asyncio
from typing import cast

from pyfrp.net.endpoint import Endpoint, peer_address, tune


class CallerSide(asyncio.Protocol):
    """Who calls, whether the connection is read, and what is written to it.

    Writes to a caller that is gone are dropped.
    """

    __slots__ = ("_address", "_caller", "_ip", "_reading")

    def __init__(self) -> None:
        self._caller: Endpoint | None = None
        self._address = ("", 0)
        self._ip = b""
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        caller = cast(Endpoint, transport)
        self._caller = caller
        self.came_from(peer_address(caller))
        tune(caller)

    def came_from(self, address: tuple[str, int]) -> None:
        """Set the caller's address, where its connection came through somebody else's."""
        self._address = address
        self._ip = address[0].encode()

    @property
    def reads(self) -> bool:
        """Whether the caller's connection is to be read at present."""
        return self._reading

    def abort(self) -> None:
        if self._caller is not None:
            self._caller.abort()

    def _write(self, data: bytes) -> None:
        if self._caller is not None:
            self._caller.write(data)

    def _stop_reading(self) -> None:
        if self._reading and self._caller is not None:
            self._reading = False
            self._caller.pause_reading()

    def _read_on(self) -> None:
        if not self._reading and self._caller is not None and not self._caller.is_closing():
            self._reading = True
            self._caller.resume_reading()

    def _hand_over(self) -> Endpoint:
        """Let somebody else read the connection from now on."""
        caller = cast(Endpoint, self._caller)
        self._caller = None
        return caller
