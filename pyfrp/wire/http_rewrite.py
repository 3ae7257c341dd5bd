"""Heads for the next hop and for the caller: what is taken out, what is changed, what is added.

The readers (`http_request`, `http_response`) leave on a head what the writers here need: the spans
to take out, and the lines in their place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from pyfrp.errors import BadHead
from pyfrp.wire.http_grammar import FIELD_LINE, HOP_BY_HOP, SCHEME, any_case, any_of, read_host
from pyfrp.wire.http_request import RequestHead
from pyfrp.wire.http_response import ResponseHead

# These frame the message or belong to this hop; a configured value would break what follows.
# Go's `net/http` leaves Host, Content-Length, Transfer-Encoding and Trailer out as well.
_NOT_SETTABLE = frozenset((*HOP_BY_HOP, "host", "content-length", "transfer-encoding", "trailer"))


class Forwarding(Enum):
    """What a request's X-Forwarded-For, -Host and -Proto say to the next hop."""

    HTTP = 1  # Who called us, after what the caller said; over plain HTTP ...
    HTTPS = 2  # ... or over TLS.
    KEPT = 3  # What the caller said, and nothing of our own.
    DROPPED = 4  # Nothing.


class HeadEdit:
    """The configured changes to the heads of one route, made ready once.

    Args:
        host: The new Host (`hostHeaderRewrite`), or None to leave it; requests only.
        set_headers: Fields to set, last of all, in place of what was sent
            (`requestHeaders.set`, `responseHeaders.set`).
        forwarding: What the next hop is told of the caller; requests only.
        origin_form: Whether absolute targets become paths, because the next hop is no proxy;
            requests only.

    Attributes:
        host, forwarding, origin_form: As given.
        lines: The lines to add, each with its CRLF.
        strip: Matches the lines that these replace, each with the CRLF before it; None without.
        ignored: The names in `set_headers` that have no effect because they frame the message
            or belong to the hop. frp ignores the framing ones silently; tell the operator.

    Raises:
        ValueError: for names that are no tokens, and values with CR, LF or other control bytes.
    """

    __slots__ = ("forwarding", "host", "ignored", "lines", "origin_form", "strip")

    def __init__(
        self,
        host: bytes | None,
        set_headers: Mapping[str, str],
        *,
        forwarding: Forwarding = Forwarding.HTTP,
        origin_form: bool = False,
    ) -> None:
        self.forwarding = forwarding
        self.origin_form = origin_form
        if host is not None:
            try:
                read_host(host)
            except BadHead as exc:
                raise ValueError(f"not a host to rewrite to: {host!r}") from exc
        self.host = host
        lines: dict[str, bytes] = {}
        ignored: list[str] = []
        for name, value in set_headers.items():
            line = name.encode("utf-8") + b": " + value.encode("utf-8")
            match = FIELD_LINE.fullmatch(line)
            if match is None or len(match[1]) != len(name):
                raise ValueError(f"not a header that can be set: {name!r}")
            if name.lower() in _NOT_SETTABLE:
                ignored.append(name)
                continue
            lines[name.lower()] = line + b"\r\n"
        self.lines = b"".join(lines.values())
        self.strip = re.compile(rb"\r\n" + any_of(lines) + rb":[^\r]*+") if lines else None
        self.ignored = tuple(ignored)

    def apply(self, head: bytes) -> bytes:
        """Return a head, blank line included, with the configured fields in place."""
        if self.strip is None:
            return head
        return self.strip.sub(b"", head[:-2]) + self.lines + b"\r\n"


def splice(raw: bytes, cuts: tuple[int, ...]) -> bytes:
    """Return a head without its blank line's CRLF and without the spans in `cuts`.

    Args:
        cuts: Start and end of each span, flat and ascending: `(start, end, start, end, ...)`.
    """
    if not cuts:
        return raw[:-2]
    if len(cuts) == 2:
        return raw[: cuts[0]] + raw[cuts[1] : -2]
    edges = (0, *cuts, len(raw) - 2)
    return b"".join([raw[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)])


