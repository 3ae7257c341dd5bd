"""One HTTP exchange at a time with a server on the way to which a proxy may stand.

For the rare and short talks with identity providers: a fresh connection for each, one deadline for
all of it, a bounded answer. Nothing of what is sent stands in an error.

Source of what goes through a proxy as what: Go `net/http` `transport.go` (whole requests to http
URLs for HTTP proxies, tunnels for all else).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from pyfrp.errors import BadHead, LinkError, WireError
from pyfrp.net.byteconn import ByteConn
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.tls import upgrade
from pyfrp.wire.http_body import ChunkedDecoder
from pyfrp.wire.http_grammar import CHUNKED, UNTIL_CLOSE
from pyfrp.wire.http_response import ResponseHead, next_response_head
from pyfrp.wire.httpauth import basic

if TYPE_CHECKING:
    from pyfrp.net.outproxy import Proxy

MAX_BODY_BYTES = 1 << 20
"""Longest answer: a set of keys or a token with its wrapping is a few kilobytes."""
MAX_REDIRECTS = 5
MAX_STATUS_REDIRECTS = 9
"""Go `net/http` `client.go`, `defaultCheckRedirect`: ten requests in all."""
REDIRECTIONS = (301, 302, 303, 307, 308)

_SECRETS = ("authorization", "cookie", "cookie2", "www-authenticate")
"""Of the fields that are sent: not for another host (Go, likewise, shouldCopyHeaderOnRedirect)."""
_PORTS = {"http": 80, "https": 443}
_PRINTABLE = re.compile(r"[!-~]+")
_LOCATION = re.compile(rb"\r\n(?i:location):[ \t]*([!-~]*)[ \t]*\r\n")
_TYPE = re.compile(rb"\r\n(?i:content-type):[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z/]*)")
# Of the time for an exchange, before all of it is over: a proxy that is silent is told as such.
_PROXY_SHARE = 0.8


class FetchError(LinkError):
    """No usable answer: not reached, not trusted, too slow, not HTTP, or too long."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an exchange goes.

    Attributes:
        path: With the query.
        user, password: From the URL; "" without.
    """

    scheme: str
    host: str
    port: int
    path: str = "/"
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"<Place {self}>"  # No secrets.

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port, the latter only where it has to be said."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        kind: The media type, in lower case and without parameters.
    """

    status: int
    kind: str
    body: bytes

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.kind} {len(self.body)} bytes>"  # It may be a token.


FindProxy: TypeAlias = "Callable[[Place], Proxy | None]"
"""Names the proxy for a place, None for a direct connection. May raise FetchError."""


