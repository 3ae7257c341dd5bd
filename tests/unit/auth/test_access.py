from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.auth import access, make_authenticator, oidc
from pyfrp.auth.access import TokensOfEndpoint, read_answer
from pyfrp.config import client_from_dict
from pyfrp.errors import AuthError, ConfigError
from pyfrp.net.fetch import Answer, Fetcher, Place
from tests.support.identity import SECRET, Provider, loopback_pem, serving
from tests.support.ports import free_port
from tests.support.waiting import until

BOTH = ["HeartBeats", "NewWorkConns"]


class Clock:
    def __init__(self) -> None:
        self.now = 1_795_363_274.0

    def __call__(self) -> float:
        return self.now


def auth_of(provider: Provider, scopes: list[str] | None = None, **more: Any) -> Any:
    auth = provider.client(**more) | {"additionalScopes": scopes or []}
    return client_from_dict({"auth": auth}).auth


def tokens_of(
    provider: Provider, clock: Callable[[], float], timeout_s: float = 5.0, **more: Any
) -> TokensOfEndpoint:
    return TokensOfEndpoint(auth_of(provider, **more).oidc, Fetcher(timeout_s=timeout_s), clock)


async def refusal(tokens: TokensOfEndpoint) -> str:
    with pytest.raises(AuthError) as caught:
        await tokens.get()
    assert SECRET not in str(caught.value)
    return str(caught.value)


async def test_the_form_asks_for_what_is_configured() -> None:
    async with serving(Provider(0)) as provider:
        more = {"additionalEndpointParams": {"resource": "urn:x", "tenant": "a&b"}}
        tokens = tokens_of(provider, Clock(), scope="a b", audience="frps", **more)
        await tokens.get()
        assert provider.asked[0].form == {
            "grant_type": "client_credentials",
            "scope": "a b",
            "audience": "frps",
            "resource": "urn:x",
            "tenant": "a&b",
        }
        assert provider.asked[0].fields["content-type"] == "application/x-www-form-urlencoded"
        assert provider.asked[0].fields["authorization"].startswith("Basic ")


async def test_the_grant_type_may_be_another() -> None:
    async with serving(Provider(0)) as provider:
        more = {"additionalEndpointParams": {"grant_type": "urn:odd"}}
        text = await refusal(tokens_of(provider, Clock(), **more))
        assert 'oauth2: "unsupported_grant_type"' in text
        assert provider.asked[0].form == {"grant_type": "urn:odd"}


async def test_the_secret_goes_into_the_form_for_providers_that_want_it_there() -> None:
    clock = Clock()
    async with serving(Provider(0, styles=("form",))) as provider:
        tokens = tokens_of(provider, clock)
        await tokens.get()
        assert [("authorization" in each.fields) for each in provider.asked] == [True, False]
        clock.now += 4000
        await tokens.get()
        assert len(provider.asked) == 3, "what worked once is not tried out again"


async def test_a_token_is_kept_until_shortly_before_its_end() -> None:
    clock = Clock()
    async with serving(Provider(0, lifetime=300)) as provider:
        tokens = tokens_of(provider, clock)
        first = await tokens.get()
        clock.now += 289
        assert await tokens.get() == first
        assert provider.count("/token") == 1
        clock.now += 2
        provider.subject = "renewed"
        assert await tokens.get() != first
        assert provider.count("/token") == 2


@pytest.mark.parametrize("lifetime", [None, 0, -5, "", "soon"])
async def test_a_token_whose_end_is_not_told_is_not_kept(lifetime: int | str | None) -> None:
    async with serving(Provider(0, lifetime=lifetime)) as provider:
        tokens = tokens_of(provider, Clock())
        for _ in range(3):
            await tokens.get()
        assert provider.count("/token") == 3


async def test_a_lifetime_in_quotes_counts_too() -> None:
    async with serving(Provider(0, lifetime="3600")) as provider:
        tokens = tokens_of(provider, Clock())
        await tokens.get()
        await tokens.get()
        assert provider.count("/token") == 1


async def test_many_at_once_make_one_request() -> None:
    async with serving(Provider(0)) as provider:
        tokens = tokens_of(provider, Clock())
        provider.hold.clear()
        all_of_them = asyncio.gather(*(tokens.get() for _ in range(50)))
        while not provider.asked:
            await asyncio.sleep(0)
        provider.hold.set()
        assert len(set(await all_of_them)) == 1
        assert provider.count("/token") == 1


async def test_many_at_once_that_each_need_a_token_of_their_own_take_turns() -> None:
    async with serving(Provider(0, lifetime=None)) as provider:
        tokens = tokens_of(provider, Clock())
        await tokens.get()
        provider.hold.clear()
        all_of_them = asyncio.gather(*(tokens.get() for _ in range(50)))
        await until(lambda: len(provider.asked) == 1 + access.AT_ONCE, "the first few")
        assert tokens._places.locked()
        provider.hold.set()
        await all_of_them
        assert provider.count("/token") == 51


