from __future__ import annotations

import json
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.auth import idtoken as t
from pyfrp.errors import AuthError
from tests.support.identity import Provider, SigningKey, compact, make_token
from tests.support.oidc_attacks import ATTACKS, Attack

PROVIDER = Provider(443)
RULES = t.Rules(PROVIDER.url, "frps")
KINDS = {
    "RS256": "RSA",
    "RS384": "RSA",
    "RS512": "RSA",
    "PS256": "RSA",
    "PS384": "RSA",
    "PS512": "RSA",
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
    "EdDSA": "Ed25519",
}


def keys_of(*given: SigningKey, **more: object) -> list[t.Key]:
    return t.read_keys(json.dumps({"keys": [key.jwk(**more) for key in given]}).encode())


def verify(
    raw: str,
    keys: list[t.Key],
    rules: t.Rules = RULES,
    algorithms: tuple[str, ...] = ("RS256",),
    now: float | None = None,
) -> t.Token:
    token = t.read_token(raw)
    t.check_claims(token, rules, time.time() if now is None else now)
    algorithm, key_id = t.check_algorithm(token, algorithms)
    t.check_signature(token, algorithm, key_id, keys)
    return token


def refusal(raw: str, keys: list[t.Key], **more: object) -> str:
    with pytest.raises(AuthError) as caught:
        verify(raw, keys, **more)
    return f"invalid OIDC token in login: {caught.value}"


@pytest.mark.parametrize("algorithm", t.ALGORITHMS)
def test_each_announced_algorithm_is_verified_with_its_kind_of_key(algorithm: str) -> None:
    key = SigningKey(kind=KINDS[algorithm])
    raw = make_token(PROVIDER.claims(), key, algorithm)
    assert verify(raw, keys_of(key), algorithms=(algorithm,)).subject == PROVIDER.subject
    other = SigningKey(kind=KINDS[algorithm], which=1)
    with pytest.raises(t.UnknownKey):
        verify(raw, keys_of(other), algorithms=(algorithm,))
    changed = raw[:-8] + ("A" if raw[-8] != "A" else "B") + raw[-7:]
    with pytest.raises(t.UnknownKey):
        verify(changed, keys_of(key), algorithms=(algorithm,))


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_attacks_are_refused_with_frps_words(attack: Attack) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attack.refuses(refusal(attack.make(PROVIDER), keys_of(PROVIDER.key)))


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_attacks_are_refused_whatever_the_issuer_announces(attack: Attack) -> None:
    keys = keys_of(PROVIDER.key, SigningKey("ec", "P-256"))
    if attack.name != "of an algorithm that was not announced":
        refusal(attack.make(PROVIDER), keys, algorithms=t.ALGORITHMS)


def test_a_shared_secret_or_nothing_is_never_announced() -> None:
    said = {
        "issuer": PROVIDER.url,
        "jwks_uri": "https://x/",
        "id_token_signing_alg_values_supported": ["none", "HS256", "HS512", "ES256", "x"],
    }
    assert t.read_discovery(json.dumps(said).encode(), PROVIDER.url) == ("https://x/", ("ES256",))
    said["id_token_signing_alg_values_supported"] = ["none", "HS256"]
    assert t.read_discovery(json.dumps(said).encode(), PROVIDER.url)[1] == ("RS256",)


def test_a_token_without_a_key_name_may_be_of_any_key() -> None:
    first, second = SigningKey("a"), SigningKey("b", which=1)
    raw = make_token(PROVIDER.claims(), second, kid=None)
    assert verify(raw, keys_of(first, second))
    raw = make_token(PROVIDER.claims(), second, kid="a")
    with pytest.raises(t.UnknownKey):
        verify(raw, keys_of(first, second))


def test_a_key_is_used_only_for_what_it_says_it_is_for() -> None:
    key = SigningKey()
    raw = make_token(PROVIDER.claims(), key, "PS256")
    assert verify(raw, keys_of(key), algorithms=("PS256",))
    assert verify(raw, keys_of(key, alg="PS256"), algorithms=("PS256",))
    with pytest.raises(t.UnknownKey):
        verify(raw, keys_of(key, alg="RS256"), algorithms=("PS256",))


@pytest.mark.parametrize(
    "fields",
    [
        {"use": "enc"},
        {"kty": "oct", "k": "AAAA"},
        {"kty": "RSA", "n": "AQAB"},
        {"e": 1},
        {"kid": 7},
        {"alg": "HS256"},
        {"alg": ["RS256"]},
        {"kty": None},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": ["P-256"]},
    ],
    ids=str,
)
def test_keys_that_cannot_be_used_are_left_out(fields: dict[str, object]) -> None:
    good = SigningKey("good")
    body = json.dumps({"keys": [SigningKey().jwk(**fields), "x", None, good.jwk()]}).encode()
    assert [key.id for key in t.read_keys(body)] == ["good"]
    with pytest.raises(ValueError, match="no key that can be used"):
        t.read_keys(json.dumps({"keys": [SigningKey().jwk(**fields)]}).encode())


