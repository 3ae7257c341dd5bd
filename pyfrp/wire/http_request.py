"""Request heads: strict parsing.

Each request passes here, so there are two readers. One expression reads the heads that nearly
all callers send, in one match and without a loop over the fields. Whatever it does not take goes
to the general reader, which decides alone what is legal; the tests hold the two against each
other. `tests/perf/http_head.py` measures both.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyfrp.errors import BadHead
from pyfrp.wire.http_grammar import (
    CHUNKED,
    MAX_HEAD_BYTES,
    MAX_HEADER_COUNT,
    MAX_LIST_ELEMENTS,
    MAX_METHOD_BYTES,
    MAX_TARGET_BYTES,
    SCHEME,
    TOKEN_CHAR,
    VALUE,
    any_case,
    any_of,
    check_coding,
    check_octets,
    check_partial_head,
    decode_path,
    escape_target,
    field_fault,
    find_head_end,
    list_tokens,
    named_cuts,
    read_basic,
    read_host,
    read_length,
    same_authority,
    too_large,
)

if TYPE_CHECKING:
    from pyfrp.wire.http_rewrite import HeadEdit

# The fields that this proxy reads, changes or removes.
_FIELDS = (
    "authorization",
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
)
# Two of one of these leave open which one counts, here or at the next hop.
_UNIQUE = frozenset(
    (
        b"authorization",
        b"content-length",
        b"expect",
        b"host",
        b"proxy-authorization",
        b"transfer-encoding",
    )
)
_DROPPED = frozenset(name.encode() for name in _FIELDS) - {
    b"authorization",
    b"content-length",
    b"expect",
    b"host",
    b"trailer",
    b"transfer-encoding",
}
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
# A caller that has Connection name one of these wants the next hop to miss what we acted upon.
_NOT_NAMEABLE = frozenset((b"host", b"content-length", b"expect"))
# What Connection names without a field line of its own to remove here.
_OPTIONS = frozenset((b"close", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"))

_GENERIC = rb"[" + TOKEN_CHAR + rb"]++:" + VALUE
# Most lines are told from the fields above by their second letter, or after a dash by the third,
# and need no comparison with each name. Measured: a third less time for the whole head.
_BORING_START = (
    rb"[" + TOKEN_CHAR + rb"](?:[!#$%&'*+.^_`|~0-9ABCDF-NQSTVWYZabcdf-nqstvwyz]"
    rb"|-[!#$%&'*+\-.^_`|~0-9A-EG-Za-eg-z])"
)
_BORING = _BORING_START + rb"[" + TOKEN_CHAR + rb"]*+:" + VALUE
# No line may be read in two ways, or a head of many that fails in the end is tried in all of them.
# It would be simpler to forbid a second try, with a possessive quantifier around the lines; but
# before 3.11.5, Python goes on in the middle of a line that did not match
# (https://github.com/python/cpython/issues/106052).
# CONNECT, other methods with a C, and targets with "%" are left to the general reader.
_COMMON = re.compile(
    rb"([ABD-Z][A-Z]{0,30}+) "
    rb"((/[!\"$&->@-~]{0,16000}+)(?:\?[!\"$-~]{0,16000}+)?) HTTP/1\.1\r\n"
    rb"(?:(?:"
    + _BORING
    # (?(n)(?!)) fails once group n has matched: a second such field is for the general reader.
    + rb"|"
    + any_case("host")
    + rb":(?(4)(?!)) ?([!-~]++)|"
    + any_case("con")
    + rb"(?:"
    + any_case("nection")
    + rb":(?(5)(?!)) ([Kk]eep-[Aa]live|[Cc]lose)|"
    + any_case("tent-length")
    + rb":(?(6)(?!)) ([0-9]{1,18}+))|"
    # Of credentials only Basic ones are of interest; group 7 is empty for a bearer token.
    + any_case("authorization")
    + rb":(?(7)(?!)) ?([Bb][Aa]"
    + VALUE
    + rb"|)"
    + VALUE
    # From the proxies in front of us that take TLS off.
    + rb"|"
    + any_case("x-forwarded-")
    + rb"(?:"
    + any_case("for")
    + rb":(?(8)(?!)) ("
    + VALUE
    + rb")|"
    + any_case("proto")
    + rb":(?(9)(?!)) ("
    + VALUE
    + rb")|"
    + any_case("host")
    + rb":(?(10)(?!)) ("
    + VALUE
    + rb"))|(?!"
    + _BORING_START
    + rb"|"
    + any_of(_FIELDS)
    + rb":)"
    + _GENERIC
    + rb")\r\n){1,%d}\r\n" % MAX_HEADER_COUNT
)
# Groups of lines that do not go on, with the length of "Name: " before each.
_CUT_GROUPS = ((5, 12), (8, 17), (9, 19), (10, 18))
_GENERAL = re.compile(
    rb"([" + TOKEN_CHAR + rb"]{1,%d}+) ([!\"$-~\x80-\xff]{1,%d}+) HTTP/1\.([01])\r\n"
    rb"(?:"
    % (MAX_METHOD_BYTES, MAX_TARGET_BYTES)
    + _GENERIC
    + rb"\r\n){0,%d}\r\n" % MAX_HEADER_COUNT
)
# For a head in lower case: plain letters are compared faster than classes of two.
_READ = re.compile(rb"\r\n(" + "|".join(_FIELDS).encode() + rb"):([^\r]*+)")
_START_LINE = re.compile(rb"([^ \t]*) ([^ \t]*) (HTTP/([0-9])\.([0-9]))")
_METHOD = re.compile(rb"[" + TOKEN_CHAR + rb"]{1,%d}" % MAX_METHOD_BYTES)
_JSON = re.compile(
    rb"\n(?:"
    + any_case("accept")
    + rb"|"
    + any_case("content-type")
    + rb"):[^\r]*"
    + any_case("application/json")
)


class RequestHead:
    """A request head that passed; made by `parse_request_head` and not changed after.

    Attributes:
        method: As sent.
        target: As sent, with what is beyond ASCII escaped: curl sends what was typed, and not
            every service takes that.
        minor: 0 or 1, of HTTP/1.x.
        authority: The Host field as sent; the target's for proxies' clients of HTTP/1.0 without,
            and wherever the head was read by its target.
        host: The key for routing: lower case, no port, no brackets, no trailing dot.
        path: The percent-decoded path without the query; "" for CONNECT, "*" for `OPTIONS *`.
        user: From Basic credentials; "" if there are none that can be decoded. Those of
            Proxy-Authorization for absolute targets and CONNECT if they name a user, else those
            of Authorization.
        password: The same.
        length: Bytes of the body, or `CHUNKED`.
        keep_alive: Whether the caller wants its connection kept.
        upgrade: The Upgrade field if Connection names it, else b"". Never h2c, never from
            HTTP/1.0, never with a body: such upgrades are not honoured, as RFC 9110 7.8 allows.
        expects_continue: Whether the caller may wait for a 100 before it sends the body.
        raw: The head as received, with its blank line.
        accepts_json: Whether an error body should be JSON: the caller sends or accepts it.

    The others are for `rewrite_request_head`.
    """

    __slots__ = (
        "authority",
        "cuts",
        "expects_continue",
        "extra",
        "forwarded_for",
        "host",
        "host_field",
        "keep_alive",
        "length",
        "method",
        "minor",
        "password",
        "path",
        "raw",
        "rewritten",
        "rewritten_for",
        "target",
        "upgrade",
        "user",
    )

    # No __init__: a call with this many arguments takes as long as a sixth of the parsing. Both
    # makers are in this module and set every attribute.
    method: bytes
    target: bytes
    minor: int
    authority: str
    host: str
    path: str
    user: str
    password: str
    length: int
    keep_alive: bool
    upgrade: bytes
    expects_continue: bool
    raw: bytes
    cuts: tuple[int, ...]  # Spans of `raw` that stay here, as `splice` takes them.
    extra: bytes  # Lines that replace some of what was cut.
    forwarded_for: bytes  # X-Forwarded-For as received, b"" if it was not.
    host_field: bytes  # `authority`, encoded.
    rewritten: bytes  # The last answer of `rewrite_request_head`, and what it was for.
    rewritten_for: tuple[HeadEdit | None, bytes] | None

    @property
    def accepts_json(self) -> bool:
        return _JSON.search(self.raw) is not None

    def __repr__(self) -> str:
        # Neither the target nor the fields: both may hold secrets.
        return f"<RequestHead {self.method!r} {self.authority!r} length={self.length}>"


def parse_request_head(data: bytes, *, by_target: bool = False) -> RequestHead:
    """Read a request head; whatever is malformed or could be read in two ways is refused.

    Args:
        data: Exactly one head with its blank line (`find_head_end`). Empty lines before a
            request (RFC 9112 2.2) are the caller's to skip, with `skip_empty_line`.
        by_target: As a proxy reads it: where the target has a host, Host does not count (3.2.2).

    Raises:
        BadHead: 400; 414 and 431 over a limit; 417 for unknown expectations; 501 for unknown
            transfer codings; 505 for versions other than 1.0 and 1.1.
    """
    common = _COMMON.fullmatch(data)
    if common is None or len(data) > MAX_HEAD_BYTES:
        return _parse_general(data, by_target=by_target)
    return _from_common(common, data)


def next_request_head(
    data: bytes, last: RequestHead | None = None, start: int = 0, *, by_target: bool = False
) -> RequestHead | None:
    """Read the head at the start of a caller's bytes; what a connection uses.

    It is `find_head_end`, `check_partial_head` and `parse_request_head` in one, with two short
    cuts: a head that repeats the one before on its connection is not read again, and the common
    expression finds the end by itself.

    Args:
        data: Bytes from the start of a head on; a body or further requests may follow.
        last: The previous head of the same connection.
        start: How many bytes of `data` an earlier call has seen, so that a head that trickles in
            is not searched from its start each time.
        by_target: As for `parse_request_head`.

    Returns:
        The head, `len(head.raw)` bytes long, or None if it is not complete yet.

    Raises:
        BadHead: as `parse_request_head` and `check_partial_head`.
    """
    if not start:
        if last is not None and data.startswith(last.raw):
            return last
        common = _COMMON.match(data)
        if common is not None:
            end = common.end()
            if end <= MAX_HEAD_BYTES:
                return _from_common(common, data if end == len(data) else data[:end])
    end = find_head_end(data, start - 3 if start > 3 else 0)
    if end < 0:
        check_partial_head(data, start)
        return None
    return parse_request_head(data[:end], by_target=by_target)


def skip_empty_line(data: bytes) -> int:
    """Return 2 if `data` starts with an empty line, else 0.

    RFC 9112 2.2 asks servers to ignore at least one empty line before a request, for callers
    that end a body with one too many. Skip one for each request, not more.
    """
    return 2 if data.startswith(b"\r\n") else 0


def _from_common(match: re.Match[bytes], raw: bytes) -> RequestHead:
    """Make a head from a match of `_COMMON`; whatever is odd goes to the general reader."""
    (
        method,
        target,
        path,
        host,
        connection,
        length,
        basic,
        forwarded_for,
        forwarded_proto,
        forwarded_host,
    ) = match.groups()
    if host is None:
        return _parse_general(raw)
    head = RequestHead()
    head.method = method
    head.target = target
    head.minor = 1
    head.authority, head.host = read_host(host)
    head.path = path.decode("ascii")
    if basic:
        head.user, head.password = read_basic(basic)
    else:
        head.user = head.password = ""
    head.length = int(length) if length is not None else 0
    head.keep_alive = connection is None or len(connection) != 5  # "close"
    if forwarded_for is None and forwarded_proto is None and forwarded_host is None:
        if connection is None:
            head.cuts = ()
        else:
            start, end = match.span(5)
            head.cuts = (start - 12, end + 2)  # From "Connection: " to its CRLF.
        head.forwarded_for = b""
    else:
        spans = [
            (match.start(group) - label, match.end(group) + 2)
            for group, label in _CUT_GROUPS
            if match[group] is not None
        ]
        head.cuts = tuple(edge for span in sorted(spans) for edge in span)
        head.forwarded_for = forwarded_for.strip(b", \t") if forwarded_for is not None else b""
    head.upgrade = head.extra = head.rewritten = b""
    head.rewritten_for = None
    head.expects_continue = False
    head.host_field = host
    head.raw = raw
    return head


def _parse_general(data: bytes, *, by_target: bool = False) -> RequestHead:
    """Read any head; the reference for what is legal."""
    match = _GENERAL.fullmatch(data)
    if match is None or len(data) > MAX_HEAD_BYTES:
        raise _diagnose(data)
    method, target, minor_digit = match.groups()
    target = escape_target(target)
    line_end = match.end(3)

    head = RequestHead()
    head.method = method
    head.target = target
    head.minor = minor = 0 if minor_digit == b"0" else 1
    head.raw = data
    head.rewritten = b""
    head.rewritten_for = None

    fields: dict[bytes, bytes] = {}
    cuts: list[int] = []
    extra = b""
    for line in _READ.finditer(data.lower(), line_end):
        name = line[1]
        start, end = line.span(2)
        field = data[start:end]
        value = field.strip(b" \t")
        if name not in fields:
            fields[name] = value
        elif name in _UNIQUE:
            raise BadHead(f"{name.decode().title()} is given twice")
        else:
            fields[name] += b", " + value
        if name in _DROPPED:
            cuts += line.span()
        elif name in _FRAMING and field != b" " + value:
            # Padding around what frames the message is not passed on: readers differ there.
            cuts += line.span()
            extra += b"%b: %b\r\n" % (name, value)

    sent = fields.get(b"host")
    host = sent or b""
    if by_target or (sent is None and minor == 0):
        host = _target_authority(method, target) or host
    if sent is None:
        if not host:
            raise BadHead("Host is missing")
        extra += b"Host: %b\r\n" % host
    head.host_field = host
    head.authority, head.host = read_host(host)
    head.path, is_proxied = _read_target(method, target, host)
    head.length = length = _read_framing(fields, minor)
    if length and method == b"CONNECT":
        raise BadHead("CONNECT with a body")

    gone: set[bytes] = set()  # Further fields to take out.
    head.keep_alive = minor == 1
    head.upgrade = b""
    if b"connection" in fields:
        options = list_tokens(fields[b"connection"])
        if options is None:
            raise BadHead("Connection is not a list of tokens")
        head.keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
        gone.update(options)
        gone -= _OPTIONS
        if gone & _NOT_NAMEABLE:
            raise BadHead("Connection names a field that is not the connection's own")
        if b"upgrade" in options and minor == 1 and not length:
            head.upgrade = _read_upgrade(fields.get(b"upgrade", b""))
            if head.upgrade:
                extra += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade

    head.expects_continue = False
    if b"expect" in fields:
        if fields[b"expect"].lower() != b"100-continue":
            raise BadHead("Expect has an expectation other than 100-continue", 417)
        if minor == 0:
            gone.add(b"expect")  # RFC 9110 10.1.1: HTTP/1.0 knows no 1xx.
        else:
            head.expects_continue = length != 0
    if b"trailer" in fields and length != CHUNKED:
        gone.add(b"trailer")
    if b"te" in fields and b"trailers" in (list_tokens(fields[b"te"]) or ()):
        extra += b"TE: trailers\r\n"
    spans = tuple(cuts)
    head.cuts = named_cuts(data, line_end, gone, spans) if gone else spans
    head.extra = extra
    head.forwarded_for = fields.get(b"x-forwarded-for", b"").strip(b", \t")

    head.user, head.password = "", ""
    if is_proxied and b"proxy-authorization" in fields:
        head.user, head.password = read_basic(fields[b"proxy-authorization"])
    if not head.user and b"authorization" in fields:
        head.user, head.password = read_basic(fields[b"authorization"])
    return head


def _read_upgrade(field: bytes) -> bytes:
    """Return an Upgrade field that is honoured, else b""."""
    if field.count(b",") >= MAX_LIST_ELEMENTS:
        return b""
    protocols = [part.strip(b" \t").lower() for part in field.split(b",")]
    return field if all(protocols) and b"h2c" not in protocols else b""


def _target_authority(method: bytes, target: bytes) -> bytes:
    """Return the authority in a target, b"" without; old clients of proxies send no Host."""
    if method == b"CONNECT":
        return target
    match = SCHEME.match(target)
    return match[2] if match is not None else b""


def _read_target(method: bytes, target: bytes, host_field: bytes) -> tuple[str, bool]:
    """Return the decoded path, and whether the target has a host of its own (RFC 9112 3.2)."""
    if method == b"CONNECT":
        if b"/" in target or b"?" in target or not target.rpartition(b":")[2].isdigit():
            raise BadHead("CONNECT takes host:port as its target")
        # Some clients leave the port out of Host here.
        port = int(target.rpartition(b":")[2])
        if not same_authority(target, host_field, default_port=port):
            raise BadHead("the request target and Host name different hosts")
        return "", True
    if target[:1] == b"/":
        return decode_path(target.partition(b"?")[0]), False
    if target == b"*":
        if method != b"OPTIONS":
            raise BadHead("only OPTIONS takes * as its target")
        return "*", False
    match = SCHEME.match(target)
    if match is None:
        raise BadHead("the request target is neither a path nor an http:// address")
    if match[1].lower() != b"http":
        raise BadHead("the request target has a scheme other than http")
    if not same_authority(match[2], host_field, default_port=80):
        raise BadHead("the request target and Host name different hosts")
    return decode_path(target[match.end() :].partition(b"?")[0]) or "/", True


def _read_framing(fields: dict[bytes, bytes], minor: int) -> int:
    """Return the length of the body, or `CHUNKED` (RFC 9112 6.3, without its lenient parts)."""
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is None:
        return 0 if length is None else read_length(length)
    if length is not None:
        raise BadHead("both Content-Length and Transfer-Encoding")
    if minor == 0:
        raise BadHead("Transfer-Encoding in an HTTP/1.0 request")
    check_coding(coding)
    return CHUNKED


def _diagnose(data: bytes) -> BadHead:
    """Return what is wrong with a head that the general expression refused."""
    if len(data) > MAX_HEAD_BYTES:
        return too_large(data)
    try:
        check_octets(data)
        _check_start_line(data.partition(b"\r\n")[0])
    except BadHead as exc:
        return exc
    if fault := field_fault(data, data.find(b"\r\n") + 2):
        return BadHead(fault)
    return BadHead(f"more than {MAX_HEADER_COUNT} header lines", 431)


def _check_start_line(line: bytes) -> None:
    """Raise `BadHead` for a bad request line; nothing if it is good."""
    match = _START_LINE.fullmatch(line)
    if match is None:
        if not line:
            raise BadHead("an empty line before the request")
        if line.count(b" ") == 1 and not line.endswith(b" "):
            raise BadHead("the request line has no HTTP version")
        raise BadHead("the request line is not: method, target, HTTP/1.1, with one space between")
    method, target, version = match[1], match[2], match[3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadHead("only HTTP/1.0 and HTTP/1.1 are served here", 505)
    if not _METHOD.fullmatch(method):
        raise BadHead("the method is not a token, or too long")
    if len(target) > MAX_TARGET_BYTES:
        raise BadHead(f"the request target is longer than {MAX_TARGET_BYTES} bytes", 414)
    if b"#" in target:
        raise BadHead("a fragment in the request target")
    if not target:
        raise BadHead("the request target is empty")
