"""Proxies of type sudp: local UDP services for the visitors of other clients."""

from __future__ import annotations

from pyfrp.client.proxies.stcp import STCPProxy
from pyfrp.client.proxies.udp import DatagramProxy


class SUDPProxy(STCPProxy, DatagramProxy):
    """Type sudp: asked for as stcp, served as udp, each visitor with a work connection of its own.

    Source: frp `client/proxy/sudp.go`.
    """
