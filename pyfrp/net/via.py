"""Dialling through a proxy: HTTP CONNECT, also inside TLS, and SOCKS5.

Source: golib `net/dial_option.go` (`httpProxyAfterHook`, `httpsProxyAfterHook`,
`ntlmHTTPProxyAfterHook`, `socks5ProxyAfterHook`). frp always sends the password by Basic; here the
proxy is asked first, and gets the strongest of what it offers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from pyfrp.errors import (
    BadHead,
    DialError,
    HandshakeError,
    LocalWireError,
    PeerClosed,
    ProxyError,
    RemoteWireError,
)
from pyfrp.net import proxywords as words
from pyfrp.net.byteconn import ByteConn
from pyfrp.net.endpoint import Endpoint, format_address
from pyfrp.net.held import Held
from pyfrp.net.outproxy import Proxy
from pyfrp.net.proxyauth import Talk
from pyfrp.net.tls import upgrade
from pyfrp.wire.connectproxy import (
    CHUNKED,
    UNTIL_CLOSE,
    Answer,
    AnswerReader,
    authority,
    connect_request,
)
from pyfrp.wire.http_body import ChunkedBody
from pyfrp.wire.socks5client import SocksClient, SocksRefusal

Dial: TypeAlias = Callable[[str, int], Awaitable[tuple[Endpoint, Held]]]
"""Makes a TCP connection to a host and port, as `dial_tcp` does."""

# Requests per tunnel: one to ask, two of NTLM, one or two for a nonce that is too old.
MAX_REQUESTS = 6
# Longest page of a refusal that is read to keep its connection.
MAX_PAGE_BYTES = 256 * 1024
# How long a page may take to follow a yes that announces one: servers of ours do not speak first.
PAGE_S = 1.0


async def dial_via(
    dial: Dial,
    proxy: Proxy,
    host: str,
    port: int,
    *,
    timeout_s: float,
    context: ssl.SSLContext | None = None,
) -> tuple[Endpoint, bytes]:
    """Connect to `host:port` through a proxy; a name is sent to it unresolved.

    Args:
        dial: Connects to the proxy itself, under a deadline of its own.
        timeout_s: For everything from there on.
        context: For TLS with the proxy; None for what this system trusts, as with Go.

    Returns:
        The endpoint, paused, and bytes read ahead.

    Raises:
        ProxyError: naming the proxy, what it did, and what to try.
    """
    line = _Line(dial, proxy, context)
    target = format_address((host, port))
    async with _at_work(line, target, timeout_s):
        await _TUNNELS[proxy.scheme](line, host, port)
        # If the end of the tunnel has come right behind the yes, the next turn of the loop
        # tells: better here than as a riddle of whoever speaks through it.
        await asyncio.sleep(0)
        try:
            return line.hand_over()
        except PeerClosed:
            raise words.closed_tunnel(proxy, target) from None


async def dial_proxy(
    dial: Dial, proxy: Proxy, *, timeout_s: float, context: ssl.SSLContext | None = None
) -> tuple[Endpoint, bytes]:
    """Connect to a proxy that `forwards`, which will get a whole request instead of a CONNECT.

    Arguments, result and errors are those of `dial_via`.
    """
    line = _Line(dial, proxy, context)
    async with _at_work(line, proxy.place, timeout_s):
        if proxy.scheme == "https":
            await line.secure()
        try:
            return line.hand_over()
        except PeerClosed:
            raise words.hung_up(proxy, proxy.place) from None


@asynccontextmanager
async def _at_work(line: _Line, target: str, timeout_s: float) -> AsyncIterator[None]:
    """Connect to the proxy and bound what is done there; a failure drops the connection."""
    try:
        await line.redial()
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        line.drop()
        if line.securing:
            raise words.no_tls(line.proxy, f"no answer within {timeout_s:g} s") from None
        if line.talk is not None and line.talk.asking:
            raise words.no_kerberos(line.proxy, timeout_s) from None
        raise words.silent(line.proxy, target, timeout_s) from None
    except BaseException:
        line.drop()
        raise


class _Line:
    """The connection to the proxy, which may take several to make one tunnel.

    Attributes:
        conn: What is spoken on, once `redial` was called.
        securing: The TLS handshake with the proxy is under way.
        talk: How we prove to it who we are, once that has begun.
    """

    def __init__(self, dial: Dial, proxy: Proxy, context: ssl.SSLContext | None) -> None:
        self.proxy = proxy
        self.conn: ByteConn | None = None
        self.securing = False
        self.talk: Talk | None = None
        self._dial = dial
        self._context = context

    async def redial(self) -> None:
        """Connect anew."""
        self.drop()
        proxy = self.proxy
        try:
            endpoint, held = await self._dial(proxy.host, proxy.port)
        except DialError as exc:
            raise words.unreachable(proxy, exc) from exc
        self.conn = ByteConn(endpoint, early=held.early, ended=held.ended)

    async def secure(self) -> None:
        """Speak TLS with the proxy, whose certificate must be good for its name."""
        assert self.conn is not None
        proxy = self.proxy
        try:
            endpoint, early = self.conn.detach()
        except PeerClosed as exc:
            raise words.no_tls(proxy, str(exc)) from None
        self.securing = True
        try:
            tls = await upgrade(
                endpoint,
                self._context or _trusting(),
                server_side=False,
                server_name=proxy.host,
                early=early,
            )
        except HandshakeError as exc:
            cause = exc.__cause__
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise words.untrusted(proxy, cause.verify_message) from exc
            raise words.no_tls(proxy, str(exc)) from exc
        except ValueError as exc:
            raise words.no_tls(proxy, f"its name cannot stand in TLS: {exc}") from exc
        self.conn = ByteConn(tls)
        self.securing = False

    def drop(self) -> None:
        """Let go of the connection, if there is one."""
        if self.conn is not None:
            self.conn.abort()
            self.conn = None

    def hand_over(self) -> tuple[Endpoint, bytes]:
        """Give the connection away.

        Raises:
            PeerClosed: when there is nothing left of it.
        """
        assert self.conn is not None
        conn = self.conn
        if conn.ended and not conn.buffer:
            raise PeerClosed("the connection was closed")
        found = conn.detach()
        self.conn = None
        return found


def _trusting() -> ssl.SSLContext:
    """A context for the proxy's own TLS: what this system trusts, as with Go."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


