"""How a server brings the two sides of an xtcp connection together, without I/O.

The visitor asks, the server sends the proxy's client the id of a meeting, and once both have told
their addresses each is told the other's, and how to punch. The bytes go past the server.

Source: frp `pkg/nathole/controller.go` (conversation, texts, times).
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import md5
from itertools import groupby
from typing import TypeAlias

from pyfrp.auth.token import key_matches
from pyfrp.errors import RefusedError
from pyfrp.nathole.analysis import SENDER, Analyzer, Behavior, Choice
from pyfrp.nathole.nat import Nat, classify, hosts_of, split_address
from pyfrp.wire.messages import (
    DetectBehavior,
    Message,
    NatHoleClient,
    NatHoleReport,
    NatHoleResp,
    NatHoleVisitor,
    PortsRange,
)

ANYBODY = "*"
JOIN_S = 10.0  # For the proxy's side to tell its addresses.
HEAD_START_S = 1.0  # For the receiver to open its NAT before the sender knocks.
REPORT_S = 30.0  # For the report, beyond the time that punching may take.
BASE_TIMEOUT_MS = 5000
SPRAY_TIMEOUT_MS = 30000  # More where hundreds of ports are tried.
GUESS_MARGIN = 5
MAX_PORT = 65535
# Meetings of one proxy at a time. Each costs a work connection; visitors try every ten seconds.
MAX_MEETINGS = 256
MAX_ADDRESSES = 32  # Of a side; frp has two outer ones and ten inner ones.
SHOWN = 200  # Characters of a peer's own words that are told back.

Send: TypeAlias = Callable[[Message], None]
"""Sends to one client; it may be gone by then."""


@dataclass(slots=True)
class _Proxy:
    """A proxy that may be visited."""

    secret_key: str
    allow_users: frozenset[str]
    invite: Callable[[str], None]
    meetings: int = 0


@dataclass(slots=True)
class _Meeting:
    """One attempt to meet; `choice` is made when both sides are known."""

    sid: str
    proxy: _Proxy
    visitor: NatHoleVisitor
    tell_visitor: Send
    ends_at: float
    choice: Choice | None = None


@dataclass(order=True, slots=True)
class _Due:
    """An answer that is to be sent at a time."""

    when: float
    number: int
    send: Send = field(compare=False)
    msg: Message = field(compare=False)


class Coordinator:
    """All proxies and meetings of a server.

    After each call the caller asks for `deadline`, and calls `wake` then. Times are monotonic
    seconds.

    Args:
        keep_s: How long is remembered what worked between which networks.
    """

    def __init__(self, keep_s: float) -> None:
        self.analyzer = Analyzer(keep_s)
        self._proxies: dict[str, _Proxy] = {}
        self._meetings: dict[str, _Meeting] = {}
        self._due: list[_Due] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._proxies)

    @property
    def meetings(self) -> int:
        return len(self._meetings)

    # -- proxies -------------------------------------------------------------------------------

    def listen(
        self,
        name: str,
        *,
        secret_key: str,
        allow_users: Iterable[str],
        invite: Callable[[str], None],
    ) -> None:
        """Take visitors for a proxy.

        Args:
            allow_users: Whose visitors may come; `*` among them for everybody's.
            invite: Called with the id of a meeting that the proxy's client shall join.

        Raises:
            RefusedError: with frp's text, when somebody does so under this name.
        """
        if name in self._proxies:
            raise RefusedError(f"proxy [{name}] is repeated")
        self._proxies[name] = _Proxy(secret_key, frozenset(allow_users), invite)

    def unlisten(self, name: str) -> None:
        """Take no more visitors for a proxy. Idempotent."""
        self._proxies.pop(name, None)

    # -- messages ------------------------------------------------------------------------------

    def visit(self, msg: NatHoleVisitor, user: str, send: Send, now: float) -> None:
        """A visitor of `user` asks whether it may come, or comes.

        Raises:
            RefusedError: after it was told so; for the log.
        """
        try:
            proxy = self._admit(msg, user)
        except RefusedError as exc:
            send(NatHoleResp(transaction_id=msg.transaction_id, error=str(exc)))
            raise
        if msg.pre_check:
            send(NatHoleResp(transaction_id=msg.transaction_id))
            return
        sid = _new_sid()
        proxy.meetings += 1
        self._meetings[sid] = _Meeting(sid, proxy, msg, send, now + JOIN_S)
        proxy.invite(sid)

    def _admit(self, msg: NatHoleVisitor, user: str) -> _Proxy:
        name = msg.proxy_name[:SHOWN]
        proxy = self._proxies.get(msg.proxy_name)
        if proxy is None:
            raise RefusedError(f"xtcp server for [{name}] doesn't exist")
        # As with frp the age of the key is not checked: a visitor's clock may be wrong.
        if not msg.pre_check and not key_matches(proxy.secret_key, msg.timestamp, msg.sign_key):
            raise RefusedError(f"xtcp connection of [{name}] auth failed")
        # frp looks at the user in the first question only, and a visitor need not ask it.
        if not proxy.allow_users & {user, ANYBODY}:
            raise RefusedError(f"xtcp visitor user [{user[:SHOWN]}] not allowed for [{name}]")
        if not msg.pre_check and proxy.meetings >= MAX_MEETINGS:
            raise RefusedError(f"too many xtcp visitors of [{name}] at a time")
        return proxy

    def join(self, msg: NatHoleClient, send: Send, now: float) -> str:
        """The proxy's client tells its addresses; both sides get their answers.

        Returns:
            What was decided, for the log; empty for a meeting that is over or was joined before.
        """
        meeting = self._meetings.get(msg.sid)
        if meeting is None or meeting.choice is not None or now > meeting.ends_at:
            return ""
        visitor = meeting.visitor
        try:
            nats = _classify(msg, visitor)
        except ValueError as exc:
            self._drop(meeting)
            for transaction, tell in (
                (visitor.transaction_id, meeting.tell_visitor),
                (msg.transaction_id, send),
            ):
                tell(NatHoleResp(transaction_id=transaction, error=str(exc)))
            return f"analysis error: {exc}"
        client_nat, visitor_nat = nats
        key = _pair_key(visitor, visitor_nat, msg, client_nat)
        choice = meeting.choice = self.analyzer.choose(key, client_nat, visitor_nat, now)
        to_client, to_visitor = _answers(meeting, msg, choice, client_nat, visitor_nat)
        self._send(meeting.tell_visitor, to_visitor, now)
        self._send(send, to_client, now)
        wait_s = to_client.detect_behavior.read_timeout_ms / 1000
        meeting.ends_at = now + HEAD_START_S + wait_s + REPORT_S
        return (
            f"visitor nat: {visitor_nat.kind}, {visitor_nat.behavior}; "
            f"client nat: {client_nat.kind}, {client_nat.behavior}; "
            f"mode {choice.mode}, index {choice.index}, protocol: {visitor.protocol[:SHOWN]}"
        )

    def report(self, msg: NatHoleReport, now: float) -> str:
        """The proxy's client tells how a meeting went; returns what was tried, for the log."""
        meeting = self._meetings.get(msg.sid)
        if meeting is None or meeting.choice is None:
            return ""
        self._drop(meeting)
        if msg.success:
            self.analyzer.worked(meeting.choice, now)
        return f"mode {meeting.choice.mode}, index {meeting.choice.index}"

    # -- time ----------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `wake` is to be called; None for never."""
        times = [meeting.ends_at for meeting in self._meetings.values()]
        if self._due:
            times.append(self._due[0].when)
        return min(times, default=None)

    def wake(self, now: float) -> None:
        """Send what is due, and forget meetings that came to nothing."""
        while self._due and self._due[0].when <= now:
            due = heapq.heappop(self._due)
            due.send(due.msg)
        for meeting in [m for m in self._meetings.values() if m.ends_at <= now]:
            self._drop(meeting)

    def close(self) -> None:
        """Forget every meeting."""
        self._due.clear()
        for meeting in list(self._meetings.values()):
            self._drop(meeting)

    def _drop(self, meeting: _Meeting) -> None:
        del self._meetings[meeting.sid]
        meeting.proxy.meetings -= 1

    def _send(self, send: Send, msg: NatHoleResp, now: float) -> None:
        if msg.detect_behavior.role == SENDER:
            heapq.heappush(self._due, _Due(now + HEAD_START_S, next(self._numbers), send, msg))
        else:
            send(msg)


