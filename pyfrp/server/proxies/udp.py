"""Proxies of type udp: a port on the server, and one work connection for all users."""

from __future__ import annotations

import asyncio
from typing import Any

from pyfrp.errors import IdleTimeout, LinkError, LocalWireError, RefusedError
from pyfrp.net.datagrams import Complaints, DatagramSocket, address_of, bind_udp, user_of
from pyfrp.net.packets import QUEUE, PacketConn
from pyfrp.server.proxies.base import ServerProxy, bind_first
from pyfrp.wire.datagram import encode_packet, user_part
from pyfrp.wire.messages import Message, UDPPacket

START_S = 0.5  # A client that has not read our answer yet closes the work connection.
RETRY_S = 1.0  # Between attempts to have a work connection that came to nothing.
SILENCE_S = 60.0  # A client pings every 30 s; a work connection without that is dead.


class UDPProxy(ServerProxy):
    """Source: frp `server/proxy/udp.go` (times, sizes), `pkg/proto/udp/udp.go`."""

    counts_ports = 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._socket: DatagramSocket | None = None
        self._port = 0
        self._conn: PacketConn | None = None
        self._task: asyncio.Task[Any] | None = None
        self._closed = False
        self._waiting: list[bytes] = []  # Frames that came while there was no work connection.
        self._size = self.server.udp_packet_size
        self._complaints = Complaints(self.log.warning)

    async def start(self) -> str:
        server = self.server
        wanted = self.wanted.remote_port
        try:
            ports = server.udp_ports.candidates(self.name, wanted, server.clock())
            sock, self._port = await bind_first(
                lambda port: bind_udp(server.proxy_bind_addr, port), ports, fixed=bool(wanted)
            )
        except RefusedError as exc:
            raise RefusedError(f"acquire port {wanted} error: {exc}") from exc
        server.udp_ports.take(self.name, self._port)
        self._socket = DatagramSocket(sock, on_datagram=self._from_user, on_error=self._failed)
        try:
            await self._socket.attach()
        except OSError as exc:
            self.close()
            raise RefusedError(f"acquire port {wanted} error: port unavailable") from exc
        except BaseException:
            self.close()
            raise
        if self._closed:
            raise RefusedError("the server is stopping")
        self.log.info(f"udp proxy listen port [{self._port}]")
        self.scope.spawn(self._serve(), name=f"work connection of {self.name}")
        return f":{self._port}"

    def close(self, *, lost: bool = False) -> None:
        self._closed = True
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        self.server.udp_ports.release(self.name, self._port, self.server.clock())
        self._waiting.clear()
        if self._conn is not None:
            if lost:
                self._conn.abort()
            else:
                self._conn.close()
            self._conn = None
        if self._task is not None:
            self._task.cancel()

    # -- the work connection -------------------------------------------------------------------

    async def _serve(self) -> None:
        """Have a work connection as long as the proxy lasts."""
        if self._closed:
            return
        self._task = asyncio.current_task()
        await asyncio.sleep(START_S)
        clock = self.server.clock
        while True:
            try:
                work, early = await self.open_work(("", 0))
            except LinkError as exc:
                self.log.warning(str(exc))
                await asyncio.sleep(RETRY_S)
                continue
            began = clock()
            conn = self._conn = PacketConn(work, early, on_message=self._from_client)
            try:
                waiting, self._waiting = self._waiting, []
                for frame in waiting:
                    conn.send(frame)
                cause = await self._watch(conn)
            finally:
                self._conn = None
                if not conn.ended.done():
                    conn.abort()
            self.log.warning(f"read from workConn for udp error: {cause}")
            if clock() - began < RETRY_S:
                # A client that takes no work connections must not be asked as fast as it can.
                await asyncio.sleep(RETRY_S)

    async def _watch(self, conn: PacketConn) -> Exception:
        """Wait for the end of a work connection, and be it for silence."""
        clock = asyncio.get_running_loop().time
        while not conn.ended.done():
            left = conn.heard + SILENCE_S - clock()
            if left <= 0:
                conn.abort(IdleTimeout(f"nothing came for {SILENCE_S:g} s"))
                break
            await asyncio.wait([conn.ended], timeout=left)
        return conn.ended.result()

    # -- datagrams -----------------------------------------------------------------------------

    def _from_user(self, data: bytes, address: tuple[Any, ...]) -> None:
        if len(data) > self._size:
            self._complaints.tell(
                "cut",
                f"a datagram of {len(data)} bytes from a user was cut: udpPacketSize is "
                f"{self._size}, raise it on both sides",
            )
            data = data[: self._size]
        try:
            frame = encode_packet(data, user_part(*user_of(address)))
        except LocalWireError as exc:
            self._complaints.tell("long", f"a datagram of a user was dropped: {exc}")
            return
        conn = self._conn
        if conn is not None:
            if conn.send(frame):
                return
        elif len(self._waiting) < QUEUE:
            self._waiting.append(frame)
            return
        self._complaints.tell(
            "full", "datagrams of users are dropped: the client does not take them as fast"
        )

    def _from_client(self, msg: Message) -> None:
        if not isinstance(msg, UDPPacket) or self._socket is None:
            return  # A ping counted by coming.
        try:
            if msg.remote_addr is None:
                raise ValueError("no address")
            address = address_of(msg.remote_addr, self._socket.family)
        except ValueError as exc:
            self._complaints.tell("address", f"the client answers a user with {exc}")
            return
        self._socket.send(msg.content, address)

    def _failed(self, exc: OSError) -> None:
        # One user's network; the others are served on.
        self.log.debug(f"a datagram to or from a user was lost: {exc}")
