"""Proxies that give each user a work connection of his own."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

from pyfrp.errors import LinkError
from pyfrp.net.bridge import Bridge, join_user
from pyfrp.net.endpoint import Endpoint, format_address, local_address, peer_address, tune
from pyfrp.net.held import Held
from pyfrp.server.groups import Group, Open
from pyfrp.server.proxies.base import ServerProxy

Tried = tuple["BridgedProxy", ...]


def admit(group: Group[BridgedProxy], user: Endpoint, held: Held) -> None:
    """Bring a user, held so far, from a group's door to one of its members."""
    proxy = group.pick()
    if proxy is None:  # He came in the turn in which the door was closed.
        user.abort()
    else:
        proxy.take_user(user, held)


class BridgedProxy(ServerProxy):
    """Source: frp `server/proxy/proxy.go` (`handleUserTCPConnection`)."""

    bridge_type: ClassVar[type[Bridge]] = Bridge

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Users without a work connection yet, each with the members that could not serve him.
        self._waiting: dict[Endpoint, tuple[Held, Tried]] = {}
        self._group: Group[BridgedProxy] | None = None  # Of the door that others share with us.

    async def stand(
        self,
        open_door: Open[BridgedProxy],
        terms: Hashable,
        *,
        mismatch: str = "group params invalid",
    ) -> int:
        """Take the users of a door: see `enter`.

        Returns:
            The door's port, if it is one.
        """
        entrance = await self.enter(self, open_door, terms, mismatch=mismatch)
        if self.wanted.group:
            self._group = entrance.group
        return entrance.door.port

    def close(self, *, lost: bool = False) -> None:
        self.leave()
        waiting, self._waiting = self._waiting, {}
        for user, (held, tried) in waiting.items():
            if self._pass_on(user, held, tried):
                continue
            if lost:
                user.abort()  # Nobody brings him a work connection any more.
            else:
                self._waiting[user] = (held, tried)

    def take_user(self, user: Endpoint, held: Held, tried: Tried = ()) -> None:
        """Serve a user who was held so far.

        Args:
            tried: Members of our group that could not.
        """
        self._waiting[user] = (held, tried)
        self.scope.spawn(self._serve(user, held, tried), name=f"user of {self.name}")

    def _pass_on(self, user: Endpoint, held: Held, tried: Tried) -> bool:
        """Let another member of the group serve a user, of whom nothing was forwarded yet."""
        if self._group is None or user.is_closing():
            return False
        tried = (*tried, self)
        other = self._group.pick(tried)
        if other is None:
            return False
        other.take_user(user, held, tried)
        return True

    async def _serve(self, user: Endpoint, held: Held, tried: Tried) -> None:
        address = peer_address(user)
        self.log.debug(f"get a user connection [{format_address(address)}]")
        try:
            tune(user)
            work, early = await self.open_work(address, local_address(user))
        except LinkError as exc:
            if self._waiting.pop(user, None) is None:
                return  # Somebody else has him.
            self.log.warning(str(exc), user=format_address(address))
            if self._group is not None:
                self._group.doubt(self)
            if not self._pass_on(user, held, tried):
                user.abort()
            return
        except BaseException:
            if self._waiting.pop(user, None) is not None:
                user.abort()
            raise
        if self._waiting.pop(user, None) is None:
            work.abort()
            return
        join_user(user, held, work, early, self.server, self.bridge_type)
