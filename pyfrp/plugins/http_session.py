"""What the plugins that speak HTTP share: a connection that carries request after request."""

from __future__ import annotations

import asyncio
import binascii
import hmac
import time
from collections.abc import Sequence
from enum import Enum

from pyfrp.errors import BadHead, PeerClosed
from pyfrp.net.byteconn import ByteConn
from pyfrp.plugins.base import Plugin, Visit
from pyfrp.wire.http1 import RequestHead, http_date, next_request_head, skip_empty_line
from pyfrp.wire.http_answer import PHRASES

# From the first byte of a head to its last (frp has it since 0.69).
HEAD_S = 60.0
# Between two requests. Longer than the minute for which an official server keeps idle connections.
IDLE_S = 120.0
LINGER_S = 5.0  # For a user to take the last answer.
WRONG_PASSWORD_S = 0.2  # frp's delay; it slows guessing down.


class After(Enum):
    """What becomes of the connection after an answer."""

    KEEP = 1
    CLOSE = 2
    HANDED_ON = 3  # It has a bridge now, or is gone.


class Session:
    """One user's connection; the owner of the client's connections sees it as one of them."""

    def __init__(self, conn: ByteConn) -> None:
        self.conn = conn
        self.sent = 0
        self._busy = False

    def carried(self) -> int:
        return self.conn.received + self.sent

    def at_rest(self) -> bool:
        conn = self.conn
        return not (self._busy or conn.buffer or conn.endpoint.get_write_buffer_size())

    def close(self) -> None:
        self.conn.close()

    def abort(self) -> None:
        self.conn.abort()

    def write(self, data: bytes) -> None:
        self.sent += len(data)
        self.conn.write(data)

    async def head(self) -> RequestHead | None:
        """The next request; None when the user has no more.

        Raises:
            BadHead: for a head that is refused, with the status to answer.
        """
        conn = self.conn
        self._busy = False
        if not conn.buffer:
            try:
                async with asyncio.timeout(IDLE_S):
                    if not await conn.more():
                        return None
            except TimeoutError:
                return None
        self._busy = True
        seen = 0
        try:
            async with asyncio.timeout(HEAD_S):
                while len(conn.buffer) < 2 and await conn.more():
                    pass
                conn.take(skip_empty_line(bytes(conn.buffer[:2])))
                while True:
                    head = next_request_head(bytes(conn.buffer), None, seen, by_target=True)
                    if head is not None:
                        conn.take(len(head.raw))
                        return head
                    seen = len(conn.buffer)
                    if not await conn.more():
                        return None
        except TimeoutError:
            raise BadHead(f"the head was not complete within {HEAD_S:g} s", 408) from None

    def answer(
        self,
        status: int,
        text: str = "",
        *,
        keep: bool,
        bodiless: bool = False,
        extra: Sequence[tuple[str, str]] = (),
        phrase: str = "",
    ) -> After:
        """Answer with a line of text, as Go's `http.Error` does, or without a body.

        Args:
            bodiless: For HEAD: the head as it would be.
        """
        body = f"{text}\n".encode() if text else b""
        fields = [("Content-Length", str(len(body))), *extra]
        if text:
            fields.append(("Content-Type", "text/plain; charset=utf-8"))
            fields.append(("X-Content-Type-Options", "nosniff"))
        head = answer_head(status, fields, keep=keep, phrase=phrase)
        self.write(head + (b"" if bodiless else body))
        return After.KEEP if keep else After.CLOSE


class HTTPPlugin(Plugin):
    """A plugin that answers requests."""

    async def serve(self, visit: Visit) -> None:
        conn = ByteConn(visit.work, early=visit.early)
        session = Session(conn)
        visit.keeper.bridges[session] = None
        after = After.CLOSE
        try:
            after = await self._converse(session, visit)
            if after is After.CLOSE:
                await conn.finish(LINGER_S)
        except PeerClosed:
            conn.abort()  # Nobody is left to be answered.
        except BaseException:
            conn.abort()
            raise
        finally:
            visit.keeper.bridge_closed(session)

    async def _converse(self, session: Session, visit: Visit) -> After:
        after = After.KEEP
        while after is After.KEEP:
            try:
                head = await session.head()
                if head is None:
                    return After.CLOSE
                after = await self.answer(session, head, visit)
            except BadHead as exc:
                visit.log.debug(f"{self.options.type}: refused a request: {exc}")
                return session.answer(exc.status, str(exc), keep=False)
            await session.conn.drain()
        return after

    async def answer(self, session: Session, head: RequestHead, visit: Visit) -> After:
        """Answer one request, whose body is still to be read.

        Raises:
            BadHead: to refuse it before anything of an answer was sent.
            PeerClosed: when the user has left.
        """
        raise NotImplementedError


def answer_head(
    status: int, fields: Sequence[tuple[str, str]], *, keep: bool, phrase: str = ""
) -> bytes:
    """The head of an answer; names and values are the program's own, or were checked."""
    lines = [f"HTTP/1.1 {status} {phrase or PHRASES.get(status, 'Error')}"]
    lines += [f"{name}: {value}" for name, value in fields]
    # HTTP/1.0 has to be told that a connection is kept; HTTP/1.1 does not mind.
    lines.append(f"Connection: {'keep-alive' if keep else 'close'}")
    lines.append(f"Date: {http_date(time.time()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def knows_password(credentials: Sequence[bytes] | None, user: str, password: str) -> bool:
    """Whether Basic credentials are the right ones; always when none are configured.

    Args:
        credentials: The values of the field that has them, None if it was not sent.
    """
    if not user and not password:
        return True
    if credentials is None or len(credentials) != 1 or credentials[0][:6].lower() != b"basic ":
        return False
    try:
        pair = binascii.a2b_base64(credentials[0][6:], strict_mode=True)
    except ValueError:
        return False
    # As a whole, so that the time does not tell which part was wrong. The first colon separates,
    # and a user with a colon could not be told from a longer password.
    return ":" not in user and hmac.compare_digest(pair, f"{user}:{password}".encode())
