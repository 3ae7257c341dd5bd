"""What a QUIC connection is set up with: limits, certificates, and who has to show one.

aioquic's own check of certificates knows no intermediate in a trusted file and no client at all.
So it verifies nothing, and `Trust` does, when the handshake is done and before a stream is.

Source of the rules: frp `pkg/transport/tls.go`; Go `crypto/x509` (what is verified).
"""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import service_identity
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)

from pyfrp.errors import ConfigError, HandshakeError
from pyfrp.net.certs import LINK_KEYS, ServerContext, generate_pair
from pyfrp.net.sockets import is_numeric

ALPN = "frp"
WINDOW = 1024 * 1024  # Bytes that may wait for the reader of a stream.
LINK_WINDOW = 16 * WINDOW  # For all streams together, at first.
DATAGRAM = 1350  # Passes every usual path, as KCP's datagrams do.
IDLE_S = 30.0  # Where the configuration names none.

# TLS alerts (RFC 8446, 6) with which we refuse a certificate.
BAD_CERTIFICATE = 42
CERTIFICATE_EXPIRED = 45
UNKNOWN_CA = 48
CERTIFICATE_REQUIRED = 116
NO_ALPN = 120

_PEM_KEY = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)

# It tells of every stream and packet, and warns of what strangers send.
logging.getLogger("quic").setLevel(logging.CRITICAL)


class Untrusted(HandshakeError):
    """A certificate that is missing or not good enough.

    Args:
        alert: The TLS alert to end the connection with.
    """

    def __init__(self, reason: str, alert: int) -> None:
        self.alert = alert
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe.

    Args:
        anchors: PEM certificates; what the peer shows has to chain to one of them.
        name: What has to be in the certificate of a server; "" for that of a client.
    """

    anchors: bytes
    name: str = ""

    def check(self, shown: Sequence[x509.Certificate]) -> None:
        """Verify what a peer has shown, its own certificate first. Raises Untrusted."""
        if not shown:
            raise Untrusted("the peer showed no certificate", CERTIFICATE_REQUIRED)
        own = shown[0]
        _check_purpose(own, server=bool(self.name))
        store = crypto.X509Store()
        for anchor in x509.load_pem_x509_certificates(self.anchors):
            store.add_cert(crypto.X509.from_cryptography(anchor))
        # Go trusts whatever is in the file: also an intermediate, or the peer's own certificate.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        rest = [crypto.X509.from_cryptography(link) for link in shown[1:]]
        try:
            crypto.X509StoreContext(
                store, crypto.X509.from_cryptography(own), rest
            ).verify_certificate()
        except crypto.X509StoreContextError as exc:
            reason = str(exc)
            alert = CERTIFICATE_EXPIRED if "expired" in reason else UNKNOWN_CA
            raise Untrusted(f"the peer's certificate is not trusted: {reason}", alert) from exc
        if self.name:
            _check_name(own, self.name)


def _check_purpose(own: x509.Certificate, *, server: bool) -> None:
    """Source: Go `crypto/x509`, `VerifyOptions.KeyUsages`; RFC 5280, 4.2.1.12."""
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    try:
        usages = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as exc:
        raise Untrusted("the peer's certificate is damaged", BAD_CERTIFICATE) from exc
    if wanted not in usages and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usages:
        role = "server" if server else "client"
        raise Untrusted(f"the peer's certificate is not for a TLS {role}", BAD_CERTIFICATE)


def _check_name(own: x509.Certificate, name: str) -> None:
    verify = verify_certificate_ip_address if is_numeric(name) else verify_certificate_hostname
    try:
        verify(own, name)
    except (
        service_identity.CertificateError,
        service_identity.VerificationError,
        ValueError,
    ) as exc:
        raise Untrusted(
            f"the peer's certificate is not for {name}; check transport.tls.serverName",
            BAD_CERTIFICATE,
        ) from exc


@dataclass(frozen=True, slots=True)
class Setup:
    """How our side of connections is set up.

    Attributes:
        quic: aioquic's part.
        trust: What the peer's certificate has to be; None to take any, or none.
        keepalive_s: Seconds between pings; 0 or less for none.
        reset_key: For the tokens by which a server tells that it has lost its memory.
    """

    quic: QuicConfiguration
    trust: Trust | None = None
    keepalive_s: float = 10.0
    reset_key: bytes = b""


def peer_setup(*, client: bool, name: str, keepalive_s: float, idle_s: float) -> Setup:
    """For peers that know each other already, and verify nothing.

    Args:
        name: The server's, which a client shows.
    """
    quic = _basics(client=client, idle_s=idle_s)
    quic.server_name = name if client else None
    if not client:
        _show(quic, generate_pair())
    return Setup(quic, keepalive_s=keepalive_s)


def client_setup(
    *,
    name: str,
    cert_file: str,
    key_file: str,
    trusted_ca_file: str,
    keepalive_s: float,
    idle_s: float,
) -> Setup:
    """For a client of a server. The files are those of `certs.client_context`, checked there.

    Raises:
        ConfigError: a file cannot be read any more, or is of a kind that QUIC cannot use.
    """
    quic = _basics(client=True, idle_s=idle_s)
    quic.server_name = name
    if cert_file and key_file:
        _show(quic, _read(cert_file) + b"\n" + _read(key_file))
    trust = Trust(_read(trusted_ca_file), name) if trusted_ca_file else None
    return Setup(quic, trust, keepalive_s)


def server_setup(
    context: ServerContext,
    *,
    key_file: str,
    trusted_ca_file: str,
    keepalive_s: float,
    idle_s: float,
) -> Setup:
    """For a server, with the certificate that it shows on TCP.

    Raises:
        ConfigError: as `client_setup`.
    """
    quic = _basics(client=False, idle_s=idle_s)
    if context.certificate is None:
        pair = context.pair
    else:
        pair = _read(str(context.certificate))
        if not context.generated:
            pair += b"\n" + _read(key_file)
    _show(quic, pair)
    trust = Trust(_read(trusted_ca_file)) if trusted_ca_file else None
    secret = hashlib.sha256(b"stateless reset" + pair).digest()
    return Setup(quic, trust, keepalive_s, secret)


def _basics(*, client: bool, idle_s: float) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=client,
        alpn_protocols=[ALPN],
        congestion_control_algorithm="cubic",
        idle_timeout=idle_s if idle_s > 0 else IDLE_S,
        max_datagram_size=DATAGRAM,
        max_stream_data=WINDOW,
        max_data=LINK_WINDOW,
        # Go's speaks both; the first is what we begin with.
        supported_versions=[QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2],
        verify_mode=ssl.CERT_NONE,
    )


def _show(quic: QuicConfiguration, pair: bytes) -> None:
    """Show this certificate and chain, which come with their key, all PEM."""
    certificates = x509.load_pem_x509_certificates(pair)
    found = _PEM_KEY.search(pair)
    assert found is not None  # TLS has loaded it before.
    key = load_pem_private_key(found[0], password=None)
    curves = (ec.SECP256R1, ec.SECP384R1)
    usable = isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    if not usable and not (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, curves)
    ):
        raise ConfigError(
            "QUIC cannot use a private key of this kind; use RSA, Ed25519, or EC with P-256 or "
            "P-384",
            key=LINK_KEYS.key,
        )
    quic.certificate, quic.certificate_chain = certificates[0], certificates[1:]
    quic.private_key = key


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError(f"the file cannot be read: {exc.strerror}", path=path) from exc
