"""Chunked bodies: walking their framing, and taking it off (RFC 9112 7.1).

The proxy passes chunks on as they come; the walker only tells where a body ends. Because parts
are passed on before the whole is seen, each part must be beyond doubt by itself: an unfinished
size or trailer line is checked as far as it goes.
"""

from __future__ import annotations

import re

from pyfrp.errors import BadHead
from pyfrp.wire.http_grammar import FIELD_LINE, TOKEN_CHAR

# A size line with its extensions. Known extensions are signatures of about 100 bytes.
MAX_CHUNK_LINE_BYTES = 256
# By how much the extensions of a body may outgrow its payload: they cost us and the next hop, and
# carry nothing. A stream that signs each chunk is fine, however long it lasts.
MAX_EXTENSION_BYTES = 16384
# The whole trailer section. Digests, timings and gRPC states need a few hundred bytes.
MAX_TRAILER_BYTES = 8192
# 15 digits stay below 2**60, so no next hop can overflow; leading zeros count.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15}+)(;[\t -~\x80-\xff]*+)?")
_SIZE_PREFIX = re.compile(rb"[0-9A-Fa-f]{0,15}+(?:(?<=[0-9A-Fa-f])(?:;[\t -~\x80-\xff]*+)?\r?)?")
_TRAILER_PREFIX = re.compile(rb"(?:[" + TOKEN_CHAR + rb"]++(?::[\t -~\x80-\xff]*+)?)?\r?")
# What a trailer must not say (RFC 9110 6.5.1), because a next hop may merge trailers into the
# head: framing, routing, credentials, and what this proxy itself has set.
_NOT_IN_TRAILERS = frozenset(
    (
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    )
)

# Token streams have the same few sizes over and over: finding a line here takes a third of the
# time that reading it takes. Only lines that were read are in it.
_MAX_KNOWN_SIZES = 4096
_known_sizes: dict[bytes, int] = {}

LAST_CHUNK = b"0\r\n\r\n"

# Where in the framing the next byte falls.
_IN_SIZE, _IN_DATA, _IN_DATA_END, _IN_TRAILER, _DONE = range(5)


