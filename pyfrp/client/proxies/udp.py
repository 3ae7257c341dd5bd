"""Proxies of type udp: one work connection, and a local socket for each user behind it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pyfrp.client.proxies.base import LOCAL_DIAL_S, ClientProxy
from pyfrp.errors import DialError, LocalWireError
from pyfrp.net.datagrams import Complaints, DatagramSocket, connect_udp, resolve_one
from pyfrp.net.endpoint import Endpoint, format_address, peer_address
from pyfrp.net.packets import PacketConn
from pyfrp.net.scope import Scope
from pyfrp.net.sockets import explain, is_numeric
from pyfrp.wire.datagram import encode_packet, user_part
from pyfrp.wire.messages import Message, NewProxy, Ping, StartWorkConn, UDPPacket
from pyfrp.wire.version import V1, Version

if TYPE_CHECKING:
    from pyfrp.client.control import Control
    from pyfrp.config.proxies import UDPProxyConfig

PING_S = 30.0  # The server drops a work connection that is silent for 60 s.
IDLE_S = 30.0  # A user's socket without a datagram either way is closed (frp 0.70; 0.65 one way).
COARSE_S = 1.0  # So much later at most: each look goes over all users.
# Each user takes a descriptor, and who sends with made-up addresses is a thousand users. Those who
# are there keep theirs.
MAX_USERS = 4096
MAX_NAME = 100  # Characters of a user's address; the longest real ones have 60.

User = tuple[str, int, str]


class DatagramProxy(ClientProxy):
    """What udp and sudp share: work connections that carry messages."""

    async def serve(
        self, work: Endpoint, early: bytes, start: StartWorkConn, control: Control
    ) -> None:
        """Carry datagrams until the work connection ends."""
        cfg = self.cfg
        server = format_address(peer_address(work))
        self.log.info(f"incoming a new work connection for {cfg.type} proxy, {server}")
        work, early = self._wrap(work, early)
        relay = UdpRelay(
            (cfg.local_ip, cfg.local_port),
            self._packet_size,
            self.log,
            header_version=cfg.transport.proxy_protocol_version,
            version=control.version,
        )
        control.bridges[relay] = None
        try:
            await relay.run(work, early)
        finally:
            control.bridge_closed(relay)


class UDPProxy(DatagramProxy):
    """Type udp. Source: frp `client/proxy/udp.go`, `pkg/proto/udp/udp.go`."""

    cfg: UDPProxyConfig
    _work: Endpoint | None = None

    def request(self) -> NewProxy:
        msg = super().request()
        msg.remote_port = self.cfg.remote_port
        return msg

    async def serve(
        self, work: Endpoint, early: bytes, start: StartWorkConn, control: Control
    ) -> None:
        """Carry datagrams until the work connection ends, or the server starts another one."""
        if self._work is not None:
            self._work.abort()
        self._work = work
        try:
            await super().serve(work, early, start, control)
        finally:
            if self._work is work:
                self._work = None


class _Local:
    """The local socket of one user."""

    __slots__ = ("heard", "part", "socket")

    def __init__(self, part: bytes) -> None:
        self.part = part
        self.heard = 0.0
        self.socket: DatagramSocket


class UdpRelay:
    """Datagrams between one work connection and the local service.

    Args:
        service: Host, which may be a name, and port.
        packet_size: Most bytes of an answer that are carried.
        header_version: Of the PROXY header before a user's first datagram; empty for none. frp 0.65
            puts it before each, which services take for data; mended in frp 0.67.
        version: How the messages on the work connection are written.
    """

    def __init__(
        self,
        service: tuple[str, int],
        packet_size: int,
        log: Any,
        *,
        header_version: str = "",
        version: Version = V1,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._service = service
        self._size = packet_size
        self._log = log
        self._header_version = header_version
        self._version = version
        self._complaints = Complaints(log.warning)
        self._target: tuple[str, int] | None = None
        self._locals: dict[User | None, _Local] = {}
        self._scope = Scope(self._lost)
        self._conn: PacketConn | None = None
        self._aborted = False
        self._carried = 0

    async def run(self, work: Endpoint, early: bytes) -> None:
        """Serve until the work connection ends. Nothing is left afterwards."""
        try:
            await self._look_up()
            if self._aborted:
                return
            conn = self._conn = PacketConn(
                work, early, on_message=self._from_server, version=self._version
            )
            await self._tend(conn)
            self._log.debug(f"work connection of udp proxy ended: {conn.ended.result()}")
        finally:
            if self._conn is None:
                work.abort()
            elif not self._conn.ended.done():
                self._conn.abort()
            self._drop_users()
            await self._scope.close()

    def carried(self) -> int:
        return self._carried

    def at_rest(self) -> bool:
        """Nobody can tell whether a datagram will be answered: silence has to do."""
        return True

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
        self._aborted = True

    def abort(self) -> None:
        if self._conn is not None:
            self._conn.abort()
        self._aborted = True

    # -- time ----------------------------------------------------------------------------------

    async def _tend(self, conn: PacketConn) -> None:
        """Ping, and let go of users who are idle, until the connection ends."""
        clock = self._loop.time
        ping_at = clock() + PING_S
        while not conn.ended.done():
            now = clock()
            if now >= ping_at:
                conn.send(self._version.encode(Ping()))
                ping_at = now + PING_S
                if not is_numeric(self._service[0]):
                    await self._look_up()
            for user, local in list(self._locals.items()):
                if now - local.heard >= IDLE_S:
                    self._drop(user, local)
            due = min((local.heard + IDLE_S for local in self._locals.values()), default=ping_at)
            # Whoever comes meanwhile is not idle before IDLE_S, which is no less than PING_S.
            wait = max(min(due, ping_at) - now, min(COARSE_S, IDLE_S))
            await asyncio.wait([conn.ended], timeout=wait)

    async def _look_up(self) -> None:
        """Find the service, again for a name: its address may change while we run."""
        try:
            async with asyncio.timeout(LOCAL_DIAL_S):
                target = await resolve_one(*self._service)
        except (DialError, TimeoutError) as exc:
            self._failed(str(exc) or "the resolver does not answer")
            return
        if target != self._target:
            self._drop_users()
            self._target = target

    # -- datagrams -----------------------------------------------------------------------------

    def _from_server(self, msg: Message) -> None:
        if not isinstance(msg, UDPPacket):
            return
        addr = msg.remote_addr
        user = None if addr is None else (addr.ip, addr.port, addr.zone)
        content = msg.content
        local = self._locals.get(user)
        if local is None:
            if self._header_version and user is not None:
                header = self._header(user)
                if header is None:
                    return
                content = header + content
            local = self._open(user)
            if local is None:
                return
        local.heard = self._loop.time()
        self._carried += len(msg.content)
        local.socket.send(content)

    def _header(self, user: User) -> bytes | None:
        """What tells the service who the user is; None, and said so, when that is nobody."""
        from pyfrp.wire import proxyproto  # Few services read it.

        if self._target is None:
            return None  # Said when it was looked up.
        try:
            return proxyproto.encode(self._header_version, user[:2], self._target, datagram=True)
        except ValueError:
            # Without the header the service would take the datagram's first bytes for one.
            self._complaints.tell(
                "header", f"no PROXY header for a user at [{user[0][:60]}]: no address"
            )
            return None

    def _open(self, user: User | None) -> _Local | None:
        """A socket for a user who is new, or has been idle."""
        if self._target is None:
            return None  # Said when it was looked up.
        if user is not None and len(user[0]) + len(user[2]) > MAX_NAME:
            return None  # No address of a user; thousands of these would fill the memory.
        if len(self._locals) >= MAX_USERS:
            self._complaints.tell(
                "users", f"more than {MAX_USERS} users at once: datagrams of others are dropped"
            )
            return None
        try:
            sock = connect_udp(self._target)
        except OSError as exc:
            self._failed(explain(exc))
            return None
        local = _Local(b"" if user is None else user_part(*user))
        local.socket = DatagramSocket(
            sock,
            on_datagram=lambda data, address: self._from_service(local, data),
            on_error=lambda exc: self._broken(user, local, exc),
        )
        self._locals[user] = local
        self._scope.spawn(local.socket.attach(), name="local udp socket")
        return local

    def _from_service(self, local: _Local, data: bytes) -> None:
        if len(data) > self._size:
            self._complaints.tell(
                "cut",
                f"a datagram of {len(data)} bytes from the local service was cut: udpPacketSize "
                f"is {self._size}, raise it on both sides",
            )
            data = data[: self._size]
        local.heard = self._loop.time()
        self._carried += len(data)
        try:
            frame = encode_packet(data, local.part, self._version.frame)
        except LocalWireError as exc:
            self._complaints.tell("long", f"a datagram of the local service was dropped: {exc}")
            return
        if self._conn is not None and not self._conn.send(frame):
            self._complaints.tell(
                "full", "datagrams to users are dropped: the server does not take them as fast"
            )

    # -- ends ----------------------------------------------------------------------------------

    def _broken(self, user: User | None, local: _Local, exc: OSError) -> None:
        """The system says that the service is not there; a new socket may find it again."""
        self._failed(explain(exc))
        self._drop(user, local)

    def _failed(self, reason: str) -> None:
        where = format_address(self._service)
        self._complaints.tell("service", f"connect to local service [{where}] error: {reason}")

    def _lost(self, exc: BaseException, what: str) -> None:
        self._failed(explain(exc) if isinstance(exc, OSError) else f"{type(exc).__name__}: {exc}")

    def _drop(self, user: User | None, local: _Local) -> None:
        local.socket.close()
        if self._locals.get(user) is local:
            del self._locals[user]

    def _drop_users(self) -> None:
        for local in self._locals.values():
            local.socket.close()
        self._locals.clear()
