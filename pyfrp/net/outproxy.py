"""The proxy on the way out of a network, as whoever dials through it needs it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyfrp.net.endpoint import format_address
from pyfrp.wire.httpauth import Digest


@dataclass(slots=True)
class Memory:
    """What earlier connections learned of a proxy, so that the next ones need not ask first."""

    scheme: str = ""
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy on the way out; as text it is its name in messages.

    Attributes:
        scheme: http, https, socks5, socks5h or ntlm.
        user: None without credentials; for NTLM maybe `domain\\user`.
        named_by: Where the operator named it.
    """

    scheme: str
    host: str
    port: int
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)
    named_by: str = "transport.proxyURL"
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    @property
    def place(self) -> str:
        """`host:port`."""
        return format_address((self.host, self.port))

    @property
    def forwards(self) -> bool:
        """Whether it also takes whole requests for http URLs, not only those for a tunnel."""
        return self.scheme in ("http", "https")

    def __str__(self) -> str:
        return f"the proxy {self.place}"
