"""What all proxies of a server have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from pyfrp.errors import RefusedError
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.payload import wrap_payload
from pyfrp.net.scope import Scope
from pyfrp.server.groups import Entrance, Groups, Member, Open
from pyfrp.server.meetings import Meetings
from pyfrp.server.ports import PortManager
from pyfrp.server.visitors import VisitorManager
from pyfrp.server.workpool import WorkPool
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import NewProxy, StartWorkConn

if TYPE_CHECKING:
    from pyfrp.net.bridge import Carried
    from pyfrp.net.limit import Limiter
    from pyfrp.vhost.frontend import HttpFrontend
    from pyfrp.vhost.https import HttpsMuxer
    from pyfrp.vhost.tcpmux import TcpmuxMuxer

Bound = TypeVar("Bound")


class Surroundings(Protocol):
    """What a proxy may use of the server; all of it is shared."""

    ports: PortManager
    groups: Groups
    visitors: VisitorManager
    meetings: Meetings
    udp_ports: PortManager
    udp_packet_size: int
    http: HttpFrontend | None
    https: HttpsMuxer | None
    tcpmux: TcpmuxMuxer | None
    proxy_bind_addr: str
    http_port: int
    https_port: int
    tcpmux_port: int
    sub_domain_host: str
    token: str
    keepalive_s: float
    bridges: dict[Carried, None]

    def clock(self) -> float: ...
    def bridge_closed(self, bridge: Carried) -> None: ...


class ServerProxy:
    """One proxy of one client. Subclasses implement `start` and `close`.

    Args:
        wanted: The client's request.
        server: What is shared by all proxies.
        pool: The client's work connections.
        log: Bound to the run id and the proxy's name.
        scope: For the tasks of this proxy; ends with the control.
        user: Whose client it is; empty for one without.

    Raises:
        RefusedError: for a bandwidth limit that cannot be kept.
    """

    counts_ports: ClassVar[int] = 0  # Against `maxPortsPerClient`.

    def __init__(
        self,
        wanted: NewProxy,
        server: Surroundings,
        pool: WorkPool,
        log: Any,
        scope: Scope,
        user: str = "",
    ) -> None:
        self.name = wanted.proxy_name
        self.wanted = wanted
        self.server = server
        self.log = log
        self.scope = scope
        self.user = user
        self._pool = pool
        self._key = derive_key(server.token) if wanted.use_encryption else None
        self._entrances: list[Entrance[Any]] = []
        self._limiter = _limiter(wanted)

    async def start(self) -> str:
        """Open whatever users come through.

        Returns:
            The remote address to show to the client.

        Raises:
            RefusedError: with frp's text. Nothing is left open then.
        """
        raise NotImplementedError

    def close(self, *, lost: bool = False) -> None:
        """Take no more users; those who are connected stay. Idempotent.

        Args:
            lost: The client is gone, so nobody should wait for it any longer.
        """
        raise NotImplementedError

    async def enter(
        self,
        member: Member,
        open_door: Open[Member],
        terms: Hashable,
        *,
        mismatch: str = "group params invalid",
    ) -> Entrance[Member]:
        """Take part in what comes through a door: see `Groups.join`.

        Raises:
            RefusedError: when that cannot be; the doors of earlier calls are left, too.
        """
        try:
            entrance = await self.server.groups.join(
                self.wanted, member, open_door, terms, mismatch=mismatch
            )
        except BaseException:
            self.leave()
            raise
        self._entrances.append(entrance)
        return entrance

    def leave(self) -> None:
        """Get no more users through any door. Idempotent."""
        while self._entrances:
            self._entrances.pop().leave()

    async def open_work(
        self, source: tuple[str, int], target: tuple[str, int] = ("", 0)
    ) -> tuple[Endpoint, bytes]:
        """A work connection that was told to start for a user; see `start_work`.

        Returns:
            The endpoint below the payload, paused, and bytes read ahead.
        """
        endpoint = await self.start_work(source, target)
        return wrap_payload(
            endpoint,
            b"",
            key=self._key,
            compress=self.wanted.use_compression,
            payload_limiter=self._limiter,
        )

    async def start_work(
        self, source: tuple[str, int], target: tuple[str, int] = ("", 0)
    ) -> Endpoint:
        """A work connection, paused, that was told to start, without the layers of the payload.

        Args:
            source: The user's address.
            target: Our address that the user came to.

        Raises:
            LinkError: when the client brought no work connection.
        """
        endpoint = await self._pool.take()
        while endpoint.is_closing():  # It ended between the pool and here.
            endpoint = await self._pool.take()
        endpoint.write(
            self._pool.version.encode(
                StartWorkConn(
                    proxy_name=self.name,
                    src_addr=source[0],
                    src_port=source[1],
                    dst_addr=target[0],
                    dst_port=target[1],
                )
            )
        )
        return endpoint


def _limiter(wanted: NewProxy) -> Limiter | None:
    """What limits a proxy that wants that done by the server.

    frp's server takes a limit that it cannot read for none. Its clients send no such thing, and
    whoever asks for a limit relies on it.

    Raises:
        RefusedError: with the text of frp's client.
    """
    if wanted.bandwidth_limit_mode in ("", "client"):
        return None
    if wanted.bandwidth_limit_mode != "server":
        raise RefusedError("bandwidth limit mode should be client or server")
    from pyfrp.config.validate import parse_bandwidth

    try:
        rate = parse_bandwidth(wanted.bandwidth_limit)
    except ValueError as exc:
        raise RefusedError(str(exc)) from exc
    if not rate:
        return None
    from pyfrp.net.limit import Limiter  # Few proxies have any.

    return Limiter(rate)


async def bind_first(
    listen: Callable[[int], Awaitable[Bound]], ports: Sequence[int], *, fixed: bool
) -> tuple[Bound, int]:
    """Bind the first of `ports` that is free on this machine.

    Raises:
        RefusedError: with frp's text for one given port, or for none of several.
    """
    for port in ports:
        try:
            return await listen(port), port
        except OSError:
            continue
    raise RefusedError("port unavailable" if fixed else "no available port")
