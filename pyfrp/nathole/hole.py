"""UDP sockets on their way from discovery over punching to a tunnel."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pyfrp.net.datagrams import DatagramSocket, bind_udp
from pyfrp.net.sockets import widen
from pyfrp.net.trains import TrainSender

Address: TypeAlias = tuple[str, int]
Reader: TypeAlias = Callable[[bytes, Address], None]


class Outlet:
    """An IPv4 UDP socket whose reader changes: its outer address is bound to it, so it stays.

    Attributes:
        reader: Called with each datagram and its sender.
        on_error: Called with what the system says of earlier datagrams.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._raw = sock
        self.reader: Reader = _ignore
        self.on_error: Callable[[OSError], None] = _forget
        self._socket = DatagramSocket(
            sock,
            on_datagram=lambda data, source: self.reader(data, (source[0], source[1])),
            on_error=lambda exc: self.on_error(exc),
        )
        self._sender = TrainSender(sock, lambda exc: self.on_error(exc))

    @classmethod
    async def open(cls, host: str = "0.0.0.0", port: int = 0) -> Outlet:
        """Raises OSError."""
        sock = await bind_udp(host, port)
        widen(sock)
        made = cls(sock)
        await made._socket.attach()
        return made

    @property
    def address(self) -> Address:
        host, port = self._raw.getsockname()[:2]
        return str(host), int(port)

    def send(self, data: bytes, address: Address | None = None, *, ttl: int = 0) -> None:
        """Send a datagram, which may get lost here as anywhere.

        Args:
            ttl: How many routers it may pass; 0 for the usual number.
        """
        if not ttl:
            self._socket.send(data, address)
            return
        try:
            usual = self._raw.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
            self._raw.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        except OSError:
            return  # It would arrive where it must not yet.
        try:
            self._socket.send(data, address)
        finally:
            self._raw.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, usual)

    def send_all(self, datagrams: Sequence[bytes]) -> None:
        """Send datagrams to the connected address."""
        if not self._socket.closed:
            self._sender.send_all(datagrams)

    def send_many(self, datagrams: list[tuple[bytes, tuple[Any, ...]]]) -> None:
        """Send datagrams, once there is an address that it is connected to."""
        self.send_all([data for data, _ in datagrams])

    def connect(self, address: Address) -> None:
        """Have datagrams of this address only. Raises OSError."""
        self._socket.connect(address)

    def close(self) -> None:
        self.reader = _ignore
        self.on_error = _forget
        self._socket.close()


@dataclass(slots=True)
class Hole:
    """A way through: a socket, and the address at which the peer is reached from it.

    Whoever makes a tunnel of it closes the outlet at the end, and passes what is not of the tunnel
    to `on_knock`, which tells whether it was a late knock.
    """

    outlet: Outlet
    peer: Address
    on_knock: Callable[[bytes], bool]

    def info(self) -> dict[str, Any]:
        """For an endpoint's `get_extra_info`."""
        return {"sockname": self.outlet.address, "peername": self.peer}


class LateKnocks:
    """Answers knocks that come when the tunnel is being made: our first answer may be lost.

    Args:
        answer: Answers a datagram if it is a knock, and tells whether it was.
    """

    LIMIT = 64  # Datagrams that are looked at; a peer that is through sends no more knocks.

    def __init__(self, answer: Callable[[bytes], bool]) -> None:
        self._answer = answer
        self._left = self.LIMIT

    def __call__(self, data: bytes) -> bool:
        if not self._left:
            return False
        self._left -= 1
        return self._answer(data)


def _ignore(data: bytes, source: Address) -> None:
    """What comes between two readers is repeated."""


def _forget(exc: OSError) -> None:
    """Where nobody listens yet a datagram is in vain, which is what punching is about."""
