"""Proxies on the way out: good ones, and every way in which real ones are bad.

`HttpProxy` and `SocksProxy` make tunnels and keep records; what they let in and through is told
with arguments. `HOSTILE` holds one maker for each kind of proxy that does not do its work.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import functools
import hashlib
import ipaddress
import os
import re
import secrets
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.services import Backend, Gone, Pipe

Place = tuple[str, int]
Names = dict[str, Place]
"""Where a host of a request really is, for names that only the proxy can resolve."""
MAX_HEAD = 65536
REALM = "office"
HELD_S = 600.0  # What hangs does so for longer than any test waits.


@dataclass
class Asked:
    """One request for a tunnel."""

    target: str
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def authorization(self) -> str:
        return self.fields.get("proxy-authorization", "")

    @property
    def scheme(self) -> str:
        """Of its credentials, in lower case; "" without."""
        return self.authorization.partition(" ")[0].lower()


# -- what is let through a tunnel ---------------------------------------------------------------

Filter = Callable[[bytes], bool]
_METHOD = re.compile(rb"(?:GET|POST|PUT|HEAD|OPTIONS|DELETE|PATCH|CONNECT) [^ ]+ HTTP/1\.[01]\r\n")


def is_http(first: bytes) -> bool:
    """The first bytes are those of an HTTP/1 request."""
    return _METHOD.match(first) is not None


def is_tls(first: bytes) -> bool:
    """The first bytes are those of a TLS handshake."""
    return first[:2] == b"\x16\x03"


def is_web(first: bytes) -> bool:
    """The first bytes are HTTP or TLS."""
    return is_http(first) or is_tls(first)


@dataclass(frozen=True)
class Inside:
    """What a proxy does with the bytes in its tunnels.

    Attributes:
        lets: Looks at the first bytes; None lets all through.
        silent: What is not let through is held, not cut.
        idle_s: Tunnels in which nothing moves for so long are cut; 0 for never.
        intercepts: TLS is opened, with certificates of the proxy's own authority (`authority_pem`)
            and what is in it must pass `lets`.
    """

    lets: Filter | None = None
    silent: bool = False
    idle_s: float = 0.0
    intercepts: bool = False


class _Tunnels(Backend):
    """What both kinds of proxy share: the tunnels.

    Attributes:
        tunnels: How many were made.
        open: Tunnels that are open.
        failed: Targets that could not be reached.
    """

    def __init__(self, port: int | None = None) -> None:
        super().__init__(port)
        self.names: Names = {}
        self.inside = Inside()
        self.tunnels = 0
        self.open = 0
        self.failed: list[str] = []

    def place(self, host: str, port: int) -> Place:
        return self.names.get(host, (host, port))

    async def dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_connection(*self.place(host, port))
        except OSError:
            self.failed.append(f"{host}:{port}")
            raise

    async def carry(
        self, pipe: Pipe, host: str, far: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        """Be the tunnel until one end has had enough."""
        reader, writer = far
        self.tunnels += 1
        self.open += 1
        try:
            if self.inside.intercepts:
                pipe, writer = await _intercepted(pipe, host, reader, writer)
            if self.inside.lets is not None and not await self._passes(pipe, self.inside.lets):
                return
            await self._pump(pipe, reader, writer)
        except (OSError, ssl.SSLError):
            pass  # One end is gone, or does not speak TLS; the other one goes with it.
        finally:
            self.open -= 1
            writer.transport.abort()
            pipe.close()

    async def _passes(self, pipe: Pipe, lets: Filter) -> bool:
        while len(pipe.buffer) < 2 or (b"\n" not in pipe.buffer and not is_tls(bytes(pipe.buffer))):
            if len(pipe.buffer) >= 16:
                break
            if not await pipe.more():
                return False
        if lets(bytes(pipe.buffer)):
            return True
        if self.inside.silent:
            await pipe.gone.wait()
        return False

    async def _pump(
        self, pipe: Pipe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()

        async def up() -> None:
            nonlocal last
            while data := await pipe.read_some():
                last = loop.time()
                writer.write(data)
                await writer.drain()

        async def down() -> None:
            nonlocal last
            while data := await reader.read(65536):
                last = loop.time()
                await pipe.send(data)

        async def idle() -> None:
            limit = self.inside.idle_s or HELD_S
            while (left := last + limit - loop.time()) > 0:
                await asyncio.sleep(left)

        jobs = {loop.create_task(job(), name="proxy tunnel") for job in (up, down, idle)}
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)


async def _intercepted(
    pipe: Pipe, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[Pipe, asyncio.StreamWriter]:
    """Open the TLS of a tunnel; what moves from here on is its inside."""
    loop = asyncio.get_running_loop()
    transport = await loop.start_tls(
        pipe.transport, pipe, intercepting_context(host), server_side=True
    )
    assert transport is not None
    pipe.transport = transport
    outside = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outside.check_hostname = False
    outside.verify_mode = ssl.CERT_NONE
    await writer.start_tls(outside, server_hostname=host)
    return pipe, writer


# -- HTTP ---------------------------------------------------------------------------------------

Script = Callable[[Pipe, Asked], Awaitable[None]]


class HttpProxy(_Tunnels):
    """A proxy that makes tunnels by CONNECT.

    Args:
        users: Who is let in, with their passwords; everybody if it is empty. For NTLM they are
            `DOMAIN\\user`, and passwords have no colon.
        schemes: How: "basic", "digest" (MD5), "digest-sha256", "digest-sess", "ntlm", "negotiate"
            (NTLM under that name), or any other word, which nobody can answer.
        names: See `Names`.
        inside: What is let through the tunnels.
        keeps: Connections live on after a refusal.
        one_field: All challenges stand in one field.
        script: Answers each request instead.
        nonce_uses: A nonce of Digest is stale after so many requests.

    Attributes:
        asked: Every request, in order.
    """

    def __init__(
        self,
        *,
        users: dict[str, str] | None = None,
        schemes: Sequence[str] = ("basic",),
        names: Names | None = None,
        inside: Inside | None = None,
        tls: ssl.SSLContext | None = None,
        keeps: bool = True,
        one_field: bool = False,
        script: Script | None = None,
        nonce_uses: int = 100,
        port: int | None = None,
    ) -> None:
        super().__init__(port)
        self.users = users or {}
        self.schemes = tuple(schemes)
        self.names = names or {}
        self.inside = inside or Inside()
        self.tls = tls
        self.keeps = keeps
        self.one_field = one_field
        self.script = script
        self.nonce_uses = nonce_uses
        self.asked: list[Asked] = []
        self._nonces: dict[str, int] = {}

    async def run(self, pipe: Pipe) -> None:
        try:
            ntlm = _NtlmServer(self.users)
            while await self._serve(pipe, ntlm):
                pass
        except Gone:
            pass
        finally:
            pipe.close()

    async def _serve(self, pipe: Pipe, ntlm: _NtlmServer) -> bool:
        """Serve one request; tells whether another one may come."""
        raw = await pipe.read_until(b"\r\n\r\n", MAX_HEAD)
        if not raw:
            return False
        first, *lines = raw.decode("utf-8", "surrogateescape").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        asked = Asked(target, {name.lower(): value.strip() for name, _, value in pairs})
        self.asked.append(asked)
        if self.script is not None:
            await self.script(pipe, asked)
            return False
        if method != "CONNECT":
            await pipe.send(page("405 Method Not Allowed"))
            return False
        if self.users:
            challenges = self._judge(asked, ntlm)
            if challenges is not None:
                await pipe.send(self._unauthorized(challenges))
                return self.keeps
        host, _, port = target.rpartition(":")
        host = host.strip("[]")
        try:
            far = await self.dial(host, int(port))
        except OSError:
            await pipe.send(page("502 Bad Gateway"))
            return False
        await pipe.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await self.carry(pipe, host, far)
        return False

    def _unauthorized(self, challenges: list[str]) -> bytes:
        if self.one_field:
            challenges = [", ".join(challenges)]
        fields = "".join(f"Proxy-Authenticate: {text}\r\n" for text in challenges)
        if not self.keeps:
            fields += "Connection: close\r\n"
        return page("407 Proxy Authentication Required", fields)

    def _judge(self, asked: Asked, ntlm: _NtlmServer) -> list[str] | None:
        """What is asked for, or None for somebody who is let in."""
        scheme, _, value = asked.authorization.partition(" ")
        scheme = scheme.lower()
        stale = False
        if scheme == "basic" and "basic" in self.schemes:
            user, _, password = base64.b64decode(value).decode().partition(":")
            if self.users.get(user) == password:
                return None
        elif scheme == "digest" and any(name.startswith("digest") for name in self.schemes):
            verdict = self._judge_digest(asked, value)
            if verdict is None:
                return None
            stale = verdict
        elif scheme in ("ntlm", "negotiate") and scheme in self.schemes and value:
            answer = ntlm.step(base64.b64decode(value))
            if answer is None:
                return None
            if answer:
                shown = "NTLM" if scheme == "ntlm" else "Negotiate"
                return [f"{shown} {base64.b64encode(answer).decode()}"]
        return [self._challenge(name, stale=stale) for name in self.schemes]

    def _challenge(self, name: str, *, stale: bool) -> str:
        if name == "basic":
            return f'Basic realm="{REALM}, \\"quoted\\""'
        if name.startswith("digest"):
            nonce = secrets.token_hex(8)
            self._nonces[nonce] = 0
            algorithm = {"digest": "MD5", "digest-sha256": "SHA-256", "digest-sess": "MD5-sess"}
            more = ", stale=true" if stale else ""
            return (
                f'Digest realm="{REALM}", nonce="{nonce}", qop="auth,auth-int", opaque="5\\"c", '
                f"algorithm={algorithm.get(name, name[7:])}{more}"
            )
        return {"ntlm": "NTLM", "negotiate": "Negotiate"}.get(name, name)

    def _judge_digest(self, asked: Asked, value: str) -> bool | None:
        """None for good credentials, else whether only the nonce was stale."""
        pairs = re.findall(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))', value)
        given = {name: re.sub(r"\\(.)", r"\1", quoted) or word for name, quoted, word in pairs}
        nonce, count = given["nonce"], int(given["nc"], 16)
        hashed = hashlib.sha256 if given["algorithm"] == "SHA-256" else hashlib.md5

        def h(*parts: str) -> str:
            return hashed(":".join(parts).encode()).hexdigest()

        password = self.users.get(given["username"], "")
        secret = h(given["username"], REALM, password)
        if given["algorithm"] == "MD5-sess":
            secret = h(secret, nonce, given["cnonce"])
        wanted = h(
            secret, nonce, given["nc"], given["cnonce"], given["qop"], h("CONNECT", given["uri"])
        )
        right = (
            given["response"] == wanted
            and given["uri"] == asked.target
            and given["opaque"] == '5"c'
            and given["username"] in self.users
        )
        used = self._nonces.get(nonce)
        if used is None or count <= used or count > self.nonce_uses:
            return right
        if not right:
            return False
        self._nonces[nonce] = count
        return None


class _NtlmServer:
    """The other side of NTLM on one connection, by pyspnego, which keeps its users in a file."""

    def __init__(self, users: dict[str, str]) -> None:
        self._users = users
        self._context: object | None = None

    def step(self, token: bytes) -> bytes | None:
        """The answer to a token; b"" for wrong credentials, None for good ones."""
        import spnego

        with tempfile.NamedTemporaryFile("w", suffix=".users") as file:
            for user, password in self._users.items():
                domain, _, name = user.rpartition("\\")
                # frp names the domain that the challenge names, which here is this machine.
                for place in {domain, socket.gethostname().upper()}:
                    file.write(f"{place}:{name}:{password}\n")
            file.flush()
            before = os.environ.get("NTLM_USER_FILE")
            os.environ["NTLM_USER_FILE"] = file.name
            try:
                if self._context is None or token[8:12] == b"\1\0\0\0":
                    self._context = spnego.server(protocol="ntlm")
                context = self._context
                assert isinstance(context, spnego.ContextProxy)
                answer = context.step(token)
            except spnego.exceptions.SpnegoError:
                self._context = None
                return b""
            finally:
                if before is None:
                    del os.environ["NTLM_USER_FILE"]
                else:
                    os.environ["NTLM_USER_FILE"] = before
            return None if context.complete else answer


def page(status: str, fields: str = "", body: bytes = b"<html>no</html>") -> bytes:
    """An answer that is no tunnel."""
    return (
        f"HTTP/1.1 {status}\r\n{fields}Content-Type: text/html\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


# -- SOCKS5 -------------------------------------------------------------------------------------


class SocksProxy(_Tunnels):
    """A SOCKS5 proxy, written apart from the package's.

    Args:
        users: Who is let in; everybody if it is empty.
        code: Reply with this code instead of a tunnel.

    Attributes:
        asked: Every target, as `host:port`, with the type of its address: 1, 3 or 4.
        methods: What each greeting offered.
    """

    def __init__(
        self,
        *,
        users: dict[str, str] | None = None,
        names: Names | None = None,
        inside: Inside | None = None,
        code: int = 0,
        port: int | None = None,
    ) -> None:
        super().__init__(port)
        self.users = users or {}
        self.names = names or {}
        self.inside = inside or Inside()
        self.code = code
        self.asked: list[tuple[str, int]] = []
        self.methods: list[bytes] = []

    async def run(self, pipe: Pipe) -> None:
        try:
            await self._serve(pipe)
        except Gone:
            pass
        finally:
            pipe.close()

    async def _serve(self, pipe: Pipe) -> None:
        version, count = await pipe.read_exactly(2)
        methods = await pipe.read_exactly(count)
        self.methods.append(methods)
        wanted = 2 if self.users else 0
        if version != 5 or wanted not in methods:
            await pipe.send(b"\x05\xff")
            return
        await pipe.send(bytes((5, wanted)))
        if self.users:
            _, size = await pipe.read_exactly(2)
            user = (await pipe.read_exactly(size)).decode()
            password = (await pipe.read_exactly((await pipe.read_exactly(1))[0])).decode()
            good = self.users.get(user) == password
            await pipe.send(b"\x01\x00" if good else b"\x01\x01")
            if not good:
                return
        *_, kind = await pipe.read_exactly(4)
        if kind == 3:
            host = (await pipe.read_exactly((await pipe.read_exactly(1))[0])).decode()
        else:
            host = str(ipaddress.ip_address(await pipe.read_exactly(4 if kind == 1 else 16)))
        port = int.from_bytes(await pipe.read_exactly(2), "big")
        self.asked.append((f"{host}:{port}", kind))
        if self.code:
            await pipe.send(bytes((5, self.code, 0, 1)) + bytes(6))
            return
        try:
            far = await self.dial(host, port)
        except OSError:
            await pipe.send(bytes((5, 5, 0, 1)) + bytes(6))
            return
        await pipe.send(bytes((5, 0, 0, 1)) + bytes(6))
        await self.carry(pipe, host, far)


# -- certificates -------------------------------------------------------------------------------


@functools.cache
def _authority() -> tuple[object, object, bytes]:
    """A key and a certificate of an authority of the office's own, and the latter as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Office Inspection CA")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    return key, certificate, certificate.public_bytes(serialization.Encoding.PEM)


