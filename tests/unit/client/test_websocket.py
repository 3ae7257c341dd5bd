"""The transports websocket and wss of a client: the order of the layers, and what fails."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest

from pyfrp.client.transports import TRANSPORTS, connect, websocket, wss
from pyfrp.errors import DialError, HandshakeError
from pyfrp.net.tls import upgrade
from pyfrp.net.websocket import accept
from tests.support.waiting import until, within
from tests.unit.client.test_connector import listening, report
from tests.unit.net.ends import Reader, turns
from tests.unit.net.tls_pair import NAME, client_context, server_context


async def serve(reader, *layers):
    """Take these layers off an accepted connection."""
    await until(lambda: reader.data, "the first bytes")
    end, early = reader.transport, bytes(reader.data)
    end.pause_reading()
    for layer in layers:
        if layer == "websocket":
            end = await within(accept(end, early=early), 5, "the websocket")
        else:
            shake = upgrade(end, server_context(), server_side=True, early=early)
            end = await within(shake, 5, "TLS")
        early = b""
    return end


async def carries(client, server):
    """Whether bytes go both ways."""
    readers = Reader(), Reader()
    for end, reader in zip((client, server), readers, strict=True):
        end.set_protocol(reader)
        end.resume_reading()
    client.write(b"question")
    assert await readers[1].until_data(8) == b"question"
    server.write(b"answer")
    assert await readers[0].until_data(6) == b"answer"
    client.abort()
    server.abort()
    await turns()


@pytest.mark.parametrize(
    ("dial", "tls", "layers"),
    [
        (websocket.dial, False, ["websocket"]),
        (websocket.dial, True, ["websocket", "tls"]),
        (wss.dial, True, ["tls", "websocket"]),
    ],
)
async def test_layers_lie_as_with_frpc(loop_kind, dial, tls, layers):
    async with listening() as (route, readers):
        route = replace(route, tls=client_context() if tls else None)
        dialling = asyncio.get_running_loop().create_task(dial(route))
        await until(lambda: readers, "the connection")
        server = await serve(readers[0], *layers)
        client, early = await within(dialling, 5, "the dial")
        assert early == b""
        if tls:
            assert client.get_extra_info("ssl_object").server_hostname == NAME
        await carries(client, server)


@pytest.mark.parametrize("first_byte", [False, True])
async def test_frps_byte_comes_in_the_websocket_and_never_in_wss(first_byte):
    async with listening() as (route, readers):
        route = replace(route, tls=client_context(), tls_first_byte=first_byte)
        dialling = asyncio.get_running_loop().create_task(websocket.dial(route))
        await until(lambda: readers, "the connection")
        server = await serve(readers[0], "websocket")
        reader = Reader()
        server.set_protocol(reader)
        server.resume_reading()
        assert (await reader.until_data(1))[0] == (0x17 if first_byte else 0x16)
        server.abort()
        with pytest.raises(HandshakeError):
            await within(dialling, 5, "the dial")
        dialling = asyncio.get_running_loop().create_task(wss.dial(route))
        await until(lambda: len(readers) == 2 and readers[1].data, "the first bytes")
        assert readers[1].data[0] == 0x16
        readers[1].transport.abort()
        with pytest.raises(HandshakeError):
            await within(dialling, 5, "the dial")


async def test_the_host_is_the_servers_address_or_its_name_in_tls():
    async with listening() as (route, readers):
        dialling = asyncio.get_running_loop().create_task(websocket.dial(route))
        await until(lambda: readers and b"\r\n\r\n" in readers[0].data, "the request")
        head = readers[0].data.decode()
        assert f"\r\nHost: 127.0.0.1:{route.port}\r\n" in head
        assert f"\r\nOrigin: http://127.0.0.1:{route.port}\r\n" in head
        dialling.cancel()
        await asyncio.wait([dialling])
        for number, (name, host) in enumerate(((NAME, NAME), ("::1", "[::1]")), 1):
            route = replace(route, tls=client_context(), tls_server_name=name)
            dialling = asyncio.get_running_loop().create_task(wss.dial(route))
            await until(lambda number=number: len(readers) > number, "the connection")
            server = await serve(readers[number], "tls")
            reader = Reader()
            server.set_protocol(reader)
            server.resume_reading()
            await until(lambda reader=reader: b"\r\n\r\n" in reader.data, "the request")
            assert f"\r\nHost: {host}\r\n" in reader.data.decode()
            server.abort()
            with pytest.raises(HandshakeError):
                await within(dialling, 5, "the dial")
            await turns()


async def test_wss_without_tls_is_an_error():
    async with listening() as (route, _):
        with pytest.raises(HandshakeError, match="wss needs TLS"):
            await wss.dial(route)


@pytest.mark.parametrize("protocol", ["websocket", "wss"])
async def test_both_are_found_by_their_name(protocol):
    assert protocol in TRANSPORTS
    async with listening() as (route, _):
        tls = client_context() if protocol == "wss" else None
        connector = await connect(replace(route, protocol=protocol, tls=tls), report)
        await connector.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nServer: gate\r\n\r\n", "answered with 403 Forbidden by gate:"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "answered with 200 OK: that is a page"),
        (b"SSH-2.0-OpenSSH_9\r\n", "is no HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS on this port"),
    ],
)
async def test_who_answers_something_else_is_named_with_his_address(loop_kind, answer, words):
    async with listening(lambda t: t.write(answer)) as (route, readers):
        pattern = rf"^127\.0\.0\.1:{route.port}: .*{re.escape(words)}"
        with pytest.raises(HandshakeError, match=pattern):
            await websocket.dial(route)
        await until(lambda: readers[0].ends or readers[0].lost, "the connection to be dropped")


async def test_a_server_that_closes_at_the_handshake_is_named(loop_kind):
    async with listening() as (route, readers):
        dialling = asyncio.get_running_loop().create_task(websocket.dial(route))
        await until(lambda: readers and readers[0].data, "the request")
        readers[0].transport.close()
        with pytest.raises((HandshakeError, DialError), match="closed the connection"):
            await within(dialling, 5, "the dial")


async def test_a_server_that_does_not_answer_is_given_up_with_a_hint(loop_kind):
    async with listening() as (route, readers):
        words = r"no answer to the websocket handshake from .* within 0.1 s; is it an frp server"
        with pytest.raises(HandshakeError, match=words):
            await websocket.dial(replace(route, dial_timeout_s=0.1))
        await until(lambda: readers[0].ends or readers[0].lost, "the connection to be dropped")
