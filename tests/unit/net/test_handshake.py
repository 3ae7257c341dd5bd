"""The hellos of wire v2, and the encryption of control connections in both versions."""

from __future__ import annotations

import asyncio
import itertools
import platform
from pathlib import Path

import pytest

from pyfrp.errors import (
    BadMessage,
    FrameTooLarge,
    PeerClosed,
    RefusedError,
    RemoteWireError,
)
from pyfrp.net import handshake
from pyfrp.net.conn import MessageConn
from pyfrp.net.handshake import answer_hello, client_hello, encrypt_control, hear_hello
from pyfrp.wire import v2
from pyfrp.wire.gojson import decode_body, encode_body
from pyfrp.wire.messages import Login, LoginResp, NewProxy, Ping
from pyfrp.wire.v2 import V2
from pyfrp.wire.version import MAGIC, V1, Hello
from tests.support.waiting import within
from tests.unit.net.ends import memory_pair, turns

both = pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
TOKEN = "spec-token"
HELLO = {"transport": "tcp", "tls": True, "tcp_mux": True}


def ends():
    """A client's and a server's end of one connection, and what carries the server's."""
    near, far = memory_pair()
    near.pause_reading()
    far.pause_reading()
    return near, far


async def read(conn):
    return await within(conn.read(), 5, "a message")


async def greeted(version):
    """Both ends of a control connection after the login."""
    near, far = ends()
    client, server = MessageConn(near, version=version), MessageConn(far, version=None)
    hello = client_hello(**HELLO)
    client.begin(*(() if version is V1 else (hello,)), Login(user="alice"))
    msg = await read(server)
    assert server.version is version
    if isinstance(msg, Hello):
        answer_hello(server, msg)
        msg = await read(server)
        await hear_hello(client, hello)
    assert msg == Login(user="alice")
    server.write(LoginResp(run_id="r"))
    assert await read(client) == LoginResp(run_id="r")
    return client, server, near, far


@both
async def test_both_ends_are_encrypted_alike(version):
    client, server, near, far = await greeted(version)
    before = len(near.written), len(far.written)
    encrypt_control(client, TOKEN, server=False)
    encrypt_control(server, TOKEN, server=True)
    client.write(NewProxy(proxy_name="a-name-to-look-for"))
    server.write(Ping(timestamp=7))
    assert await read(server) == NewProxy(proxy_name="a-name-to-look-for")
    assert await read(client) == Ping(timestamp=7)
    for end, size in zip((near, far), before, strict=True):
        assert b"a-name" not in end.written[size:]
        assert b"timestamp" not in end.written[size:]


@both
async def test_what_comes_in_one_piece_with_the_answer_is_decrypted(version):
    client, server, _, far = await greeted(version)
    far.pause_reading()
    encrypt_control(client, TOKEN, server=False)
    client.write(Ping(timestamp=1))
    client.write(Ping(timestamp=2))
    await turns()
    # As if the server had read them already, ahead of its own switch.
    piece = b"".join(far._inbox)
    far._inbox.clear()
    server.data_received(piece)
    encrypt_control(server, TOKEN, server=True)
    assert [await read(server) for _ in range(2)] == [Ping(timestamp=1), Ping(timestamp=2)]


async def test_another_token_is_told_by_the_first_record():
    client, server, _, _ = await greeted(V2)
    encrypt_control(client, TOKEN, server=False)
    encrypt_control(server, "another", server=True)
    client.write(Ping())
    with pytest.raises(RemoteWireError, match="wrong token or tampering"):
        await read(server)


async def test_a_record_of_another_token_that_was_read_ahead_ends_the_connection():
    client, server, near, _ = await greeted(V2)
    encrypt_control(client, "another", server=False)
    client.write(Ping())
    server.data_received(bytes(near.written[-60:]))
    encrypt_control(server, TOKEN, server=True)
    with pytest.raises(RemoteWireError):
        await read(server)
    assert server.ended


async def test_directions_have_keys_of_their_own():
    """What we said ourselves does not open as the peer's."""
    client, server, near, _ = await greeted(V2)
    size = len(near.written)
    encrypt_control(client, TOKEN, server=False)
    encrypt_control(server, TOKEN, server=True)
    client.write(Ping())
    client.data_received(bytes(near.written[size:]))
    with pytest.raises(RemoteWireError, match="does not open"):
        await read(client)


