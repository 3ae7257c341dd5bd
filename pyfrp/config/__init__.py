"""Configuration: files and dicts in, typed and checked objects out.

    cfg = load_server("frps.toml")   # ConfigError tells file, line, key and what to try
    check_supported(cfg)             # ConfigError for what this release does not do
    for line in cfg.warnings: ...

Names are imported when first used: the server never pays for the client's models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyfrp.errors import ConfigError

if TYPE_CHECKING:
    from pyfrp.config.client import ClientConfig
    from pyfrp.config.dump import dump_toml
    from pyfrp.config.load import (
        client_from_dict,
        detect_role,
        load_client,
        load_server,
        server_from_dict,
    )
    from pyfrp.config.names import wire_name
    from pyfrp.config.proxies import (
        HTTPProxyConfig,
        HTTPSProxyConfig,
        ProxyBase,
        STCPProxyConfig,
        SUDPProxyConfig,
        TCPMuxProxyConfig,
        TCPProxyConfig,
        UDPProxyConfig,
        XTCPProxyConfig,
    )
    from pyfrp.config.server import PortRange, ServerConfig
    from pyfrp.config.support import check_supported
    from pyfrp.config.visitors import (
        STCPVisitorConfig,
        SUDPVisitorConfig,
        VisitorBase,
        XTCPVisitorConfig,
    )

__all__ = [
    "ClientConfig",
    "ConfigError",
    "HTTPProxyConfig",
    "HTTPSProxyConfig",
    "PortRange",
    "ProxyBase",
    "STCPProxyConfig",
    "STCPVisitorConfig",
    "SUDPProxyConfig",
    "SUDPVisitorConfig",
    "ServerConfig",
    "TCPMuxProxyConfig",
    "TCPProxyConfig",
    "UDPProxyConfig",
    "VisitorBase",
    "XTCPProxyConfig",
    "XTCPVisitorConfig",
    "check_supported",
    "client_from_dict",
    "detect_role",
    "dump_toml",
    "load_client",
    "load_server",
    "server_from_dict",
    "wire_name",
]

_HOMES = {
    "client": ["ClientConfig"],
    "dump": ["dump_toml"],
    "load": ["client_from_dict", "detect_role", "load_client", "load_server", "server_from_dict"],
    "names": ["wire_name"],
    "proxies": [
        "HTTPProxyConfig",
        "HTTPSProxyConfig",
        "ProxyBase",
        "STCPProxyConfig",
        "SUDPProxyConfig",
        "TCPMuxProxyConfig",
        "TCPProxyConfig",
        "UDPProxyConfig",
        "XTCPProxyConfig",
    ],
    "server": ["PortRange", "ServerConfig"],
    "support": ["check_supported"],
    "visitors": ["STCPVisitorConfig", "SUDPVisitorConfig", "VisitorBase", "XTCPVisitorConfig"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
