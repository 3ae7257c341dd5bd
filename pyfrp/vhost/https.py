"""The https vhost of a server: users are routed by the name in their TLS hello.

TLS passes through to the backend, which has the certificate.
"""

from __future__ import annotations

import asyncio

from pyfrp.net.held import Held
from pyfrp.vhost.muxer import Muxer, UserSink
from pyfrp.wire.clienthello import UNRECOGNIZED_NAME, HelloReader


class HttpsMuxer(Muxer[str, UserSink]):
    """Source: frp `pkg/util/vhost/https.go`."""

    kind = "https"

    def reader(self) -> HelloReader:
        return HelloReader()

    def admit(self, user: asyncio.Transport, held: Held, asked: str) -> None:
        # A hello without a name has the host "", which only a proxy for "*" takes.
        sink = self.router.find(asked, "", "")
        if sink is not None:
            sink(user, held)
            return
        if not asked:
            cause = "the TLS hello has no server name"
        elif self.router.knows(asked):
            cause = "no client serves this host at the moment"
        else:
            cause = "no proxy serves this host"
        self.log_refusal(user, cause, host=asked)
        user.write(UNRECOGNIZED_NAME)
        user.close()