class _Chunks:
    """One chunked body, fed in parts.

    Args:
        status: Of the `BadHead` that it raises: 400 for a request's body, 502 for a response's.

    Attributes:
        done: True once the body and its trailers ended.
        trailers: The trailer fields, names in lower case; complete once `done`.
    """

    __slots__ = (
        "_extensions",
        "_line",
        "_rest",
        "_state",
        "_status",
        "_trailer_bytes",
        "done",
        "trailers",
    )

    def __init__(self, status: int = 400) -> None:
        self.done = False
        self.trailers: list[tuple[bytes, bytes]] = []
        self._state = _IN_SIZE
        self._rest = 0  # Bytes of the current chunk still to come, or of the CRLF after it.
        self._line = b""  # An unfinished size or trailer line.
        self._extensions = 0
        self._trailer_bytes = 0
        self._status = status

    def _walk(self, data: bytes, parts: list[bytes] | None) -> int:
        """Return how much of `data` is this body; put its payload in `parts`, if given."""
        state = self._state
        size = len(data)
        at = 0
        while at < size:
            if state == _IN_SIZE:
                end = data.find(b"\r\n", at, at + 17)
                rest = -1
                if end >= 0 and not self._line:
                    rest = _known_sizes.get(data[at:end], -1)
                if rest >= 0:
                    at = end + 2
                else:
                    end = self._take_line(data, at, _SIZE_PREFIX, MAX_CHUNK_LINE_BYTES)
                    if end < 0:
                        at = size
                        break
                    at = end
                    rest = self._read_size()
                if not rest:
                    state = _IN_TRAILER
                    continue
                # The common chunk: whole, with its CRLF. No change of state is needed.
                end = at + rest
                if end + 2 <= size:
                    if data[end : end + 2] != b"\r\n":
                        raise self._bad("a chunk that does not end with CRLF")
                    if parts is not None:
                        parts.append(data[at:end])
                    at = end + 2
                    continue
                self._rest = rest
                state = _IN_DATA
            elif state == _IN_DATA:
                end = at + self._rest
                if parts is not None:
                    parts.append(data[at:end])
                if end > size:
                    self._rest = end - size
                    at = size
                else:
                    at = end
                    self._rest = 2
                    state = _IN_DATA_END
            elif state == _IN_DATA_END:
                if data[at] != (13 if self._rest == 2 else 10):
                    raise self._bad("a chunk that does not end with CRLF")
                at += 1
                self._rest -= 1
                if not self._rest:
                    state = _IN_SIZE
            elif state == _IN_TRAILER:
                limit = MAX_TRAILER_BYTES - self._trailer_bytes
                end = self._take_line(data, at, _TRAILER_PREFIX, limit)
                if end < 0:
                    at = size
                    break
                at = end
                if self._read_trailer():
                    state = _DONE
                    self.done = True
                    break
            else:
                break
        self._state = state
        return at

    def _take_line(self, data: bytes, at: int, prefix: re.Pattern[bytes], limit: int) -> int:
        """Move a line into `self._line`; return the index past its CRLF, or -1 if it goes on."""
        held = self._line
        line = held + data[at : at + limit + 2]
        end = line.find(b"\r\n")
        length = end if end >= 0 else len(line) - line.endswith(b"\r")
        if length > limit:
            raise self._bad("a chunk size or trailer section that is too long")
        if end >= 0:
            self._line = line[:end]
            return at + end + 2 - len(held)
        # What is passed on unfinished must not end a line for a reader that takes a bare LF.
        if prefix.fullmatch(line) is None:
            raise self._bad("a malformed chunk size or trailer line")
        self._line = line
        return -1

    def _read_size(self) -> int:
        """Return the size in the finished line `self._line`, and forget the line."""
        line = self._line
        match = _SIZE.fullmatch(line)
        if match is None:
            raise self._bad("a malformed chunk size")
        self._line = b""
        size = int(match[1], 16)
        if match[2] is None:
            if len(_known_sizes) >= _MAX_KNOWN_SIZES:
                _known_sizes.clear()
            _known_sizes[line] = size
        else:
            self._extensions = max(0, self._extensions + len(match[2]) - size)
            if self._extensions > MAX_EXTENSION_BYTES:
                raise self._bad("too many chunk extensions")
        return size

    def _read_trailer(self) -> bool:
        """Take the finished line `self._line`; return True if it is the empty one at the end."""
        line = self._line
        if not line:
            return True
        self._line = b""
        self._trailer_bytes += len(line) + 2
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise self._bad("a malformed trailer line")
        name = match[1].lower()
        if name in _NOT_IN_TRAILERS:
            raise self._bad("a trailer field that only a head may have")
        self.trailers.append((name, match[2].strip(b" \t")))
        return False

    def _bad(self, reason: str) -> BadHead:
        return BadHead(reason, self._status)


class ChunkedBody(_Chunks):
    """Walks a chunked body without changing it."""

    __slots__ = ()

    def feed(self, data: bytes) -> int:
        """Walk over `data`.

        Returns:
            How many of its bytes belong to this body: all of them unless it is `done`.

        Raises:
            BadHead: for anything but sizes, data, CRLFs and harmless trailers. Nothing of `data`
                may be passed on then, and the connection cannot be used any more.
        """
        return self._walk(data, None)


class ChunkedDecoder(_Chunks):
    """Takes the framing off a chunked body, for HTTP/1.0 callers and HTTP/2."""

    __slots__ = ()

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Return the payload in `data`, and how many of its bytes belong to this body.

        Raises:
            BadHead: as `ChunkedBody.feed`.
        """
        parts: list[bytes] = []
        used = self._walk(data, parts)
        return (parts[0] if len(parts) == 1 else b"".join(parts)), used


def encode_chunk(data: bytes) -> bytes:
    """Frame a payload as one chunk; it must not be empty, for that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