def _new_sid() -> str:
    # frp puts the time before the random digits; nobody reads it.
    return os.urandom(13).hex()


def _classify(client: NatHoleClient, visitor: NatHoleVisitor) -> tuple[Nat, Nat]:
    nats = []
    sides: tuple[tuple[str, NatHoleClient | NatHoleVisitor], ...] = (
        ("client", client),
        ("visitor", visitor),
    )
    for name, side in sides:
        try:
            nats.append(classify(side.mapped_addrs, hosts_of(side.assisted_addrs)))
        except ValueError as exc:
            raise ValueError(f"classify {name} nat feature error: {exc}") from exc
    return nats[0], nats[1]


def _pair_key(
    visitor: NatHoleVisitor, visitor_nat: Nat, client: NatHoleClient, client_nat: Nat
) -> str:
    """Tell pairs of networks apart: the first outer address of each side, and its NAT."""
    words = [
        word
        for side, nat in ((visitor.mapped_addrs, visitor_nat), (client.mapped_addrs, client_nat))
        for word in (hosts_of(side)[0], nat.kind, nat.behavior, str(nat.regular))
    ]
    return md5("\n".join(words).encode(), usedforsecurity=False).hexdigest()


def _answers(
    meeting: _Meeting, client: NatHoleClient, choice: Choice, client_nat: Nat, visitor_nat: Nat
) -> tuple[NatHoleResp, NatHoleResp]:
    """What the proxy's client is told, and what the visitor."""
    timeout_ms = BASE_TIMEOUT_MS + max(choice.client.delay_ms, choice.visitor.delay_ms)
    if choice.client.listen_ports or choice.visitor.listen_ports:
        timeout_ms += SPRAY_TIMEOUT_MS

    def answer(
        transaction: str,
        behavior: Behavior,
        peer: NatHoleClient | NatHoleVisitor,
        peer_nat: Nat,
    ) -> NatHoleResp:
        mapped = peer.mapped_addrs
        return NatHoleResp(
            transaction_id=transaction,
            sid=meeting.sid,
            protocol=meeting.visitor.protocol,
            candidate_addrs=_compact(mapped),
            assisted_addrs=_compact(peer.assisted_addrs),
            detect_behavior=DetectBehavior(
                role=behavior.role,
                mode=choice.mode,
                ttl=behavior.ttl,
                send_delay_ms=behavior.delay_ms,
                read_timeout_ms=timeout_ms - behavior.delay_ms,
                candidate_ports=_guess(mapped[-1], peer_nat.spread, behavior.reach),
                send_random_ports=behavior.random_ports,
                listen_random_ports=behavior.listen_ports,
            ),
        )

    return (
        answer(client.transaction_id, choice.client, meeting.visitor, visitor_nat),
        answer(meeting.visitor.transaction_id, choice.visitor, client, client_nat),
    )


def _compact(addresses: list[str]) -> list[str]:
    """Drop repetitions that follow each other."""
    return [address for address, _ in groupby(addresses)][:MAX_ADDRESSES]


def _guess(address: str, spread: int, reach: int) -> list[PortsRange]:
    """The ports near the last one seen, where the next may be."""
    if not reach:
        return []
    port = split_address(address)[1]
    far = min(spread + GUESS_MARGIN, reach)
    return [PortsRange(first=max(port - far, 1), last=min(port + far, MAX_PORT))]
