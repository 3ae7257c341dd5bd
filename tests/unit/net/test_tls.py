"""TLS over any endpoint: handshakes, ends, pauses, and every split of the bytes."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from pyfrp.errors import HandshakeError
from pyfrp.net.tls import TlsEndpoint, explain, upgrade
from tests.support.waiting import until, within
from tests.unit.net.ends import Reader, memory_pair, tcp_pair, tcp_to_raw, turns
from tests.unit.net.tls_pair import NAME, KeyUpdates, Library, client_context, server_context

KIB = 1024
MIB = 1024 * KIB
BULK = bytes(range(256)) * (4 * KIB)


class Scene:
    """A server-side TLS endpoint in memory; the library's client at the far end of its link."""

    def __init__(self, *, context: ssl.SSLContext | None = None) -> None:
        self.link, self.far = memory_pair()
        self.client = Library(server_side=False)
        self.link.pause_reading()
        self.far.set_protocol(Feeding(self.client))
        self.far_reader = self.far.get_protocol()
        self.context = context or server_context()
        self.reader = Reader()

    def flush(self) -> None:
        """Send what the client has to say."""
        data = self.client.out
        if data:
            self.far.write(data)

    async def shake(self, early: bytes = b"") -> TlsEndpoint:
        if not early:
            self.flush()
        job = asyncio.get_running_loop().create_task(
            upgrade(self.link, self.context, server_side=True, early=early)
        )
        async with asyncio.timeout(10):
            while not job.done():
                await turns(3)
                self.flush()
        self.tls = job.result()
        return self.tls

    async def ready(self) -> TlsEndpoint:
        tls = await self.shake()
        tls.set_protocol(self.reader)
        tls.resume_reading()
        return tls


class Feeding(Reader):
    def __init__(self, client: Library) -> None:
        super().__init__()
        self.on_data = client.feed


# -- handshakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_of_tls_carry_bytes_both_ways(version):
    scene = Scene(context=server_context(version))
    tls = await scene.ready()
    tls.write(b"hello from the server")
    scene.client.write(b"hello from the client")
    scene.flush()
    await turns()
    assert scene.client.data == b"hello from the server"
    assert scene.reader.data == b"hello from the client"
    assert tls.get_extra_info("ssl_object").version() == version.name.replace("_", ".")


async def test_an_endpoint_is_handed_over_paused():
    scene = Scene()
    tls = await scene.shake()
    scene.client.write(b"too early for anybody")
    scene.flush()
    await turns()
    tls.set_protocol(scene.reader)
    await turns()
    assert scene.reader.data == b""
    tls.resume_reading()
    await turns()
    assert scene.reader.data == b"too early for anybody"


async def test_bytes_in_the_same_read_as_the_end_of_the_handshake_are_kept():
    scene = Scene()
    scene.flush()
    job = asyncio.get_running_loop().create_task(
        upgrade(scene.link, scene.context, server_side=True)
    )
    await turns()
    assert scene.client.shaken
    scene.client.write(b"with the Finished")
    scene.flush()
    tls = await within(job, 5, "the handshake")
    tls.set_protocol(scene.reader)
    tls.resume_reading()
    await turns()
    assert scene.reader.data == b"with the Finished"


async def test_bytes_read_before_tls_was_recognised_are_replayed_at_every_split():
    hello = Library(server_side=False).out
    for split in range(0, len(hello) + 1, 7):
        scene = Scene()
        hello = scene.client.out
        if split < len(hello):
            scene.far.write(hello[split:])
        tls = await scene.shake(early=hello[:split] or b"")
        assert not tls.is_closing()
        tls.abort()
        await turns(3)


async def test_a_handshake_and_its_data_survive_a_cut_at_every_byte():
    scene = Scene()
    tls = TlsEndpoint(scene.link, scene.context, server_side=True)
    scene.link.resume_reading()
    while not tls.handshaken.done():
        for byte in scene.client.out:
            tls.data_received(bytes((byte,)))
        await turns(2)
    await tls.handshaken
    tls.set_protocol(scene.reader)
    tls.resume_reading()
    scene.client.write(b"one")
    scene.client.write(b"two")
    for byte in scene.client.out:
        tls.data_received(bytes((byte,)))
    assert scene.reader.data == b"onetwo"


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x16"])
async def test_what_is_not_tls_fails_the_handshake(junk):
    scene = Scene()
    scene.far.write(junk)
    scene.far.write(bytes(100))
    with pytest.raises(HandshakeError):
        await within(upgrade(scene.link, scene.context, server_side=True), 5, "the refusal")
    await turns()
    assert scene.link.is_closing()


