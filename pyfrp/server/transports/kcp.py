"""KCP: sessions on one UDP port, told apart by the client's address.

Anybody can send a datagram in anybody's name. So one makes a session only if it is the first that
a client sends, only so many sessions may not have logged in (a newer one takes the place of the
oldest that has not even shown that it gets our answers), and each holds little until then.

Source: xtaci/kcp-go `sess.go` (Listener.packetInput), which makes a session of any datagram.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyfrp.errors import ConfigError, DialError
from pyfrp.log import get_logger
from pyfrp.net.certs import ServerContext
from pyfrp.net.dial import resolve
from pyfrp.net.endpoint import format_address
from pyfrp.net.kcp import KcpEndpoint
from pyfrp.net.sockets import bind_datagrams, bind_error
from pyfrp.net.trains import Address, TrainSocket
from pyfrp.wire import kcp
from pyfrp.wire.kcp_session import farewell

if TYPE_CHECKING:
    from pyfrp.config import ServerConfig
    from pyfrp.server.links import LinkAcceptor

SEND_WINDOW, WINDOW = 1024, 1024  # frp `pkg/util/net/kcp.go`, ListenKcp.
# Sessions that have not logged in. Each may hold a hundred kilobytes; TCP has room for others then.
MAX_UNKNOWN = 256
# Without a mux nothing on top would notice that an idle peer has gone.
KEEPALIVE_S = 15.0
SETTLE_S = 0.5  # For what is on its way when the server ends.
# How long a client that logged in has to show that it is there, when another begins in its place.
CHALLENGE_S = 0.5


class _Peer(KcpEndpoint):
    """The session of one address.

    Attributes:
        known: It logged in, or served a login otherwise.
    """

    def __init__(self, listener: KcpListener, sock: TrainSocket, address: Address, conv: int):
        self.conv = conv
        self.known = False
        self.challenged_at: float | None = None
        super().__init__(
            _Outlet(listener, self, sock, address),
            conv=conv,
            info={"peername": address, "sockname": sock.address},
            send_window=SEND_WINDOW,
            window=WINDOW,
            skew=secrets.randbits(32),
            keepalive_s=listener.keepalive_s,
        )


class _Outlet:
    """What a session sees of the port."""

    def __init__(
        self, listener: KcpListener, peer: _Peer, sock: TrainSocket, address: Address
    ) -> None:
        self._listener = listener
        self._peer = peer
        self._sock = sock
        self._address = address

    def send_all(self, datagrams: Sequence[bytes]) -> None:
        self._sock.send_all(datagrams, self._address)

    def close(self) -> None:
        self._listener.forget(self._address, self._peer)


class KcpListener:
    """The sessions of a UDP port.

    Args:
        acceptor: Gets each session as an endpoint.
        keepalive_s: As for `KcpEndpoint`.
    """

    def __init__(self, acceptor: LinkAcceptor, *, keepalive_s: float) -> None:
        self.keepalive_s = keepalive_s
        self.sessions: dict[Address, _Peer] = {}
        self._acceptor = acceptor
        self._clock = asyncio.get_running_loop().time
        self._unknown: dict[_Peer, None] = {}
        self._sockets: list[TrainSocket] = []
        self._closing = False

    async def open(self, host: str, port: int) -> None:
        """Listen on a numeric address too. Raises OSError."""

        def read(datagrams: list[bytes], address: Address) -> None:
            self._read(sock, datagrams, address)

        # What the system says of one client's network is no matter of the others.
        sock = TrainSocket(bind_datagrams(host, port), on_datagrams=read, on_error=lambda exc: None)
        self._sockets.append(sock)
        await sock.attach()

    def close(self) -> None:
        """Take nobody new. Those who are here keep the port until they have gone."""
        self._closing = True
        if not self.sessions:
            for sock in self._sockets:
                sock.close()

    async def settle(self) -> None:
        """At the end, wait a moment for what was written to arrive: UDP sends nothing after it."""
        async with asyncio.TaskGroup() as group:
            for peer in self.sessions.values():
                group.create_task(peer.settle(SETTLE_S), name="settle")
        for peer in list(self.sessions.values()):
            if peer.is_closing():
                peer.abort()

    def forget(self, address: Address, peer: _Peer) -> None:
        """A session has ended."""
        self._unknown.pop(peer, None)
        if self.sessions.get(address) is peer:
            del self.sessions[address]
            if self._closing:
                self.close()

    # -- datagrams -----------------------------------------------------------------------------

    def _read(self, sock: TrainSocket, datagrams: list[bytes], address: Address) -> None:
        peer = self.sessions.get(address)
        if peer is not None:
            conv = kcp.conversation(datagrams[0])
            if conv == peer.conv or conv is None:
                peer.datagrams_received(datagrams)
                return
            # One in the client's name, perhaps, just ahead of many of its own.
            own = [data for data in datagrams if kcp.conversation(data) == peer.conv]
            if own:
                peer.datagrams_received(own)
                return
        if self._closing:
            return
        for at, datagram in enumerate(datagrams):
            first = kcp.first_segment(datagram)
            if first is None:
                continue
            if peer is not None:
                if not first.begins or not self._gives_way(peer):
                    return
                peer.abort()
            if first.begins:
                self._begin(sock, datagrams[at:], address, first.conv)
                return
            if first.cmd == kcp.ASK_WINDOW and not first.una:
                sock.send_all([_welcome(first.conv)], address)
            elif first.una and first.cmd != kcp.END:
                # Of a session that was here once: its client need not wait to find out.
                sock.send_all([farewell(first.conv)], address)

    def _gives_way(self, peer: _Peer) -> bool:
        """Whether a session ends because its address begins another.

        One that logged in is asked first: else a single forged datagram could end it.
        """
        now = self._clock()
        asked = peer.challenged_at
        if not peer.known or (
            asked is not None and peer.session.heard < asked <= now - CHALLENGE_S
        ):
            return True
        if asked is None or peer.session.heard >= asked:
            peer.challenged_at = now
            peer.ask()
        return False

    def _begin(
        self, sock: TrainSocket, datagrams: list[bytes], address: Address, conv: int
    ) -> None:
        if len(self._unknown) >= MAX_UNKNOWN:
            oldest = next(iter(self._unknown))
            unproven = (peer for peer in self._unknown if not peer.session.proven)
            next(unproven, oldest).abort()
        peer = _Peer(self, sock, address, conv)
        self.sessions[address] = peer
        self._unknown[peer] = None
        peer.datagrams_received(datagrams)
        self._acceptor.adopt(peer, on_known=lambda: self._on_known(peer))

    def _on_known(self, peer: _Peer) -> None:
        if not peer.is_closing():  # Else it counts until it has gone.
            peer.known = True
            self._unknown.pop(peer, None)


def _welcome(conv: int) -> bytes:
    """The answer to a client that asks whether anybody is here, before it begins."""
    return kcp.encode_segments([kcp.Segment(conv, kcp.TELL_WINDOW, wnd=WINDOW)])


async def listen(cfg: ServerConfig, acceptor: LinkAcceptor, context: ServerContext) -> KcpListener:
    """Listen on `kcpBindPort`.

    Raises:
        ConfigError: the port cannot be had.
    """
    address = cfg.bind_addr, cfg.kcp_bind_port
    shown = format_address(address)
    listener = KcpListener(acceptor, keepalive_s=0.0 if cfg.transport.tcp_mux else KEEPALIVE_S)
    try:
        for host, port in await resolve(*address):
            await listener.open(host, port)
    except (OSError, DialError) as exc:
        listener.close()
        reason = bind_error(*address, exc, "udp") if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"listen on kcp udp address {shown} error: {reason}") from exc
    get_logger().info(f"frps kcp listen on udp {shown}")
    return listener
