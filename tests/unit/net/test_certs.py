from __future__ import annotations

import datetime
import os
import re
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import ConfigError
from pyfrp.net import certs


class Authority:
    """A CA for one test, or, used as issuer of itself, a self-signed certificate."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.file = self.write("ca.pem", self.certificate(self.name, self.key, ca=True))

    def certificate(self, name, key, *, ca=False, san="", days=(-1, 30), digest=None):
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if san:
            names = x509.SubjectAlternativeName([x509.DNSName(san)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, digest or hashes.SHA256())

    def write(self, file, *items) -> str:
        path = self.folder / file
        path.write_bytes(b"".join(self.pem(item) for item in items))
        return str(path)

    @staticmethod
    def pem(item) -> bytes:
        if isinstance(item, x509.Certificate):
            return item.public_bytes(serialization.Encoding.PEM)
        return item.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def pair(self, stem: str, **options) -> tuple[str, str]:
        key = options.pop("key", None) or ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, stem)])
        certificate = self.certificate(name, key, **options)
        return self.write(f"{stem}.crt", certificate), self.write(f"{stem}.key", key)


@pytest.fixture
def authority(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = "frps.test"):
    """Run a handshake in memory; raise what either side raises. Return both ends."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(back, there, server_hostname=name)
    far = server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for end in (near, far):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    near.write(b"x")
    assert far.read(1) == b"x"
    return near, far


# --- what is verified --------------------------------------------------------------------------


def test_without_ca_files_anything_goes(state):
    server = certs.server_context("", "", "", state_dir=state)
    near, far = handshake(server, certs.client_context("", "", "", "whatever.test"))
    assert near.version() == "TLSv1.3"
    assert near.selected_alpn_protocol() is None
    assert far.getpeercert(binary_form=True) is None


@pytest.mark.parametrize("name", ["10.0.0.1", "::1", None])
def test_server_name_may_be_an_address_or_absent(state, name):
    server = certs.server_context("", "", "", state_dir=state)
    handshake(server, certs.client_context("", "", "", name or ""), name)


def test_client_with_a_ca_accepts_its_chain_and_name_only(authority, state):
    pair = authority.pair("frps", san="frps.test")
    server = certs.server_context(*pair, "", state_dir=state)
    client = certs.client_context("", "", authority.file, "frps.test")
    handshake(server, client)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, client, "other.test")
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        handshake(certs.server_context("", "", "", state_dir=state), client)


def test_common_name_is_no_substitute_for_a_subject_alternative_name(authority, state):
    server = certs.server_context(*authority.pair("frps.test"), "", state_dir=state)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'frps\.test'"):
        handshake(server, certs.client_context("", "", authority.file, "frps.test"))


def test_server_with_a_ca_demands_a_certificate_that_chains_to_it(authority, state):
    server = certs.server_context("", "", authority.file, state_dir=state)
    good = authority.pair("client")
    handshake(server, certs.client_context(*good, "", "frps.test"))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server, certs.client_context("", "", "", "frps.test"))
    other = Authority(authority.folder).pair("stranger")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server, certs.client_context(*other, "", "frps.test"))


def test_ca_file_may_hold_a_servers_own_certificate(authority, state):
    cert, key = authority.pair("frps", san="frps.test")
    server = certs.server_context(cert, key, "", state_dir=state)
    handshake(server, certs.client_context("", "", cert, "frps.test"))


def test_ca_file_may_hold_several_certificates_and_text(authority, state):
    other = Authority(authority.folder)
    cert, key = authority.pair("frps", san="frps.test")
    server = certs.server_context(cert, key, "", state_dir=state)
    text = authority.folder / "bundle"
    text.write_bytes(
        b"# ours\n"
        + other.pem(other.certificate(other.name, other.key, ca=True, days=(-9, -1)))
        + other.pem(authority.certificate(authority.name, authority.key, ca=True)).replace(
            b"\n", b"\r\n"
        )
    )
    handshake(server, certs.client_context("", "", str(text), "frps.test"))


def test_tls_before_1_2_is_refused(state):
    for context in (
        certs.server_context("", "", "", state_dir=state),
        certs.client_context("", "", "", "n"),
    ):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_certificate_without_its_key_is_not_used(authority, state):
    cert, key = authority.pair("frps")
    assert certs.server_context(cert, "", "", state_dir=state).generated
    assert certs.server_context("", key, "", state_dir=state).generated
    certs.client_context(cert, "", "", "n")


