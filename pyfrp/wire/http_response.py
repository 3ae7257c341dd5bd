"""Response heads: parsing what the next hop sent.

As with requests, one expression reads the common heads and a general reader the rest.
"""

from __future__ import annotations

import re

from pyfrp.errors import BadHead
from pyfrp.wire.http_grammar import (
    CHUNKED,
    HOP_BY_HOP,
    MAX_HEAD_BYTES,
    TOKEN_CHAR,
    UNTIL_CLOSE,
    VALUE,
    any_case,
    any_of,
    check_coding,
    check_octets,
    check_partial_head,
    field_fault,
    find_head_end,
    list_tokens,
    named_cuts,
    read_length,
)

_FIELDS = (*HOP_BY_HOP, "content-length", "date", "trailer", "transfer-encoding")
_DROPPED = frozenset(name.encode() for name in HOP_BY_HOP)
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_READ_NAMES = frozenset(name.encode() for name in _FIELDS)
# What Connection names without a field line of its own to remove, and what must not be removed
# because the caller needs it to find the end of the body.
_OPTIONS = frozenset(
    (
        b"close",
        b"content-length",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

_GENERIC = rb"[" + TOKEN_CHAR + rb"]++:" + VALUE
# Most lines are told from the fields above by their third letter.
_BORING_START = rb"[" + TOKEN_CHAR + rb"]{2}[!#$%&'*+\-.^_`|~0-9B-DFH-MP-SU-Zb-dfh-mp-su-z]"
_BORING = _BORING_START + rb"[" + TOKEN_CHAR + rb"]*+:" + VALUE
# As in a request's, no line can be read in two ways, and no quantifier around lines is possessive.
_COMMON = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) [\t -~\x80-\xff]*+\r\n"
    rb"(?:(?:"
    + _BORING
    # (?(n)(?!)) fails once group n has matched: a second such field is for the general reader.
    + rb"|"
    + any_case("con")
    + rb"(?:"
    + any_case("tent-length")
    + rb":(?(2)(?!)) ([0-9]{1,18}+)|"
    + any_case("nection")
    + rb":(?(3)(?!)) ([Kk]eep-[Aa]live|[Cc]lose))|"
    + any_case("transfer-encoding")
    + rb":(?(4)(?!)) ([Cc]hunked)|"
    + any_case("date")
    + rb":()"
    + VALUE
    + rb"|"
    + any_case("keep-alive")
    + rb":(?(6)(?!)) ("
    + VALUE
    + rb")|(?!"
    + _BORING_START
    + rb"|"
    + any_of(_FIELDS)
    + rb":)"
    + _GENERIC
    + rb")\r\n)*\r\n"
)
_GENERAL = re.compile(
    # The reason phrase may be missing together with its space: many small servers leave it out.
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t -~\x80-\xff]*+)?\r\n"
    rb"(?:" + _GENERIC + rb"\r\n)*\r\n"
)
# For a head in lower case: plain letters are compared faster than classes of two.
_READ = re.compile(rb"\r\n(" + "|".join(_FIELDS).encode() + rb"):([^\r]*+)")


class ResponseHead:
    """A response head that passed; made by `parse_response_head` and not changed after.

    Attributes:
        status: 100 to 999.
        minor: 0 or 1, of HTTP/1.x.
        length: Bytes of the body, `CHUNKED`, or `UNTIL_CLOSE`. 0 wherever none can follow: HEAD,
            1xx, 204, 304. `UNTIL_CLOSE` after a 2xx to CONNECT: from there on it is a tunnel.
        keep_alive: Whether the connection it came on can carry another request afterwards.
        upgrade: The protocol of a 101, else b"".
        raw: The head as received, with its blank line.

    The others are for `rewrite_response_head`.
    """

    __slots__ = (
        "_request_method",
        "cuts",
        "extra",
        "has_date",
        "keep_alive",
        "length",
        "minor",
        "raw",
        "status",
        "upgrade",
    )

    # No __init__, as in RequestHead: both makers are in this module and set every attribute.
    status: int
    minor: int
    length: int
    keep_alive: bool
    upgrade: bytes
    raw: bytes
    cuts: tuple[int, ...]  # Spans of `raw` that stay here, as `splice` takes them.
    extra: bytes  # Lines that replace some of what was cut.
    has_date: bool
    _request_method: bytes

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} length={self.length}>"


def parse_response_head(data: bytes, request_method: bytes) -> ResponseHead:
    """Read a response head.

    It is lenient only where servers in use need it: the reason phrase may be missing, several
    equal Content-Length fields count as one, and a 204 may carry one (it is taken out).

    Args:
        data: Exactly one head with its blank line.
        request_method: The method of the request that it answers.

    Raises:
        BadHead: always with status 502; the caller of the proxy is not to blame.
    """
    common = _COMMON.fullmatch(data)
    if common is None:
        return _parse_general(data, request_method)
    return _from_common(common, data, request_method)


def next_response_head(
    data: bytes, request_method: bytes, last: ResponseHead | None = None, start: int = 0
) -> ResponseHead | None:
    """Read the head at the start of what a server sent; see `next_request_head`.

    Args:
        data: Bytes from the start of a head on.
        request_method: The method of the request that it answers.
        last: An earlier head from the same server: within a second, many of its heads are equal.
        start: How many bytes of `data` an earlier call has seen.

    Returns:
        The head, `len(head.raw)` bytes long, or None if it is not complete yet.

    Raises:
        BadHead: as `parse_response_head`, also for an unfinished head that cannot become good.
    """
    if not start:
        if (
            last is not None
            and data.startswith(last.raw)
            and last._request_method == request_method
        ):
            return last
        common = _COMMON.match(data)
        if common is not None:
            end = common.end()
            raw = data if end == len(data) else data[:end]
            return _from_common(common, raw, request_method)
    end = find_head_end(data, start - 3 if start > 3 else 0)
    if end < 0:
        try:
            check_partial_head(data, start)
        except BadHead as exc:
            raise BadHead(str(exc), 502) from None
        return None
    return parse_response_head(data[:end], request_method)


