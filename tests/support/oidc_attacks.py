"""Tokens that must not let anybody in, and what frp says of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.identity import (
    Provider,
    SigningKey,
    b64,
    compact,
    make_hmac_token,
    make_token,
)

OTHER = SigningKey("key-1", which=1)
"""A key of somebody else, under the name of the provider's."""
UNSIGNED = re.escape('; expected ["RS256"]')
BAD_ALGORITHM = re.escape("oidc: malformed jwt: go-jose/go-jose: unexpected signature algorithm ")
NOT_VERIFIED = re.escape("failed to verify signature: failed to verify id token signature")


@dataclass(frozen=True)
class Attack:
    """A token and the refusal.

    Args:
        make: The token, made for a provider.
        text: A regular expression for what follows "invalid OIDC token in login: ".
        ours: The same for what only we refuse in other words.
    """

    name: str
    make: Callable[[Provider], str]
    text: str
    ours: str | None = None

    def __str__(self) -> str:
        return self.name

    def refuses(self, said: str, kind: str = "ours") -> bool:
        """Whether a server's answer to a login with this token is as it should be."""
        text = self.ours if self.ours is not None and kind == "ours" else self.text
        return re.fullmatch(f"invalid OIDC token in login: {text}", said) is not None


def _now(provider: Provider) -> int:
    return int(provider.claims()["iat"])


def _tampered(provider: Provider) -> str:
    head, _, signature = provider.token().split(".")
    return f"{head}.{make_token(provider.claims(sub='root'), OTHER).split('.')[1]}.{signature}"


def _pointing(**header: object) -> Callable[[Provider], str]:
    """A token of another key whose header says where that key can be found."""

    def make(provider: Provider) -> str:
        filled = {
            name: value.format(url=provider.url) if isinstance(value, str) else value
            for name, value in header.items()
        }
        return make_token(provider.claims(), OTHER, **filled)

    return make


ATTACKS = [
    Attack(
        "expired",
        lambda p: p.token(exp=_now(p) - 60),
        r"oidc: token is expired \(Token Expiry: 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \+0000 UTC\)",
    ),
    Attack(
        "without an end",
        lambda p: p.token(exp=None),
        r"oidc: token is expired \(Token Expiry: 0001-01-01 00:00:00 \+0000 UTC\)",
    ),
    Attack(
        "not yet valid",
        lambda p: p.token(nbf=_now(p) + 3600),
        r"oidc: current time .+ before the nbf \(not before\) time: 20\d\d-.+ \+0000 UTC",
    ),
    Attack(
        "for somebody else",
        lambda p: p.token(aud=["grafana", "frpc"]),
        re.escape('oidc: expected audience "frps" got ["grafana" "frpc"]'),
    ),
    Attack(
        "for nobody",
        lambda p: p.token(aud=None),
        re.escape('oidc: expected audience "frps" got []'),
    ),
    Attack(
        "of another issuer",
        lambda p: p.token(iss="https://accounts.example"),
        r'oidc: id token issued by a different provider, expected "http://127\.0\.0\.1:\d+" '
        r'got "https://accounts\.example"',
    ),
    Attack(
        "of an unknown key",
        lambda p: make_token(p.claims(), SigningKey("x", which=1)),
        NOT_VERIFIED,
    ),
    Attack(
        "of another key with the name of the right one",
        lambda p: make_token(p.claims(), OTHER),
        NOT_VERIFIED,
    ),
    Attack("changed after signing", _tampered, NOT_VERIFIED),
    Attack("without a signature", lambda p: p.token().rpartition(".")[0] + ".", NOT_VERIFIED),
    Attack(
        "that says it needs no signature",
        lambda p: compact({"alg": "none"}, p.claims(), lambda _: b""),
        BAD_ALGORITHM + '"none"' + UNSIGNED,
    ),
    Attack(
        "that says it needs no signature in other letters",
        lambda p: compact({"alg": "nOnE", "kid": "key-1"}, p.claims(), lambda _: b""),
        BAD_ALGORITHM + '"nOnE"' + UNSIGNED,
    ),
    Attack(
        "signed with the public key as a secret",
        lambda p: make_hmac_token(p.claims(), p.key.pem(), p.key.id),
        BAD_ALGORITHM + '"HS256"' + UNSIGNED,
    ),
    Attack(
        "of an algorithm that was not announced",
        lambda p: make_token(p.claims(), p.key, "RS512"),
        BAD_ALGORITHM + '"RS512"' + UNSIGNED,
    ),
    Attack("that brings its key", _pointing(jwk=OTHER.jwk()), NOT_VERIFIED),
    Attack("that links to its key", _pointing(jku="{url}/evil-keys"), NOT_VERIFIED),
    Attack("that links to its certificate", _pointing(x5u="{url}/evil.pem"), NOT_VERIFIED),
    Attack("whose key name is a path", _pointing(kid="../../../../dev/null"), NOT_VERIFIED),
    Attack("whose key name is a query", _pointing(kid="x' UNION SELECT 'key"), NOT_VERIFIED),
    Attack("whose key name is a URL", _pointing(kid="{url}/evil-keys"), NOT_VERIFIED),
    Attack(
        "that needs an extension",
        lambda p: make_token(p.claims(), p.key, crit=["b64x"], b64x=True),
        NOT_VERIFIED,
    ),
    Attack(
        "empty",
        lambda p: "",
        re.escape("oidc: malformed jwt: oidc: malformed jwt, expected 3 parts got 1"),
    ),
    Attack(
        "of one word",
        lambda p: "letmein",
        re.escape("oidc: malformed jwt: oidc: malformed jwt, expected 3 parts got 1"),
    ),
    Attack(
        "no base64",
        lambda p: "a.!!.c",
        re.escape(
            "oidc: malformed jwt: oidc: malformed jwt payload: illegal base64 data at input byte 0"
        ),
    ),
    Attack(
        "no JSON",
        lambda p: make_token(b"{{", p.key),
        r"oidc: failed to unmarshal claims: invalid character .*",
        r"oidc: failed to unmarshal claims: it is no JSON",
    ),
    Attack(
        "of five parts, as if encrypted",
        lambda p: f"{p.token()}.a.b",
        re.escape("oidc: malformed jwt: go-jose/go-jose: compact JWS format must have three parts"),
    ),
    Attack(
        "with a header that is no object",
        lambda p: f"{b64(b'[1]')}.{p.token().partition('.')[2]}",
        r"oidc: malformed jwt: json: cannot unmarshal array .*",
        r"oidc: malformed jwt: it is no JSON object",
    ),
    Attack(
        "as large as a login may be",
        lambda p: p.token(pad="x" * 6000, aud="other"),
        re.escape('oidc: expected audience "frps" got ["other"]'),
    ),
]
