"""An identity provider of our own, which can be told to misbehave, and a signer for any token.

Signatures are made with the primitives alone, so that nothing here shares code with what checks
them.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import functools
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.x509.oid import NameOID

CLIENT, SECRET = "office", "s3cret of the office"
AUDIENCE = "frps"
SUBJECT = "machine-7"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int, size: int = 0) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@functools.cache
def private_key(kind: str, which: int = 0) -> PrivateKey:
    """One of a few keys that all tests share, because making them takes long."""
    del which  # It only tells the cached ones apart.
    if kind.startswith("RSA"):
        return rsa.generate_private_key(65537, int(kind[3:] or 2048))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curve = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}[kind]
    return ec.generate_private_key(curve())


@dataclass(frozen=True)
class SigningKey:
    """A key pair with its name.

    Args:
        kind: "RSA" (with bits, if not 2048), a curve, or "Ed25519".
    """

    id: str = "key-1"
    kind: str = "RSA"
    which: int = 0

    @property
    def private(self) -> PrivateKey:
        return private_key(self.kind, self.which)

    def jwk(self, **more: Any) -> dict[str, Any]:
        """The public half, as it is published."""
        public = self.private.public_key()
        jwk: dict[str, Any] = {"kid": self.id, "use": "sig"}
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            jwk |= {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
        elif isinstance(public, ed25519.Ed25519PublicKey):
            jwk |= {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}
        else:
            point, size = public.public_numbers(), (public.key_size + 7) // 8
            jwk |= {"kty": "EC", "crv": self.kind}
            jwk |= {"x": _number(point.x, size), "y": _number(point.y, size)}
        return jwk | more

    def pem(self) -> bytes:
        """The public half as PEM: what a confused verifier takes for a shared secret."""
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, data: bytes, algorithm: str) -> bytes:
        key = self.private
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(data)
        digest = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}[algorithm[2:]]()
        if isinstance(key, ec.EllipticCurvePrivateKey):
            r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
            size = (key.key_size + 7) // 8
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if algorithm.startswith("PS"):
            pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
            return key.sign(data, pss, digest)
        return key.sign(data, padding.PKCS1v15(), digest)


def compact(
    header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, sign: Callable[[bytes], bytes]
) -> str:
    """A token with any header and any claims."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signed = f"{b64(json.dumps(header).encode())}.{b64(payload)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def make_token(
    claims: Mapping[str, Any] | bytes,
    key: SigningKey,
    algorithm: str = "RS256",
    **header: Any,
) -> str:
    """A token that `key` signs; None as a header field leaves it out."""
    fields = {"alg": algorithm, "typ": "JWT", "kid": key.id} | header
    fields = {name: value for name, value in fields.items() if value is not None}
    return compact(fields, claims, lambda data: key.sign(data, algorithm))


def make_hmac_token(claims: Mapping[str, Any], secret: bytes, kid: str) -> str:
    """A token "signed" with a secret, such as a public key that everybody knows."""
    header = {"alg": "HS256", "typ": "JWT", "kid": kid}
    return compact(header, claims, lambda data: hmac.digest(secret, data, hashlib.sha256))


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    fields: dict[str, str]
    form: dict[str, str]


@dataclass
class Provider:
    """Serves discovery, keys and tokens on loopback; its attributes may change at any time.

    Attributes:
        lifetime: `expires_in` of what it gives out; None leaves it out.
        styles: How clients may show their secret: "basic", "form".
        hold: While not set, nothing is answered.
    """

    port: int
    key: SigningKey = field(default_factory=SigningKey)
    published: list[SigningKey] | None = None
    algorithms: list[str] | None = field(default_factory=lambda: ["RS256"])
    audience: str | list[str] = AUDIENCE
    subject: str = SUBJECT
    lifetime: int | str | None = 3600
    styles: tuple[str, ...] = ("basic", "form")
    broken: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        return f"{self.url}/token"

    def count(self, path: str) -> int:
        return sum(each.path == path for each in self.asked)

    def claims(self, **more: Any) -> dict[str, Any]:
        """Those of a good token, with changes; None leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": self.subject,
            "aud": self.audience,
            "iat": now,
            "exp": now + 3600,
        } | more
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, **more: Any) -> str:
        """A good token, but for the changes."""
        return make_token(self.claims(**more), self.key)

    def client(self, **more: Any) -> dict[str, Any]:
        """`auth` of a client that comes here."""
        oidc = {"clientID": CLIENT, "clientSecret": SECRET, "tokenEndpointURL": self.endpoint}
        return {"method": "oidc", "oidc": oidc | more}

    def server(self, **more: Any) -> dict[str, Any]:
        """`auth` of a server that trusts this one."""
        oidc = {"issuer": self.url, "audience": AUDIENCE}
        return {"method": "oidc", "oidc": oidc | more}

    # -- what it answers -----------------------------------------------------------------------

    def answer(self, asked: Asked) -> tuple[int, str, bytes]:
        if asked.path in self.broken:
            return self.broken[asked.path]
        if asked.path == "/.well-known/openid-configuration":
            return self._json(200, self._discovery())
        if asked.path == "/jwks":
            keys = [self.key] if self.published is None else self.published
            return self._json(200, {"keys": [key.jwk() for key in keys]})
        if asked.path == "/token":
            return self._give(asked)
        return 404, "text/html", b"<p>nothing here"

    def _json(self, status: int, value: Any) -> tuple[int, str, bytes]:
        return status, "application/json; charset=utf-8", json.dumps(value).encode()

    def _discovery(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "issuer": self.url,
            "token_endpoint": self.endpoint,
            "jwks_uri": f"{self.url}/jwks",
        }
        if self.algorithms is not None:
            found["id_token_signing_alg_values_supported"] = self.algorithms
        return found

    def _give(self, asked: Asked) -> tuple[int, str, bytes]:
        basic = base64.b64encode(f"{CLIENT}:{SECRET.replace(' ', '+')}".encode()).decode()
        shown = {
            "basic": asked.fields.get("authorization") == f"Basic {basic}",
            "form": (asked.form.get("client_id"), asked.form.get("client_secret"))
            == (CLIENT, SECRET),
        }
        if not any(shown[style] for style in self.styles):
            words = {"error": "invalid_client", "error_description": f"not {asked.form}"}
            return self._json(401, words)
        if asked.form.get("grant_type") != "client_credentials":
            return self._json(400, {"error": "unsupported_grant_type"})
        given: dict[str, Any] = {"access_token": self.token(), "token_type": "Bearer"}
        if self.lifetime is not None:
            given["expires_in"] = self.lifetime
        return self._json(200, given)

    # -- how it listens ------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            fields = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines if line)
            }
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            method, path, _ = first.split(" ")
            form = {name: each[0] for name, each in parse_qs(body.decode()).items()}
            asked = Asked(method, path.removeprefix(self.url), fields, form)
            self.asked.append(asked)
            await self.hold.wait()
            status, kind, answer = self.answer(asked)
            writer.write(
                f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(answer)}\r\nConnection: close\r\n\r\n".encode()
                + answer
            )
            await writer.drain()
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # Whoever asked is gone, or the test is over.
        finally:
            writer.close()


@asynccontextmanager
async def serving(provider: Provider, ssl: Any = None) -> AsyncIterator[Provider]:
    """Let a provider listen on its port, or on a free one if that is 0."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await provider.serve(reader, writer)

    provider.hold.set()
    server = await asyncio.start_server(serve, "127.0.0.1", provider.port, ssl=ssl)
    provider.port = server.sockets[0].getsockname()[1]
    provider.scheme = "https" if ssl else "http"
    try:
        yield provider
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@functools.cache
def loopback_pem() -> bytes:
    """A key and its certificate for loopback."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + cert.public_bytes(serialization.Encoding.PEM)
