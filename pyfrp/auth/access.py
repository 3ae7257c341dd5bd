"""Where a client's access tokens come from.

Source: frp `pkg/auth/oidc.go` (0.65 asks for a token each time, 0.70 keeps it until it expires);
`golang.org/x/oauth2` `internal/token.go` and `clientcredentials` (what is sent, and both ways of
showing the secret).
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, quote_plus, urlencode

from pyfrp.auth.idtoken import quote
from pyfrp.auth.outproxy import EnvironmentProxies, always
from pyfrp.auth.sources import SourceFailed, resolve
from pyfrp.errors import AuthError, ConfigError
from pyfrp.net.certs import trusting_context
from pyfrp.net.fetch import Answer, Fetcher, FetchError, FindProxy, read_url

if TYPE_CHECKING:
    from pyfrp.config.client import ClientOIDC
    from pyfrp.config.common import ValueSource

ENDPOINT_S = 10.0
"""For one answer of the token endpoint."""
EARLY_S = 10.0
"""A token that expires sooner is replaced (`golang.org/x/oauth2` `token.go`, defaultExpiryDelta),
but used as long as it lasts if that fails."""
PAUSE_S = 1.0
"""After a failure the endpoint is left alone for so long, however many ask."""

AT_ONCE = 8
"""Tokens that are got at a time where each message needs its own: a server that asks for many work
connections sets off no more programs, or requests, than that."""
MAX_FIELDS = 100
"""Of an answer in the form of a query; there are five."""

_FAILED = "couldn't generate OIDC token for login"


class Tokens(Protocol):
    """Where access tokens come from."""

    async def get(self) -> str:
        """One that is good now. Raises AuthError."""
        ...

    def refused(self) -> None:
        """The server did not accept the last one."""
        ...


def tokens_of(oidc: ClientOIDC) -> Tokens:
    """What the configuration names.

    Raises:
        ConfigError: for a URL or a file of authorities that cannot be used.
    """
    if oidc.token_source is not None:
        return TokensOfSource(oidc.token_source)
    return TokensOfEndpoint(oidc, _fetcher(oidc))


class TokensOfSource:
    """Takes the token from a file or a program each time, so that it may change."""

    def __init__(self, source: ValueSource) -> None:
        self._source = source
        self._places = asyncio.Semaphore(AT_ONCE)

    async def get(self) -> str:
        """The token as it is now. Raises AuthError."""
        try:
            async with self._places:
                return await resolve(self._source)
        except SourceFailed as exc:
            raise AuthError(f"couldn't acquire OIDC token for login: {exc}") from exc

    def refused(self) -> None:
        """The next one is read anew anyway."""


class TokensOfEndpoint:
    """Gets tokens for client credentials (RFC 6749 4.4), and keeps them as long as they last.

    Tokens whose end is not told are not kept, as with frp: nobody would know when to replace them.
    """

    def __init__(
        self,
        oidc: ClientOIDC,
        fetcher: Fetcher,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._oidc = oidc
        self._fetcher = fetcher
        self._clock = clock
        self._form = _form(oidc)
        secrets = (oidc.client_secret, *oidc.additional_endpoint_params.values())
        # What is shorter than that is no secret, and part of many words.
        long = [each for each in secrets if len(each) > 3]
        self._hidden = [form for each in long for form in (each, quote_plus(each))]
        self._in_form: bool | None = None  # How the secret is shown; None until one way worked.
        self._token = ""
        self._since = self._expires = 0.0
        self._keeps = True
        self._failed_at = float("-inf")
        self._failure = ""
        self._turn = asyncio.Lock()
        self._places = asyncio.Semaphore(AT_ONCE)

    async def get(self) -> str:
        """A token that is good for a while. Raises AuthError."""
        if not self._keeps:
            async with self._places:
                return (await self._ask())[0]
        if self._token and self._clock() < self._expires - EARLY_S:
            return self._token
        async with self._turn:  # Many may ask at once: one request is enough.
            now = self._clock()
            if self._token and now < self._expires - EARLY_S:
                return self._token
            try:
                if self._is_recent(self._failed_at, PAUSE_S):
                    raise AuthError(self._failure)
                token, lasts_s = await self._ask()
            except AuthError as exc:
                if str(exc) != self._failure or not self._is_recent(self._failed_at, PAUSE_S):
                    self._failed_at, self._failure = self._clock(), str(exc)
                if self._token and self._clock() < self._expires:
                    return self._token
                raise
            if lasts_s:
                self._token, self._since, self._expires = token, now, now + lasts_s
            else:
                self._keeps = False
            return token

    def refused(self) -> None:
        """Get another the next time: a provider that was set up anew has other keys by now.

        A token that is young stays, so that whatever else is refused brings no flood of requests.
        """
        if not self._is_recent(self._since, EARLY_S):
            self._token = ""

    def _is_recent(self, moment: float, seconds: float) -> bool:
        # A clock that was set back must not make the past last.
        return 0 <= self._clock() - moment < seconds

    async def _ask(self) -> tuple[str, float]:
        """One token and its life in seconds, 0 if that is not told."""
        ways = (False, True) if self._in_form is None else (self._in_form,)
        failure = None
        for in_form in ways:
            answer = await self._post(in_form)
            try:
                found = read_answer(answer, self._hidden)
            except ValueError as exc:
                # RFC 6749 2.3.1 knows two ways, and many providers take only one of them.
                failure = failure or exc
                continue
            self._in_form = in_form
            return found
        raise AuthError(f"{_FAILED}: {failure}") from failure

    async def _post(self, in_form: bool) -> Answer:
        oidc = self._oidc
        form, fields = dict(self._form), {}
        if in_form:
            form["client_id"] = oidc.client_id
            if oidc.client_secret:
                form["client_secret"] = oidc.client_secret
        else:
            both = f"{quote_plus(oidc.client_id)}:{quote_plus(oidc.client_secret)}"
            fields["Authorization"] = f"Basic {b64encode(both.encode()).decode()}"
        try:
            return await self._fetcher.post(
                oidc.token_endpoint_url, urlencode(form).encode(), fields
            )
        except FetchError as exc:
            raise AuthError(f"{_FAILED}: the token endpoint cannot be used: {exc}") from exc


def read_answer(answer: Answer, hidden: Sequence[str] = ()) -> tuple[str, float]:
    """Read what a token endpoint said (RFC 6749 5).

    Args:
        hidden: What must not be in an error: some providers repeat what they were sent.

    Returns:
        The access token, and its life in seconds; 0 if that is not told.

    Raises:
        ValueError: with the provider's own words for its refusal, if it has any, and never with
            anything that it gives out.
    """
    fields = _fields(answer)
    error = fields.get("error")
    good = 200 <= answer.status < 300
    if isinstance(error, str) and error:
        words = [error, fields.get("error_description"), fields.get("error_uri")]
        said = " ".join(
            quote(_without(word, hidden)) for word in words if isinstance(word, str) and word
        )
        hint = _HINTS.get(error, "")
        raise ValueError(f"oauth2: {said}{hint}")
    if not good:
        raise ValueError(
            f"oauth2: cannot fetch token: the endpoint answers {answer.status} without a reason; "
            "is auth.oidc.tokenEndpointURL right?"
        )
    token = fields.get("access_token")
    if not isinstance(token, str) or not token:
        raise ValueError("oauth2: server response missing access_token")
    if not token.isascii() or not token.isprintable():
        raise ValueError("oauth2: the access token holds characters that no token has")
    return token, _lifetime(fields.get("expires_in"))


def _without(text: str, hidden: Sequence[str]) -> str:
    for each in hidden:
        text = text.replace(each, "***")
    return text


def _fields(answer: Answer) -> dict[str, Any]:
    """What an answer says; nothing if that cannot be read, which is told by what is missing."""
    try:
        if answer.kind in ("application/x-www-form-urlencoded", "text/plain"):
            text = answer.body.decode(errors="replace")
            found = parse_qs(text, max_num_fields=MAX_FIELDS)
            return {name: values[0] for name, values in found.items()}
        fields = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


_HINTS = {
    "invalid_client": "; check auth.oidc.clientID and clientSecret",
    "unauthorized_client": "; allow this client the grant type client_credentials",
    "invalid_scope": "; check auth.oidc.scope",
    "unsupported_grant_type": "; the provider must offer the grant type client_credentials",
}


def _lifetime(value: object) -> float:
    """`expires_in`, which some providers give as a string; 0 for none."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return 0.0
    return min(seconds, 2**31) if seconds > 0 else 0.0


