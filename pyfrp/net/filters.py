"""Ciphers and compression between two endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyfrp.errors import RemoteWireError
from pyfrp.net.endpoint import Endpoint, OnLink

Transform = Callable[[bytes], bytes]


class FilterEndpoint(OnLink, asyncio.Protocol):
    """An endpoint whose bytes are changed on their way: `outward` on writes, `inward` on reads.

    `inward` may return `b""` while it collects. When it raises RemoteWireError the connection is
    aborted: what follows cannot be understood.

    Args:
        link: A paused endpoint; this becomes its protocol.
        early: Bytes already read from `link`; they are delivered when reading is resumed.
    """

    __slots__ = ("_early", "_inward", "_link", "_outward", "_paused", "_protocol")

    def __init__(
        self, link: Endpoint, *, outward: Transform, inward: Transform, early: bytes = b""
    ) -> None:
        self._link = link
        self._early = early
        self._paused = False
        self._outward = outward
        self._inward = inward
        self._protocol: asyncio.Protocol = asyncio.Protocol()
        link.set_protocol(self)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]  # readers of bytes, by contract
        self._link.set_protocol(self)

    def write(self, data: bytes) -> None:
        self._link.write(self._outward(data))

    def write_eof(self) -> None:
        self._link.write_eof()

    def can_write_eof(self) -> bool:
        return self._link.can_write_eof()

    def close(self) -> None:
        self._link.close()

    def abort(self) -> None:
        self._link.abort()

    def is_closing(self) -> bool:
        return self._link.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        self._link.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)
            if self._paused:
                return  # These were enough for the reader.
        self._link.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            plain = self._inward(data)
        except RemoteWireError as exc:
            self._link.abort()
            self._protocol.connection_lost(exc)
            self._protocol = asyncio.Protocol()
            return
        if plain:
            self._protocol.data_received(plain)

    def eof_received(self) -> bool:
        return bool(self._protocol.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
