from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.auth import token as t
from pyfrp.errors import AuthError
from pyfrp.wire.messages import Login, NewWorkConn, Ping

NOW = 1_795_363_274.5
BOTH = frozenset({t.HEARTBEATS, t.NEW_WORK_CONNS})


def login(now: float = NOW, token: str = "tok") -> Login:
    timestamp = int(now)
    return Login(privilege_key=t.auth_key(token, timestamp), timestamp=timestamp)


async def refusal(verifier: t.TokenVerifier, msg: Login, now: float = NOW) -> str:
    with pytest.raises(AuthError) as caught:
        await verifier.verify_login(msg, now)
    return str(caught.value)


@given(st.text(), st.integers(-(2**63), 2**63 - 1))
def test_key_is_32_hex_digits_for_any_secret_and_time(secret, timestamp):
    key = t.auth_key(secret, timestamp)
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")
    assert t.key_matches(secret, timestamp, key)


@given(st.text(), st.text())
def test_another_key_never_matches(secret, key):
    assert not t.key_matches(secret, 1, key)


@pytest.mark.parametrize("key", ["", "\ud800", "é" * 32, "0" * 10000])
def test_absurd_keys_are_compared_like_any_other(key):
    assert not t.key_matches("tok", 1, key)


async def test_login_always_carries_a_key_and_the_time_in_whole_seconds():
    key, timestamp = await t.TokenAuth("tok").login_fields(NOW)
    assert timestamp == 1_795_363_274
    assert key == t.auth_key("tok", timestamp)


async def test_pings_and_work_connections_carry_a_key_only_with_their_scope():
    auth = t.TokenAuth("tok", frozenset({t.HEARTBEATS}))
    assert await auth.ping_fields(NOW) == await auth.login_fields(NOW)
    assert await auth.work_conn_fields(NOW) == ("", 0)
    auth = t.TokenAuth("tok", frozenset({t.NEW_WORK_CONNS}))
    assert await auth.ping_fields(NOW) == ("", 0)
    assert await auth.work_conn_fields(NOW) == await auth.login_fields(NOW)


async def test_right_token_is_accepted_and_an_empty_one_is_a_token():
    await t.TokenVerifier("tok").verify_login(login(), NOW)
    await t.TokenVerifier("").verify_login(login(token=""), NOW)


@pytest.mark.parametrize("other", ["", "Tok", "tok "])
async def test_wrong_token_is_refused_with_frps_words(other):
    words = "token in login doesn't match token from configuration"
    assert await refusal(t.TokenVerifier("tok"), login(token=other)) == words
    assert await refusal(t.TokenVerifier(other), login()) == words


async def test_key_of_another_second_is_wrong():
    msg = login()
    msg.timestamp += 1
    assert "doesn't match" in await refusal(t.TokenVerifier("tok"), msg)


async def test_scopes_of_the_server_decide_what_is_checked():
    verifier = t.TokenVerifier("tok")
    await verifier.verify_ping(Ping(), NOW)
    await verifier.verify_work_conn(NewWorkConn(privilege_key="nonsense"), NOW)
    verifier = t.TokenVerifier("tok", BOTH)
    key, timestamp = await t.TokenAuth("tok", BOTH).ping_fields(NOW)
    await verifier.verify_ping(Ping(privilege_key=key, timestamp=timestamp), NOW)
    await verifier.verify_work_conn(NewWorkConn(privilege_key=key, timestamp=timestamp), NOW)
    with pytest.raises(
        AuthError, match=r"^token in heartbeat doesn't match token from configuration$"
    ):
        await verifier.verify_ping(Ping(), NOW)
    with pytest.raises(
        AuthError, match=r"^token in NewWorkConn doesn't match token from configuration$"
    ):
        await verifier.verify_work_conn(NewWorkConn(), NOW)


@pytest.mark.parametrize("age", [-899.4, 0, 899.4])
async def test_login_within_the_clock_skew_is_accepted(age):
    await t.TokenVerifier("tok").verify_login(login(NOW - age), NOW)


@pytest.mark.parametrize("age", [-902, 902, 86400 * 365])
async def test_login_from_another_time_is_refused_and_the_error_names_both_clocks(age):
    text = await refusal(t.TokenVerifier("tok"), login(NOW - age))
    assert "the server's 2026-11-22 16:01:14 UTC" in text
    assert "maxClockSkew (900 s)" in text
    assert text.count("UTC") == 2


