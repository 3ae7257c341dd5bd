"""The client's side of CONNECT: the request to an HTTP proxy, and its answer.

An answer is read leniently, with limits: it comes from whatever box a company has bought, and
nobody else will read it after us.

Source: RFC 9110, 9.3.6; for the request, golib `net/dial_option.go`, `httpProxyAfterHook`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyfrp.errors import RemoteWireError
from pyfrp.wire.httpauth import Challenge, read_challenges

# A whole answer with its blank line. Those with a Kerberos ticket take about 16 KiB.
MAX_HEAD_BYTES = 65536
MAX_FIELDS = 128
# Interim answers (1xx) before the one that counts; there is no reason for any.
MAX_INTERIM = 8
CHUNKED = -1
UNTIL_CLOSE = -2
USER_AGENT = "Mozilla/5.0"

_START = b"HTTP/"
_STATUS = re.compile(rb"HTTP/1\.([0-9]) +([1-9][0-9]{2})(?: +([^\r\n]*))?")
_END = re.compile(rb"\r?\n\r?\n")
# Control bytes; a CR is one but before its LF.
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*:[ \t]*(.*?)[ \t]*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a proxy said to a CONNECT.

    Attributes:
        status: 200 to 999.
        reason: Its words, printable ASCII, cut; "" without.
        challenges: What it asks for (407).
        length: Bytes of the body, `CHUNKED` or `UNTIL_CLOSE`; of a 2xx as the head has it,
            though the tunnel begins after the head.
        keep_alive: Whether the connection can carry another request after the body.
        content_type: In lower case, without parameters.
        location: Where it sends us; "" without.
    """

    status: int
    reason: str
    challenges: list[Challenge]
    length: int
    keep_alive: bool
    content_type: str
    location: str


def authority(host: str, port: int) -> str:
    """`host:port` as CONNECT and Host have it, with brackets around an IPv6 address.

    Raises:
        ValueError: for a host that would not be one word in a head.
    """
    if not host.isascii():
        host = host.encode("idna").decode()  # UnicodeError is a ValueError.
    if not host or not all("!" <= letter <= "~" for letter in host):
        raise ValueError("it cannot be part of a request")
    # The zone of an address means something on this machine alone.
    return f"[{host.partition('%')[0]}]:{port}" if ":" in host else f"{host}:{port}"


def connect_request(target: str, authorization: str = "", *, keep: bool = False) -> bytes:
    """A CONNECT request.

    Args:
        target: What `authority` gave.
        authorization: The value of Proxy-Authorization; "" for none.
        keep: Say that more requests follow on this connection, for proxies that count from
            HTTP/1.0.
    """
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"User-Agent: {USER_AGENT}"]
    if authorization:
        lines.append(f"Proxy-Authorization: {authorization}")
    if keep:
        lines.append("Proxy-Connection: Keep-Alive")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


class AnswerReader:
    """Finds the answer in what a proxy sends.

    Attributes:
        data: What was fed and not read; after the answer, what follows its head.
    """

    __slots__ = ("_interim", "_seen", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        self._seen = 0
        self._interim = 0

    def feed(self, data: bytes) -> Answer | None:
        """Add bytes; not to be called again once it gave an answer.

        Raises:
            RemoteWireError: for what is not HTTP, or is over a limit.
        """
        self.data += data
        while True:
            if not self.data.startswith(_START[: len(self.data)]):
                raise RemoteWireError("it is not HTTP")
            end = _END.search(self.data, max(0, self._seen - 3))
            if (end.end() if end is not None else len(self.data)) > MAX_HEAD_BYTES:
                raise RemoteWireError(f"its head is longer than {MAX_HEAD_BYTES} bytes")
            if end is None:
                self._seen = len(self.data)
                return None
            head = bytes(self.data[: end.start()])
            del self.data[: end.end()]
            self._seen = 0
            answer = _read(head)
            if answer.status >= 200:
                return answer
            self._interim += 1
            if answer.status == 101 or self._interim > MAX_INTERIM:
                raise RemoteWireError("it has no final status")


def _read(head: bytes) -> Answer:
    if _FORBIDDEN.search(head):
        raise RemoteWireError("its head has a control byte")
    first, *lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    status = _STATUS.fullmatch(first)
    if status is None:
        raise RemoteWireError("its first line is not that of an HTTP/1 answer")
    if len(lines) > MAX_FIELDS:
        raise RemoteWireError(f"its head has more than {MAX_FIELDS} fields")
    fields: dict[str, list[str]] = {}
    last: list[str] | None = None
    for line in lines:
        if line[:1] in (b" ", b"\t") and last is not None:
            last[-1] += " " + _text(line.strip())  # A folded line.
            continue
        match = _FIELD.fullmatch(line)
        if match is None:
            raise RemoteWireError("a line of its head is not a field")
        last = fields.setdefault(match[1].decode().lower(), [])
        last.append(_text(match[2]))

    def words(name: str) -> list[str]:
        return [word.strip().lower() for word in ",".join(fields.get(name, [])).split(",")]

    options = [*words("connection"), *words("proxy-connection")]
    length = _length(fields, chunked="chunked" in words("transfer-encoding"))
    kept = "close" not in options and (status[1] != b"0" or "keep-alive" in options)
    return Answer(
        status=int(status[2]),
        reason=printable(_text(status[3] or b""), 80),
        challenges=read_challenges(fields.get("proxy-authenticate", [])),
        length=length,
        keep_alive=kept and length != UNTIL_CLOSE,
        content_type=fields.get("content-type", [""])[0].partition(";")[0].strip().lower(),
        location=fields.get("location", [""])[0],
    )


def _text(octets: bytes) -> str:
    """A field's value; what is not UTF-8 goes back as it came (`connect_request`)."""
    return octets.decode("utf-8", "surrogateescape")


def _length(fields: dict[str, list[str]], *, chunked: bool) -> int:
    if chunked:
        return CHUNKED
    given = set(fields.get("content-length", []))
    if len(given) == 1:
        digits = given.pop()
        if digits.isascii() and digits.isdigit() and len(digits) <= 18:
            return int(digits)
    return UNTIL_CLOSE


def printable(text: str, limit: int) -> str:
    """What of a stranger's text may stand in a log: printable ASCII, cut."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:limit]).strip()
