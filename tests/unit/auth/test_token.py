from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.auth import token as t
from pyfrp.errors import AuthError
from pyfrp.wire.messages import Login, NewWorkConn, Ping

NOW = 1_795_363_274.5
BOTH = frozenset({t.HEARTBEATS, t.NEW_WORK_CONNS})


def login(now: float = NOW, token: str = "tok") -> Login:
    key, timestamp = t.TokenAuth(token).login_fields(now)
    return Login(privilege_key=key, timestamp=timestamp)


def refusal(verifier: t.TokenVerifier, msg: Login, now: float = NOW) -> str:
    with pytest.raises(AuthError) as caught:
        verifier.verify_login(msg, now)
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


def test_login_always_carries_a_key_and_the_time_in_whole_seconds():
    key, timestamp = t.TokenAuth("tok").login_fields(NOW)
    assert timestamp == 1_795_363_274
    assert key == t.auth_key("tok", timestamp)


def test_pings_and_work_connections_carry_a_key_only_with_their_scope():
    auth = t.TokenAuth("tok", frozenset({t.HEARTBEATS}))
    assert auth.ping_fields(NOW) == auth.login_fields(NOW)
    assert auth.work_conn_fields(NOW) == ("", 0)
    auth = t.TokenAuth("tok", frozenset({t.NEW_WORK_CONNS}))
    assert auth.ping_fields(NOW) == ("", 0)
    assert auth.work_conn_fields(NOW) == auth.login_fields(NOW)


def test_right_token_is_accepted_and_an_empty_one_is_a_token():
    t.TokenVerifier("tok").verify_login(login(), NOW)
    t.TokenVerifier("").verify_login(login(token=""), NOW)


@pytest.mark.parametrize("other", ["", "Tok", "tok "])
def test_wrong_token_is_refused_with_frps_words(other):
    words = "token in login doesn't match token from configuration"
    assert refusal(t.TokenVerifier("tok"), login(token=other)) == words
    assert refusal(t.TokenVerifier(other), login()) == words


def test_key_of_another_second_is_wrong():
    msg = login()
    msg.timestamp += 1
    assert "doesn't match" in refusal(t.TokenVerifier("tok"), msg)


def test_scopes_of_the_server_decide_what_is_checked():
    verifier = t.TokenVerifier("tok")
    verifier.verify_ping(Ping())
    verifier.verify_work_conn(NewWorkConn(privilege_key="nonsense"))
    verifier = t.TokenVerifier("tok", BOTH)
    key, timestamp = t.TokenAuth("tok", BOTH).ping_fields(NOW)
    verifier.verify_ping(Ping(privilege_key=key, timestamp=timestamp))
    verifier.verify_work_conn(NewWorkConn(privilege_key=key, timestamp=timestamp))
    with pytest.raises(
        AuthError, match=r"^token in heartbeat doesn't match token from configuration$"
    ):
        verifier.verify_ping(Ping())
    with pytest.raises(
        AuthError, match=r"^token in NewWorkConn doesn't match token from configuration$"
    ):
        verifier.verify_work_conn(NewWorkConn())


@pytest.mark.parametrize("age", [-899.4, 0, 899.4])
def test_login_within_the_clock_skew_is_accepted(age):
    t.TokenVerifier("tok").verify_login(login(NOW - age), NOW)


@pytest.mark.parametrize("age", [-902, 902, 86400 * 365])
def test_login_from_another_time_is_refused_and_the_error_names_both_clocks(age):
    text = refusal(t.TokenVerifier("tok"), login(NOW - age))
    assert "the server's 2026-11-22 16:01:14 UTC" in text
    assert "maxClockSkew (900 s)" in text
    assert text.count("UTC") == 2


@pytest.mark.parametrize("timestamp", [0, -1, 2**63 - 1, -(2**63)])
def test_absurd_times_are_refused_like_any_other(timestamp):
    msg = Login(privilege_key=t.auth_key("tok", timestamp), timestamp=timestamp)
    assert "from another time" in refusal(t.TokenVerifier("tok"), msg)


def test_login_may_be_repeated_for_ten_seconds_and_not_later():
    verifier = t.TokenVerifier("tok")
    msg = login()
    for after in (0, 5, 10):
        verifier.verify_login(msg, NOW + after)
    for after in (10.5, 60, 899):
        text = refusal(verifier, msg, NOW + after)
        assert "used before" in text
        assert text.count("UTC") == 2


def test_refused_replay_does_not_prolong_anything():
    verifier = t.TokenVerifier("tok")
    verifier.verify_login(login(), NOW)
    refusal(verifier, login(), NOW + 11)
    refusal(verifier, login(), NOW + 12)
    verifier.verify_login(login(NOW + 12), NOW + 12)


def test_login_that_was_used_stays_refused_until_its_age_alone_refuses_it():
    verifier = t.TokenVerifier("tok", max_clock_skew=30)
    msg = login(NOW + 29)  # a client whose clock is ahead
    verifier.verify_login(msg, NOW)
    for step in range(11, 60):
        if step != 29:  # that second's digest is the one under test
            verifier.verify_login(login(NOW + step), NOW + step)
        refusal(verifier, msg, NOW + step)


def test_no_limit_turns_off_both_guards():
    verifier = t.TokenVerifier("tok", max_clock_skew=0)
    for after in (0, 11, 1e6, 1e9):
        verifier.verify_login(login(), NOW + after)


def test_clock_turned_back_refuses_no_client_for_long():
    verifier = t.TokenVerifier("tok")
    verifier.verify_login(login(NOW + 600), NOW + 600)
    for step in range(700):
        verifier.verify_login(login(NOW + step), NOW + step)


def test_wrong_logins_leave_nothing_behind():
    verifier = t.TokenVerifier("tok")
    for number in range(1000):
        refusal(verifier, Login(privilege_key=f"{number:032x}", timestamp=int(NOW)))
        refusal(verifier, login(NOW - number, token="other"))
        refusal(verifier, login(NOW - 1000 - number))
    assert verifier._used == {}


def test_right_logins_are_forgotten_once_too_old_to_matter():
    verifier = t.TokenVerifier("tok", max_clock_skew=60)
    for step in range(1000):
        verifier.verify_login(login(NOW + step), NOW + step)
        assert len(verifier._used) <= 122


def test_table_is_bounded_even_for_who_has_the_token(monkeypatch):
    monkeypatch.setattr(t, "MAX_DIGESTS", 100)
    verifier = t.TokenVerifier("tok", max_clock_skew=1e9)
    for step in range(1000):
        verifier.verify_login(login(NOW + step), NOW)
    assert len(verifier._used) == 100
    assert max(verifier._used) == int(NOW) + 999


def test_error_holds_no_secret():
    msg = login(NOW - 5000, token="hush")
    text = refusal(t.TokenVerifier("hush"), msg)
    assert "hush" not in text
    assert msg.privilege_key not in text
