"""`unix_domain_socket`: a service that listens on a path.

Source: frp `pkg/plugin/client/unix_domain_socket.go`; unlike it in 0.65, a user whose service is
not there is not left hanging.
"""

from __future__ import annotations

from pyfrp.config.plugins import UnixDomainSocketPlugin
from pyfrp.errors import DialError
from pyfrp.net.dial import dial_unix
from pyfrp.plugins.base import Plugin, Visit


class UnixPlugin(Plugin):
    """Bridges to a unix socket."""

    options: UnixDomainSocketPlugin

    async def serve(self, visit: Visit) -> None:
        path = self.options.unix_path
        try:
            far, held = await dial_unix(path)
        except DialError as exc:
            visit.log.error(f"dial to uds {path} error: {exc}")
            visit.work.close()
            return
        if visit.header:
            far.write(visit.header)
        visit.join(far, held)
