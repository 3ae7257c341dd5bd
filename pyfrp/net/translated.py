"""Datagrams in messages between two connections that write messages differently.

Source: frp `server/proxy/proxy.go` of 0.70 (`joinSUDPMessageBridge`).
"""

from __future__ import annotations

from pyfrp.errors import BadMessage, LocalWireError, RemoteWireError
from pyfrp.net.datagrams import Complaints
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.filters import FilterEndpoint
from pyfrp.wire.messages import Ping, UDPPacket
from pyfrp.wire.version import Version


def translated(
    visitor: Endpoint, early: bytes, theirs: Version, ours: Version, *, complaints: Complaints
) -> Endpoint:
    """A visitor's connection as one whose messages are written as the proxy's client does.

    Args:
        visitor: Paused.
        early: Bytes already read from it.
        theirs, ours: The visitor's version, and the proxy's.
        complaints: Says which datagrams are lost.
    """
    return _Translated(
        visitor,
        outward=_Translation(ours, theirs, complaints, pings=True),
        # A proxy's client takes whatever comes for a datagram, and a ping for a fault.
        inward=_Translation(theirs, ours, complaints, pings=False),
        early=early,
    )


class _Translation:
    """One direction. Holds at most one incomplete message.

    Args:
        pings: Whether heartbeats pass; else they are left out.
    """

    def __init__(
        self, source: Version, target: Version, complaints: Complaints, *, pings: bool
    ) -> None:
        self._decoder = source.decoder()
        self._encode = target.encode
        self._complaints = complaints
        self._pings = pings

    def __call__(self, data: bytes) -> bytes:
        """Write again every message that `data` completes. Raises RemoteWireError."""
        decoder = self._decoder
        decoder.feed(data)
        out: list[bytes] = []
        while (msg := decoder.next()) is not None:
            if isinstance(msg, UDPPacket):
                try:
                    out.append(self._encode(msg))
                except LocalWireError as exc:
                    self._complaints.tell("long", f"a datagram was dropped: {exc}")
            elif not isinstance(msg, Ping):
                raise BadMessage(f"{type(msg).__name__} among datagrams")
            elif self._pings:
                out.append(self._encode(msg))
        return b"".join(out)


class _Translated(FilterEndpoint):
    """Here what is written comes from a peer, too, and may be wrong."""

    def write(self, data: bytes) -> None:
        try:
            changed = self._outward(data)
        except RemoteWireError:
            self._link.abort()
            return
        if changed:
            self._link.write(changed)
