"""TLS contexts, and the certificate that a server without one makes for itself.

A generated certificate is made once and kept, so that its fingerprint can be compared and a copy
of it can serve clients as `trustedCaFile` (with `serverName = "pyfrp"`). frp makes a new one at
each start.

Source of the rules: frp `pkg/transport/tls.go`; Go `crypto/tls` and `crypto/x509` (what is
verified, versions).
"""

from __future__ import annotations

import binascii
import hashlib
import os
import re
import secrets
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pyfrp.errors import ConfigError
from pyfrp.net.expiry import Lifetime
from pyfrp.net.sockets import explain

GENERATED_FILE = "server-tls.pem"
"""Key and certificate in the state directory, in one file so that they always belong together."""
GENERATED_NAME = "pyfrp"
"""The name in a generated certificate, for clients that pin it."""

_HOUR, _YEAR = 3600, 365 * 86400
_CA_KEY = "transport.tls.trustedCaFile"
_PEM_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----"
)


class PairKeys(NamedTuple):
    """Where the operator gave a certificate and its key: the keys of the file, for messages."""

    cert: str = "transport.tls.certFile"
    key: str = "transport.tls.keyFile"


LINK_KEYS = PairKeys()


class LinkContext(ssl.SSLContext):
    """A TLS context that knows when the certificates end that it was made of."""

    lifetimes: tuple[Lifetime, ...] = ()
    """Of the files that the operator gave."""


class ServerContext(LinkContext):
    """A server's TLS context that knows its own certificate, which OpenSSL does not tell."""

    fingerprint: str = ""
    """SHA-256 of the certificate, as `fingerprint` gives it."""
    certificate: Path | None = None
    """The file that holds it; None if it exists only in memory."""
    generated: bool = False
    """It is our own work, not from `certFile`."""
    pair: bytes = b""
    """Key and certificate as PEM where no file holds them."""
    change: str = ""
    """Why it is not that of the last start, or will not be that of the next, where it should be:
    for clients that pin it."""


def server_context(
    cert_file: str,
    key_file: str,
    trusted_ca_file: str,
    *,
    state_dir: Path | None = None,
    keep_as: str = GENERATED_FILE,
    keys: PairKeys = LINK_KEYS,
) -> ServerContext:
    """Make the context of a server.

    Args:
        cert_file: PEM chain; together with `key_file`, or else a generated certificate is used.
        key_file: PEM private key without a passphrase.
        trusted_ca_file: If given, clients must show a certificate that chains to one in it.
        state_dir: Where the generated certificate is kept; see `default_state_dir`.
        keep_as: The name of its file there.
        keys: Of `cert_file` and `key_file`.

    Raises:
        ConfigError: A file is missing, unreadable, no PEM, or does not fit the other, or all
            authorities expired.
    """
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Of use only to clients that reconnect with a session; each ticket costs every handshake.
    context.num_tickets = 1
    context.options |= ssl.OP_NO_RENEGOTIATION
    if cert_file and key_file:
        context.fingerprint = _load_pair(context, cert_file, key_file, keys)
        context.certificate = Path(cert_file)
    else:
        _load_generated(context, state_dir or default_state_dir(), keep_as, keys)
    if trusted_ca_file:
        context.lifetimes += (_load_ca(context, trusted_ca_file),)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    cert_file: str, key_file: str, trusted_ca_file: str, server_name: str
) -> LinkContext:
    """Make the context of a client.

    Args:
        cert_file: PEM chain to show to the server; used only together with `key_file`.
        key_file: PEM private key without a passphrase.
        trusted_ca_file: If given, the server's certificate must chain to one in it and carry
            `server_name` as a subject alternative name. Otherwise nothing is verified at all.
        server_name: Host name or IP address, as it will be given to the handshake.

    Raises:
        ConfigError: A file is missing, unreadable, no PEM, or does not fit the other, or all
            authorities expired; or a name that TLS cannot carry.
    """
    context = LinkContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if trusted_ca_file:
        context.lifetimes += (_load_ca(context, trusted_ca_file),)
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
        context.hostname_checks_common_name = False
    if cert_file and key_file:
        _load_pair(context, cert_file, key_file, LINK_KEYS)
    try:
        # What the handshake will do with the name, without one.
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_name or None)
    except (TypeError, ValueError) as exc:
        raise ConfigError(
            f"{server_name!r} cannot be used as a server name: {exc}; set "
            "transport.tls.serverName to the name in the server's certificate",
            key="transport.tls.serverName",
        ) from exc
    return context


def trusting_context(ca_file: str, key: str) -> LinkContext:
    """Make the context for a server that is no frp, such as an identity provider.

    Args:
        ca_file: PEM file of the authorities to trust instead of the system's; "" for no check.
        key: Where the operator named it, for messages.

    Raises:
        ConfigError: The file is missing, unreadable, no PEM, or expired.
    """
    context = LinkContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        context.lifetimes = (_load_ca(context, ca_file, key),)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a DER certificate, as pairs of hex digits with colons."""
    return hashlib.sha256(der).digest().hex(":").upper()


def default_state_dir() -> Path | None:
    """Return where this user's programs keep state, or None if there is no such place."""
    given = os.environ.get("STATE_DIRECTORY")  # systemd, with StateDirectory= in the unit
    if given:
        return Path(given.split(":")[0])
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError:
        return None  # No home directory.
    return base / "pyfrp"


