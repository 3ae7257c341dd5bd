"""The transports of a client; a new one is a file here and a line below.

Each file has `async connect(route, on_error) -> Connector`. One that carries a stream of bytes gets
it with `connector.over` from a function that dials.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from pyfrp.client.connector import Connect, Connector, OnError
from pyfrp.client.route import Route

# By module, because few clients need more than one of them: they are loaded when they are used.
TRANSPORTS = {
    "kcp": "pyfrp.client.transports.kcp",
    "quic": "pyfrp.client.transports.quic",
    "tcp": "pyfrp.client.transports.tcp",
    "websocket": "pyfrp.client.transports.websocket",
    "wss": "pyfrp.client.transports.wss",
}


async def connect(route: Route, on_error: OnError) -> Connector:
    """Make the link that `route` names, if there is one to make.

    Raises:
        LinkError: when the server cannot be reached.
    """
    make = cast(Connect, import_module(TRANSPORTS[route.protocol]).connect)
    return await make(route, on_error)
