"""What a plugin needs of a request beyond what routing does: any field, and its forwarded form.

It is apart from `http1`, which the virtual hosts load at their start.
"""

from __future__ import annotations

import re

from pyfrp.errors import BadHead
from pyfrp.wire.http_grammar import CHUNKED, HOP_BY_HOP, list_tokens, read_host
from pyfrp.wire.http_request import RequestHead

_LINES = re.compile(rb"\r\n([^\r:]++):([^\r]*+)")
_ABSOLUTE = re.compile(rb"http://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
# What a forward proxy writes itself or must not hand on (RFC 9110 7.6.1). Upgrade is among them:
# frp's plugin does not carry it either, and clients of proxies use CONNECT for it.
_OURS = frozenset(
    (*(name.encode() for name in HOP_BY_HOP), b"host", b"content-length", b"transfer-encoding")
)


def fields_of(head: RequestHead) -> dict[bytes, list[bytes]]:
    """The fields by their names in lower case, each with its values in the order sent."""
    found: dict[bytes, list[bytes]] = {}
    for line in _LINES.finditer(head.raw):
        found.setdefault(line[1].lower(), []).append(line[2].strip(b" \t"))
    return found


def place_of(authority: bytes, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of an authority.

    Raises:
        BadHead: when it is not valid, or has no port and there is no default.
    """
    _, host = read_host(authority)
    _, colon, digits = authority.rpartition(b":")
    # In `[::1]` the last colon belongs to the address; "1]" is not all digits, so no port.
    port = int(digits) if colon and digits.isdigit() else default_port
    if not port:
        raise BadHead("the request target has no port, or port 0")
    return host, port


def forward_head(head: RequestHead) -> tuple[tuple[str, int], bytes]:
    """Where an absolute target points, and the head for the server there.

    The head speaks HTTP/1.1, has the path as its target and Host from the old target, lacks what
    concerns only the caller's hop, and asks for the connection's end after the answer.

    Raises:
        BadHead: when the target is not an absolute http address.
    """
    match = _ABSOLUTE.fullmatch(head.target)
    if match is None:
        raise BadHead("this is a proxy: the request target must be an http:// address")
    authority, rest = match.groups()
    place = place_of(authority, 80)
    if not rest:
        rest = b"*" if head.method == b"OPTIONS" else b"/"
    elif rest[:1] == b"?":
        rest = b"/" + rest
    gone = set(_OURS)
    fields = fields_of(head)
    for value in fields.get(b"connection", ()):
        gone.update(list_tokens(value) or ())
    if head.length != CHUNKED:
        gone.add(b"trailer")
    lines = [b"%b %b HTTP/1.1\r\nHost: %b" % (head.method, rest, authority)]
    lines += [line[0][2:] for line in _LINES.finditer(head.raw) if line[1].lower() not in gone]
    if head.length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    elif b"content-length" in fields:
        lines.append(b"Content-Length: %d" % head.length)
    lines.append(b"Connection: close\r\n\r\n")
    return place, b"\r\n".join(lines)
