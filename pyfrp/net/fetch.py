"""One HTTP exchange at a time with a server on the way to which a proxy may stand.

For the rare and short talks with identity providers: a fresh connection for each, one deadline for
all of it, a bounded answer. Nothing of what is sent stands in an error.

Source of the ways through proxies: RFC 9110 9.3.6 (CONNECT), RFC 1928 and 1929 (SOCKS5); which
proxy the environment names: Go `golang.org/x/net/http/httpproxy`.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from pyfrp.errors import BadHead, LinkError, WireError
from pyfrp.net.byteconn import ByteConn
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.tls import upgrade
from pyfrp.wire.http_body import ChunkedDecoder
from pyfrp.wire.http_grammar import CHUNKED, UNTIL_CLOSE
from pyfrp.wire.http_response import ResponseHead, next_response_head

MAX_BODY_BYTES = 1 << 20
"""Longest answer: a set of keys or a token with its wrapping is a few kilobytes."""
MAX_REDIRECTS = 5
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
"""Of proxy URLs. Names are resolved by the proxy with all of them, as in Go."""

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_PRINTABLE = re.compile(r"[!-~]+")
_LOCATION = re.compile(rb"\r\n(?i:location):[ \t]*([!-~]*)[ \t]*\r\n")
_TYPE = re.compile(rb"\r\n(?i:content-type):[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z/]*)")
_SOCKS_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time ran out",
    7: "command not supported",
    8: "kind of address not supported",
}


class FetchError(LinkError):
    """No usable answer: not reached, not trusted, too slow, not HTTP, or too long."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an exchange goes, or a proxy is.

    Attributes:
        path: With the query; of a proxy of no meaning.
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

    @property
    def basic(self) -> bytes:
        """The value of an Authorization field; b"" without a user."""
        if not self.user and not self.password:
            return b""
        return b"Basic " + base64.b64encode(f"{self.user}:{self.password}".encode())


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


def read_url(url: str, schemes: tuple[str, ...] = ("http", "https")) -> Place:
    """Take a URL apart.

    Raises:
        ValueError: with what is wrong with it, and nothing of its text.
    """
    if not _PRINTABLE.fullmatch(url):
        raise ValueError("it has a space or a letter in it that must be percent-encoded")
    try:
        parts: SplitResult = urlsplit(url)
    except ValueError:
        raise ValueError("it names no host that there could be") from None
    if parts.scheme not in schemes:
        raise ValueError(f"it must begin with {' or '.join(f'{each}://' for each in schemes)}")
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
        context: For https; None for the system's authorities.
        proxy: The proxy to use for everything.
        environment: Use the proxies that the environment names, if `proxy` is None.
        timeout_s: For one exchange, name resolution and redirections included.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None = None,
        proxy: Place | None = None,
        environment: bool = True,
        timeout_s: float = 10.0,
    ) -> None:
        self._given = context
        self._proxy = proxy
        self._environment = environment
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
                if head.status not in (301, 302, 303, 307, 308):
                    return _answer(head, body)
                found = _LOCATION.search(head.raw)
                target = urljoin(url, found[1].decode()) if found else ""
                if not target or (place.scheme == "https" and not target.startswith("https://")):
                    raise FetchError(f"{place} sends us elsewhere, to no https URL")
                url = target
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
        proxy = self._proxy or (_proxy_of_environment(place) if self._environment else None)
        endpoint, early = await self._reach(place, proxy)
        conn = ByteConn(endpoint, early=early)
        try:
            target = place.path
            lines = {
                "Host": place.authority,
                "User-Agent": "pyfrp",
                "Accept": "application/json",
                "Connection": "close",
                **fields,
            }
            if place.basic and "Authorization" not in lines:
                lines["Authorization"] = place.basic.decode()
            if proxy is not None and place.scheme == "http" and proxy.scheme in ("http", "https"):
                target = f"{place}{target}"
                if proxy.basic:
                    lines["Proxy-Authorization"] = proxy.basic.decode()
            if method == b"POST":
                lines["Content-Length"] = str(len(body))
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            conn.write(
                b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target.encode(), head.encode(), body)
            )
            answer = await _read_head(conn, method, place)
            return answer, await _read_body(conn, answer, place)
        finally:
            conn.abort()

    async def _reach(self, place: Place, proxy: Place | None) -> tuple[Endpoint, bytes]:
        """A connection on which the server at `place` answers, paused."""
        first = proxy or place
        what = "the proxy " if proxy is not None else ""
        endpoint, held = await dial_tcp(first.host, first.port, timeout_s=self._timeout_s)
        early = held.early
        try:
            if held.ended:
                raise FetchError(f"{what}{first} accepts connections and closes them at once")
            if first.scheme == "https":
                endpoint, early = await self._secure(endpoint, early, first), b""
            if proxy is not None and proxy.scheme.startswith("socks5"):
                endpoint, early = await _socks(endpoint, early, proxy, place)
            elif proxy is not None and place.scheme == "https":
                endpoint, early = await _connect(endpoint, early, proxy, place)
            if proxy is not None and place.scheme == "https":
                endpoint, early = await self._secure(endpoint, early, place), b""
        except BaseException:
            endpoint.abort()
            raise
        return endpoint, early

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


