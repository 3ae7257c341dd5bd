"""A server whose clients are at the other end of connections in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from pyfrp.auth.token import auth_key
from pyfrp.config import server_from_dict
from pyfrp.net.conn import MessageConn
from pyfrp.server.links import LinkAcceptor
from pyfrp.server.service import Server
from pyfrp.vhost.frontend import HttpFrontend
from pyfrp.vhost.https import HttpsMuxer
from pyfrp.vhost.tcpmux import TcpmuxMuxer
from pyfrp.wire.cfb import Decryptor, Encryptor, derive_key
from pyfrp.wire.messages import (
    Login,
    LoginResp,
    Message,
    NewProxy,
    NewProxyResp,
    NewWorkConn,
    ReqWorkConn,
    StartWorkConn,
)
from pyfrp.wire.sniff import Kind
from tests.support.waiting import within
from tests.unit.net.ends import MemoryEnd, Reader, memory_pair, turns
from tests.unit.net.mux_pair import MuxSide
from tests.unit.net.tls_pair import server_context

TOKEN = "spec-token"
LIMIT_S = 10.0


class Log:
    """A structlog logger that keeps what it is told."""

    def __init__(self, lines: list[tuple[str, str, dict[str, Any]]] | None = None, **bound: Any):
        self.lines = lines if lines is not None else []
        self._bound = bound

    def bind(self, **more: Any) -> Log:
        return Log(self.lines, **{**self._bound, **more})

    def _add(self, level: str, event: str, kw: dict[str, Any]) -> None:
        self.lines.append((level, event, {**self._bound, **kw}))

    def debug(self, event: str, **kw: Any) -> None:
        self._add("debug", event, kw)

    def info(self, event: str, **kw: Any) -> None:
        self._add("info", event, kw)

    def warning(self, event: str, **kw: Any) -> None:
        self._add("warning", event, kw)

    def error(self, event: str, **kw: Any) -> None:
        self._add("error", event, kw)

    def events(self, level: str = "") -> list[str]:
        return [event for found, event, _ in self.lines if level in ("", found)]

    def has(self, text: str, level: str = "") -> bool:
        return any(text in event for event in self.events(level))


@dataclass
class Peer:
    """A client as the tests play it."""

    office: Office
    conn: MessageConn
    end: Any
    resp: LoginResp
    mux: MuxSide | None = None
    inbox: list[Message] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return self.resp.run_id

    async def read(self) -> Message:
        return await within(self.conn.read(), LIMIT_S, "a message of the server")

    async def expect(self, kind: type[Message]) -> Any:
        """The next message of this kind; others are kept in `inbox`."""
        while True:
            msg = await self.read()
            if isinstance(msg, kind):
                return msg
            self.inbox.append(msg)

    async def propose(self, msg: NewProxy) -> NewProxyResp:
        self.conn.write(msg)
        return await self.expect(NewProxyResp)

    async def tcp(self, name: str = "ssh", port: int = 0, **fields: Any) -> NewProxyResp:
        return await self.propose(
            NewProxy(proxy_name=name, proxy_type="tcp", remote_port=port, **fields)
        )

    async def udp(self, name: str = "dns", port: int = 0, **fields: Any) -> NewProxyResp:
        return await self.propose(
            NewProxy(proxy_name=name, proxy_type="udp", remote_port=port, **fields)
        )

    async def http(self, name: str, *domains: str, **fields: Any) -> NewProxyResp:
        return await self.propose(
            NewProxy(proxy_name=name, proxy_type="http", custom_domains=list(domains), **fields)
        )

    def send_raw(self, kind: str, body: bytes) -> None:
        """Send a frame as it is, through the cipher."""
        frame = kind.encode() + len(body).to_bytes(8, "big") + body
        assert self.conn._encrypt is not None
        self.end.write(self.conn._encrypt(frame))

    def dial(self) -> tuple[MessageConn, Any]:
        """Another connection to the server, on the same link where there is one."""
        if self.mux is None:
            return self.office.connect()
        stream = self.mux.mux.open()
        stream.hold()
        return MessageConn(stream), stream

    async def bring(self, **fields: Any) -> Work:
        """Bring a work connection."""
        conn, end = self.dial()
        conn.write(NewWorkConn(run_id=self.run_id, **fields))
        await turns()
        return Work(conn, end)

    async def asked(self) -> int:
        """How many work connections the server has asked for since the last call."""
        while True:
            try:
                async with asyncio.timeout(0.02):
                    self.inbox.append(await self.conn.read())
            except TimeoutError:
                break
        count = sum(isinstance(msg, ReqWorkConn) for msg in self.inbox)
        self.inbox = [msg for msg in self.inbox if not isinstance(msg, ReqWorkConn)]
        return count


@dataclass
class Work:
    """The client's end of a work connection.

    Attributes:
        refusal: What the server said when it did not want it.
    """

    conn: MessageConn
    end: Any
    refusal: str = ""

    async def start(self) -> tuple[StartWorkConn, Reader]:
        """Wait for its use; the message, and a reader of what follows."""
        msg = await within(self.conn.read(), LIMIT_S, "StartWorkConn")
        assert isinstance(msg, StartWorkConn)
        reader = Reader()
        endpoint, early = self.conn.detach()
        endpoint.set_protocol(reader)
        if early:
            reader.data_received(early)
        endpoint.resume_reading()
        return msg, reader

    async def ended(self) -> bool:
        """Whether the server closed it without using it."""
        await turns()
        try:
            async with asyncio.timeout(0.05):
                while isinstance(msg := await self.conn.read(), StartWorkConn) and msg.error:
                    self.refusal = msg.error
        except TimeoutError:
            return False
        except Exception:
            return True
        return False


class Office:
    """The server, its log, and ways to it."""

    def __init__(self, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = Log()
        monkeypatch.setattr("pyfrp.server.service.get_logger", lambda: self.log)
        settings = {"auth": {"token": TOKEN}, "proxyBindAddr": "127.0.0.1", **settings}
        self.mux = settings.get("transport", {}).get("tcpMux", True)
        self.cfg = server_from_dict(settings)
        self.server = Server(self.cfg)
        if self.cfg.vhost_http_port:
            self.server.http = HttpFrontend(
                header_timeout_s=0,
                frp_errors=False,
                not_found_page="",
                log=self.log,
                scope=self.server._scope,
            )
        if self.cfg.vhost_https_port:
            self.server.https = HttpsMuxer(log=self.log)
        if self.cfg.tcpmux_http_connect_port:
            self.server.tcpmux = TcpmuxMuxer(
                passthrough=self.cfg.tcpmux_passthrough,
                not_found_page=self.cfg.custom_404_page,
                log=self.log,
            )
        self.acceptor = LinkAcceptor(
            on_first=self.server._on_first,
            on_http=None,
            tls=server_context(),
            force_tls=False,
            tcp_mux=self.mux,
            mux_keepalive_s=0,
            log=self.log,
            report=self.server.report,
        )
        self.server._acceptor = self.acceptor
        self.ends: list[MemoryEnd] = []

    def link(self) -> MemoryEnd:
        """A new connection to the server; the client's end of it."""
        ours, theirs = memory_pair()
        ours.pause_reading()
        self.ends += [ours, theirs]
        self.acceptor._on_known(ours, Kind.PLAIN, b"")  # type: ignore[arg-type]  # an endpoint too
        return theirs

    def connect(self) -> tuple[MessageConn, MemoryEnd]:
        theirs = self.link()
        theirs.pause_reading()
        return MessageConn(theirs), theirs

    async def login(
        self, *, token: str = TOKEN, timestamp: int | None = None, **fields: Any
    ) -> Peer:
        """Log a client in, or try to: see `resp`."""
        mux = None
        if self.mux:
            mux = MuxSide(self.link())
            mux.start(client=True, keepalive_s=0)
            end: Any = mux.mux.open()
            end.hold()
            conn = MessageConn(end)
        else:
            conn, end = self.connect()
        when = int(time.time()) if timestamp is None else timestamp
        conn.write(
            Login(version="0.65.0", privilege_key=auth_key(token, when), timestamp=when, **fields)
        )
        resp = await within(conn.read(), LIMIT_S, "LoginResp")
        assert isinstance(resp, LoginResp)
        if not resp.error:
            key = derive_key(TOKEN)
            conn.secure(Encryptor(key).encrypt, Decryptor(key).decrypt)
        return Peer(self, conn, end, resp, mux)

    def quiet(self) -> None:
        """Nothing is held for anybody."""
        server = self.server
        assert server.controls == {}
        assert server._proxies == {}
        assert server.ports._used == {}
        assert not len(server.visitors)
        assert not len(server.groups)
        assert not len(server.meetings)

        assert server.udp_ports._used == {}
        if server.http is not None:
            assert server.http.router._domains == {}
            assert server.http._pools == {}
        if server.https is not None:
            assert server.https.router._domains == {}
            assert not len(server.https)
        if server.tcpmux is not None:
            assert server.tcpmux.router._domains == {}
            assert not len(server.tcpmux)


@asynccontextmanager
async def office(
    monkeypatch: pytest.MonkeyPatch, *, ok_errors: tuple[str, ...] = (), **settings: Any
) -> AsyncIterator[Office]:
    """A server; at the end nothing is left, and nothing unforeseen was logged."""
    made = Office(settings, monkeypatch)
    try:
        yield made
        await made.server.stop(0.0)
        await turns()
        made.quiet()
        assert not made.acceptor.links
        assert not made.acceptor._unknown
        assert not len(made.acceptor._scope)
        unforeseen = [e for e in made.log.events("error") if not any(ok in e for ok in ok_errors)]
        assert not unforeseen, unforeseen
    finally:
        await made.server._close()
        for end in made.ends:
            end.abort()
        await turns()


DIRECT = {"transport": {"tcpMux": False}}
