"""Proving to an HTTP proxy who we are: which scheme, and what to say.

Of what a proxy offers, the strongest that can be done is taken: Digest and NTLM never show the
password, Basic does. Another scheme is not tried after a refusal, because every wrong attempt
counts towards locking an account.

Source: for `ntlm://`, golib `net/dial_option.go`, `ntlmHTTPProxyAfterHook`: NTLM's messages under
the name Negotiate. Proxies offer it under its own name, too.
"""

from __future__ import annotations

import secrets
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Protocol, TypeAlias

from pyfrp.net import proxywords as words
from pyfrp.net.aside import aside
from pyfrp.net.outproxy import Proxy
from pyfrp.wire.httpauth import Challenge, Digest, basic, best_digest

# How often one dial takes up a new nonce: a proxy that finds every nonce old is broken.
MAX_STALE = 2


class _Method(Protocol):
    """One scheme's part of a conversation.

    Attributes:
        bound: It is about the connection, which must last from its first word to its last.
        asking: Somebody else than the proxy is being waited for.
    """

    scheme: str
    bound: bool
    asking: bool

    async def answer(self, challenges: Sequence[Challenge], target: str) -> str | None:
        """The next value of Proxy-Authorization; None if the proxy has refused us.

        Raises:
            ProxyError: when it cannot go on.
        """
        ...


class _Basic:
    scheme, bound, asking = "basic", False, False

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._said = False

    async def answer(self, challenges: Sequence[Challenge], target: str) -> str | None:
        if self._said:
            return None
        self._said = True
        try:
            return basic(self._proxy.user or "", self._proxy.password)
        except ValueError as exc:
            raise words.auth_failed(self._proxy, self.scheme, str(exc)) from None


class _Digest:
    scheme, bound, asking = "digest", False, False

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._said = False
        self._stale = 0

    async def answer(self, challenges: Sequence[Challenge], target: str) -> str | None:
        memory = self._proxy.memory
        challenge = best_digest(challenges)
        if challenge is not None:
            if self._said:
                self._stale += 1
                if self._stale > MAX_STALE or challenge.params.get("stale", "").lower() != "true":
                    return None
            memory.digest = Digest(challenge, self._proxy.user or "", self._proxy.password)
        elif self._said or memory.digest is None:
            return None
        self._said = challenge is not None
        assert memory.digest is not None  # One was there, or has just been made.
        return memory.digest.answer("CONNECT", target, secrets.token_hex(16))


Step: TypeAlias = Callable[[bytes | None], bytes | None]


class _Tokens:
    """NTLM and Negotiate: tokens to and fro, made by pyspnego.

    Under the name Negotiate goes Kerberos where it can be had, else raw NTLM, as frp sends it.
    """

    bound = True

    def __init__(self, proxy: Proxy, scheme: str) -> None:
        self.scheme = scheme
        self._proxy = proxy
        self._kerberos = scheme == "negotiate" and has_kerberos() and proxy.scheme != "ntlm"
        self._step: Step | None = None
        self.asking = False

    async def answer(self, challenges: Sequence[Challenge], target: str) -> str | None:
        token = next((c.token for c in challenges if c.scheme == self.scheme), "")
        if self._step is not None and not token:
            if self._kerberos:
                raise words.kerberos_denied(self._proxy)
            return None
        try:
            given = b64decode(token, validate=True) if token else None
            said = await self._next(given)
        except ImportError:
            raise words.missing_package(self._proxy, self.scheme) from None
        except Exception as exc:  # What the library raises of a stranger's bytes is not listed.
            if self._kerberos and not token:
                raise words.no_ticket(self._proxy, str(exc)) from exc
            raise words.auth_failed(self._proxy, self.scheme, str(exc)) from exc
        shown = "NTLM" if self.scheme == "ntlm" else "Negotiate"
        return None if said is None else f"{shown} {b64encode(said).decode()}"

    async def _next(self, given: bytes | None) -> bytes | None:
        if self._step is not None:
            return self._step(given)
        proxy = self._proxy
        if self._kerberos:
            self.asking = True  # It stays so for who was cancelled meanwhile.
            try:
                # It may ask its servers for a ticket, and waits for them.
                self._step, said = await aside(partial(_kerberos, proxy, given))
            except Exception:
                self.asking = False
                if not proxy.password:
                    raise
                self._kerberos = False  # No such realm: the password is good for NTLM.
            else:
                self.asking = False
                return said
        self._step = (
            _library()
            .client(
                username=proxy.user, password=proxy.password, hostname=proxy.host, protocol="ntlm"
            )
            .step
        )
        return self._step(given)


