"""The plugins of a client; a new one is a file and a line here (and one in `config/support.py`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyfrp.config.proxies import ClientPluginOptions
    from pyfrp.plugins.base import Plugin

# Module and class; few clients use plugins, so each is loaded by those that have it in their file.
PLUGIN_TYPES: dict[str, tuple[str, str]] = {
    "http2http": ("pyfrp.plugins.http2http", "HTTP2HTTPPlugin"),
    "http2https": ("pyfrp.plugins.http2http", "HTTP2HTTPSPlugin"),
    "http_proxy": ("pyfrp.plugins.http_proxy", "HTTPProxyPlugin"),
    "https2http": ("pyfrp.plugins.https2http", "HTTPS2HTTPPlugin"),
    "https2https": ("pyfrp.plugins.https2http", "HTTPS2HTTPSPlugin"),
    "socks5": ("pyfrp.plugins.socks5", "Socks5Plugin"),
    "static_file": ("pyfrp.plugins.static_file", "StaticFilePlugin"),
    "tls2raw": ("pyfrp.plugins.tls2raw", "TLS2RawPlugin"),
    "unix_domain_socket": ("pyfrp.plugins.unix", "UnixPlugin"),
}


def make_plugin(options: ClientPluginOptions) -> Plugin:
    """The plugin that a proxy's table asks for; its type is one of `PLUGIN_TYPES`."""
    module, name = PLUGIN_TYPES[options.type]
    plugin: Plugin = getattr(import_module(module), name)(options)
    return plugin
