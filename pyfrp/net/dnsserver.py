"""Names looked up at a DNS server of the operator's choice (`dnsServer`), not by the system.

As Go's own resolver does, which frp uses then: the system's hosts file first, and names without a
dot with the system's search domains.

Source: frp `pkg/util/net/dns.go`; Go `net/dnsclient_unix.go` (words of the errors, hosts file).
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
from dns._asyncio_backend import Backend  # the public name gives no class to build on

from pyfrp.errors import LookupFailed
from pyfrp.net.endpoint import format_address
from pyfrp.net.sockets import is_numeric

TRY_S = 1.5  # A question that got no answer by then is asked again ...
GIVE_UP_S = 4.5  # ... and again. Before most callers' own deadline, as this error says more.
LAG_S = 0.3  # Some servers swallow questions for one kind of address: the other need not wait.
_RESOLV_CONF = "/etc/resolv.conf"


class DnsServer:
    """Finds addresses by asking one server, over UDP, and over TCP where the answer is too long.

    Args:
        address: Of the server, numeric.
        port: Usually 53.
        hosts: The file of names that need no server; None for the system's.
    """

    def __init__(self, address: str, port: int, *, hosts: Path | None = None) -> None:
        self._where = format_address((address, port))
        self._hosts = hosts or _hosts_file()
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        if os.name == "posix":
            try:
                self._resolver.read_resolv_conf(_RESOLV_CONF)  # For its search domains.
            except dns.exception.DNSException:
                pass  # None, or one without servers: names are complete, then.
        self._resolver.nameservers = [address]
        self._resolver.port = port
        self._resolver.timeout = TRY_S
        self._resolver.lifetime = GIVE_UP_S
        self._resolver.cache = None  # The server behind a name may move at any time.

    async def lookup(self, host: str) -> list[str]:
        """Every address of `host`; those that this machine has no route to come last.

        Raises:
            LookupFailed: with Go's words and what they mean.
        """
        found = self._in_hosts(host)
        if found:
            return found
        answers = await self._ask_both(host)
        addresses = [
            address for answer in answers if isinstance(answer, list) for address in answer
        ]
        if addresses:
            return sorted(addresses, key=_is_out_of_reach)
        reasons = [answer for answer in answers if isinstance(answer, str)]
        reason = reasons[-1] if reasons else "no such host (the name has no address)"
        raise LookupFailed(f"lookup {host} on {self._where}: {reason}")

    async def _ask_both(self, host: str) -> list[list[str] | str]:
        """What the server says about either kind of address, IPv6 first."""
        loop = asyncio.get_running_loop()
        asked = [loop.create_task(self._ask(host, kind), name=kind) for kind in ("AAAA", "A")]
        try:
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            enough = any(isinstance(task.result(), list) and task.result() for task in done)
            await asyncio.wait(asked, timeout=LAG_S if enough else None)
            return [task.result() for task in asked if task.done()]
        finally:
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)

    async def _ask(self, host: str, kind: str) -> list[str] | str:
        """The addresses of one kind, or why there are none."""
        try:
            answer = await self._resolver.resolve(
                host, kind, search=True, raise_on_no_answer=False, backend=_Backend()
            )
        except dns.resolver.NXDOMAIN:
            return "no such host"
        except dns.exception.Timeout:
            return f"no answer within {GIVE_UP_S:g} s; check dnsServer, and that UDP gets there"
        except (dns.resolver.NoNameservers, dns.resolver.YXDOMAIN):
            return "server misbehaving: it refused to answer, or failed to; check dnsServer"
        except (dns.exception.DNSException, UnicodeError, OSError) as exc:
            return f"no name that can be looked up: {exc}"
        wanted = dns.rdatatype.from_text(kind)
        if answer.rrset is None:
            return []
        return [rdata.to_text() for rdata in answer.rrset if rdata.rdtype == wanted]

    def _in_hosts(self, host: str) -> list[str]:
        name = host.rstrip(".").lower()
        found = []
        try:
            text = self._hosts.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""  # There need not be one.
        for line in text.splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            if name in (known.rstrip(".").lower() for known in names) and is_numeric(address):
                found.append(address)
        if not found and (name == "localhost" or name.endswith(".localhost")):
            return ["127.0.0.1", "::1"]  # Never a question for a server (RFC 6761, 6.3).
        return list(dict.fromkeys(found))


class _Backend(Backend):
    """dnspython's own, but no UDP socket stays whose maker was cancelled.

    uvloop goes on to make it, nobody would close it, and its loop cannot end before that.
    """

    async def make_socket(self, af: int, socktype: int, *rest: Any, **options: Any) -> Any:
        make = super().make_socket(af, socktype, *rest, **options)  # type: ignore[no-untyped-call]  # dnspython has it so
        if socktype != socket.SOCK_DGRAM:
            return await make
        making = asyncio.get_running_loop().create_task(make, name="socket")
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait((making,))  # A turn or two: nobody else is waited for.
            if not making.cancelled() and making.exception() is None:
                await making.result().close()
            raise


def _hosts_file() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), r"System32\drivers\etc\hosts")
    return Path("/etc/hosts")


def _is_out_of_reach(address: str) -> bool:
    """Tell whether this machine has no route there; no packet is sent for it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
    except OSError:
        return True
    return False
