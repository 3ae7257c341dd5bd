"""Plugins within a client's session: who ends what they opened, and what a drain waits for."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from pyfrp.wire.cfb import Decryptor, Encryptor, derive_key
from pyfrp.wire.messages import CloseProxy, StartWorkConn
from tests.support.backends import HttpBackend
from tests.support.services import running
from tests.support.waiting import until, within
from tests.unit.client.scene import TOKEN, Session, session, tcp
from tests.unit.net.ends import Reader

REQUEST = b"GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n"


def files(root: Path, **more):
    plugin = {"type": "static_file", "localPath": str(root)}
    return tcp("p", 0, plugin=plugin, **more)


async def start(s: Session, **told) -> tuple[Reader, object]:
    """A work connection that the server has started; its far end and what reads it."""
    conn = await s.request()
    conn.write(StartWorkConn(proxy_name="p", **told))
    end, _ = conn.detach()
    reader = Reader()
    end.set_protocol(reader)
    end.resume_reading()
    return reader, end


async def test_a_conversation_ends_with_its_session(tmp_path: Path, loop_kind):
    (tmp_path / "a.txt").write_bytes(b"hello")
    async with session(files(tmp_path)) as s:
        await s.accept("p")
        reader, end = await start(s)
        end.write(REQUEST)
        await until(lambda: reader.data.endswith(b"hello"), "the answer")
        assert len(s.control.bridges) == 1
        s.server.abort()
        await s.over()
        await until(lambda: reader.lost, "the end of the connection")
        assert not s.control.bridges


async def test_a_drain_closes_a_conversation_at_rest(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("pyfrp.client.control.REST_S", 0.02)
    monkeypatch.setattr("pyfrp.client.control.SAMPLE_S", 0.01)
    (tmp_path / "a.txt").write_bytes(b"hello")
    async with session(files(tmp_path)) as s:
        await s.accept("p")
        reader, end = await start(s)
        end.write(REQUEST)
        await until(lambda: reader.data.endswith(b"hello"), "the answer")
        await within(s.control.drain(), 5, "the drain")
        assert isinstance(await s.read(), CloseProxy)
        await until(lambda: reader.ends or reader.lost, "the end of the connection")


async def test_what_a_plugin_keeps_for_the_next_user_ends_with_the_session(loop_kind):
    backend = HttpBackend()
    plugin = {"type": "http2http", "localAddr": f"127.0.0.1:{backend.port}"}
    async with running(backend), session(tcp("p", 0, plugin=plugin)) as s:
        await s.accept("p")
        reader, end = await start(s)
        end.write(REQUEST)
        await until(lambda: b"no handler" in reader.data, "the answer")
        end.abort()
        await until(lambda: not s.control.bridges, "the conversation to end")
        assert backend.live
        s.server.abort()
        await s.over()
        await until(lambda: not backend.live, "the kept connection to close")


async def test_a_missing_directory_is_warned_about_at_the_start(tmp_path: Path):
    async with session(files(tmp_path / "none")) as s:
        await s.accept("p")
        assert s.log.has("is no directory", "warning")


async def test_the_payload_reaches_a_plugin_as_it_was(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"hello")
    async with session(files(tmp_path, transport={"useEncryption": True})) as s:
        await s.accept("p")
        reader, end = await start(s)
        key = derive_key(TOKEN)
        end.write(Encryptor(key).encrypt(REQUEST))
        await until(lambda: Decryptor(key).decrypt(bytes(reader.data)).endswith(b"hello"), "it")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no unix sockets")
async def test_a_service_behind_a_plugin_is_told_who_calls(tmp_path: Path):
    got = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.readuntil(b"hello"))
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    plugin = {"type": "unix_domain_socket", "unixPath": str(tmp_path / "s")}
    proxy = tcp("p", 0, plugin=plugin, transport={"proxyProtocolVersion": "v1"})
    async with session(proxy) as s:
        await s.accept("p")
        told = {"src_addr": "192.0.2.1", "src_port": 7, "dst_addr": "192.0.2.2", "dst_port": 8}
        _, end = await start(s, **told)
        end.write(b"hello")
        assert await within(got, 5, "the service") == (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 7 8\r\nhello"
        )
        reader, _ = await start(s, **{**told, "src_addr": "nobody"})
        await until(lambda: reader.ends or reader.lost, "the end of the second connection")
        assert s.log.has("no PROXY header for a caller at [nobody]", "error")
    server.close()
    await server.wait_closed()
