"""What the HTTP/1 modules share: limits, the grammar of heads, and the values inside them.

The grammar is stricter than RFC 9110 and RFC 9112 wherever two readers could disagree about a
head: a proxy must not read one message where the next hop reads another. Nothing here knows
requests from responses.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from os.path import commonprefix

from pyfrp.errors import BadHead

# A whole head with its blank line. Cookies and bearer tokens stay below 16 KiB in practice; the
# rest is room for callers behind several proxies. It bounds what an unfinished head can hold.
MAX_HEAD_BYTES = 65536
# Browsers send about 20 fields, chains of proxies about 40. More fields only cost the next hop.
MAX_HEADER_COUNT = 128
# Request targets: four times what most servers take, and short enough that a head has room left.
MAX_TARGET_BYTES = 32768
# Registered methods have at most 17 letters (UPDATEREDIRECTREF).
MAX_METHOD_BYTES = 32
# RFC 1035 gives 253 visible characters; with brackets, port and a trailing dot this is plenty.
MAX_HOST_BYTES = 272
# 18 digits hold an exabyte and stay below 2**63, so no next hop can overflow.
MAX_LENGTH_DIGITS = 18
# Elements of a list that is read here, such as Connection; real ones have up to five. Taking a list
# apart costs far more than matching it, so a head full of commas is not worth it.
MAX_LIST_ELEMENTS = 32

# Body lengths that are not a count of bytes.
CHUNKED = -1
UNTIL_CLOSE = -2

TOKEN_CHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
# A field value with its surrounding white space: visible, space, tab and obs-text (RFC 9110 5.5).
VALUE = rb"[\t -~\x80-\xff]*+"

# The start of an absolute target, with its scheme and its authority.
SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)")

# Nothing that this finds may stand in a head, whole or unfinished: control bytes, a CR without
# its LF (the LF may still be on its way), and an LF without its CR.
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n")
FIELD_LINE = re.compile(rb"([" + TOKEN_CHAR + rb"]++):(" + VALUE + rb")")
_TOKEN = re.compile(rb"[" + TOKEN_CHAR + rb"]++")
_HOST = re.compile(rb"(?:([A-Za-z0-9_~.-]+)|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{0,5}))?")
# What binascii takes beyond this differs between versions of Python.
_BASIC = re.compile(
    rb"[Bb][Aa][Ss][Ii][Cc] ++((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?) *+"
)
_DIGITS = [b"%c" % digit for digit in b"0123456789abcdefABCDEF"]
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
# The two digits of each escape, in both cases; a loop over a path full of them stays cheap.
_OCTETS = {a + b: bytes.fromhex((a + b).decode()) for a in _DIGITS for b in _DIGITS}

# Few hosts are asked for, over and over: a lookup replaces a third of a microsecond of checks.
_MAX_KNOWN_HOSTS = 1024
_known_hosts: dict[bytes, tuple[str, str]] = {}


def any_case(name: str) -> bytes:
    """Return a pattern for `name`, in lower case and not empty, in any case.

    Its first letter is a class of two: with `IGNORECASE` alone, the branches of an alternative
    are not told apart by their first letter, which takes a third more time.
    """
    first, rest = name[0], re.escape(name[1:]).encode()
    pattern = f"[{first}{first.upper()}]".encode() if first.isalpha() else re.escape(first).encode()
    return pattern + (rb"(?i:" + rest + rb")" if rest else b"")


def any_of(names: Iterable[str]) -> bytes:
    """Return a pattern for any of the lower-case field names, in any case.

    Names with a common start share it, so that a name which is none of them fails early.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(name[:1], []).append(name)
    branches = []
    for group in groups.values():
        start = commonprefix(group)  # noqa: RUF071 - these are names, not paths
        tails = [name[len(start) :] for name in group if name != start]
        branch = any_case(start)
        if tails:
            branch += any_of(tails) + (b"?" if start in group else b"")
        branches.append(branch)
    return b"(?:" + b"|".join(branches) + b")"


def find_head_end(data: bytes, start: int = 0) -> int:
    """Return the index just past the blank line that ends a head, or -1.

    Args:
        start: Where to look from. For a head that grows, pass the length that was searched
            before less 3, so that a blank line cut in two is found.
    """
    at = data.find(b"\r\n\r\n", start)
    return at + 4 if at >= 0 else -1


