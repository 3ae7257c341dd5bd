"""Visitor connections: who may come to which proxy, and in which layers.

Source: frp `server/visitor/visitor.go`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyfrp.auth.token import key_matches
from pyfrp.errors import RefusedError
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from pyfrp.wire.messages import NewVisitorConn
from pyfrp.wire.version import Version

ANYBODY = "*"
SHOWN = 200  # Characters of a peer's own words that are told back and logged.

Accept = Callable[[Endpoint, bytes, Version], None]


@dataclass(frozen=True, slots=True)
class VisitedProxy:
    """A proxy that visitors reach by its name.

    Args:
        allow_users: Whose visitors may come; `*` among them for everybody's.
        accept: Takes a visitor connection, paused, bytes read ahead of it, and how messages are
            written on it.
    """

    secret_key: str
    allow_users: frozenset[str]
    accept: Accept

    def enter(
        self, endpoint: Endpoint, early: bytes, msg: NewVisitorConn, version: Version
    ) -> None:
        """Hand over a connection that was admitted and told so.

        The layers on this leg are the visitor's choice and keyed with the secret key, whatever the
        proxy has on the other leg.
        """
        key = derive_key(self.secret_key) if msg.use_encryption else None
        self.accept(*wrap_payload(endpoint, early, key=key, compress=msg.use_compression), version)


class VisitorManager:
    """The proxies of all clients that visitors may reach."""

    def __init__(self) -> None:
        self._visited: dict[str, VisitedProxy] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._visited)

    def listen(
        self, name: str, *, secret_key: str, allow_users: Iterable[str], accept: Accept
    ) -> None:
        """Take visitors for a proxy from now on.

        Raises:
            RefusedError: with frp's text, when somebody does so under this name.
        """
        if name in self._visited:
            raise RefusedError(f"custom listener for [{name}] is repeated")
        self._visited[name] = VisitedProxy(secret_key, frozenset(allow_users), accept)

    def unlisten(self, name: str) -> None:
        """Take no more visitors for a proxy; those who are there stay. Idempotent."""
        self._visited.pop(name, None)

    def admit(self, msg: NewVisitorConn, user: str) -> VisitedProxy:
        """Find the proxy that a visitor of `user` asks for; answer, then have it `enter`.

        Raises:
            RefusedError: with frp's text.
        """
        name = msg.proxy_name[:SHOWN]
        if self._closed:
            raise RefusedError(f"visitor connection of [{name}] refused: the server is stopping")
        visited = self._visited.get(msg.proxy_name)
        if visited is None:
            raise RefusedError(f"custom listener for [{name}] doesn't exist")
        # As with frp the age of the key is not checked: a visitor's clock may be wrong.
        if not key_matches(visited.secret_key, msg.timestamp, msg.sign_key):
            raise RefusedError(f"visitor connection of [{name}] auth failed")
        if not visited.allow_users & {user, ANYBODY}:
            raise RefusedError(f"visitor connection of [{name}] user [{user[:SHOWN]}] not allowed")
        return visited

    def close(self) -> None:
        """Admit nobody any more."""
        self._closed = True
