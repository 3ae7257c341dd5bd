"""A DNS server that answers from a table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.support.ports import free_port

HOST = "127.0.0.1"
Names = dict[str, list[str]]


class Zone(asyncio.DatagramProtocol):
    """The table, over UDP and TCP.

    Args:
        names: Addresses of each name; changed at any time.

    Attributes:
        silent: Kinds ("A", "AAAA") of questions that get no answer at all.
        rcode: Answers everything with this code.
        truncated: Answers over UDP say that there is more over TCP.
        asked: Name, kind and network of each question.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.port = free_port()
        self.silent: set[str] = set()
        self.rcode: dns.rcode.Rcode | None = None
        self.truncated = False
        self.asked: list[tuple[str, str, str]] = []

    def answer(self, wire: bytes, *, tcp: bool) -> bytes | None:
        question = dns.message.from_wire(wire)
        [asked] = question.question
        kind = dns.rdatatype.to_text(asked.rdtype)
        name = asked.name.to_text(omit_final_dot=True).lower()
        self.asked.append((name, kind, "tcp" if tcp else "udp"))
        if kind in self.silent:
            return None
        reply = dns.message.make_response(question)
        if self.rcode is not None:
            reply.set_rcode(self.rcode)
        elif name not in self.names:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif self.truncated and not tcp:
            reply.flags |= dns.flags.TC
        else:
            fitting = [a for a in self.names[name] if (":" in a) == (kind == "AAAA")]
            if fitting:
                reply.answer.append(dns.rrset.from_text(asked.name, 60, "IN", kind, *fitting))
        return reply.to_wire()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self.answer(data, tcp=False)
        if reply is not None:
            self.transport.sendto(reply, addr)

    async def on_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        reply = self.answer(await reader.readexactly(size), tcp=True)
        if reply is not None:
            writer.write(len(reply).to_bytes(2, "big") + reply)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def zone_of(names: Names) -> AsyncIterator[Zone]:
    """A running server for these names, on loopback."""
    zone = Zone(names)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: zone, local_addr=(HOST, zone.port))
    server = await asyncio.start_server(zone.on_tcp, HOST, zone.port)
    try:
        yield zone
    finally:
        transport.close()
        server.close()
        await server.wait_closed()
