"""CONNECT at the tcpmux multiplexer: the target decides, as for every proxy."""

from __future__ import annotations

import pytest

from pyfrp.errors import BadHead
from pyfrp.wire.httpconnect import ConnectReader


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("host", [b"Host: a.test:22\r\n", b"Host: a.test\r\n", b"Host: b\r\n", b""])
def test_the_target_decides_whatever_host_says(version, host):
    request = b"CONNECT A.test:22 HTTP/" + version + b"\r\n" + host + b"\r\n"
    found = ConnectReader().feed(request + b"payload")
    assert found is not None
    assert (found.host, found.size) == ("a.test", len(request))


@pytest.mark.parametrize(
    "request_line",
    [
        b"CONNECT /a HTTP/1.1",
        b"CONNECT a.test HTTP/1.1",
        b"CONNECT a b HTTP/1.1",
        b"GET / HTTP/1.1",
    ],
)
def test_what_names_no_target_is_refused(request_line):
    with pytest.raises(BadHead):
        ConnectReader().feed(request_line + b"\r\nHost: a.test:22\r\n\r\n")


def test_two_hosts_are_refused():
    with pytest.raises(BadHead, match="twice"):
        ConnectReader().feed(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nHost: b:1\r\n\r\n")
