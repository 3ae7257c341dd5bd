"""`tls2raw`: the user's TLS ends here, and the bytes within go to a local address.

Source: frp `pkg/plugin/client/tls2raw.go`.
"""

from __future__ import annotations

from pyfrp.config.plugins import TLS2RawPlugin as Options
from pyfrp.errors import HandshakeError, LinkError
from pyfrp.plugins.base import LogLimit, Plugin, Visit
from pyfrp.plugins.local import LocalService
from pyfrp.plugins.tls_front import TlsFront


class TLS2RawPlugin(Plugin):
    """Bridges what is within TLS."""

    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._local = LocalService(options.local_addr)
        self._front = TlsFront(options)
        self._log_limit = LogLimit()

    def warnings(self) -> list[str]:
        return self._front.warnings()

    async def serve(self, visit: Visit) -> None:
        try:
            opened = await self._front.open(visit)
        except HandshakeError as exc:
            if self._log_limit.allows():
                visit.log.warning(f"tls handshake error: {exc}")
            return
        try:
            far, held = await self._local.dial()
        except LinkError as exc:
            if self._log_limit.allows():
                visit.log.warning(f"dial to local addr error: {exc}")
            opened.endpoint.close()
            return
        except BaseException:
            opened.endpoint.abort()
            raise
        if visit.header:
            far.write(visit.header)  # As frp does since 0.70.
        visit.join(far, held, work=opened.endpoint)
