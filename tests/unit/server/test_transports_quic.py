"""The port of the transport quic."""

from __future__ import annotations

import re
import ssl
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("aioquic", reason="QUIC is optional, and not installed here")

from pyfrp.client.transports import quic as transport
from pyfrp.config.server import ServerConfig
from pyfrp.errors import ConfigError
from pyfrp.net.certs import ServerContext, generate_pair
from pyfrp.net.conn import MessageConn
from pyfrp.net.datagrams import bind_udp
from pyfrp.server.transports import quic
from pyfrp.wire.messages import Login, LoginResp
from tests.support.ports import free_port
from tests.support.waiting import within
from tests.unit.net.test_quic_listener import report, route
from tests.unit.server.test_links import Door

HOST = "127.0.0.1"


def context() -> ServerContext:
    made = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    made.pair, made.generated = generate_pair(), True
    return made


async def test_nothing_is_listened_on_unless_it_is_asked_for():
    acceptor: Any = SimpleNamespace(report=None)
    assert await quic.listen(ServerConfig(), acceptor, context()) is None


async def test_a_port_that_cannot_be_had_is_told_in_words():
    taken = await bind_udp(HOST, 0)
    number = taken.getsockname()[1]
    cfg = ServerConfig(bind_addr=HOST, quic_bind_port=number)
    words = (
        f"create quic listener error, listen udp {HOST}:{number}: bind: address already in use "
        f"(another program has port {number}: `ss -lunp 'sport = :{number}'` names it)"
    )
    acceptor: Any = SimpleNamespace(report=None)
    with pytest.raises(ConfigError, match=re.escape(words)):
        await quic.listen(cfg, acceptor, context())
    taken.close()


async def test_of_many_connections_that_a_client_opens_at_once_none_is_lost():
    """As many as users come at once; official clients do not wait in between."""
    door = Door()
    door.trusting = True
    number = free_port()
    cfg = ServerConfig(bind_addr=HOST, quic_bind_port=number)
    listening = await quic.listen(cfg, door.acceptor, context())
    client = await transport.connect(route(number), report)
    for count in (1, 600, 900):
        conns = [MessageConn((await client.open())[0]) for _ in range(count)]
        for conn in conns:
            conn.write(Login(run_id="x"))
        for conn in conns:
            assert await within(conn.read(), 10, "the answer") == LoginResp(run_id="seen")
    await client.close()
    assert listening is not None
    listening.close()
    await door.close()
