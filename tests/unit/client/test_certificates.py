"""What a client makes of the certificate that it is shown."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest

from pyfrp.client import service as module
from pyfrp.client.service import LoginFailed
from pyfrp.net.certs import fingerprint
from pyfrp.net.peercert import issuer_of, shown_certificate
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.client.test_service import client_of, quick, running, serving
from tests.unit.net.test_certs import Authority

PROTOCOLS = ("tcp", "websocket", "wss", "kcp", "quic")

__all__ = ["quick"]  # The fixture, for this module too.


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def of(cfg, protocol="tcp", **tls):
    cfg.transport.protocol = protocol
    for key, value in tls.items():
        setattr(cfg.transport.tls, key, value)
    return cfg


def shown_by(pair):
    text = Path(pair[0]).read_text()
    return ssl.PEM_cert_to_DER_cert(text)


@contextlib.asynccontextmanager
async def server_with(pair, protocol=""):
    port = free_port()
    tls = {"certFile": pair[0], "keyFile": pair[1]}
    # Of the two over UDP, one has the port of TCP.
    udp = {"kcpBindPort" if protocol == "kcp" else "quicBindPort": port}
    async with serving(port, transport={"tls": tls}, **udp):
        yield port


async def failure(cfg):
    async with running(cfg, ok=LoginFailed) as client:
        with pytest.raises(LoginFailed) as caught:
            await within(client.task, 10, "the failure")
        return str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_pinned_certificate_is_let_in(loop_kind, authority, protocol):
    pair = authority.pair("frps")
    pins = ["00" * 32, f"sha256:{fingerprint(shown_by(pair)).lower()}"]
    async with server_with(pair, protocol) as port:
        cfg = of(client_of(port), protocol, pinned_sha256=pins)
        async with running(cfg) as client:
            await until(lambda: client.logins, "the login")


@pytest.mark.parametrize("mux", [True, False])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_another_certificate_is_refused_before_a_word_is_said(
    loop_kind, authority, quick, protocol, mux
):
    pair = authority.pair("frps")
    async with server_with(pair, protocol) as port:
        cfg = of(client_of(port, mux=mux), protocol, pinned_sha256=["00" * 32])
        text = await failure(cfg)
        assert not quick.has("client login info")
    advice = (
        f'the protocol "websocket", which has its TLS inside, may pass, or ask for an exception '
        f"for 127.0.0.1:{port}"
    )
    if protocol == "websocket":
        advice = f"ask for an exception for 127.0.0.1:{port}"
    assert text == (
        f"the certificate at 127.0.0.1:{port} is not a pinned one (got "
        f"sha256:{fingerprint(shown_by(pair))}, issued by CN=test CA); either something on the way "
        f"opens TLS, probably a corporate proxy: {advice}; or the server has a new one: compare "
        'with "tls certificate" in its log, and correct transport.tls.pinnedSHA256'
    )


async def test_a_certificate_of_another_authority_is_refused_with_its_name(
    loop_kind, authority, tmp_path
):
    folder = tmp_path / "other"
    folder.mkdir()
    mine = Authority(folder)
    async with server_with(authority.pair("frps", san="frps.test")) as port:
        cfg = of(client_of(port), trusted_ca_file=mine.file, server_name="frps.test")
        text = await failure(cfg)
    assert text.startswith("the peer's certificate is not trusted: ")
    assert "(it was issued by CN=test CA); check transport.tls.trustedCaFile" in text
    assert "an issuer that is not yours means that something on the way opens TLS" in text


async def test_a_certificate_for_another_name_is_refused_with_its_issuer(loop_kind, authority):
    async with server_with(authority.pair("frps", san="frps.test")) as port:
        cfg = of(client_of(port), trusted_ca_file=authority.file, server_name="other.test")
        text = await failure(cfg)
    assert "certificate is not valid for 'other.test'. (it was issued by CN=test CA)" in text


async def test_a_servers_certificate_that_ends_soon_is_told_of_once(loop_kind, authority, quick):
    async with server_with(authority.pair("frps", days=(-1, 5))) as port:
        async with running(client_of(port)) as client:
            await until(lambda: client.logins, "the login")
            client._control.end(module.LinkError("again"))
            await until(lambda: len(client.logins) == 2, "the second login")
        told = [text for text in quick.events("warning") if text.startswith("the server's cert")]
        assert len(told) == 1
        assert "the server's certificate ends on" in told[0]
        # And the server itself knows of it.
        assert quick.has("frps.crt (transport.tls.certFile) ends on", "warning")


def test_a_certificate_is_known_although_it_did_not_pass(authority):
    pair = authority.pair("frps", san="frps.test")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*pair)
    client = ssl.create_default_context()
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(back, there, server_hostname="frps.test")
    far = server.wrap_bio(there, back, server_side=True)
    assert shown_certificate(near) is None
    for end in (near, far, near):
        with contextlib.suppress(ssl.SSLError):
            end.do_handshake()
    assert shown_certificate(near) == shown_by(pair)


def test_issuers_in_words(authority):
    assert issuer_of(shown_by(authority.pair("frps"))) == "CN=test CA"
    assert issuer_of(shown_by((authority.file,))) == "itself, CN=test CA"
    assert issuer_of(b"nonsense") == "someone unknown"
