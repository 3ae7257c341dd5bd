"""The proxy types of a server; a new one is a file and a line here."""

from __future__ import annotations

from pyfrp.server.proxies.base import ServerProxy
from pyfrp.server.proxies.http import HTTPProxy
from pyfrp.server.proxies.https import HTTPSProxy
from pyfrp.server.proxies.stcp import STCPProxy
from pyfrp.server.proxies.sudp import SUDPProxy
from pyfrp.server.proxies.tcp import TCPProxy
from pyfrp.server.proxies.tcpmux import TCPMuxProxy
from pyfrp.server.proxies.udp import UDPProxy
from pyfrp.server.proxies.xtcp import XTCPProxy

PROXY_TYPES: dict[str, type[ServerProxy]] = {
    "http": HTTPProxy,
    "stcp": STCPProxy,
    "https": HTTPSProxy,
    "sudp": SUDPProxy,
    "tcp": TCPProxy,
    "tcpmux": TCPMuxProxy,
    "udp": UDPProxy,
    "xtcp": XTCPProxy,
}
