"""From an accepted connection to its first message.

A link is what a client dialled: TCP or another transport, perhaps TLS on it, perhaps a mux on that.
Whatever it turns out to be, it has `HANDSHAKE_S` to say who it is, and only so many may be on the
way at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pyfrp.errors import (
    LinkError,
    MuxError,
    PeerClosed,
    PyfrpError,
    RefusedError,
    WireError,
)
from pyfrp.net.byteconn import ByteConn
from pyfrp.net.certs import ServerContext
from pyfrp.net.conn import MessageConn
from pyfrp.net.datagrams import Complaints
from pyfrp.net.endpoint import Addressed, Endpoint, format_address, peer_address, tune
from pyfrp.net.handshake import answer_hello
from pyfrp.net.listen import Sniffer
from pyfrp.net.mux import MuxTransport
from pyfrp.net.scope import Scope
from pyfrp.server.transports import LAYERS, SECURE
from pyfrp.wire.messages import Message
from pyfrp.wire.sniff import Kind, classify
from pyfrp.wire.version import Hello

HANDSHAKE_S = (
    10.0  # For each step up to the first message (frp `server/service.go`, connReadTimeout).
)
# Connections that have not said who they are, in all. When there are more, the oldest goes: a flood
# cannot keep a client with a quick login out.
MAX_UNKNOWN = 1024
# Streams of one link whose first message is out. A client that logged in brings 256 at once over a
# mux (yamux' AcceptBacklog), and over QUIC a thousand in one turn of the loop, when as many users
# come at once.
MAX_OPENING = 4096
# Streams in all of a link that has not logged in, which needs one: each costs a line in the log.
MAX_STREAMS_UNKNOWN = 8


class Carrier(Addressed, Protocol):
    """Brings the streams of a link: a mux, or a transport that has streams of its own."""

    def heard(self) -> float:
        """When anything last came, in the loop's time."""
        ...

    def abort(self, cause: LinkError) -> None:
        """Drop the link, with every stream on it."""
        ...


class Stream(Endpoint, Protocol):
    """One of them, fresh."""

    def hold(self) -> None:
        """Keep what comes until there is a reader."""
        ...


class Link:
    """The connection below one or many streams of a client.

    Attributes:
        endpoint: What carries the bytes of this client alone; None where a carrier has no such
            thing.
        carrier: What brings streams, once there is one.
        trusted: Set once a client has logged in over it.
        on_known: Called once it has said who it is, or has ended.
    """

    def __init__(self, endpoint: Endpoint | None, clock: Callable[[], float]) -> None:
        self.endpoint = endpoint
        self.carrier: Carrier | None = None
        self.trusted = False
        self.on_known: Callable[[], None] | None = None
        self.opening = 0
        self.opened = 0
        self._clock = clock
        self._heard = clock()

    def heard(self) -> float:
        """When the link last brought anything."""
        return self.carrier.heard() if self.carrier is not None else self._heard

    def touch(self) -> None:
        self._heard = self._clock()

    def peer(self) -> str:
        """The client's address, for people."""
        below = self.endpoint or self.carrier
        return format_address(peer_address(below)) if below is not None else ""

    def drop(self) -> None:
        """Abort the link and every stream on it."""
        if self.carrier is not None:
            self.carrier.abort(LinkError("the session ended"))
        elif self.endpoint is not None:
            self.endpoint.abort()


class FirstMessage(Protocol):
    """Takes over a connection whose first message was read."""

    def __call__(self, conn: MessageConn, msg: Message, link: Link) -> Awaitable[None]: ...