def _form(oidc: ClientOIDC) -> dict[str, str]:
    """What is asked for, without who asks; `additionalEndpointParams` may change the grant type."""
    form = {"grant_type": "client_credentials"}
    if oidc.scope:
        form["scope"] = oidc.scope
    form |= oidc.additional_endpoint_params
    if oidc.audience:
        form["audience"] = oidc.audience
    return form


def _fetcher(oidc: ClientOIDC) -> Fetcher:
    find_proxy: FindProxy | None = None
    try:
        key = "auth.oidc.tokenEndpointURL"
        read_url(oidc.token_endpoint_url)
        key = "auth.oidc.proxyURL"
        if oidc.proxy_url:
            find_proxy = always(key, oidc.proxy_url)
    except ValueError as exc:
        raise ConfigError(f"{key} cannot be used: {exc}", key=key) from None
    context = None
    if oidc.trusted_ca_file or oidc.insecure_skip_verify:
        ca_file = "" if oidc.insecure_skip_verify else oidc.trusted_ca_file
        context = trusting_context(ca_file, "auth.oidc.trustedCaFile")
    if context is None and find_proxy is None:
        # As with frp, who sets any of these has said how to get there: the environment says no
        # more.
        find_proxy = EnvironmentProxies()
    return Fetcher(context=context, find_proxy=find_proxy, timeout_s=ENDPOINT_S)