# --- files of the operator ---------------------------------------------------------------------


def _load_pair(context: LinkContext, cert_file: str, key_file: str, keys: PairKeys) -> str:
    """Load a certificate chain and its key; return the fingerprint of the first certificate.

    One that expired is no reason not to start, as in frp: peers that pin it or verify nothing do
    not mind, and a machine that comes up with a wrong clock must not stay away. It is told of.
    """
    leaf = _certificates(cert_file, "certificate", keys.cert)[0]
    ends = _ends(leaf, cert_file, keys.cert)
    key = _read(key_file, "private key", keys.key)
    if b"PRIVATE KEY-----" not in key:
        raise ConfigError(
            "the private key file holds no PEM private key; PEM begins with a line like "
            "-----BEGIN PRIVATE KEY-----",
            path=key_file,
            key=keys.key,
        )
    if b"ENCRYPTED" in key:
        raise ConfigError(
            "the private key is protected by a passphrase, and nobody is there to type it; store "
            f"it without: openssl pkey -in {key_file} -out plain.key",
            path=key_file,
            key=keys.key,
        )
    try:
        # The callback keeps OpenSSL from ever asking on the terminal.
        context.load_cert_chain(cert_file, key_file, password=lambda: b"")
    except ssl.SSLError as exc:
        reason = exc.reason or ""
        if "MISMATCH" in reason:
            raise ConfigError(
                f"the private key does not belong to the certificate in {cert_file}; give the key "
                "that the certificate was requested with",
                path=key_file,
                key=keys.key,
            ) from exc
        if "TOO_SMALL" in reason or "TOO_WEAK" in reason:
            raise ConfigError(
                f"this system's TLS library refuses the certificate as too weak ({reason}); use "
                "RSA with 2048 bits or more, or EC, and SHA-256",
                path=cert_file,
                key=keys.cert,
            ) from exc
        raise ConfigError(
            f"certificate and private key {key_file} cannot be used: {reason or exc}; check them "
            "with: openssl x509 -noout -in ... and openssl pkey -noout -in ...",
            path=cert_file,
            key=keys.cert,
        ) from exc
    context.lifetimes += (Lifetime(f"the certificate in {cert_file} ({keys.cert})", ends),)
    return fingerprint(leaf)


def _load_ca(context: ssl.SSLContext, ca_file: str, key: str = _CA_KEY) -> Lifetime:
    certificates = _certificates(ca_file, "trusted CA", key)
    # Several are there for the time of a change; the last one must not end.
    ends = max(_ends(certificate, ca_file, key) for certificate in certificates)
    lifetime = Lifetime(f"the certificate in {ca_file} ({key})", ends)
    if ends < time.time():  # Unlike an own one: with it, nobody could ever be let in.
        raise ConfigError(lifetime.warning(time.time()), path=ca_file, key=key)
    try:
        context.load_verify_locations(cadata=b"".join(certificates))
    except ssl.SSLError as exc:
        raise ConfigError(
            f"the trusted CA file cannot be used: {exc.reason or exc}", path=ca_file, key=key
        ) from exc
    # Go trusts whatever is in the file: also an intermediate, or a server's own certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return lifetime