class LinkAcceptor:
    """Protocol factory of the bind port.

    Args:
        on_first: Gets each connection's first message; owns the connection from then on.
        on_http, on_https: Get vhost callers that came to the bind port; None where there are none.
        tls: Server side context.
        force_tls: Close what does not speak TLS.
        tcp_mux: Whether links carry a mux.
        log, report: A structlog logger; a sink for unexpected exceptions.
    """

    def __init__(
        self,
        *,
        on_first: FirstMessage,
        on_http: Callable[[asyncio.Transport, bytes], None] | None,
        on_https: Callable[[asyncio.Transport, bytes], None] | None = None,
        tls: ServerContext,
        force_tls: bool,
        tcp_mux: bool,
        mux_keepalive_s: float,
        log: Any,
        report: Callable[[BaseException, str], None],
    ) -> None:
        self._on_first = on_first
        self._on_http = on_http
        self._on_https = on_https
        self._tls = tls
        self._force_tls = force_tls
        self._tcp_mux = tcp_mux
        self._mux_keepalive_s = mux_keepalive_s
        self._log = log
        self._report = report
        self._complaints = Complaints(lambda text: log.warning(text))
        self._scope = Scope(report)
        self._loop = asyncio.get_running_loop()
        # Everything that has not said who it is, oldest first, with the moment it must have by.
        self._unknown: dict[Sniffer | Link, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.links: dict[Link, None] = {}

    def protocol(self) -> Sniffer:
        """For `loop.create_server`."""
        sniffer = Sniffer(
            http_here=self._on_http is not None,
            https_here=self._on_https is not None,
            on_known=self._on_known,
            on_gone=self._known,
        )
        self._expect(sniffer)
        return sniffer

    @property
    def report(self) -> Callable[[BaseException, str], None]:
        """Where unexpected exceptions go, for transports with ports of their own."""
        return self._report

    async def close(self) -> None:
        """Drop every link."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiting in list(self._unknown):
            self._expel(waiting)
        for link in list(self.links):
            link.drop()
        await self._scope.close()

    # -- those who have not said who they are --------------------------------------------------

    def _expect(self, waiting: Sniffer | Link) -> None:
        self._unknown[waiting] = self._loop.time() + HANDSHAKE_S
        if len(self._unknown) > MAX_UNKNOWN:
            self._expel(next(iter(self._unknown)))
        if self._timer is None:
            self._timer = self._loop.call_later(HANDSHAKE_S, self._expire)

    def _known(self, waiting: Sniffer | Link) -> None:
        if self._unknown.pop(waiting, None) is None or not isinstance(waiting, Link):
            return
        if waiting.on_known is not None:
            waiting.on_known()

    def _expel(self, waiting: Sniffer | Link) -> None:
        self._known(waiting)
        if isinstance(waiting, Link):
            waiting.drop()
        else:
            waiting.abort()

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for waiting, deadline in list(self._unknown.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._expire)
                return
            self._expel(waiting)

    # -- links ---------------------------------------------------------------------------------

    def _on_known(self, transport: asyncio.Transport, kind: Kind, early: bytes) -> None:
        if kind is Kind.HTTP and self._on_http is not None:
            self._on_http(transport, early)
            return
        if kind is Kind.HTTPS and self._on_https is not None:
            self._on_https(transport, early)
            return
        tune(transport)
        self._serve(transport, kind, early)

    def adopt(
        self,
        endpoint: Endpoint,
        early: bytes = b"",
        on_known: Callable[[], None] | None = None,
    ) -> None:
        """Serve a connection of any transport, paused, from which `early` was read.

        Args:
            on_known: Called once it has said who it is, or has ended.
        """
        self._serve(endpoint, None, early, on_known)

    def _serve(
        self,
        endpoint: Endpoint,
        kind: Kind | None,
        early: bytes,
        on_known: Callable[[], None] | None = None,
    ) -> None:
        link = Link(endpoint, self._loop.time)
        link.on_known = on_known
        self._expect(link)
        self._scope.spawn(self._open(link, endpoint, kind, early), name="link")

    async def _open(self, link: Link, endpoint: Endpoint, kind: Kind | None, early: bytes) -> None:
        """Find what a connection carries, and its streams."""
        try:
            endpoint, early = await self._unwrap(link, endpoint, kind, early)
        except (LinkError, WireError) as exc:
            self._known(link)
            self._log.debug(f"link refused: {exc}", peer=link.peer())
            link.drop()
            return
        self.links[link] = None
        if not self._tcp_mux:
            await self._converse(link, endpoint, early)
            return
        mux = link.carrier = MuxTransport(
            endpoint,
            client=False,
            on_stream=lambda stream: self.take(link, stream),
            on_lost=lambda cause: self.lost(link, cause),
            keepalive_s=self._mux_keepalive_s,
            on_error=self._report,
        )
        if early:
            mux.data_received(early)
        if not endpoint.is_closing():
            endpoint.resume_reading()

    async def _unwrap(
        self, link: Link, endpoint: Endpoint, kind: Kind | None, early: bytes
    ) -> tuple[Endpoint, bytes]:
        """Take the layers off a connection that are around frp, in whatever order they come.

        Args:
            kind: What its first bytes tell; None if nobody has looked.

        Returns:
            The endpoint of frp's own bytes, paused, and those that were read already.

        Raises:
            LinkError: a layer is broken, missing or not known here.
        """
        taken: set[Kind] = set()
        while True:
            if kind is None:
                kind, endpoint, early = await _look(endpoint, early)
            layer = LAYERS.get(kind)
            if layer is None or kind in taken:
                break
            taken |= SECURE if kind in SECURE else {kind}
            endpoint, early = await layer(endpoint, early, self._tls)
            link.endpoint = endpoint
            if taken >= LAYERS.keys():
                return endpoint, early  # No need to wait for the first bytes.
            kind = None
        if kind is Kind.WEBSOCKET:
            raise LinkError("a websocket in a websocket")
        if self._force_tls and not taken & SECURE:
            self._log.info("link refused: TLS is required", peer=link.peer())
            raise LinkError("TLS is required")
        return endpoint, early

    def carried(self, carrier: Carrier) -> Link:
        """Begin a link of a transport that brings its own streams, to be given to `take`.

        Its owner calls `lost` at the end.
        """
        link = Link(None, self._loop.time)
        link.carrier = carrier
        self._expect(link)
        self.links[link] = None
        return link

    def take(self, link: Link, stream: Stream) -> None:
        """Serve a fresh stream of a link."""
        full = link.opening >= MAX_OPENING if link.trusted else link.opened >= MAX_STREAMS_UNKNOWN
        if full:
            stream.abort()
            return
        link.opening += 1
        link.opened += 1
        stream.hold()
        self._scope.spawn(self._converse(link, stream, b""), name="stream")

    def lost(self, link: Link, cause: Exception) -> None:
        """A link is gone."""
        self._known(link)
        self.links.pop(link, None)
        if isinstance(cause, MuxError):
            text = f"link dropped: {cause}"
            if link.trusted:
                self._log.warning(text, peer=link.peer())
            else:  # Anybody, and as often as he likes.
                self._complaints.tell("dropped", f"{text} (from {link.peer()})")

    async def _converse(self, link: Link, endpoint: Endpoint, early: bytes) -> None:
        """Read the first message of a connection and hand both on."""
        conn = MessageConn(endpoint, early=early, version=None)
        if link.carrier is None:
            conn.on_activity = link.touch
        opening = link.carrier is not None
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                msg = await conn.read()
                if isinstance(msg, Hello):
                    answer_hello(conn, msg)
                    msg = await conn.read()
            if opening:
                link.opening -= 1
                opening = False
            await self._on_first(conn, msg, link)
        except TimeoutError:
            conn.abort()
        except RefusedError as exc:
            peer = format_address(peer_address(endpoint))
            self._log.warning(f"hello refused: {exc}", peer=peer)
            conn.close()
        except WireError as exc:
            peer = format_address(peer_address(endpoint))
            self._log.debug(f"connection closed: {exc}", peer=peer)
            conn.abort()
        except PyfrpError:
            conn.abort()
        except BaseException:
            conn.abort()
            raise
        finally:
            if opening:
                link.opening -= 1
            if link.carrier is None:
                self._known(link)
                self.links.pop(link, None)

    def trust(self, link: Link) -> None:
        """The link belongs to a client that logged in."""
        link.trusted = True
        self._known(link)


async def _look(endpoint: Endpoint, early: bytes) -> tuple[Kind, Endpoint, bytes]:
    """What the first bytes of a connection tell, which are read and given back."""
    conn = ByteConn(endpoint, early=early)
    while (kind := classify(bytes(conn.buffer), http_here=False, https_here=False)) is None:
        if not await conn.more():
            conn.abort()
            raise PeerClosed("the peer closed the connection")
    return kind, *conn.detach()
