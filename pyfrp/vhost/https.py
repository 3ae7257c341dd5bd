"""The https vhost of a server: users are routed by the name in their TLS hello.

TLS passes through to the backend, which has the certificate.

On a port that frp's clients use too, a hello for a name that no proxy here has or had, and that
offers no protocols (ALPN), is one of theirs: with TLS on the link, or wss. Browsers and HTTP
libraries always offer some. frps takes every hello there for https, so that its clients have to
send frp's first byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pyfrp.net.held import Held
from pyfrp.vhost.muxer import Muxer, UserSink
from pyfrp.wire.clienthello import UNRECOGNIZED_NAME, ClientHello, HelloReader


class HttpsMuxer(Muxer[ClientHello, UserSink]):
    """Source: frp `pkg/util/vhost/https.go`.

    Attributes:
        on_client: Takes over a client of frp's, paused, with the bytes read; None where the port
            is not shared with clients.
    """

    kind = "https"

    def __init__(self, *, log: Any) -> None:
        super().__init__(log=log)
        self.on_client: Callable[[asyncio.Transport, bytes], None] | None = None

    def reader(self) -> HelloReader:
        return HelloReader()

    def admit(self, user: asyncio.Transport, held: Held, asked: ClientHello) -> None:
        name = asked.name
        # A hello without a name has the host "", which only a proxy for "*" takes.
        sink = self.router.find(name, "", "")
        if sink is not None:
            sink(user, held)
            return
        known = self.router.knows(name)
        if self.on_client is not None and not asked.alpn and not known:
            self.on_client(user, held.early)
            return
        if not name:
            cause = "the TLS hello has no server name"
        elif known:
            cause = "no client serves this host at the moment"
        else:
            cause = "no proxy serves this host"
        self.log_refusal(user, cause, host=name)
        user.write(UNRECOGNIZED_NAME)
        user.close()
