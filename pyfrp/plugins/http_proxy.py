"""`http_proxy`: a forward proxy into the client's network.

Source of the statuses: frp `pkg/plugin/client/http_proxy.go`.
"""

from __future__ import annotations

import asyncio

from pyfrp.config.plugins import HTTPProxyPlugin as Options
from pyfrp.errors import BadHead, DialError, PeerClosed
from pyfrp.net.byteconn import READ_AHEAD_BYTES, ByteConn
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import format_address
from pyfrp.plugins.base import Visit
from pyfrp.plugins.http_session import (
    WRONG_PASSWORD_S,
    After,
    HTTPPlugin,
    Session,
    knows_password,
)
from pyfrp.vhost.bodies import body_of
from pyfrp.wire.http1 import (
    CHUNKED,
    LAST_CHUNK,
    UNTIL_CLOSE,
    RequestHead,
    ResponseHead,
    encode_chunk,
    next_response_head,
    rewrite_response_head,
)
from pyfrp.wire.http_fields import fields_of, forward_head, place_of

DIAL_S = 20.0
_ESTABLISHED = b"HTTP/1.1 200 OK\r\n\r\n"


class HTTPProxyPlugin(HTTPPlugin):
    """Takes CONNECT, and requests with an absolute http target."""

    options: Options

    async def answer(self, session: Session, head: RequestHead, visit: Visit) -> After:
        connects = head.method == b"CONNECT"
        options = self.options
        given = fields_of(head).get(b"proxy-authorization")
        if not knows_password(given, options.http_user, options.http_password):
            await asyncio.sleep(WRONG_PASSWORD_S)
            return session.answer(
                407,
                keep=head.keep_alive and not connects and not head.length,
                phrase="Not authorized" if connects else "",
                extra=[("Proxy-Authenticate", "Basic")],
            )
        if connects:
            return await _tunnel(session, head, visit)
        return await _forward(session, head, visit)


async def _tunnel(session: Session, head: RequestHead, visit: Visit) -> After:
    conn = session.conn
    host, port = place_of(head.target)
    try:
        far, held = await dial_tcp(host, port, timeout_s=DIAL_S)
    except DialError as exc:
        _tell(visit, (host, port), exc)
        return session.answer(400, keep=False)
    try:
        conn.write(_ESTABLISHED)
        work, early = conn.detach()
    except PeerClosed:
        far.abort()
        raise
    visit.join(far, held, work=work, early=early, ended=conn.ended)
    return After.HANDED_ON


async def _forward(session: Session, head: RequestHead, visit: Visit) -> After:
    place, forwarded = forward_head(head)
    try:
        far, held = await dial_tcp(*place, timeout_s=DIAL_S)
    except DialError as exc:
        _tell(visit, place, exc)
        keep = head.keep_alive and not head.length
        return session.answer(500, str(exc), keep=keep, bodiless=head.method == b"HEAD")
    server = ByteConn(far, early=held.early, ended=held.ended)
    request = _Request(session.conn, server, head)
    try:
        server.write(forwarded)
        request.start()
        return await _answer(session, server, head, request)
    except _Broken as exc:
        if request.fault is not None:
            raise request.fault from None
        if session.conn.lost:
            raise PeerClosed("the user left") from None
        visit.log.warning(f"http_proxy: {format_address(place)}: {exc}")
        return session.answer(500, str(exc), keep=False, bodiless=head.method == b"HEAD")
    finally:
        request.stop()
        server.abort()


class _Broken(Exception):
    """The server ended, or spoke nonsense, before the head of its answer."""


class _Request:
    """The body of a request on its way from the user to the server, while the answer comes.

    Attributes:
        fault: Why the body was refused.
    """

    def __init__(self, user: ByteConn, server: ByteConn, head: RequestHead) -> None:
        self.fault: BadHead | None = None
        self._user = user
        self._server = server
        self._body = body_of(head.length, status=400)

    @property
    def done(self) -> bool:
        return self._body.done

    def start(self) -> None:
        user, server = self._user, self._server
        # A user that leaves ends the server's work at once. One that only ends its own side may
        # still read: the server is told the same, and decides.
        user.on_lost = server.abort
        user.on_end = self._user_ended
        if not self.done:
            server.on_choke = user.hold
            user.divert(self._feed)
        if user.lost:
            server.abort()
        elif user.ended:
            self._user_ended()

    def stop(self) -> None:
        self._user.on_lost = self._user.on_end = self._user.on_data = self._server.on_choke = None
        self._user.hold(False)

    def _feed(self, data: bytes) -> None:
        body = self._body
        try:
            self._server.write(body.feed(data))
        except BadHead as exc:
            self.fault = exc
            self._user.on_data = None
            self._server.abort()
            return
        if body.done:
            self._user.on_data = None
            self._server.on_choke = None
            self._user.buffer += body.rest  # Before anything else can come.
            self._user.hold(False)

    def _user_ended(self) -> None:
        if self.done:
            self._server.write_eof()
        else:
            self._server.reset()  # A part of a body must not be taken for the whole.


async def _answer(
    session: Session, server: ByteConn, head: RequestHead, request: _Request
) -> After:
    """Pass the server's answer on as it comes."""
    found = await _final_head(session, server, head)
    old = head.minor == 0
    until_close = found.length == UNTIL_CLOSE
    dechunk = old and found.length == CHUNKED
    keep = head.keep_alive and request.done and not (old and (until_close or dechunk))
    session.write(
        rewrite_response_head(
            found,
            None,
            keep_alive=keep,
            caller_minor=head.minor,
            dechunk=dechunk,
            enchunk=until_close and not old,
        )
    )
    body = body_of(found.length, status=502, unwrap=dechunk)
    while not body.done:
        if not server.buffer and not await server.more():
            if until_close and server.finished and not request.fault:
                break
            # The head has left: only a cut tells that this is not the whole answer.
            session.conn.reset()
            return After.HANDED_ON
        try:
            chunk = body.feed(server.take(READ_AHEAD_BYTES))
        except BadHead:
            session.conn.reset()
            return After.HANDED_ON
        if chunk:
            session.write(encode_chunk(chunk) if until_close and not old else chunk)
        await session.conn.drain()
    if until_close and not old:
        session.write(LAST_CHUNK)
    return After.KEEP if keep else After.CLOSE


async def _final_head(session: Session, server: ByteConn, head: RequestHead) -> ResponseHead:
    """The head of the answer, after interim ones, which are passed on."""
    seen = 0
    while True:
        try:
            found = next_response_head(bytes(server.buffer), head.method, None, seen)
        except BadHead as exc:
            raise _Broken(str(exc)) from None
        if found is None:
            seen = len(server.buffer)
            if not await server.more():
                raise _Broken("the server closed the connection before it answered")
            continue
        server.take(len(found.raw))
        if found.status == 101:
            raise _Broken("the server switched protocols without being asked to")
        if found.status >= 200:
            return found
        seen = 0
        if head.minor:
            session.write(
                rewrite_response_head(found, None, keep_alive=True, caller_minor=head.minor)
            )


def _tell(visit: Visit, place: tuple[str, int], exc: DialError) -> None:
    visit.log.warning(f"http_proxy: connect to {format_address(place)} error: {exc}")
