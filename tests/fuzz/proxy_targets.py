"""What a proxy on the way out may send: answers to CONNECT, challenges, NTLM, SOCKS5."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from typing import Any

from pyfrp.config.outproxy import parse_proxy_url, proxy_from_environment
from pyfrp.errors import ProxyError, RemoteWireError
from pyfrp.net.outproxy import Proxy
from pyfrp.net.proxyauth import Talk
from pyfrp.wire.connectproxy import MAX_HEAD_BYTES, AnswerReader
from pyfrp.wire.httpauth import Challenge, Digest, best_digest, read_challenges
from pyfrp.wire.socks5client import SocksClient
from tests.fuzz.engine import Behaviour, Target, cut

ANSWERS = [
    b"HTTP/1.1 200 Connection established\r\n\r\n",
    b"HTTP/1.0 200 OK\n\nearly",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nnever",
    b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM, Basic "
    b'realm="a, \\"b\\""\r\nProxy-Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n',
    b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\nContent-Type: text/html\r\n x\r\n\r\n",
]
CHALLENGES = [
    b'Basic realm="a, \\"b\\\\", Negotiate oYG2 , NTLM',
    b'Digest realm="r", nonce="n", qop="auth,auth-int", algorithm=SHA-256, opaque="o", stale=true',
    b"Digest nonce=n, algorithm=MD5-sess, userhash=true",
]


def _answer(data: bytes, rng: random.Random) -> Behaviour:
    def run(pieces: Sequence[bytes]) -> Any:
        reader = AnswerReader()
        try:
            for number, piece in enumerate(pieces):
                answer = reader.feed(piece)
                if answer is not None:
                    return answer, bytes(reader.data) + b"".join(pieces[number + 1 :])
                assert len(reader.data) <= MAX_HEAD_BYTES
        except RemoteWireError as exc:
            return str(exc)
        return None

    whole = run([data])
    assert whole == run(cut(data, rng)), "the result depends on how the bytes were cut"
    if not isinstance(whole, tuple):
        return whole
    answer, _ = whole
    assert answer.reason.isascii()
    return answer.status // 100, answer.length < 0, answer.keep_alive, len(answer.challenges)


def _challenges(data: bytes, rng: random.Random) -> Behaviour:
    found = read_challenges([data.decode("utf-8", "surrogateescape")])
    best = best_digest(found)
    if best is not None:
        said = Digest(best, "us\\er", "s3cret").answer("CONNECT", "frps.test:7000", "abc")
        assert "s3cret" not in said
        assert read_challenges([said])[0].params["uri"] == "frps.test:7000"
    return tuple(challenge.scheme for challenge in found)[:4], best is not None


async def _ntlm(data: bytes, rng: random.Random) -> Behaviour:
    """The second message of NTLM, which a library reads."""
    talk = Talk(Proxy("http", "127.0.0.1", 3128, "CORP\\user", "s3cret"))
    await talk.next([Challenge("ntlm")], "frps.test:7000")
    try:
        said = await talk.next(
            [Challenge("ntlm", {}, base64.b64encode(data).decode())], "frps.test:7000"
        )
    except ProxyError as exc:
        words = str(exc)
        assert "s3cret" not in words
        return "".join(letter for letter in words if letter.isalpha())[:80]
    assert said.startswith("NTLM ")
    return len(said) // 64


def _socks(data: bytes, rng: random.Random) -> Behaviour:
    user = "user" if rng.random() < 0.5 else None

    def run(pieces: Sequence[bytes]) -> Any:
        client = SocksClient("frps.test", 7000, user, "s3cret")
        out = b""
        try:
            for piece in pieces:
                out += client.feed(piece)
        except RemoteWireError as exc:
            return type(exc).__name__, str(exc)
        assert client.done or len(client.leftover()) < 270
        return out, client.done, client.leftover()

    whole = run([data])
    assert whole == run(cut(data, rng)), "the result depends on how the bytes were cut"
    return whole[:2]


def _url(data: bytes, rng: random.Random) -> Behaviour:
    text = data.decode("utf-8", "replace")
    environ = {"https_proxy": text, "no_proxy": text[::-1]}
    named = proxy_from_environment(environ, text[: len(text) // 2], 7000, secure=True)
    try:
        parts = parse_proxy_url(text)
    except ValueError as exc:
        words = str(exc)
        # What stands where a scheme should is named, whatever it is.
        scheme = text.partition("://")[0].lower()
        assert "s3cret" not in words or (words.startswith("the scheme ") and "s3cret" in scheme)
        return words[:40], named is None
    assert parts.host
    assert 0 < parts.port < 65536
    return parts.scheme, parts.user is None, ":" in parts.host, named is None


def _ntlm_seed() -> bytes:
    """A challenge as Windows sends it: flags, a target, its information."""
    information = b"".join(
        kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value
        for kind, value in (
            (2, "CORP".encode("utf-16-le")),
            (1, "PROXY".encode("utf-16-le")),
            (7, bytes(8)),
            (0, b""),
        )
    )
    target = "CORP".encode("utf-16-le")
    lengths = len(target).to_bytes(2, "little") * 2 + (56).to_bytes(4, "little")
    more = len(information).to_bytes(2, "little") * 2 + (56 + len(target)).to_bytes(4, "little")
    flags = (0xE28A8215).to_bytes(4, "little")
    head = b"NTLMSSP\0\2\0\0\0" + lengths + flags + b"\1\2\3\4\5\6\7\x08" + bytes(8) + more
    return head + b"\x0a\0\x61\x4a\0\0\0\x0f" + target + information


TARGETS = (
    Target(
        "connect-answer",
        _answer,
        ANSWERS,
        [b"\r\n", b"\n", b"HTTP/1.", b"407", b"chunked", b"Content-Length: ", b" "],
    ),
    Target("http-challenges", _challenges, CHALLENGES, [b",", b"=", b'"', b"\\", b"NTLM", b" "]),
    Target("ntlm-challenge", _ntlm, [_ntlm_seed()], [b"NTLMSSP\0", b"\0\0", b"\xff\xff"]),
    Target(
        "socks5-client",
        _socks,
        [
            b"\x05\x00\x05\x00\x00\x01" + bytes(6) + b"early",
            b"\x05\x02\x01\x00\x05\x00\x00\x03\x04host\x00\x01",
            b"\x05\xff",
            b"\x05\x02\x01\x01",
        ],
        [b"\x05", b"\x00", b"\x01", b"\x03", b"\x04", b"\xff"],
    ),
    Target(
        "proxy-url",
        _url,
        [b"http://us%40er:s3cret@proxy:3128/", b"socks5h://[fd00::1]:1080", b"10.0.0.0/8,*.a.b:80"],
        [b"://", b"@", b":", b"[", b"]", b"%", b"/", b"#", b"."],
    ),
)
