"""Every exception that pyfrp raises on purpose.

One tree, so that each layer can translate what came from below once, at its edge, and so that
callers decide on classes and attributes, never on the words of a message.
"""

from __future__ import annotations


class PyfrpError(Exception):
    """Root of the tree: whatever is caught as this has a message fit for an operator."""


class ConfigError(PyfrpError):
    """A configuration file or command line that cannot be used.

    Args:
        reason: One or more lines for the operator: what is wrong and what to try.
        path: The file, if one is to blame.
        key: The dotted key, e.g. `transport.tls.force`, if one is to blame.
        line: 1-based line in `path`, if known.
    """

    def __init__(
        self,
        reason: str,
        *,
        path: str | None = None,
        key: str | None = None,
        line: int | None = None,
    ) -> None:
        self.reason = reason
        self.path = path
        self.key = key
        self.line = line
        where = ":".join(str(part) for part in (path, line) if part is not None)
        super().__init__(f"{where}: {reason}" if where else reason)


class WireError(PyfrpError):
    """Bytes or calls that break a protocol."""


class LocalWireError(WireError):
    """Our own code asked a protocol object for something illegal: a bug."""


class RemoteWireError(WireError):
    """The peer broke a rule; its connection ends, nothing else does."""


class BadMessage(RemoteWireError):
    """A control message with an unknown type, wrong field types or undecodable JSON."""


class FrameTooLarge(RemoteWireError):
    """A length field beyond what the protocol allows, or negative."""


class MuxError(RemoteWireError):
    """The peer broke a yamux rule.

    Args:
        reason: What it did.
        code: The go-away code to answer with: 1 protocol error, 2 internal error.
    """

    def __init__(self, reason: str, code: int = 1) -> None:
        self.code = code
        super().__init__(reason)


class BadHead(RemoteWireError):
    """An HTTP head that is malformed, ambiguous or over a limit.

    Args:
        reason: What is wrong, safe to show to the sender.
        status: The HTTP status to answer with, e.g. 400 or 431.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        self.status = status
        super().__init__(reason)


class BadHello(RemoteWireError):
    """The first bytes of a TLS connection are not a ClientHello, or over a limit."""


class AuthError(PyfrpError):
    """A peer's credentials were refused; the text is what frp sends."""


class LoginRefused(AuthError):
    """The server's answer to our login is no."""


class LinkError(PyfrpError):
    """A connection could not be made or did not last."""


class DialError(LinkError):
    """No connection to the far end: refused, unreachable, unresolvable or too slow.

    Args:
        reason: Every address and what happened there.
        errno: The system's number for what happened last; 0 where it has none.
    """

    def __init__(self, reason: str, errno: int = 0) -> None:
        self.errno = errno
        super().__init__(reason)


class LookupFailed(DialError):
    """A name has no address, or nobody says which."""


class ProxyError(DialError):
    """The proxy on the way out does not let us through.

    Args:
        reason: The proxy, what it did, and what to try.
        status: Of its HTTP answer; 0 when it gave none.
    """

    def __init__(self, reason: str, status: int = 0) -> None:
        self.status = status
        super().__init__(reason)


class HandshakeError(LinkError):
    """The connection stands, but TLS or the login on it failed.

    Args:
        unanswered: The far end closed, or was silent, where it should have answered.
    """

    def __init__(self, reason: str, *, unanswered: bool = False) -> None:
        self.unanswered = unanswered
        super().__init__(reason)


class CertificateError(HandshakeError):
    """The far end showed a certificate that is not trusted, or not the one expected."""


class PeerClosed(LinkError):
    """The far end closed where more was expected."""


class IdleTimeout(LinkError):
    """Nothing came within the time allowed."""


class RefusedError(PyfrpError):
    """A request that is understood and turned down.

    The text may be sent to the peer and equals frp's wherever clients read it
    (spec: `NewProxyResp.error`, `LoginResp.error`).
    """


class PluginError(PyfrpError):
    """A plugin could not do its work."""
