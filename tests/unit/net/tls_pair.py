"""TLS contexts and plain-library TLS peers for tests."""

from __future__ import annotations

import datetime
import functools
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.x509.oid import NameOID

NAME = "frps.test"


@functools.cache
def certificate() -> bytes:
    """PEM of a key and its self-signed certificate for `NAME`; made once per run."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + cert.public_bytes(serialization.Encoding.PEM)


@functools.cache
def server_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pair.pem")
        path.write_bytes(certificate())
        context.load_cert_chain(path)
    return context


@functools.cache
def client_context(*, trusting: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if trusting:
        context.load_verify_locations(
            cadata=certificate().decode().partition("-----BEGIN CERT")[1]
            + certificate().decode().partition("-----BEGIN CERT")[2]
        )
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
    return context


class Library:
    """The other end of a TLS connection, by the standard library alone, without I/O.

    `feed` takes what came from the link; `out` is what to send there.
    """

    def __init__(self, *, server_side: bool, context: ssl.SSLContext | None = None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or (server_context() if server_side else client_context())
        self.tls = context.wrap_bio(
            self._in,
            self._out,
            server_side=server_side,
            server_hostname=None if server_side else NAME,
        )
        self.shaken = False
        self.data = bytearray()
        self.ended = False
        if not server_side:
            self._advance()

    def feed(self, data: bytes) -> None:
        self._in.write(data)
        self._advance()

    def _advance(self) -> None:
        try:
            if not self.shaken:
                self.tls.do_handshake()
                self.shaken = True
            while not self.ended:
                data = self.tls.read(65536)
                if not data:
                    self.ended = True
                self.data += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True

    def write(self, data: bytes) -> None:
        self.tls.write(data)

    def end(self) -> None:
        """Queue a close_notify."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass

    @property
    def out(self) -> bytes:
        return self._out.read()


class KeyUpdates:
    """Writes records of a TLS 1.3 client that ask for another key (RFC 8446, 4.6.3).

    The standard library cannot do that, so this takes the client's place after the handshake, with
    the secret that it wrote to its key log. For TLS_AES_256_GCM_SHA384, which OpenSSL likes best.

    Args:
        key_log: Of a client that has sent no record since the handshake.
    """

    def __init__(self, key_log: str) -> None:
        (line,) = (x for x in key_log.splitlines() if x.startswith("CLIENT_TRAFFIC_SECRET_0 "))
        self._secret = bytes.fromhex(line.split()[2])

    def next(self) -> bytes:
        """A request for the server to change its key; ours changes after it."""
        nonce, key = self._expand(b"iv", 12), self._expand(b"key", 32)
        message = b"\x18\0\0\1\1\x16"  # KeyUpdate, update_requested; a handshake record.
        head = b"\x17\3\3" + (len(message) + 16).to_bytes(2, "big")
        self._secret = self._expand(b"traffic upd", len(self._secret))
        return head + AESGCM(key).encrypt(nonce, message, head)

    def _expand(self, label: bytes, size: int) -> bytes:
        info = size.to_bytes(2, "big") + bytes((6 + len(label),)) + b"tls13 " + label + b"\0"
        return HKDFExpand(hashes.SHA384(), size, info).derive(self._secret)
