"""Defaults that depend on other keys, and the token that stands elsewhere.

Source: the `Complete` methods in frp `pkg/config/v1/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfrp.config.common import AuthConfig, ValueSource
from pyfrp.config.problems import Problem

if TYPE_CHECKING:  # each program loads only the models of its own role
    from pyfrp.config.client import ClientConfig
    from pyfrp.config.server import ServerConfig

MAX_TOKEN_FILE_BYTES = 64 * 1024
"""Longest file that is read for a token; a token is a line."""


class SourceError(Exception):
    """A value source that cannot be used; the text is frp's."""


def complete_server(cfg: ServerConfig) -> None:
    """Fill what depends on other keys, in place; a second time changes nothing."""
    cfg.proxy_bind_addr = cfg.proxy_bind_addr or cfg.bind_addr
    transport = cfg.transport
    if transport.heartbeat_timeout == 0:
        transport.heartbeat_timeout = -1 if transport.tcp_mux else 90
    if transport.tls.trusted_ca_file:
        transport.tls.force = True


def complete_client(cfg: ClientConfig) -> None:
    """Fill what depends on other keys, in place; a second time changes nothing."""
    transport = cfg.transport
    # The multiplexed link has its own pings, so heartbeats are off unless asked for.
    if transport.heartbeat_interval == 0:
        transport.heartbeat_interval = -1 if transport.tcp_mux else 30
    if transport.heartbeat_timeout == 0:
        transport.heartbeat_timeout = -1 if transport.tcp_mux else 90
    if transport.protocol in ("wss", "auto"):
        transport.tls.enable = True
    transport.tls.server_name = transport.tls.server_name or cfg.server_addr
    for visitor in cfg.visitors:
        visitor.server_user = visitor.server_user or cfg.user


def check_source(source: ValueSource) -> None:
    """Check the form of a value source.

    Raises:
        SourceError: with frp's text.
    """
    if source.type == "file":
        if source.file is None:
            raise SourceError("file configuration is required when type is 'file'")
        if not source.file.path:
            raise SourceError("file path cannot be empty")
    elif source.type == "exec":
        if source.exec is None:
            raise SourceError("exec configuration is required when type is 'exec'")
        if not source.exec.command:
            raise SourceError("exec command cannot be empty")
        for variable in source.exec.env:
            if not variable.name:
                raise SourceError("exec env name cannot be empty")
            if "=" in variable.name:
                raise SourceError("exec env name cannot contain '='")
    else:
        raise SourceError(
            f"unsupported value source type: {source.type[:60]} "
            "(only 'file' and 'exec' are supported)"
        )


def resolve_token(auth: AuthConfig) -> Problem | None:
    """Put the token of a file source into `auth.token`; a checked source is expected.

    Returns:
        What is wrong, if the file cannot be read.
    """
    source = auth.token_source
    if auth.method != "token" or source is None or source.file is None or source.type != "file":
        return None
    place = ("auth", "tokenSource", "file", "path")
    prefix = f"failed to resolve auth.tokenSource: failed to read file {source.file.path}"
    try:
        with open(source.file.path, "rb") as file:
            data = file.read(MAX_TOKEN_FILE_BYTES + 1)
        if len(data) > MAX_TOKEN_FILE_BYTES:
            return Problem(f"{prefix}: longer than {MAX_TOKEN_FILE_BYTES} bytes", place)
        auth.token = data.decode().strip()
    except OSError as error:
        return Problem(f"{prefix}: {(error.strerror or str(error)).lower()}", place)
    except ValueError:
        # Not UTF-8, or a path with a NUL in it.
        return Problem(f"{prefix}: the file must hold text in UTF-8", place)
    return None
