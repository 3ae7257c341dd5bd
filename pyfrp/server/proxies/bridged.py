"""Proxies that give each user a work connection of his own."""

from __future__ import annotations

from typing import Any, ClassVar

from pyfrp.errors import LinkError
from pyfrp.net.bridge import Bridge
from pyfrp.net.endpoint import Endpoint, format_address, local_address, peer_address, tune
from pyfrp.net.held import Held
from pyfrp.server.proxies.base import ServerProxy


class BridgedProxy(ServerProxy):
    """Source: frp `server/proxy/proxy.go` (`handleUserTCPConnection`)."""

    bridge_type: ClassVar[type[Bridge]] = Bridge

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._waiting: set[Endpoint] = set()  # Users without a work connection yet.

    def take_user(self, user: Endpoint, held: Held) -> None:
        """Serve a user who was held so far."""
        self._waiting.add(user)
        self.scope.spawn(self._serve(user, held), name=f"user of {self.name}")

    def drop_waiting(self) -> None:
        """The client is gone: nobody waits for it any longer."""
        for user in self._waiting:
            user.abort()
        self._waiting.clear()

    async def _serve(self, user: Endpoint, held: Held) -> None:
        address = peer_address(user)
        self.log.debug(f"get a user connection [{format_address(address)}]")
        try:
            tune(user)
            work, early = await self.open_work(address, local_address(user))
        except LinkError as exc:
            self.log.warning(str(exc), user=format_address(address))
            user.abort()
            return
        except BaseException:
            user.abort()
            raise
        finally:
            self._waiting.discard(user)
        if user.is_closing():
            work.abort()
            return
        if not held.ended:
            user.pause_reading()
        bridge = self.bridge_type(
            user,
            work,
            early=held.early,
            far_early=early,
            near_ended=held.ended,
            on_close=self.server.bridge_closed,
        )
        self.server.bridges[bridge] = None
