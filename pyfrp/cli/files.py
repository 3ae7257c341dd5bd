"""What `verify` looks into beyond the configuration itself: the files that it names.

A start opens them before it binds a port. The same code does here, and nothing is made or kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pyfrp.auth import make_authenticator, make_verifier
from pyfrp.client.route import make_route
from pyfrp.net.certs import LinkContext, server_context, trusting_context
from pyfrp.plugins import make_plugin

if TYPE_CHECKING:
    from pyfrp.config import ClientConfig, ServerConfig


def check_server_files(cfg: ServerConfig) -> list[str]:
    """Open the files of a server's configuration.

    Returns:
        What the operator should know, such as certificates that end soon.

    Raises:
        ConfigError: A start would be refused.
    """
    make_verifier(cfg.auth)
    tls = cfg.transport.tls
    if tls.cert_file and tls.key_file:
        return _ends(server_context(tls.cert_file, tls.key_file, tls.trusted_ca_file))
    if tls.trusted_ca_file:  # Beside a generated certificate, which a start makes.
        return _ends(trusting_context(tls.trusted_ca_file, "transport.tls.trustedCaFile"))
    return []


def check_client_files(cfg: ClientConfig) -> list[str]:
    """As `check_server_files`, for a client's configuration and its plugins'."""
    make_authenticator(cfg.auth)
    context = make_route(cfg).tls
    warnings = [] if context is None else _ends(context)
    for proxy in cfg.proxies:
        if proxy.plugin is not None and not _generates(proxy.plugin):
            warnings += make_plugin(proxy.plugin).warnings()
    return warnings


def _generates(options: Any) -> bool:
    """Whether a plugin shows a generated certificate, which a start makes."""
    return hasattr(options, "crt_path") and not (options.crt_path and options.key_path)


def _ends(context: LinkContext) -> list[str]:
    now = time.time()
    return [text for life in context.lifetimes if (text := life.warning(now))]
