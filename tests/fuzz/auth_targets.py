"""What clients show and providers answer: tokens, sets of keys, discovery, token responses."""

from __future__ import annotations

import functools
import json
import random

from pyfrp.auth import idtoken
from pyfrp.auth.access import read_answer
from pyfrp.errors import AuthError
from pyfrp.net.fetch import Answer, read_url
from tests.fuzz.engine import Behaviour, Target
from tests.support.identity import Provider, SigningKey, b64, make_token

PROVIDER = Provider(443)
KINDS = ("RSA", "P-256", "Ed25519")
NOW = 2_000_000_000
RULES = idtoken.Rules(PROVIDER.url, "frps")
# Fixed times, so that a saved input means the same tomorrow.
CLAIMS = PROVIDER.claims(iat=NOW, exp=NOW + 60, nbf=NOW - 60)


@functools.cache
def _published() -> bytes:
    return json.dumps({"keys": [SigningKey(kind, kind).jwk() for kind in KINDS]}).encode()


@functools.cache
def _keys() -> list[idtoken.Key]:
    return idtoken.read_keys(_published())


@functools.cache
def _good() -> list[bytes]:
    algorithms = zip(KINDS, ("RS256", "ES256", "EdDSA"), strict=True)
    return [make_token(CLAIMS, SigningKey(k, k), alg).encode() for k, alg in algorithms]


def _token(data: bytes, rng: random.Random) -> Behaviour:
    """No token is accepted but those that were signed, wherever a change is made."""
    raw = data.decode(errors="surrogateescape")
    if rng.random() < 0.3:
        raw = ".".join(b64(part.encode(errors="replace")) for part in raw.split("."))
    try:
        token = idtoken.read_token(raw)
        idtoken.check_claims(token, RULES, NOW)
        algorithm, key_id = idtoken.check_algorithm(token, idtoken.ALGORITHMS)
        idtoken.check_signature(token, algorithm, key_id, _keys())
    except AuthError as exc:
        text = str(exc)
        assert text.isprintable()
        assert len(text) < 1500
        return text[:40]
    assert raw.encode() in _good(), "a token was accepted that nobody signed"
    return algorithm


def _key_set(data: bytes, rng: random.Random) -> Behaviour:
    try:
        keys = idtoken.read_keys(data)
    except ValueError as exc:
        return str(exc)
    assert len(keys) <= idtoken.MAX_KEYS
    return tuple(sorted({min(key.algorithms) for key in keys}))


def _discovery(data: bytes, rng: random.Random) -> Behaviour:
    try:
        _, algorithms = idtoken.read_discovery(data, "https://issuer")
    except ValueError as exc:
        text = str(exc)
        assert text.startswith("oidc: ")
        assert len(text) < 1500
        return text[:40]
    assert set(algorithms) <= set(idtoken.ALGORITHMS)
    return algorithms


def _answer(data: bytes, rng: random.Random) -> Behaviour:
    kind = rng.choice(("application/json", "text/plain", ""))
    try:
        token, lasts_s = read_answer(Answer(rng.choice((200, 401)), kind, data))
    except ValueError as exc:
        text = str(exc)
        assert text.startswith("oauth2: ")
        assert text.isprintable()
        return kind, text[:30]
    assert token.isprintable()
    assert 0 <= lasts_s <= 2**31
    return kind, lasts_s > 0


def _url(data: bytes, rng: random.Random) -> Behaviour:
    try:
        place = read_url(data.decode(errors="surrogateescape"))
    except ValueError as exc:
        return str(exc)
    assert 0 <= place.port < 65536
    assert (place.host + place.path).isprintable()
    return place.scheme, bool(place.user), place.port > 443


def _seed(value: object) -> bytes:
    return json.dumps(value).encode()


_ALGORITHM_NAMES = [name.encode() for name in ("RS256", "ES256", "EdDSA", "HS256", "none")]

TARGETS = [
    Target("oidc-token", _token, _good(), [b64(b'{"alg":"none"}').encode(), b"."]),
    Target("oidc-keys", _key_set, [_published()], [b'"kty"', b'"oct"', b'"use"', b"null"]),
    Target(
        "oidc-discovery",
        _discovery,
        [
            _seed(
                {
                    "issuer": "https://issuer",
                    "jwks_uri": "https://issuer/keys",
                    "id_token_signing_alg_values_supported": ["RS256", "ES256"],
                }
            )
        ],
        [*_ALGORITHM_NAMES, b"null", b"[]"],
    ),
    Target(
        "oauth-answer",
        _answer,
        [
            _seed({"access_token": "a.b.c", "token_type": "Bearer", "expires_in": 3600}),
            _seed({"error": "invalid_client", "error_description": "no"}),
            b"access_token=a.b.c&expires_in=60",
        ],
        [b'"expires_in":', b'"error":', b"1e999", b"NaN", b"-1"],
    ),
    Target(
        "fetch-url",
        _url,
        [b"https://a:b@issuer.example:8443/path?query=1", b"http://[::1]:80/"],
        [b"http://", b"@", b"[", b"]", b"%00", b"\\", b"#"],
    ),
]
