"""`http2http` and `http2https`: a reverse proxy for plain HTTP."""

from __future__ import annotations

from typing import ClassVar

from pyfrp.plugins.reverse import ReversePlugin
from pyfrp.wire.http1 import Forwarding


class HTTP2HTTPPlugin(ReversePlugin):
    """Takes HTTP and speaks HTTP with a local address, which learns nothing of the caller."""

    forwarding: ClassVar[Forwarding] = Forwarding.DROPPED
    speaks_tls: ClassVar[bool] = False


class HTTP2HTTPSPlugin(ReversePlugin):
    """Takes HTTP and speaks HTTPS with a local address."""

    forwarding: ClassVar[Forwarding] = Forwarding.KEPT
    speaks_tls: ClassVar[bool] = True
