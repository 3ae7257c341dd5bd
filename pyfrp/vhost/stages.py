"""How far a request and its answer have come, and what each stage may take."""

from __future__ import annotations

from typing import Final

HEAD_S = 60.0  # To finish a head, and idle between requests; as frp's ReadHeaderTimeout.
# A caller who stalls in the middle of an upload, with not a byte for this long (or up to twice as
# long), holds a work connection in vain. nginx gives 60 s (client_body_timeout), frp never ends it.
# Once the answer has begun both sides may take their time: that is a conversation.
BODY_S = 300.0
LINGER_S = 5.0  # A caller that is refused mid-upload may still send this long, unread.
# Pipelined requests, or a body that waits for its work connection, before reading stops.
READ_AHEAD = 64 * 1024


class Asking:
    """How far the request has come. No Enum, for its cost: see `pyfrp.wire.yamux.Half`."""

    HEAD: Final = 0
    BODY: Final = 1
    DONE: Final = 2


class Answering:
    """How far the answer has come."""

    NONE: Final = 0  # No request, or no work connection for it yet.
    HEAD: Final = 1  # The request is with the upstream.
    BODY: Final = 2
    OVER: Final = 3  # The last answer is out and the connection closes.
