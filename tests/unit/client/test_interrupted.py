"""Logins that are ended from outside: nothing of them stays, and nobody waits for them."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager

import pytest

from pyfrp.cli.run import use_dns_server
from pyfrp.client.service import Client
from pyfrp.config import client_from_dict
from pyfrp.net.dial import look_up_with
from tests.support.waiting import within
from tests.unit.net.ends import turns
from tests.unit.server.scene import Log


@pytest.fixture(autouse=True)
def log(monkeypatch):
    log = Log()
    monkeypatch.setattr("pyfrp.client.service.get_logger", lambda: log)
    yield log
    look_up_with(None)


class Silence:
    """Takes connections and datagrams on one port, and says nothing.

    Attributes:
        reached: Somebody has come.
    """

    def __init__(self):
        self.reached = asyncio.Event()

    async def _hold(self, reader, writer):
        self.reached.set()
        try:
            await reader.read()  # Until it ends, whatever it says.
        except OSError:
            pass  # Cut off.
        writer.close()

    @asynccontextmanager
    async def listening(self):
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._hold, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", self.port))
        sock.setblocking(False)
        loop.add_reader(sock, self._drop, sock)
        try:
            yield self
        finally:
            loop.remove_reader(sock)
            sock.close()
            server.close()
            await server.wait_closed()

    def _drop(self, sock):
        sock.recv(65536)
        self.reached.set()


def settings(port, **transport):
    return {
        "serverAddr": "127.0.0.1",
        "serverPort": port,
        "loginFailExit": False,
        "auth": {"token": "spec-token"},
        "transport": transport,
    }


def oidc(port):
    found = settings(port)
    url = f"http://127.0.0.1:{port}/token"
    found["auth"] = {
        "method": "oidc",
        "oidc": {"clientID": "a", "clientSecret": "b", "tokenEndpointURL": url},
    }
    return found


def program(port):
    found = settings(port)
    come = f"import socket, time; socket.create_connection(('127.0.0.1', {port})); time.sleep(60)"
    source = {"type": "exec", "exec": {"command": sys.executable, "args": ["-c", come]}}
    found["auth"] = {"method": "oidc", "oidc": {"tokenSource": source}}
    return found


WAITS = {
    "TLS": settings,
    "the login": lambda port: settings(port, tls={"enable": False}),
    "a connection of its own": lambda port: settings(port, tcpMux=False),
    "websocket": lambda port: settings(port, protocol="websocket"),
    "wss": lambda port: settings(port, protocol="wss"),
    "kcp": lambda port: settings(port, protocol="kcp"),
    "quic": lambda port: settings(port, protocol="quic"),
    "the ladder": lambda port: settings(port, protocol="auto"),
    "an HTTP proxy": lambda port: settings(7, proxyURL=f"http://u:p@127.0.0.1:{port}"),
    "a proxy's TLS": lambda port: settings(7, proxyURL=f"https://u:p@127.0.0.1:{port}"),
    "a SOCKS proxy": lambda port: settings(7, proxyURL=f"socks5://u:p@127.0.0.1:{port}"),
    "a DNS server": lambda port: {
        **settings(7),
        "serverAddr": "frps.test",
        "dnsServer": f"127.0.0.1:{port}",
    },
    "a provider": oidc,
    "a program": program,
}


@pytest.mark.parametrize("wait", WAITS)
async def test_a_client_that_is_stopped_while_it_waits_for_a_login_ends_at_once(loop_kind, wait):
    async with Silence().listening() as silence:
        cfg = client_from_dict(WAITS[wait](silence.port), allow_unsafe=["TokenSourceExec"])
        use_dns_server(cfg)
        client = Client(cfg)
        task = asyncio.get_running_loop().create_task(client.run())
        await within(silence.reached.wait(), 10, "the client to come")
        await client.stop(0.0)
        await within(task, 2, "the client to end")
        await turns()