# --- errors ------------------------------------------------------------------------------------


def encrypted(authority):
    cert, _ = authority.pair("enc")
    key = authority.folder / "enc.key"
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pass"),
        )
    )
    return cert, str(key)


def file(authority, content: bytes, name: str = "file") -> str:
    path = authority.folder / name
    path.write_bytes(content)
    return str(path)


def damaged(authority) -> str:
    cert, _ = authority.pair("damaged")
    lines = Path(cert).read_text().splitlines()
    lines[1] = "A" * len(lines[1])
    return file(authority, "\n".join(lines).encode())


PAIRS = {
    "missing certificate": (
        lambda a: (str(a.folder / "none"), a.pair("x")[1]),
        r"none: the certificate file does not exist; check transport\.tls\.certFile",
    ),
    "certificate with a NUL in its name": (
        lambda a: ("a\0b", a.pair("x")[1]),
        r"the certificate file has a NUL in its name; check transport\.tls\.certFile",
    ),
    "missing relative certificate": (
        lambda a: ("none.crt", a.pair("x")[1]),
        r"^none\.crt: .*does not exist \(looked for from /",
    ),
    "missing key": (
        lambda a: (a.pair("x")[0], str(a.folder / "none")),
        r"none: the private key file does not exist; check transport\.tls\.keyFile",
    ),
    "certificate is a directory": (
        lambda a: (str(a.folder), a.pair("x")[1]),
        "cannot be read: Is a directory",
    ),
    "certificate is empty": (
        lambda a: (file(a, b""), a.pair("x")[1]),
        "holds no PEM certificate; PEM begins with",
    ),
    "certificate is a key": (
        lambda a: (a.pair("x")[1], a.pair("x")[1]),
        "holds no PEM certificate",
    ),
    "certificate has bad base64": (
        lambda a: (
            file(a, b"-----BEGIN CERTIFICATE-----\nAAAAA\n-----END CERTIFICATE-----\n"),
            a.pair("x")[1],
        ),
        "damaged PEM certificate",
    ),
    "certificate is damaged": (
        lambda a: (damaged(a), a.pair("x")[1]),
        "holds a damaged certificate; check it with",
    ),
    "key is a certificate": (
        lambda a: (a.pair("x")[0], a.pair("x")[0]),
        "holds no PEM private key",
    ),
    "key has a passphrase": (encrypted, r"enc\.key: .*protected by a passphrase.*openssl pkey"),
    "key of another certificate": (
        lambda a: (a.pair("x")[0], a.pair("y")[1]),
        r"y\.key: the private key does not belong to the certificate in .*x\.crt",
    ),
    "key is damaged": (
        lambda a: (
            a.pair("x")[0],
            file(a, b"-----BEGIN PRIVATE KEY-----\nMIG=\n-----END PRIVATE KEY-----\n"),
        ),
        r"x\.crt: certificate and private key .*file cannot be used",
    ),
    "key is too small": (
        lambda a: a.pair("weak", key=rsa.generate_private_key(65537, 1024)),
        r"weak\.crt: .* refuses the certificate as too weak",
    ),
}


