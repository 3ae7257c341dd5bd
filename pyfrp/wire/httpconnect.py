"""The CONNECT request that opens a connection through the tcpmux multiplexer.

Source: frp `pkg/util/tcpmux/httpconnect.go`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyfrp.errors import BadHead
from pyfrp.wire.http_grammar import read_basic
from pyfrp.wire.http_request import next_request_head

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
UNAUTHORIZED = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
    b'Proxy-Authenticate: Basic realm="Restricted"\r\nContent-Length: 0\r\n\r\n'
)

_METHOD = b"CONNECT "
_CREDENTIALS = re.compile(rb"\r\n(?i:proxy-authorization):[ \t]*([^\r]*)")


@dataclass(frozen=True, slots=True)
class Connect:
    """What a CONNECT asks for.

    Attributes:
        host: Lower case, without port.
        user, password: From Proxy-Authorization; "" without.
        size: Bytes of the request; what follows is payload.
    """

    host: str
    user: str
    password: str
    size: int

    def __repr__(self) -> str:
        return f"<Connect {self.host!r}>"  # No secrets.


class ConnectReader:
    """Finds the request in the first bytes of a connection.

    Attributes:
        raw: Everything that was fed.
    """

    __slots__ = ("_seen", "raw")

    def __init__(self) -> None:
        self.raw = bytearray()
        self._seen = 0

    def feed(self, data: bytes) -> Connect | None:
        """Add bytes; not to be called again once it gave a request.

        Raises:
            BadHead: for anything but a CONNECT request within the limits of heads.
        """
        raw = self.raw
        raw += data
        if not raw.startswith(_METHOD[: len(raw)]):
            raise BadHead("connections to tcp vhost must be of method CONNECT")
        head = next_request_head(bytes(raw), None, self._seen, by_target=True)
        if head is None:
            self._seen = len(raw)
            return None
        # Not those of Authorization, which are for the service behind.
        found = _CREDENTIALS.search(head.raw)
        user, password = read_basic(found[1].rstrip(b" \t")) if found else ("", "")
        return Connect(head.host, user, password, len(head.raw))
