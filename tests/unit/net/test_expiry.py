"""Certificates that end soon are told of in time, and not too often."""

from __future__ import annotations

import asyncio
import time

import pytest

from pyfrp.net import certs, expiry
from pyfrp.net.expiry import ExpiryWatch, Lifetime
from tests.support.waiting import until
from tests.unit.net.test_certs import Authority

DAY = 86400.0
NOW = 1_800_000_000.0  # 2027-01-15


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (31, ""),
        (29.5, "x ends on 2027-02-13, in 29 days: renew it and restart"),
        (1.5, "x ends on 2027-01-16, within two days: renew it and restart"),
        (
            -0.5,
            "x expired on 2027-01-14, whoever verifies it refuses it: renew it and restart, or "
            "see that this machine's clock is right (it says 2027-01-15)",
        ),
    ],
)
def test_the_last_thirty_days_are_told_of(days, text):
    assert Lifetime("x", NOW + days * DAY).warning(NOW) == text


def test_what_others_must_renew_is_said_so():
    text = Lifetime("the server's certificate", NOW + DAY * 5, ours=False).warning(NOW)
    assert (
        text == "the server's certificate ends on 2027-01-20, in 5 days: it must be renewed there"
    )


async def test_a_watch_tells_when_it_hears_and_then_daily(loop_kind, monkeypatch):
    monkeypatch.setattr(expiry, "EVERY_S", 0.01)
    told = []
    watch = ExpiryWatch(told.append)
    soon, later = time.time() + 5 * DAY, time.time() + 500 * DAY
    watch.add([Lifetime("a", soon), Lifetime("b", later)])
    watch.add([Lifetime("a", soon)])  # The same again, as of each connection.
    assert len(told) == 1
    watch.start()
    await until(lambda: len(told) >= 3, "two more days")
    watch.add([Lifetime("a", later)])  # It has been renewed.
    count = len(told)
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert len(told) == count
    watch.stop()


def test_a_watch_that_never_started_can_be_stopped():
    ExpiryWatch(print).stop()


# --- what the contexts know --------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def test_contexts_know_the_ends_of_the_files_they_were_made_of(authority):
    pair = authority.pair("x", days=(-1, 10))
    for context in (
        certs.server_context(*pair, authority.file),
        certs.client_context(*pair, authority.file, "n"),
    ):
        found = {lifetime.what: lifetime.ends for lifetime in context.lifetimes}
        assert sorted(found) == [
            f"the certificate in {authority.file} (transport.tls.trustedCaFile)",
            f"the certificate in {pair[0]} (transport.tls.certFile)",
        ]
        for what, days in zip(sorted(found), (30, 10), strict=True):
            assert abs(found[what] - time.time() - days * DAY) < 60


def test_of_several_authorities_the_last_counts(authority):
    old = authority.certificate(authority.name, authority.key, ca=True, days=(-9, -1))
    new = authority.certificate(authority.name, authority.key, ca=True, days=(-9, 300))
    ca = authority.write("both.pem", old, new)
    [lifetime] = certs.client_context("", "", ca, "n").lifetimes
    assert lifetime.warning(time.time()) == ""


def test_a_generated_certificate_needs_no_watch(tmp_path):
    assert certs.server_context("", "", "", state_dir=tmp_path / "state").lifetimes == ()


def test_an_own_certificate_that_expired_keeps_nobody_from_starting(authority):
    """Peers that pin it, or verify nothing, do not mind; the clock may be wrong, too."""
    pair = authority.pair("old", days=(-20, -10))
    for context in (
        certs.server_context(*pair, ""),
        certs.client_context(*pair, "", "n"),
    ):
        [lifetime] = context.lifetimes
        assert "old.crt (transport.tls.certFile) expired on" in lifetime.warning(time.time())
