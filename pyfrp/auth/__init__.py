"""Ways to prove who a client is; a new one is a file here and a line below.

Each file has `authenticator(auth) -> Authenticator` for clients and `verifier(auth) -> Verifier`
for servers; both raise ConfigError for settings that cannot be used.

Source: frp `pkg/auth/auth.go`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:  # each program loads only the models of its own role
    from pyfrp.config.client import ClientAuth
    from pyfrp.config.server import ServerAuth
    from pyfrp.wire.messages import Login, NewWorkConn, Ping

HEARTBEATS = "HeartBeats"
NEW_WORK_CONNS = "NewWorkConns"
"""The two scopes of `auth.additionalScopes`; a login is always checked."""

# By module, because a program needs one of them: it is loaded when it is used.
METHODS = {
    "token": "pyfrp.auth.token",
    "oidc": "pyfrp.auth.oidc",
}


class Authenticator(Protocol):
    """The client's side: fills `privilege_key` and `timestamp` of messages.

    What fills them takes the Unix time and may have to ask somebody else first; it raises AuthError
    when there is nothing to show now. A later try may succeed.
    """

    async def login_fields(self, now: float) -> tuple[str, int]:
        """For a Login sent at `now`."""
        ...

    async def ping_fields(self, now: float) -> tuple[str, int]:
        """For a Ping: empty and 0 without the scope."""
        ...

    async def work_conn_fields(self, now: float) -> tuple[str, int]:
        """For a NewWorkConn: empty and 0 without the scope."""
        ...

    def refused(self) -> None:
        """The server did not accept a message: what is kept for later may be worth nothing."""
        ...


class Spawn(Protocol):
    """Runs a task that ends with its owner, as `Scope.spawn` does."""

    def __call__(self, coro: Coroutine[Any, Any, None], *, name: str) -> None: ...


class Verifier(Protocol):
    """The server's side. The methods that verify raise AuthError, with frp's text."""

    def start(self, spawn: Spawn, log: Any) -> None:
        """Begin what goes on in the background, if anything does."""
        ...

    async def verify_login(self, login: Login, now: float) -> None:
        """Check a login received at `now` (Unix time)."""
        ...

    async def verify_ping(self, ping: Ping, now: float) -> None:
        """Check a heartbeat, if the scope asks for it."""
        ...

    async def verify_work_conn(self, msg: NewWorkConn, now: float) -> None:
        """Check a work connection, if the scope asks for it."""
        ...


def make_authenticator(auth: ClientAuth) -> Authenticator:
    """The client's side of `auth.method`.

    Raises:
        ConfigError: for files that cannot be used.
    """
    make = import_module(METHODS[auth.method]).authenticator
    return cast("Callable[[ClientAuth], Authenticator]", make)(auth)


def make_verifier(auth: ServerAuth) -> Verifier:
    """The server's side of `auth.method`; its `start` comes before its use."""
    make = import_module(METHODS[auth.method]).verifier
    return cast("Callable[[ServerAuth], Verifier]", make)(auth)