def _library() -> ModuleType:
    import spnego  # few proxies ask for it, and loading it takes a while

    return spnego


def _kerberos(proxy: Proxy, given: bytes | None) -> tuple[Step, bytes | None]:
    """Begin with Kerberos: with the user's ticket, or one that the password gets.

    With the ticket as browsers do, inside SPNEGO, which on Windows has the user's NTLM in it, too.
    """
    step: Step = (
        _library()
        .client(
            username=proxy.user or None,
            password=proxy.password or None,
            hostname=proxy.host,
            service="HTTP",
            # With a password, SPNEGO would hide whether there is a realm for it.
            protocol="kerberos" if proxy.password else "negotiate",
        )
        .step
    )
    return step, step(given)


def has_kerberos() -> bool:
    """Whether tickets of this machine's Kerberos can be used (Windows has it built in)."""
    try:
        return sys.platform == "win32" or find_spec("gssapi") is not None
    except ValueError:  # It is loaded in an odd way, as tests do.
        return "gssapi" in sys.modules


class Talk:
    """The authentication of one tunnel, from request to request.

    Attributes:
        bound: The conversation so far is about the connection it is on.
        asking: Kerberos' own servers are being waited for, not the proxy.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._method: _Method | None = None
        self._opening = False

    @property
    def bound(self) -> bool:
        return self._method is not None and self._method.bound

    @property
    def asking(self) -> bool:
        return self._method is not None and self._method.asking

    @property
    def scheme(self) -> str:
        """What is being tried; "" before anything is."""
        return self._method.scheme if self._method is not None else ""

    async def opening(self, target: str) -> str:
        """The value of Proxy-Authorization for the first request; "" to ask without.

        Raises:
            ProxyError: as `next`.
        """
        proxy = self._proxy
        scheme = proxy.memory.scheme
        if not scheme and proxy.scheme == "ntlm" and proxy.user is not None:
            scheme = "negotiate"  # As frp does, which asks with nothing else.
        if not scheme:
            return ""
        self._opening = True
        self._method = self._make(scheme)
        return await self._method.answer((), target) or ""

    async def next(self, challenges: list[Challenge], target: str) -> str:
        """The value of Proxy-Authorization for the request after a 407.

        Raises:
            ProxyError: when there is nothing more to say.
        """
        said: str | None
        if self._method is not None:
            said = await self._method.answer(challenges, target)
            if said is not None:
                self._opening = False
                return said
            if not self._opening:
                raise words.denied(self._proxy, self._method.scheme)
        # What earlier connections were let in with is not wanted any more: begin anew.
        self._opening = False
        scheme = self._choose(challenges)
        if scheme == self.scheme == "basic":  # It would be the same words once more.
            raise words.denied(self._proxy, scheme)
        self._method = self._make(scheme)
        said = await self._method.answer(challenges, target)
        if said is None:
            raise words.denied(self._proxy, self._method.scheme)
        return said

    def remember(self) -> None:
        """The tunnel is made: the next ones may begin with what this one ended with."""
        self._proxy.memory.scheme = self.scheme

    def _make(self, scheme: str) -> _Method:
        if scheme == "basic":
            return _Basic(self._proxy)
        if scheme == "digest":
            return _Digest(self._proxy)
        return _Tokens(self._proxy, scheme)

    def _choose(self, challenges: list[Challenge]) -> str:
        """The scheme to use, of those that are offered."""
        proxy = self._proxy
        offered = {challenge.scheme for challenge in challenges}
        if best_digest(challenges) is None:
            offered.discard("digest")
        if proxy.scheme == "ntlm" and proxy.user is not None:
            order = ["ntlm", "negotiate"]
        elif proxy.password:
            order = ["digest", "ntlm", "negotiate", "basic"]
        else:
            order = ["negotiate"] if has_kerberos() else []
            if proxy.user is not None:
                order += ["digest", "basic"]
        for scheme in order:
            if scheme in offered:
                return scheme
        if proxy.user is None and offered & {"basic", "digest", "ntlm"}:
            raise words.no_credentials(proxy, challenges)
        if "negotiate" in offered and proxy.scheme != "ntlm":
            raise words.needs_kerberos(proxy)
        raise words.unknown_schemes(proxy, challenges)
