"""What an OpenID Connect token says, and whether that is enough: no I/O, the time as an argument.

The checks, their order and the words of their failures are those of go-oidc, which frp uses:
clients show them. What a token's header says about where keys can be found (`jku`, `x5u`, `jwk`,
`x5c`) is never looked at; a key is one that the issuer published, or none.

Source: go-oidc `oidc/verify.go` and `oidc/oidc.go` (v3.14.1); go-jose `jws.go` (v4.0.5).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from jwt import PyJWK, PyJWS
from jwt.exceptions import PyJWTError

from pyfrp.errors import AuthError

ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "ES256",
    "ES384",
    "ES512",
    "PS256",
    "PS384",
    "PS512",
    "EdDSA",
)
"""Those that can be announced: all asymmetric, so that what verifies cannot sign."""
DEFAULT_ALGORITHMS = ("RS256",)
"""For issuers that announce none of these."""
LEEWAY_S = 300
"""How far `nbf` may lie ahead of our clock, for issuers whose clock is ahead."""
MAX_KEYS = 64
"""Keys of one issuer; it has two or three."""
MIN_RSA_BITS = 2048
"""RFC 7518 3.3. A shorter key is one that somebody may have factored."""
SHOWN = 100

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_NEVER = -62135596800  # The year 1: what Go has for a time that is not given.
_GOOGLE, _GOOGLE_SHORT = "https://accounts.google.com", "accounts.google.com"


class BadToken(AuthError):
    """A token that proves nothing; the text may be sent to whoever showed it."""


class UnknownKey(BadToken):
    """Nothing at hand verifies a token that is right otherwise: what is published now may."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a server asks of tokens.

    Attributes:
        audience: Must be among the token's; "" for any.
    """

    issuer: str
    audience: str = ""
    skip_expiry: bool = False
    skip_issuer: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was taken apart, and of which nothing is known to be true.

    Attributes:
        raw: As received.
        expires, not_before: Unix times; `not_before` None where it says nothing.
    """

    raw: str
    issuer: str
    subject: str
    audience: tuple[str, ...]
    expires: int
    not_before: int | None


@dataclass(frozen=True, slots=True)
class Key:
    """A published key.

    Attributes:
        algorithms: Those that it can be used with.
    """

    id: str
    algorithms: frozenset[str]
    public: PyJWK


def read_token(raw: str) -> Token:
    """Take a token apart.

    Raises:
        BadToken: it is none.
    """
    parts = raw.split(".")
    if len(parts) < 2:
        raise BadToken(
            f"oidc: malformed jwt: oidc: malformed jwt, expected 3 parts got {len(parts)}"
        )
    try:
        payload = _decode(parts[1])
    except ValueError as exc:
        raise BadToken(f"oidc: malformed jwt: oidc: malformed jwt payload: {exc}") from None
    claims = _object(payload, "oidc: failed to unmarshal claims")
    try:
        return Token(
            raw,
            _string(claims, "iss"),
            _string(claims, "sub"),
            _strings(claims, "aud"),
            _time(claims, "exp", _NEVER),
            None if claims.get("nbf") is None else _time(claims, "nbf", 0),
        )
    except ValueError as exc:
        raise BadToken(f"oidc: failed to unmarshal claims: {exc}") from None


def check_claims(token: Token, rules: Rules, now: float) -> None:
    """Check all that needs no key, which is cheap.

    Args:
        now: Unix time.

    Raises:
        BadToken: it is from somebody else, for somebody else, or from another time.
    """
    # Google's tokens name it both ways (go-oidc allows it for Google alone).
    names = (rules.issuer, _GOOGLE_SHORT if rules.issuer == _GOOGLE else rules.issuer)
    if not rules.skip_issuer and token.issuer not in names:
        raise BadToken(
            "oidc: id token issued by a different provider, expected "
            f"{quote(rules.issuer)} got {quote(token.issuer)}"
        )
    if rules.audience and rules.audience not in token.audience:
        got = " ".join(quote(name) for name in token.audience[:8])
        raise BadToken(f"oidc: expected audience {quote(rules.audience)} got [{got}]")
    if rules.skip_expiry:
        return
    if token.expires < now:
        raise BadToken(f"oidc: token is expired (Token Expiry: {_utc(token.expires)})")
    if token.not_before is not None and now + LEEWAY_S < token.not_before:
        raise BadToken(
            f"oidc: current time {_utc(int(now))} before the nbf (not before) time: "
            f"{_utc(token.not_before)}"
        )


def check_algorithm(token: Token, algorithms: Iterable[str]) -> tuple[str, str]:
    """Check what the header says of the signature, as far as it is anything to go by.

    Args:
        algorithms: What the issuer announces, as `announced` gives it.

    Returns:
        The algorithm and the name of the key; "" where it names none.

    Raises:
        BadToken: it is not signed, or in a manner that no issuer's tokens may be.
        UnknownKey: the issuer has not announced this manner.
    """
    parts = token.raw.split(".")
    if len(parts) != 3:
        raise BadToken(
            "oidc: malformed jwt: go-jose/go-jose: compact JWS format must have three parts"
        )
    try:
        header = _object(_decode(parts[0]), "oidc: malformed jwt")
        _decode(parts[2])
        algorithm, key_id = _string(header, "alg"), _string(header, "kid")
    except ValueError as exc:
        raise BadToken(f"oidc: malformed jwt: {exc}") from None
    algorithms = tuple(algorithms)
    if algorithm not in algorithms:
        wanted = " ".join(quote(name) for name in algorithms)
        error = UnknownKey if algorithm in ALGORITHMS else BadToken
        raise error(
            "oidc: malformed jwt: go-jose/go-jose: unexpected signature algorithm "
            f"{quote(algorithm)}; expected [{wanted}]"
        )
    return algorithm, key_id