# -- proxies -----------------------------------------------------------------------------------


def _proxy_of_environment(place: Place) -> Place | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for a place, if they name one."""
    import urllib.request  # costs as much as all else here, and few need it

    if place.host == "localhost" or _is_loopback(place.host):
        return None
    proxies = urllib.request.getproxies_environment()
    url = proxies.get(place.scheme)
    if not url or urllib.request.proxy_bypass_environment(place.authority, proxies):  # type: ignore[attr-defined]  # it is documented, and not in typeshed
        return None
    try:
        return read_url(url if "://" in url else f"http://{url}", PROXY_SCHEMES)
    except ValueError as exc:
        raise FetchError(
            f"the proxy in {place.scheme.upper()}_PROXY cannot be used: {exc}"
        ) from exc


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def _connect(
    endpoint: Endpoint, early: bytes, proxy: Place, place: Place
) -> tuple[Endpoint, bytes]:
    """Have an HTTP proxy connect us."""
    conn = ByteConn(endpoint, early=early)
    host = f"[{place.host}]" if ":" in place.host else place.host
    target = f"{host}:{place.port}"
    login = b"Proxy-Authorization: %b\r\n" % proxy.basic if proxy.basic else b""
    conn.write(
        b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target.encode(), target.encode(), login)
    )
    head = await _read_head(conn, b"CONNECT", proxy)
    if head.status // 100 != 2:
        hint = "; give it a user and password in the URL" if head.status == 407 else ""
        raise FetchError(f"the proxy {proxy} answers CONNECT {target} with {head.status}{hint}")
    return conn.detach()


async def _socks(
    endpoint: Endpoint, early: bytes, proxy: Place, place: Place
) -> tuple[Endpoint, bytes]:
    """Have a SOCKS5 proxy connect us."""
    conn = ByteConn(endpoint, early=early)
    user, password = proxy.user.encode()[:255], proxy.password.encode()[:255]
    conn.write(b"\x05\x02\x00\x02" if user else b"\x05\x01\x00")
    version, method = await conn.exactly(2)
    if version != 5:
        raise FetchError(f"the proxy {proxy} does not speak SOCKS5")
    if method == 2 and user:
        conn.write(b"\x01%c%b%c%b" % (len(user), user, len(password), password))
        if (await conn.exactly(2))[1] != 0:
            raise FetchError(f"the proxy {proxy} refuses the user and password in its URL")
    elif method != 0:
        raise FetchError(f"the proxy {proxy} wants to know who we are: give its URL a user")
    conn.write(b"\x05\x01\x00" + _socks_address(place.host) + place.port.to_bytes(2, "big"))
    _, code, _, kind = await conn.exactly(4)
    if code:
        reason = _SOCKS_REPLIES.get(code, f"code {code}")
        raise FetchError(f"the proxy {proxy} cannot reach {place}: {reason}")
    size = {1: 4, 4: 16}.get(kind)
    await conn.exactly((size if size is not None else (await conn.exactly(1))[0]) + 2)
    return conn.detach()


def _socks_address(host: str) -> bytes:
    try:
        address = ip_address(host)
    except ValueError:
        name = host.encode()
        if len(name) > 255:
            raise FetchError("a host name is longer than SOCKS5 can say") from None
        return b"\x03%c%b" % (len(name), name)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return (b"\x01" if address.version == 4 else b"\x04") + socket.inet_pton(family, host)


def _tls_failure(exc: ssl.SSLError) -> str:
    """What an operator can make of a TLS failure with a server that is no frp."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {exc.verify_message}"
    reason = (exc.reason or str(exc)).replace("_", " ").lower()
    return f"TLS handshake failed: {reason}"
