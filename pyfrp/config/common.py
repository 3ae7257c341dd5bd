"""Keys that the server's and the client's file have in common.

Source of names and defaults: frp `pkg/config/v1/common.go` and `pkg/config/v1/value_source.go`.
"""

from __future__ import annotations

from typing import ClassVar

from pyfrp.config.base import Field, Model, secret, secret_map


class HeaderOperations(Model):
    """What is done to the headers of a message on its way."""

    set: dict[str, str] = secret_map()
    """Headers to set, replacing those of the same name. Default: none."""


class HTTPHeader(Model):
    """One header of a request that we make ourselves."""

    name: str = ""
    """Name of the header."""

    value: str = secret()
    """Its value."""


class LogConfig(Model):
    """Where the log goes."""

    to: str = "console"
    """`console` for standard output, or the path of a file. Default `console`."""

    level: str = "info"
    """trace, debug, info, warn or error. Default `info`."""

    max_days: int = 3
    """Days that rotated files are kept; negative keeps all. Default 3."""

    disable_print_color: bool = False
    """No colours on the console. Default false."""

    format: str = "text"
    """`text` for frp's line format, `json` for one object per line (pyfrp's own key).

    Default `text`."""


class TLSFiles(Model):
    """Certificates of one TLS end."""

    cert_file: str = ""
    """PEM file of the certificate chain."""

    key_file: str = ""
    """PEM file of its private key."""

    trusted_ca_file: str = ""
    """PEM file of the authorities whom the other end's certificate must come from."""

    server_name: str = ""
    """Name expected in the server's certificate. On the client default: `serverAddr`."""


class WebServerConfig(Model):
    """The dashboard (server) or admin API (client)."""

    addr: str = "127.0.0.1"
    """Address to listen on. Default 127.0.0.1."""

    port: int = 0
    """Port to listen on; 0, the default, turns it off."""

    user: str = ""
    """User of the basic authentication; with an empty password too there is none."""

    password: str = secret()
    """Password of the basic authentication."""

    assets_dir: str = ""
    """Directory to serve pages from instead of the bundled ones."""

    pprof_enable: bool = False
    """Expose run-time profiles. Default false."""

    tls: TLSFiles | None = None
    """Serve HTTPS with this certificate. Default: plain HTTP."""


class FileSource(Model):
    """A value that stands in a file."""

    path: str = ""
    """Path of the file; surrounding white space is cut off."""


class EnvVar(Model):
    """One environment variable for a command."""

    name: str = ""
    """Name of the variable."""

    value: str = secret()
    """Its value."""


class ExecSource(Model):
    """A value that a program prints."""

    command: str = ""
    """The program; no shell is involved."""

    args: list[str] = Field(default_factory=list, repr=False)
    """Its arguments."""

    env: list[EnvVar] = Field(default_factory=list)
    """Variables added to the inherited environment."""


class ValueSource(Model):
    """Where to take a value from that should not stand in the configuration itself."""

    type: str = ""
    """`file` or `exec`."""

    file: FileSource | None = None
    """For `file`."""

    exec: ExecSource | None = None
    """For `exec`; needs `--allow-unsafe=TokenSourceExec`."""


class QUICOptions(Model):
    """Tuning of the QUIC transport."""

    keepalive_period: int = 10
    """Seconds between keep-alives. Default 10."""

    max_idle_timeout: int = 30
    """Seconds without traffic after which a connection is dropped. Default 30."""

    max_incoming_streams: int = 100000
    """Streams that the peer may have open. Default 100000."""


class AuthConfig(Model):
    """How peers prove who they are; the part that both ends share."""

    method: str = "token"
    """`token` or `oidc`. Default `token`."""

    additional_scopes: list[str] = Field(default_factory=list)
    """Where else credentials are checked: `HeartBeats`, `NewWorkConns`; set on both ends."""

    token: str = secret()
    """The shared token; after loading, also where `tokenSource` gave it. Default empty."""

    token_source: ValueSource | None = None
    """Take the token from here instead; excludes `token`."""

    zero_is_meant: ClassVar[frozenset[str]] = frozenset({"maxClockSkew"})
