"""UDP sockets for many datagrams at a time.

A protocol of streams over UDP has hundreds of datagrams of one size on their way. Where the system
can do it (Linux: UDP_SEGMENT, UDP_GRO) such a train leaves, and arrives, with one call: measured on
loopback, twenty datagrams of 1358 bytes cost 4 µs that way and 36 µs one by one.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pyfrp.net.datagrams import DatagramSocket

Address: TypeAlias = tuple[Any, ...]
OnDatagrams: TypeAlias = Callable[[list[bytes], Address], None]

# Linux' `include/uapi/linux/udp.h`; Python has no names for them. A train is one UDP message to
# most of the kernel, and so has a message's limits.
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_MAX_CARS, _MAX_TRAIN = 64, 65_000
_UINT16 = struct.Struct("=H")
_CONTROL = 64  # Bytes, for the size of the cars.
# Bytes read in one turn of the loop: others want their turn, and acknowledgements wait for it.
# From peers that send no trains this is a hundred datagrams.
READ = 128 * 1024
# What an old kernel says, or one whose network has no checksums of its own or a smaller MTU. A port
# has many networks behind it, so that it gives up only after as many failures in a row.
_NO_TRAINS = frozenset(
    (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP)
)
MAX_FAILURES = 8

_space = bytearray(65_536)
_view = memoryview(_space)


class TrainSender:
    """Sends datagrams through a socket: to the kernel at once, or they are lost.

    Args:
        sock: Not blocking.
        on_error: Called with what the system reports of earlier datagrams, or of these.
    """

    def __init__(self, sock: socket.socket, on_error: Callable[[OSError], None]) -> None:
        self._sock = sock
        self._on_error = on_error
        self._trains = sys.platform == "linux"
        self._failures = 0

    def send_all(self, datagrams: Sequence[bytes], address: Address | None = None) -> None:
        """Send in order, to the connected address if none is given."""
        count = len(datagrams)
        at = 0
        while at < count:
            size = len(datagrams[at])
            end = at + 1
            if self._trains:
                most = min(count, at + min(_MAX_CARS, _MAX_TRAIN // max(size, 1)))
                while end < most and len(datagrams[end]) == size:
                    end += 1
            if end - at > 1:
                if not self._send_train(datagrams[at:end], size, address):
                    for datagram in datagrams[at:end]:
                        if not self._send_one(datagram, address):
                            return
            elif not self._send_one(datagrams[at], address):
                return
            at = end

    def _send_train(self, cars: Sequence[bytes], size: int, address: Address | None) -> bool:
        """Returns whether the system can do it over that network."""
        control = [(_SOL_UDP, _UDP_SEGMENT, _UINT16.pack(size))]
        try:
            if address is None:
                self._sock.sendmsg((b"".join(cars),), control)
            else:
                self._sock.sendmsg((b"".join(cars),), control, 0, address)
        except BlockingIOError:
            pass  # The kernel has no room: lost, as they may be anywhere on their way.
        except OSError as exc:
            if exc.errno in _NO_TRAINS:
                self._failures += 1
                self._trains = self._failures < MAX_FAILURES
                return False
            self._on_error(exc)  # Perhaps of an earlier datagram; these come again as if lost.
        else:
            self._failures = 0
        return True

    def _send_one(self, data: bytes, address: Address | None) -> bool:
        """Returns whether to go on with the next."""
        try:
            if address is None:
                self._sock.send(data)
            else:
                self._sock.sendto(data, address)
        except BlockingIOError:
            return False
        except OSError as exc:
            self._on_error(exc)
            return False
        return True


class TrainSocket:
    """A UDP socket that brings what came at once, by sender.

    Args:
        sock: Bound or connected, not blocking; this closes it.
        on_datagrams: Called with datagrams of one sender in their order, and its address.
        on_error: Called with what the system reports of earlier datagrams, or of these.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_datagrams: OnDatagrams,
        on_error: Callable[[OSError], None],
    ) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_datagrams = on_datagrams
        self._on_error = on_error
        self._sender = TrainSender(sock, on_error)
        self._plain: DatagramSocket | None = None

    async def attach(self) -> None:
        """Start to read. Raises OSError; the socket is closed then."""
        try:
            if not hasattr(self._sock, "recvmsg_into"):
                raise NotImplementedError
            self._loop.add_reader(self._sock.fileno(), self._read)
        except NotImplementedError:  # Windows.
            self._plain = DatagramSocket(
                self._sock,
                on_datagram=lambda data, source: self._on_datagrams([data], source),
                on_error=self._on_error,
            )
            await self._plain.attach()
            return
        if sys.platform == "linux":
            try:
                self._sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            except OSError:
                pass  # A kernel before 5.0: they arrive one by one.

    def send_all(self, datagrams: Sequence[bytes], address: Address | None = None) -> None:
        if not self.closed:
            self._sender.send_all(datagrams, address)

    @property
    def address(self) -> Address:
        """Where it is bound. Raises OSError after the end."""
        name: Address = self._sock.getsockname()
        return name

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._plain is not None:
            self._plain.close()
            return
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _read(self) -> None:
        came: list[bytes] = []
        sender: Address | None = None
        left = READ
        while left > 0:
            try:
                size, control, _, source = self._sock.recvmsg_into((_space,), _CONTROL)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                self._on_error(exc)
                if self.closed:
                    return
                left -= READ // 8
                continue
            left -= max(size, 256)
            if source != sender:
                if came:
                    self._on_datagrams(came, sender or ())
                    if self.closed:
                        return
                    came = []
                sender = source
            car = size
            for level, kind, value in control:
                if level == _SOL_UDP and kind == _UDP_GRO:
                    car = int.from_bytes(value[:4], sys.byteorder)
            if car >= size:
                came.append(bytes(_view[:size]))
            else:
                came += [bytes(_view[at : min(at + car, size)]) for at in range(0, size, car)]
        if came:
            self._on_datagrams(came, sender or ())
