"""The service behind a plugin, by its `localAddr`."""

from __future__ import annotations

import asyncio
import ssl

from pyfrp.errors import BadHead, ConfigError, DialError, HandshakeError, PeerClosed
from pyfrp.net.certs import client_context
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.held import Held
from pyfrp.net.sockets import is_numeric
from pyfrp.net.tls import upgrade
from pyfrp.wire.http_fields import place_of

DIAL_S = 10.0  # As for the local service of a proxy without a plugin, and for its TLS as well.


class LocalService:
    """Opens connections to a local address.

    Args:
        address: `host:port`; empty for none, which only fails when it is dialled, as in frp.
        tls: Speak TLS with it. Its certificate is not looked at (frp
            `pkg/plugin/client/http2https.go`): it is the operator's own, mostly self-signed.
        default_port: Where the address may lack one.

    Raises:
        ConfigError: for what is no address.
    """

    def __init__(self, address: str, *, tls: bool = False, default_port: int | None = None) -> None:
        self._address = address
        self._host, self._port = "", 0
        self._name: str | None = None
        self._tls: ssl.SSLContext | None = None
        if not address:
            return
        # Go dials a bare port on this machine.
        place = f"127.0.0.1{address}" if address.startswith(":") else address
        try:
            self._host, self._port = place_of(place.encode(), default_port)
        except (BadHead, UnicodeError) as exc:
            raise ConfigError(
                f"plugin.localAddr {address[:100]!r} is not host:port", key="plugin.localAddr"
            ) from exc
        if tls:
            # An address is not named in a hello (RFC 6066, 3).
            self._name = None if is_numeric(self._host) else self._host
            try:
                self._tls = client_context("", "", "", self._name or "")
            except ConfigError as exc:  # Of a name that TLS cannot carry.
                raise ConfigError(
                    f"plugin.localAddr cannot be used: {exc.reason.partition(';')[0]}",
                    key="plugin.localAddr",
                ) from exc

    async def dial(self) -> tuple[Endpoint, Held]:
        """A fresh connection, paused, and what came on it meanwhile.

        Raises:
            LinkError: when there is none.
        """
        if not self._host:
            raise DialError("the plugin has no localAddr")
        deadline = asyncio.get_running_loop().time() + DIAL_S
        far, held = await dial_tcp(self._host, self._port, timeout_s=DIAL_S)
        if self._tls is None:
            return far, held
        if held.ended:
            far.abort()
            raise PeerClosed(f"{self._address} closed the connection before TLS")
        try:
            async with asyncio.timeout_at(deadline):
                tls = await upgrade(
                    far, self._tls, server_side=False, server_name=self._name, early=held.early
                )
        except TimeoutError:
            raise HandshakeError(
                f"{self._address}: no end of the TLS handshake within {DIAL_S:g} s"
            ) from None
        except HandshakeError as exc:
            raise HandshakeError(f"{self._address}: {reason_of(exc)}") from exc
        return tls, Held()


def reason_of(exc: HandshakeError) -> str:
    """Why a handshake failed, without the advice for the link to the server that may follow."""
    return str(exc).partition(";")[0]
