"""Proxies of type xtcp: the server only makes the two sides meet."""

from __future__ import annotations

from pyfrp.errors import LinkError
from pyfrp.server.proxies.base import ServerProxy
from pyfrp.wire.messages import NatHoleSid


class XTCPProxy(ServerProxy):
    """Source: frp `server/proxy/xtcp.go`."""

    async def start(self) -> str:
        self.server.meetings.listen(
            self.name,
            secret_key=self.wanted.sk,
            allow_users=self.wanted.allow_users or [self.user],
            invite=self._invite,
        )
        self.log.info("xtcp proxy waits for visitors")
        return ""

    def close(self, *, lost: bool = False) -> None:
        self.server.meetings.unlisten(self.name)

    def _invite(self, sid: str) -> None:
        self.scope.spawn(self._call(sid), name=f"meeting of {self.name}")

    async def _call(self, sid: str) -> None:
        """Send the client the id of a meeting, for which a work connection is used up."""
        try:
            work = await self.start_work(("", 0))
        except LinkError as exc:
            self.log.warning(str(exc))
            return
        # In the clear, whatever layers the proxy has: those are between the two clients.
        work.write(self._pool.version.encode(NatHoleSid(sid=sid)))
        work.close()