async def test_a_plain_peer_is_named_as_such():
    scene = Scene()
    scene.far.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(50))
    with pytest.raises(HandshakeError, match="does not speak TLS"):
        await upgrade(scene.link, scene.context, server_side=True)


async def test_the_peer_is_told_why_it_was_refused():
    """The alert leaves before the link is dropped."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    near, far = memory_pair()
    client = asyncio.get_running_loop().create_task(
        upgrade(near, context, server_side=False, server_name=NAME)
    )
    server = Library(server_side=True)
    errors = []

    def feed(data: bytes) -> None:
        try:
            server.feed(data)
        except ssl.SSLError as exc:
            errors.append(exc.reason)

    far.get_protocol().on_data = feed
    for _ in range(10):
        await turns(2)
        out = server.out
        if out:
            far.write(out)
    with pytest.raises(HandshakeError, match="not trusted"):
        await within(client, 5, "the refusal")
    await turns()
    assert errors
    assert "UNKNOWN_CA" in errors[0] or "CERTIFICATE" in errors[0]


async def test_a_trusted_certificate_with_another_name_is_refused():
    near, far = memory_pair()
    server = Library(server_side=True)
    far.get_protocol().on_data = server.feed
    job = asyncio.get_running_loop().create_task(
        upgrade(near, client_context(trusting=True), server_side=False, server_name="other.test")
    )
    await turns()
    far.write(server.out)
    with pytest.raises(HandshakeError, match="serverName"):
        await within(job, 5, "the refusal")


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("sent", [0, 1, 50, "hello"])
async def test_a_peer_that_leaves_during_the_handshake_ends_it(end, sent):
    scene = Scene()
    hello = scene.client.out
    data = hello if sent == "hello" else hello[:sent]
    if data:
        scene.far.write(data)
    getattr(scene.far, end)()
    with pytest.raises(HandshakeError, match="during the TLS handshake"):
        await within(upgrade(scene.link, scene.context, server_side=True), 5, "the end")
    assert scene.link.is_closing()


async def test_a_handshake_that_takes_too_long_drops_the_link():
    scene = Scene()
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout_at(loop.time()):
            await upgrade(scene.link, scene.context, server_side=True)
    await turns()
    assert scene.link.aborted


async def test_a_failure_that_nobody_awaits_is_no_warning():
    scene = Scene()
    tls = TlsEndpoint(scene.link, scene.context, server_side=True)
    scene.link.resume_reading()
    scene.far.abort()
    await turns()
    assert tls.handshaken.done()
    del tls


async def test_writing_before_the_handshake_fails_it():
    scene = Scene()
    tls = TlsEndpoint(scene.link, scene.context, server_side=True)
    tls.write(b"too early")
    with pytest.raises(HandshakeError):
        await tls.handshaken


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("HTTP_REQUEST", "does not speak TLS"),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "certFile"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "certFile"),
        ("NO_SHARED_CIPHER", "no shared cipher"),
    ],
)
def test_reasons_are_told_in_words(reason, told):
    exc = ssl.SSLError(1, reason)
    exc.reason = reason
    assert told in explain(exc)


# -- ends ---------------------------------------------------------------------------------------


async def test_closing_sends_what_was_written_and_a_close_notify():
    scene = Scene()
    tls = await scene.ready()
    tls.write(b"last words")
    tls.close()
    tls.close()
    await turns()
    assert scene.client.data == b"last words"
    assert scene.client.ended
    assert scene.far_reader.events[-1] == "eof"
    assert scene.reader.lost == [None]


async def test_aborting_sends_no_close_notify():
    scene = Scene()
    tls = await scene.ready()
    tls.abort()
    await turns()
    assert not scene.client.ended
    assert scene.reader.lost == [None]
    assert tls.is_closing()


async def test_writes_after_the_close_are_dropped():
    scene = Scene()
    tls = await scene.ready()
    tls.close()
    tls.write(b"x")
    await turns()
    tls.write(b"y")
    assert scene.client.data == b""


async def test_an_empty_write_is_nothing():
    scene = Scene()
    tls = await scene.ready()
    tls.write(b"")
    tls.write(b"x")
    await turns()
    assert scene.client.data == b"x"
    assert not tls.is_closing()


@pytest.mark.parametrize("keep_open", [False, True])
async def test_a_close_notify_is_the_end(keep_open):
    scene = Scene()
    tls = await scene.ready()
    scene.reader.keep_open = keep_open
    scene.client.write(b"bye")
    scene.flush()
    await turns()
    scene.client.end()
    scene.flush()
    await turns()
    assert scene.reader.data == b"bye"
    assert scene.reader.ends == 1
    assert tls.is_closing() != keep_open
    # The end of the link behind it is not told a second time.
    scene.far.close()
    await turns()
    assert scene.reader.ends == 1
    assert scene.reader.lost == [None]


async def test_a_close_notify_right_behind_data_is_not_overlooked():
    scene = Scene()
    await scene.ready()
    for piece in (b"one", b"two", b"three"):
        scene.client.write(piece)
    scene.client.end()
    scene.flush()
    await turns()
    assert scene.reader.data == b"onetwothree"
    assert scene.reader.ends == 1


async def test_a_forged_record_right_behind_data_is_not_overlooked():
    scene = Scene()
    tls = await scene.ready()
    scene.client.write(b"good")
    good = scene.client.out
    scene.client.write(b"evil")
    forged = bytearray(scene.client.out)
    forged[-1] ^= 1
    scene.far.write(good + bytes(forged))
    await turns()
    assert scene.reader.data == b"good"
    assert scene.reader.ends == 0
    assert tls.is_closing()
    # Whoever reads must be able to tell it from an end.
    assert isinstance(scene.reader.lost[0], HandshakeError)


async def test_a_connection_cut_short_of_its_close_notify_is_told_from_an_end():
    """RFC 8446, 6.1: without it, whoever can send a FIN could truncate what is read."""
    scene = Scene()
    tls = await scene.ready()
    scene.client.write(b"part of the answ")
    scene.flush()
    scene.far.close()
    await turns()
    assert scene.reader.data == b"part of the answ"
    assert scene.reader.ends == 0
    assert scene.reader.lost != [None]
    assert tls.is_closing()


async def test_a_reset_link_is_told_as_one():
    scene = Scene()
    await scene.ready()
    scene.far.abort()
    await turns()
    assert isinstance(scene.reader.lost[0], ConnectionResetError)
    assert scene.reader.ends == 0


async def test_it_cannot_be_ended_one_way():
    scene = Scene()
    tls = await scene.ready()
    assert not tls.can_write_eof()
    with pytest.raises(NotImplementedError):
        tls.write_eof()


# -- pausing ------------------------------------------------------------------------------------


async def test_a_paused_reader_gets_nothing_and_misses_nothing():
    scene = Scene()
    tls = await scene.ready()
    tls.pause_reading()
    tls.pause_reading()
    scene.client.write(b"later")
    scene.client.end()
    scene.flush()
    await turns()
    assert scene.reader.events == []
    tls.resume_reading()
    tls.resume_reading()
    await turns()
    assert scene.reader.events == ["data", "eof"]
    assert scene.reader.data == b"later"


async def test_a_reader_that_pauses_at_each_chunk_gets_all_of_them_and_the_end():
    scene = Scene()
    tls = await scene.ready()
    scene.reader.on_data = lambda _: tls.pause_reading()
    sent = b""
    for number in range(40):
        piece = b"%d " % number * 400
        scene.client.write(piece)
        sent += piece
    scene.client.end()
    scene.flush()
    for _ in range(100):
        await turns(3)
        if scene.reader.ends:
            break
        tls.resume_reading()
    assert scene.reader.data == sent
    assert scene.reader.ends == 1


async def test_a_reader_that_closes_at_its_first_chunk_gets_no_more():
    scene = Scene()
    tls = await scene.ready()
    scene.reader.on_data = lambda _: tls.close()
    scene.client.write(b"first")
    scene.flush()
    await turns()
    scene.client.write(b"second")
    scene.flush()
    await turns()
    assert scene.reader.data == b"first"


async def test_back_pressure_of_the_link_reaches_the_writer():
    scene = Scene()
    tls = await scene.ready()
    tls.set_write_buffer_limits(high=64 * KIB, low=KIB)
    scene.far.pause_reading()
    tls.write(bytes(100 * KIB))
    assert scene.reader.choked
    assert tls.get_write_buffer_size() > 100 * KIB
    scene.far.resume_reading()
    await turns()
    assert not scene.reader.choked
    assert len(scene.client.data) == 100 * KIB


@pytest.mark.parametrize("reads", [True, False])
async def test_a_peer_that_asks_for_new_keys_and_does_not_read_is_dropped(reads, tmp_path):
    scene = Scene()
    log = tmp_path / "keys"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.keylog_filename = str(log)
    scene.client = Library(server_side=False, context=context)
    scene.far.set_protocol(Feeding(scene.client))
    await scene.ready()
    peer = KeyUpdates(log.read_text())
    context.keylog_filename = None  # Close the file.
    if not reads:
        scene.far.pause_reading()
    for _ in range(40):
        if not scene.reader.lost:
            scene.far.write(b"".join(peer.next() for _ in range(100)))
            await turns()
    if reads:
        assert not scene.reader.lost
    else:
        assert "does not read" in str(scene.reader.lost[0])
        assert len(scene.link.written) < 100 * KIB


async def test_what_is_known_of_the_link_is_known_of_the_endpoint():
    scene = Scene()
    tls = await scene.ready()
    assert tls.get_extra_info("peername") == scene.link.extra["peername"]
    assert tls.get_extra_info("nothing", 3) == 3
    assert tls.get_extra_info("ssl_object") is not None


# -- on sockets ---------------------------------------------------------------------------------


async def tls_pair(near, far):
    """Both sides of a handshake between two transports."""
    near.pause_reading()
    far.pause_reading()
    return await within(
        asyncio.gather(
            upgrade(near, client_context(), server_side=False, server_name=NAME),
            upgrade(far, server_context(), server_side=True),
        ),
        10,
        "the handshake",
    )


async def test_large_transfers_both_ways_at_once_arrive_whole(loop_kind):
    async with tcp_pair() as (near, far):
        client, server = await tls_pair(near, far)
        readers = Reader(), Reader()
        for end, reader in zip((client, server), readers, strict=True):
            end.set_protocol(reader)
            end.resume_reading()
        for _ in range(16):
            client.write(BULK)
            server.write(BULK)
            await asyncio.sleep(0)
        for reader in readers:
            assert await reader.until_data(16 * MIB, 30) == BULK * 16
        client.close()
        await readers[1].until_ended()
        await readers[0].until_lost()


async def test_one_write_may_be_larger_than_any_record(loop_kind):
    async with tcp_pair() as (near, far):
        client, server = await tls_pair(near, far)
        reader = Reader()
        server.set_protocol(reader)
        server.resume_reading()
        client.write(BULK[: 1 * MIB - 3])
        assert await reader.until_data(1 * MIB - 3) == BULK[: 1 * MIB - 3]
        client.abort()
        server.abort()


async def test_a_slow_reader_stops_the_writer(loop_kind):
    async with tcp_pair() as (near, far):
        client, server = await tls_pair(near, far)
        sender, reader = Reader(), Reader()
        client.set_protocol(sender)
        client.set_write_buffer_limits(high=256 * KIB, low=64 * KIB)
        client.resume_reading()
        server.set_protocol(reader)
        sent = 0
        while not sender.choked:
            client.write(BULK[: 64 * KIB])
            sent += 64 * KIB
            await asyncio.sleep(0)
        assert client.get_write_buffer_size() < 512 * KIB
        server.resume_reading()
        await reader.until_data(sent)
        await until(lambda: not sender.choked, "the writer to go on")
        client.abort()
        server.abort()


async def test_the_alert_reaches_a_socket_before_it_closes(loop_kind):
    async with tcp_to_raw() as (transport, peer):
        transport.pause_reading()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        await peer.send(Library(server_side=False, context=context).out)
        old = server_context(ssl.TLSVersion.TLSv1_2)
        with pytest.raises(HandshakeError):
            await within(upgrade(transport, old, server_side=True), 5, "the refusal")
        answer = await peer.receive_all()
        assert answer[:1] == b"\x15"


async def test_connections_share_their_read_buffer_without_mixing(loop_kind):
    async with tcp_pair() as one, tcp_pair() as two:
        pairs = [await tls_pair(*one), await tls_pair(*two)]
        readers = []
        for number, (client, server) in enumerate(pairs):
            reader = Reader()
            readers.append(reader)
            server.set_protocol(reader)
            server.resume_reading()
            client.write(bytes([number]) * (200 * KIB))
        for number, reader in enumerate(readers):
            assert await reader.until_data(200 * KIB) == bytes([number]) * (200 * KIB)
        for client, server in pairs:
            client.abort()
            server.abort()