# -- hellos that are refused --------------------------------------------------------------------


async def hello_to_server(payload, kind=v2.CLIENT_HELLO):
    """What a server's end does with a hello; what it answered."""
    near, far = ends()
    client, server = MessageConn(near, version=V2), MessageConn(far, version=None)
    client.begin(Hello(kind=kind, payload=payload))
    msg = await read(server)
    assert isinstance(msg, Hello)
    try:
        answer_hello(server, msg)
    finally:
        await turns()
        assert server.agreement is None
        answered.extend(bytes(far.written))
    return server


answered = bytearray()


@pytest.fixture(autouse=True)
def _nothing_answered():
    answered.clear()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codecs": ["protobuf"]}, "unsupported message codec"),
        ({"codecs": []}, "unsupported message codec"),
        ({"random": b""}, "invalid crypto client random length 0, want 32"),
        ({"random": bytes(33)}, "invalid crypto client random length 33, want 32"),
        ({"algorithms": ["none"]}, "no supported crypto algorithm"),
        ({"algorithms": ["AES-256-GCM", "aes-128-gcm", ""]}, "no supported crypto algorithm"),
        ({"algorithms": []}, "no supported crypto algorithm"),
    ],
)
async def test_a_hello_that_fits_nothing_is_answered_in_frps_words(change, words):
    hello = v2.client_hello(
        change.get("random", bytes(32)),
        transport="tcp",
        tls=False,
        tcp_mux=False,
        algorithms=tuple(change.get("algorithms", v2.ALGORITHMS)),
    )
    if "codecs" in change:
        hello.capabilities.message.codecs = change["codecs"]
    with pytest.raises(RefusedError, match=f"^{words}$"):
        await hello_to_server(encode_body(hello))
    kind, payload = one_frame(answered)
    assert kind == v2.SERVER_HELLO
    assert decode_body(v2.ServerHello, payload).error == words


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"capabilities":[]}',
        b'{"capabilities":{"crypto":{"clientRandom":"?"}}}',
        b'{"capabilities":{"crypto":{"algorithms":"aes-256-gcm"}}}',
        b'{"capabilities":{},"Capabilities":{}}',
        b"[" * 4000,
        b'{"a":' * 1000,
    ],
)
async def test_a_hello_that_is_none_is_not_answered(payload):
    with pytest.raises(BadMessage):
        await hello_to_server(payload)
    assert answered == b""


async def test_a_servers_hello_from_a_client_is_refused():
    with pytest.raises(BadMessage, match="a server's hello"):
        await hello_to_server(b"{}", kind=v2.SERVER_HELLO)
    assert answered == b""


async def test_a_giant_hello_is_refused_before_it_has_come():
    near, far = ends()
    server = MessageConn(far, version=None)
    near.write(MAGIC + v2._HEADER.pack(v2.CLIENT_HELLO, 0, v2.MAX_HELLO + 1))
    with pytest.raises(FrameTooLarge):
        await read(server)


def one_frame(data):
    decoder = v2.FrameDecoder()
    decoder.feed(bytes(data))
    found = decoder.next()
    assert found is not None
    assert decoder.leftover() == b""
    return found


def answer(algorithm="aes-256-gcm", **change):
    hello = v2.server_hello(decode_body(v2.ClientHello, client_hello(**HELLO).payload), bytes(32))
    hello.selected.crypto.algorithm = algorithm
    hello.selected.message.codec = change.get("codec", "json")
    hello.selected.crypto.server_random = change.get("random", bytes(32))
    hello.error = change.get("error", "")
    return v2.encode_frame(change.get("kind", v2.SERVER_HELLO), encode_body(hello))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (answer(error="go away"), RefusedError, "^go away$"),
        (answer(codec="xml"), RemoteWireError, "codec that was not offered"),
        (answer(algorithm="none"), RemoteWireError, "cipher that was not offered"),
        (answer(algorithm=""), RemoteWireError, "cipher that was not offered"),
        (answer(random=bytes(16)), RemoteWireError, "random has a wrong length"),
        (answer(kind=v2.CLIENT_HELLO), BadMessage, "in the place of the server's hello"),
        (v2.encode(LoginResp(run_id="r")), BadMessage, "LoginResp in the place of"),
        (v2.encode_frame(v2.SERVER_HELLO, b"{"), BadMessage, "not JSON"),
        (b"1" + bytes(20), BadMessage, "unknown type of frame"),
        (b"", PeerClosed, "closed"),
    ],
)
async def test_a_server_that_answers_otherwise_is_not_believed(data, error, words):
    near, far = ends()
    client = MessageConn(near, version=V2)
    hello = client_hello(**HELLO)
    client.begin(hello)
    far.write(data)
    far.write_eof()
    with pytest.raises(error, match=words):
        await within(hear_hello(client, hello), 5, "the end of the hello")
    assert client.agreement is None


