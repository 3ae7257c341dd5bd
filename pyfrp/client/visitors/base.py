"""What all visitors of a client have in common: their life, and their way to the other client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from pyfrp.auth.token import auth_key
from pyfrp.config.names import wire_name
from pyfrp.errors import HandshakeError, RefusedError
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.held import Held
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import (
    Message,
    NatHoleResp,
    NatHoleVisitor,
    NewVisitorConn,
    NewVisitorConnResp,
)

if TYPE_CHECKING:
    from pyfrp.config.visitors import VisitorBase
    from pyfrp.nathole.options import PeerOptions
    from pyfrp.net.bridge import Carried
    from pyfrp.net.conn import MessageConn
    from pyfrp.wire.version import Version

ANSWER_S = 10.0  # For NewVisitorConnResp (frp `client/visitor/stcp.go`).


class Session(Protocol):
    """What a visitor may use of a login at the server."""

    run_id: str
    version: Version
    bridges: dict[Carried, None]
    peer_options: PeerOptions

    async def introduce(self, first: Message) -> MessageConn:
        """Open a connection to the server and begin it with `first`. Raises LinkError."""
        ...

    async def ask(self, msg: NatHoleVisitor) -> NatHoleResp:
        """Ask the server about a meeting. Raises LinkError, and RefusedError with its words."""
        ...

    def report(self, exc: BaseException, what: str) -> None: ...
    def spawn(self, coro: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run a task that ends with the session."""
        ...

    def hand_over(self, name: str, user: Endpoint, held: Held) -> None:
        """Let the visitor of this name serve a user; see `ClientVisitor.accept`."""
        ...

    def bridge_closed(self, bridge: Carried) -> None: ...


class ClientVisitor:
    """One visitor of the file, during one session after the other.

    Subclasses implement `start`, `stop` and, where others may hand users over, `accept`.

    Args:
        cfg: Its table of the file, completed.
        name: Its name with the user's, as frp's logs have it.
        log: A structlog logger.
        packet_size: Most bytes of a datagram that are carried.
    """

    def __init__(self, cfg: VisitorBase, name: str, log: Any, *, packet_size: int = 1500) -> None:
        self.cfg = cfg
        self.name = name
        self.log = log.bind(proxy=name)
        self.packet_size = packet_size
        self.target = wire_name(cfg.server_user, cfg.server_name)

    async def start(self, session: Session) -> None:
        """Open whatever users come through.

        Raises:
            LinkError: when that is not possible now; it will be tried again. Nothing is left open.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Take no more users; those who are connected stay. Idempotent."""
        raise NotImplementedError

    def accept(self, user: Endpoint, held: Held) -> None:
        """Serve a user that another visitor hands over; its connection belongs to this one then."""
        self.log.warning(f"a visitor of type {self.cfg.type} takes no users of other visitors")
        user.abort()

    async def visit(self, session: Session) -> tuple[Endpoint, bytes]:
        """Open a connection to the proxy, through the server.

        Returns:
            The endpoint below the payload, paused, and bytes read ahead.

        Raises:
            LinkError, WireError: when the server cannot be reached or does not answer.
            RefusedError: with the server's words.
        """
        cfg = self.cfg
        layers = cfg.transport
        now = int(time.time())
        conn = await session.introduce(
            NewVisitorConn(
                run_id=session.run_id,
                proxy_name=self.target,
                sign_key=auth_key(cfg.secret_key, now),
                timestamp=now,
                use_encryption=layers.use_encryption,
                use_compression=layers.use_compression,
            )
        )
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await conn.read()
            if not isinstance(answer, NewVisitorConnResp):
                raise HandshakeError(f"the server answered with {type(answer).__name__}")
            if answer.error:
                raise RefusedError(answer.error)
            endpoint, early = conn.detach()
        except TimeoutError:
            conn.abort()
            raise HandshakeError(f"no answer of the server within {ANSWER_S:g} s") from None
        except BaseException:
            conn.abort()
            raise
        key = derive_key(cfg.secret_key) if layers.use_encryption else None
        return wrap_payload(endpoint, early, key=key, compress=layers.use_compression)
