"""The server: listeners, clients, and what they share."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

from pyfrp.auth import make_verifier
from pyfrp.errors import AuthError, ConfigError, LinkError, RefusedError
from pyfrp.log import get_logger
from pyfrp.net.certs import server_context
from pyfrp.net.conn import MessageConn
from pyfrp.net.datagrams import packet_size
from pyfrp.net.endpoint import format_address, peer_address
from pyfrp.net.expiry import ExpiryWatch
from pyfrp.net.handshake import encrypt_control
from pyfrp.net.listen import listen
from pyfrp.net.scope import Scope
from pyfrp.net.sockets import bind_error
from pyfrp.server.bind import Bound, shares_port
from pyfrp.server.control import Control
from pyfrp.server.groups import Groups
from pyfrp.server.links import Link, LinkAcceptor
from pyfrp.server.meetings import Meetings
from pyfrp.server.ports import PortManager
from pyfrp.server.transports import LISTENERS, Listening
from pyfrp.server.visitors import SHOWN, VisitorManager
from pyfrp.version import FRP_VERSION
from pyfrp.vhost.frontend import HttpFrontend
from pyfrp.wire.messages import (
    Login,
    LoginResp,
    Message,
    NewVisitorConn,
    NewVisitorConnResp,
    NewWorkConn,
    StartWorkConn,
)
from pyfrp.wire.version import V1

if TYPE_CHECKING:
    from pyfrp.config import ServerConfig
    from pyfrp.net.bridge import Carried
    from pyfrp.server.proxies.base import ServerProxy
    from pyfrp.vhost.https import HttpsMuxer
    from pyfrp.vhost.tcpmux import TcpmuxMuxer

RUN_ID_BYTES = 8
# Callers that each bring a new connection, by the dozen at once, share turns of the loop, writes to
# the link and wake-ups (`make bench`, row new-16: a third less CPU than one per turn).
ACCEPT_LANES = 8


class Server:
    """`await start()`, then `await stop()`; between them it serves by itself.

    Args:
        cfg: Completed and checked.
        bound: Listening sockets that were made ahead, from `bind_early`.
    """

    def __init__(self, cfg: ServerConfig, bound: Bound | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.cfg = cfg
        self._bound = bound or {}
        self.log: Any = get_logger()
        self.clock = loop.time
        self.token = cfg.auth.token
        self.verifier = make_verifier(cfg.auth)
        allowed = [ports.bounds for ports in cfg.allow_ports]
        self.ports = PortManager(allowed)
        self.udp_ports = PortManager(allowed)
        self.udp_packet_size = packet_size(cfg.udp_packet_size)
        self.groups = Groups(loop.time)
        self.visitors = VisitorManager()
        self.meetings = Meetings(cfg.nathole_analysis_data_reserve_hours * 3600.0)
        self.proxy_bind_addr = cfg.proxy_bind_addr
        self.http_port = cfg.vhost_http_port
        self.https_port = cfg.vhost_https_port
        self.tcpmux_port = cfg.tcpmux_http_connect_port
        self.sub_domain_host = cfg.sub_domain_host
        self.keepalive_s = float(cfg.transport.tcp_keepalive)
        self.http: HttpFrontend | None = None
        self.https: HttpsMuxer | None = None
        self.tcpmux: TcpmuxMuxer | None = None
        self.bridges: dict[Carried, None] = {}
        self.controls: dict[str, Control] = {}
        self._proxies: dict[str, ServerProxy] = {}
        self._listeners: list[Listening] = []
        self._scope = Scope(self.report)
        self._quiet = asyncio.Event()
        self._acceptor: LinkAcceptor | None = None
        self._expiry = ExpiryWatch(self.log.warning)

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind every listener.

        Raises:
            ConfigError: for a port or certificate that cannot be had; nothing stays bound.
        """
        cfg = self.cfg
        tls = cfg.transport.tls
        context = server_context(tls.cert_file, tls.key_file, tls.trusted_ca_file, state_dir=None)
        if cfg.vhost_http_port:
            self.http = HttpFrontend(
                header_timeout_s=float(cfg.vhost_http_timeout),
                frp_errors=cfg.vhost_http_error_style == "frp",
                not_found_page=cfg.custom_404_page,
                log=self.log,
                scope=self._scope,
            )
        if cfg.vhost_https_port:
            from pyfrp.vhost.https import HttpsMuxer  # few servers have it: not at start-up

            self.https = HttpsMuxer(log=self.log)
        if cfg.tcpmux_http_connect_port:
            from pyfrp.vhost.tcpmux import TcpmuxMuxer

            self.tcpmux = TcpmuxMuxer(
                passthrough=cfg.tcpmux_passthrough,
                not_found_page=cfg.custom_404_page,
                log=self.log,
            )
        shared = shares_port(cfg, cfg.vhost_http_port)
        https_shared = shares_port(cfg, cfg.vhost_https_port)
        self._acceptor = LinkAcceptor(
            on_first=self._on_first,
            on_http=self.http.adopt if self.http is not None and shared else None,
            on_https=self.https.adopt if self.https is not None and https_shared else None,
            tls=context,
            force_tls=tls.force,
            tcp_mux=cfg.transport.tcp_mux,
            mux_keepalive_s=float(cfg.transport.tcp_mux_keepalive_interval),
            log=self.log,
            report=self.report,
        )
        if self.https is not None and https_shared:
            self.https.on_client = self._acceptor.adopt
        try:
            await self._listen(
                self._acceptor.protocol,
                cfg.bind_addr,
                cfg.bind_port,
                links=True,
                lanes=ACCEPT_LANES if shared or https_shared else 1,
            )
            self.log.info(f"frps tcp listen on {format_address((cfg.bind_addr, cfg.bind_port))}")
            for listen_on in LISTENERS:
                listening = await listen_on(cfg, self._acceptor, context)
                if listening is not None:
                    self._listeners.append(listening)
            if self.http is not None:
                address = (cfg.proxy_bind_addr, cfg.vhost_http_port)
                if not shared:
                    await self._listen(self.http.protocol, *address, lanes=ACCEPT_LANES)
                self.log.info(f"http service listen on {format_address(address)}")
            if self.https is not None:
                address = (cfg.proxy_bind_addr, cfg.vhost_https_port)
                if not https_shared:
                    await self._listen(self.https.protocol, *address, lanes=ACCEPT_LANES)
                self.log.info(f"https service listen on {format_address(address)}")
                if https_shared:
                    self.log.info(
                        "bindPort is shared with https: clients whose transport.tls.serverName or "
                        "serverAddr is the domain of an https proxy must send frp's first byte "
                        "(transport.tls.disableCustomTLSFirstByte = false)"
                    )
            if self.tcpmux is not None:
                address = (cfg.proxy_bind_addr, cfg.tcpmux_http_connect_port)
                await self._listen(self.tcpmux.protocol, *address, lanes=ACCEPT_LANES)
                self.log.info(
                    f"tcpmux httpconnect multiplexer listen on {format_address(address)}, "
                    f"passthrough: {str(cfg.tcpmux_passthrough).lower()}"
                )
        except ConfigError:
            await self._close()
            raise
        self.verifier.start(self._scope.spawn, self.log)
        self.log.info("tls certificate", fingerprint=context.fingerprint)
        if context.change:
            self.log.warning(context.change)
        self._expiry.add(context.lifetimes)
        self._expiry.start()
        self.log.info("frps started successfully")

    async def _listen(
        self, factory: Any, host: str, port: int, *, links: bool = False, lanes: int
    ) -> None:
        bound = self._bound.pop((host, port), None)
        try:
            self._listeners.append(
                await listen(
                    factory,
                    host,
                    port,
                    keepalive_s=self.keepalive_s,
                    links=links,
                    lanes=lanes,
                    bound=bound,
                )
            )
        except OSError as exc:
            raise ConfigError(
                f"create server listener error, {bind_error(host, port, exc)}"
            ) from exc

    async def stop(self, grace_s: float) -> None:
        """Take nobody new, let open exchanges and connections finish, then close everything."""
        for listener in self._listeners:
            listener.close()
        self.visitors.close()
        for muxer in (self.https, self.tcpmux):
            if muxer is not None:
                muxer.close()
        for proxy in list(self._proxies.values()):
            if proxy.counts_ports:
                proxy.close()
        for bridge in list(self.bridges):
            if bridge.at_rest():
                bridge.close()
        try:
            async with asyncio.timeout(grace_s):
                if self.http is not None:
                    await self.http.drain()
                while self.bridges:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            self.log.warning(
                "shutdown grace period is over, cutting what is still open",
                connections=len(self.bridges) + (len(self.http) if self.http else 0),
            )
        for listener in self._listeners:
            await listener.settle()
        await self._close()

    async def _close(self) -> None:
        self._expiry.stop()
        for listener in self._listeners:
            listener.close()
        for control in list(self.controls.values()):
            control.close()
        self.meetings.close()
        if self.http is not None:
            self.http.close()
        for muxer in (self.https, self.tcpmux):
            if muxer is not None:
                muxer.close()
        for bridge in list(self.bridges):
            bridge.abort()
        if self._acceptor is not None:
            await self._acceptor.close()
        await self._scope.close()

    def bridge_closed(self, bridge: Carried) -> None:
        self.bridges.pop(bridge, None)
        if not self.bridges:
            self._quiet.set()

    def report(self, exc: BaseException, what: str) -> None:
        """An exception nobody foresaw: say so, and go on serving everybody else."""
        self.log.error(f"internal error in {what}: {type(exc).__name__}: {exc}", exc_info=exc)

    def detail(self, error: str, summary: str) -> str:
        """What a client is told of an error, by `detailedErrorsToClient`."""
        return error if self.cfg.detailed_errors_to_client else summary

    # -- names ---------------------------------------------------------------------------------

    def register(self, proxy: ServerProxy) -> None:
        """Take a proxy's name. Raises RefusedError when somebody has it."""
        if proxy.name in self._proxies:
            raise RefusedError(f"proxy [{proxy.name}] already exists")
        self._proxies[proxy.name] = proxy

    def unregister(self, proxy: ServerProxy) -> None:
        if self._proxies.get(proxy.name) is proxy:
            del self._proxies[proxy.name]

    def forget(self, control: Control) -> None:
        if self.controls.get(control.run_id) is control:
            del self.controls[control.run_id]

    # -- connections ---------------------------------------------------------------------------

    async def _on_first(self, conn: MessageConn, msg: Message, link: Link) -> None:
        if isinstance(msg, Login):
            await self._login(conn, msg, link)
        elif isinstance(msg, NewWorkConn):
            await self._work_conn(conn, msg)
        elif isinstance(msg, NewVisitorConn):
            self._visitor_conn(conn, msg)
        else:
            peer = format_address(peer_address(conn.endpoint))
            self.log.warning(f"error message type for the new connection [{peer}]")
            conn.abort()

    async def _login(self, conn: MessageConn, login: Login, link: Link) -> None:
        peer = format_address(peer_address(conn.endpoint))
        try:
            if conn.version is not V1 and conn.agreement is None:
                raise AuthError("missing v2 crypto negotiation")
            await self.verifier.verify_login(login, int(time.time()))
            self._refuse_twin(login)
        except AuthError as exc:
            self.log.warning(f"register control error: {exc}", peer=peer)
            error = self.detail(str(exc), "register control error")
            conn.write(LoginResp(version=FRP_VERSION, error=error))
            conn.close()
            return
        if conn.ended:
            return  # It gave up meanwhile, and takes nobody's place.
        login.run_id = login.run_id or secrets.token_hex(RUN_ID_BYTES)
        assert self._acceptor is not None
        self._acceptor.trust(link)
        log = self.log.bind(run_id=login.run_id)
        log.info(
            f"client login info: ip [{peer}] version [{login.version}] hostname "
            f"[{login.hostname}] os [{login.os}] arch [{login.arch}]"
        )
        if conn.agreement is not None:
            log.debug(f"wire v2, control connection sealed with {conn.agreement.algorithm}")
        old = self.controls.get(login.run_id)
        if old is not None:
            old.replace(login.run_id)
        conn.write(LoginResp(version=FRP_VERSION, run_id=login.run_id))
        encrypt_control(conn, self.token, server=True)
        control = Control(self, conn, login, drop_link=link.drop, heard=link.heard)
        self.controls[login.run_id] = control
        await control.run()

    def _refuse_twin(self, login: Login) -> None:
        """Refuse a second client of the same user that calls itself the same.

        Source: frp `server/registry/registry.go` of 0.70.
        """
        name, user = login.client_id, login.user
        if name and any(
            (control.client_id, control.user) == (name, user)
            for run_id, control in self.controls.items()
            if run_id != login.run_id
        ):
            raise AuthError(
                f"client_id [{name[:SHOWN]}] for user [{user[:SHOWN]}] is already online"
            )

    async def _work_conn(self, conn: MessageConn, msg: NewWorkConn) -> None:
        control = self.controls.get(msg.run_id)
        try:
            if control is None:
                raise AuthError(f"no client control found for run id [{msg.run_id[:SHOWN]}]")
            if conn.version is not control.pool.version:
                raise AuthError("it is of another version of the wire protocol than the login")
            await self.verifier.verify_work_conn(msg, int(time.time()))
        except AuthError as exc:
            log = self.log if control is None else control.log
            log.warning(f"invalid NewWorkConn: {exc}")
            conn.write(StartWorkConn(error=self.detail(str(exc), "invalid NewWorkConn")))
            conn.close()
            return
        try:
            endpoint, early = conn.detach()
        except LinkError:
            return
        if early or not control.pool.add(endpoint):
            # Usual after a burst of callers, as an empty pool asks twice for each. frps 0.65 only
            # closes it, too: a StartWorkConn with an error would be one in the client's log.
            control.log.debug("work connection pool is full, discarding")
            endpoint.close()

    def _visitor_conn(self, conn: MessageConn, msg: NewVisitorConn) -> None:
        try:
            visited = self.visitors.admit(msg, self._user_of(msg.run_id))
        except RefusedError as exc:
            peer = format_address(peer_address(conn.endpoint))
            self.log.warning(f"register visitor conn error: {exc}", peer=peer)
            error = self.detail(str(exc), "register visitor conn error")
            conn.write(NewVisitorConnResp(proxy_name=msg.proxy_name, error=error))
            conn.close()
            return
        # Before anything of the payload, which may come as soon as the connection is handed over.
        conn.write(NewVisitorConnResp(proxy_name=msg.proxy_name))
        visited.enter(*conn.detach(), msg, conn.version)

    def _user_of(self, run_id: str) -> str:
        """The user that a visitor comes from; clients before frp 0.50 do not say who they are."""
        if not run_id:
            return ""
        control = self.controls.get(run_id)
        if control is None:
            raise RefusedError(f"no client control found for run id [{run_id[:SHOWN]}]")
        return control.user
