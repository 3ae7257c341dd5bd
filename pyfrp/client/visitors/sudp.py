"""Visitors of type sudp: a local UDP port whose users reach the service of another client."""

from __future__ import annotations

import asyncio

from pyfrp.client.visitors.base import ClientVisitor, Session
from pyfrp.errors import DialError, LinkError, RefusedError, WireError
from pyfrp.net.datagrams import bind_udp
from pyfrp.net.sockets import bind_error
from pyfrp.net.userport import UserPort

# Between visits that came to nothing. frp asks again for each datagram, as fast as users send.
RETRY_S = 1.0


class SUDPVisitor(ClientVisitor):
    """One visitor connection for all users, opened when a datagram comes and there is none.

    Only the proxy's side pings: an official one takes anything from here for a datagram.

    Source: frp `client/visitor/sudp.go`.
    """

    _users: UserPort | None = None

    async def start(self, session: Session) -> None:
        cfg = self.cfg
        if cfg.bind_port < 0:
            # There is no connection of a user that another visitor could hand over.
            raise DialError(f"a sudp visitor needs a port: bindPort is {cfg.bind_port}")
        try:
            sock = await bind_udp(cfg.bind_addr, cfg.bind_port)
            users = UserPort(
                sock, packet_size=self.packet_size, log=self.log, version=session.version
            )
            await users.attach()
        except OSError as exc:
            raise DialError(bind_error(cfg.bind_addr, cfg.bind_port, exc, "udp")) from exc
        self._users = users
        self.log.info(f"sudp start to work, listen on {cfg.bind_addr}:{cfg.bind_port}")
        session.spawn(self._carry(session, users), name=f"users of {self.name}")

    def stop(self) -> None:
        """Close the port: users who wait for an answer would ask again, as on any network."""
        if self._users is not None:
            self._users.close()
            self._users = None

    async def _carry(self, session: Session, users: UserPort) -> None:
        """Have a visitor connection whenever users want one."""
        clock = asyncio.get_running_loop().time
        while await users.wanted():
            began = clock()
            try:
                visit, early = await self.visit(session)
            except (LinkError, WireError, RefusedError) as exc:
                users.drop_waiting()
                text = f"start new visitor connection error: {exc}"
                users.complaints.tell(type(exc).__name__, text)
            else:
                cause = await users.serve(visit, early)
                if users.closed:
                    return
                self.log.warning(f"read from workconn for user udp conn error: {cause}")
            if clock() - began < RETRY_S:
                await asyncio.sleep(RETRY_S)