def _from_common(match: re.Match[bytes], raw: bytes, request_method: bytes) -> ResponseHead:
    """Make a head from a match of `_COMMON`; whatever is odd goes to the general reader."""
    status_digits, length, connection, coding, date, parameters = match.groups()
    status = int(status_digits)
    if (
        (coding is not None and length is not None)
        or status == 204
        or request_method == b"CONNECT"
        or len(raw) > MAX_HEAD_BYTES
    ):
        return _parse_general(raw, request_method)
    head = ResponseHead()
    head.status = status
    head.minor = 1
    keep_alive = connection is None or len(connection) != 5  # "close"
    if request_method == b"HEAD" or status == 304:
        head.length = 0
    elif length is not None:
        head.length = int(length)
    elif coding is not None:
        head.length = CHUNKED
    else:
        head.length = UNTIL_CLOSE
        keep_alive = False
    head.keep_alive = keep_alive
    if connection is None and parameters is None:
        head.cuts = ()
    else:
        # "Connection: " and "Keep-Alive: " have 12 letters each; their CRLF goes with them.
        spans = [match.span(group) for group in (3, 6) if match[group] is not None]
        head.cuts = tuple(edge for a, b in sorted(spans) for edge in (a - 12, b + 2))
    head.has_date = date is not None
    head.upgrade = head.extra = b""
    head.raw = raw
    head._request_method = request_method
    return head


def _parse_general(data: bytes, request_method: bytes) -> ResponseHead:
    """Read any head; the reference for what is legal."""
    try:
        return _read_any(data, request_method)
    except BadHead as exc:
        # The shared rules answer as for requests; a bad response is always a bad gateway.
        raise BadHead(f"the response is malformed: {exc}", 502) from None


def _read_any(data: bytes, request_method: bytes) -> ResponseHead:
    if len(data) > MAX_HEAD_BYTES:
        raise BadHead(f"the head is longer than {MAX_HEAD_BYTES} bytes")
    match = _GENERAL.fullmatch(data)
    if match is None:
        check_octets(data)
        line_end = data.find(b"\r\n") + 2
        if _GENERAL.fullmatch(data[:line_end] + b"\r\n") is None:
            raise BadHead("its first line is not: HTTP/1.1, a status of three digits, a reason")
        raise BadHead(field_fault(data, line_end))
    minor, status = int(match[1]), int(match[2])
    # The end of the first line; found by search, because the reason may be missing.
    line_end = data.find(b"\r\n", 12)

    fields: dict[bytes, bytes] = {}
    cuts: list[int] = []
    framing = b""  # The lines that replace padded ones.
    for line in _READ.finditer(data.lower(), line_end):
        name = line[1]
        start, end = line.span(2)
        field = data[start:end]
        value = field.strip(b" \t")
        repeated = name in fields
        if not repeated:
            fields[name] = value
        elif name == b"transfer-encoding":
            raise BadHead("Transfer-Encoding is given twice")
        elif name == b"content-length":
            if fields[name] != value:
                raise BadHead("two different Content-Length fields")
        else:
            fields[name] += b", " + value
        if name in _DROPPED:
            cuts += line.span()
        elif name in _FRAMING and (repeated or field != b" " + value):
            # Padding around what frames the message is not passed on: readers differ there.
            cuts += line.span()
            if not repeated:
                framing += b"%b: %b\r\n" % (name, value)

    options = list_tokens(fields.get(b"connection", b"")) or []
    keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise BadHead("both Content-Length and Transfer-Encoding")
        if minor == 0:
            raise BadHead("Transfer-Encoding in an HTTP/1.0 response")
        check_coding(coding)
        framed = CHUNKED
    else:
        framed = read_length(length) if length is not None else UNTIL_CLOSE

    head = ResponseHead()
    head.upgrade = extra = b""
    if status == 101:
        head.upgrade = fields.get(b"upgrade", b"")
        if b"upgrade" not in options or not head.upgrade:
            raise BadHead("101 without the protocol that it switches to")
        extra = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade
    gone = set(options) - _OPTIONS
    if coding is None:
        gone.add(b"trailer")
    tunnel = request_method == b"CONNECT" and 200 <= status < 300
    if tunnel or status < 200 or status == 204:
        framed = UNTIL_CLOSE if tunnel else 0
        # No body follows, whatever the fields say, and the caller must not wait for one.
        gone |= _FRAMING
        gone.add(b"trailer")
    else:
        extra += framing
        if request_method == b"HEAD" or status == 304:
            framed = 0
    head.length = framed
    head.keep_alive = keep_alive and framed != UNTIL_CLOSE and status != 101
    spans = tuple(cuts)
    if gone & fields.keys() or gone - _READ_NAMES:
        spans = named_cuts(data, line_end, gone, spans)
    head.status = status
    head.minor = minor
    head.raw = data
    head._request_method = request_method
    head.cuts = spans
    head.extra = extra
    head.has_date = b"date" in fields
    return head
