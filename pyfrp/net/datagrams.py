"""UDP sockets, and how their addresses travel."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from pyfrp.errors import DialError
from pyfrp.net.dial import resolve
from pyfrp.net.sockets import is_numeric
from pyfrp.wire.messages import UDPAddr

DEFAULT_PACKET_SIZE = 1500
REPEAT_S = 60.0
# Loops close the socket of a transport a turn or two after its end. Whoever closes a proxy and
# opens it again in one breath must get its port.
CLOSING_TURNS = 5
MAX_ZONE = 64  # Characters of an interface's name; Linux allows 15.


def packet_size(configured: int) -> int:
    """Most bytes of a datagram to carry; as in frp, 0 and less stand for the default."""
    return configured if configured > 0 else DEFAULT_PACKET_SIZE


class Complaints:
    """Says each kind of thing at once, and then at most once a minute with its number.

    What goes wrong with one datagram goes wrong with thousands.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._clock = time.monotonic
        self._kinds: dict[str, tuple[float, int]] = {}

    def tell(self, kind: str, text: str) -> None:
        """Args: kind: What counts as the same; one of few."""
        now = self._clock()
        when, count = self._kinds.get(kind, (0.0, 0))
        if now < when:
            self._kinds[kind] = when, count + 1
            return
        self._kinds[kind] = now + REPEAT_S, 0
        self._say(f"{text} (and {count} times before)" if count else text)


# -- addresses ----------------------------------------------------------------------------------


def user_of(address: tuple[Any, ...]) -> tuple[str, int, str]:
    """Address, port and zone of a socket's address. Source: Go `net.UDPAddr`."""
    zone = ""
    if len(address) == 4 and address[3]:
        try:
            zone = socket.if_indextoname(address[3])
        except OSError:
            zone = str(address[3])
    return address[0], address[1], zone


def address_of(user: UDPAddr, family: int) -> tuple[Any, ...]:
    """The address to send to, for a socket of this family.

    A peer's word: a name in it must never reach the resolver, which would stop the loop.

    Raises:
        ValueError: it is none.
    """
    if not is_numeric(user.ip) or not 0 < user.port < 65536:
        raise ValueError("not an address and a port")
    if (":" in user.ip) != (family == socket.AF_INET6):
        raise ValueError("an address of another family than the socket's")
    if family == socket.AF_INET:
        return user.ip, user.port
    scope = 0
    if user.zone:
        if len(user.zone) > MAX_ZONE:
            raise ValueError("a zone that no machine has")
        try:
            scope = int(user.zone) if user.zone.isdecimal() else socket.if_nametoindex(user.zone)
        except (OSError, ValueError) as exc:  # The latter for a NUL in it.
            raise ValueError("a zone that this machine does not have") from exc
        if scope >= 2**32:
            raise ValueError("a zone that no machine has")
    return user.ip, user.port, 0, scope


async def resolve_one(host: str, port: int) -> tuple[str, int]:
    """The address of `host` that datagrams are for; of several an IPv4 one, as Go chooses.

    Nobody answers for those that do not work, so that trying them in turn makes no sense.

    Raises:
        DialError: when the name does not resolve.
    """
    found = await resolve(host, port)
    if not found:
        raise DialError(f"lookup {host}: no address")
    return next((address for address in found if ":" not in address[0]), found[0])


# -- sockets ------------------------------------------------------------------------------------


def _socket(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


async def bind_udp(host: str, port: int) -> socket.socket:
    """A UDP socket on `host:port`.

    Raises:
        OSError: with the system's reason.
    """
    try:
        host, port = await resolve_one(host, port)
    except DialError as exc:
        raise OSError(str(exc)) from exc
    turns = CLOSING_TURNS
    while True:
        try:
            return _bind(host, port)
        except OSError:
            turns -= 1
            if not turns:
                raise
        await asyncio.sleep(0)


def _bind(host: str, port: int) -> socket.socket:
    sock = _socket(host)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def connect_udp(address: tuple[str, int], *, local_ip: str = "") -> socket.socket:
    """A UDP socket whose datagrams go to, and come from, a numeric address only.

    Args:
        local_ip: Our numeric address; by default the system chooses.

    Raises:
        OSError: with the system's reason; descriptors may be used up.
    """
    sock = _socket(address[0])
    try:
        if local_ip:
            sock.bind((local_ip, 0))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class DatagramSocket(asyncio.DatagramProtocol):
    """A UDP socket: the loop reads it, and writes go to the kernel at once.

    A transport would keep what the kernel has no room for, without bound, and drops empty
    datagrams. Here, as in a network, the datagram without room is lost.

    Args:
        sock: Bound or connected, not blocking; this closes it.
        on_datagram: Called with the bytes and the sender's address.
        on_error: Called with what the system reports of earlier datagrams, or of this one.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_datagram: Callable[[bytes, tuple[Any, ...]], None],
        on_error: Callable[[OSError], None],
    ) -> None:
        self.family = sock.family
        self.closed = False
        self._sock = sock
        self._on_datagram = on_datagram
        self._on_error = on_error
        self._transport: asyncio.DatagramTransport | None = None
        self._attaching = False

    async def attach(self) -> None:
        """Start to read. Raises OSError; the socket is closed then."""
        if self.closed:
            return
        self._attaching = True
        loop = asyncio.get_running_loop()
        try:
            await loop.create_datagram_endpoint(lambda: self, sock=self._sock)
        except asyncio.CancelledError:
            self.close()  # uvloop's transport is made all the same, see `connection_made`.
            raise
        except BaseException:
            self.close()
            self._sock.close()
            raise

    def send(self, data: bytes, address: tuple[Any, ...] | None = None) -> None:
        """Send a datagram, to the connected address if none is given."""
        if self.closed:
            return
        try:
            self._send(data, address)
        except BlockingIOError:
            pass  # The kernel has no room: lost, as it may be anywhere on its way.
        except ConnectionError as exc:
            # Said of an earlier datagram; this one was not sent for it.
            try:
                self._send(data, address)
            except OSError:
                self._on_error(exc)
        except OSError as exc:
            self._on_error(exc)

    def connect(self, address: tuple[Any, ...]) -> None:
        """From now on have datagrams of this address only, and its errors. Raises OSError."""
        self._sock.connect(address)

    @property
    def address(self) -> tuple[Any, ...]:
        """Where it is bound. Raises OSError after the end."""
        name: tuple[Any, ...] = self._sock.getsockname()
        return name

    def _send(self, data: bytes, address: tuple[Any, ...] | None) -> None:
        if address is None:
            self._sock.send(data)
        else:
            self._sock.sendto(data, address)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        elif not self._attaching:
            self._sock.close()

    # -- Protocol ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # of datagrams, by the call above
        if self.closed:
            transport.abort()  # type: ignore[attr-defined]  # uvloop's has no common base
        elif os.name == "posix":
            # libuv sets it on sockets that it is given; another program could share the port.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if not self.closed:
            self._on_datagram(data, addr)

    def error_received(self, exc: Exception) -> None:
        if not self.closed and isinstance(exc, OSError):
            self._on_error(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
