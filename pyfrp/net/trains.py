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
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

from pyfrp.net.datagrams import DatagramSocket

Address: TypeAlias = tuple[Any, ...]
OnDatagrams: TypeAlias = Callable[[list[bytes], Address], None]
Control: TypeAlias = tuple[tuple[int, int, bytes], ...]

# Linux' `include/uapi/linux/udp.h`; Python has no names for them. A train is one UDP message to
# most of the kernel, and so has a message's limits.
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_MAX_CARS, _MAX_TRAIN = 64, 65_000
_UINT16 = struct.Struct("=H")
# Linux, <netinet/in.h>: the level, and the options to ask which address of ours a datagram came to
# and to say which one to send from.
_PKTINFO = {
    socket.AF_INET: (socket.IPPROTO_IP, 8, 8),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 49, 50),
}
_MAX_WAYS = 4096  # Peers whose way to us is remembered; others are answered by the usual one.
# The same for whether routers may cut datagrams: the usual way and never, whatever the system has
# heard of the path (`IP_PMTUDISC_WANT`, `IP_PMTUDISC_PROBE`). A socket of IPv6 sends to IPv4, too.
_USUAL, _PROBE = 1, 3
_MTU_DISCOVER = {
    socket.AF_INET: ((socket.IPPROTO_IP, 10),),
    socket.AF_INET6: ((socket.IPPROTO_IPV6, 23), (socket.IPPROTO_IP, 10)),
}
_ANY_PATH = 1200  # Passes uncut wherever QUIC does at all (RFC 9000, 14).
_LARGEST = 65_000
_CONTROL = 128  # Bytes, for the size of the cars and the way they came.
TURN = 128 * 1024
"""Bytes read in one turn of the loop: others want their turn, and acknowledgements wait for it.
From peers that send no trains this is a hundred datagrams."""
# What an old kernel says, or one whose network has no checksums of its own or a smaller MTU. A port
# has many networks behind it, so that it gives up only after as many failures in a row, and for a
# while: a peer can bring about all of them, and no other shall be the slower for it.
_NO_TRAINS = frozenset(
    (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP)
)
MAX_FAILURES = 8
RETRY_S = 60.0

_space = bytearray(65_536)
_view = memoryview(_space)