def _read(path: str, what: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as exc:
        hint = "" if os.path.isabs(path) else f" (looked for from {Path.cwd()})"
        raise ConfigError(
            f"the {what} file does not exist{hint}; check {key}", path=path, key=key
        ) from exc
    except ValueError as exc:
        reason = f"the {what} file has a NUL in its name; check {key}"
        raise ConfigError(reason, path=path, key=key) from exc
    except PermissionError as exc:
        raise ConfigError(
            f"the {what} file may not be read by this user; change its owner or mode",
            path=path,
            key=key,
        ) from exc
    except OSError as exc:
        raise ConfigError(
            f"the {what} file cannot be read: {exc.strerror}; check {key}", path=path, key=key
        ) from exc


def _certificates(path: str, what: str, key: str) -> list[bytes]:
    """Return the DER of each certificate in a PEM file; there is at least one."""
    blocks = _PEM_CERTIFICATE.findall(_read(path, what, key))
    if not blocks:
        raise ConfigError(
            f"the {what} file holds no PEM certificate; PEM begins with "
            "-----BEGIN CERTIFICATE-----, a DER file is converted with: openssl x509 -inform der",
            path=path,
            key=key,
        )
    try:
        return [binascii.a2b_base64(block) for block in blocks]
    except binascii.Error as exc:
        raise ConfigError(
            f"the {what} file holds a damaged PEM certificate: {exc}", path=path, key=key
        ) from exc


def _ends(der: bytes, path: str, key: str) -> float:
    try:
        return not_after(der)
    except (ValueError, IndexError) as exc:
        raise ConfigError(
            "the file holds a damaged certificate; check it with: openssl x509 -noout -in ...",
            path=path,
            key=key,
        ) from exc


def not_after(der: bytes) -> float:
    """Return the end of a DER certificate's life in Unix time.

    Read by hand, because the package that can read certificates costs a start 40 ms.

    Raises:
        ValueError: It is not a certificate.
        IndexError: It ends too early.

    Source: RFC 5280, 4.1.
    """
    _, at, _ = _element(der, 0)  # Certificate
    _, at, _ = _element(der, at)  # TBSCertificate
    tag, _, end = _element(der, at)
    if tag == 0xA0:  # version; absent in v1
        _, _, end = _element(der, end)  # serialNumber
    _, _, end = _element(der, end)  # signature
    _, _, end = _element(der, end)  # issuer
    tag, at, _ = _element(der, end)  # validity
    if tag != 0x30:
        raise ValueError("no validity")
    _, _, at = _element(der, at)  # notBefore
    tag, at, end = _element(der, at)
    text = der[at:end].decode("ascii")
    if tag == 0x17:  # UTCTime: two digits of the year
        text = ("19" if text >= "5" else "20") + text
    if len(text) != 15 or not text.endswith("Z"):
        raise ValueError("no time in UTC")
    numbers = [int(text[i : i + 2]) for i in range(4, 14, 2)]
    month, day, hour, minute, second = numbers
    return datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the DER element at `at`, and where its content begins and ends."""
    tag, length, at = der[at], der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[at : at + count], "big")
        at += count
    if at + length > len(der):
        raise ValueError("truncated")
    return tag, at, at + length


# --- our own certificate -----------------------------------------------------------------------


def _load_generated(
    context: ServerContext, state_dir: Path | None, keep_as: str, keys: PairKeys
) -> None:
    context.generated = True
    why = "(there is no home directory)"
    if state_dir is not None:
        path = state_dir / keep_as
        try:
            there = path.exists()
            if there and _load_kept(context, path):
                return
            _keep(path, generate_pair(), replace=there)
            if _load_kept(context, path):
                if there:
                    context.change = (
                        f"the tls certificate kept in {path} was damaged or expired, and is a new "
                        "one now: clients that pin the old one refuse it"
                    )
                return
            why = f"in {state_dir}"
        except OSError as exc:  # A new one each time, as in frp.
            why = f"in {state_dir} ({explain(exc)})"
    context.change = (
        f"the tls certificate is a new one at each start, for it cannot be kept {why}: clients "
        "that pin it will refuse the next one; set STATE_DIRECTORY to a directory that this user "
        "may write to"
    )
    pem = generate_pair()
    _load_from_memory(context, pem, keys)
    context.pair = pem
    context.fingerprint = fingerprint(_own_der(pem))


def _load_kept(context: ServerContext, path: Path) -> bool:
    """Load the certificate kept at `path`; False if it is damaged or expired."""
    pem = path.read_bytes()
    try:
        der = _own_der(pem)
        if not_after(der) < time.time():
            return False
        context.load_cert_chain(path, password=lambda: b"")
    except (ValueError, IndexError, ssl.SSLError):
        return False
    context.fingerprint = fingerprint(der)
    context.certificate = path
    return True


def _own_der(pem: bytes) -> bytes:
    match = _PEM_CERTIFICATE.search(pem)
    if match is None:
        raise ValueError("no certificate")
    return binascii.a2b_base64(match[1])


def _keep(path: Path, pem: bytes, *, replace: bool) -> None:
    """Put `pem` at `path` in one step.

    Unless it shall `replace` a file of no use, the first of several programs that do so at once
    wins, and all use its file.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temp, path)
            return
        try:
            os.link(temp, path)
        except FileExistsError:
            pass  # Another one was faster, and its file is complete.
        except (OSError, NotImplementedError):
            os.replace(temp, path)  # A file system without links.
    finally:
        temp.unlink(missing_ok=True)


def _load_from_memory(context: ssl.SSLContext, pem: bytes, keys: PairKeys) -> None:
    # OpenSSL's Python face reads certificates from files only.
    if hasattr(os, "memfd_create"):
        try:
            fd = os.memfd_create("pyfrp-tls")
            try:
                os.write(fd, pem)
                context.load_cert_chain(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
            return
        except OSError:
            pass  # Forbidden, or /proc is not mounted.
    import tempfile  # It brings half a dozen modules along.

    try:
        fd, name = tempfile.mkstemp(prefix="pyfrp-tls-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(pem)
            context.load_cert_chain(name)
        finally:
            os.unlink(name)
    except OSError as exc:
        raise ConfigError(
            f"no place for the generated TLS certificate: {exc}; set STATE_DIRECTORY to a "
            "directory that this user may write to, or give "
            f"{keys.cert.rpartition('.')[2]} and {keys.key.rpartition('.')[2]}",
            key=keys.cert,
        ) from exc


def generate_pair() -> bytes:
    """Make a key and a self-signed certificate for it; return both as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = time.time()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, GENERATED_NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # An hour back, for clients whose clock is a little behind.
        .not_valid_before(datetime.fromtimestamp(now - _HOUR, UTC))
        .not_valid_after(datetime.fromtimestamp(now + 10 * _YEAR, UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(GENERATED_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
