"""Finding out how the world sees us: our outer addresses, and what the NAT does to them.

Source: frp `pkg/nathole/discovery.go` and `Prepare` in `pkg/nathole/nathole.go`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from pyfrp.errors import DialError, LinkError, RemoteWireError
from pyfrp.nathole.hole import Address, Outlet
from pyfrp.nathole.nat import Nat, classify
from pyfrp.net.datagrams import resolve_one
from pyfrp.net.endpoint import format_address
from pyfrp.wire import stun

ANSWER_S = 3.0
# A question may get lost: asked again after these, within ANSWER_S.
REPEATS_S = (0.5, 1.0)
MAX_LOCAL_IPS = 10
_SIOCGIFADDR = 0x8915  # Linux.


@dataclass(slots=True)
class Prepared:
    """A socket that is ready for punching, and what there is to tell about it."""

    outlet: Outlet
    mapped: list[str]
    assisted: list[str]
    nat: Nat

    def __str__(self) -> str:
        return (
            f"nat type: {self.nat.kind}, behavior: {self.nat.behavior}, "
            f"addresses: {self.mapped}, assistedAddresses: {self.assisted}"
        )


async def prepare(stun_server: str, *, assisted: bool) -> Prepared:
    """Open a socket and find out its outer addresses.

    Args:
        stun_server: `host:port`.
        assisted: Whether the peer may be told the addresses of this machine's interfaces, for two
            machines behind the same NAT.

    Raises:
        LinkError: with frp's text. Nothing stays open.
    """
    try:
        outlet = await Outlet.open()
    except OSError as exc:
        raise LinkError(f"discover error: {exc}") from exc
    try:
        mapped = await discover(outlet, stun_server)
        if len(mapped) < 2:
            raise LinkError("not enough addresses")
        ips = local_ips()
        nat = classify(mapped, ips)
    except (LinkError, ValueError) as exc:
        outlet.close()
        raise LinkError(f"discover error: {exc}") from exc
    except BaseException:
        outlet.close()
        raise
    port = outlet.address[1]
    inner = [format_address((ip, port)) for ip in ips] if assisted else []
    return Prepared(outlet, mapped, inner, nat)


async def discover(outlet: Outlet, stun_server: str) -> list[str]:
    """Ask a STUN server, and its other address if it names one, how they see `outlet`.

    Returns:
        One or two addresses as `ip:port`.

    Raises:
        LinkError: there is no such server, or it does not answer.
    """
    binding = await _ask(outlet, await _server(stun_server))
    found = [format_address(binding.mapped)]
    if binding.other is not None:
        found.append(format_address((await _ask(outlet, binding.other)).mapped))
    return found


async def _server(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise DialError(f"natHoleStunServer {text!r} is not host:port")
    try:
        async with asyncio.timeout(ANSWER_S):
            address = await resolve_one(host.strip("[]"), int(port))
    except TimeoutError:
        raise DialError(f"lookup {host}: no answer of the resolver") from None
    return address


async def _ask(outlet: Outlet, server: Address) -> stun.Binding:
    if ":" in server[0]:
        raise DialError(f"the STUN server {format_address(server)} has no IPv4 address")
    answered: asyncio.Future[stun.Binding] = asyncio.get_running_loop().create_future()
    transaction = os.urandom(stun.TRANSACTION_SIZE)

    def read(data: bytes, source: Address) -> None:
        try:
            binding = stun.decode_response(data)
        except RemoteWireError as exc:
            # Of anybody; an answer that refuses carries our number too.
            if data[8:20] == transaction and not answered.done():
                answered.set_exception(LinkError(str(exc)))
            return
        if binding.transaction == transaction and not answered.done():
            answered.set_result(binding)

    outlet.reader = read
    request = stun.encode_request(transaction)
    try:
        async with asyncio.timeout(ANSWER_S):
            for wait in REPEATS_S:
                outlet.send(request, server)
                done, _ = await asyncio.wait([answered], timeout=wait)
                if done:
                    break
            else:
                outlet.send(request, server)
            return await answered
    except TimeoutError:
        raise LinkError("wait response from stun server timeout") from None
    finally:
        answered.cancel()


def local_ips() -> list[str]:
    """IPv4 addresses of this machine's interfaces, at most ten, without loopback and link-local."""
    found = dict.fromkeys((*_interface_ips(), *_route_ip()))
    return [ip for ip in found if _is_useful(ip)][:MAX_LOCAL_IPS]


def _is_useful(ip: str) -> bool:
    address = IPv4Address(ip)
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def _interface_ips() -> Sequence[str]:
    """The first address of each interface, where the system tells."""
    if not sys.platform.startswith("linux"):
        return ()
    import fcntl

    found = []
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # An interface without an IPv4 address.
            found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _route_ip() -> Sequence[str]:
    """The address that leads out into the world; nothing is sent to find out."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
            return (str(sock.getsockname()[0]),)
        except OSError:
            return ()  # A machine without a way out.
