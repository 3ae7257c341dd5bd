from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pyfrp.auth import issuer as module
from pyfrp.auth import oidc
from pyfrp.auth.idtoken import Rules
from pyfrp.auth.issuer import Issuer
from pyfrp.errors import AuthError
from pyfrp.net.fetch import Fetcher
from pyfrp.net.scope import Scope
from pyfrp.wire.messages import Login, NewWorkConn, Ping
from tests.support.identity import (
    AUDIENCE,
    Provider,
    SigningKey,
    b64,
    make_hmac_token,
    make_token,
    serving,
)
from tests.support.oidc_attacks import OTHER
from tests.support.ports import free_port
from tests.support.waiting import until

SCOPES = frozenset(("HeartBeats", "NewWorkConns"))


class Log:
    """What was logged, by level."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda text, **_: self.lines.append((level, text))

    def of(self, level: str) -> list[str]:
        return [text for each, text in self.lines if each == level]


def fail(exc: BaseException, what: str) -> None:
    raise AssertionError(f"{what} failed") from exc


@asynccontextmanager
async def checking(
    provider: Provider, scopes: frozenset[str] = SCOPES, fetch_s: float = 2.0
) -> AsyncIterator[tuple[oidc.OidcVerifier, Issuer, Log]]:
    issuer = Issuer(provider.url, Fetcher(timeout_s=fetch_s))
    verifier = oidc.OidcVerifier(Rules(provider.url, AUDIENCE), issuer, scopes)
    scope, log = Scope(fail), Log()
    verifier.start(scope.spawn, log)
    try:
        yield verifier, issuer, log
    finally:
        await scope.close()


async def logs_in(verifier: oidc.OidcVerifier, token: str) -> None:
    await verifier.verify_login(Login(privilege_key=token), time.time())


async def refusal(verifier: oidc.OidcVerifier, token: str) -> str:
    with pytest.raises(AuthError) as caught:
        await logs_in(verifier, token)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.1)
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.1)


async def test_the_first_login_waits_for_the_keys() -> None:
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, _, log):
        await logs_in(verifier, provider.token())
        assert provider.count("/jwks") == 1
        assert log.of("info") == [f"oidc: 1 keys of the issuer {provider.url} are known"]
        for _ in range(20):
            await logs_in(verifier, provider.token())
        assert len(provider.asked) == 2


async def test_new_keys_are_found_and_withdrawn_ones_forgotten() -> None:
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, _, _):
        old = provider.token()
        await logs_in(verifier, old)
        provider.key = SigningKey("key-2", which=1)
        await logs_in(verifier, provider.token())
        assert "failed to verify id token signature" in await refusal(verifier, old)
        # A provider that was set up anew may give its new key the old name.
        provider.key = SigningKey("key-2", which=2)
        await logs_in(verifier, provider.token())


async def test_keys_that_are_old_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.2)
    async with serving(Provider(0)) as provider, checking(provider) as (_, issuer, _):
        await until(lambda: issuer.keys, "the first keys")
        provider.key = SigningKey("key-2", which=1)
        await until(lambda: issuer.keys[0].id == "key-2", "the new keys")


async def test_a_flood_of_made_up_tokens_costs_the_issuer_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 50)
    monkeypatch.setattr(module, "AGAIN_S", 0.5)
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, _, _):
        await logs_in(verifier, provider.token())
        bad = make_token(provider.claims(), OTHER)
        began = time.monotonic()
        texts = await asyncio.gather(*(refusal(verifier, bad) for _ in range(200)))
        assert sum("too many" in text for text in texts) == 150
        assert sum("failed to verify id token" in text for text in texts) == 50
        assert provider.count("/jwks") <= 2 + (time.monotonic() - began) / 0.5
        # Whoever shows a good token waits for nobody.
        began = time.monotonic()
        slow = asyncio.gather(*(refusal(verifier, bad) for _ in range(10)))
        await logs_in(verifier, provider.token())
        assert time.monotonic() - began < 0.4
        await slow


async def test_an_issuer_that_is_away_is_told_of_and_found_when_it_is_there() -> None:
    provider = Provider(free_port())
    async with checking(provider) as (verifier, _, log):
        text = await refusal(verifier, provider.token())
        assert text == (
            "invalid OIDC token in login: failed to verify signature: fetching keys: the server "
            "cannot reach the identity provider now, and tries again by itself"
        )
        assert f"the issuer {provider.url} cannot be used: dial tcp 127.0.0.1" in log.of("error")[0]
        assert "every login is refused until it can, trying again in" in log.of("error")[0]
        async with serving(provider):
            await logs_in(verifier, provider.token())


async def test_what_nobody_foresaw_of_an_issuer_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter((ZeroDivisionError("odd"),))
    read = Issuer._read

    async def fail_first(self: Issuer, log: Log) -> None:
        for exc in answers:
            raise exc
        await read(self, log)

    monkeypatch.setattr(Issuer, "_read", fail_first)
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, _, log):
        await until(lambda: log.of("info"), "the keys")
        await logs_in(verifier, provider.token())
        assert any("ZeroDivisionError: odd" in text for text in log.of("error"))


async def test_an_issuer_that_goes_away_is_not_missed_until_its_keys_change() -> None:
    provider = Provider(free_port())
    async with checking(provider) as (verifier, _, log):
        async with serving(provider):
            await logs_in(verifier, provider.token())
        await logs_in(verifier, provider.token())
        other = make_token(provider.claims(), SigningKey("key-2", which=1))
        assert "cannot reach the identity provider" in await refusal(verifier, other)
        assert "those that are known stay in use" in log.of("warning")[0]
        await logs_in(verifier, provider.token())
        provider.key = SigningKey("key-2", which=1)
        async with serving(provider):
            await logs_in(verifier, other)


async def test_an_issuer_that_hangs_holds_nobody_up_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    async with serving(Provider(0)) as provider:
        provider.hold.clear()
        async with checking(provider, fetch_s=30) as (verifier, _, _):
            assert "cannot reach" in await refusal(verifier, provider.token())
            assert "too many" not in await refusal(verifier, provider.token())
            provider.hold.set()
            await logs_in(verifier, provider.token())


BROKEN = {
    "no such page": ("/.well-known/openid-configuration", (404, "text/html", b""), "answers 404"),
    "a login page": (
        "/.well-known/openid-configuration",
        (200, "text/html", b"<html>"),
        "oidc: failed to decode provider discovery object",
    ),
    "another issuer": (
        "/.well-known/openid-configuration",
        (200, "application/json", b'{"issuer":"http://x"}'),
        'oidc: issuer did not match the issuer returned by provider, expected "http://127.0.0.1',
    ),
    "no keys": ("/jwks", (200, "application/json", b'{"keys":[]}'), "no key that can be used"),
    "an error": ("/jwks", (503, "text/plain", b"later"), "oidc: get keys failed: it answers 503"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_issuer_that_is_broken_is_told_of_and_used_once_it_works(name: str) -> None:
    path, answer, words = BROKEN[name]
    async with serving(Provider(0)) as provider:
        provider.broken[path] = answer
        async with checking(provider) as (verifier, _, log):
            assert "cannot reach the identity provider" in await refusal(verifier, provider.token())
            assert words in log.of("error")[0]
            provider.broken.clear()
            await logs_in(verifier, provider.token())


async def test_the_same_failure_is_not_told_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(module, "LAST_RETRY_S", 0.04)
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    async with checking(Provider(free_port())) as (_, _, log):
        await until(lambda: len(log.of("debug")) > 5, "attempts")
        assert 1 <= len(log.of("error")) <= 4


async def test_only_algorithms_that_are_announced_count_and_they_may_change() -> None:
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, _, _):
        await logs_in(verifier, provider.token())
        provider.key = SigningKey("key-2", "P-256")
        token = make_token(provider.claims(), provider.key, "ES256")
        assert 'unexpected signature algorithm "ES256"' in await refusal(verifier, token)
        provider.algorithms = ["ES256"]
        await logs_in(verifier, token)


async def test_what_no_issuer_may_sign_with_makes_nobody_ask_it() -> None:
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, _, _):
        await logs_in(verifier, provider.token())
        for algorithm in ("none", "HS256", "", "RS1"):
            token = make_hmac_token(provider.claims(), provider.key.pem(), algorithm)
            header = b64(json.dumps({"alg": algorithm}).encode())
            assert "unexpected" in await refusal(verifier, f"{header}.{token.partition('.')[2]}")
        assert len(provider.asked) == 2


# -- messages after the login -------------------------------------------------------------------


async def test_later_messages_need_a_token_of_somebody_who_logged_in() -> None:
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, _, _):
        now = time.time()
        stolen = provider.token(sub="somebody else")
        words = "received different OIDC subject in login and ping. new subject: "
        for raw, shown in ((stolen, "somebody else"), (provider.token(sub="a\nb"), '"a\\nb"')):
            with pytest.raises(AuthError) as caught:
                await verifier.verify_ping(Ping(privilege_key=raw), now)
            assert str(caught.value) == words + shown
            with pytest.raises(AuthError) as caught:
                await verifier.verify_work_conn(NewWorkConn(privilege_key=raw), now)
            assert str(caught.value) == words + shown
        await logs_in(verifier, provider.token())
        await verifier.verify_ping(Ping(privilege_key=provider.token()), now)
        await verifier.verify_work_conn(NewWorkConn(privilege_key=provider.token()), now)
        with pytest.raises(AuthError, match=r"^received different OIDC subject"):
            await verifier.verify_ping(Ping(privilege_key=stolen), now)
        with pytest.raises(AuthError, match=r"^invalid OIDC token in ping: oidc: token is expired"):
            await verifier.verify_ping(Ping(privilege_key=provider.token(exp=1)), now)
        with pytest.raises(AuthError, match=r"^invalid OIDC token in ping: oidc: malformed jwt"):
            await verifier.verify_work_conn(NewWorkConn(), now)


async def test_without_the_scopes_later_messages_are_not_looked_at() -> None:
    async with checking(Provider(free_port()), frozenset()) as (verifier, _, _):
        await verifier.verify_ping(Ping(), 0)
        await verifier.verify_work_conn(NewWorkConn(privilege_key="nonsense"), 0)


async def test_subjects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "MAX_SUBJECTS", 3)
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, _, _):
        for name in ("a", "b", "a", "c", "d"):
            await logs_in(verifier, provider.token(sub=name))
        now = time.time()
        for name in ("a", "c", "d"):
            await verifier.verify_ping(Ping(privilege_key=provider.token(sub=name)), now)
        with pytest.raises(AuthError, match="new subject: b"):
            await verifier.verify_ping(Ping(privilege_key=provider.token(sub="b")), now)


async def test_a_signature_is_checked_once_and_everything_else_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[str] = []
    check = oidc.check_signature

    def counted(token: Any, *rest: Any) -> None:
        checked.append(token.raw)
        check(token, *rest)

    monkeypatch.setattr(oidc, "check_signature", counted)
    monkeypatch.setattr(oidc, "MAX_SIGNED", 2)
    async with serving(Provider(0)) as provider, checking(provider) as (verifier, issuer, _):
        token = provider.token()
        for _ in range(5):
            await logs_in(verifier, token)
        assert checked == [token]
        with pytest.raises(AuthError, match="expired"):
            await verifier.verify_login(Login(privilege_key=token), time.time() + 4000)
        # The same token under other keys is another matter.
        provider.key = SigningKey("key-2", which=1)
        await issuer.renewed()
        assert "failed to verify id token signature" in await refusal(verifier, token)
        checked.clear()
        tokens = [provider.token(jti=number) for number in range(3)]
        for each in (*tokens, *tokens):
            await logs_in(verifier, each)
        assert len(checked) == 6
