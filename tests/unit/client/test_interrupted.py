"""Logins that are ended from outside: nothing of them stays, and nobody waits for them."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager

import pytest

from pyfrp.cli.run import use_dns_server
from pyfrp.client.service import Client
from pyfrp.config import client_from_dict, server_from_dict
from pyfrp.errors import PeerClosed
from pyfrp.net.dial import look_up_with
from pyfrp.server.service import Server
from tests.support import leaks
from tests.support.dns import zone_of
from tests.support.interrupted import Interrupted
from tests.support.ports import free_port
from tests.support.proxies import HttpProxy, SocksProxy
from tests.support.services import running as services
from tests.support.waiting import until, within
from tests.unit.net.ends import turns
from tests.unit.server.scene import Log


@pytest.fixture(autouse=True)
def log(monkeypatch, tmp_path_factory):
    log = Log()
    monkeypatch.setattr("pyfrp.client.service.get_logger", lambda: log)
    monkeypatch.setattr("pyfrp.server.service.get_logger", lambda: log)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path_factory.getbasetemp() / "state"))
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


# -- at every point where a login waits ---------------------------------------------------------


USERS = {"user": "secret"}


@asynccontextmanager
async def world(*, mux):
    """A server with every transport, proxies, and a name with several addresses."""
    port, quic = free_port(), free_port()
    server = Server(
        server_from_dict(
            {
                "bindAddr": "127.0.0.1",
                "bindPort": port,
                "kcpBindPort": port,
                "quicBindPort": quic,
                "auth": {"token": "spec-token"},
                "transport": {"tcpMux": mux},
            }
        )
    )
    http, asking = HttpProxy(), HttpProxy(users=USERS, schemes=("digest",))
    socks = SocksProxy(users=USERS)
    names = {"frps.test": ["127.0.0.9", "::1", "127.0.0.1"]}
    await server.start()
    try:
        async with services(http, asking, socks), zone_of(names) as zone:
            yield {
                "server": port,
                "quic": quic,
                "http": http,
                "asking": asking,
                "socks": socks,
                "dns": zone,
            }
    finally:
        await server.stop(0.0)
        await turns()


def through(kind, scheme="http", **transport):
    def make(there):
        url = f"{scheme}://user:secret@127.0.0.1:{there[kind].port}"
        return settings(there["server"], proxyURL=url, **transport)

    return make


def directly(**transport):
    return lambda there: settings(there["server"], **transport)


LOGINS = {
    "tcp": directly(),
    "in the clear": directly(tls={"enable": False}),
    "without mux": directly(tcpMux=False),
    "v2": directly(wireProtocol="v2"),
    "websocket": directly(protocol="websocket"),
    "wss": directly(protocol="wss"),
    "kcp": directly(protocol="kcp"),
    "quic": lambda there: settings(there["quic"], protocol="quic"),
    "auto": directly(protocol="auto"),
    "auto through a proxy": through("http", protocol="auto", auto={"ladder": ["wss+proxy"]}),
    "HTTP proxy": through("http"),
    "HTTP proxy with a password": through("asking", protocol="wss"),
    "SOCKS proxy": through("socks", "socks5", protocol="websocket"),
    "names": lambda there: {
        **settings(there["server"]),
        "serverAddr": "frps.test",
        "dnsServer": f"127.0.0.1:{there['dns'].port}",
    },
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("way", LOGINS)
async def test_a_login_that_is_cancelled_anywhere_leaves_nothing(loop_kind, way, late):
    async with world(mux=way != "without mux") as there:
        cfg = client_from_dict(LOGINS[way](there))
        use_dns_server(cfg)
        for at in range(1, 200):
            before = leaks.look()
            login = Interrupted(Client(cfg)._try_login(), at, late=late)
            task = login.start()
            await within(asyncio.wait([task]), 10, "the end of the login")
            cancelled = task.cancelled()
            if not cancelled:
                control = task.result()
                control.end(PeerClosed("enough"))
                await control.run()
            try:
                await until(lambda b=before: not (leaks.look() - b), f"{at} to be cleared", 3)
            except AssertionError:
                pytest.fail(f"cancelled at {at}, it left behind:\n{leaks.look() - before}")
            if login.points < at:
                return
    pytest.fail("it never came to an end")