_FORWARDED_LINE = re.compile(rb"\r\n(x-forwarded-(?:for|host|proto):[^\r]*+)", re.IGNORECASE)


def forwarded_lines(
    edit: HeadEdit | None, raw: bytes, known: bytes, host: bytes, client_ip: bytes
) -> bytes:
    """Return the lines that tell the next hop who called, each with its CRLF.

    Args:
        edit: Its `forwarding` counts; None for plain HTTP.
        raw: The request's head, which passed.
        known: Its X-Forwarded-For, b"" without.
        host: Its Host. Like all that is put in here it came without CR and LF.
        client_ip: b"" if unknown.
    """
    proto = b"http"
    if edit is not None:
        forwarding = edit.forwarding
        if forwarding is Forwarding.DROPPED:
            return b""
        if forwarding is Forwarding.KEPT:
            return b"".join([line + b"\r\n" for line in _FORWARDED_LINE.findall(raw)])
        if forwarding is Forwarding.HTTPS:
            proto = b"https"
    told = b"%b, %b" % (known, client_ip) if known and client_ip else known or client_ip
    return b"%bX-Forwarded-Host: %b\r\nX-Forwarded-Proto: %b\r\n" % (
        b"X-Forwarded-For: %b\r\n" % told if told else b"",
        host,
        proto,
    )


_ABSOLUTE = re.compile(rb"([^ ]*+) [A-Za-z][A-Za-z0-9+.-]*://[^/? ]*([^ ]*+) ")


def with_origin_form(head: bytes) -> bytes:
    """Return a request's head with the path as its target (RFC 9112 3.2.1), other heads as is."""
    match = _ABSOLUTE.match(head)
    if match is None:
        return head
    method, rest = match.groups()
    if not rest:
        rest = b"*" if method == b"OPTIONS" else b"/"
    elif rest[:1] == b"?":
        rest = b"/" + rest
    return b"%b %b %b" % (method, rest, head[match.end() :])


_HOST_LINE = re.compile(rb"\r\n" + any_case("host") + rb":([^\r]*+)")


def rewrite_request_head(head: RequestHead, edit: HeadEdit | None, client_ip: bytes) -> bytes:
    """Return the head for the next hop, with its blank line.

    It speaks HTTP/1.1, leaves out what concerns only the caller's hop, and tells who called:
    X-Forwarded-For is appended to, X-Forwarded-Host and X-Forwarded-Proto are set (unless the edit
    has it otherwise), Forwarded is dropped. The edit's host replaces Host (and the authority of an
    absolute target), and its fields come last. Upgrades keep their two fields; `TE: trailers` and,
    for chunked bodies, Trailer stay, because trailers pass through as they come. A CONNECT passes
    as it is.

    Source: RFC 9110 7.6.1; frp `pkg/util/vhost/http.go` on Go's `net/http/httputil`.

    Args:
        head: What `parse_request_head` gave.
        edit: The route's changes; compared by identity when the same head is rewritten again.
        client_ip: The caller's address in text, without port and brackets; b"" if unknown.
    """
    purpose = head.rewritten_for
    if purpose is not None and purpose[0] is edit and purpose[1] == client_ip:
        return head.rewritten
    if head.method == b"CONNECT":
        # For the proxy at the far end, which may want credentials of its own and Host as it was.
        out = head.raw.replace(b" HTTP/1.0\r\n", b" HTTP/1.1\r\n", 1)
        if _HOST_LINE.search(out) is None:
            out = b"%bHost: %b\r\n\r\n" % (out[:-2], head.host_field)
        return out
    kept, known, host = splice(head.raw, head.cuts), head.forwarded_for, head.host_field
    if not kept.isascii():
        kept = _with_target(kept, head)
    if edit is None and client_ip:
        # What `forwarded_lines` makes of it, without its cost: a third of this function's.
        told = b"%b, %b" % (known, client_ip) if known else client_ip
        out = (
            b"%bX-Forwarded-For: %b\r\nX-Forwarded-Host: %b\r\nX-Forwarded-Proto: http\r\n%b\r\n"
            % (kept, told, host, head.extra)
        )
    else:
        lines = forwarded_lines(edit, head.raw, known, host, client_ip)
        out = b"%b%b%b\r\n" % (kept, lines, head.extra)
    if head.minor == 0:
        out = out.replace(b" HTTP/1.0\r\n", b" HTTP/1.1\r\n", 1)  # Targets hold no spaces.
    if edit is not None:
        if edit.host is not None:
            out = _replace_host(out, head, edit.host)
        if edit.origin_form:
            out = with_origin_form(out)
        out = edit.apply(out)
    head.rewritten = out
    head.rewritten_for = (edit, client_ip)
    return out


