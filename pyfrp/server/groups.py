"""Load-balancing groups: several proxies behind one door.

A door is what users come through: a port, or a route of a vhost. The first member of a group opens
its door, the last one closes it, and whoever comes meanwhile is given to one of them.

Source: frp `server/group/` (rules, texts, the order of http's round robin); frp shares out the
users of the other types among members that wait for one, which comes to nearly the same.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pyfrp.errors import RefusedError
from pyfrp.wire.messages import NewProxy

# A member that failed a user is passed over for so long, as long as there are others: one that is
# silent would cost each of its users the whole wait for a work connection.
DOUBT_S = 10.0

Member = TypeVar("Member", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Door:
    """What is open for the users of a group.

    Args:
        close: Lets nobody in any more; called once.
        port: Of a door that is a port.
    """

    close: Callable[[], None]
    port: int = 0


Open = Callable[["Group[Member]"], Awaitable[Door]]
"""Opens a door whose users are brought to members that the group picks. Raises RefusedError."""


class Group(Generic[Member]):
    """Members in the order of their joining, who take turns.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.members: list[Member] = []
        self._clock = clock
        self._turn = 0
        self._doubted: dict[Member, float] = {}  # Until when.

    def pick(self, tried: Collection[Member] = ()) -> Member | None:
        """The member whose turn it is, or None.

        Args:
            tried: Members that have failed this user already.
        """
        members = self.members
        if not members:
            return None
        self._turn += 1  # frp counts before it looks: the second member has the first turn.
        at = self._turn % len(members)
        if not tried and not self._doubted:
            return members[at]
        spare: Member | None = None
        for member in members[at:] + members[:at]:
            if member in tried:
                continue
            if not self._is_doubted(member):
                return member
            if spare is None:
                spare = member
        return spare

    def doubt(self, member: Member) -> bool:
        """A member failed a user: others have precedence for a while.

        Returns:
            Whether that is new.
        """
        if member not in self.members:
            return False
        new = not self._is_doubted(member)
        self._doubted[member] = self._clock() + DOUBT_S
        return new

    def _is_doubted(self, member: Member) -> bool:
        until = self._doubted.get(member)
        if until is None:
            return False
        if until > self._clock():
            return True
        del self._doubted[member]
        return False

    def remove(self, member: Member) -> None:
        """Take a member out."""
        self.members.remove(member)
        self._doubted.pop(member, None)


class _Entry:
    """A group with what it takes to join."""

    __slots__ = ("door", "group", "group_key", "terms")

    def __init__(self, group: Group[Any], door: Door, terms: Hashable, group_key: str) -> None:
        self.group = group
        self.door = door
        self.terms = terms
        self.group_key = group_key


class Groups:
    """The groups of a server; each type of proxies has names of its own.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._named: dict[tuple[str, str], _Entry] = {}
        # Opening a port takes turns of the loop, in which a second member must not open one too.
        self._opening = asyncio.Lock()

    def __len__(self) -> int:
        """Groups that have a name."""
        return len(self._named)

    async def join(
        self,
        wanted: NewProxy,
        member: Member,
        open_door: Open[Member],
        terms: Hashable,
        *,
        mismatch: str = "group params invalid",
    ) -> Entrance[Member]:
        """Put `member` behind a door: its group's, or one of its own if it asks for no group.

        Args:
            wanted: The request of its proxy.
            open_door: Called for the first member.
            terms: What must be equal within a group, apart from its key.
            mismatch: frp's text for terms that are not.

        Raises:
            RefusedError: from `open_door`, or with frp's text.
        """
        if not wanted.group:
            group: Group[Member] = Group(self._clock)
            door = await open_door(group)
            group.members.append(member)
            return Entrance(group, member, door, door.close)
        name = (wanted.proxy_type, wanted.group)
        async with self._opening:
            entry = self._named.get(name)
            if entry is None:
                group = Group(self._clock)
                door = await open_door(group)
                entry = self._named[name] = _Entry(group, door, terms, wanted.group_key)
            elif entry.terms != terms:
                raise RefusedError(mismatch)
            elif not _equal(entry.group_key, wanted.group_key):
                raise RefusedError("group auth failed")
            elif member in entry.group.members:
                raise RefusedError("group proxy repeated")
            entry.group.members.append(member)
        return Entrance(entry.group, member, entry.door, lambda: self._close(name))

    def _close(self, name: tuple[str, str]) -> None:
        self._named.pop(name).door.close()


class Entrance(Generic[Member]):
    """The place of one member behind a door.

    Attributes:
        group: Those who share the door.
        door: As it was opened.
    """

    def __init__(
        self, group: Group[Member], member: Member, door: Door, close: Callable[[], None]
    ) -> None:
        self.group = group
        self.door = door
        self._member = member
        self._close = close

    def leave(self) -> None:
        """Get no more users; the last member closes the door. Call it once."""
        self.group.remove(self._member)
        if not self.group.members:
            self._close()


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(
        one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass")
    )