def test_a_weak_key_is_left_out() -> None:
    with pytest.raises(ValueError, match="no key that can be used"):
        keys_of(SigningKey(kind="RSA1024"))


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"keys":1}', b"\xff", b"[" * 100_000])
def test_what_is_no_set_of_keys_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(ValueError, match="no set of keys"):
        t.read_keys(body)


def test_skips_skip_one_check_each() -> None:
    keys = keys_of(PROVIDER.key)
    now = PROVIDER.claims()["iat"]
    old = PROVIDER.token(exp=now - 5)
    early = PROVIDER.token(nbf=now + 4000)
    foreign = PROVIDER.token(iss="x")
    lax = t.Rules(PROVIDER.url, "frps", skip_expiry=True)
    assert verify(old, keys, lax)
    assert verify(early, keys, lax)
    assert "different provider" in refusal(foreign, keys, rules=lax)
    lax = t.Rules(PROVIDER.url, "frps", skip_issuer=True)
    assert verify(foreign, keys, lax)
    assert "expired" in refusal(old, keys, rules=lax)
    lax = t.Rules(PROVIDER.url)
    assert verify(PROVIDER.token(aud=None), keys, lax)
    assert "different provider" in refusal(foreign, keys, rules=lax)


def test_audiences_may_be_many_and_a_clock_a_little_off() -> None:
    keys = keys_of(PROVIDER.key)
    now = PROVIDER.claims()["iat"]
    assert verify(PROVIDER.token(aud=["x", "frps"]), keys)
    assert verify(PROVIDER.token(nbf=now + 290), keys, now=now)
    assert "nbf" in refusal(PROVIDER.token(nbf=now + 310), keys, now=now)
    assert verify(PROVIDER.token(exp=now), keys, now=now)


def test_times_may_be_numbers_of_any_kind() -> None:
    keys = keys_of(PROVIDER.key)
    now = PROVIDER.claims()["iat"]
    for value in (now + 60.5, str(now + 60), f"{now + 60}.25", 1e12):
        assert verify(PROVIDER.token(exp=value), keys)
    for value in ("soon", True, [], {}, 1e300, "nan", "inf", 10**30):
        assert "failed to unmarshal claims: exp" in refusal(PROVIDER.token(exp=value), keys)
    assert "is expired (Token Expiry: " in refusal(PROVIDER.token(exp=-(2**62)), keys)


def test_google_names_itself_both_ways() -> None:
    rules = t.Rules("https://accounts.google.com", "frps")
    for name in ("https://accounts.google.com", "accounts.google.com"):
        assert verify(PROVIDER.token(iss=name), keys_of(PROVIDER.key), rules)
    assert "different" in refusal(PROVIDER.token(iss="google.com"), [], rules=rules)


def test_refusals_are_one_short_line_whatever_the_token_says() -> None:
    for claim in ("iss", "aud"):
        text = refusal(PROVIDER.token(**{claim: "a\r\n\x1b[31m" * 500}), [])
        assert len(text) < 1000
        assert text.isprintable()
    text = refusal(PROVIDER.token(aud=["x" * 90] * 90), [])
    assert len(text) < 1200


@given(st.text())
def test_garbage_is_refused(raw: str) -> None:
    with pytest.raises(AuthError):
        verify(raw, [])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
names = st.sampled_from(["alg", "kid", "crit", "b64", "jku", "jwk", "x5u", "typ", "zip", "enc"])
claim_names = st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat"])


@given(st.dictionaries(names, values), st.dictionaries(claim_names, values), st.binary(max_size=70))
def test_no_header_and_no_claims_get_a_signature_accepted_that_is_none(
    header: dict[str, object], claims: dict[str, object], signature: bytes
) -> None:
    raw = compact({"alg": "RS256"} | header, PROVIDER.claims() | claims, lambda _: signature)
    with pytest.raises(AuthError):
        verify(raw, keys_of(PROVIDER.key), algorithms=t.ALGORITHMS)


@given(st.dictionaries(st.sampled_from(["issuer", "jwks_uri", "x"]), values))
def test_discovery_of_anything_else_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^oidc: "):
        t.read_discovery(json.dumps(said).encode(), "https://issuer")
