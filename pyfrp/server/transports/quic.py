"""QUIC: a port of its own, and each stream a connection of a client.

Source: frp `server/service.go` (`HandleQUICListener`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfrp.errors import ConfigError, LinkError
from pyfrp.log import get_logger
from pyfrp.net.certs import ServerContext
from pyfrp.net.endpoint import format_address
from pyfrp.net.sockets import bind_error

if TYPE_CHECKING:
    from pyfrp.config import ServerConfig
    from pyfrp.net.quic import QuicStream
    from pyfrp.net.quic_listener import Listening, ServedSession
    from pyfrp.server.links import Link, LinkAcceptor


async def listen(
    cfg: ServerConfig, acceptor: LinkAcceptor, context: ServerContext
) -> Listening | None:
    """Listen on `quicBindPort`, if there is one. Raises ConfigError."""
    if not cfg.quic_bind_port:
        return None
    # It takes longer to load than all the rest.
    from pyfrp.net.quic_listener import Listening
    from pyfrp.net.quic_tls import server_setup

    tuning, tls = cfg.transport.quic, cfg.transport.tls
    setup = server_setup(
        context,
        key_file=tls.key_file,
        trusted_ca_file=tls.trusted_ca_file,
        keepalive_s=float(tuning.keepalive_period),
        idle_s=float(tuning.max_idle_timeout),
    )
    links = _Links(acceptor)
    port = Listening(
        setup,
        max_streams=tuning.max_incoming_streams,
        on_session=links.begin,
        on_stream=links.take,
        on_lost=links.end,
        report=acceptor.report,
    )
    try:
        await port.open(cfg.bind_addr, cfg.quic_bind_port)
    except OSError as exc:
        reason = bind_error(cfg.bind_addr, cfg.quic_bind_port, exc, "udp")
        raise ConfigError(f"create quic listener error, {reason}") from exc
    address = format_address((cfg.bind_addr, cfg.quic_bind_port))
    get_logger().info(f"frps quic listen on {address}")
    return port


class _Links:
    """The links of the connections at the port."""

    def __init__(self, acceptor: LinkAcceptor) -> None:
        self._acceptor = acceptor
        self._links: dict[ServedSession, Link] = {}

    def begin(self, session: ServedSession) -> None:
        self._links[session] = self._acceptor.carried(session)

    def take(self, session: ServedSession, stream: QuicStream) -> None:
        link = self._links[session]
        if link.trusted:
            session.allow_streams()
        self._acceptor.take(link, stream)

    def end(self, session: ServedSession, cause: LinkError) -> None:
        self._acceptor.lost(self._links.pop(session), cause)