def _with_target(out: bytes, head: RequestHead) -> bytes:
    """Put the target as it was read, which is escaped, in place of the one that was sent."""
    start = len(head.method) + 1
    return b"%b%b%b" % (out[:start], head.target, out[out.index(b" ", start) :])


def _replace_host(out: bytes, head: RequestHead, host: bytes) -> bytes:
    """Put another host into a head, wherever it names one."""
    line = _HOST_LINE.search(out)
    assert line is not None  # Heads without one were refused, or got one.
    out = b"%b %b%b" % (out[: line.start(1)], host, out[line.end(1) :])
    scheme = SCHEME.match(head.target)
    if scheme is not None:
        at = len(head.method) + 1
        out = out[: at + scheme.start(2)] + host + out[at + scheme.end(2) :]
    return out


_TRANSFER_LINE = re.compile(
    rb"\r\n(?:" + any_case("transfer-encoding") + rb"|" + any_case("trailer") + rb"):[^\r]*+"
)


def rewrite_response_head(
    head: ResponseHead,
    edit: HeadEdit | None,
    *,
    keep_alive: bool,
    caller_minor: int,
    dechunk: bool = False,
    enchunk: bool = False,
    date: bytes = b"",
) -> bytes:
    """Return the head for the caller, with its blank line.

    Interim responses (1xx but 101) gain nothing; they are not for HTTP/1.0 callers at all. A 101
    keeps Connection and Upgrade. All others lose what concerns only the server's hop and say
    what becomes of the caller's connection.

    Args:
        head: What `parse_response_head` gave.
        edit: The route's `responseHeaders.set`; its host is not used.
        keep_alive: Whether the caller's connection stays open.
        caller_minor: The caller's HTTP/1.x: 1.0 has to be told that a connection is kept.
        dechunk: Leave Transfer-Encoding and Trailer out, for callers of HTTP/1.0.
        enchunk: Add Transfer-Encoding, for a body that the server ends by closing.
        date: Added as Date if the server sent none (RFC 9110 6.6.1); b"" adds nothing.
    """
    status = head.status
    tail = head.extra
    if status < 200 and status != 101:
        edit = None
        date = b""
    elif status != 101:
        if not keep_alive:
            tail += b"Connection: close\r\n"
        elif caller_minor == 0:
            tail += b"Connection: keep-alive\r\n"
        if enchunk:
            tail += b"Transfer-Encoding: chunked\r\n"
    if date and not head.has_date:
        tail += b"Date: %b\r\n" % date
    cuts = head.cuts
    if not tail and not cuts and head.minor == 1:
        out = head.raw
    else:
        out = b"%b%b\r\n" % (splice(head.raw, cuts), tail)
        if head.minor == 0:
            out = b"HTTP/1.1" + out[8:]
    if dechunk:
        out = _TRANSFER_LINE.sub(b"", out[:-2]) + b"\r\n"
    return edit.apply(out) if edit is not None else out
