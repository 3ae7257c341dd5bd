"""Requests whose proxy failed go to another one of its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfrp.wire import http1
from pyfrp.wire.http1 import RequestHead

if TYPE_CHECKING:
    from pyfrp.vhost.frontend import HttpRoute

# Methods that change nothing (RFC 9110, 9.2.1).
SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))


def repeatable(route: HttpRoute, head: RequestHead) -> bool:
    """Whether a request may go to another member even after one has worked on it for a while."""
    return route.group is not None and head.method in SAFE


def other_member(
    failed: HttpRoute, tried: tuple[HttpRoute, ...], head: RequestHead, ip: bytes, sent: bytes
) -> tuple[HttpRoute, bytes] | None:
    """Find another member for a request of which nothing was answered.

    Args:
        failed: The member that had it last.
        tried: All that had it, and are not asked again.
        ip: The caller's, for the head.
        sent: The request so far, as it was sent to `failed`.

    Returns:
        The member and the request as it is to be sent to it; None when nobody is left.
    """
    other = failed.group.pick(tried) if failed.group is not None else None
    # Members may ask for different credentials; the caller's were found right for one of them.
    if other is None or not other.admits(head.user, head.password):
        return None
    if other.request_edit is not failed.request_edit:
        old = http1.rewrite_request_head(head, failed.request_edit, ip)
        sent = http1.rewrite_request_head(head, other.request_edit, ip) + sent[len(old) :]
    other.requests += 1
    return other, sent
