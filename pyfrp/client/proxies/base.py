"""What all proxies of a client have in common: their state, and their way to the local service."""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pyfrp.errors import DialError
from pyfrp.net.bridge import Bridge
from pyfrp.net.datagrams import Complaints
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import Endpoint, format_address
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import NewProxy, StartWorkConn

if TYPE_CHECKING:
    from pyfrp.client.control import Control
    from pyfrp.client.health import HealthMonitor
    from pyfrp.config.proxies import ProxyBase
    from pyfrp.net.limit import Limiter
    from pyfrp.plugins.base import Plugin

LOCAL_DIAL_S = 10.0  # frp `client/proxy/proxy.go`.
ANSWER_S = 20.0  # An unanswered NewProxy is sent again after this (frp `proxy_wrapper.go`) ...
RETRY_S = 30.0  # ... and a refused one after this.


class Phase(Enum):
    """frp's words for where a proxy stands (`client/proxy/proxy_wrapper.go`)."""

    NEW = "new"
    WAIT_START = "wait start"
    START_ERROR = "start error"
    RUNNING = "running"
    CHECK_FAILED = "check failed"
    CLOSED = "closed"


class ClientProxy:
    """One proxy of the file. Subclasses add their fields to the request.

    Args:
        cfg: Its table of the file.
        name: Its name on the wire.
        token: For the payload's cipher.
        packet_size: Most bytes of a datagram that are carried.
    """

    bridge_type: ClassVar[type[Bridge]] = Bridge

    def __init__(self, cfg: ProxyBase, name: str, token: str, *, packet_size: int = 1500) -> None:
        self.cfg = cfg
        self.name = name
        self.phase = Phase.NEW
        self.error = ""
        self.remote_addr = ""
        self.log: Any = None
        self._since = 0.0
        self.health: HealthMonitor | None = None
        if cfg.health_check.type:
            from pyfrp.client.health import make_monitor  # It reads HTTP, which few clients do.

            self.health = make_monitor(cfg)
        self._packet_size = packet_size
        self._key = derive_key(token) if cfg.transport.use_encryption else None
        self._plugin: Plugin | None = None
        if cfg.plugin is not None:
            from pyfrp.plugins import make_plugin  # Few clients have any.

            self._plugin = make_plugin(cfg.plugin)

    # -- with the server -----------------------------------------------------------------------

    def request(self) -> NewProxy:
        """The message that registers this proxy."""
        cfg = self.cfg
        return NewProxy(
            proxy_name=self.name,
            proxy_type=cfg.type,
            use_encryption=cfg.transport.use_encryption,
            use_compression=cfg.transport.use_compression,
            bandwidth_limit=cfg.transport.bandwidth_limit.strip(),
            bandwidth_limit_mode="server" if cfg.transport.bandwidth_limit_mode == "server" else "",
            metas=dict(cfg.metadatas),
            annotations=dict(cfg.annotations),
            group=cfg.load_balancer.group,
            group_key=cfg.load_balancer.group_key,
        )

    def reset(self, log: Any) -> None:
        """A new session begins; `log` is bound to it."""
        self.log = log.bind(proxy=self.name)
        self._complaints = Complaints(self.log.error)
        self.phase = Phase.NEW
        if self._plugin is not None:
            for warning in self._plugin.warnings():
                self.log.warning(warning)

    def rest(self) -> None:
        """The session has ended."""
        if self._plugin is not None:
            self._plugin.rest()

    def due(self, now: float) -> float:
        """When something is to be sent (again), a request or a withdrawal; infinity for never."""
        if self._is_sick:
            return now if self.phase in (Phase.RUNNING, Phase.WAIT_START) else float("inf")
        if self.phase in (Phase.NEW, Phase.CHECK_FAILED):
            return now
        if self.phase is Phase.WAIT_START:
            return self._since + ANSWER_S
        if self.phase is Phase.START_ERROR:
            return self._since + RETRY_S
        return float("inf")

    def withdraw(self) -> bool:
        """Whether what is due is to have the server close this proxy, for its service is dead."""
        if not self._is_sick:
            return False
        self.phase = Phase.CHECK_FAILED
        return True

    @property
    def _is_sick(self) -> bool:
        return self.health is not None and not self.health.healthy

    def requested(self, now: float) -> None:
        self.phase = Phase.WAIT_START
        self._since = now

    def answered(self, remote_addr: str, error: str, now: float) -> None:
        """The server's answer; one that nobody waits for is ignored."""
        if self.phase is not Phase.WAIT_START:
            return
        self._since = now
        if error:
            self.phase = Phase.START_ERROR
            self.error = error
            self.log.warning(f"start error: {error}")
            return
        self.phase = Phase.RUNNING
        self.error = ""
        self.remote_addr = remote_addr
        self.log.info("start proxy success")

    # -- with the local service ----------------------------------------------------------------

    async def serve(
        self, work: Endpoint, early: bytes, start: StartWorkConn, control: Control
    ) -> None:
        """Join a started work connection, paused, with the local service."""
        cfg = self.cfg
        if self._plugin is not None:
            await self._serve_plugin(self._plugin, work, early, start, control)
            return
        try:
            local, held = await dial_tcp(cfg.local_ip, cfg.local_port, timeout_s=LOCAL_DIAL_S)
        except DialError as exc:
            where = format_address((cfg.local_ip, cfg.local_port))
            self._complaints.tell("service", f"connect to local service [{where}] error: {exc}")
            work.close()
            return
        except BaseException:
            work.abort()
            raise
        try:
            header = self._proxy_header(start)
        except ValueError:
            self._tell_no_header(start)
            local.abort()
            work.close()
            return
        if header:
            local.write(header)
        work, early = self._wrap(work, early)
        bridge = self.bridge_type(
            work,
            local,
            early=early,
            far_early=held.early,
            far_ended=held.ended,
            on_close=control.bridge_closed,
        )
        control.bridges[bridge] = None

    def _proxy_header(self, start: StartWorkConn) -> bytes:
        """What tells the local service who the user is, before any byte of the user's.

        Raises:
            ValueError: the server gave no IP address.
        """
        version = self.cfg.transport.proxy_protocol_version
        if not version or not start.src_addr or not start.src_port:
            return b""
        from pyfrp.wire import proxyproto  # Few services read it.

        # The server names no address of its own to http proxies.
        to = (start.dst_addr or "127.0.0.1", start.dst_port)
        return proxyproto.encode(version, (start.src_addr, start.src_port), to)

    def _tell_no_header(self, start: StartWorkConn) -> None:
        """Without the header the service would take the user's first bytes for one."""
        self.log.error(f"no PROXY header for a caller at [{start.src_addr[:60]}]: no address")

    async def _serve_plugin(
        self, plugin: Plugin, work: Endpoint, early: bytes, start: StartWorkConn, control: Control
    ) -> None:
        from pyfrp.plugins.base import Visit  # Loaded with the plugin.

        work, early = self._wrap(work, early)
        try:
            source = start.src_addr, start.src_port
            try:
                header = self._proxy_header(start)
            except ValueError:
                self._tell_no_header(start)
                work.close()
                return
            await plugin.serve(
                Visit(work, early, self.bridge_type, control, self.log, source, header)
            )
        except BaseException:
            work.abort()
            raise

    def _wrap(self, work: Endpoint, early: bytes) -> tuple[Endpoint, bytes]:
        """Put the layers of this proxy on a work connection; see `wrap_payload`."""
        return wrap_payload(
            work,
            early,
            key=self._key,
            compress=self.cfg.transport.use_compression,
            link_limiter=self._limiter,
        )

    @cached_property
    def _limiter(self) -> Limiter | None:
        """What limits all connections of this proxy; made when the first one comes."""
        transport = self.cfg.transport
        if not transport.bandwidth_limit or transport.bandwidth_limit_mode != "client":
            return None
        from pyfrp.config.validate import parse_bandwidth
        from pyfrp.net.limit import Limiter  # Few proxies have any.

        rate = parse_bandwidth(transport.bandwidth_limit)
        return Limiter(rate) if rate else None
