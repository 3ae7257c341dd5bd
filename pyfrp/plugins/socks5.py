"""`socks5`: a proxy into the client's network.

Source: RFC 1928 and 1929; frp `pkg/plugin/client/socks5.go` on armon/go-socks5 for which replies
are given when.
"""

from __future__ import annotations

import asyncio
import errno

from pyfrp.config.plugins import Socks5Plugin as Options
from pyfrp.errors import DialError, PeerClosed
from pyfrp.net.byteconn import READ_AHEAD_BYTES, ByteConn
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import format_address, local_address
from pyfrp.plugins.base import Plugin, Visit
from pyfrp.wire.socks5 import Handshake, Reply, Socks5Error, Target, reply

HANDSHAKE_S = 30.0  # For all messages of the caller up to its request; each is one packet.
DIAL_S = 20.0
WRONG_PASSWORD_S = 0.2  # As frp's http plugins do: it slows guessing down.
LINGER_S = 5.0  # For a caller to take the last answer.

_REPLIES = {
    errno.ECONNREFUSED: Reply.REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
}


class Socks5Plugin(Plugin):
    """Takes CONNECT to addresses and names, which are resolved here."""

    options: Options

    async def serve(self, visit: Visit) -> None:
        conn = ByteConn(visit.work, early=visit.early)
        try:
            handed_on = await self._converse(visit, conn)
        except BaseException:
            conn.abort()
            raise
        if not handed_on:
            await conn.finish(LINGER_S)

    async def _converse(self, visit: Visit, conn: ByteConn) -> bool:
        """Returns whether the connection now has a bridge; if not, it is to be closed."""
        handshake = Handshake(self.options.username, self.options.password)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                target = await _agree(conn, handshake)
        except PeerClosed:
            visit.log.debug("socks5: the caller left before its request")
            return False
        except TimeoutError:
            visit.log.warning(f"socks5: no request within {HANDSHAKE_S:g} s")
            return False
        except Socks5Error as exc:
            visit.log.warning(f"socks5: {exc}")
            if exc.denied:
                await asyncio.sleep(WRONG_PASSWORD_S)
            conn.write(exc.answer)
            return False
        try:
            far, held = await dial_tcp(target.host, target.port, timeout_s=DIAL_S)
        except DialError as exc:
            where = format_address((target.host, target.port))
            visit.log.warning(f"socks5: connect to {where} error: {exc}")
            conn.write(reply(_REPLIES.get(exc.errno, Reply.HOST_UNREACHABLE)))
            return False
        try:
            conn.write(reply(Reply.SUCCEEDED, local_address(far)))
            work, ahead = conn.detach()
        except PeerClosed:
            far.abort()
            return False
        visit.join(far, held, work=work, early=handshake.leftover() + ahead, ended=conn.ended)
        return True


async def _agree(conn: ByteConn, handshake: Handshake) -> Target:
    """Read and answer until the target is known.

    Raises:
        PeerClosed: when the caller leaves before.
        Socks5Error: as `Handshake.feed`.
    """
    while True:
        conn.write(handshake.feed(conn.take(READ_AHEAD_BYTES)))
        if handshake.target is not None:
            return handshake.target
        if not await conn.more():
            raise PeerClosed("the caller left")