def authority_pem() -> bytes:
    """The certificate of the authority that `intercepting_context` signs with."""
    return _authority()[2]


@functools.cache
def intercepting_context(host: str) -> ssl.SSLContext:
    """A server's TLS context with a certificate for `host`, signed by the office's authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    ca_key, ca, pem = _authority()
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    assert isinstance(ca, x509.Certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pair.pem")
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
            + pem
        )
        context.load_cert_chain(path)
    return context


# -- bad ones -----------------------------------------------------------------------------------


def saying(answer: bytes, *, hangs: bool = False) -> Script:
    """A script that gives an answer, whatever is asked, and closes or hangs."""

    async def script(pipe: Pipe, asked: Asked) -> None:
        if answer:
            await pipe.send(answer)
        if hangs:
            await pipe.gone.wait()

    return script


def _refusing(status: str, fields: str = "") -> Callable[[], HttpProxy]:
    return lambda: HttpProxy(script=saying(page(status, fields)))


def _scripted(answer: bytes, *, hangs: bool = False) -> Callable[[], HttpProxy]:
    return lambda: HttpProxy(script=saying(answer, hangs=hangs))


def _guarded(*schemes: str) -> Callable[[], HttpProxy]:
    return lambda: HttpProxy(users={"user": "secret"}, schemes=schemes)


def _filtering(inside: Inside) -> Callable[[], HttpProxy]:
    return lambda: HttpProxy(inside=inside)


PAGE = b"<!DOCTYPE html><html><title>Log in</title></html>"
HOSTILE: dict[str, Callable[[], Backend]] = {
    "403": _refusing("403 Forbidden"),
    "302": _refusing("302 Found", "Location: http://login.office.example/?a=b\r\n"),
    "511": _refusing("511 Network Authentication Required"),
    "404": _refusing("404 Not Found"),
    "405": _refusing("405 Method Not Allowed"),
    "429": _refusing("429 Too Many Requests"),
    "500": _refusing("500 Internal Server Error"),
    "502": _refusing("502 Bad Gateway"),
    "503": _refusing("503 Service Unavailable"),
    "504": _refusing("504 Gateway Timeout"),
    "407-basic": _guarded("basic"),
    "407-digest": _guarded("digest"),
    "407-ntlm": _guarded("ntlm"),
    "407-negotiate": _guarded("negotiate"),
    "407-all": _guarded("negotiate", "ntlm", "digest", "basic"),
    "407-unknown": _guarded("Scram-SHA-256", "digest-SHA-512-256"),
    "407-bare": _refusing("407 Proxy Authentication Required"),
    "hangs": _scripted(b"", hangs=True),
    "closes": _scripted(b""),
    "closes-tunnel": _scripted(b"HTTP/1.1 200 OK\r\n\r\n"),
    "hangs-tunnel": _scripted(b"HTTP/1.1 200 OK\r\n\r\n", hangs=True),
    "login-page": lambda: HttpProxy(script=saying(page("200 OK", body=PAGE))),
    "login-page-late": _scripted(
        b"HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + PAGE
    ),
    "garbage": _scripted(b"220 mail.office.example ESMTP\r\n"),
    "garbage-head": _scripted(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"),
    "endless-head": _scripted(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000),
    "speaks-tls": _scripted(b"\x15\x03\x01\x00\x02\x02\x46"),
    "speaks-socks": _scripted(b"\x05\xff"),
    # What frp speaks without TLS gets nowhere in these; in the second, TLS does not either.
    "only-web": _filtering(Inside(lets=is_web)),
    "only-http": _filtering(Inside(lets=is_http)),
    "only-http-silent": _filtering(Inside(lets=is_http, silent=True)),
    "cuts-idle": _filtering(Inside(idle_s=20.0)),
    "cuts-idle-soon": _filtering(Inside(idle_s=2.0)),
    # TLS is opened; what is in it must be HTTP, as of wss.
    "opens-tls": _filtering(Inside(lets=is_http, intercepts=True)),
}
"""Makers of proxies by what is wrong with them; `user` and `secret` are let in by 407-…"""
