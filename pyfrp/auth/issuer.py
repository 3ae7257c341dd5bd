"""The keys of an OpenID Connect issuer: found, kept, and looked for again when they change.

One task reads what the issuer publishes. It begins at once, goes on until it has succeeded, and
then rests until a token comes that no known key verifies, or until the keys are old. Whoever needs
keys waits for it, with a limit: a slow issuer holds up only those who have a token of its.

Source: go-oidc `oidc/jwks.go` (when keys are fetched again). frp's own server does not start while
the issuer is away, and keeps a withdrawn key until it meets a token with a new one.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pyfrp.auth.idtoken import DEFAULT_ALGORITHMS, BadToken, Key, read_discovery, read_keys
from pyfrp.net.fetch import Fetcher, FetchError

# However many tokens come that no key verifies, the issuer is asked no more often.
AGAIN_S = 2.0
# After a failure; the longest wait is that of a client's own attempts (frp `client/service.go`).
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 20.0
# Keys this old are read anew: one that was withdrawn is not trusted for ever.
FRESH_S = 3600.0
# For one who waits: less than the ten seconds that a client waits for the answer to its login.
PATIENCE_S = 6.0
# For one document; two are read in a round.
FETCH_S = 5.0
# Those who wait at a time. With more, somebody is sending tokens made up to have us wait.
MAX_WAITING = 256


class Issuer:
    """What is known of an issuer.

    Args:
        url: As configured.
        fetcher: Reads the documents.

    Attributes:
        keys: Empty until there are any.
        algorithms: That it announces.
    """

    def __init__(self, url: str, fetcher: Fetcher) -> None:
        self.url = url
        self.keys: list[Key] = []
        self.algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
        self._fetcher = fetcher
        self._wanted = asyncio.Event()
        self._round: asyncio.Future[None] | None = None  # Settles when the next round is over.
        self._failure: str | None = None
        self._reading = False
        self._waiting = 0

    async def renewed(self) -> None:
        """Wait until the keys were read (again).

        Raises:
            BadToken: they were not; the text tells a client no more than it must know.
        """
        if self._waiting >= MAX_WAITING:
            raise BadToken("failed to verify signature: fetching keys: too many logins wait for it")
        self._waiting += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                joined = self._reading
                await self._next_round()
                if joined and self._failure is not None:
                    # That one had begun before, perhaps a moment too soon.
                    await self._next_round()
        except TimeoutError:
            raise _unreached() from None
        finally:
            self._waiting -= 1
        if self._failure is not None:
            raise _unreached()

    async def _next_round(self) -> None:
        if self._round is None:
            self._round = asyncio.get_running_loop().create_future()
        self._wanted.set()
        await asyncio.shield(self._round)

    async def run(self, log: Any) -> None:
        """Read the keys whenever there is a reason to; ends only by being cancelled."""
        retry_s = FIRST_RETRY_S
        while True:
            known = bool(self.keys)
            self._reading = True
            try:
                await self._read(log)
            except Exception as exc:
                # Whatever a provider thinks of: without this task nobody could log in ever again.
                foreseen = isinstance(exc, FetchError | ValueError)
                reason = str(exc) if foreseen else f"{type(exc).__name__}: {exc}"
                self._failed(reason, retry_s, log)
                pause_s, retry_s = retry_s, min(retry_s * 2, LAST_RETRY_S)
            else:
                if self._failure is not None or not known:
                    log.info(f"oidc: {len(self.keys)} keys of the issuer {self.url} are known")
                self._failure = None
                pause_s, retry_s = FRESH_S, FIRST_RETRY_S
            self._reading = False
            if self._round is not None:
                self._round.set_result(None)
                self._round = None
                self._wanted.clear()
            await asyncio.sleep(min(AGAIN_S, pause_s))
            try:
                async with asyncio.timeout(max(0.0, pause_s - AGAIN_S)):
                    await self._wanted.wait()
            except TimeoutError:
                pass  # The pause is over.

    async def _read(self, log: Any) -> None:
        """One round: both documents, so that a provider may move its keys and change its mind.

        Raises:
            FetchError, ValueError: with the reason; what was known stays.
        """
        answer = await self._fetcher.get(
            f"{self.url.removesuffix('/')}/.well-known/openid-configuration"
        )
        if answer.status != 200:
            raise ValueError(f"it answers {answer.status} where its configuration should be")
        keys_url, algorithms = read_discovery(answer.body, self.url)
        if (
            self.url.startswith("https://")
            and not keys_url.startswith("https://")
            and not self.keys
        ):
            log.warning(
                "oidc: the issuer publishes its keys without TLS: they can be forged on the way"
            )
        answer = await self._fetcher.get(keys_url)
        if answer.status != 200:
            raise ValueError(f"oidc: get keys failed: it answers {answer.status}")
        try:
            self.keys = read_keys(answer.body)
        except ValueError as exc:
            raise ValueError(f"oidc: failed to decode keys: {exc}") from None
        self.algorithms = algorithms

    def _failed(self, reason: str, retry_s: float, log: Any) -> None:
        tell = log.warning if self.keys else log.error
        if reason == self._failure and retry_s >= LAST_RETRY_S:
            tell = log.debug  # Every attempt at first, for whoever watches; then only what is new.
        self._failure = reason
        if self.keys:
            tell(
                f"oidc: the keys of the issuer {self.url} were not read again: {reason}; "
                "those that are known stay in use"
            )
        else:
            tell(
                f"oidc: the issuer {self.url} cannot be used: {reason}; every login is refused "
                f"until it can, trying again in {retry_s:g} s"
            )


def _unreached() -> BadToken:
    return BadToken(
        "failed to verify signature: fetching keys: the server cannot reach the identity provider "
        "now, and tries again by itself"
    )