def check_partial_head(data: bytes, start: int = 0) -> None:
    """Refuse an unfinished head that can no longer become a good one.

    So a caller that speaks something else, or sends without end, is answered at once and not
    when its time is up.

    Args:
        data: What came of the head so far, without its end.
        start: How much of it was checked before.

    Raises:
        BadHead: 431 or 414 for one that is too long, 400 for bytes that no head may hold.
    """
    if len(data) > MAX_HEAD_BYTES:
        raise too_large(data)
    check_octets(data, start)


def too_large(data: bytes) -> BadHead:
    """Return the refusal of a head over `MAX_HEAD_BYTES`: 414 if its first line alone is."""
    if data.find(b"\r\n", 0, MAX_TARGET_BYTES) < 0:
        return BadHead(f"the request target is longer than {MAX_TARGET_BYTES} bytes", 414)
    return BadHead(f"the head is longer than {MAX_HEAD_BYTES} bytes", 431)


def check_octets(data: bytes, start: int = 0) -> None:
    """Raise `BadHead` for a byte that no head may hold; a CR as the last byte passes."""
    bad = _FORBIDDEN.search(data, start)
    if bad is None:
        return
    found = bad[0]
    if found == b"\r":
        raise BadHead("a CR without LF in the head")
    if found == b"\n":
        raise BadHead("an LF without CR in the head")
    raise BadHead(f"the control byte 0x{found[0]:02x} in the head")


def field_fault(data: bytes, start: int) -> str:
    """Return what is wrong with the field lines of a head that the whole pattern refused.

    Args:
        data: A head, free of what `check_octets` refuses.
        start: Where the first field line starts.

    Returns:
        The fault of the first bad line; "" if each line is good.
    """
    block = data[start:]
    if not block.endswith(b"\r\n\r\n") and block != b"\r\n":
        return "the head does not end with an empty line"
    for line in block[:-4].split(b"\r\n") if len(block) > 2 else ():
        if FIELD_LINE.fullmatch(line):
            continue
        if not line:
            return "bytes after the end of the head"
        if line[0] in b" \t":
            return "a folded header line"
        name, colon, _ = line.partition(b":")
        if not colon:
            return "a header line without a colon"
        if not name:
            return "a header line without a name"
        if name[-1] in b" \t":
            return "white space between a header name and its colon"
        return "a header name with a character that names may not have"
    return ""


def read_host(field: bytes) -> tuple[str, str]:
    """Read a Host field, or the authority of a target.

    Returns:
        The authority as sent, and the key for routing: lower case, without port, brackets and
        trailing dot.

    Raises:
        BadHead: for user names, paths, white space, a port beyond 65535, and anything else that
            is not a host name, an IPv4 address or an IPv6 address in brackets (RFC 9110 7.2).
    """
    known = _known_hosts.get(field)
    if known is not None:
        return known
    match = _HOST.fullmatch(field) if len(field) <= MAX_HOST_BYTES else None
    if match is None:
        raise BadHead("Host is empty" if not field else "Host is not a valid host name")
    name, address, port = match.groups()
    if port and int(port) > 65535:
        raise BadHead("the port in Host is beyond 65535")
    if address is not None:
        if address.count(b":") < 2:
            raise BadHead("Host is not a valid IPv6 address")
        key = address.decode("ascii").lower()
    else:
        key = name.decode("ascii").lower().removesuffix(".")
        if not key or key[0] == "." or ".." in key or key[-1] == ".":
            raise BadHead("Host is not a valid host name")
    if len(_known_hosts) >= _MAX_KNOWN_HOSTS:
        _known_hosts.clear()  # Made-up hosts cost a refill, not memory.
    known = _known_hosts[field] = (field.decode("ascii"), key)
    return known


def same_authority(one: bytes, other: bytes, *, default_port: int) -> bool:
    """Tell whether two authorities name the same place, with `default_port` where none is given.

    Raises:
        BadHead: if one of them is not valid.
    """

    def place(authority: bytes) -> tuple[str, int]:
        # In `[::1]` the last colon belongs to the address; "1]" is not all digits, so no port.
        _, colon, digits = authority.rpartition(b":")
        port = int(digits) if colon and digits.isdigit() else default_port
        return read_host(authority)[1], port

    return place(one) == place(other)


