"""Steps on the way to the server that transports have in common."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial

from pyfrp.client.route import Route
from pyfrp.errors import CertificateError, DialError, HandshakeError
from pyfrp.net.certs import fingerprint
from pyfrp.net.dial import dial_tcp
from pyfrp.net.endpoint import Endpoint
from pyfrp.net.peercert import issuer_of
from pyfrp.net.tls import upgrade
from pyfrp.wire.sniff import FRP_TLS_BYTE


async def reach(route: Route) -> tuple[Endpoint, bytes]:
    """A TCP connection to the server's port, or a proxy's tunnel, paused, and bytes read ahead.

    Raises:
        DialError: with the reason in words.
    """
    dial = partial(
        dial_tcp,
        timeout_s=route.dial_timeout_s,
        keepalive_s=route.keepalive_s,
        local_ip=route.local_ip,
        link=True,
    )
    if route.proxy is not None:
        from pyfrp.net.via import dial_via  # most clients need none

        return await dial_via(
            dial, route.proxy, route.host, route.port, timeout_s=route.dial_timeout_s
        )
    endpoint, held = await dial(route.host, route.port)
    if held.ended:
        endpoint.abort()
        raise DialError(f"{route.host}:{route.port} accepts connections and closes them at once")
    return endpoint, held.early


async def secure(
    route: Route, context: ssl.SSLContext, endpoint: Endpoint, early: bytes, *, first_byte: bool
) -> Endpoint:
    """Speak TLS on a connection, paused, and look at the certificate before a word is said.

    Args:
        early: What was read of it already.
        first_byte: Whether to announce TLS with frp's own byte.

    Raises:
        HandshakeError: with the reason in words; the connection is closed. It is a
            CertificateError when that is what is wrong.
    """
    if first_byte:
        endpoint.write(bytes((FRP_TLS_BYTE,)))
    try:
        async with asyncio.timeout(route.dial_timeout_s):
            tls = await upgrade(
                endpoint,
                context,
                server_side=False,
                server_name=route.tls_server_name,
                early=early,
            )
    except TimeoutError:
        raise HandshakeError(
            f"no TLS answer from {route.host}:{route.port} within {route.dial_timeout_s:g} s; "
            "is it an frp server, and does anything on the way hold TLS back?",
            unanswered=True,
        ) from None
    except CertificateError as exc:
        raise CertificateError(
            f"{exc}; an issuer that is not yours means that {_OPENED}: {_advice(route)}"
        ) from exc
    try:
        check_certificate(route, tls.get_extra_info("ssl_object").getpeercert(binary_form=True))
    except CertificateError:
        tls.abort()
        raise
    return tls


def check_certificate(route: Route, der: bytes) -> None:
    """Look at the certificate that the server showed, when the handshake is done.

    Every transport with TLS calls this before it sends anything of its own.

    Args:
        der: The certificate.

    Raises:
        CertificateError: when it is not a pinned one.
    """
    if route.pins:
        shown = fingerprint(der)
        if shown not in route.pins:
            raise CertificateError(
                f"the certificate at {route.host}:{route.port} is not a pinned one (got "
                f"sha256:{shown}, issued by {issuer_of(der)}); either {_OPENED}: {_advice(route)}; "
                'or the server has a new one: compare with "tls certificate" in its log, and '
                "correct transport.tls.pinnedSHA256"
            )
    if route.on_certificate is not None:
        route.on_certificate(der)


_OPENED = "something on the way opens TLS, probably a corporate proxy"


def _advice(route: Route) -> str:
    """What can be done about a proxy that opens TLS."""
    ask = f"ask for an exception for {route.host}:{route.port}"
    if route.protocol == "websocket":
        return ask  # The TLS is inside already, where a proxy rarely looks.
    return f'the protocol "websocket", which has its TLS inside, may pass, or {ask}'
