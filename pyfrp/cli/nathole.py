"""`pyfrp client nathole discover`: what kind of NAT this machine is behind.

Source: frp `cmd/frpc/sub/nathole.go` (flags, output).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyfrp.cli.flags import FlagParser, UsageError
from pyfrp.errors import ConfigError, DialError, LinkError

if TYPE_CHECKING:
    from pyfrp.config import ClientConfig

OK, FAILED = 0, 1

_EXAMPLES = """\
  pyfrp client nathole discover                                   ask the default server
  pyfrp client nathole discover --nat-hole-stun-server HOST:PORT  ask another one
"""


def run_nathole(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        UsageError: a command line that cannot be read.
    """
    from pyfrp.cli.server import add_common

    parser = FlagParser(
        "pyfrp client nathole discover",
        "Ask a STUN server for the addresses that the world sees, to tell what kind of NAT this\n"
        "machine is behind. The server is natHoleStunServer of the client's file, if there is one.",
        _EXAMPLES,
    )
    add_common(parser)
    parser.value(
        "--nat-hole-stun-server", text="STUN server (default natHoleStunServer)", metavar="ADDRESS"
    )
    parser.value(
        "-l",
        "--nat-hole-local-addr",
        text="local address to ask from (default: any)",
        metavar="ADDRESS",
    )
    flags, words = parser.read(argv)
    if flags.help:
        print(parser.format_help(), end="")
        return OK
    if words != ["discover"]:
        unknown = [word for word in words if word != "discover"] or words[1:]
        what = f'unknown command "{unknown[0]}"' if unknown else "a command is missing: discover"
        raise UsageError(f'{what} for "pyfrp client nathole"', parser.format_usage())
    cfg = _configured(flags)
    server = flags.nat_hole_stun_server or cfg.nat_hole_stun_server
    from pyfrp.cli.run import use_dns_server
    from pyfrp.net.runner import run

    use_dns_server(cfg)
    try:
        lines = run(_discover(server, flags.nat_hole_local_addr or ""))
    except (LinkError, OSError) as exc:
        print(f"discover error: {exc}")
        return FAILED
    print("\n".join(lines))
    return OK


def _configured(flags: object) -> ClientConfig:
    """The file, or what holds without one where there is none that can be read."""
    from pyfrp.cli.main import CLIENT_FILE
    from pyfrp.config import ClientConfig, load_client

    path = getattr(flags, "config", None) or CLIENT_FILE
    if os.path.exists(path):
        try:
            return load_client(path, strict=getattr(flags, "strict_config", True))
        except ConfigError as exc:
            print(f"WARNING: {exc}; asking the default server")
    return ClientConfig()


async def _discover(server: str, local: str) -> list[str]:
    """Returns what to print. Raises LinkError or OSError."""
    from pyfrp.nathole.discovery import discover, local_ips
    from pyfrp.nathole.hole import Outlet
    from pyfrp.nathole.nat import classify

    host, port = _local(local)
    outlet = await Outlet.open(host, port)
    try:
        mapped = await discover(outlet, server)
        ours = "{}:{}".format(*outlet.address)
    finally:
        outlet.close()
    if len(mapped) < 2:
        shown = " ".join(mapped)
        raise LinkError(f"can not get enough addresses, need 2, got: [{shown}]")
    try:
        nat = classify(mapped, local_ips())
    except ValueError as exc:
        raise LinkError(str(exc)) from exc
    return [
        f"STUN server: {server}",
        f"Your NAT type is: {nat.kind}",
        f"Behavior is: {nat.behavior}",
        f"External address is: [{' '.join(mapped)}]",
        f"Local address is: {ours}",
        f"Public Network: {str(nat.public).lower()}",
    ]


def _local(text: str) -> tuple[str, int]:
    """Read `ip:port`, `:port` or nothing."""
    if not text:
        return "0.0.0.0", 0
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise DialError(f"{text!r} is no address and port to ask from")
    return host or "0.0.0.0", int(port)
