"""Proxies of type xtcp: local TCP services for visitors that come past the server."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from pyfrp.client.proxies.base import ClientProxy, Phase
from pyfrp.errors import HandshakeError, LinkError, PyfrpError, RefusedError, WireError
from pyfrp.net.conn import MessageConn
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import NatHoleClient, NatHoleReport, NatHoleSid, NewProxy, StartWorkConn

if TYPE_CHECKING:
    from pyfrp.client.control import Control
    from pyfrp.config.proxies import XTCPProxyConfig
    from pyfrp.nathole.hole import Hole
    from pyfrp.nathole.tunnel import Tunnel
    from pyfrp.net.endpoint import Endpoint

INVITE_S = 10.0  # For the message on the work connection.
# Tunnels at a time, with those that are being made: one for each visitor.
MAX_TUNNELS = 256


class XTCPProxy(ClientProxy):
    """Source: frp `client/proxy/xtcp.go`."""

    cfg: XTCPProxyConfig

    def __init__(self, cfg: XTCPProxyConfig, name: str, token: str, *, packet_size: int) -> None:
        super().__init__(cfg, name, token, packet_size=packet_size)
        # The layers are between the two clients, who share the secret.
        self._secret = derive_key(cfg.secret_key)
        self._key = self._secret if cfg.transport.use_encryption else None
        self._tunnels = 0

    def request(self) -> NewProxy:
        msg = super().request()
        msg.sk = self.cfg.secret_key
        msg.allow_users = list(self.cfg.allow_users)
        return msg

    async def serve(
        self, work: Endpoint, early: bytes, start: StartWorkConn, control: Control
    ) -> None:
        """Meet a visitor, and serve it until its tunnel ends; all in the time of the session."""
        sid = await self._invited(MessageConn(work, early=early, version=control.version))
        if not sid:
            return
        if self._tunnels >= MAX_TUNNELS:
            self.log.warning(f"more than {MAX_TUNNELS} visitors of [{self.name}] at a time")
            return
        self._tunnels += 1
        try:
            hole, protocol = await self._meet(sid, control)
            await self._host(hole, protocol, control)
        except (LinkError, RefusedError, WireError) as exc:
            self.log.warning(f"make hole error: {exc}")
        finally:
            self._tunnels -= 1

    async def _invited(self, conn: MessageConn) -> str:
        """Read which meeting a work connection invites to; empty if none."""
        try:
            async with asyncio.timeout(INVITE_S):
                msg = await conn.read()
            if isinstance(msg, NatHoleSid):
                return msg.sid
            raise HandshakeError(f"expected NatHoleSid, got {type(msg).__name__}")
        except TimeoutError:
            self.log.warning("xtcp read from workConn error: nothing came")
        except (LinkError, WireError) as exc:
            self.log.warning(f"xtcp read from workConn error: {exc}")
        finally:
            conn.close()
        return ""

    async def _meet(self, sid: str, control: Control) -> tuple[Hole, str]:
        """Find the way to a visitor, and the protocol that it wants to speak."""
        from pyfrp.nathole.discovery import prepare
        from pyfrp.nathole.punch import punch

        ready = await prepare(
            control.peer_options.stun_server,
            assisted=not self.cfg.nat_traversal.disable_assisted_addrs,
        )
        self.log.info(f"nathole prepare success, {ready}")
        transaction = os.urandom(13).hex()
        try:
            answer = await control.ask(
                NatHoleClient(
                    transaction_id=transaction,
                    proxy_name=self.name,
                    sid=sid,
                    mapped_addrs=ready.mapped,
                    assisted_addrs=ready.assisted,
                )
            )
        except BaseException:
            ready.outlet.close()
            raise
        try:
            hole = await punch(ready.outlet, answer, self._secret, transaction, control.report)
        except PyfrpError:
            control.tell(NatHoleReport(sid=sid, success=False))
            raise
        self.log.info(f"establishing nat hole connection successful, sid [{sid}]")
        control.tell(NatHoleReport(sid=sid, success=True))
        return hole, answer.protocol

    async def _host(self, hole: Hole, protocol: str, control: Control) -> None:
        """Serve the streams of a tunnel until it ends."""
        from pyfrp.nathole.tunnel import make_tunnel

        def take(stream: Endpoint) -> None:
            if self.phase is not Phase.RUNNING:  # Stopping.
                stream.abort()
                return
            start = StartWorkConn(proxy_name=self.name)
            work = ClientProxy.serve(self, stream, b"", start, control)
            control.spawn(work, name=f"visitor of {self.name}")

        tunnel: Tunnel = await make_tunnel(
            hole, protocol, control.peer_options, on_stream=take, report=control.report
        )
        try:
            cause = await asyncio.shield(tunnel.ended)
        finally:
            tunnel.close()
        self.log.info(f"the tunnel of a visitor ended: {cause}")
