"""The proxy types of a client; a new one is a class and a line here."""

from __future__ import annotations

from pyfrp.client.proxies.base import ClientProxy
from pyfrp.client.proxies.stcp import STCPProxy
from pyfrp.client.proxies.sudp import SUDPProxy
from pyfrp.client.proxies.types import HTTPProxy, HTTPSProxy, TCPMuxProxy, TCPProxy
from pyfrp.client.proxies.udp import UDPProxy
from pyfrp.client.proxies.xtcp import XTCPProxy

PROXY_TYPES: dict[str, type[ClientProxy]] = {
    "http": HTTPProxy,
    "https": HTTPSProxy,
    "stcp": STCPProxy,
    "sudp": SUDPProxy,
    "tcp": TCPProxy,
    "tcpmux": TCPMuxProxy,
    "udp": UDPProxy,
    "xtcp": XTCPProxy,
}
