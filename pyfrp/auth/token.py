"""Token authentication: keys made from a shared token and the time, and who may use them when.

Source: frp `pkg/auth/token.go` and `pkg/util/util/util.go` (`GetAuthKey`); the error texts are
frp's, because clients show them and scripts look for them.
"""

from __future__ import annotations

import hmac
from hashlib import md5
from typing import TYPE_CHECKING, Any

from pyfrp.auth import HEARTBEATS, NEW_WORK_CONNS, Spawn
from pyfrp.errors import AuthError
from pyfrp.wire.messages import Login, NewWorkConn, Ping

if TYPE_CHECKING:  # each program loads only the models of its own role
    from pyfrp.config.client import ClientAuth
    from pyfrp.config.server import ServerAuth

REUSE_S = 10.0
"""How long a digest stays good after its first use. Equal clients that start in the same second
send equal digests, and so does one that connects again at once, hence not zero."""

MAX_DIGESTS = 8192
"""Most login digests remembered. With the default skew there are never more than 1801 at a time;
more can only come from someone who has the token, and costs the oldest ones their memory."""


def auth_key(secret: str, timestamp: int) -> str:
    """Return the key that proves knowledge of `secret` at `timestamp` (Unix seconds).

    Also the `sign_key` of visitors, with the proxy's secret key.
    """
    data = secret.encode(errors="surrogateescape") + str(timestamp).encode()
    # The wire format of frp; nothing here rests on the strength of MD5 against collisions.
    return md5(data, usedforsecurity=False).hexdigest()


def key_matches(secret: str, timestamp: int, key: str) -> bool:
    """Tell in constant time whether `key` is the key of `secret` at `timestamp`."""
    return hmac.compare_digest(auth_key(secret, timestamp).encode(), key.encode(errors="replace"))


def authenticator(auth: ClientAuth) -> TokenAuth:
    """The client's side, by its configuration."""
    return TokenAuth(auth.token, frozenset(auth.additional_scopes))


def verifier(auth: ServerAuth) -> TokenVerifier:
    """The server's side, by its configuration."""
    scopes = frozenset(auth.additional_scopes)
    return TokenVerifier(auth.token, scopes, max_clock_skew=auth.max_clock_skew)


class TokenAuth:
    """The client's side: fills the key and time of messages.

    Args:
        token: `auth.token`; may be empty.
        scopes: `auth.additionalScopes`.
    """

    __slots__ = ("_scopes", "_token")

    def __init__(self, token: str, scopes: frozenset[str] = frozenset()) -> None:
        self._token = token
        self._scopes = scopes

    async def login_fields(self, now: float) -> tuple[str, int]:
        """Return `privilege_key` and `timestamp` for a Login sent at `now` (Unix time)."""
        return self._fields(now)

    async def ping_fields(self, now: float) -> tuple[str, int]:
        """Return the same for a Ping: empty and 0 without the scope."""
        return self._fields(now) if HEARTBEATS in self._scopes else ("", 0)

    async def work_conn_fields(self, now: float) -> tuple[str, int]:
        """Return the same for a NewWorkConn: empty and 0 without the scope."""
        return self._fields(now) if NEW_WORK_CONNS in self._scopes else ("", 0)

    def refused(self) -> None:
        """Each key is made anew anyway."""

    def _fields(self, now: float) -> tuple[str, int]:
        timestamp = int(now)
        return auth_key(self._token, timestamp), timestamp


class TokenVerifier:
    """The server's side.

    Args:
        token: `auth.token`; may be empty.
        scopes: `auth.additionalScopes` of the server, whatever the client thinks.
        max_clock_skew: Seconds between the clocks beyond which a login is refused as too old or
            too new; 0 turns this off, and with it the guard against replayed logins.
    """

    def __init__(
        self, token: str, scopes: frozenset[str] = frozenset(), *, max_clock_skew: float = 900.0
    ) -> None:
        self._token = token
        self._scopes = scopes
        self._max_skew = max_clock_skew
        # Timestamps of accepted logins -> time of first use. With one token, the timestamp alone
        # names the digest. Only right digests get in, so a flood of wrong ones cannot grow it.
        self._used: dict[int, float] = {}

    def start(self, spawn: Spawn, log: Any) -> None:
        """There is nothing to do in the background."""

    async def verify_login(self, login: Login, now: float) -> None:
        """Check a login received at `now` (Unix time).

        Raises:
            AuthError: The key is wrong; or it is right but from another time, or used before.
        """
        if not key_matches(self._token, login.timestamp, login.privilege_key):
            raise AuthError("token in login doesn't match token from configuration")
        if self._max_skew > 0:
            self._refuse_replay(login.timestamp, now)

    async def verify_ping(self, ping: Ping, now: float) -> None:
        """Check a heartbeat, if the scope asks for it.

        Raises:
            AuthError: The key is wrong.
        """
        if HEARTBEATS not in self._scopes:
            return
        if not key_matches(self._token, ping.timestamp, ping.privilege_key):
            raise AuthError("token in heartbeat doesn't match token from configuration")

    async def verify_work_conn(self, msg: NewWorkConn, now: float) -> None:
        """Check a work connection, if the scope asks for it.

        Raises:
            AuthError: The key is wrong.
        """
        if NEW_WORK_CONNS not in self._scopes:
            return
        if not key_matches(self._token, msg.timestamp, msg.privilege_key):
            raise AuthError("token in NewWorkConn doesn't match token from configuration")

    def _refuse_replay(self, timestamp: int, now: float) -> None:
        if abs(now - timestamp) > self._max_skew:
            raise AuthError(
                f"login is from another time: the client's clock says {_utc(timestamp)}, the "
                f"server's {_utc(now)}; set the clocks, or raise auth.maxClockSkew "
                f"({self._max_skew:g} s) on the server"
            )
        first = self._used.get(timestamp)
        if first is None:
            self._remember(timestamp, now)
        elif now - first > REUSE_S:
            raise AuthError(
                f"login was used before: the same one came {now - first:.0f} s ago; the client's "
                f"clock said {_utc(timestamp)} both times, the server's says {_utc(now)}; if the "
                "client is yours, see that its clock runs"
            )

    def _remember(self, timestamp: int, now: float) -> None:
        used = self._used
        used[timestamp] = now
        if len(used) > MAX_DIGESTS or len(used) > 2 * self._max_skew + 1:
            # Those beyond the skew are refused for their age, so forgetting them is safe.
            self._used = {t: first for t, first in used.items() if now - t <= self._max_skew}
            while len(self._used) > MAX_DIGESTS:
                del self._used[min(self._used)]


def _utc(timestamp: float) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{timestamp:.0f} (Unix time)"