class TrainSender:
    """Sends datagrams through a socket: to the kernel at once, or they are lost.

    Args:
        sock: Not blocking.
        on_error: Called with what the system reports of earlier datagrams, or of these.
        whole_above: Larger datagrams than this are not cut on their way, but lost; None where any
            may be. Only on Linux; see `largest`.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_error: Callable[[OSError], None],
        whole_above: int | None = None,
    ) -> None:
        self._sock = sock
        self._whole_above = whole_above if sys.platform == "linux" else None
        self._whole = False
        self._on_error = on_error
        self._trains = sys.platform == "linux"
        self._failures = 0
        self._again_at: float | None = None  # When to try trains again.

    def send_all(
        self, datagrams: Sequence[bytes], address: Address | None = None, control: Control = ()
    ) -> None:
        """Send in order, to the connected address if none is given.

        Args:
            control: What else `sendmsg` shall be told; only with an address.
        """
        if self._whole_above is not None and (len(datagrams) != 1 or len(datagrams[0]) > _ANY_PATH):
            self._mind_size(datagrams)
        if self._again_at is not None and self._again_at <= time.monotonic():
            self._again_at, self._trains, self._failures = None, True, MAX_FAILURES - 1
        at = alone = 0
        again, refused = True, False
        while at < len(datagrams):
            more = self._trains and at >= alone and at + 1 < len(datagrams)
            cars = self._alike(datagrams, at) if more else 1
            try:
                if cars > 1:
                    self._send_train(datagrams[at : at + cars], address, control)
                else:
                    self._send_one(datagrams[at], address, control)
            except BlockingIOError:
                return  # The kernel has no room: lost, as they may be anywhere on their way.
            except ConnectionError as exc:
                self._on_error(exc)
                if not again or self._sock.fileno() < 0:
                    return
                again = False  # It was said of an earlier datagram; these were not sent for it.
                continue
            except OSError as exc:
                if cars == 1 and exc.errno == errno.EMSGSIZE and self._whole_above is not None:
                    if len(datagrams[at]) > self._whole_above:
                        at += 1  # Too large for our own network already.
                        continue
                    if again:
                        again = False  # It was said of an earlier datagram.
                        continue
                if cars == 1 or exc.errno not in _NO_TRAINS:
                    self._on_error(exc)
                    return
                alone, refused = at + cars, True
                continue
            if refused:
                refused = False
                self._count_failure()
            at += cars

    @property
    def largest(self) -> int:
        """Bytes of a datagram that may be sent whole; 0 if that cannot be had."""
        return 0 if self._whole_above is None else _LARGEST

    def _mind_size(self, datagrams: Sequence[bytes]) -> None:
        """Forbid to cut datagrams, or allow it again."""
        assert self._whole_above is not None
        size = max(map(len, datagrams), default=0)
        whole = size > self._whole_above
        if whole == self._whole or size <= _ANY_PATH:
            return
        try:
            for level, option in _MTU_DISCOVER[self._sock.family]:
                self._sock.setsockopt(level, option, _PROBE if whole else _USUAL)
            self._whole = whole
        except OSError:
            self._whole_above = None

    def _count_failure(self) -> None:
        """One by one they leave: it is for being a train that this one could not."""
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self._trains = False
            self._again_at = time.monotonic() + RETRY_S

    @staticmethod
    def _alike(datagrams: Sequence[bytes], at: int) -> int:
        """How many from `at` on can go as one: of one size, only the last may be shorter."""
        size = len(datagrams[at])
        end = at + 1
        most = min(len(datagrams), at + min(_MAX_CARS, _MAX_TRAIN // max(size, 1)))
        while end < most and len(datagrams[end]) == size:
            end += 1
        if end < most and 0 < len(datagrams[end]) < size:
            end += 1
        return end - at

    def _send_train(self, cars: Sequence[bytes], address: Address | None, control: Control) -> None:
        how = (*control, (_SOL_UDP, _UDP_SEGMENT, _UINT16.pack(len(cars[0]))))
        if address is None:
            self._sock.sendmsg((b"".join(cars),), how)
        else:
            self._sock.sendmsg((b"".join(cars),), how, 0, address)
        self._failures = 0

    def _send_one(self, data: bytes, address: Address | None, control: Control) -> None:
        if address is None:
            self._sock.send(data)
        elif control:
            self._sock.sendmsg((data,), control, 0, address)
        else:
            self._sock.sendto(data, address)


class TrainSocket:
    """A UDP socket that brings what came at once, by sender.

    Of several addresses of ours, an answer leaves from the one that was asked (on Linux).

    Args:
        sock: Bound or connected, not blocking; this closes it.
        on_datagrams: Called with datagrams of one sender in their order, and its address.
        on_error: Called with what the system reports of earlier datagrams, or of these.
        turn: Bytes to read in one turn of the loop.
        whole_above: As for `TrainSender`.

    Attributes:
        largest: Bytes of a datagram that may be sent whole; 0 if that cannot be had.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_datagrams: OnDatagrams,
        on_error: Callable[[OSError], None],
        turn: int = TURN,
        whole_above: int | None = None,
    ) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_datagrams = on_datagrams
        self._on_error = on_error
        self._turn = turn
        self._sender = TrainSender(sock, on_error, whole_above)
        self.largest = self._sender.largest
        self._plain: DatagramSocket | None = None
        self._pktinfo = _PKTINFO[sock.family]
        self._ways: dict[Address, Control] = {}

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
        if sys.platform != "linux":
            return
        try:
            self._sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError:
            pass  # A kernel before 5.0: they arrive one by one.
        if self._sock.getsockname()[0] in ("0.0.0.0", "::"):
            level, ask, _ = self._pktinfo
            self._sock.setsockopt(level, ask, 1)

    def send_all(self, datagrams: Sequence[bytes], address: Address | None = None) -> None:
        """Send in order, to the connected address if none is given."""
        if not self.closed:
            way = self._ways.get(address, ()) if address is not None else ()
            self._sender.send_all(datagrams, address, way)

    def send_many(self, datagrams: Sequence[tuple[bytes, Address]]) -> None:
        """Send each to its address, in this order."""
        if len(datagrams) == 1:
            ((data, address),) = datagrams
            self.send_all([data], address)
            return
        for address, some in groupby(datagrams, itemgetter(1)):
            self.send_all([data for data, _ in some], address)

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
        asked, _, told = self._pktinfo
        left = self._turn
        while left > 0:
            try:
                size, control, _, source = self._sock.recvmsg_into((_space,), _CONTROL)
            except (BlockingIOError, InterruptedError):
                if left == self._turn:  # Woken for an error that a send was told of.
                    self._loop.call_soon(self._read_again)
                break
            except OSError as exc:
                self._loop.call_soon(self._read_again)
                self._on_error(exc)
                if self.closed:
                    return
                left -= self._turn // 8
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
                elif (level, kind) == (asked, told):
                    self._learn_way(source, value)
            if car >= size:
                came.append(bytes(_view[:size]))
            else:
                came += [bytes(_view[at : min(at + car, size)]) for at in range(0, size, car)]
        if came:
            self._on_datagrams(came, sender or ())

    def _read_again(self) -> None:
        """After an error of the socket: libuv stops to look at it then."""
        if not self.closed:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_reader(self._sock.fileno(), self._read)

    def _learn_way(self, source: Address, info: bytes) -> None:
        level, _, kind = self._pktinfo
        if level == socket.IPPROTO_IP:
            way = bytes(4) + info[4:8] + bytes(4)
        elif info[:2] == b"\xfe\x80":
            way = info  # An address of one interface alone.
        else:
            way = info[:16] + bytes(4)
        known = self._ways.get(source)
        if known is None or known[0][2] != way:
            self._ways[source] = ((level, kind, way),)
            if len(self._ways) > _MAX_WAYS:
                del self._ways[next(iter(self._ways))]
