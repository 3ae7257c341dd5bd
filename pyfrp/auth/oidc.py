"""OpenID Connect: clients show an access token, servers check it with the issuer's keys.

Source: frp `pkg/auth/oidc.go`; the texts of errors are its own as far as they go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyfrp.auth import HEARTBEATS, NEW_WORK_CONNS, Spawn
from pyfrp.auth.idtoken import (
    SHOWN,
    BadToken,
    Key,
    Rules,
    Token,
    UnknownKey,
    check_algorithm,
    check_claims,
    check_signature,
    quote,
    read_token,
)
from pyfrp.auth.issuer import FETCH_S, Issuer
from pyfrp.auth.outproxy import EnvironmentProxies
from pyfrp.errors import AuthError
from pyfrp.net.fetch import Fetcher
from pyfrp.wire.framing import MAX_BODY

if TYPE_CHECKING:  # each program loads only the models of its own role
    from pyfrp.auth.access import Tokens
    from pyfrp.config.client import ClientAuth
    from pyfrp.config.server import ServerAuth
    from pyfrp.wire.messages import Login, NewWorkConn, Ping

MAX_TOKEN_BYTES = MAX_BODY - 1024
"""Longest token: a login must hold it and all else that a login says."""
MAX_SUBJECTS = 65536
"""Subjects remembered. Only who has a valid token gets one in; the oldest goes."""
MAX_SIGNED = 1024
"""Tokens remembered whose signature is known to be right. A client shows the same one with each
work connection, and checking a signature takes 100 microseconds."""


def authenticator(auth: ClientAuth) -> OidcAuth:
    """The client's side, by its configuration.

    Raises:
        ConfigError: for a URL or a file of authorities that cannot be used.
    """
    from pyfrp.auth.access import tokens_of  # not on servers

    return OidcAuth(tokens_of(auth.oidc), frozenset(auth.additional_scopes))


def verifier(auth: ServerAuth) -> OidcVerifier:
    """The server's side, by its configuration."""
    oidc = auth.oidc
    rules = Rules(oidc.issuer, oidc.audience, oidc.skip_expiry_check, oidc.skip_issuer_check)
    fetcher = Fetcher(find_proxy=EnvironmentProxies(), timeout_s=FETCH_S)
    issuer = Issuer(oidc.issuer, fetcher)
    return OidcVerifier(rules, issuer, frozenset(auth.additional_scopes))


# -- the client's side -------------------------------------------------------------------------


class OidcAuth:
    """Fills the key of messages with a token.

    Args:
        tokens: Where it comes from.
        scopes: `auth.additionalScopes`.
    """

    def __init__(self, tokens: Tokens, scopes: frozenset[str]) -> None:
        self._tokens = tokens
        self._scopes = scopes
        self.refused = tokens.refused

    async def login_fields(self, now: float) -> tuple[str, int]:
        """For a Login; frp sends the time in it with this method, too."""
        return await self._fresh(), int(now)

    async def ping_fields(self, now: float) -> tuple[str, int]:
        """For a Ping: empty without the scope."""
        return (await self._fresh() if HEARTBEATS in self._scopes else "", 0)

    async def work_conn_fields(self, now: float) -> tuple[str, int]:
        """For a NewWorkConn: empty without the scope."""
        return (await self._fresh() if NEW_WORK_CONNS in self._scopes else "", 0)

    async def _fresh(self) -> str:
        token = await self._tokens.get()
        if len(token) > MAX_TOKEN_BYTES:
            raise AuthError(
                f"the OIDC token is {len(token)} bytes long, and frp's messages hold "
                f"{MAX_TOKEN_BYTES}: have the provider put less into it (scopes, groups)"
            )
        return token


# -- the server's side -------------------------------------------------------------------------


class OidcVerifier:
    """Checks tokens, and that those of later messages are of somebody who has logged in.

    Args:
        issuer: Its keys; `start` runs it.
        scopes: `auth.additionalScopes` of the server, whatever the client thinks.
    """

    def __init__(self, rules: Rules, issuer: Issuer, scopes: frozenset[str]) -> None:
        self._rules = rules
        self._issuer = issuer
        self._scopes = scopes
        self._subjects: dict[str, None] = {}
        self._signed: dict[str, Token] = {}
        self._signed_by: list[Key] = []  # Other keys may not verify what these did.

    def start(self, spawn: Spawn, log: Any) -> None:
        """Begin to look for the issuer's keys, and go on until the server ends."""
        spawn(self._issuer.run(log), name="keys of the OIDC issuer")

    async def verify_login(self, login: Login, now: float) -> None:
        """Check a login and remember whose it is.

        Raises:
            AuthError: The token is not good.
        """
        try:
            token = await self._verify(login.privilege_key, now)
        except BadToken as exc:
            raise AuthError(f"invalid OIDC token in login: {exc}") from exc
        self._subjects.pop(token.subject, None)
        self._subjects[token.subject] = None
        if len(self._subjects) > MAX_SUBJECTS:
            del self._subjects[next(iter(self._subjects))]

    async def verify_ping(self, ping: Ping, now: float) -> None:
        """Check a heartbeat, if the scope asks for it.

        Raises:
            AuthError: The token is not good, or of somebody who never logged in.
        """
        if HEARTBEATS in self._scopes:
            await self._verify_later(ping.privilege_key, now)

    async def verify_work_conn(self, msg: NewWorkConn, now: float) -> None:
        """Check a work connection, if the scope asks for it; raises as `verify_ping`."""
        if NEW_WORK_CONNS in self._scopes:
            await self._verify_later(msg.privilege_key, now)

    async def _verify_later(self, raw: str, now: float) -> None:
        try:
            token = await self._verify(raw, now)
        except BadToken as exc:
            # frp says "ping" of work connections, too.
            raise AuthError(f"invalid OIDC token in ping: {exc}") from exc
        if token.subject not in self._subjects:
            subject = token.subject[:SHOWN]
            shown = subject if subject.isprintable() else quote(subject)
            raise AuthError(
                f"received different OIDC subject in login and ping. new subject: {shown}"
            )

    async def _verify(self, raw: str, now: float) -> Token:
        token = self._signed.get(raw)
        if token is not None and self._signed_by is self._issuer.keys:
            check_claims(token, self._rules, now)
            return token
        token = read_token(raw)
        check_claims(token, self._rules, now)
        if not self._issuer.keys:
            await self._issuer.renewed()
        try:
            self._check_signature(token)
        except UnknownKey:
            await self._issuer.renewed()
            self._check_signature(token)
        self._remember(token)
        return token

    def _remember(self, token: Token) -> None:
        if self._signed_by is not self._issuer.keys:
            self._signed_by = self._issuer.keys
            self._signed.clear()
        self._signed[token.raw] = token
        if len(self._signed) > MAX_SIGNED:
            del self._signed[next(iter(self._signed))]

    def _check_signature(self, token: Token) -> None:
        algorithm, key_id = check_algorithm(token, self._issuer.algorithms)
        check_signature(token, algorithm, key_id, self._issuer.keys)