async def test_many_at_once_fail_together() -> None:
    provider = Provider(free_port())
    tokens = tokens_of(provider, Clock())
    texts = await asyncio.gather(*(refusal(tokens) for _ in range(50)))
    assert len(set(texts)) == 1
    assert texts[0].startswith("couldn't generate OIDC token for login: the token endpoint cannot ")


async def test_a_kept_token_is_used_to_its_end_while_the_provider_is_away() -> None:
    clock = Clock()
    provider = Provider(free_port(), lifetime=300)
    tokens = tokens_of(provider, clock)
    async with serving(provider):
        first = await tokens.get()
    clock.now += 295
    assert await tokens.get() == first
    clock.now += 6
    assert "connection refused" in await refusal(tokens)
    clock.now += 2
    async with serving(provider):
        assert await tokens.get()


async def test_a_provider_that_hangs_is_given_up() -> None:
    async with serving(Provider(0)) as provider:
        provider.hold.clear()
        text = await refusal(tokens_of(provider, Clock(), timeout_s=0.1))
        assert text.endswith(f"no answer of {provider.url} within 0.1 s")


async def test_a_refused_token_is_replaced_unless_it_is_young() -> None:
    clock = Clock()
    async with serving(Provider(0)) as provider:
        tokens = tokens_of(provider, clock)
        await tokens.get()
        tokens.refused()
        await tokens.get()
        assert provider.count("/token") == 1
        clock.now += 11
        tokens.refused()
        await tokens.get()
        assert provider.count("/token") == 2


async def test_a_wrong_secret_is_told_with_the_key_to_look_at() -> None:
    async with serving(Provider(0)) as provider:
        tokens = tokens_of(provider, Clock(), clientSecret="another secret")
        text = await refusal(tokens)
        assert text.startswith(
            'couldn\'t generate OIDC token for login: oauth2: "invalid_client" "not {\'grant'
        )
        assert text.endswith("; check auth.oidc.clientID and clientSecret")
        # This provider repeats what it was sent.
        assert "another secret" not in text


async def test_what_a_provider_repeats_is_hidden_however_it_is_cut_and_written() -> None:
    secret = 'a "quoted" & long \\ secret'
    more = {"clientSecret": secret, "additionalEndpointParams": {"otp": "one time"}}
    async with serving(Provider(0)) as provider:
        for before in ("", "x" * 80):
            told = f"{before} {secret} / {quote_plus(secret)} / one time"
            body = json.dumps({"error": "no", "error_description": told}).encode()
            provider.broken["/token"] = (400, JSON, body)
            text = await refusal(tokens_of(provider, Clock(), **more))
            assert f'oauth2: "no" "{before} *** / *** / ***"'[:100] in text
            assert "quoted" not in text


async def test_a_clock_that_is_set_back_makes_no_failure_last() -> None:
    clock = Clock()
    provider = Provider(free_port())
    tokens = tokens_of(provider, clock)
    await refusal(tokens)
    clock.now -= 86_400
    async with serving(provider):
        await tokens.get()
        tokens.refused()
        clock.now -= 86_400
        tokens.refused()
        await tokens.get()
        assert provider.count("/token") == 2


# -- answers ------------------------------------------------------------------------------------

JSON = "application/json"
ANSWERS: list[tuple[Answer, str]] = [
    (Answer(404, "text/html", b"<h1>hush</h1>"), "the endpoint answers 404 without a reason"),
    (Answer(500, JSON, b'{"access_token":"hush"}'), "the endpoint answers 500"),
    (Answer(200, JSON, b"{}"), "server response missing access_token"),
    (Answer(200, JSON, b""), "server response missing access_token"),
    (Answer(200, JSON, b"[" * 100_000), "server response missing access_token"),
    (Answer(200, JSON, b'{"access_token":["hush"]}'), "missing access_token"),
    (Answer(200, JSON, b'{"access_token":"hu\\nsh"}'), "characters that no token has"),
    (Answer(200, JSON, b'{"error":"x","access_token":"hush"}'), 'oauth2: "x"'),
    (
        Answer(400, JSON, b'{"error":"invalid_scope","error_description":"a\\n","error_uri":"u"}'),
        'oauth2: "invalid_scope" "a\\n" "u"; check auth.oidc.scope',
    ),
    (Answer(200, "text/plain", b"&" * 200), "missing access_token"),
    (Answer(400, "text/plain", b"error=slow_down&error_description=wait"), '"slow_down" "wait"'),
]


@pytest.mark.parametrize(("answer", "words"), ANSWERS, ids=str)
def test_answers_without_a_token_are_told_in_words(answer: Answer, words: str) -> None:
    with pytest.raises(ValueError, match=r"^oauth2: ") as caught:
        read_answer(answer)
    assert words in str(caught.value)
    assert "hush" not in str(caught.value) + repr(answer)


