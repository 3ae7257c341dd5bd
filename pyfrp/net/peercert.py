"""What the far end of a TLS connection shows of itself."""

from __future__ import annotations

import ssl

_UNKNOWN = "someone unknown"


def shown_certificate(tls: ssl.SSLObject) -> bytes | None:
    """The certificate that the far end showed, in DER; also when it failed verification.

    After a failed handshake the public interface tells nothing before Python 3.13, and what lies
    below it only with OpenSSL 3.
    """
    try:
        return tls.getpeercert(binary_form=True)
    except ValueError:
        pass  # The handshake is not done.
    try:
        chain = tls._sslobj.get_unverified_chain()  # type: ignore[attr-defined]  # see above
        return bytes(chain[0].public_bytes(ssl._ssl.ENCODING_DER)) if chain else None  # type: ignore[attr-defined]  # as above
    except (AttributeError, ValueError, ssl.SSLError):
        return None


def issuer_of(der: bytes) -> str:
    """Who issued a certificate, as one line: `CN=Corp Proxy CA,O=Corp`."""
    from cryptography import x509  # 40 ms, and only when something went wrong

    try:
        certificate = x509.load_der_x509_certificate(der)
        issuer = certificate.issuer.rfc4514_string()
        if certificate.issuer == certificate.subject:
            return f"itself, {issuer}" if issuer else "itself"
    except ValueError:
        return _UNKNOWN
    return issuer or _UNKNOWN