# -- HTTP ---------------------------------------------------------------------------------------


async def _connect(line: _Line, host: str, port: int) -> None:
    """Make a tunnel with CONNECT."""
    proxy = line.proxy
    try:
        target = authority(host, port)
    except ValueError:
        raise words.bad_host(proxy, host) from None
    line.talk = talk = Talk(proxy)
    said = await talk.opening(target)
    for _ in range(MAX_REQUESTS):
        answer = await _ask(line, target, said, keep=talk.bound)
        if 200 <= answer.status < 300:
            await _look_for_page(line, target, answer)
            talk.remember()
            return
        if answer.status != 407:
            raise words.refused(proxy, target, answer)
        said = await talk.next(answer.challenges, target)
        if not await _skip(line, answer):
            # The second message of NTLM is good on its own connection only.
            if any(c.token and c.scheme == talk.scheme for c in answer.challenges):
                raise words.dropped_midway(proxy, talk.scheme)
            await line.redial()
            if proxy.scheme == "https":
                await line.secure()
    raise words.denied(proxy, talk.scheme)


async def _connect_in_tls(line: _Line, host: str, port: int) -> None:
    await line.secure()
    await _connect(line, host, port)


async def _ask(line: _Line, target: str, said: str, *, keep: bool) -> Answer:
    """Send one request and read the head of its answer."""
    conn, proxy = line.conn, line.proxy
    assert conn is not None
    conn.write(connect_request(target, said, keep=keep))
    reader = AnswerReader()
    first = b""
    while True:
        data = conn.take(len(conn.buffer))
        first = first or data[:8]
        try:
            answer = reader.feed(data)
        except RemoteWireError as exc:
            raise words.garbage(proxy, first, str(exc)) from None
        if answer is not None:
            conn.buffer[:0] = reader.data
            return answer
        if not await conn.more():
            raise words.hung_up(proxy, target)


async def _skip(line: _Line, answer: Answer) -> bool:
    """Read the page of a refusal; False if its connection is of no more use."""
    conn, left = line.conn, answer.length
    assert conn is not None
    if not answer.keep_alive or left > MAX_PAGE_BYTES:
        return False
    if left == CHUNKED:
        return await _skip_chunks(conn)
    while left:
        if not conn.buffer and not await conn.more():
            return False
        left -= len(conn.take(left))
    return not conn.ended


async def _skip_chunks(conn: ByteConn) -> bool:
    body = ChunkedBody(502)
    size = 0
    while not body.done:
        if not conn.buffer and not await conn.more():
            return False
        try:
            used = body.feed(bytes(conn.buffer))
        except BadHead:
            return False
        conn.take(used)
        size += used
        if size > MAX_PAGE_BYTES:
            return False
    return not conn.ended


async def _look_for_page(line: _Line, target: str, answer: Answer) -> None:
    """Find out whether a yes is a page to log in, which is sent instead of a tunnel."""
    conn = line.conn
    assert conn is not None
    if answer.content_type != "text/html" or answer.length == 0:
        return
    if answer.length == UNTIL_CLOSE:
        try:
            async with asyncio.timeout(PAGE_S):
                while not bytes(conn.buffer).strip() and await conn.more():
                    pass
        except TimeoutError:
            return  # No page comes: a proxy that calls its empty answer HTML.
        if not bytes(conn.buffer).strip().startswith(b"<"):
            return
    raise words.login_page(line.proxy, target, answer)


# -- SOCKS5 -------------------------------------------------------------------------------------


async def _socks(line: _Line, host: str, port: int) -> None:
    """Make a tunnel with SOCKS5."""
    conn, proxy = line.conn, line.proxy
    assert conn is not None
    target = format_address((host, port))
    try:
        client = SocksClient(host, port, proxy.user, proxy.password)
    except LocalWireError as exc:
        raise ProxyError(f"{proxy} cannot be asked for {target}: {exc}") from None
    conn.write(client.greeting())
    first = b""
    while not client.done:
        if not conn.buffer and not await conn.more():
            raise words.hung_up(proxy, target)
        data = conn.take(len(conn.buffer))
        first = first or data[:8]
        try:
            conn.write(client.feed(data))
        except SocksRefusal as exc:
            raise words.socks_refused(proxy, target, exc) from None
        except RemoteWireError as exc:
            raise words.garbage(proxy, first, str(exc)) from None
    conn.buffer[:0] = client.leftover()


Tunnel: TypeAlias = Callable[[_Line, str, int], Awaitable[None]]
_TUNNELS: dict[str, Tunnel] = {
    "http": _connect,
    "https": _connect_in_tls,
    "ntlm": _connect,
    "socks5": _socks,
    "socks5h": _socks,
}
