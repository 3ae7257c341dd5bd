"""HTTP/1.1 without I/O, for the virtual hosts: heads, bodies and the proxy's own answers.

This is the door to the modules `http_grammar`, `http_request`, `http_response`,
`http_rewrite`, `http_body` and `http_answer`; everything above the wire imports from here.

How an exchange uses it: `next_request_head` until it gives a head; `rewrite_request_head` towards
the next hop; count `head.length` bytes of body, or walk it with `ChunkedBody`; then
`next_response_head` (again after each 1xx), `rewrite_response_head`, and the body as before. On
`BadHead` answer with `error_response(exc.status, str(exc), ...)` and close.
"""

from __future__ import annotations

from pyfrp.errors import BadHead
from pyfrp.wire.http_answer import error_response, http_date
from pyfrp.wire.http_body import (
    LAST_CHUNK,
    MAX_CHUNK_LINE_BYTES,
    MAX_EXTENSION_BYTES,
    MAX_TRAILER_BYTES,
    ChunkedBody,
    ChunkedDecoder,
    encode_chunk,
)
from pyfrp.wire.http_grammar import (
    CHUNKED,
    MAX_HEAD_BYTES,
    MAX_HEADER_COUNT,
    MAX_TARGET_BYTES,
    UNTIL_CLOSE,
    check_partial_head,
    find_head_end,
)
from pyfrp.wire.http_request import (
    RequestHead,
    next_request_head,
    parse_request_head,
    skip_empty_line,
)
from pyfrp.wire.http_response import (
    ResponseHead,
    next_response_head,
    parse_response_head,
)
from pyfrp.wire.http_rewrite import (
    Forwarding,
    HeadEdit,
    rewrite_request_head,
    rewrite_response_head,
)

__all__ = [
    "CHUNKED",
    "LAST_CHUNK",
    "MAX_CHUNK_LINE_BYTES",
    "MAX_EXTENSION_BYTES",
    "MAX_HEADER_COUNT",
    "MAX_HEAD_BYTES",
    "MAX_TARGET_BYTES",
    "MAX_TRAILER_BYTES",
    "UNTIL_CLOSE",
    "BadHead",
    "ChunkedBody",
    "ChunkedDecoder",
    "Forwarding",
    "HeadEdit",
    "RequestHead",
    "ResponseHead",
    "check_partial_head",
    "encode_chunk",
    "error_response",
    "find_head_end",
    "http_date",
    "next_request_head",
    "next_response_head",
    "parse_request_head",
    "parse_response_head",
    "rewrite_request_head",
    "rewrite_response_head",
    "skip_empty_line",
]