def read_url(url: str) -> Place:
    """Take an http or https URL apart.

    Raises:
        ValueError: with what is wrong with it, and nothing of its text.
    """
    if not _PRINTABLE.fullmatch(url):
        raise ValueError("it has a space or a letter in it that must be percent-encoded")
    try:
        parts: SplitResult = urlsplit(url)
    except ValueError:
        raise ValueError("it names no host that there could be") from None
    if parts.scheme not in _PORTS:
        raise ValueError(f"it must begin with {' or '.join(f'{each}://' for each in _PORTS)}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("its port is no number in the range 0..65535") from None
    if not parts.hostname:
        raise ValueError("it names no host")
    return Place(
        parts.scheme,
        parts.hostname,
        _PORTS[parts.scheme] if port is None else port,
        (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


class Fetcher:
    """Makes exchanges, all in the same manner.

    Args:
        context: For https, also to proxies; None for the system's authorities.
        find_proxy: Asked at each exchange; None to connect directly.
        timeout_s: For one exchange, name resolution and redirections included.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None = None,
        find_proxy: FindProxy | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._given = context
        self._find_proxy = find_proxy
        self._timeout_s = timeout_s

    async def get(self, url: str) -> Answer:
        """GET `url`, following redirections that stay as safe as it is.

        Raises:
            FetchError: with the reason in words, and the place that is to blame.
        """
        async with _bounded(self._timeout_s, url):
            for _ in range(MAX_REDIRECTS + 1):
                place = _place(url)
                head, body = await self._exchange(place, b"GET", {}, b"")
                if head.status not in REDIRECTIONS:
                    return _answer(head, body)
                target = _target(head, url)
                if not target or (place.scheme == "https" and not target.startswith("https://")):
                    raise FetchError(f"{place} sends us elsewhere, to no https URL")
                url = target
            raise FetchError(f"{place} sends us on and on")

    async def status(self, place: Place, fields: Mapping[str, str], *, host: str = "") -> int:
        """The final status of a GET, after redirections to wherever; bodies are not read.

        Args:
            fields: All that is said beyond Host and Connection.
            host: To ask for in place of the host of `place`, as long as that answers.

        Raises:
            FetchError: with the reason in words, and the place that is to blame.
        """
        async with _bounded(self._timeout_s, str(place)):
            for _ in range(MAX_STATUS_REDIRECTS + 1):
                lines = {"Host": host or place.authority, "Connection": "close", **fields}
                endpoint, early = await self._reach(place, None)
                conn = ByteConn(endpoint, early=early)
                try:
                    conn.write(_request(b"GET", place.path, lines, b""))
                    head = await _read_head(conn, b"GET", place)
                finally:
                    conn.abort()
                target = _target(head, f"{place}{place.path}")
                if not target:
                    return head.status
                before, place = place, _place(target)
                if place.authority != before.authority:
                    host = ""
                if place.host != before.host:
                    fields = {name: fields[name] for name in fields if name.lower() not in _SECRETS}
            raise FetchError(f"{place} sends us on and on")

    async def post(self, url: str, form: bytes, fields: Mapping[str, str]) -> Answer:
        """POST a form to `url`. Redirections are not followed: what is sent is for that place.

        Raises:
            FetchError: with the reason in words, and the place that is to blame.
        """
        async with _bounded(self._timeout_s, url):
            lines = {"Content-Type": "application/x-www-form-urlencoded", **fields}
            return _answer(*await self._exchange(_place(url), b"POST", lines, form))

    # -- one exchange --------------------------------------------------------------------------

    async def _exchange(
        self, place: Place, method: bytes, fields: Mapping[str, str], body: bytes
    ) -> tuple[ResponseHead, bytes]:
        """What the server at `place` answers: head and body."""
        proxy = self._find_proxy(place) if self._find_proxy is not None else None
        lines = _fields(place, method, fields, body)
        if proxy is not None and proxy.forwards and place.scheme == "http":
            proof = _proof(proxy.user or "", proxy.password)
            whole = _request(method, f"{place}{place.path}", {**lines, **proof}, body)
            endpoint, early = await self._reach_forwarder(proxy)
            head, page = await self._ask(endpoint, early, place, method, whole)
            if head.status != 407:
                return head, page
            _check_refusal(proxy, head)
            # For more than Basic can prove there is the tunnel.
        endpoint, early = await self._reach(place, proxy)
        return await self._ask(
            endpoint, early, place, method, _request(method, place.path, lines, body)
        )

    async def _ask(
        self, endpoint: Endpoint, early: bytes, place: Place, method: bytes, request: bytes
    ) -> tuple[ResponseHead, bytes]:
        """Send a request and read its answer; this ends the connection."""
        conn = ByteConn(endpoint, early=early)
        try:
            conn.write(request)
            head = await _read_head(conn, method, place)
            return head, await _read_body(conn, head, place)
        finally:
            conn.abort()

    async def _reach(self, place: Place, proxy: Proxy | None) -> tuple[Endpoint, bytes]:
        """A connection on which the server at `place` answers, paused."""
        if proxy is None:
            endpoint, held = await dial_tcp(place.host, place.port, timeout_s=self._timeout_s)
            early = held.early
            if held.ended:
                endpoint.abort()
                raise FetchError(f"{place} accepts connections and closes them at once")
        else:
            from pyfrp.net.via import dial_via  # many need none

            timeout_s = self._timeout_s * _PROXY_SHARE
            endpoint, early = await dial_via(
                partial(dial_tcp, timeout_s=timeout_s),
                proxy,
                place.host,
                place.port,
                timeout_s=timeout_s,
                context=self._given,
            )
        if place.scheme == "http":
            return endpoint, early
        return await self._secure(endpoint, early, place), b""

    async def _reach_forwarder(self, proxy: Proxy) -> tuple[Endpoint, bytes]:
        """A connection on which a proxy takes whole requests, paused."""
        from pyfrp.net.via import dial_proxy

        timeout_s = self._timeout_s * _PROXY_SHARE
        return await dial_proxy(
            partial(dial_tcp, timeout_s=timeout_s), proxy, timeout_s=timeout_s, context=self._given
        )

    async def _secure(self, endpoint: Endpoint, early: bytes, place: Place) -> Endpoint:
        try:
            return await upgrade(
                endpoint,
                self._context(),
                server_side=False,
                server_name=place.host,
                early=early,
            )
        except LinkError as exc:
            cause = exc.__cause__
            # The sentence of the exception names keys of frp's own links.
            told = _tls_failure(cause) if isinstance(cause, ssl.SSLError) else str(exc)
            raise FetchError(f"{place}: {told}") from exc
        except ValueError as exc:
            endpoint.abort()
            raise FetchError(f"{place}: its name cannot stand in TLS: {exc}") from exc

    def _context(self) -> ssl.SSLContext:
        if self._given is None:
            self._given = ssl.create_default_context()
        return self._given


@asynccontextmanager
async def _bounded(timeout_s: float, url: str) -> AsyncIterator[None]:
    """Bound an exchange, and make one kind of error of all that can happen in it."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise FetchError(f"no answer of {_place(url)} within {timeout_s:g} s") from None
    except FetchError:
        raise
    except (LinkError, WireError) as exc:
        raise FetchError(str(exc)) from exc


def _place(url: str) -> Place:
    try:
        return read_url(url)
    except ValueError as exc:
        raise FetchError(f"a URL cannot be used: {exc}") from None


def _fields(place: Place, method: bytes, more: Mapping[str, str], body: bytes) -> dict[str, str]:
    """The fields of a request."""
    fields = {
        "Host": place.authority,
        "User-Agent": "pyfrp",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        **more,
    }
    if "Authorization" not in fields:
        fields |= _proof(place.user, place.password, "Authorization")
    if method == b"POST":
        fields["Content-Length"] = str(len(body))
    return fields


def _proof(user: str, password: str, name: str = "Proxy-Authorization") -> dict[str, str]:
    """The field that shows a user and password by Basic; none without either."""
    try:
        return {name: basic(user, password)} if user or password else {}
    except ValueError as exc:
        raise FetchError(f"a URL cannot be used: {exc}") from None


def _request(method: bytes, target: str, fields: Mapping[str, str], body: bytes) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target.encode(), head.encode(), body)


def _check_refusal(proxy: Proxy, head: ResponseHead) -> None:
    """Raise ProxyError if a proxy has refused a user and password, which a tunnel would not help.

    A second try with the same would count towards locking an account.
    """
    from pyfrp.net.proxywords import denied
    from pyfrp.wire.connectproxy import AnswerReader

    answer = AnswerReader().feed(head.raw)
    offered = answer.challenges if answer is not None else []
    if proxy.user is not None and any(each.scheme == "basic" for each in offered):
        raise denied(proxy, "basic")


def _target(head: ResponseHead, url: str) -> str:
    """The URL that an answer from `url` sends us to; "" for none."""
    found = _LOCATION.search(head.raw) if head.status in REDIRECTIONS else None
    try:
        return urljoin(url, found[1].decode()) if found and found[1] else ""
    except ValueError:
        raise FetchError(
            f"{_place(url)} sends us elsewhere, to no host that there could be"
        ) from None


def _answer(head: ResponseHead, body: bytes) -> Answer:
    kind = _TYPE.search(head.raw)
    return Answer(head.status, kind[1].decode().lower() if kind else "", body)


async def _read_head(conn: ByteConn, method: bytes, place: Place) -> ResponseHead:
    """The final response head, taken out of the buffer."""
    while True:
        try:
            head = next_response_head(bytes(conn.buffer), method)
        except BadHead as exc:
            raise FetchError(f"{place} does not speak HTTP: {exc}") from exc
        if head is None:
            if not await conn.more():
                raise FetchError(f"{place} closed the connection without an answer")
            continue
        conn.take(len(head.raw))
        if head.status >= 200:
            return head


async def _read_body(conn: ByteConn, head: ResponseHead, place: Place) -> bytes:
    """The body, with nothing of how it was framed."""
    body = bytearray()
    chunks = ChunkedDecoder(502) if head.length == CHUNKED else None
    try:
        while True:
            if chunks is not None:
                data, _ = chunks.feed(conn.take(len(conn.buffer)))
                body += data
                done = chunks.done
            else:
                body += conn.take(len(conn.buffer))
                done = head.length != UNTIL_CLOSE and len(body) >= head.length
            if len(body) > MAX_BODY_BYTES:
                raise FetchError(f"the answer of {place} is longer than {MAX_BODY_BYTES} bytes")
            if done:
                return bytes(body if chunks is not None else body[: head.length])
            if not await conn.more():
                if head.length == UNTIL_CLOSE and conn.finished:
                    return bytes(body)
                raise FetchError(f"{place} cut its answer off")
    except WireError as exc:
        raise FetchError(f"the answer of {place} is malformed: {exc}") from exc


def _tls_failure(exc: ssl.SSLError) -> str:
    """What an operator can make of a TLS failure with a server that is no frp."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {exc.verify_message}"
    reason = (exc.reason or str(exc)).replace("_", " ").lower()
    return f"TLS handshake failed: {reason}"
