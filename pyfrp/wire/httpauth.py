"""HTTP authentication as a client does it: challenges, and the answers of Basic and Digest.

Source: RFC 9110, section 11 (challenges), RFC 7617 (Basic), RFC 7616 and RFC 2069 (Digest).
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# More than any server has use for; each costs a little, and all come from one head.
MAX_CHALLENGES = 16
MAX_PARAMS = 32

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SPACE = re.compile(r"[ \t]*")
_BETWEEN = re.compile(r"[ \t,]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in which a server would accept credentials.

    Attributes:
        scheme: In lower case: "basic", "digest", "ntlm", "negotiate", or anything else.
        params: By name in lower case; of a name given twice the first.
        token: The data of schemes that have no parameters, in base64; "" without.
    """

    scheme: str
    params: dict[str, str] = field(default_factory=dict)
    token: str = ""


def read_challenges(fields: Iterable[str]) -> list[Challenge]:
    """Read what stands in the WWW-Authenticate or Proxy-Authenticate fields of a head.

    A field may hold several challenges, with commas between them as between their parameters.
    What cannot be read ends its field, and what was read before it counts: a server with one odd
    challenge is still a server with others.
    """
    found: list[Challenge] = []
    for text in fields:
        _read_field(text, found)
    return found


def _read_field(text: str, found: list[Challenge]) -> None:
    at = 0
    current: Challenge | None = None
    while (at := _end(_BETWEEN, text, at)) < len(text):
        word = _TOKEN.match(text, at)
        if word is None:
            return
        at = word.end()
        after = _end(_SPACE, text, at)
        if current is not None and text[after : after + 1] == "=":
            value, at = _value(text, _end(_SPACE, text, after + 1))
            if value is None or len(current.params) >= MAX_PARAMS:
                return
            current.params.setdefault(word[0].lower(), value)
            continue
        if len(found) >= MAX_CHALLENGES:
            return
        data = _TOKEN68.match(text, after) if after > at else None
        if data is not None:
            at = data.end()
        current = Challenge(word[0].lower(), {}, data[0] if data is not None else "")
        found.append(current)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _value(text: str, at: int) -> tuple[str | None, int]:
    """A parameter's value and where it ends; None for what is neither word nor quoted."""
    quoted = _QUOTED.match(text, at)
    if quoted is not None:
        return re.sub(r"\\(.)", r"\1", quoted[1]), quoted.end()
    word = _TOKEN.match(text, at)
    return (None, at) if word is None else (word[0], word.end())


def basic(user: str, password: str) -> str:
    """The value of Authorization for Basic.

    Raises:
        ValueError: for a user with a colon, which Basic cannot carry.
    """
    if ":" in user:
        raise ValueError("a user name with a colon cannot be sent by Basic")
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def _octets(text: str) -> bytes:
    # What came in a head and was not UTF-8 counts as it came.
    return text.encode("utf-8", "surrogateescape")


def _md5(text: str) -> str:
    return hashlib.md5(_octets(text), usedforsecurity=False).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(_octets(text)).hexdigest()


# By name, the stronger one first.
_HASHES: dict[str, Callable[[str], str]] = {"sha-256": _sha256, "md5": _md5}


def best_digest(challenges: Iterable[Challenge]) -> Challenge | None:
    """The strongest Digest challenge that `Digest` can answer, if there is one."""
    known = [challenge for challenge in challenges if _can_answer(challenge)]
    order = list(_HASHES)
    return min(known, key=lambda challenge: order.index(_hash_name(challenge)), default=None)


def _hash_name(challenge: Challenge) -> str:
    return challenge.params.get("algorithm", "md5").lower().removesuffix("-sess")


def _can_answer(challenge: Challenge) -> bool:
    qop = challenge.params.get("qop")
    return (
        challenge.scheme == "digest"
        and "nonce" in challenge.params
        and _hash_name(challenge) in _HASHES
        and (qop is None or "auth" in _words(qop))
    )


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",")]


class Digest:
    """The answers to one Digest challenge; each request needs one of its own.

    Args:
        challenge: What `best_digest` gave.
    """

    def __init__(self, challenge: Challenge, user: str, password: str) -> None:
        self._params = challenge.params
        self._user = user
        self._password = password
        self._hash = _HASHES[_hash_name(challenge)]
        self._count = 0

    def __repr__(self) -> str:
        return "<Digest>"  # No secrets.

    def answer(self, method: str, uri: str, cnonce: str) -> str:
        """The value of Authorization for a request.

        Args:
            uri: The request's target as it is sent.
            cnonce: Random letters and digits, new for each request.
        """
        params, digest = self._params, self._hash
        realm, nonce = params.get("realm", ""), params["nonce"]
        self._count += 1
        count = f"{self._count:08x}"
        secret = digest(f"{self._user}:{realm}:{self._password}")
        if params.get("algorithm", "").lower().endswith("-sess"):
            secret = digest(f"{secret}:{nonce}:{cnonce}")
        request = digest(f"{method}:{uri}")
        qop = "qop" in params
        middle = f"{nonce}:{count}:{cnonce}:auth" if qop else nonce
        hashed = params.get("userhash", "").lower() == "true"
        user = digest(f"{self._user}:{realm}") if hashed else self._user
        fields = [
            f"username={_quote(user)}",
            f"realm={_quote(realm)}",
            f"nonce={_quote(nonce)}",
            f"uri={_quote(uri)}",
            f'response="{digest(f"{secret}:{middle}:{request}")}"',
        ]
        if "algorithm" in params:
            fields.append(f"algorithm={params['algorithm']}")
        if "opaque" in params:
            fields.append(f"opaque={_quote(params['opaque'])}")
        if qop:
            fields += ["qop=auth", f"nc={count}"]
        if qop or params.get("algorithm", "").lower().endswith("-sess"):
            fields.append(f'cnonce="{cnonce}"')
        if hashed:
            fields.append("userhash=true")
        return f"Digest {', '.join(fields)}"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