def test_answers_may_be_forms() -> None:
    kind = "application/x-www-form-urlencoded"
    answer = Answer(200, kind, b"access_token=a.b.c&expires_in=60")
    assert read_answer(answer) == ("a.b.c", 60.0)


@given(st.binary(max_size=200), st.sampled_from([200, 400]), st.sampled_from([JSON, "text/plain"]))
def test_any_answer_is_a_token_or_an_error(body: bytes, status: int, kind: str) -> None:
    try:
        token, lasts_s = read_answer(Answer(status, kind, body))
    except ValueError:
        return
    assert token
    assert lasts_s >= 0


# -- the authenticator --------------------------------------------------------------------------


async def test_scopes_decide_which_messages_carry_a_token() -> None:
    async with serving(Provider(0)) as provider:
        plain = make_authenticator(auth_of(provider))
        token, timestamp = await plain.login_fields(7.9)
        assert token.count(".") == 2
        assert timestamp == 7
        assert await plain.ping_fields(7) == await plain.work_conn_fields(7) == ("", 0)
        assert provider.count("/token") == 1
        both = make_authenticator(auth_of(provider, BOTH))
        assert (await both.ping_fields(7))[0].count(".") == 2
        assert (await both.work_conn_fields(7))[0].count(".") == 2
        assert provider.count("/token") == 2


async def test_a_token_that_no_message_can_hold_is_told_of() -> None:
    async with serving(Provider(0)) as provider:
        body = json.dumps({"access_token": "x" * 20_000, "expires_in": 60}).encode()
        provider.broken["/token"] = (200, JSON, body)
        auth = make_authenticator(auth_of(provider))
        with pytest.raises(AuthError, match=r"token is 20000 bytes long, .* hold 9216: have the"):
            await auth.login_fields(0)


async def test_a_token_in_a_file_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    source = {"tokenSource": {"type": "file", "file": {"path": str(path)}}}
    auth = make_authenticator(client_from_dict({"auth": {"method": "oidc", "oidc": source}}).auth)
    with pytest.raises(AuthError, match=r"^couldn't acquire OIDC token for login: failed to read"):
        await auth.login_fields(0)
    for text in ("first\n", " second "):
        path.write_text(text)
        assert await auth.login_fields(0) == (text.strip(), 0)
    auth.refused()


def test_settings_that_cannot_be_used_are_told_at_start(tmp_path: Path) -> None:
    provider = Provider(443)
    with pytest.raises(ConfigError, match=r"tokenEndpointURL has a space") as e:
        make_authenticator(auth_of(provider, tokenEndpointURL="https://x/to ken?k=hush"))
    assert "hush" not in str(e.value)
    with pytest.raises(ConfigError, match=r"proxyURL: the proxy's port is not a num"):
        make_authenticator(auth_of(provider, proxyURL="http://x:y/"))
    with pytest.raises(ConfigError, match="trusted CA file") as e:
        make_authenticator(auth_of(provider, trustedCaFile=str(tmp_path / "none.pem")))
    assert e.value.key == "auth.oidc.trustedCaFile"


def test_the_token_leaves_room_for_the_rest_of_a_login() -> None:
    assert oidc.MAX_TOKEN_BYTES == 9216
    assert access.EARLY_S == 10


async def test_an_endpoint_with_tls_is_trusted_as_configured(tmp_path: Path) -> None:
    path = tmp_path / "pair.pem"
    path.write_bytes(loopback_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    async with serving(Provider(0), context) as provider:
        for more in ({"trustedCaFile": str(path)}, {"insecureSkipVerify": True}):
            token, _ = await make_authenticator(auth_of(provider, **more)).login_fields(0)
            assert token
        with pytest.raises(AuthError, match=r"127\.0\.0\.1:\d+: its certificate is not trusted"):
            await make_authenticator(auth_of(provider)).login_fields(0)


async def test_the_environment_is_asked_for_a_proxy_unless_the_way_is_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[str] = []

    def made(**options: Any) -> Fetcher:
        find = options["find_proxy"]
        proxy = find and find(Place("https", "idp.example", 443))
        found.append(f"{proxy} of {proxy.named_by}" if proxy else "none")
        return Fetcher(**options)

    monkeypatch.setattr(access, "Fetcher", made)
    monkeypatch.setenv("HTTPS_PROXY", "http://office:3128")
    provider = Provider(443)
    for more in ({}, {"insecureSkipVerify": True}, {"proxyURL": "socks5h://proxy"}):
        make_authenticator(auth_of(provider, **more))
    assert found == [
        "the proxy office:3128 of HTTPS_PROXY in the environment",
        "none",
        "the proxy proxy:1080 of auth.oidc.proxyURL",
    ]
