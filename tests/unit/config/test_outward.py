"""Values that say how a client gets out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.config import client_from_dict
from pyfrp.config.client import AutoOptions
from pyfrp.config.outproxy import PROXIED as CARRIED
from pyfrp.config.outward import (
    PROTOCOLS,
    PROXIED,
    Rung,
    parse_dns_server,
    parse_fingerprint,
    parse_rung,
)

DIGITS = "0123456789abcdef" * 4
PAIRS = "01:23:45:67:89:AB:CD:EF:" * 3 + "01:23:45:67:89:AB:CD:EF"


@given(
    st.builds(
        Rung,
        st.sampled_from(PROTOCOLS),
        st.integers(0, 65535),
        st.booleans(),
    ).filter(lambda rung: not rung.proxied or rung.protocol in PROXIED)
)
def test_a_rung_reads_back_as_it_is_written(rung):
    assert parse_rung(str(rung)) == rung
    assert parse_rung(f" {str(rung).upper()} ") == rung


@given(st.text(max_size=30))
def test_any_text_is_a_rung_or_has_a_reason(text):
    try:
        rung = parse_rung(text)
    except ValueError:
        return
    assert parse_rung(str(rung)) == rung


def test_the_usual_ladder_is_one():
    assert len({parse_rung(text) for text in AutoOptions().ladder}) == 6


def test_proxies_carry_what_the_proxy_url_is_taken_for():
    assert set(PROXIED) == set(CARRIED)


def test_auto_speaks_tls_whatever_else_is_said():
    transport = {"protocol": "auto", "tls": {"enable": False}}
    assert client_from_dict({"transport": transport}).transport.tls.enable


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("192.0.2.53:5353", ("192.0.2.53", 5353)),
        ("2001:db8::53", ("2001:db8::53", 53)),
        ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
        (" 192.0.2.53 ", ("192.0.2.53", 53)),
    ],
)
def test_a_dns_server_has_an_address_and_perhaps_a_port(text, place):
    assert parse_dns_server(text) == place


@pytest.mark.parametrize(
    "text", ["dns.test", "192.0.2.53:", "192.0.2.53:0", "192.0.2.53:99999", "[::1", ":53", "1.2.3"]
)
def test_what_is_no_dns_server(text):
    with pytest.raises(ValueError, match="write the address of the server"):
        parse_dns_server(text)


@pytest.mark.parametrize(
    "text",
    [
        DIGITS,
        DIGITS.upper(),
        PAIRS,
        PAIRS.lower(),
        f"sha256:{PAIRS}",
        f"SHA-256:{DIGITS}",
        PAIRS.replace(":", " "),
    ],
)
def test_fingerprints_as_programs_write_them(text):
    assert parse_fingerprint(text) == PAIRS


@pytest.mark.parametrize("text", ["", "sha256:", DIGITS[1:], f"{DIGITS}0", f"sha1:{DIGITS}", "é"])
def test_what_is_no_fingerprint(text):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        parse_fingerprint(text)
