"""A server without tcpMux on loopback, and clients of it that speak wire v2."""

from __future__ import annotations

from contextlib import asynccontextmanager

from pyfrp.config import server_from_dict
from pyfrp.server.service import Server
from tests.support.ports import free_port
from tests.support.v2_peer import v2_peering
from tests.support.waiting import within
from tests.unit.net.ends import turns
from tests.unit.server.scene import TOKEN, Log


@asynccontextmanager
async def serving(monkeypatch, **settings):
    """A server without tcpMux. It says at the end whether anything unforeseen happened."""
    log = Log()
    monkeypatch.setattr("pyfrp.server.service.get_logger", lambda: log)
    cfg = {"bindAddr": "127.0.0.1", "bindPort": free_port(), "auth": {"token": TOKEN}, **settings}
    server = Server(server_from_dict({"transport": {"tcpMux": False}, **cfg}))
    await server.start()
    server.log = log
    try:
        yield server
        assert not log.events("error"), log.events("error")
    finally:
        await within(server.stop(0.0), 10, "the server to stop")
        await turns()


def port_of(server: Server) -> int:
    return server.cfg.bind_port


@asynccontextmanager
async def logged_in(server, **options):
    """A client that has logged in."""
    async with v2_peering(port_of(server)) as peer:
        resp = await peer.login(TOKEN, **options)
        assert not resp.get("error"), resp
        yield peer
