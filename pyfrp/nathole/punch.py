"""Punching: both sides knock until one hears the other.

The receiver's first datagrams open its own NAT for the sender's address; with a small number of
hops they do not reach the sender's NAT, which might take offence at strangers. The sender knocks a
moment later, the receiver answers, and both know the way.

Source: frp `pkg/nathole/nathole.go` (`MakeHole`, `waitDetectMessage`). Differing from it, a sender
knocks more than once, and a receiver that is through answers late knocks too: datagrams get lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator

from pyfrp.errors import LinkError, RemoteWireError
from pyfrp.nathole.analysis import SENDER
from pyfrp.nathole.hole import Address, Hole, LateKnocks, Outlet
from pyfrp.nathole.nat import hosts_of, split_address
from pyfrp.nathole.sid import seal_knock, seal_reply, unseal_sid
from pyfrp.net.scope import Scope
from pyfrp.wire.messages import NatHoleResp

DEFAULT_WAIT_S = 5.0
# Between datagrams, so that routers with little room take them all.
GUESS_GAP_S = 0.002
SPRAY_GAP_S = 0.015
SPRAY_PORTS = range(1024, 65535)
KNOCK_AGAIN_S = (0.3, 0.7, 1.5)
# What a server may make us do; its own numbers are no higher.
MAX_DELAY_S, MAX_WAIT_S = 30.0, 60.0
MAX_TARGETS, MAX_GUESSES = 64, 256
MAX_SPRAY, MAX_OUTLETS = 1000, 256


async def punch(
    outlet: Outlet,
    answer: NatHoleResp,
    key: bytes,
    transaction_id: str,
    report: Callable[[BaseException, str], None],
) -> Hole:
    """Make a way to the peer.

    Args:
        outlet: The socket whose outer addresses the peer was told. It is closed unless it is the
            one that got through.
        answer: What the server said.
        key: Of the proxy's secret key.

    Raises:
        LinkError: when there is no way; everything is closed.
    """
    puncher = _Puncher(outlet, answer, key, transaction_id)
    scope = Scope(report)
    scope.spawn(puncher.work(), name="punching")
    hole: Hole | None = None
    try:
        hole = await puncher.through
        return hole
    finally:
        await scope.close()
        puncher.close(keep=hole.outlet if hole is not None else None)


class _Puncher:
    """One attempt."""

    def __init__(
        self, outlet: Outlet, answer: NatHoleResp, key: bytes, transaction_id: str
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer = answer
        self._behavior = answer.detect_behavior
        self._sends = self._behavior.role == SENDER
        self._key = key
        self._transaction_id = transaction_id
        self._outlets = [outlet]
        self._timer: asyncio.TimerHandle | None = None
        self.through: asyncio.Future[Hole] = self._loop.create_future()
        self._watch(outlet)

    # -- sending -------------------------------------------------------------------------------

    async def work(self) -> None:
        """Send all there is to send, and then wait no longer than allowed."""
        behavior = self._behavior
        if self._sends:
            await asyncio.sleep(min(behavior.send_delay_ms / 1000, MAX_DELAY_S))
        else:
            await self._open_more()
        targets = self._targets()
        for target in targets:
            self._knock(target)
        for target in self._guesses():
            for outlet in list(self._outlets):
                self._knock(target, outlet)
                await asyncio.sleep(GUESS_GAP_S)
        wait_s = min(behavior.read_timeout_ms / 1000, MAX_WAIT_S) or DEFAULT_WAIT_S
        self._timer = self._loop.call_later(wait_s, self._give_up)
        if behavior.send_random_ports > 0:
            await self._spray()
        elif self._sends:
            for wait_s in KNOCK_AGAIN_S:
                await asyncio.sleep(wait_s)
                for target in targets:
                    self._knock(target)

    async def _open_more(self) -> None:
        for _ in range(min(self._behavior.listen_random_ports, MAX_OUTLETS)):
            try:
                outlet = await Outlet.open()
            except OSError:
                return  # No more descriptors; those that there are may do.
            self._watch(outlet)
            self._outlets.append(outlet)

    def _targets(self) -> list[Address]:
        """Where the peer was seen."""
        answer = self._answer
        if self._sends:
            known = [*answer.assisted_addrs, *answer.candidate_addrs]
        else:
            known = [] if self._behavior.candidate_ports else answer.candidate_addrs
        targets: dict[Address, None] = {}
        for text in known:
            try:
                address = split_address(text)
            except ValueError:
                continue  # A peer may claim anything.
            if _can_be_sent_to(address):
                targets[address] = None
        return list(targets)[:MAX_TARGETS]

    def _guesses(self) -> Iterator[Address]:
        """Where the peer may be seen next."""
        count = 0
        for host in hosts_of(self._answer.candidate_addrs):
            for ports in self._behavior.candidate_ports:
                for port in range(max(ports.first, 1), min(ports.last, 65535) + 1):
                    count += 1
                    if count > MAX_GUESSES:
                        return
                    if _can_be_sent_to((host, port)):
                        yield host, port

    async def _spray(self) -> None:
        """Try random ports: one of the peer's many sockets may be behind one of them."""
        count = min(self._behavior.send_random_ports, MAX_SPRAY)
        hosts = [host for host in hosts_of(self._answer.candidate_addrs) if ":" not in host]
        for port in random.sample(SPRAY_PORTS, count):
            for host in hosts:
                self._knock((host, port))
                await asyncio.sleep(SPRAY_GAP_S)

    def _knock(self, target: Address, outlet: Outlet | None = None) -> None:
        for each in [outlet] if outlet is not None else self._outlets:
            data = seal_knock(self._key, self._answer.sid, self._transaction_id)
            each.send(data, target, ttl=min(max(self._behavior.ttl, 0), 255))

    # -- receiving -----------------------------------------------------------------------------

    def _watch(self, outlet: Outlet) -> None:
        outlet.reader = lambda data, source: self._came(outlet, data, source)

    def _came(self, outlet: Outlet, data: bytes, source: Address) -> None:
        try:
            msg = unseal_sid(self._key, data)
        except RemoteWireError:
            return  # Of anybody.
        if msg.sid != self._answer.sid or self.through.done():
            return
        if not msg.response:
            if self._sends:
                return  # Its answer will tell that our own knocks arrive.
            outlet.send(seal_reply(self._key, msg), source)
        late = LateKnocks(lambda data: self._reply(outlet, source, data))
        self.through.set_result(Hole(outlet, source, late))

    def _reply(self, outlet: Outlet, source: Address, data: bytes) -> bool:
        try:
            msg = unseal_sid(self._key, data)
        except RemoteWireError:
            return False
        if msg.sid == self._answer.sid and not msg.response:
            outlet.send(seal_reply(self._key, msg), source)
        return True

    # -- the end -------------------------------------------------------------------------------

    def _give_up(self) -> None:
        if not self.through.done():
            self.through.set_exception(LinkError("wait detect message timeout"))

    def close(self, *, keep: Outlet | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.through.cancel()
        for outlet in self._outlets:
            if outlet is not keep:
                outlet.close()


def _can_be_sent_to(address: Address) -> bool:
    """Whether our sockets, which are IPv4, reach it at all."""
    return ":" not in address[0] and address[1] > 0
