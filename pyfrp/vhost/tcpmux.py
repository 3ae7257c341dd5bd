"""The tcpmux multiplexer of a server: users are routed by the host of their CONNECT.

Source: frp `pkg/util/tcpmux/httpconnect.go`, `pkg/util/vhost/vhost.go` (order of the answers).
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass
from typing import Any

from pyfrp.net.held import Held
from pyfrp.version import FRP_VERSION
from pyfrp.vhost.muxer import Muxer, UserSink
from pyfrp.vhost.pages import custom_page
from pyfrp.wire.httpconnect import OK, UNAUTHORIZED, Connect, ConnectReader

_PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head><title>Not Found</title></head>
<body><h1>Not Found</h1><p>No proxy serves this host.</p></body>
</html>
"""


@dataclass(frozen=True, slots=True)
class TcpmuxRoute:
    """A tcpmux proxy as the multiplexer sees it.

    Args:
        sink: Takes its users.
        user, password: Required credentials; without a user none are.
    """

    sink: UserSink
    user: str
    password: str

    def admits(self, asked: Connect) -> bool:
        if not self.user:
            return True
        wanted = f"{self.user}:{self.password}".encode("utf-8", "surrogatepass")
        return hmac.compare_digest(f"{asked.user}:{asked.password}".encode(), wanted)

    def __repr__(self) -> str:
        return "<TcpmuxRoute>"  # No secrets.


class TcpmuxMuxer(Muxer[Connect, TcpmuxRoute]):
    """Users by CONNECT.

    Args:
        passthrough: Leave the request to the service instead of answering it.
        not_found_page: File served as the 404 page; read each time, "" for the built-in page.
        log: A structlog logger.
    """

    kind = "tcpmux"

    def __init__(self, *, passthrough: bool, not_found_page: str, log: Any) -> None:
        super().__init__(log=log)
        self._passthrough = passthrough
        self._not_found_page = not_found_page

    def reader(self) -> ConnectReader:
        return ConnectReader()

    def admit(self, user: asyncio.Transport, held: Held, asked: Connect) -> None:
        route = self.router.find(asked.host, "", asked.user)
        if route is None:
            self.log_refusal(user, "no proxy serves this host", host=asked.host[:200])
            user.write(self._not_found())
            user.close()
            return
        # frp says 200 before it looks at the credentials; who reads on finds the 407 behind it.
        if not self._passthrough:
            user.write(OK)
            held.early = held.early[asked.size :]
        if not route.admits(asked):
            self.log_refusal(user, "wrong user or password", host=asked.host[:200])
            user.write(UNAUTHORIZED)
            user.close()
            return
        route.sink(user, held)

    def _not_found(self) -> bytes:
        page = custom_page(self._not_found_page, self._log)
        if page is None:
            page = _PAGE
        head = (
            f"HTTP/1.1 404 Not Found\r\nContent-Length: {len(page)}\r\n"
            f"Content-Type: text/html\r\nServer: frp/{FRP_VERSION}\r\n\r\n"
        )
        return head.encode() + page
