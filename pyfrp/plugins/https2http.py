"""`https2http` and `https2https`: a reverse proxy that ends the caller's TLS."""

from __future__ import annotations

from typing import Any, ClassVar

from pyfrp.errors import HandshakeError
from pyfrp.plugins.base import Visit
from pyfrp.plugins.reverse import ReversePlugin
from pyfrp.plugins.tls_front import TlsFront
from pyfrp.wire.http1 import Forwarding

# What Go's server says to plain HTTP on a port for TLS (`net/http/server.go`).
_NOT_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


class HTTPSPlugin(ReversePlugin):
    """Takes HTTPS, over HTTP/2 as well if the caller asks for that."""

    forwarding: ClassVar[Forwarding] = Forwarding.HTTPS

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        offered = ["h2", "http/1.1"] if options.enable_http2 else ["http/1.1"]
        self._tls = TlsFront(options, offered)

    def warnings(self) -> list[str]:
        return [*self._tls.warnings(), *super().warnings()]

    async def serve(self, visit: Visit) -> None:
        try:
            opened = await self._tls.open(visit, not_tls=_NOT_TLS)
        except HandshakeError as exc:
            if self.log_limit.allows():
                visit.log.warning(f"tls handshake error: {exc}")
            return
        await self.attend(
            visit, opened.endpoint, b"", name=opened.name, http2=opened.protocol == "h2"
        )


class HTTPS2HTTPPlugin(HTTPSPlugin):
    """Speaks HTTP with a local address."""

    speaks_tls: ClassVar[bool] = False


class HTTPS2HTTPSPlugin(HTTPSPlugin):
    """Speaks HTTPS with a local address."""

    speaks_tls: ClassVar[bool] = True
