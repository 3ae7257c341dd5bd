"""Tunnels: many streams through a hole, by KCP with a mux on it or by QUIC.

The proxy's side is the server of the tunnel and the visitor's side its client, whoever knocked.

Source: frp `client/visitor/xtcp.go` and `client/proxy/xtcp.go`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from pyfrp.errors import LinkError, MuxError, PeerClosed
from pyfrp.nathole.hole import Hole
from pyfrp.nathole.options import PeerOptions
from pyfrp.net.endpoint import Endpoint, format_address
from pyfrp.net.kcp import KcpEndpoint
from pyfrp.net.mux import MuxStream, MuxTransport

KCP = "kcp"
QUIC_HINT = 'pip install "pyfrp-tunnel[quic]", or set protocol = "kcp" in the visitor'
CONV = 1
KEEPALIVE_S = 10.0

OnStream = Callable[[Endpoint], None]
Report = Callable[[BaseException, str], None]


class Tunnel(Protocol):
    """One side of a tunnel; `ended` is settled with the reason when it is gone."""

    ended: asyncio.Future[Exception]

    def open(self) -> Endpoint:
        """Open a stream, paused. Raises LinkError."""
        ...

    def close(self) -> None:
        """End it, with every stream. Idempotent."""
        ...


async def make_tunnel(
    hole: Hole,
    protocol: str,
    options: PeerOptions,
    *,
    on_stream: OnStream | None,
    report: Report,
) -> Tunnel:
    """Make a tunnel of a hole, which belongs to it from here on.

    Args:
        protocol: `kcp`; everything else means `quic`, as in frp.
        on_stream: Called with each stream, paused, that the peer opens: the proxy's side. None for
            the visitor's.

    Raises:
        LinkError: when the peer does not answer, or QUIC is not installed. The hole is closed then.
    """
    try:
        if protocol == KCP:
            return KcpTunnel(hole, on_stream=on_stream, report=report)
        return await _quic_tunnel(hole, options, on_stream=on_stream, report=report)
    except BaseException:
        hole.outlet.close()
        raise


class KcpTunnel:
    """A yamux session on a KCP session.

    Raises:
        LinkError: the system does not let us reach the peer.
    """

    def __init__(self, hole: Hole, *, on_stream: OnStream | None, report: Report) -> None:
        outlet = hole.outlet
        try:
            outlet.connect(hole.peer)
        except OSError as exc:
            raise LinkError(f"dial udp error: {exc}") from exc
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Exception] = loop.create_future()
        link = KcpEndpoint(outlet, conv=CONV, info=hole.info())
        came: list[bytes] = []

        def read(data: bytes, source: tuple[str, int]) -> None:
            if not hole.on_knock(data):
                if not came:
                    loop.call_soon(take)
                came.append(data)

        def take() -> None:
            # What came within a turn is read at once, and acknowledged at once.
            datagrams = came.copy()
            came.clear()
            link.datagrams_received(datagrams)

        outlet.reader = read
        outlet.on_error = link.error_received
        self._mux = MuxTransport(
            link,
            client=on_stream is None,
            on_stream=None if on_stream is None else _held(on_stream),
            on_lost=self._lose,
            keepalive_s=KEEPALIVE_S,
            on_error=report,
        )
        link.resume_reading()

    def open(self) -> Endpoint:
        stream = self._mux.open()
        stream.hold()
        return stream

    def close(self) -> None:
        self._mux.close(PeerClosed("the tunnel was closed"))

    def _lose(self, cause: LinkError | MuxError) -> None:
        if not self.ended.done():
            self.ended.set_result(cause)


def _held(on_stream: OnStream) -> Callable[[MuxStream], None]:
    def take(stream: MuxStream) -> None:
        stream.hold()
        on_stream(stream)

    return take


async def _quic_tunnel(
    hole: Hole, options: PeerOptions, *, on_stream: OnStream | None, report: Report
) -> Tunnel:
    """A QUIC connection, its handshake done."""
    try:
        from pyfrp.net.quic import QuicSession
        from pyfrp.net.quic_tls import peer_setup
    except ImportError as exc:
        raise LinkError(f"QUIC needs the package aioquic: {QUIC_HINT}") from exc
    outlet = hole.outlet
    try:
        outlet.connect(hole.peer)
    except OSError as exc:
        raise LinkError(f"dial quic error: {exc}") from exc
    session = QuicSession(
        outlet,
        hole.peer,
        setup=peer_setup(
            client=on_stream is None,
            name=format_address(hole.peer),
            keepalive_s=options.quic_keepalive_s,
            idle_s=options.quic_idle_s,
        ),
        info=hole.info(),
        on_stream=on_stream,
        report=report,
    )

    def read(data: bytes, source: tuple[str, int]) -> None:
        if not hole.on_knock(data):
            session.datagram_received(data)

    outlet.reader = read
    outlet.on_error = session.error_received
    await session.ready()
    return session
