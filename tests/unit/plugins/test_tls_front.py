"""The plugins that end the user's TLS: https2http, https2https, tls2raw."""

from __future__ import annotations

from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from pyfrp.errors import ConfigError
from pyfrp.net.certs import fingerprint
from pyfrp.plugins import tls_front
from tests.support.backends import HttpBackend
from tests.support.services import EchoBackend, Pipe, ScriptBackend, running
from tests.support.waiting import until
from tests.unit.net.tls_pair import certificate, server_context
from tests.unit.plugins.scene import TlsUser, plugin, user

GET = b"GET /head HTTP/1.1\r\nHost: A.test:8\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
TLS_TYPES = ["https2http", "https2https", "tls2raw"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where generated certificates are kept."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state"


def made(kind: str = "https2http", port: int = 1, **options):
    return plugin(type=kind, localAddr=f"127.0.0.1:{port}", **options)


# -- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["https2http", "https2https"])
@pytest.mark.parametrize("name", [None, "a.test", "A.TEST"])
async def test_requests_within_tls_reach_the_backend_with_who_called(kind, name, loop_kind):
    backend = HttpBackend()
    backend.tls = server_context() if kind == "https2https" else None
    p = made(kind, backend.port, hostHeaderRewrite="b.test", requestHeaders={"set": {"X-A": "1"}})
    async with running(backend):
        async with user(p) as u:
            t = await TlsUser.open(u, name, ["http/1.1"])
            t.tls.write(GET)
            got = await t.hears(b"X-A: 1\r\n\r\n")
            assert got.endswith(
                b"\r\n\r\nGET /head HTTP/1.1\r\nHost: b.test\r\n"
                b"X-Forwarded-For: 192.0.2.1, 198.51.100.3\r\n"
                b"X-Forwarded-Host: A.test:8\r\nX-Forwarded-Proto: https\r\nX-A: 1\r\n\r\n"
            )
            t.tls.close()
            await u.done()
        p.rest()


async def test_a_request_for_another_host_than_tls_was_opened_for_is_a_421():
    backend = HttpBackend()
    async with running(backend), user(made(port=backend.port)) as u:
        t = await TlsUser.open(u, "b.test")
        for _ in range(2):
            t.tls.write(GET)
            assert (await t.hears(b"</html>\n")).startswith(b"HTTP/1.1 421 ")
        assert not backend.opened


async def test_each_token_passes_as_a_record_of_its_own(loop_kind):
    backend = HttpBackend()
    p = made(port=backend.port)
    async with running(backend), user(p) as u:
        t = await TlsUser.open(u)
        t.tls.write(b"GET /events?n=3 HTTP/1.1\r\nHost: a\r\n\r\n")
        got = await t.hears(b"0\r\n\r\n")
        assert got.count(b"data: event") == 3
        p.rest()


async def test_a_user_that_leaves_ends_the_work_of_the_backend(loop_kind):
    for how in ("close", "abort"):
        backend = HttpBackend()
        async with running(backend), user(made(port=backend.port)) as u:
            t = await TlsUser.open(u)
            t.tls.write(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
            await backend.saw("/hang")
            getattr(t.tls, how)()
            await until(lambda b=backend: not b.live, "the backend's connection to close", 2)
            await u.done()


async def test_whoever_does_not_read_holds_the_other_back(loop_kind):
    async def deaf(pipe: Pipe) -> None:
        await pipe.read_until(b"\r\n\r\n", 65536)
        await pipe.gone.wait()

    async with running(backend := ScriptBackend(deaf)), user(made(port=backend.port)) as u:
        t = await TlsUser.open(u)
        t.tls.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000\r\n\r\n")

        def held() -> bool:
            if not t.reader.choked:
                t.tls.write(bytes(65536))
            return t.reader.choked and u.work.paused

        await until(held, "the caller to be told to wait", step_s=0)
    backend = HttpBackend()
    p = made(port=backend.port)
    async with running(backend), user(p) as u:
        t = await TlsUser.open(u)
        t.tls.write(b"GET /bytes?n=90000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        t.tls.pause_reading()
        await until(lambda: u.work._choked, "the answer to be held back")
        await until(lambda: not backend.live[0]._writable.is_set(), "the backend to wait")
        assert len(u.work.written) < 2 << 20
        t.tls.resume_reading()
        await until(lambda: len(t.reader.data) > 4 << 20, "the answer to go on")


async def test_http2_is_agreed_on_and_its_streams_are_requests(loop_kind):
    backend = HttpBackend()
    p = made(port=backend.port)
    link = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    found: dict[int, dict[str, str]] = {}
    bodies: dict[int, bytes] = {}
    async with running(backend), user(p) as u:
        t = await TlsUser.open(u, "a.test", ["h2", "http/1.1"])
        assert t.tls.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        link.initiate_connection()
        for host in ("a.test", "b.test"):
            head = [(":method", "GET"), (":scheme", "https"), (":authority", host)]
            link.send_headers(
                link.get_next_available_stream_id(), [*head, (":path", "/head")], end_stream=True
            )
        t.tls.write(link.data_to_send())
        ended: set[int] = set()

        def answered() -> bool:
            data = bytes(t.reader.data)
            t.reader.data.clear()
            for event in link.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    found[event.stream_id] = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)
            return len(ended) == 2

        await until(answered, "both answers")
        assert found[1][":status"] == "200"
        assert bodies[1].endswith(
            b"X-Forwarded-For: 198.51.100.3\r\nX-Forwarded-Host: a.test\r\n"
            b"X-Forwarded-Proto: https\r\n\r\n"
        )
        assert found[3][":status"] == "421"
        (carried,) = u.bridges
        await until(carried.at_rest, "the connection to be at rest")
        carried.close()
        await u.done()
        p.rest()


@pytest.mark.parametrize(
    ("kind", "options", "agreed"),
    [
        ("https2http", {}, "h2"),
        ("https2https", {"enableHTTP2": True}, "h2"),
        ("https2http", {"enableHTTP2": False}, "http/1.1"),
        ("tls2raw", {}, None),
    ],
)
async def test_http2_is_offered_unless_it_is_turned_off(kind, options, agreed):
    async with running(echo := EchoBackend()), user(made(kind, echo.port, **options)) as u:
        t = await TlsUser.open(u, None, ["h2", "http/1.1"])
        assert t.tls.get_extra_info("ssl_object").selected_alpn_protocol() == agreed


# -- tls2raw --------------------------------------------------------------------------------------


async def test_the_bytes_within_tls_go_both_ways(loop_kind):
    async with running(echo := EchoBackend()), user(made("tls2raw", echo.port)) as u:
        t = await TlsUser.open(u)
        block = bytes(range(256)) * 1024
        t.tls.write(block)
        await until(lambda: len(t.reader.data) == len(block), "the echo")
        assert t.reader.data == block
        await u.done()
        assert len(u.bridges) == 1
        t.tls.close()
        await until(lambda: u.closed and not echo.live, "both ends to close")


async def test_a_proxy_header_goes_before_what_was_within_tls():
    async with (
        running(echo := EchoBackend()),
        user(made("tls2raw", echo.port), header=b"PROXY UNKNOWN\r\n") as u,
    ):
        t = await TlsUser.open(u)
        t.tls.write(b"hello")
        assert await t.hears(b"hello") == b"PROXY UNKNOWN\r\nhello"


async def test_tls2raw_without_a_backend_ends_the_connection():
    async with user(made("tls2raw")) as u:
        t = await TlsUser.open(u)
        await until(lambda: t.reader.ends or t.reader.lost, "the end")
        await u.done()
        assert u.log.has("dial to local addr error: dial tcp 127.0.0.1:1: ", "warning")


# -- handshakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TLS_TYPES)
@pytest.mark.parametrize(
    ("said", "answer", "words"),
    [
        (b"\0" * 50, b"", "not a TLS handshake"),
        (b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc" + bytes(40), None, "not complete within"),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", b"", "does not begin with a ClientHello"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", b"", "bytes; at most"),
        (b"", b"", "not complete within"),
    ],
)
async def test_what_is_no_handshake_is_turned_away(kind, said, answer, words, monkeypatch):
    monkeypatch.setattr(tls_front, "HANDSHAKE_S", 0.1)
    async with user(made(kind)) as u:
        await u.says(said)
        got = await u.hears_end()
        assert answer is None or got == answer
        await u.done()
        assert u.log.has(f"tls handshake error: {words}", "warning") or u.log.has(words, "warning")


async def test_plain_http_is_told_what_it_did_wrong(monkeypatch):
    async with user(made()) as u:
        await u.says(GET)
        assert (await u.hears_end()).startswith(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an")
        await u.done()


@pytest.mark.parametrize("kind", TLS_TYPES)
async def test_a_user_that_leaves_amid_the_handshake_leaves_nothing(kind):
    async with user(made(kind)) as u:
        await u.says(b"\x16\x03\x01")
        u.end.close()
        await u.done()
        assert u.log.has("tls handshake error: the user left before its hello", "warning")


async def test_a_handshake_without_a_common_version_fails_with_the_reason():
    async with user(made()) as u:
        # A hello of TLS 1.0 without anything that we take.
        hello = b"\x03\x01" + bytes(32) + b"\0" + b"\x00\x02\x00\x05" + b"\x01\0"
        message = b"\x01" + len(hello).to_bytes(3, "big") + hello
        await u.says(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)
        got = await u.hears_end()
        assert got[:1] == b"\x15", "no alert"
        await u.done()
        assert u.log.has("tls handshake error: TLS handshake failed: ", "warning")


# -- certificates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TLS_TYPES)
async def test_the_configured_certificate_is_shown_else_one_that_is_kept(kind, tmp_path, state):
    pem = tmp_path / "pair.pem"
    pem.write_bytes(certificate())
    seen = []
    async with running(echo := EchoBackend()):
        for options in ({"crtPath": str(pem), "keyPath": str(pem)}, {}, {}):
            async with user(made(kind, echo.port, **options)) as u:
                t = await TlsUser.open(u)
                der = t.tls.get_extra_info("ssl_object").getpeercert(binary_form=True)
                seen.append(fingerprint(der))
    assert seen[0] != seen[1] == seen[2]
    assert [path.name for path in state.iterdir()] == ["plugin-tls.pem"]


@pytest.mark.parametrize("kind", TLS_TYPES)
def test_a_bad_certificate_ends_the_start(kind, tmp_path):
    pem = tmp_path / "pair.pem"
    pem.write_bytes(certificate())
    with pytest.raises(ConfigError) as caught:
        made(kind, crtPath=str(tmp_path / "none.pem"), keyPath=str(pem))
    assert "none.pem: the certificate file does not exist; check plugin.crtPath" in str(
        caught.value
    )
    with pytest.raises(ConfigError) as caught:
        made(kind, crtPath=str(pem), keyPath=str(tmp_path))
    assert "check plugin.keyPath" in str(caught.value)


@pytest.mark.parametrize("key", ["crtPath", "keyPath"])
def test_half_a_pair_is_a_generated_certificate_and_a_warning(key):
    (warning,) = made(**{key: "/nowhere"}).warnings()
    assert warning.startswith(f"plugin.{key} without ")