@pytest.mark.parametrize(("make", "words"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("side", ["server", "client"])
def test_unusable_pair_is_a_config_error_that_says_which_file_and_why(authority, make, words, side):
    pair = make(authority)
    build = (
        certs.server_context if side == "server" else partial(certs.client_context, server_name="n")
    )
    with pytest.raises(ConfigError, match=words) as caught:
        build(*pair, trusted_ca_file="")
    assert caught.value.path in pair
    assert caught.value.key in ("transport.tls.certFile", "transport.tls.keyFile")


CAS = {
    "missing": (lambda a: "/none/ca.pem", "/none/ca.pem: the trusted CA file does not exist"),
    "no certificate": (lambda a: file(a, b"hello"), "the trusted CA file holds no PEM certificate"),
    "damaged": (damaged, "holds a damaged certificate"),
    "expired": (
        lambda a: a.write("old", a.certificate(a.name, a.key, ca=True, days=(-9, -1))),
        r"old: the certificate in .*old \(transport\.tls\.trustedCaFile\) expired on "
        r"\d{4}-\d\d-\d\d, whoever verifies .*: renew it and restart, or see that this .* clock",
    ),
}


@pytest.mark.parametrize(("make", "words"), CAS.values(), ids=CAS)
def test_unusable_ca_file_is_a_config_error(authority, state, make, words):
    ca = make(authority)
    for build in (
        lambda: certs.server_context("", "", ca, state_dir=state),
        lambda: certs.client_context("", "", ca, "n"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            build()
        assert (caught.value.path, caught.value.key) == (ca, "transport.tls.trustedCaFile")


def test_file_that_may_not_be_read_is_a_config_error(authority, monkeypatch):
    pair = authority.pair("x")

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(certs.Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match="may not be read by this user; change its owner"):
        certs.client_context(*pair, "", "n")


@pytest.mark.parametrize("name", [".frps.test", "a" * 64 + ".test", "x\0y", "a..b"])
def test_name_that_tls_cannot_carry_is_a_config_error(name):
    with pytest.raises(ConfigError, match=r"cannot be used as a server name") as caught:
        certs.client_context("", "", "", name)
    assert caught.value.key == "transport.tls.serverName"


# --- reading certificates by hand --------------------------------------------------------------


@pytest.mark.parametrize("year", [1990, 2026, 2049, 2050, 2500])
def test_end_of_life_is_read_from_both_forms_of_time(year):
    key = ec.generate_private_key(ec.SECP256R1())
    end = datetime.datetime(year, 2, 28, 23, 59, 58, tzinfo=datetime.UTC)
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1 << 150)
        .not_valid_before(datetime.datetime(1980, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert certs.not_after(der) == end.timestamp()
    assert (
        certs.fingerprint(der).replace(":", "").lower()
        == certificate.fingerprint(hashes.SHA256()).hex()
    )


@given(st.binary(max_size=200))
def test_garbage_is_no_certificate(data):
    with pytest.raises((ValueError, IndexError)):
        certs.not_after(data)


def test_damaged_certificate_raises_the_errors_it_documents(state):
    certs.server_context("", "", "", state_dir=state)
    der = certs._own_der((state / certs.GENERATED_FILE).read_bytes())
    for at in range(len(der)):
        for flip in (0x01, 0x80, 0xFF):
            bad = bytearray(der)
            bad[at] ^= flip
            try:
                certs.not_after(bytes(bad))
            except (ValueError, IndexError):
                pass


# --- the generated certificate -----------------------------------------------------------------


def test_generated_certificate_is_kept_with_tight_modes(state):
    first = certs.server_context("", "", "", state_dir=state)
    second = certs.server_context("", "", "", state_dir=state)
    assert first.generated
    assert (first.change, second.change) == ("", "")
    assert first.certificate == state / "server-tls.pem"
    assert first.fingerprint == second.fingerprint
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", first.fingerprint)
    assert stat.S_IMODE(first.certificate.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert os.listdir(state) == ["server-tls.pem"]


def test_fingerprint_is_that_of_the_certificate_on_the_wire(authority, state):
    for pair in (("", ""), authority.pair("frps")):
        server = certs.server_context(*pair, "", state_dir=state)
        near, _ = handshake(server, certs.client_context("", "", "", "n"))
        assert certs.fingerprint(near.getpeercert(binary_form=True)) == server.fingerprint
        assert server.generated == (not pair[0])


def test_generated_certificate_is_valid_for_ten_years_from_an_hour_ago(state):
    path = certs.server_context("", "", "", state_dir=state).certificate
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    now = time.time()
    assert abs(certificate.not_valid_before_utc.timestamp() - (now - 3600)) < 60
    assert abs(certificate.not_valid_after_utc.timestamp() - (now + 3650 * 86400)) < 60
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)


def test_generated_certificate_can_be_pinned_by_a_client(state):
    server = certs.server_context("", "", "", state_dir=state)
    client = certs.client_context("", "", str(server.certificate), "pyfrp")
    handshake(server, client, "pyfrp")


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"]
)
def test_kept_file_that_is_damaged_is_replaced(state, content):
    state.mkdir()
    path = state / certs.GENERATED_FILE
    path.write_bytes(content)
    first = certs.server_context("", "", "", state_dir=state)
    assert first.change.startswith(f"the tls certificate kept in {path} was damaged or expired")
    second = certs.server_context("", "", "", state_dir=state)
    assert second.fingerprint == first.fingerprint
    assert second.change == ""
    assert os.listdir(state) == ["server-tls.pem"]


def test_kept_certificate_that_expired_is_replaced(authority, state):
    state.mkdir()
    cert, key = authority.pair("old", days=(-20, -10))
    (state / certs.GENERATED_FILE).write_text(Path(key).read_text() + Path(cert).read_text())
    server = certs.server_context("", "", "", state_dir=state)
    assert certs.not_after(certs._own_der(server.certificate.read_bytes())) > time.time()


def test_concurrent_starts_agree_on_one_certificate(state):
    contexts = []
    threads = [
        threading.Thread(
            target=lambda: contexts.append(certs.server_context("", "", "", state_dir=state))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({context.fingerprint for context in contexts}) == 1
    assert len(contexts) == 8
    assert os.listdir(state) == ["server-tls.pem"]


def test_file_system_without_links_works_too(state, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first = certs.server_context("", "", "", state_dir=state)
    assert certs.server_context("", "", "", state_dir=state).fingerprint == first.fingerprint
    assert os.listdir(state) == ["server-tls.pem"]


def in_memory(state) -> certs.ServerContext:
    state.write_text("in the way")
    context = certs.server_context("", "", "", state_dir=state)
    assert context.certificate is None
    assert context.generated
    near, _ = handshake(context, certs.client_context("", "", "", "n"))
    assert certs.fingerprint(near.getpeercert(binary_form=True)) == context.fingerprint
    return context


def test_without_a_place_to_keep_it_the_certificate_lives_in_memory(state):
    change = in_memory(state).change
    assert "a new one at each start" in change
    assert f"it cannot be kept in {state} (file exists)" in change


def test_without_a_home_the_certificate_lives_in_memory(monkeypatch):
    monkeypatch.setattr(certs, "default_state_dir", lambda: None)
    context = certs.server_context("", "", "")
    assert context.certificate is None
    assert "it cannot be kept (there is no home directory)" in context.change


def test_without_memory_files_a_temporary_one_is_used_and_removed(state, monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create")
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    in_memory(state)
    assert os.listdir(folder) == []


def test_without_any_place_at_all_the_error_says_what_to_do(state, monkeypatch):
    def refuse(*_args, **_keys):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(ConfigError, match="set STATE_DIRECTORY to a directory"):
        in_memory(state)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"STATE_DIRECTORY": "/a:/b", "XDG_STATE_HOME": "/x"}, "/a"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/pyfrp"),
        ({"HOME": "/h"}, "/h/.local/state/pyfrp"),
    ],
)
def test_state_directory_is_systemds_then_xdgs_then_the_homes(monkeypatch, environment, expected):
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(certs.default_state_dir()) == expected


def test_user_without_a_home_has_no_state_directory(monkeypatch):
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(certs.Path, "home", homeless)
    assert certs.default_state_dir() is None
    assert certs.server_context("", "", "").certificate is None


def test_state_directory_is_used_unless_one_is_given(monkeypatch, tmp_path, state):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "systemd"))
    assert certs.server_context("", "", "").certificate == tmp_path / "systemd" / "server-tls.pem"
    assert certs.server_context("", "", "", state_dir=state).certificate.parent == state


def test_start_with_a_kept_certificate_loads_no_certificate_library(state):
    certs.server_context("", "", "", state_dir=state)
    program = (
        "import sys; from pathlib import Path; from pyfrp.net import certs;"
        f"certs.server_context('', '', '', state_dir=Path({str(state)!r}));"
        "assert 'cryptography' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_a_generated_certificate_may_have_a_file_and_keys_of_its_own(tmp_path):
    keys = certs.PairKeys("plugin.crtPath", "plugin.keyPath")
    first = certs.server_context("", "", "", state_dir=tmp_path, keep_as="other.pem", keys=keys)
    again = certs.server_context("", "", "", state_dir=tmp_path, keep_as="other.pem", keys=keys)
    assert first.certificate == tmp_path / "other.pem"
    assert first.fingerprint == again.fingerprint
    with pytest.raises(ConfigError) as caught:
        certs.server_context(str(tmp_path / "none"), "x", "", keys=keys)
    assert caught.value.key == "plugin.crtPath"
