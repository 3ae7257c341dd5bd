"""A STUN server on loopback, with a second address to ask."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyfrp.errors import RemoteWireError
from pyfrp.wire import stun


class StunServer:
    """Answers on two ports, each of which names the other.

    Args:
        hosts: Its two addresses.
        make: Makes the sockets, perhaps somewhere else.
        shift: What the second port adds to the ports that it tells: what a NAT does that takes
            another port for each peer.

    Attributes:
        heard: How many datagrams came, answered or not.
        asked: Who was answered, in order.
        silent: Answers nothing.
        lonely: Names no other address.
    """

    def __init__(
        self,
        *hosts: str,
        shift: int = 0,
        make: Callable[[Callable[[], socket.socket]], socket.socket] = lambda bind: bind(),
    ) -> None:
        self.hosts = hosts or ("127.0.0.1",) * 2
        self.shift = shift
        self._make = make
        self.heard = 0
        self.asked: list[tuple[str, int]] = []
        self.silent = False
        self.lonely = False
        self._transports: list[Any] = []
        self.ports: list[int] = []

    @property
    def address(self) -> str:
        return f"{self.hosts[0]}:{self.ports[0]}"

    async def __aenter__(self) -> StunServer:
        loop = asyncio.get_running_loop()
        for number in range(2):
            sock = self._make(lambda number=number: self._bind(number))
            self.ports.append(sock.getsockname()[1])
            transport, _ = await loop.create_datagram_endpoint(
                lambda number=number: _Port(self, number), sock=sock
            )
            self._transports.append(transport)
        return self

    def _bind(self, number: int) -> socket.socket:
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((self.hosts[number], 0))
        return sock

    async def __aexit__(self, *exc: object) -> None:
        for transport in self._transports:
            transport.abort()

    def answer(self, number: int, data: bytes, source: tuple[str, int]) -> bytes | None:
        self.heard += 1
        if self.silent:
            return None
        try:
            transaction = stun.decode_request(data)
        except RemoteWireError:
            return None
        self.asked.append(source)
        mapped = source[0], source[1] + self.shift * number
        binding = stun.Binding(transaction, mapped)
        if not self.lonely:
            binding = replace(binding, other=(self.hosts[1 - number], self.ports[1 - number]))
        return stun.encode_response(binding)


class _Port(asyncio.DatagramProtocol):
    def __init__(self, server: StunServer, number: int) -> None:
        self._server = server
        self._number = number

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        answer = self._server.answer(self._number, data, addr[:2])
        if answer is not None:
            self._transport.sendto(answer, addr)
