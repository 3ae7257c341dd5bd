"""The transports of a server; a new one is a file here and a line below.

What shares the bind port with others tells itself by its first bytes, and is a layer that is taken
off until frp's own bytes are left. What has a port of its own is a listener, which hands its
connections to the `LinkAcceptor`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from pyfrp.net.certs import ServerContext
from pyfrp.net.endpoint import Endpoint
from pyfrp.server.transports import tls, websocket
from pyfrp.wire.sniff import Kind

if TYPE_CHECKING:
    from pyfrp.config import ServerConfig
    from pyfrp.server.links import LinkAcceptor

Layer: TypeAlias = Callable[[Endpoint, bytes, ServerContext], Awaitable[tuple[Endpoint, bytes]]]
"""Takes a layer off a connection, which is paused, with the bytes read of it: what is below, alike.

Raises LinkError; the connection is closed then."""

LAYERS: dict[Kind, Layer] = {
    Kind.TLS: tls.accept,
    Kind.TLS_AFTER_BYTE: tls.accept_after_byte,
    Kind.WEBSOCKET: websocket.accept,
}
"""By what their first bytes tell. None occurs twice in a connection."""

SECURE = frozenset((Kind.TLS, Kind.TLS_AFTER_BYTE))
"""The layers that `transport.tls.force` asks for."""


class Listening(Protocol):
    """A port that is listened on."""

    def close(self) -> None:
        """Take nobody new."""
        ...

    async def settle(self) -> None:
        """At the end, wait a moment for what was written to arrive, where closing would lose it."""
        ...


Listen: TypeAlias = Callable[
    ["ServerConfig", "LinkAcceptor", ServerContext], Awaitable[Listening | None]
]
"""Listens where the configuration says so, else returns None.

Raises:
    ConfigError: the port cannot be had.
"""


def _where(key: str, module: str) -> Listen:
    """What listens by a module that is loaded only where the configuration has this key."""

    async def listen(
        cfg: ServerConfig, acceptor: LinkAcceptor, context: ServerContext
    ) -> Listening | None:
        if not getattr(cfg, key):
            return None
        return await cast(Listen, import_module(module).listen)(cfg, acceptor, context)

    return listen


LISTENERS: tuple[Listen, ...] = (
    _where("kcp_bind_port", "pyfrp.server.transports.kcp"),
    _where("quic_bind_port", "pyfrp.server.transports.quic"),
)
"""The transports with ports of their own."""
