"""Certificates of QUIC connections: what is shown, and what is believed."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest

pytest.importorskip("aioquic", reason="QUIC is optional, and not installed here")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyfrp.errors import ConfigError
from pyfrp.net import quic_tls
from pyfrp.net.certs import ServerContext, fingerprint, generate_pair, server_context
from pyfrp.net.quic_tls import Trust, Untrusted, client_setup, server_setup
from tests.support.authority import Authority, Pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def shown(pair: Pair) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pair.cert.read_bytes())


def refused(trust: Trust, *certificates: x509.Certificate) -> Untrusted:
    with pytest.raises(Untrusted) as caught:
        trust.check(certificates)
    return caught.value


def test_a_certificate_of_the_authority_for_the_name_is_believed(authority: Authority):
    anchors = authority.file.read_bytes()
    pair = authority.pair("server", "frps.test", "*.wild.test", "127.0.0.1", "::1")
    for name in ("frps.test", "FRPS.test", "a.wild.test", "127.0.0.1", "::1"):
        Trust(anchors, name).check(shown(pair))
    for name in ("other.test", "a.b.wild.test", "127.0.0.2", "::2"):
        problem = refused(Trust(anchors, name), *shown(pair))
        assert str(problem) == (
            f"the peer's certificate is not for {name}; check transport.tls.serverName"
        )
        assert problem.alert == quic_tls.BAD_CERTIFICATE


def test_a_certificate_without_names_is_for_nobody(authority: Authority):
    pair = authority.pair("server")
    assert "is not for frps.test" in str(
        refused(Trust(authority.file.read_bytes(), "frps.test"), *shown(pair))
    )


def test_a_stranger_is_not_believed(authority: Authority, tmp_path: Path):
    other = Authority(tmp_path, "other")
    trust = Trust(other.file.read_bytes(), "frps.test")
    problem = refused(trust, *shown(authority.pair("server", "frps.test")))
    assert str(problem).startswith("the peer's certificate is not trusted: ")
    assert problem.alert == quic_tls.UNKNOWN_CA


def test_whatever_is_in_the_file_is_believed(authority: Authority):
    """A server's own certificate, too, as with Go."""
    pair = authority.pair("server", "frps.test")
    Trust(pair.cert.read_bytes(), "frps.test").check(shown(pair))
    own = generate_pair()
    Trust(own, "pyfrp").check(x509.load_pem_x509_certificates(own))


def test_an_expired_certificate_is_told_as_such(authority: Authority):
    pair = authority.pair("client", days=-1)
    problem = refused(Trust(authority.file.read_bytes()), *shown(pair))
    assert "expired" in str(problem)
    assert problem.alert == quic_tls.CERTIFICATE_EXPIRED


def test_a_certificate_is_for_the_role_that_it_names(authority: Authority):
    anchors = authority.file.read_bytes()
    server, client = authority.pair("server", "frps.test"), authority.pair("client", "frps.test")
    Trust(anchors).check(shown(client))
    assert "is not for a TLS client" in str(refused(Trust(anchors), *shown(server)))
    assert "is not for a TLS server" in str(refused(Trust(anchors, "frps.test"), *shown(client)))


def test_a_certificate_that_cannot_be_read_is_refused_in_words(authority: Authority):
    """Anybody can show one, before anything of it is verified."""
    key = ec.generate_private_key(ec.SECP256R1())
    nobody, now = x509.Name([]), datetime.datetime.now(datetime.UTC)
    draft = x509.CertificateBuilder(nobody, nobody, key.public_key(), 1, now, now)
    for number in (1, 2):
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.3.5555.{number}"), b"\5\0")
        draft = draft.add_extension(extension, critical=False)
    whole = draft.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    second = b"\x2b\xab\x33\x02"
    assert second in whole
    twice = x509.load_der_x509_certificate(whole.replace(second, b"\x2b\xab\x33\x01"))
    for name in ("", "frps.test"):
        problem = refused(Trust(authority.file.read_bytes(), name), twice)
        assert problem.alert == quic_tls.BAD_CERTIFICATE
        assert "is damaged" in str(problem)


def test_a_client_that_shows_none_is_told_what_is_missing(authority: Authority):
    assert refused(Trust(authority.file.read_bytes())).alert == quic_tls.CERTIFICATE_REQUIRED


def test_a_server_shows_what_it_shows_on_tcp(authority: Authority, tmp_path: Path):
    pair = authority.pair("server", "frps.test")
    for cert, key in ((str(pair.cert), str(pair.key)), ("", "")):
        context = server_context(cert, key, "", state_dir=tmp_path)
        setup = server_setup(context, key_file=key, trusted_ca_file="", keepalive_s=1, idle_s=0)
        der = setup.quic.certificate.public_bytes(serialization.Encoding.DER)
        assert fingerprint(der) == context.fingerprint
        assert setup.trust is None
        assert setup.quic.idle_timeout == quic_tls.IDLE_S
        again = server_setup(context, key_file=key, trusted_ca_file="", keepalive_s=1, idle_s=0)
        assert setup.reset_key == again.reset_key != b""


def test_a_server_without_a_place_for_its_certificate_shows_it_all_the_same(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    context = server_context("", "", "", state_dir=tmp_path / "file")
    assert context.certificate is None
    setup = server_setup(context, key_file="", trusted_ca_file="", keepalive_s=1, idle_s=1)
    der = setup.quic.certificate.public_bytes(serialization.Encoding.DER)
    assert fingerprint(der) == context.fingerprint


def test_a_key_that_quic_cannot_use_is_refused_in_words():
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    key = ec.generate_private_key(ec.SECP521R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = generate_pair()
    context.pair = key + pem[pem.index(b"-----BEGIN CERT") :]
    with pytest.raises(ConfigError, match="QUIC cannot use a private key of this kind"):
        server_setup(context, key_file="", trusted_ca_file="", keepalive_s=1, idle_s=1)


def test_a_file_that_has_gone_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        client_setup(
            name="x",
            cert_file="",
            key_file="",
            trusted_ca_file=str(tmp_path / "gone.pem"),
            keepalive_s=1,
            idle_s=1,
        )
