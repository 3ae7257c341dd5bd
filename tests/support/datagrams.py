"""UDP users and a UDP service."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tests.support.waiting import within


class EchoUdp(asyncio.DatagramProtocol):
    """Sends back what it gets, and notes from where.

    Attributes:
        silent: Notes only.
    """

    def __init__(self) -> None:
        self.got: list[tuple[bytes, tuple[Any, ...]]] = []
        self.silent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.got.append((data, addr))
        if not self.silent:
            self.sock.sendto(data, addr)

    @property
    def sources(self) -> set[tuple[Any, ...]]:
        return {address for _, address in self.got}

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> EchoUdp:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind((host, port))
        self.port = self.sock.getsockname()[1]
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=self.sock)
        return self

    async def __aenter__(self) -> EchoUdp:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.transport.abort()


class UdpUser:
    """A socket of one user, connected to a port."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect((host, port))

    def __enter__(self) -> UdpUser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    @property
    def address(self) -> tuple[Any, ...]:
        return self.sock.getsockname()

    def send(self, data: bytes) -> None:
        self.sock.send(data)

    async def receive(self, limit_s: float = 10.0) -> bytes:
        loop = asyncio.get_running_loop()
        return await within(loop.sock_recv(self.sock, 65536), limit_s, "a datagram")

    async def echoed(self, data: bytes, limit_s: float = 10.0) -> None:
        """Send a datagram and wait for the same one."""
        self.send(data)
        assert await self.receive(limit_s) == data
