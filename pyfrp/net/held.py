"""Connections between their making and their use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast


class Held(asyncio.Protocol):
    """A fresh connection, held until its reader is ready.

    Args:
        on_open: Called with the transport and this object.
        early: Bytes that were read before, of a connection that is paused already.

    Attributes:
        early: The bytes that came before the loop could be made to pause.
        ended: Whether the far end has sent its EOF by then.
    """

    def __init__(
        self,
        on_open: Callable[[asyncio.Transport, Held], None] | None = None,
        *,
        early: bytes = b"",
    ) -> None:
        self._on_open = on_open
        self._transport: asyncio.Transport | None = None
        self.early = early
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # uvloop starts reading after this callback, whatever is said in it.
        asyncio.get_running_loop().call_soon(self._pause)
        if self._on_open is not None:
            self._on_open(self._transport, self)

    def _pause(self) -> None:
        transport = self._transport
        if (
            transport is not None
            and transport.get_protocol() is self
            and not transport.is_closing()
        ):
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.early += data
        self._pause()

    def eof_received(self) -> bool:
        self.ended = True
        return True
