"""Challenges of HTTP authentication, and the answers of Basic and Digest, by the RFCs' examples."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.wire.httpauth import (
    MAX_CHALLENGES,
    MAX_PARAMS,
    Challenge,
    Digest,
    basic,
    best_digest,
    read_challenges,
)

# -- challenges ---------------------------------------------------------------------------------

READ = [
    (["Basic realm=x"], [("basic", {"realm": "x"}, "")]),
    (["NTLM"], [("ntlm", {}, "")]),
    (["NTLM TlRM=="], [("ntlm", {}, "TlRM==")]),
    (["Negotiate, NTLM"], [("negotiate", {}, ""), ("ntlm", {}, "")]),
    (["Negotiate", "NTLM"], [("negotiate", {}, ""), ("ntlm", {}, "")]),
    (["Negotiate oYG2 , NTLM"], [("negotiate", {}, "oYG2"), ("ntlm", {}, "")]),
    (
        ['Basic realm="a, b", Digest realm="c", qop="auth,auth-int" , nonce = n, NTLM'],
        [
            ("basic", {"realm": "a, b"}, ""),
            ("digest", {"realm": "c", "qop": "auth,auth-int", "nonce": "n"}, ""),
            ("ntlm", {}, ""),
        ],
    ),
    ([', ,Basic realm="a\\"b\\\\c",,'], [("basic", {"realm": 'a"b\\c'}, "")]),
    (["basic REALM=x, realm=y"], [("basic", {"realm": "x"}, "")]),
    (['Basic realm=""'], [("basic", {"realm": ""}, "")]),
    # What cannot be read ends its field, and no other one.
    (['Basic realm="open', "NTLM"], [("basic", {}, ""), ("ntlm", {}, "")]),
    (
        ["Basic realm=x, {}, NTLM", "Negotiate"],
        [("basic", {"realm": "x"}, ""), ("negotiate", {}, "")],
    ),
    (["", "=", "Basic ="], [("basic", {}, "")]),
    (["realm=x"], [("realm", {}, "")]),
]


@pytest.mark.parametrize(("fields", "found"), READ)
def test_challenges_are_read(fields, found):
    assert read_challenges(fields) == [Challenge(*each) for each in found]


def test_challenges_and_parameters_are_limited():
    assert len(read_challenges([", ".join(["NTLM"] * 1000)])) == MAX_CHALLENGES
    assert len(read_challenges(["NTLM"] * 1000)) == MAX_CHALLENGES
    (found,) = read_challenges(["X " + ", ".join(f"p{i}=1" for i in range(1000))])
    assert len(found.params) == MAX_PARAMS


words = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True)
texts = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20)
with_params = st.tuples(words, st.dictionaries(words.map(str.lower), texts, min_size=1, max_size=4))
with_token = st.tuples(words, st.from_regex(r"[A-Za-z0-9+/]{1,20}={0,2}", fullmatch=True))


@given(st.lists(st.one_of(with_params, with_token), max_size=5), st.booleans())
def test_what_is_written_is_read(challenges, one_field):
    fields, wanted = [], []
    for scheme, more in challenges:
        if isinstance(more, str):
            fields.append(f"{scheme} {more}")
            wanted.append(Challenge(scheme.lower(), {}, more))
            continue
        quoted = {name: more[name].replace("\\", "\\\\").replace('"', '\\"') for name in more}
        fields.append(f"{scheme} " + ", ".join(f'{name}="{quoted[name]}"' for name in more))
        wanted.append(Challenge(scheme.lower(), more))
    assert read_challenges([", ".join(fields)] if one_field else fields) == wanted


@given(st.lists(st.text()))
def test_anything_can_be_read(fields):
    challenges = read_challenges(fields)
    assert len(challenges) <= MAX_CHALLENGES
    best = best_digest(challenges)
    if best is not None:
        Digest(best, "user", "secret").answer("CONNECT", "host:1", "abc")


# -- answers ------------------------------------------------------------------------------------


def test_basic_is_that_of_the_rfc():
    assert basic("Aladdin", "open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert basic("test", "123£") == "Basic dGVzdDoxMjPCow=="
    with pytest.raises(ValueError, match="colon"):
        basic("a:b", "c")


RFC7616 = {
    "realm": "http-auth@example.org",
    "qop": "auth, auth-int",
    "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
    "opaque": "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS",
}
RFC2069 = {
    "realm": "testrealm@host.com",
    "nonce": "dcd98b7102dd2f0e8b11d0f600bfb0c093",
    "opaque": "5ccc069c403ebaf9f0171e9517f40e41",
}
EXAMPLES = [
    (
        {**RFC7616, "algorithm": "MD5"},
        "Circle of Life",
        "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        "8ca523f5e9506fed4657c9700eebdbec",
    ),
    (
        {**RFC7616, "algorithm": "SHA-256"},
        "Circle of Life",
        "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
    ),
    # RFC 2617, 3.5.
    (
        {**RFC2069, "qop": "auth,auth-int"},
        "Circle Of Life",
        "0a4f113b",
        "6629fae49393a05397450978507c4ef1",
    ),
    # RFC 2069, 2.4, with its errata.
    (RFC2069, "CircleOfLife", "", "1949323746fe6a43ef61f9606e7febea"),
]


@pytest.mark.parametrize(("params", "password", "cnonce", "response"), EXAMPLES)
def test_digest_is_that_of_the_rfcs(params, password, cnonce, response):
    challenge = best_digest([Challenge("digest", params)])
    assert challenge is not None
    said = Digest(challenge, "Mufasa", password).answer("GET", "/dir/index.html", cnonce)
    (answer,) = read_challenges([said])  # It is written as a challenge is.
    assert answer.scheme == "digest"
    assert answer.params["response"] == response
    assert answer.params["username"] == "Mufasa"
    assert answer.params["uri"] == "/dir/index.html"
    assert {name: answer.params.get(name) for name in ("realm", "nonce", "opaque")} == {
        name: params.get(name) for name in ("realm", "nonce", "opaque")
    }
    assert ("qop" in answer.params) == ("nc" in answer.params) == ("qop" in params)
    assert password not in said


def test_each_answer_counts_up():
    digest = Digest(Challenge("digest", {"nonce": "n", "qop": "auth"}), "u", "p")
    counts = [read_challenges([digest.answer("GET", "/", "c")])[0].params["nc"] for _ in range(3)]
    assert counts == ["00000001", "00000002", "00000003"]
    assert repr(digest) == "<Digest>"


def test_a_session_hashes_the_nonces_in():
    params = {"realm": "r", "nonce": "n", "qop": "auth", "algorithm": "MD5-sess"}
    said = Digest(Challenge("digest", params), "u", "p").answer("GET", "/", "c")

    def h(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    first = h(h("u:r:p") + ":n:c")
    wanted = h(f"{first}:n:00000001:c:auth:" + h("GET:/"))
    assert read_challenges([said])[0].params["response"] == wanted


def test_a_user_can_be_hashed():
    params = {"realm": "r", "nonce": "n", "qop": "auth", "userhash": "true"}
    said = Digest(Challenge("digest", params), "Jäsøn", "p").answer("GET", "/", "c")
    answer = read_challenges([said])[0].params
    assert answer["username"] == hashlib.md5("Jäsøn:r".encode()).hexdigest()
    assert answer["userhash"] == "true"


def test_what_was_not_utf8_goes_back_as_it_came():
    realm = b"caf\xe9".decode("utf-8", "surrogateescape")
    said = Digest(Challenge("digest", {"realm": realm, "nonce": "n"}), "u", "p")
    answer = said.answer("GET", "/", "")
    assert b'realm="caf\xe9"' in answer.encode("utf-8", "surrogateescape")
    secret = hashlib.md5(b"u:caf\xe9:p").hexdigest()
    wanted = hashlib.md5(f"{secret}:n:{hashlib.md5(b'GET:/').hexdigest()}".encode()).hexdigest()
    assert f'response="{wanted}"' in answer


@pytest.mark.parametrize(
    ("params", "good"),
    [
        ({"nonce": "n"}, True),
        ({"nonce": "n", "qop": "auth"}, True),
        ({"nonce": "n", "qop": "AUTH-INT, Auth"}, True),
        ({"nonce": "n", "algorithm": "sha-256-SESS"}, True),
        ({"nonce": "n", "qop": "auth-int"}, False),
        ({"nonce": "n", "algorithm": "SHA-512-256"}, False),
        ({"realm": "r"}, False),
    ],
)
def test_only_what_can_be_answered_is_taken(params, good):
    assert (best_digest([Challenge("basic"), Challenge("digest", params)]) is not None) is good


def test_the_stronger_hash_is_taken():
    weak = Challenge("digest", {"nonce": "n"})
    strong = Challenge("digest", {"nonce": "n", "algorithm": "SHA-256"})
    assert best_digest([weak, strong]) is best_digest([strong, weak]) is strong