def escape_target(target: bytes) -> bytes:
    """Percent-encode what is beyond ASCII in a request target."""
    if target.isascii():
        return target
    return _BEYOND_ASCII.sub(lambda octet: b"%%%02X" % ord(octet[0]), target)


def decode_path(path: bytes) -> str:
    """Undo the percent-encoding of a path; what is not UTF-8 becomes U+FFFD.

    Raises:
        BadHead: for a percent sign without two hexadecimal digits, as Go's `net/url` does.
    """

    if b"%" not in path:
        return path.decode("ascii")
    first, *rest = path.split(b"%")
    try:
        octets = b"".join([first, *[_OCTETS[part[:2]] + part[2:] for part in rest]])
    except KeyError:
        raise BadHead("a percent sign without two hexadecimal digits in the path") from None
    return octets.decode("utf-8", "replace")


def read_basic(field: bytes) -> tuple[str, str]:
    """Return user and password of a Basic credential; two empty strings if there are none.

    Other schemes and undecodable credentials are no error here: they are for the next hop to
    judge, and a route that asks for a password refuses them (RFC 7617, UTF-8 only).
    """
    match = _BASIC.fullmatch(field)
    if match is None:
        return "", ""
    try:
        pair = binascii.a2b_base64(match[1]).decode("utf-8")
    except UnicodeDecodeError:
        return "", ""
    user, colon, password = pair.partition(":")
    return (user, password) if colon else ("", "")


def read_length(field: bytes) -> int:
    """Return the value of a Content-Length field: decimal digits and nothing else.

    Raises:
        BadHead: for signs, lists, other digits than ASCII's, and more than 18 digits.
    """
    # bytes.isdigit knows ASCII digits only, and int() then finds nothing else to accept.
    if not field.isdigit() or len(field) > MAX_LENGTH_DIGITS:
        raise BadHead("Content-Length is not a plain number")
    return int(field)


def check_coding(field: bytes) -> None:
    """Accept the one transfer coding that is known, "chunked" in any case.

    Raises:
        BadHead: 400 for values that frame nothing for certain, 501 for codings we don't know.
    """
    if field.lower() == b"chunked":
        return
    codings = [coding.strip(b" \t").lower() for coding in field.split(b",", MAX_LIST_ELEMENTS)]
    names = [coding.partition(b";")[0].rstrip(b" \t") for coding in codings]
    if not all(map(_TOKEN.fullmatch, names)):
        raise BadHead("Transfer-Encoding is not a list of codings")
    if b"chunked" in names[:-1]:
        raise BadHead("Transfer-Encoding has chunked twice, or not as its last coding")
    if names[-1] == b"chunked" and codings[-1] != b"chunked":
        raise BadHead("Transfer-Encoding gives chunked a parameter")
    raise BadHead("Transfer-Encoding has a coding other than chunked", 501)


def list_tokens(field: bytes) -> list[bytes] | None:
    """Split a list of tokens, in lower case (RFC 9110 5.6.1).

    Returns:
        The tokens without empty elements, or None if an element is no token or there are more
        than `MAX_LIST_ELEMENTS`.
    """
    field = field.lower()
    if _TOKEN.fullmatch(field):
        return [field]
    if field.count(b",") >= MAX_LIST_ELEMENTS:
        return None
    tokens = [part.strip(b" \t") for part in field.split(b",")]
    tokens = [token for token in tokens if token]
    return tokens if all(map(_TOKEN.fullmatch, tokens)) else None


# What one hop tells the next and no further (RFC 9110 7.6.1, and Go's `net/http/httputil`).
# Trailer is not among them as long as the chunks and their trailers pass through unchanged.
HOP_BY_HOP = (
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "upgrade",
)


def named_cuts(raw: bytes, start: int, names: set[bytes], cuts: tuple[int, ...]) -> tuple[int, ...]:
    """Add the lines of the fields in `names` to `cuts`; for what Connection names, which is rare.

    Args:
        start: Index of the CRLF that ends the first line.
    """
    spans = {(cuts[i], cuts[i + 1]) for i in range(0, len(cuts), 2)}
    for match in _LINES.finditer(raw, start):
        if match[1].lower() in names:
            spans.add(match.span())
    return tuple(edge for span in sorted(spans) for edge in span)


_LINES = re.compile(rb"\r\n([^\r:]++):[^\r]*+")