async def test_a_cipher_that_we_know_and_did_not_offer_is_a_downgrade(monkeypatch):
    monkeypatch.setattr(handshake, "preferred_algorithms", lambda: ("aes-256-gcm",))
    near, far = ends()
    client = MessageConn(near, version=V2)
    hello = client_hello(**HELLO)
    client.begin(hello)
    far.write(answer(algorithm="xchacha20-poly1305"))
    with pytest.raises(RemoteWireError, match="cipher that was not offered"):
        await within(hear_hello(client, hello), 5, "the hello")


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_hello_that_was_changed_on_its_way_spoils_the_keys(side, monkeypatch):
    """Somebody between the two takes the better cipher out of the list, or swaps a random."""
    monkeypatch.setattr(handshake, "preferred_algorithms", lambda: v2.ALGORITHMS)
    (near, middle_near), (middle_far, far) = ends(), ends()
    client, server = MessageConn(near, version=V2), MessageConn(far, version=None)
    ours = client_hello(**HELLO)
    client.begin(ours)
    seen = decode_body(v2.ClientHello, ours.payload)
    if side == "client":
        seen.capabilities.crypto.algorithms.remove("aes-256-gcm")
    forged = encode_body(seen)
    middle_far.write(MAGIC + v2.encode_frame(v2.CLIENT_HELLO, forged))
    msg = await read(server)
    answer_hello(server, msg)
    _, payload = one_frame(far.written)
    theirs = decode_body(v2.ServerHello, payload)
    if side == "server":
        theirs.selected.crypto.server_random = bytes(32)
    middle_near.write(v2.encode_frame(v2.SERVER_HELLO, encode_body(theirs)))
    await within(hear_hello(client, ours), 5, "the hello")
    assert client.agreement is not None
    assert server.agreement is not None
    assert client.agreement.algorithm == server.agreement.algorithm
    assert client.agreement.transcript != server.agreement.transcript
    keys = {
        agreement.key(TOKEN, way)
        for agreement, way in itertools.product(
            (client.agreement, server.agreement), ("client-to-server", "server-to-client")
        )
    }
    assert len(keys) == 4


# -- preference ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "words", "fast"),
    [
        ("x86_64", "flags : fpu aes pclmulqdq sse4_1", True),
        ("x86_64", "flags : fpu aes sse4_1", False),
        ("aarch64", "Features : fp asimd aes pmull", True),
        ("aarch64", "Features : fp asimd crc32", False),
        ("x86_64", None, True),
        ("AMD64", "", True),
        ("arm64", "", True),
        ("riscv64", "", False),
        ("armv7l", "Features : neon", False),
    ],
)
def test_aes_is_preferred_where_the_cpu_has_it(monkeypatch, machine, words, fast):
    def text(self, **_):
        if words is None:
            raise FileNotFoundError(self)
        return words

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", text)
    found = handshake.preferred_algorithms.__wrapped__()
    assert found == (v2.ALGORITHMS if fast else v2.ALGORITHMS[::-1])


async def test_the_hello_tells_what_carries_it():
    hello = decode_body(
        v2.ClientHello, client_hello(transport="wss", tls=True, tcp_mux=False).payload
    )
    assert (hello.bootstrap.transport, hello.bootstrap.tls, hello.bootstrap.tcp_mux) == (
        "wss",
        True,
        False,
    )
    assert len(hello.capabilities.crypto.client_random) == v2.RANDOM_SIZE
    assert tuple(hello.capabilities.crypto.algorithms) == handshake.preferred_algorithms()
    await asyncio.sleep(0)