def check_signature(token: Token, algorithm: str, key_id: str, keys: Iterable[Key]) -> None:
    """Check that one of the issuer's keys made the signature.

    Args:
        algorithm, key_id: From `check_algorithm`.

    Raises:
        UnknownKey: none of these did.
    """
    for key in keys:
        if (
            algorithm in key.algorithms
            and key_id in ("", key.id)
            and _signed(token, algorithm, key)
        ):
            return
    raise UnknownKey("failed to verify signature: failed to verify id token signature")


def _signed(token: Token, algorithm: str, key: Key) -> bool:
    try:
        PyJWS().decode(token.raw, key.public.key, algorithms=[algorithm])
    except (PyJWTError, ValueError, TypeError):
        return False
    return True


def read_keys(body: bytes) -> list[Key]:
    """Read a set of keys; those that cannot be used for signatures are left out.

    Raises:
        ValueError: it is no set of keys, or none of it can be used.
    """
    try:
        document = json.loads(body)
        given = document["keys"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError("it is no set of keys in JSON") from None
    if not isinstance(given, list):
        raise ValueError("it is no set of keys in JSON")
    keys = list(_usable(given[:MAX_KEYS]))
    if not keys:
        raise ValueError("it holds no key that can be used")
    return keys


def _usable(given: list[Any]) -> Iterator[Key]:
    for fields in given:
        if not isinstance(fields, dict) or fields.get("use") not in (None, "sig"):
            continue
        algorithms = _algorithms_of(fields)
        key_id = fields.get("kid", "")
        if not algorithms or not isinstance(key_id, str):
            continue
        # Only what is public is looked at: a private key in the set is its issuer's trouble.
        public = {name: value for name, value in fields.items() if name in _PUBLIC}
        try:
            made = PyJWK(public, min(algorithms))
        except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if fields["kty"] == "RSA" and made.key.key_size < MIN_RSA_BITS:
            continue
        yield Key(key_id, algorithms, made)


_PUBLIC = frozenset(("kty", "kid", "n", "e", "crv", "x", "y"))
_CURVES = {
    ("EC", "P-256"): frozenset(("ES256",)),
    ("EC", "P-384"): frozenset(("ES384",)),
    ("EC", "P-521"): frozenset(("ES512",)),
    ("OKP", "Ed25519"): frozenset(("EdDSA",)),
}
_RSA = frozenset(name for name in ALGORITHMS if name[:2] in ("RS", "PS"))


def _algorithms_of(fields: dict[str, Any]) -> frozenset[str]:
    """The algorithms of a key, by its type and by what it says itself."""
    kind, curve, said = fields.get("kty"), fields.get("crv"), fields.get("alg")
    if kind == "RSA":
        able = _RSA
    elif isinstance(kind, str) and isinstance(curve, str):
        able = _CURVES.get((kind, curve), frozenset())
    else:
        return frozenset()
    return able if said is None else able & {said} if isinstance(said, str) else frozenset()


def read_discovery(body: bytes, issuer: str) -> tuple[str, tuple[str, ...]]:
    """Read what an issuer publishes about itself.

    Returns:
        The URL of its keys, and the algorithms that it announces.

    Raises:
        ValueError: with go-oidc's words, or ours for what it does not look at.

    Source: go-oidc `oidc/oidc.go`, NewProvider.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ValueError("oidc: failed to decode provider discovery object: it is no JSON object")
    said = document.get("issuer")
    if said != issuer:
        got = quote(said) if isinstance(said, str) else '""'
        raise ValueError(
            "oidc: issuer did not match the issuer returned by provider, expected "
            f"{quote(issuer)} got {got}"
        )
    keys = document.get("jwks_uri")
    if not isinstance(keys, str) or not keys:
        raise ValueError("oidc: the provider names no jwks_uri")
    names = document.get("id_token_signing_alg_values_supported")
    names = names if isinstance(names, list) else []
    return keys, tuple(name for name in ALGORITHMS if name in names) or DEFAULT_ALGORITHMS


# -- pieces ------------------------------------------------------------------------------------


def quote(text: str) -> str:
    """A text of somebody else in quotes, cut, and with nothing in it that could leave its line."""
    return json.dumps(text[:SHOWN], ensure_ascii=not text[:SHOWN].isprintable())


def _decode(part: str) -> bytes:
    if not _BASE64URL.fullmatch(part) or len(part) % 4 == 1:
        at = next((i for i, each in enumerate(part) if not _BASE64URL.fullmatch(each)), len(part))
        raise ValueError(f"illegal base64 data at input byte {at}")
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        raise ValueError(f"illegal base64 data at input byte {len(part)}") from None


def _object(data: bytes, prefix: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise BadToken(f"{prefix}: it is no JSON") from None
    if not isinstance(found, dict):
        raise BadToken(f"{prefix}: it is no JSON object")
    return found


def _string(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} is no string")
    return value


def _strings(claims: dict[str, Any], name: str) -> tuple[str, ...]:
    value = claims.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{name} is neither a string nor a list of strings")
    return tuple(value)


def _time(claims: dict[str, Any], name: str, missing: int) -> int:
    value = claims.get(name)
    if value is None:
        return missing
    # A number in a string is one, too, as for Go's json.Number.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{name} is no number")
    try:
        found = int(float(value)) if not isinstance(value, int) else value
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is no number") from None
    if not -(2**63) <= found < 2**63:
        raise ValueError(f"{name} is out of range")
    return found


def _utc(timestamp: int) -> str:
    """A time as Go prints it."""
    try:
        return f"{datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None)} +0000 UTC"
    except (OverflowError, ValueError, OSError):
        return f"{timestamp} (Unix time)"
