"""UDP ports whose users' datagrams travel as messages: those of a server, and of a visitor.

Source: frp `pkg/proto/udp/udp.go` (`ForwardUserConn`), which is used by both there, too.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from pyfrp.errors import LinkError, LocalWireError, PeerClosed, WireError
from pyfrp.net.datagrams import Complaints, DatagramSocket, address_of, user_of
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.packets import QUEUE, PacketConn
from pyfrp.wire.datagram import encode_packet, user_part
from pyfrp.wire.messages import Message, UDPPacket
from pyfrp.wire.version import V1, Version

SILENCE_S = 60.0  # The far client pings every 30 s; a connection without that is dead.


class UserPort:
    """A bound UDP socket for all users, and the one connection that carries their datagrams.

    `await attach()` first. Then `serve` one connection after the other; datagrams that come
    between them wait, so many that memory is safe.

    Args:
        sock: Bound, not blocking; this closes it.
        packet_size: Most bytes of a user's datagram that are carried.
        log: A structlog logger.
        version: How the messages are written on what carries them.

    Attributes:
        conn: What carries datagrams just now.
        closed: Whether `close` was called.
        complaints: Says what goes wrong, not too often.
    """

    def __init__(
        self, sock: socket.socket, *, packet_size: int, log: Any, version: Version = V1
    ) -> None:
        self.conn: PacketConn | None = None
        self.closed = False
        self.complaints = Complaints(log.warning)
        self._socket = DatagramSocket(sock, on_datagram=self._from_user, on_error=self._failed)
        self._size = packet_size
        self._log = log
        self._version = version
        self._waiting: list[bytes] = []  # Frames that came while there was no connection.
        self._woken = asyncio.Event()

    async def attach(self) -> None:
        """Start to read. Raises OSError; the socket is closed then."""
        await self._socket.attach()

    async def wanted(self) -> bool:
        """Wait until a datagram waits for a connection; False once the port is closed."""
        await self._woken.wait()
        return not self.closed

    def drop_waiting(self) -> None:
        """There is no connection to be had for the datagrams that wait."""
        self._waiting.clear()
        if not self.closed:
            self._woken.clear()

    async def serve(self, endpoint: Endpoint, early: bytes) -> LinkError | WireError:
        """Carry datagrams on a connection until it ends, be it for silence, or the port closes.

        Args:
            endpoint: Paused, below the payload's layers.
            early: Bytes already read from it.

        Returns:
            Why it ended. Nothing of it is left.
        """
        if self.closed:
            endpoint.abort()
            return PeerClosed("closed")
        conn = self.conn = PacketConn(
            endpoint, early, on_message=self._to_user, version=self._version
        )
        try:
            waiting, self._waiting = self._waiting, []
            self._woken.clear()
            for frame in waiting:
                conn.send(frame)
            return await conn.until_silent(SILENCE_S)
        finally:
            self.conn = None
            if not conn.ended.done():
                conn.abort()

    def close(self, *, lost: bool = False) -> None:
        """Close the port and its connection, which sends what it has unless its link is `lost`.

        Idempotent.
        """
        if self.closed:
            return
        self.closed = True
        self._socket.close()
        self._waiting.clear()
        self._woken.set()
        if self.conn is not None:
            if lost:
                self.conn.abort()
            else:
                self.conn.close()

    # -- datagrams -----------------------------------------------------------------------------

    def _from_user(self, data: bytes, address: tuple[Any, ...]) -> None:
        if len(data) > self._size:
            self.complaints.tell(
                "cut",
                f"a datagram of {len(data)} bytes from a user was cut: udpPacketSize is "
                f"{self._size}, raise it on both sides",
            )
            data = data[: self._size]
        try:
            frame = encode_packet(data, user_part(*user_of(address)), self._version.frame)
        except LocalWireError as exc:
            self.complaints.tell("long", f"a datagram of a user was dropped: {exc}")
            return
        conn = self.conn
        if conn is not None and conn.send(frame):
            return
        # One that has just ended carries nothing; the next one will.
        if (conn is None or conn.ended.done()) and len(self._waiting) < QUEUE:
            self._waiting.append(frame)
            self._woken.set()
            return
        self.complaints.tell(
            "full", "datagrams of users are dropped: the far side does not take them as fast"
        )

    def _to_user(self, msg: Message) -> None:
        if not isinstance(msg, UDPPacket) or self.closed:
            return  # A ping counted by coming.
        try:
            if msg.remote_addr is None:
                raise ValueError("no address")
            address = address_of(msg.remote_addr, self._socket.family)
        except ValueError as exc:
            self.complaints.tell("address", f"an answer to a user was dropped: it has {exc}")
            return
        self._socket.send(msg.content, address)

    def _failed(self, exc: OSError) -> None:
        # One user's network; the others are served on.
        self._log.debug(f"a datagram to or from a user was lost: {exc}")
