"""The TLS that plugins end: towards the user they are the server.

The certificate is the operator's, or one that is generated once and kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyfrp.errors import BadHello, HandshakeError, PeerClosed
from pyfrp.net.byteconn import READ_AHEAD_BYTES, ByteConn
from pyfrp.net.certs import PairKeys, server_context
from pyfrp.net.tls import TlsEndpoint, upgrade
from pyfrp.plugins.base import Visit
from pyfrp.plugins.local import reason_of
from pyfrp.wire.clienthello import HelloReader

HANDSHAKE_S = 10.0  # From the first byte that is awaited to the last; frp waits a minute or more.
LINGER_S = 5.0  # For whoever speaks no TLS to take the answer.

_KEYS = PairKeys("plugin.crtPath", "plugin.keyPath")
_GENERATED_FILE = "plugin-tls.pem"


@dataclass(frozen=True, slots=True)
class Opened:
    """A user's connection after its handshake, paused.

    Attributes:
        name: Which server the user asked for, in lower case; "" if it did not say.
        protocol: The one that was agreed on (ALPN), or "".
    """

    endpoint: TlsEndpoint
    name: str
    protocol: str


class TlsFront:
    """Does the handshakes of one plugin.

    Args:
        options: With `crt_path` and `key_path`.
        protocols: To offer by ALPN, best first.

    Raises:
        ConfigError: for a certificate or key that cannot be used.
    """

    def __init__(self, options: Any, protocols: Sequence[str] = ()) -> None:
        self._options = options
        self._context = server_context(
            options.crt_path, options.key_path, "", keep_as=_GENERATED_FILE, keys=_KEYS
        )
        if protocols:
            self._context.set_alpn_protocols(list(protocols))

    def warnings(self) -> list[str]:
        given = bool(self._options.crt_path), bool(self._options.key_path)
        if given[0] is given[1]:
            now = time.time()
            return [text for life in self._context.lifetimes if (text := life.warning(now))]
        alone, other = ("crtPath", "keyPath") if given[0] else ("keyPath", "crtPath")
        return [f"plugin.{alone} without {other} has no effect: the certificate is a generated one"]

    async def open(self, visit: Visit, *, not_tls: bytes = b"") -> Opened:
        """Take the TLS off a user's connection; when that fails, it is closed.

        Args:
            not_tls: What to answer to somebody who speaks plain HTTP.

        Raises:
            HandshakeError: when the user does not speak TLS, or not in time.
        """
        conn = ByteConn(visit.work, early=visit.early)
        reader = HelloReader()
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                name = await _asked_name(conn, reader)
                link, ahead = conn.detach()
                if conn.ended:
                    raise PeerClosed("the user ended the connection after its hello")
                early = bytes(reader.raw) + ahead
                # The hello was read before, because what OpenSSL tells of the name it asks for
                # goes through a callback that cannot refuse odd names quietly.
                tls = await upgrade(link, self._context, server_side=True, early=early)
        except TimeoutError:
            conn.abort()
            raise HandshakeError(f"not complete within {HANDSHAKE_S:g} s") from None
        except BadHello as exc:
            if not_tls and reader.raw[:1].isalpha():
                conn.write(not_tls)
            await conn.finish(LINGER_S)
            raise HandshakeError(str(exc)) from exc
        except PeerClosed as exc:
            conn.abort()
            raise HandshakeError(str(exc)) from exc
        except HandshakeError as exc:
            raise HandshakeError(reason_of(exc)) from exc
        except BaseException:
            conn.abort()
            raise
        agreed = tls.get_extra_info("ssl_object").selected_alpn_protocol()
        return Opened(tls, name, agreed or "")


async def _asked_name(conn: ByteConn, reader: HelloReader) -> str:
    """Read until the name is known.

    Raises:
        BadHello: as `HelloReader.feed`.
        PeerClosed: when the user leaves before.
    """
    while True:
        hello = reader.feed(conn.take(READ_AHEAD_BYTES))
        if hello is not None:
            return hello.name
        if not await conn.more():
            raise PeerClosed("the user left before its hello")
