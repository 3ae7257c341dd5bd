"""Names of proxies: as the operator writes them and as peers see them."""

from __future__ import annotations


def wire_name(user: str, name: str) -> str:
    """Join a user and a proxy's name as messages carry it: `<user>.<name>`, or `<name>` alone.

    Source: frp `pkg/config/load.go`, the prefix of `LoadClientConfig`.
    """
    return f"{user}.{name}" if user else name