@pytest.mark.parametrize("timestamp", [0, -1, 2**63 - 1, -(2**63)])
async def test_absurd_times_are_refused_like_any_other(timestamp):
    msg = Login(privilege_key=t.auth_key("tok", timestamp), timestamp=timestamp)
    assert "from another time" in await refusal(t.TokenVerifier("tok"), msg)


async def test_login_may_be_repeated_for_ten_seconds_and_not_later():
    verifier = t.TokenVerifier("tok")
    msg = login()
    for after in (0, 5, 10):
        await verifier.verify_login(msg, NOW + after)
    for after in (10.5, 60, 899):
        text = await refusal(verifier, msg, NOW + after)
        assert "used before" in text
        assert text.count("UTC") == 2


async def test_refused_replay_does_not_prolong_anything():
    verifier = t.TokenVerifier("tok")
    await verifier.verify_login(login(), NOW)
    await refusal(verifier, login(), NOW + 11)
    await refusal(verifier, login(), NOW + 12)
    await verifier.verify_login(login(NOW + 12), NOW + 12)


async def test_login_that_was_used_stays_refused_until_its_age_alone_refuses_it():
    verifier = t.TokenVerifier("tok", max_clock_skew=30)
    msg = login(NOW + 29)  # a client whose clock is ahead
    await verifier.verify_login(msg, NOW)
    for step in range(11, 60):
        if step != 29:  # that second's digest is the one under test
            await verifier.verify_login(login(NOW + step), NOW + step)
        await refusal(verifier, msg, NOW + step)


async def test_no_limit_turns_off_both_guards():
    verifier = t.TokenVerifier("tok", max_clock_skew=0)
    for after in (0, 11, 1e6, 1e9):
        await verifier.verify_login(login(), NOW + after)


async def test_clock_turned_back_refuses_no_client_for_long():
    verifier = t.TokenVerifier("tok")
    await verifier.verify_login(login(NOW + 600), NOW + 600)
    for step in range(700):
        await verifier.verify_login(login(NOW + step), NOW + step)


async def test_wrong_logins_leave_nothing_behind():
    verifier = t.TokenVerifier("tok")
    for number in range(1000):
        await refusal(verifier, Login(privilege_key=f"{number:032x}", timestamp=int(NOW)))
        await refusal(verifier, login(NOW - number, token="other"))
        await refusal(verifier, login(NOW - 1000 - number))
    assert verifier._used == {}


async def test_right_logins_are_forgotten_once_too_old_to_matter():
    verifier = t.TokenVerifier("tok", max_clock_skew=60)
    for step in range(1000):
        await verifier.verify_login(login(NOW + step), NOW + step)
        assert len(verifier._used) <= 122


async def test_table_is_bounded_even_for_who_has_the_token(monkeypatch):
    monkeypatch.setattr(t, "MAX_DIGESTS", 100)
    verifier = t.TokenVerifier("tok", max_clock_skew=1e9)
    for step in range(1000):
        await verifier.verify_login(login(NOW + step), NOW)
    assert len(verifier._used) == 100
    assert max(verifier._used) == int(NOW) + 999


async def test_error_holds_no_secret():
    msg = login(NOW - 5000, token="hush")
    text = await refusal(t.TokenVerifier("hush"), msg)
    assert "hush" not in text
    assert msg.privilege_key not in text


def test_a_program_with_a_token_loads_nothing_of_the_other_methods():
    """Either program starts hundreds of times a day somewhere, nearly always with a token."""
    code = (
        "import sys, pyfrp.client.service, pyfrp.server.service\n"
        "from pyfrp.auth import make_authenticator, make_verifier\n"
        "from pyfrp.config import client_from_dict, server_from_dict\n"
        "make_authenticator(client_from_dict({}).auth), make_verifier(server_from_dict({}).auth)\n"
        "heavy = {'jwt', 'urllib.request', 'pyfrp.net.fetch', 'pyfrp.auth.sources'}\n"
        "print(sorted(name for name in sys.modules if name in heavy or 'oidc' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
