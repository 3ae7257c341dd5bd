"""WSS: TCP, TLS on it, and within that frp's websocket, without any other TLS.

Our own server takes it on its bind port; frps needs a web server in front that ends TLS.

Source: frp `client/connector.go` (the order of the layers, the host without a port).
"""

from __future__ import annotations

from pyfrp.client.connector import over
from pyfrp.client.route import Route
from pyfrp.client.transports.steps import reach, secure
from pyfrp.client.transports.websocket import open_websocket
from pyfrp.errors import HandshakeError
from pyfrp.net.endpoint import Endpoint


async def dial(route: Route) -> tuple[Endpoint, bytes]:
    """Connect to the server, speak TLS, and open a websocket in it.

    Raises:
        DialError, HandshakeError: with the reason in words.
    """
    if route.tls is None:  # As with frpc, the configuration cannot turn it off.
        raise HandshakeError("wss needs TLS")
    link, early = await reach(route)
    tls = await secure(route, route.tls, link, early, first_byte=False)
    name = route.tls_server_name
    host = f"[{name}]" if ":" in name else name
    return await open_websocket(route, tls, b"", host), b""


connect = over(dial)
