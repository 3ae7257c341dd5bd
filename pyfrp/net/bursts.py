"""UDP sockets for many datagrams at a time: Linux cuts and joins them for us.

A system call costs as much as all else that is done for a datagram. Datagrams of one size to one
address go to the kernel as one piece, and come from it as one (`UDP_SEGMENT`, `UDP_GRO`). Elsewhere
they are sent and read one by one.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from pyfrp.net.datagrams import DatagramSocket

Address: TypeAlias = tuple[Any, ...]
OnDatagram: TypeAlias = Callable[[bytes, Address], None]
OnError: TypeAlias = Callable[[OSError], None]

# The kernel's default has room for a hundred datagrams. Source: frp `pkg/util/net/kcp.go`.
BUFFER_BYTES = 4 * 1024 * 1024
_MOST_SEGMENTS = 64  # Linux, UDP_MAX_SEGMENTS.
_MOST_BYTES = 65_000
_READS = 16  # Pieces that are read in a turn; others want theirs, too.
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
# Linux, <netinet/in.h>: which of our addresses a datagram came to, and is to be sent from.
_PKTINFO = {
    socket.AF_INET: (socket.IPPROTO_IP, 8, 8),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 49, 50),
}
_MOST_PEERS = 4096  # Whose way to us is remembered; who is forgotten is answered by the usual one.
_SIZE = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_EXTRA_ROOM = 128
_LINUX = sys.platform == "linux"
# What says that segments cannot be had here, by the system or on the way out.
_NO_SEGMENTS = (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE)
# One for all sockets of a process: it is filled and emptied within one call.
_room = bytearray(65_536)
_view = memoryview(_room)


class Socket(Protocol):
    """What `open_socket` gives."""

    closed: bool

    @property
    def address(self) -> Address: ...
    def send_many(self, datagrams: list[tuple[bytes, Address]]) -> None: ...
    def close(self) -> None: ...


async def open_socket(
    sock: socket.socket, *, connected: bool, on_datagram: OnDatagram, on_error: OnError
) -> Socket:
    """Read a socket from now on.

    Args:
        sock: Not blocking; whatever happens, it is closed by us.
        connected: Whether it has its peer's address.
        on_datagram, on_error: As of a `DatagramSocket`.

    Raises:
        OSError: the loop cannot read it.
    """
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        except OSError:
            pass  # Some systems refuse what is too much rather than giving less.
    if _LINUX:
        return BurstSocket(sock, connected=connected, on_datagram=on_datagram, on_error=on_error)
    plain = _OneByOne(sock, connected, on_datagram=on_datagram, on_error=on_error)
    await plain.attach()
    return plain


class _OneByOne(DatagramSocket):
    def __init__(
        self, sock: socket.socket, connected: bool, *, on_datagram: OnDatagram, on_error: OnError
    ) -> None:
        super().__init__(sock, on_datagram=on_datagram, on_error=on_error)
        self._connected = connected

    def send_many(self, datagrams: list[tuple[bytes, Address]]) -> None:
        for data, address in datagrams:
            self.send(data, None if self._connected else address)


class BurstSocket:
    """A UDP socket on Linux. What the kernel has no room for is lost, as it may be on its way.

    Args:
        sock: Not blocking; this closes it.
        connected: Whether it has its peer's address.
        on_datagram: Called with the bytes and the sender's address.
        on_error: Called with what the system reports of earlier datagrams, or of this one.
    """

    def __init__(
        self, sock: socket.socket, *, connected: bool, on_datagram: OnDatagram, on_error: OnError
    ) -> None:
        self.closed = False
        self._sock = sock
        self._connected = connected
        self._on_datagram = on_datagram
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._segments = True
        # Of several addresses of ours, an answer has to come from the one that was asked.
        self._family = sock.family
        self._ways: dict[Address, bytes] = {}
        if not connected and sock.getsockname()[0] in ("0.0.0.0", "::"):
            level, ask, _ = _PKTINFO[self._family]
            sock.setsockopt(level, ask, 1)
        try:
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError:
            pass  # Before Linux 5.0: datagrams come one by one.
        self._loop.add_reader(sock, self._read)

    def _read_again(self) -> None:
        """After an error of the socket: libuv stops to look at it then."""
        if not self.closed:
            self._loop.remove_reader(self._sock)
            self._loop.add_reader(self._sock, self._read)

    @property
    def address(self) -> Address:
        """Where it is bound. Raises OSError after the end."""
        name: Address = self._sock.getsockname()
        return name

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._sock)
            self._sock.close()

    # -- input ---------------------------------------------------------------------------------

    def _read(self) -> None:
        for number in range(_READS):
            if self.closed:
                return
            try:
                size, extra, _, source = self._sock.recvmsg_into([_room], _EXTRA_ROOM)
            except (BlockingIOError, InterruptedError):
                if not number:  # Woken for an error that a send was told of.
                    self._loop.call_soon(self._read_again)
                return
            except OSError as exc:
                self._loop.call_soon(self._read_again)
                self._on_error(exc)
                continue
            step = size
            for level, kind, value in extra:
                if level == _SOL_UDP and kind == _UDP_GRO:
                    step = _GRO_SIZE.unpack(value[: _GRO_SIZE.size])[0]
                elif (level, kind) == _PKTINFO[self._family][::2]:
                    self._learn_way(source, value)
            if step >= size:
                self._on_datagram(bytes(_view[:size]), source)
                continue
            # Whoever gets the first may read again.
            for data in [bytes(_view[at : min(at + step, size)]) for at in range(0, size, step)]:
                if not self.closed:
                    self._on_datagram(data, source)

    def _learn_way(self, source: Address, info: bytes) -> None:
        if self._family == socket.AF_INET:
            way = bytes(4) + info[4:8] + bytes(4)
        elif info[:2] == b"\xfe\x80":
            way = info  # An address of one interface alone.
        else:
            way = info[:16] + bytes(4)
        if self._ways.get(source) != way:
            self._ways[source] = way
            if len(self._ways) > _MOST_PEERS:
                del self._ways[next(iter(self._ways))]

    def _way(self, address: Address) -> list[tuple[int, int, bytes]]:
        way = self._ways.get(address)
        if way is None:
            return []
        level, _, kind = _PKTINFO[self._family]
        return [(level, kind, way)]

    # -- output --------------------------------------------------------------------------------

    def send_many(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Send each to its address, in this order; to the peer's if the socket is connected."""
        at = 0
        while at < len(datagrams) and not self.closed:
            count = self._alike(datagrams, at) if self._segments else 1
            data, address = datagrams[at]
            try:
                if count == 1:
                    self._send(data, address)
                else:
                    together = [piece for piece, _ in datagrams[at : at + count]]
                    self._send_together(together, len(data), address)
            except (BlockingIOError, InterruptedError):
                pass  # The kernel has no room.
            except OSError as exc:
                if count > 1 and exc.errno in _NO_SEGMENTS:
                    self._segments = False
                    continue  # Once more, one by one.
                self._on_error(exc)
            at += count

    @staticmethod
    def _alike(datagrams: list[tuple[bytes, Address]], at: int) -> int:
        """How many from `at` on can go as one: of one size, only the last may be shorter."""
        first, address = datagrams[at]
        size = total = len(first)
        end = at + 1
        limit = min(len(datagrams), at + _MOST_SEGMENTS)
        while end < limit:
            data, there = datagrams[end]
            total += len(data)
            if len(data) > size or there != address or total > _MOST_BYTES:
                break
            end += 1
            if len(data) < size:
                break
        return end - at

    def _send(self, data: bytes, address: Address) -> None:
        try:
            self._send_one(data, address)
        except ConnectionError as exc:
            # Said of an earlier datagram; this one was not sent for it.
            self._on_error(exc)
            if not self.closed:
                self._send_one(data, address)

    def _send_one(self, data: bytes, address: Address) -> None:
        if self._connected:
            self._sock.send(data)
        else:
            self._sock.sendmsg((data,), self._way(address), 0, address)

    def _send_together(self, pieces: list[bytes], size: int, address: Address) -> None:
        how: list[tuple[int, int, bytes]] = [(_SOL_UDP, _UDP_SEGMENT, _SIZE.pack(size))]
        if self._connected:
            self._sock.sendmsg(pieces, how)
        else:
            self._sock.sendmsg(pieces, how + self._way(address), 0, address)
